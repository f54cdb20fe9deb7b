"""The largest radiograph that is read, and the error that refuses a picture."""

from __future__ import annotations

from diptych.errors import DataError

__all__ = ["MAX_BYTES", "MAX_PIXELS", "ImageError", "refuse"]

MAX_PIXELS = 64_000_000
"""Pixels of the largest picture that is decoded. The largest detectors give about 16 million."""

MAX_BYTES = 4 * MAX_PIXELS
"""Bytes of the largest file that is read, and of the largest deflated DICOM file after it is inflated."""


class ImageError(DataError):
    """A picture that cannot be used."""

    rule: str = "unreadable image"
    """Why it cannot be used: missing, oversized, truncated, corrupt, flat or unsupported image, several frames, no image.

    Images of one rule are counted together.
    """


def refuse(rule: str, message: str) -> ImageError:
    """The error that a picture breaks this rule.

    >>> refuse("flat image", "a.png: the picture is flat; leave it out").rule
    'flat image'
    """
    error = ImageError(message)
    error.rule = rule
    return error
