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
_OBLONG = 4.0  # no detector has pixels that are longer


def values_of(
    pixels: NDArray[Any], dataset: pydicom.FileDataset, source: str
) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """The values in the bits that the header names, and which pixels are no padding.

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
    counted = raw if padding is None else raw[~padding]
    strange = int(np.bitwise_or.reduce(counted, axis=None)) & ~allowed
    lossy = dataset.file_meta.TransferSyntaxUID in LOSSY  # whose values may ring beyond their bits
    if not signed and (lossy or (low == 0 and not strange and padding is None)):
        return values, _not(padding if padding is not None else _padding(values, dataset))
    meant = (values << (size - 1 - high)) >> (size - used)  # arithmetic where signed, so the sign is carried on
    if strange & ~overlays and not lossy:
        keep = slice(None) if padding is None else ~padding
        if not (signed and low == 0 and np.array_equal(meant[keep], values[keep])):  # they repeat the sign
            raise refuse("corrupt image", _contradiction(counted, dataset, source))
    inside = _padding(meant, dataset)
    if padding is not None and inside is not None:
        inside = inside | padding
    return meant, _not(padding if inside is None else inside)


def _contradiction(counted: NDArray[Any], dataset: pydicom.FileDataset, source: str) -> str:
    return (
        f"{source}: its values, up to {int(counted.max())}, use bits that BitsStored {dataset.BitsStored} and HighBit "
        f"{dataset.HighBit} exclude; correct the header or leave it out"
    )


def _overlays(dataset: pydicom.FileDataset) -> int:
    """The bits that old files keep graphics in, as they announce it."""
    bits = 0
    for group in range(0x6000, 0x6020, 2):
        element = dataset.get((group, 0x0102))
        position = _numbers(element.value if element is not None else None)
        if position and 0 <= position[0] < 16:
            bits |= 1 << int(position[0])
    return bits


def _padding(values: NDArray[Any], dataset: pydicom.FileDataset) -> NDArray[np.bool_] | None:
    """Pixels of a padding value, or of a range of them; None if there are none."""
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
    found = values == low if low == high else (values >= low) & (values <= high)
    return found if found.any() else None


def _not(padding: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
    return None if padding is None else ~padding


def _numbers_of(dataset: pydicom.FileDataset, name: str) -> list[float]:
    """The numbers of an element; none where it is absent, empty, or is no number, which pydicom says by an error."""
    try:
        return _numbers(dataset.get(name))
    except (ValueError, OverflowError):
        return []


def _is_given(dataset: pydicom.FileDataset, name: str) -> bool:
    """Whether an element says anything, if only nonsense."""
    try:
        return dataset.get(name) not in (None, "")
    except (ValueError, OverflowError):
        return True


def _numbers(value: Any) -> list[float]:
    """The finite numbers of an element's value; what is none is not a number here."""
    try:
        listed = value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else [value]
        found = [float(item) for item in listed]
    except (TypeError, ValueError):
        return []
    return found if all(map(math.isfinite, found)) else []


def brightness_of(
    dataset: pydicom.FileDataset, photometric: str, window: int | None, notes: list[str]
) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Modality LUT, window and inversion as one function of the stored value."""
    _check_rescale(dataset, notes)
    luts = dataset.get("VOILUTSequence") or []
    shown: Callable[[NDArray[Any]], NDArray[Any]] | None = None
    if window is not None and luts:
        at = _chosen(window, len(luts), notes)
        shown = partial(_through_lut, dataset, at)
    elif window is not None and ("WindowCenter" in dataset or "WindowWidth" in dataset):
        shown = _window(dataset, window, notes)
    inverse = str(dataset.get("PresentationLUTShape", "")).strip().upper() == "INVERSE"
    if inverse and photometric == "MONOCHROME2":
        notes.append(INVERSE)
    inverted = inverse or photometric == "MONOCHROME1"  # MONOCHROME1 with INVERSE says one thing twice

    def brightness(values: NDArray[Any]) -> NDArray[Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = apply_modality_lut(values, dataset)
            if shown is not None:
                result = shown(result)
        result = result.astype(np.float64)
        return -result if inverted else result

    return brightness


def _check_rescale(dataset: pydicom.FileDataset, notes: list[str]) -> None:
    """Take a slope or intercept away that is none."""
    slope, intercept = (_numbers_of(dataset, name) for name in _RESCALE)
    if slope and slope[0] and intercept:
        return
    if any(_is_given(dataset, name) for name in _RESCALE) and not dataset.get("ModalityLUTSequence"):
        notes.append(RESCALED)
    for name in _RESCALE:
        if name in dataset:
            del dataset[name]


def _through_lut(dataset: pydicom.FileDataset, at: int, values: NDArray[Any]) -> NDArray[Any]:
    """Through a VOI LUT, whose input is whole numbers, also after a rescale slope."""
    return apply_voi(np.rint(values).astype(np.int64), dataset, at)


def _chosen(window: int, number: int, notes: list[str]) -> int:
    if window >= number:
        notes.append(FEWER)
    return min(window, number - 1)


def _window(
    dataset: pydicom.FileDataset, window: int, notes: list[str]
) -> Callable[[NDArray[Any]], NDArray[Any]] | None:
    """The chosen window as a function to 0..1 (PS3.3 C.11.2.1); None, and a note, where it is impossible.

    Not pydicom's: it turns black and white about where the rescale slope is negative.
    """
    centers, widths = (_numbers_of(dataset, name) for name in ("WindowCenter", "WindowWidth"))
    number = min(len(centers), len(widths))
    if not number:
        if any(_is_given(dataset, name) for name in ("WindowCenter", "WindowWidth")):
            notes.append(WINDOW)
        return None
    at = _chosen(window, number, notes)
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
    """Height of a pixel over its width, from the first element that says it."""
    for name in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio"):
        sides = _numbers_of(dataset, name)
        if len(sides) == 2 and min(sides) > 0:
            aspect = sides[0] / sides[1]
            break
    else:
        return 1.0
    if math.isclose(aspect, 1, rel_tol=SQUARE):
        return 1.0
    if not 1 / _OBLONG <= aspect <= _OBLONG:
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
    """Tell what the header says of a picture that is not as radiographs are shown: head up, the patient's left at the right.

    It is told and not applied: these elements are often wrong, and boxes and masks of releases are drawn on stored pixels.
    """
    value = dataset.get("PatientOrientation")
    listed = [] if value is None or isinstance(value, str) else [str(item)[:1].upper() for item in value]
    if len(listed) == 2 and all(listed):
        across, down = listed
        if across in "HF" or down in "LRAP" or down == "H":
            notes.append(TURNED)
        elif across == "R":
            notes.append(MIRRORED)
        return
    rotation = _numbers_of(dataset, "FieldOfViewRotation")
    flipped = str(dataset.get("FieldOfViewHorizontalFlip") or "").strip().upper() == "YES"
    if flipped or (rotation and rotation[0] % 360):
        notes.append(DETECTOR)
