"""Pictures of masks, boxes and similarities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from diptych.radiographs.letterbox import scale_to
from diptych.results.sheet import Sheet, fitted

__all__ = ["draw_boxes", "draw_masks", "draw_similarity"]

_INK, _PAPER = (32, 32, 32), (255, 255, 255)
_TINTS = ((60, 200, 90), (240, 90, 60))
_THUMB = 160
"""Pixels of the longer side of a picture beside the matrix."""


def _font(size: int) -> Any:
    return ImageFont.load_default(size)


def _enlargement(shape: tuple[int, ...]) -> tuple[int, tuple[int, int]]:
    """The whole factor that brings a picture ``[h,v]`` to 256 pixels, and its width and height times that."""
    factor = max(1, -(-256 // max(shape)))
    return factor, (shape[1] * factor, shape[0] * factor)


def draw_masks(image: NDArray[np.uint8], masks: Mapping[str, NDArray[np.bool_]]) -> Image.Image:
    """A radiograph ``[h,v]``, then the same under each mask ``[h,v]``, which is tinted, outlined and named.

    Pictures under 256 pixels are enlarged by a whole factor.
    """
    _, size = _enlargement(image.shape)
    bar = 24
    sheet = Image.new("RGB", (size[0] * (1 + len(masks)), bar + size[1]), _PAPER)
    pen = ImageDraw.Draw(sheet)
    grey = np.repeat(np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))[..., None], 3, axis=2)
    for place, (name, mask) in enumerate([("radiograph", None), *masks.items()]):
        panel = grey.copy()
        if mask is not None:
            large = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
            colour = np.array(_TINTS[(place - 1) % len(_TINTS)], np.float32)
            panel[large > 0] = (0.65 * panel[large > 0] + 0.35 * colour).astype(np.uint8)
            lines, _ = cv2.findContours(large, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(panel, lines, -1, _TINTS[(place - 1) % len(_TINTS)], 1)
        sheet.paste(Image.fromarray(panel), (place * size[0], bar))
        pen.text((place * size[0] + 4, 3), name, fill=_INK, font=_font(14))
    return sheet


def draw_boxes(
    image: NDArray[np.uint8], boxes: Mapping[str, NDArray[np.floating[Any]]], findings: Sequence[str] = ()
) -> Image.Image:
    """A radiograph ``[h,v]``, then the same under each named set of boxes ``[K,5]`` or ``[K,6]``.

    A box is x0, y0, x1, y1, the finding's index and perhaps the confidence. Finding and confidence are written at the box.
    Pictures under 256 pixels are enlarged by a whole factor.
    """
    factor, size = _enlargement(image.shape)
    bar = 24
    sheet = Image.new("RGB", (size[0] * (1 + len(boxes)), bar + size[1]), _PAPER)
    pen = ImageDraw.Draw(sheet)
    grey = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC).convert("RGB")
    for place, (name, rows) in enumerate([("radiograph", None), *boxes.items()]):
        left = place * size[0]
        sheet.paste(grey, (left, bar))
        pen.text((left + 4, 3), name, fill=_INK, font=_font(14))
        colour = _TINTS[(place - 1) % len(_TINTS)]
        for x0, y0, x1, y1, finding, *score in () if rows is None else rows.tolist():
            x, y = left + x0 * factor, bar + y0 * factor
            edges = [x, y, max(x, left + x1 * factor - 1), max(y, bar + y1 * factor - 1)]
            pen.rectangle(edges, outline=colour, width=max(1, size[0] // 256))
            label = " ".join([*(f"{value:.2f}" for value in score), *findings[int(finding) : int(finding) + 1]])
            type_size = max(10, size[0] // 24)
            right = left + size[0] - pen.textlength(label, font=_font(type_size)) - 3
            above = edges[1] - type_size - 4 if edges[1] - type_size - 4 >= bar else edges[1] + 2
            corner = (max(left, min(edges[0], right)), above)
            pen.text(corner, label, fill=colour, font=_font(type_size), stroke_width=1, stroke_fill=_INK)
    return sheet


def draw_similarity(scores: NDArray[np.float32], images: Sequence[NDArray[np.uint8]], texts: Sequence[str]) -> Sheet:
    """The scores ``[n,n]`` of every picture (a row) with every report (a column), and the scale of the colours below.

    The best of each row is outlined: in white if it is the picture's own report, else in red.
    """
    cell, label, type_size = 20.0, 320.0, 8.0
    n, wide = len(images), max(6, len(images))
    low, high = float(scores.min()), float(scores.max())
    level = np.asarray((scores - low) / max(high - low, 1e-12) * 255, np.uint8)
    bar = np.arange(256, dtype=np.uint8)[None]
    colours, scale = (cv2.applyColorMap(grey, cv2.COLORMAP_VIRIDIS)[..., ::-1] for grey in (level, bar))
    sheet = Sheet(cell * (wide + 1) + label, cell * (n + 1) + 34)
    for i in range(n):
        small = scale_to(images[i], _THUMB) if max(images[i].shape) > _THUMB else images[i]
        height, width = ((cell - 1) * side / max(small.shape) for side in small.shape)
        sheet.picture(0.5, cell * (i + 1) + 0.5, width, height, np.repeat(small[..., None], 3, axis=2))
        sheet.text(cell * (i + 1.5), 13, str(i), type_size, _INK, "middle")
        top = cell * (i + 1)
        for j in range(n):
            red, green, blue = colours[i, j].tolist()
            sheet.box(cell * (j + 1), top, cell * (j + 2), top + cell, (red, green, blue))
        report = f"{i}  {' '.join(texts[i].split())}"
        sheet.text(
            cell * (n + 1) + 4, top + 12, fitted(report, type_size, label + (wide - n) * cell - 8), type_size, _INK
        )
        left = cell * (int(scores[i].argmax()) + 1)
        mark = (255, 255, 255) if int(scores[i].argmax()) == i else (255, 80, 80)
        a, b, c, d = left + 1.5, top + 1.5, left + cell - 1.5, top + cell - 1.5
        sheet.line([(a, b), (c, b), (c, d), (a, d), (a, b)], mark)
    under = cell * (n + 1) + 6
    sheet.picture(cell, under, 4 * cell, 8, np.ascontiguousarray(scale))
    sheet.text(cell, under + 18, f"{low:.2f}", type_size, _INK)
    sheet.text(5 * cell, under + 18, f"{high:.2f}", type_size, _INK, "end")
    sheet.text(5 * cell + 5, under + 7, "score of a picture (row) with a report (column)", type_size, _INK)
    return sheet
