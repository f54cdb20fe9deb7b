"""Downstream tasks on an image tower."""

from __future__ import annotations

from diptych.lazy import face

__getattr__, __dir__ = face(__name__)
