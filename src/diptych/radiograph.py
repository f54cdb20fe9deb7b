"""One reader for every radiograph: DICOM, PNG (8 and 16 bit) and JPEG to 8-bit grey, bright where X-rays were stopped.

A file that cannot be read is one named error, never a black picture.
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

__all__ = ["MAX_PIXELS", "read_radiograph", "to_grey"]

MAX_PIXELS = 64_000_000
"""Largest picture that is decoded: the largest detectors give about 16 million pixels."""


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
        DataError: all pixels are equal, or some are not finite.
    """
    x = values.astype(np.float32)
    if not np.isfinite(x).all():
        raise DataError(f"{source}: the picture holds values that are not numbers; the file is damaged")
    low = float(x.min()) if low is None else low
    high = float(x.max()) if high is None else high
    if x.size == 0 or high <= low or x.min() == x.max():
        raise DataError(
            f"{source}: the picture is flat (every pixel is {x.flat[0] if x.size else 'missing'}); leave it out"
        )
    scaled = np.clip((x - low) / (high - low), 0, 1) * 255
    return np.asarray(np.rint(scaled), dtype=np.uint8)


def read_radiograph(path: Path | str) -> NDArray[np.uint8]:
    """Read one radiograph as uint8 ``[H,V]``.

    8-bit pictures keep their values; 16-bit PNG and DICOM are stretched over their own range (DICOM: over its window,
    where it names one). MONOCHROME1 is inverted.

    Raises:
        DataError: the file is missing, empty, truncated, corrupt, flat, too large, or has more than one frame.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such image file; check the image folder and the table's path column")
    with path.open("rb") as file:
        start = file.read(132)
    try:
        if start[128:132] == b"DICM" or path.suffix.lower() in {".dcm", ".dicom"}:
            return _read_dicom(path)
        return _read_picture(path)
    except DataError:
        raise
    except Exception as error:  # decoders raise anything on hostile bytes; whatever it is, the file is named
        raise DataError(f"{path}: cannot be read as a radiograph ({type(error).__name__}: {_line(error)})") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _read_picture(path: Path) -> NDArray[np.uint8]:
    from PIL import Image

    raw = path.read_bytes()
    try:
        image = Image.open(io.BytesIO(raw))
    except Exception as error:
        raise DataError(f"{path}: not a PNG, JPEG or DICOM file, or damaged ({_line(error)})") from error
    if image.width * image.height > MAX_PIXELS:
        raise DataError(f"{path}: {image.width}x{image.height} pixels is over the limit of {MAX_PIXELS}")
    frames = int(getattr(image, "n_frames", 1))
    if frames > 1:
        raise DataError(f"{path}: {frames} frames; a radiograph has one")
    try:
        image.load()
    except Exception as error:
        raise DataError(f"{path}: the {image.format} data are truncated or corrupt ({_line(error)})") from error
    return grey_of(image, source=str(path))


def grey_of(image: Image.Image, *, source: str) -> NDArray[np.uint8]:
    """A PIL picture of any mode as uint8 ``[H,V]``; transparency is laid on black.

    Raises:
        DataError: the picture is flat.
    """
    from PIL import Image

    if image.mode in {"I;16", "I;16B", "I;16L", "I", "F"}:
        return to_grey(np.asarray(image), source=source)
    if image.mode in {"RGBA", "LA", "PA"} or (image.mode == "P" and "transparency" in image.info):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    grey = np.array(image.convert("L"))
    if grey.min() == grey.max():
        raise DataError(f"{source}: the picture is flat (every pixel is {grey.flat[0]}); leave it out")
    return grey


def _read_dicom(path: Path) -> NDArray[np.uint8]:
    import pydicom
    from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

    header = pydicom.dcmread(path, force=True, stop_before_pixels=True)  # a forged size must not allocate anything
    rows, columns = int(header.get("Rows", 0)), int(header.get("Columns", 0))
    if not rows or not columns:
        raise DataError(f"{path}: not a DICOM image (no Rows and Columns)")
    if rows * columns > MAX_PIXELS:
        raise DataError(f"{path}: {columns}x{rows} pixels is over the limit of {MAX_PIXELS}")
    frames = int(header.get("NumberOfFrames", 1) or 1)
    if frames != 1:
        raise DataError(f"{path}: {frames} frames; a radiograph has one")
    photometric = str(header.get("PhotometricInterpretation", ""))
    if photometric not in {"MONOCHROME1", "MONOCHROME2"}:
        raise DataError(
            f"{path}: PhotometricInterpretation is '{photometric}'; a radiograph is MONOCHROME1 or MONOCHROME2"
        )
    dataset = pydicom.dcmread(path, force=True)
    if "PixelData" not in dataset:
        raise DataError(f"{path}: the DICOM file has no pixel data; it is truncated")
    if not hasattr(dataset.file_meta, "TransferSyntaxUID"):
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian  # DICOM's default where none is named
    stored = dataset.pixel_array
    if stored.ndim != 2:
        raise DataError(f"{path}: pixel data of shape {stored.shape}; a radiograph has one grey frame")
    values = apply_modality_lut(stored, dataset)
    windowed = "WindowCenter" in dataset or "VOILUTSequence" in dataset
    grey = to_grey(apply_voi_lut(values, dataset) if windowed else values, source=str(path))
    return 255 - grey if photometric == "MONOCHROME1" else grey  # pydicom's LUT functions do not invert
