"""One reader for every radiograph: DICOM, PNG, JPEG, TIFF, WebP and BMP to grey, bright where X-rays were stopped.

A file that cannot be read raises :class:`ImageError` with the rule it breaks. It never becomes a black picture. Sizes are
compared with the limits before anything is decoded, so a forged header costs no memory. The content says what a file is,
and its name does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from diptych.errors import DataError
from diptych.radiographs.intensity import Intensity
from diptych.radiographs.kinds import kind_of
from diptych.radiographs.limits import MAX_BYTES, ImageError, refuse

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "DecodedPicture",
    "Radiograph",
    "grey_of",
    "look_up",
    "open_bytes",
    "open_radiograph",
    "radiograph_of_bytes",
    "read_mask",
    "read_radiograph",
    "read_radiograph_float",
    "to_grey",
]

SQUARE = 0.01
"""Sides of a pixel that differ by a smaller share count as equal."""

Brightness = Callable[[NDArray[Any]], NDArray[Any]]
T = TypeVar("T")

_AS_STORED = Intensity()


class DecodedPicture(NamedTuple):
    """A file's pixels before they are stretched."""

    stored: NDArray[Any]
    """``[h,v]``"""
    brightness: Brightness | None = None
    """The brightness of stored values, as a function. None where the values themselves are brightness."""
    keep: NDArray[np.bool_] | None = None
    """``[h,v]``: False at padding, which becomes black and does not count in the stretch. None where there is none."""
    notes: tuple[str, ...] = ()
    """What the user should know of a picture that can be used. Equal notes are counted together."""
    aspect: float = 1.0
    """Height of a pixel over its width. The picture will be resampled to square pixels."""


class Radiograph(NamedTuple):
    """A picture, and what the user should know of it."""

    pixels: NDArray[np.uint8]
    """``[h,v]``"""
    notes: tuple[str, ...] = ()
    aspect: float = 1.0
    """Height of a stored pixel over its width. The pixels here are square."""


def _flat(source: str, value: object) -> ImageError:
    return refuse("flat image", f"{source}: the picture is flat (every pixel is {value}); leave it out")


def to_grey(values: NDArray[Any], *, source: str, percentiles: tuple[float, float] | None = None) -> NDArray[np.uint8]:
    """Stretch a grey picture ``[H,V]`` of any number type to 0..255.

    >>> to_grey(np.array([[-1.0, 0.0], [1.0, 3.0]]), source="mine").tolist()
    [[0, 64], [128, 255]]

    Args:
        values: pixel values.
        source: the file's name, for the message.
        percentiles: percentiles that become 0 and 255. Without them, the least and the greatest value do.

    Raises:
        ImageError: all pixels are equal, or some are not finite.
    """
    return _as_uint8(_stretch(values, None, percentiles, source))


def _stretch(
    values: NDArray[Any], keep: NDArray[np.bool_] | None, percentiles: tuple[float, float] | None, source: str
) -> NDArray[np.float32]:
    """Stretch values of any number type to 0..1."""
    x = values.astype(np.float32)
    if not np.isfinite(x).all():
        message = f"{source}: the picture holds values that are not numbers; the file is damaged"
        raise refuse("corrupt image", message)
    inside = x if keep is None else x[keep]
    if inside.size == 0:
        raise _flat(source, "missing" if x.size == 0 else "padding")
    low, high = float(inside.min()), float(inside.max())
    if low == high:
        raise _flat(source, low)
    if percentiles is not None:
        low, high = np.percentile(inside, percentiles, method="inverted_cdf").tolist()
        _check_range(low, high, percentiles, source)
    return np.asarray(np.clip((x - low) / (high - low), 0, 1), np.float32)


def _check_range(low: float, high: float, percentiles: tuple[float, float], source: str) -> None:
    if not high > low:
        raise refuse(
            "flat image",
            f"{source}: the picture is flat between its percentiles {percentiles[0]:g} and {percentiles[1]:g} (both are "
            f"{low:g}); set loading.intensity.percentiles wider apart, or leave it out",
        )


def _as_uint8(share: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.asarray(np.rint(share * 255), dtype=np.uint8)


def look_up(
    stored: NDArray[Any],
    brightness: Brightness | None,
    *,
    source: str,
    keep: NDArray[np.bool_] | None = None,
    percentiles: tuple[float, float] | None = None,
) -> NDArray[np.float32]:
    """The table that turns stored integers of up to 16 bits into brightness 0..1, stretched over the picture's range.

    A table of all values is many times faster than arithmetic on the pixels, and takes no memory.

    >>> table = look_up(np.array([[7, 9], [8, 11]], np.uint8), None, source="mine")
    >>> table[[7, 8, 9, 11]].tolist()
    [0.0, 0.25, 0.5, 1.0]

    Args:
        stored: ``[H,V]`` pixels, an integer type of 8 or 16 bits.
        brightness: a function of an array of stored values, such as the modality and window of a DICOM file.
        source: the file's name, for the message.
        keep: ``[H,V]``, true at the pixels that decide the range. All do, if not given.
        percentiles: percentiles of brightness that become 0 and 1. Without them, the least and the greatest do.

    Returns:
        ``[256]`` or ``[65536]``. Its index is a pixel, read as an unsigned number.

    Raises:
        ImageError: the picture is flat, before or after ``brightness``, or between its percentiles.
    """
    inside = stored if keep is None else stored[keep]
    if inside.size == 0:
        raise _flat(source, "padding" if stored.size else "missing")
    first, last = int(inside.min()), int(inside.max())
    if first == last:
        raise _flat(source, first)
    values = np.arange(first, last + 1).astype(stored.dtype)
    shades = np.asarray(values if brightness is None else brightness(values), dtype=np.float64)
    low, high = float(shades.min()), float(shades.max())
    if not (np.isfinite(shades).all() and high > low):
        raise refuse(
            "flat image",
            f"{source}: the window leaves nothing of the values {first} to {last}; leave it out, or set "
            "loading.intensity.window: null, which ignores windows",
        )
    index = values.view(_unsigned(stored))
    if percentiles is not None:
        counts = _counts(inside.view(_unsigned(stored)))[index]
        used = counts > 0
        low, high = np.percentile(shades[used], percentiles, weights=counts[used], method="inverted_cdf").tolist()
        _check_range(low, high, percentiles, source)
    table = np.zeros(256**stored.dtype.itemsize, np.float32)
    table[index] = np.clip((shades - low) / (high - low), 0, 1)
    return table


def _counts(index: NDArray[Any]) -> NDArray[np.int64]:
    """How many pixels have each value. They are counted by parts, since numpy makes every value eight bytes."""
    flat, size = index.reshape(-1), 256**index.dtype.itemsize
    counts = np.zeros(size, np.int64)
    for start in range(0, flat.size, 2**20):
        counts += np.bincount(flat[start : start + 2**20], minlength=size)
    return counts


def _unsigned(stored: NDArray[Any]) -> np.dtype[Any]:
    return np.dtype(f"u{stored.dtype.itemsize}")


def _apply(stored: NDArray[Any], table: NDArray[Any]) -> NDArray[Any]:
    """``table[stored]``. It is taken by rows, since numpy makes every index eight bytes."""
    index = stored.view(_unsigned(stored))
    out = np.empty(index.shape, table.dtype)
    for row in range(0, len(index), 128):
        out[row : row + 128] = table[index[row : row + 128]]
    return out


def read_radiograph(path: Path | str, intensity: Intensity = _AS_STORED) -> NDArray[np.uint8]:
    """Read one radiograph as uint8 ``[H,V]``: the pixels of :func:`open_radiograph`."""
    return open_radiograph(path, intensity).pixels


def open_radiograph(path: Path | str, intensity: Intensity = _AS_STORED) -> Radiograph:
    """Read one radiograph as uint8 ``[H,V]``, 0 (black, air) to 255.

    8-bit pictures keep their values. Deeper ones are stretched over their own range. DICOM is stretched over the range
    that its modality and window give, and MONOCHROME1 is inverted. Transparency is laid on black, colour becomes
    luminance, and padding is black. An EXIF orientation is applied. A DICOM file's pixels are resampled to squares.

    Args:
        path: a DICOM, PNG, JPEG, TIFF, WebP or BMP file, whatever its suffix.
        intensity: how stored values become grey.

    Raises:
        ImageError: the file is missing, empty, truncated, corrupt, flat, too large, no picture, or has several frames.
    """
    decoded = _read(Path(path), intensity.window)
    pixels = _name_errors(Path(path), lambda: _render(decoded, intensity, str(path)))
    return Radiograph(pixels, decoded.notes, decoded.aspect)


def radiograph_of_bytes(raw: bytes, *, source: str, intensity: Intensity = _AS_STORED) -> NDArray[np.uint8]:
    """Read a whole file that is at hand as bytes, as :func:`read_radiograph` reads one from the disk.

    Args:
        raw: the file's content.
        source: what it is, for messages.
        intensity: how stored values become grey.

    Raises:
        ImageError: as :func:`open_radiograph`.
    """
    return open_bytes(raw, source=source, intensity=intensity).pixels


def open_bytes(raw: bytes, *, source: str, intensity: Intensity = _AS_STORED) -> Radiograph:
    """Read a whole file that is at hand as bytes, as :func:`open_radiograph` reads one from the disk.

    Args:
        raw: the file's content.
        source: what it is, for messages.
        intensity: how stored values become grey.

    Raises:
        ImageError: as :func:`open_radiograph`.
    """
    if len(raw) > MAX_BYTES:
        raise refuse("oversized image", f"{source}: {len(raw)} bytes is over the limit of {MAX_BYTES}; leave it out")

    def read() -> Radiograph:
        decoded = _decode(raw, Path(source), intensity.window)
        return Radiograph(_render(decoded, intensity, source), decoded.notes, decoded.aspect)

    return _name_errors(Path(source), read)


def read_radiograph_float(path: Path | str, intensity: Intensity = _AS_STORED) -> NDArray[np.float32]:
    """Read one radiograph as float32 ``[H,V]`` from 0 to 1, at the file's own depth."""
    decoded = _read(Path(path), intensity.window)
    return _name_errors(Path(path), lambda: _render(decoded, intensity, str(path), exact=True))


def _render(decoded: DecodedPicture, intensity: Intensity, source: str, *, exact: bool = False) -> NDArray[Any]:
    """The grey picture as uint8, or as float32 from 0 to 1 where it shall be exact."""
    stored, percentiles = decoded.stored, intensity.percentiles
    picture: NDArray[Any]
    if stored.dtype == np.uint8 and decoded.brightness is None and percentiles is None:
        if stored.size == 0 or stored.min() == stored.max():
            raise _flat(source, stored.flat[0] if stored.size else "missing")
        picture = stored.astype(np.float32) / np.float32(255) if exact else stored
    elif stored.dtype.kind in "iu" and stored.dtype.itemsize <= 2:
        table = look_up(stored, decoded.brightness, source=source, keep=decoded.keep, percentiles=percentiles)
        picture = _apply(stored, table if exact else _as_uint8(table))
    else:
        share = _stretch(stored, decoded.keep, percentiles, source)
        picture = share if exact else _as_uint8(share)
    return _square_pixels(decoded, picture)


def _square_pixels(decoded: DecodedPicture, picture: NDArray[Any]) -> NDArray[Any]:
    """Make padding black and pixels square. The longer side of a pixel is divided, so nothing is lost."""
    if decoded.keep is not None:
        picture = np.where(decoded.keep, picture, picture.dtype.type(0))
    if math.isclose(decoded.aspect, 1, rel_tol=SQUARE):
        return picture
    import cv2

    height, width = picture.shape
    size = (width, round(height * decoded.aspect)) if decoded.aspect > 1 else (round(width / decoded.aspect), height)
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_LINEAR))


def read_mask(path: Path | str) -> NDArray[np.bool_]:
    """Read a mask from a PNG file as bool ``[H,V]``: true where a pixel is not black, whatever its transparency.

    Its EXIF orientation is applied, as a radiograph's is.

    Raises:
        ImageError: the file is missing, no PNG (JPEG would blur its edge), truncated or too large.
    """
    from diptych.radiographs.pictures import decode_mask

    path = Path(path)
    if not path.is_file():
        raise refuse("missing mask", f"{path}: no such mask file; check the folder and the table's mask column")
    if path.stat().st_size > MAX_BYTES:
        raise refuse("oversized mask", f"{path}: over the limit of {MAX_BYTES} bytes; leave it out")
    return decode_mask(path.read_bytes(), source=str(path))


def _read(path: Path, window: int | None = 0) -> DecodedPicture:
    """Decode a file."""
    if not path.is_file():
        message = f"{path}: no such image file; check the image folder and the table's path column"
        raise refuse("missing image", message)
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise refuse("oversized image", f"{path}: {size} bytes is over the limit of {MAX_BYTES}; leave it out")
    return _name_errors(path, lambda: _decode(path.read_bytes(), path, window))


def _decode(raw: bytes, path: Path, window: int | None) -> DecodedPicture:
    from diptych.radiographs import pictures

    kind = kind_of(raw)
    if kind == "DICOM" or (not kind and path.suffix.lower() in {".dcm", ".dicom"}):
        from diptych.radiographs import dicom

        return dicom.decode(raw, source=str(path), window=window)
    return pictures.decode(raw, kind, source=str(path))


def _name_errors(path: Path, work: Callable[[], T]) -> T:
    """Do the work, and name the file in whatever it raises."""
    try:
        return work()
    except DataError:
        raise
    except Exception as error:  # decoders raise anything on hostile bytes
        reason = " ".join(str(error).split())[:200]
        message = (
            f"{path}: cannot be read as a radiograph ({type(error).__name__}: {reason}); repair it or leave it out"
        )
        raise refuse("corrupt image", message) from error


def grey_of(image: Image.Image, *, source: str, intensity: Intensity = _AS_STORED) -> NDArray[np.uint8]:
    """A PIL picture of any mode as uint8 ``[H,V]``, as :func:`read_radiograph` reads a file.

    Raises:
        ImageError: the picture is flat.
    """
    from diptych.radiographs.pictures import of_pil

    return _render(of_pil(image), intensity, source)
