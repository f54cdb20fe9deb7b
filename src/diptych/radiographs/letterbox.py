"""A picture of any shape in a square, and its boxes and masks with it."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["Letterbox", "letterbox", "scale_to"]

Boxes = NDArray[np.float32]
Mask = NDArray[np.bool_]


class Letterbox(NamedTuple):
    """Where a native picture lies in the square input."""

    scale: float
    """Input pixels for each native pixel."""
    top: int
    left: int
    height: int
    """Rows of the input that hold the picture. The rest is padding."""
    width: int

    def boxes(self, boxes: Boxes) -> Boxes:
        """Native boxes ``[K,5]`` (x0, y0, x1, y1, finding) in input pixels.

        >>> letterbox(np.zeros((200, 100), np.uint8), 50)[1].boxes(np.float32([[0, 0, 100, 200, 3]])).tolist()
        [[12.0, 0.0, 37.0, 50.0, 3.0]]
        """
        moved = boxes.copy()
        moved[:, :4] = boxes[:, :4] * self.scale + np.array([self.left, self.top, self.left, self.top], np.float32)
        return moved

    def mask(self, mask: Mask, size: int) -> Mask:
        """A native mask ``[h,v]`` in the square input ``[size,size]``: true where more than half of a pixel was."""
        grey, _ = letterbox(mask.astype(np.uint8) * np.uint8(255), size)
        return grey > 127

    def heat(self, maps: NDArray[np.float32], shape: tuple[int, ...], size: int) -> NDArray[np.float32]:
        """Maps over the regions of the square input, ``[n,rows,columns]``, over the native picture alone: ``[n,h,v]``.

        Args:
            maps: one value for each region.
            shape: rows and columns of the result: those of the native picture, or of a smaller copy.
            size: side of the square input.
        """
        result = np.zeros((len(maps), *shape), np.float32)
        for heat, target in zip(maps, result, strict=True):
            square = cv2.resize(heat, (size, size), interpolation=cv2.INTER_CUBIC)
            inside = square[self.top : self.top + self.height, self.left : self.left + self.width]
            target[:] = cv2.resize(inside, shape[::-1], interpolation=cv2.INTER_LINEAR)
        return result.clip(min=0)


def scale_to(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Scale ``[h,v]`` so that its longer side is ``size``, keeping its proportions.

    >>> scale_to(np.zeros((200, 100), np.uint8), 50).shape
    (50, 25)
    """
    height, width = image.shape
    scale = size / max(height, width)
    new_height, new_width = max(1, round(height * scale)), max(1, round(width * scale))
    if (new_height, new_width) == image.shape:
        return image
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (new_width, new_height), interpolation=method), dtype=np.uint8)


def letterbox(image: NDArray[np.uint8], size: int) -> tuple[NDArray[np.uint8], Letterbox]:
    """Scale ``[h,v]`` to fit a black square ``[size,size]``, centred, keeping its proportions.

    >>> square, place = letterbox(np.full((200, 100), 9, np.uint8), 50)
    >>> square.shape, place
    ((50, 50), Letterbox(scale=0.25, top=0, left=12, height=50, width=25))
    """
    scale = size / max(image.shape)
    image = scale_to(image, size)
    new_height, new_width = image.shape
    place = Letterbox(scale, (size - new_height) // 2, (size - new_width) // 2, new_height, new_width)
    canvas = np.zeros((size, size), np.uint8)
    canvas[place.top : place.top + new_height, place.left : place.left + new_width] = image
    return canvas, place
