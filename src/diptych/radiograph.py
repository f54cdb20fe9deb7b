"""One reader for every radiograph: DICOM, PNG (8 and 16 bit) and JPEG to grey, bright where X-rays were stopped.

A file that cannot be read is one named error (:class:`ImageError`) with the rule it breaks, never a black picture. Sizes
are compared with the limits before anything is decoded, so a forged header costs no memory.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from diptych.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "MAX_BYTES",
    "MAX_PIXELS",
    "ImageError",
    "grey_of",
    "look_up",
    "read_mask",
    "read_radiograph",
    "read_radiograph_float",
    "refuse",
    "to_grey",
]

MAX_PIXELS = 64_000_000
"""Largest picture that is decoded: the largest detectors give about 16 million pixels."""
MAX_BYTES = 4 * MAX_PIXELS
"""Largest file that is read, and the largest deflated DICOM file when it is inflated."""


class ImageError(DataError):
    """A picture that cannot be used."""

    rule: str = "unreadable image"
    """Why, as it is counted: missing, oversized, truncated, corrupt, flat or unsupported image, several frames."""


def refuse(rule: str, message: str) -> ImageError:
    """An :class:`ImageError` of a rule."""
    error = ImageError(message)
    error.rule = rule
    return error


def _flat(source: str, value: object) -> ImageError:
    return refuse("flat image", f"{source}: the picture is flat (every pixel is {value}); leave it out")


def to_grey(
    values: NDArray[Any], *, source: str, low: float | None = None, high: float | None = None
) -> NDArray[np.uint8]:
    """Stretch a grey picture ``[H,V]`` of any number type to 0..255.

    Args:
        values: pixel values.
        source: the file's name, for the message.
        low: the value that becomes 0; the smallest, if not given.
        high: the value that becomes 255; the largest, if not given.

    Raises:
        ImageError: all pixels are equal, or some are not finite.
    """
    x = values.astype(np.float32)
    if not np.isfinite(x).all():
        message = f"{source}: the picture holds values that are not numbers; the file is damaged"
        raise refuse("corrupt image", message)
    if x.size == 0:
        raise _flat(source, "missing")
    low = float(x.min()) if low is None else low
    high = float(x.max()) if high is None else high
    if high <= low or x.min() == x.max():
        raise _flat(source, x.flat[0])
    scaled = np.clip((x - low) / (high - low), 0, 1) * 255
    return np.asarray(np.rint(scaled), dtype=np.uint8)


def look_up(stored: NDArray[Any], brightness: Any, *, source: str) -> NDArray[np.float32]:
    """The table that turns stored integers of up to 16 bits into brightness 0..1, stretched over the picture's range.

    A table of all values is many times faster than arithmetic on the pixels, and takes no memory.

    Args:
        stored: ``[H,V]`` pixels, an integer type of 8 or 16 bits.
        brightness: a function of an array of stored values, as the modality and window of a DICOM file.
        source: the file's name, for the message.

    Returns:
        ``[256]`` or ``[65536]``, to be indexed by the pixels read as unsigned numbers.

    Raises:
        ImageError: the picture is flat, before or after ``brightness``.
    """
    first, last = (int(stored.min()), int(stored.max())) if stored.size else (0, 0)
    if first == last:
        raise _flat(source, first if stored.size else "missing")
    values = np.arange(first, last + 1).astype(stored.dtype)
    given = np.asarray(brightness(values), dtype=np.float64)
    low, high = float(given.min()), float(given.max())
    if not (np.isfinite(given).all() and high > low):
        raise refuse("flat image", f"{source}: the window leaves nothing of the values {first} to {last}; leave it out")
    table = np.zeros(256**stored.dtype.itemsize, np.float32)
    table[values.view(_unsigned(stored))] = (given - low) / (high - low)
    return table


def _unsigned(stored: NDArray[Any]) -> np.dtype[Any]:
    return np.dtype(f"u{stored.dtype.itemsize}")


def _apply(stored: NDArray[Any], table: NDArray[Any]) -> NDArray[Any]:
    """``table[stored]``, by rows: numpy would make every index eight bytes."""
    index = stored.view(_unsigned(stored))
    out = np.empty(index.shape, table.dtype)
    for row in range(0, len(index), 128):
        out[row : row + 128] = table[index[row : row + 128]]
    return out


def read_radiograph(path: Path | str) -> NDArray[np.uint8]:
    """Read one radiograph as uint8 ``[H,V]``, 0 (black, air) to 255.

    8-bit pictures keep their values; 16-bit PNG and DICOM are stretched over their own range (DICOM: over what its
    modality and window make of it). MONOCHROME1 is inverted. Transparency is laid on black, colour becomes luminance.

    Raises:
        ImageError: the file is missing, empty, truncated, corrupt, flat, too large, or has more than one frame.
    """
    stored, table = _read(Path(path))
    if table is None:
        return stored
    return _apply(stored, np.rint(table * 255).astype(np.uint8))


def read_radiograph_float(path: Path | str) -> NDArray[np.float32]:
    """As :func:`read_radiograph`, but float32 from 0 to 1 at the file's own depth."""
    stored, table = _read(Path(path))
    return _apply(stored, np.arange(256, dtype=np.float32) / 255 if table is None else table)


def read_mask(path: Path | str) -> NDArray[np.bool_]:
    """Read a mask from a PNG file as bool ``[H,V]``: true where a pixel is not black, whatever its transparency.

    Raises:
        ImageError: the file is missing, no PNG (JPEG would blur its edge), truncated or too large.
    """
    path = Path(path)
    if not path.is_file():
        raise refuse("missing mask", f"{path}: no such mask file; check the folder and the table's mask column")
    if path.stat().st_size > MAX_BYTES:
        raise refuse("oversized mask", f"{path}: over the limit of {MAX_BYTES} bytes; leave it out")
    image = _open(path.read_bytes(), source=str(path))
    if image.format != "PNG":
        raise refuse(
            "unsupported mask", f"{path}: a mask is a PNG file, and this is {image.format}; convert the original"
        )
    if image.mode in {"RGBA", "LA", "P", "PA"}:
        image = image.convert("RGB")
    values = np.asarray(image)
    return np.asarray(values.any(axis=2) if values.ndim == 3 else values != 0)


def _read(path: Path) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
    """Stored pixels and their :func:`look_up` table; no table for 8-bit pictures, which stay as they are."""
    if not path.is_file():
        message = f"{path}: no such image file; check the image folder and the table's path column"
        raise refuse("missing image", message)
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise refuse("oversized image", f"{path}: {size} bytes is over the limit of {MAX_BYTES}; leave it out")
    try:
        raw = path.read_bytes()
        if raw[128:132] == b"DICM" or path.suffix.lower() in {".dcm", ".dicom"}:
            from diptych.dicom import decode

            stored, brightness = decode(raw, source=str(path))
            return stored, look_up(stored, brightness, source=str(path))
        image = _open(raw, source=str(path))
        if image.mode.startswith("I;16"):
            stored = np.asarray(image).astype(np.uint16)  # one of its modes is big-endian
            return stored, look_up(stored, lambda values: values, source=str(path))
        return grey_of(image, source=str(path)), None
    except DataError:
        raise
    except Exception as error:  # decoders raise anything on hostile bytes; whatever it is, the file is named
        reason = " ".join(str(error).split())[:200]
        message = (
            f"{path}: cannot be read as a radiograph ({type(error).__name__}: {reason}); repair it or leave it out"
        )
        raise refuse("corrupt image", message) from error


def _open(raw: bytes, *, source: str) -> Image.Image:
    """Decode a PNG or JPEG file; PIL's other readers, some of which start programs, are not for radiographs."""
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(raw), formats=("PNG", "JPEG"))
    except Image.DecompressionBombError as error:
        raise refuse("oversized image", f"{source}: over the limit of {MAX_PIXELS} pixels; leave it out") from error
    except Exception as error:
        message = f"{source}: not a PNG, JPEG or DICOM file, or damaged; repair it or leave it out"
        raise refuse("corrupt image", message) from error
    if image.width * image.height > MAX_PIXELS:
        message = f"{source}: {image.width}x{image.height} pixels is over the limit of {MAX_PIXELS}; leave it out"
        raise refuse("oversized image", message)
    frames = int(getattr(image, "n_frames", 1))
    if frames > 1:
        raise refuse("several frames", f"{source}: {frames} frames; a radiograph has one")
    try:
        image.load()
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        rule = "truncated image" if "truncated" in reason else "corrupt image"
        message = f"{source}: the {image.format} data are truncated or corrupt ({reason}); repair it or leave it out"
        raise refuse(rule, message) from error
    return image


def grey_of(image: Image.Image, *, source: str) -> NDArray[np.uint8]:
    """A PIL picture of any mode as uint8 ``[H,V]``; transparency is laid on black.

    Raises:
        ImageError: the picture is flat.
    """
    from PIL import Image

    if image.mode in {"I;16", "I;16B", "I;16L", "I", "F"}:
        return to_grey(np.asarray(image), source=source)
    if image.mode in {"RGBA", "LA", "PA"} or (image.mode == "P" and "transparency" in image.info):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    grey = np.array(image.convert("L"))
    if grey.size == 0 or grey.min() == grey.max():
        raise _flat(source, grey.flat[0] if grey.size else "missing")
    return grey
