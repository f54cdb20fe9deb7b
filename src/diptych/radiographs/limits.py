"""What a radiograph may be at most, and the error that refuses one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diptych.errors import DataError

if TYPE_CHECKING:
    pass

__all__ = ["MAX_BYTES", "MAX_PIXELS", "ImageError", "refuse"]


MAX_PIXELS = 64_000_000
"""Largest picture that is decoded: the largest detectors give about 16 million pixels."""


MAX_BYTES = 4 * MAX_PIXELS
"""Largest file that is read, and the largest deflated DICOM file when it is inflated."""


class ImageError(DataError):
    """A picture that cannot be used."""

    rule: str = "unreadable image"
    """Why, as it is counted: missing, oversized, truncated, corrupt, flat or unsupported image, several frames, no image."""


def refuse(rule: str, message: str) -> ImageError:
    """An :class:`ImageError` of a rule."""
    error = ImageError(message)
    error.rule = rule
    return error
