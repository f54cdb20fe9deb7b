"""What a DICOM header says of its pixels: which bits hold values, what is padding, how they are shown, how they lie."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import uid
from pydicom.pixels.processing import apply_modality_lut, apply_voi

from diptych.radiographs.limits import MAX_PIXELS, refuse
from diptych.radiographs.read import SQUARE

__all__ = ["LOSSY", "aspect_of", "brightness_of", "tell_orientation", "values_of"]

WINDOW = "impossible window, ignored"
FEWER = "fewer windows than intensity.window asks for, the last one applied"
RESCALED = "impossible rescale slope or intercept, ignored"
INVERSE = "MONOCHROME2 with an INVERSE presentation, inverted"
OBLONG = "pixels are not square, resampled"
MIRRORED = "PatientOrientation says that the picture is mirrored, shown as stored"
TURNED = "PatientOrientation says that the picture is turned, shown as stored"
DETECTOR = "FieldOfViewRotation or FieldOfViewHorizontalFlip is set and PatientOrientation is not, shown as stored"

LOSSY = frozenset({uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEG2000, uid.JPEGLSNearLossless})
_RESCALE = ("RescaleSlope", "RescaleIntercept")
_LONGEST_PIXEL = 4.0  # longer over shorter side, more than any detector has


def values_of(
    pixels: NDArray[Any], dataset: pydicom.FileDataset, source: str
) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """The values in the bits that the header names, and a mask that is False at padding.

    Raises:
        ImageError: other bits are set, and neither an overlay nor a sign explains them.
    """
    signed = bool(dataset.get("PixelRepresentation"))
    if pixels.dtype.itemsize == 1 and dataset.BitsAllocated == 16:  # a compressed frame of few bits
        pixels = pixels.astype(np.int16 if pixels.dtype.kind == "i" else np.uint16)
    unsigned, integer = (np.dtype(f"{kind}{pixels.dtype.itemsize}") for kind in "ui")
    raw, size = pixels.view(unsigned), 8 * pixels.dtype.itemsize
    high, used = int(dataset.HighBit), int(dataset.BitsStored)
    low = high + 1 - used
    values = pixels.view(integer if signed else unsigned)
    padding = _padding(values, dataset)
    if used == size:
        return values, _not(padding)
    allowed, overlays = ((1 << used) - 1) << low, _overlays(dataset)
    inside = raw if padding is None else raw[~padding]
    strange = int(np.bitwise_or.reduce(inside, axis=None)) & ~allowed
    lossy = dataset.file_meta.TransferSyntaxUID in LOSSY  # lossy values may ring beyond their bits
    if not signed and (lossy or (low == 0 and not strange and padding is None)):
        return values, _not(padding if padding is not None else _padding(values, dataset))
    shifted = (values << (size - 1 - high)) >> (size - used)  # arithmetic where signed, so the sign is carried on
    if strange & ~overlays and not lossy:
        keep = slice(None) if padding is None else ~padding
        if not (signed and low == 0 and np.array_equal(shifted[keep], values[keep])):  # they repeat the sign
            raise refuse("corrupt image", _contradiction(inside, dataset, source))
    more = _padding(shifted, dataset)
    if padding is not None and more is not None:
        more = more | padding
    return shifted, _not(padding if more is None else more)


def _contradiction(inside: NDArray[Any], dataset: pydicom.FileDataset, source: str) -> str:
    return (
        f"{source}: its values, up to {int(inside.max())}, use bits that BitsStored {dataset.BitsStored} and HighBit "
        f"{dataset.HighBit} exclude; correct the header or leave it out"
    )


def _overlays(dataset: pydicom.FileDataset) -> int:
    """The bits in which old files keep graphics, by the elements that announce them."""
    bits = 0
    for group in range(0x6000, 0x6020, 2):
        element = dataset.get((group, 0x0102))
        position = _numbers(element.value if element is not None else None)
        if position and 0 <= position[0] < 16:
            bits |= 1 << int(position[0])
    return bits


def _padding(values: NDArray[Any], dataset: pydicom.FileDataset) -> NDArray[np.bool_] | None:
    """A mask of the pixels with a padding value, or one in a range of them. None where there are none."""
    ends = [_numbers_of(dataset, name) for name in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
    if not ends[0]:
        return None
    limits = np.iinfo(values.dtype)
    wrapped = [int(end[0]) for end in ends if end]
    wrapped = [
        end + 65536 if end < limits.min else end - 65536 if end > limits.max and limits.min else end for end in wrapped
    ]
    low, high = max(min(wrapped), limits.min), min(max(wrapped), limits.max)
    if low > high:
        return None
    padding = values == low if low == high else (values >= low) & (values <= high)
    return padding if padding.any() else None


def _not(padding: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
    return None if padding is None else ~padding


def _numbers_of(dataset: pydicom.FileDataset, name: str) -> list[float]:
    """The numbers of an element. The list is empty where it is absent, empty, or no number (a pydicom error)."""
    try:
        return _numbers(dataset.get(name))
    except (ValueError, OverflowError):
        return []


def _has_content(dataset: pydicom.FileDataset, name: str) -> bool:
    """Whether an element holds anything, even nonsense."""
    try:
        return dataset.get(name) not in (None, "")
    except (ValueError, OverflowError):
        return True


def _numbers(value: Any) -> list[float]:
    """The numbers of an element's value. The list is empty where one of them is no finite number."""
    try:
        items = value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else [value]
        numbers = [float(item) for item in items]
    except (TypeError, ValueError):
        return []
    return numbers if all(map(math.isfinite, numbers)) else []


def brightness_of(
    dataset: pydicom.FileDataset, photometric: str, window: int | None, notes: list[str]
) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Modality LUT, window and inversion as one function of the stored value."""
    _check_rescale(dataset, notes)
    luts = dataset.get("VOILUTSequence") or []
    view: Callable[[NDArray[Any]], NDArray[Any]] | None = None
    if window is not None and luts:
        view = partial(_apply_lut, dataset, _choose(window, len(luts), notes))
    elif window is not None and ("WindowCenter" in dataset or "WindowWidth" in dataset):
        view = _window(dataset, window, notes)
    inverse = str(dataset.get("PresentationLUTShape", "")).strip().upper() == "INVERSE"
    if inverse and photometric == "MONOCHROME2":
        notes.append(INVERSE)
    inverted = inverse or photometric == "MONOCHROME1"  # MONOCHROME1 with INVERSE says one thing twice

    def brightness(values: NDArray[Any]) -> NDArray[Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = apply_modality_lut(values, dataset)
            if view is not None:
                result = view(result)
        result = result.astype(np.float64)
        return -result if inverted else result

    return brightness


def _check_rescale(dataset: pydicom.FileDataset, notes: list[str]) -> None:
    """Remove a rescale slope or intercept that is impossible."""
    slope, intercept = (_numbers_of(dataset, name) for name in _RESCALE)
    if slope and slope[0] and intercept:
        return
    if any(_has_content(dataset, name) for name in _RESCALE) and not dataset.get("ModalityLUTSequence"):
        notes.append(RESCALED)
    for name in _RESCALE:
        if name in dataset:
            del dataset[name]


def _apply_lut(dataset: pydicom.FileDataset, at: int, values: NDArray[Any]) -> NDArray[Any]:
    """Apply a VOI LUT. Its input is whole numbers, after a rescale slope too."""
    return apply_voi(np.rint(values).astype(np.int64), dataset, at)


def _choose(window: int, number: int, notes: list[str]) -> int:
    """The window that is applied of this many: the one asked for, or the last."""
    if window >= number:
        notes.append(FEWER)
    return min(window, number - 1)


def _window(
    dataset: pydicom.FileDataset, window: int, notes: list[str]
) -> Callable[[NDArray[Any]], NDArray[Any]] | None:
    """The chosen window as a function to 0..1 (PS3.3 C.11.2.1). None, with a note, where it is impossible.

    It is not pydicom's, which exchanges black and white where the rescale slope is negative.
    """
    centers, widths = (_numbers_of(dataset, name) for name in ("WindowCenter", "WindowWidth"))
    number = min(len(centers), len(widths))
    if not number:
        if any(_has_content(dataset, name) for name in ("WindowCenter", "WindowWidth")):
            notes.append(WINDOW)
        return None
    at = _choose(window, number, notes)
    center, width = centers[at], widths[at]
    kind = str(dataset.get("VOILUTFunction") or "LINEAR").strip().upper()
    if width <= 0 or (width < 1 and kind not in {"SIGMOID", "LINEAR_EXACT"}):
        notes.append(WINDOW)
        return None
    if kind == "SIGMOID":
        return lambda values: 1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -700, 700)))
    if kind != "LINEAR_EXACT":
        center, width = center - 0.5, width - 1
    if width == 0:
        return lambda values: (values > center).astype(np.float64)
    return lambda values: np.clip((values.astype(np.float64) - center) / width + 0.5, 0, 1)


def aspect_of(dataset: pydicom.FileDataset, notes: list[str], source: str) -> float:
    """Height of a pixel over its width, by the first element that tells it.

    Raises:
        ImageError: it is absurd, or with square pixels the picture would be over the limit.
    """
    for name in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio"):
        sides = _numbers_of(dataset, name)
        if len(sides) == 2 and min(sides) > 0:
            aspect = sides[0] / sides[1]
            break
    else:
        return 1.0
    if math.isclose(aspect, 1, rel_tol=SQUARE):
        return 1.0
    if not 1 / _LONGEST_PIXEL <= aspect <= _LONGEST_PIXEL:
        message = (
            f"{source}: {name} is {sides[0]:g}, {sides[1]:g}; a radiograph's pixels are not so long; correct the header"
        )
        raise refuse("corrupt image", message)
    if dataset.Rows * dataset.Columns * max(aspect, 1 / aspect) > MAX_PIXELS:
        message = f"{source}: with square pixels ({name}) it is over the limit of {MAX_PIXELS} pixels; leave it out"
        raise refuse("oversized image", message)
    notes.append(OBLONG)
    return aspect


def tell_orientation(dataset: pydicom.FileDataset, notes: list[str]) -> None:
    """Add a note where the header says that the picture lies otherwise than radiographs are shown.

    They are shown head up, with the patient's left at the right. The picture stays as it is stored. The header is often
    wrong here, and boxes and masks of releases are drawn on stored pixels.
    """
    value = dataset.get("PatientOrientation")
    directions = [] if value is None or isinstance(value, str) else [str(item)[:1].upper() for item in value]
    if len(directions) == 2 and all(directions):
        across, down = directions
        if across in "HF" or down in "LRAP" or down == "H":
            notes.append(TURNED)
        elif across == "R":
            notes.append(MIRRORED)
        return
    rotation = _numbers_of(dataset, "FieldOfViewRotation")
    flipped = str(dataset.get("FieldOfViewHorizontalFlip") or "").strip().upper() == "YES"
    if flipped or (rotation and rotation[0] % 360):
        notes.append(DETECTOR)
