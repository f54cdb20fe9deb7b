"""A picture of any shape in a square, and its boxes and masks with it."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["Letterbox", "letterbox", "scaled"]


Boxes = NDArray[np.float32]


Mask = NDArray[np.bool_]


class Letterbox(NamedTuple):
    """Where a native picture lies in the square input."""

    scale: float
    """Input pixels for each native pixel."""
    top: int
    left: int
    height: int
    """Rows of the input that hold the picture; the rest is padding."""
    width: int

    def boxes(self, boxes: Boxes) -> Boxes:
        """Native boxes ``[K,5]`` (x0, y0, x1, y1, finding) in input pixels."""
        moved = boxes.copy()
        moved[:, :4] = boxes[:, :4] * self.scale + np.array([self.left, self.top, self.left, self.top], np.float32)
        return moved

    def mask(self, mask: Mask, size: int) -> Mask:
        """A native mask ``[h,v]`` in the square input ``[size,size]``: true where more than half of a pixel was."""
        grey, _ = letterbox(mask.astype(np.uint8) * np.uint8(255), size)
        return grey > 127


def scaled(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """``[h,v]`` with its longer side ``size``, its proportions kept."""
    height, width = image.shape
    scale = size / max(height, width)
    new_height, new_width = max(1, round(height * scale)), max(1, round(width * scale))
    if (new_height, new_width) == image.shape:
        return image
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (new_width, new_height), interpolation=method), dtype=np.uint8)


def letterbox(image: NDArray[np.uint8], size: int) -> tuple[NDArray[np.uint8], Letterbox]:
    """Scale ``[h,v]`` to fit a black square ``[size,size]``, centred, keeping its proportions."""
    scale = size / max(image.shape)
    image = scaled(image, size)
    new_height, new_width = image.shape
    place = Letterbox(scale, (size - new_height) // 2, (size - new_width) // 2, new_height, new_width)
    canvas = np.zeros((size, size), np.uint8)
    canvas[place.top : place.top + new_height, place.left : place.left + new_width] = image
    return canvas, place
