"""Drawing in patient coordinates: the same picture at any number of pixels.

Patient coordinates have the midline at ``x = 0``. Positive ``x`` are on the image's right, the patient's **left**. The top
edge is at ``y = 0``, the bottom edge at ``y = 1``. One unit is the height of the picture before the patient is moved on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["Field", "Frame", "Points", "smooth"]

Field = NDArray[np.float32]
"""A value for each pixel, ``[H,V]``."""
Points = NDArray[np.float64]
"""Patient coordinates, ``[K,2]`` as x, y."""

_SHIFT = 4  # sub-pixel bits of OpenCV's drawing functions
_STEPS = 6  # points drawn between two control points
_CENTRE = np.array([0.0, 0.48])

_t = np.arange(_STEPS) / _STEPS
# Catmull-Rom: weights [_STEPS,4] of the four control points around a segment
_BLEND = 0.5 * np.stack(
    [-_t + 2 * _t**2 - _t**3, 2 - 5 * _t**2 + 3 * _t**3, _t + 4 * _t**2 - 3 * _t**3, -(_t**2) + _t**3], axis=1
)


def smooth(points: Sequence[tuple[float, float]] | Points, *, closed: bool = True) -> Points:
    """Lay Catmull-Rom curves through control points ``[...,K,2]``. A curve passes through each of its points.

    >>> smooth([(0, 0), (1, 0), (1, 1)], closed=False).shape  # six points from one control point to the next
    (13, 2)
    """
    p = np.asarray(points, dtype=np.float64)
    if closed:
        around = np.concatenate([p[..., -1:, :], p, p[..., :2, :]], axis=-2)
    else:
        around = np.concatenate([p[..., :1, :], p, p[..., -1:, :]], axis=-2)
    segments = around.shape[-2] - 3
    windows = np.stack([around[..., i : segments + i, :] for i in range(4)], axis=-2)  # [...,segments,4,2]
    curve = (_BLEND @ windows).reshape(*p.shape[:-2], -1, 2)
    return curve if closed else np.concatenate([curve, p[..., -1:, :]], axis=-2)


class Frame:
    """A square raster and the place of the patient on it.

    Args:
        size: pixels a side.
        zoom: size of the patient, 1 is the standard.
        tilt: rotation in degrees, clockwise as seen.
        shift: translation in picture heights, to the right and down.
    """

    def __init__(
        self, size: int, *, zoom: float = 1.0, tilt: float = 0.0, shift: tuple[float, float] = (0.0, 0.0)
    ) -> None:
        self.size = size
        angle = np.deg2rad(tilt)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * zoom
        self._turn = turn * size
        self._origin = (0.5 + np.asarray(shift)) * size - 0.5 - self._turn @ _CENTRE
        self.scale = zoom * size
        back = np.linalg.inv(self._turn)
        pixel = np.arange(size, dtype=np.float64)
        u, v = pixel - self._origin[0], pixel - self._origin[1]
        self.x: Field = np.asarray(back[0, 0] * u[None, :] + back[0, 1] * v[:, None], dtype=np.float32)
        self.y: Field = np.asarray(back[1, 0] * u[None, :] + back[1, 1] * v[:, None], dtype=np.float32)

    def pixels(self, points: Points) -> Points:
        """Pixel coordinates ``[...,2]`` (centres of pixels at whole numbers) of patient coordinates ``[...,2]``."""
        return np.asarray(points @ self._turn.T + self._origin)

    def blank(self) -> NDArray[np.uint8]:
        """An empty canvas for :meth:`paint` and :meth:`stroke`."""
        return np.zeros((self.size, self.size), np.uint8)

    def paint(self, canvas: NDArray[np.uint8], polygons: Points, value: float = 1.0) -> None:
        """Fill a polygon ``[K,2]``, or several ``[n,K,2]``, with a value from 0 to 1."""
        fixed = np.rint(self.pixels(polygons) * (1 << _SHIFT)).astype(np.int32)
        cv2.fillPoly(
            canvas, list(fixed) if fixed.ndim == 3 else [fixed], (float(round(value * 255)),), cv2.LINE_AA, _SHIFT
        )

    def stroke(
        self, canvas: NDArray[np.uint8], lines: Points, width: float, value: float = 1.0, *, closed: bool = False
    ) -> None:
        """Draw a line ``[K,2]``, or several ``[n,K,2]``. A line thinner than a pixel is drawn a pixel wide, and fainter."""
        wide = width * self.scale
        thick = max(1, round(wide))
        level = float(round(255 * value * min(1.0, wide / thick)))
        fixed = np.rint(self.pixels(lines) * (1 << _SHIFT)).astype(np.int32)
        cv2.polylines(canvas, list(fixed) if fixed.ndim == 3 else [fixed], closed, (level,), thick, cv2.LINE_AA, _SHIFT)

    def fill(self, polygon: Points) -> Field:
        """Coverage of each pixel by a polygon, 0 to 1."""
        canvas = self.blank()
        self.paint(canvas, polygon)
        return self.level(canvas)

    def level(self, canvas: NDArray[np.uint8]) -> Field:
        """A canvas as values from 0 to 1."""
        return np.asarray(canvas * np.float32(1 / 255), dtype=np.float32)

    def depth(self, cover: Field, reach: float) -> Field:
        """Thickness of a rounded body with this outline, 0 to 1. It is 1 from ``reach`` (patient units) inside the edge on."""
        inside = cv2.distanceTransform((cover > 0.5).astype(np.uint8), cv2.DIST_L2, 3)
        return np.asarray(np.sqrt(np.minimum(inside * np.float32(1 / (reach * self.scale)), 1.0)), dtype=np.float32)

    def blur(self, field: Field, sigma: float) -> Field:
        """Gaussian blur with ``sigma`` in patient units. It is computed on a coarser raster where that loses nothing."""
        wide = sigma * self.scale
        factor = int(wide // 2.5)
        if factor >= 2:
            small = (max(8, self.size // factor),) * 2
            coarse = cv2.GaussianBlur(
                cv2.resize(field, small, interpolation=cv2.INTER_AREA), (0, 0), wide * small[0] / self.size
            )
            return np.asarray(
                cv2.resize(coarse, (self.size, self.size), interpolation=cv2.INTER_CUBIC), dtype=np.float32
            )
        return np.asarray(cv2.GaussianBlur(field, (0, 0), max(wide, 0.1)), dtype=np.float32) if wide > 0.2 else field

    def blob(self, x: float, y: float, rx: float, ry: float, turn: float = 0.0) -> Field:
        """Squared distance from the centre of an ellipse, which is 1 on the ellipse. ``turn`` is its angle in radians."""
        dx, dy = self.x - np.float32(x), self.y - np.float32(y)
        c, s = np.cos(turn), np.sin(turn)
        # the quadratic form written out: three products instead of a rotated copy of the raster
        a, b = c * c / rx**2 + s * s / ry**2, s * s / rx**2 + c * c / ry**2
        mixed = 2 * c * s * (1 / rx**2 - 1 / ry**2)
        along = dx * np.float32(a)
        if turn:
            along += dy * np.float32(mixed)
        along *= dx
        dy *= dy * np.float32(b)
        along += dy
        return np.asarray(along, dtype=np.float32)

    def cloud(self, rng: np.random.Generator, grains: Mapping[int, float]) -> Field:
        """Smooth random texture. It moves with the patient, and is the same at any size.

        Args:
            rng: its source.
            grains: standard deviation for each number of grains across the picture.
        """
        fine = max(grains)
        grid = np.zeros((fine, fine), np.float32)
        for cells, deviation in grains.items():
            octave = rng.standard_normal((cells, cells), dtype=np.float32) * np.float32(deviation)
            grid += octave if cells == fine else cv2.resize(octave, (fine, fine), interpolation=cv2.INTER_CUBIC)
        step = np.float32(fine / 1.3)
        column, row = (self.x + np.float32(0.65)) * step, (self.y + np.float32(0.15)) * step
        return np.asarray(
            cv2.remap(grid, column, row, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT), dtype=np.float32
        )
