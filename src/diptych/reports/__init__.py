"""Reports: sentences, sections, word pieces and findings."""

from __future__ import annotations

from diptych.lazy import face

__getattr__, __dir__ = face(__name__, "text")
