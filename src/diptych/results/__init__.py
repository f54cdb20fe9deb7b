"""Results of runs: files, tables, pictures."""

from __future__ import annotations

from diptych.lazy import face

__getattr__, __dir__ = face(__name__, "record")
