"""What a run has beside the model: its folder, callbacks, checkpoints, signals and loggers."""

from __future__ import annotations

from diptych.lazy import face

__getattr__, __dir__ = face(__name__)
