"""The model: encoder and head, training, checkpoints, and use."""

from __future__ import annotations

from diptych.lazy import face

__getattr__, __dir__ = face(__name__)
