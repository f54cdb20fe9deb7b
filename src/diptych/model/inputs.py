"""What people hand to a trained model: pictures of any kind, one or many, and texts."""

from __future__ import annotations

import copy
import io
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from diptych.errors import ConfigError
from diptych.radiographs.intensity import Intensity
from diptych.radiographs.read import Radiograph, grey_of, radiograph_of_bytes, read_radiograph, to_grey

__all__ = ["each_picture", "each_text", "grey_picture", "in_range", "is_many"]

_LUMA = np.array([0.299, 0.587, 0.114])
"""Of red, green and blue, as PIL weighs them (ITU-R 601-2)."""


def each_picture(pictures: Any) -> list[Any]:
    """Single pictures, not yet read, from whatever a user hands over.

    Args:
        pictures: a path, the bytes of a file, an open file, a pydicom data set, a PIL image, an array or a tensor; or a list
            of them. What :func:`~diptych.radiographs.read.open_radiograph` gave is taken as it is. An array is ``[h,v]`` or
            ``[h,v,3]``. A batch is ``[B,h,v]``, ``[B,1,h,v]``, ``[B,3,h,v]`` or ``[B,h,v,3]``.

    Raises:
        ConfigError: it is none of these.
    """
    if (single := _parts(pictures, "pictures")) is not None:
        return single
    if isinstance(pictures, Mapping) or not isinstance(pictures, Iterable):
        raise ConfigError(f"pictures: {_kind(pictures)} is none; give a path, a PIL image, an array, or a list of them")
    singles = []
    for index, item in enumerate(pictures):
        parts = _parts(item, f"pictures[{index}]")
        if parts is None or len(parts) != 1:
            what = "is no picture" if parts is None else f"holds {len(parts)} pictures"
            raise ConfigError(f"pictures[{index}]: {_kind(item)} {what}; a list holds a picture an element")
        singles += parts
    return singles


def is_many(pictures: Any) -> bool:
    """Whether they are a list or a batch, if only of one. Otherwise they are one picture."""
    if isinstance(pictures, np.ndarray | Tensor) and pictures.ndim > 3:
        return True
    if isinstance(pictures, io.IOBase):
        return False  # to read it here would leave nothing
    parts = _parts(pictures, "pictures")
    return parts is None or len(parts) != 1


def in_range(picture: Any, where: str, value_range: tuple[float, float]) -> NDArray[np.uint8]:
    """An array as uint8, where the first value of the range is black and the second is white. Values beyond are cut.

    >>> in_range(np.array([[0.0, 0.5], [1.0, 2.0]]), "pictures[0]", (0, 1)).tolist()
    [[0, 128], [255, 255]]

    Raises:
        ConfigError: it is no array of numbers, or the range does not rise.
    """
    low, high = value_range
    if not low < high:
        raise ConfigError(f"value_range is ({low}, {high}); give the value of black, then a higher one of white")
    if not isinstance(picture, np.ndarray) or picture.dtype.kind not in "buif":
        raise ConfigError(f"{where}: value_range is for arrays, and this is {_kind(picture)}; leave it out")
    values = picture.astype(np.float64)
    if not np.isfinite(values).all():
        raise ConfigError(f"{where}: the array holds values that are not finite numbers; replace them")
    return np.asarray(np.rint(((values - low) / (high - low)).clip(0, 1) * 255), np.uint8)


def _parts(value: Any, where: str) -> list[Any] | None:
    """The pictures in a value that is no list: a path, an image, an array or a tensor. None for any other value."""
    from PIL import Image
    from pydicom import Dataset

    if isinstance(value, str | os.PathLike | Radiograph | Image.Image | bytes | bytearray | memoryview | Dataset):
        return [value]
    if isinstance(value, io.IOBase):
        return [value.read()]
    array = value
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        array = (value.float() if value.is_floating_point() else value).numpy()  # numpy has no bfloat16
    if not isinstance(array, np.ndarray) or array.dtype.kind in "OUS":
        return None
    shape = array.shape
    if array.ndim == 2 or (array.ndim == 3 and shape[2] in (3, 4)):
        return [array]
    if array.ndim == 3 and shape[2] == 1:
        return [array[:, :, 0]]
    if array.ndim == 3 and shape[2] != 2:
        return list(array)
    if array.ndim == 4 and shape[1] == 1:
        return list(array[:, 0])
    if array.ndim == 4 and shape[1] in (3, 4):
        return list(np.moveaxis(array, 1, 3))
    if array.ndim == 4 and shape[3] in (1, 3, 4):
        return list(array[..., 0] if shape[3] == 1 else array)
    raise ConfigError(
        f"{where}: an array of shape {list(shape)}; give [height, width], [height, width, 3] or a batch of either"
    )


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}"


def grey_picture(
    picture: Any,
    where: str,
    intensity: Intensity = Intensity(),  # noqa: B008  # frozen
) -> NDArray[np.uint8]:
    """One picture as uint8 ``[h,v]``: uint8 as it is, other types stretched to their own range.

    Args:
        picture: one that :func:`each_picture` has returned.
        where: its place among all pictures, for messages.
        intensity: how it is read.

    Raises:
        ConfigError: an array that holds no numbers, or nothing.
        DataError: a file or picture that cannot be used.
    """
    from PIL import Image
    from pydicom import Dataset

    if isinstance(picture, Radiograph):
        return picture.pixels
    if isinstance(picture, str | os.PathLike):
        return read_radiograph(os.fspath(picture), intensity)
    if isinstance(picture, Image.Image):
        return grey_of(picture, source=where, intensity=intensity)
    if isinstance(picture, Dataset):
        picture = _written(picture)
    if isinstance(picture, bytes | bytearray | memoryview):
        return radiograph_of_bytes(bytes(picture), source=where, intensity=intensity)
    array = np.asarray(picture)
    if array.dtype.kind not in "buif" or not array.size:
        raise ConfigError(f"{where}: an array {list(array.shape)} of {array.dtype}; give numbers, a pixel at least")
    if array.ndim == 2:
        if array.dtype == np.uint8 and intensity.percentiles is None:
            return array
        return to_grey(array, source=where, percentiles=intensity.percentiles)
    if array.dtype == np.uint8:
        return grey_of(Image.fromarray(np.ascontiguousarray(array)), source=where, intensity=intensity)
    if array.shape[2] == 4:
        raise ConfigError(f"{where}: an array of {array.dtype} with transparency; give three colours, or uint8")
    return to_grey(array.astype(np.float64) @ _LUMA, source=where, percentiles=intensity.percentiles)


def _written(dataset: Any) -> bytes:
    """The DICOM file that a pydicom data set in memory would be. One without a file's header gets the usual encoding."""
    from pydicom import dcmwrite
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ImplicitVRLittleEndian

    whole, file = copy.copy(dataset), io.BytesIO()
    if getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", None) is None:
        whole.file_meta = FileMetaDataset()
        whole.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    whole.preamble = bytes(128)
    dcmwrite(file, whole)
    return file.getvalue()


def each_text(texts: Any) -> list[str]:
    """A list of texts, out of one or many.

    >>> each_text("No effusion.")
    ['No effusion.']

    Raises:
        ConfigError: one of them is no text.
    """
    if isinstance(texts, str):
        return [texts]
    if isinstance(texts, bytes | Mapping) or not isinstance(texts, Iterable):
        raise ConfigError(f"texts: {_kind(texts)} is none; give a string, or a list of them")
    many = list(texts)
    for index, text in enumerate(many):
        if not isinstance(text, str):
            raise ConfigError(f"texts[{index}]: {_kind(text)} is no text; give strings")
    return many
