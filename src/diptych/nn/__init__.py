"""What heads are made of: functions, layers, normalisation and attention by blocks."""

from __future__ import annotations

from diptych.lazy import face

__getattr__, __dir__ = face(__name__)
