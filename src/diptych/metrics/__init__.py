"""Numbers from arrays: no model is needed."""

from __future__ import annotations

from diptych.lazy import face

__getattr__, __dir__ = face(__name__, "measures", "bootstrap")
