"""Pictures of maps, masks, boxes and similarities."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from diptych.data.dataset import Sample

__all__ = ["draw_attention", "draw_boxes", "draw_masks", "draw_similarity", "overlay", "sharpest"]


RGB = NDArray[np.uint8]
_INK, _PAPER = (32, 32, 32), (255, 255, 255)
_TINTS = ((60, 200, 90), (240, 90, 60))


def overlay(image: NDArray[np.uint8], heat: NDArray[np.float32]) -> RGB:
    """A grey picture ``[h,v]`` with an attention map ``[h,v]`` over it, as ``[h,v,3]``.

    The scale is absolute. Attention at or below its mean leaves the picture as it is, so uniform attention shows nothing. The
    strongest colour stands for the map's peak, or for three times the mean if the peak is lower.

    >>> picture = np.full((2, 2), 90, np.uint8)
    >>> bool((overlay(picture, np.ones((2, 2), np.float32)) == 90).all())
    True
    """
    ratio = heat / max(float(heat.mean()), 1e-12)
    level = np.clip((ratio - 1) / (max(float(ratio.max()), 3.0) - 1), 0, 1)
    colour = cv2.applyColorMap(np.asarray(level * 255, np.uint8), cv2.COLORMAP_JET)[..., ::-1].astype(np.float32)
    opacity = 0.6 * np.sqrt(level)[..., None]
    return np.asarray(image[..., None] * (1 - opacity) + colour * opacity, np.uint8)


def sharpest(words: Sequence[str], maps: NDArray[np.float32], count: int) -> list[int]:
    """Places of the ``count`` words whose attention is most concentrated (least entropy), in reading order.

    A word that occurs several times is taken once.

    >>> maps = np.array([[[1, 1]], [[9, 0]], [[8, 1]]], np.float32)
    >>> sharpest(["no", "effusion", "left"], maps, count=2)
    [1, 2]
    """
    flat = maps.reshape(len(maps), -1).astype(np.float64) + 1e-12
    share = flat / flat.sum(axis=1, keepdims=True)
    entropy = -(share * np.log(share)).sum(axis=1)
    chosen: dict[str, int] = {}
    for i in np.argsort(entropy, kind="stable"):
        chosen.setdefault(words[i].lower(), int(i))
    return sorted(list(chosen.values())[:count])


def _font(size: int) -> Any:
    return ImageFont.load_default(size)


def _enlargement(shape: tuple[int, ...]) -> tuple[int, tuple[int, int]]:
    """The whole factor that brings a picture ``[h,v]`` to 256 pixels, and its width and height times that."""
    factor = max(1, -(-256 // max(shape)))
    return factor, (shape[1] * factor, shape[0] * factor)


def draw_attention(
    sample: Sample, words: Sequence[str], maps: NDArray[np.float32], findings: Sequence[str] = ()
) -> Image.Image:
    """A radiograph, then the same with each word's attention over it, and the report below.

    Above each map stand the word, and the map's peak in multiples of its mean. Pictures keep their resolution, but those under
    256 pixels are enlarged by a whole factor, so that words can be read.

    Args:
        sample: the pair. Every panel outlines its boxes or, if it has none, its mask.
        words: one for each map.
        maps: ``[words,h,v]``.
        findings: names of the boxes' findings.
    """
    factor, size = _enlargement(sample.image.shape)
    unit = max(14, size[0] // 20)  # type size
    panels = [np.repeat(sample.image[..., None], 3, axis=2), *(overlay(sample.image, heat) for heat in maps)]
    lines = textwrap.wrap(sample.text or "", max(20, int(size[0] * len(panels) / (unit * 0.55))))
    bar = int(unit * 1.5)
    titles = [f"{word} ({heat.max() / max(heat.mean(), 1e-12):.1f}x)" for word, heat in zip(words, maps, strict=True)]
    sheet = Image.new("RGB", (size[0] * len(panels), bar + size[1] + int(unit * 1.3) * len(lines) + unit), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for i, (title, panel) in enumerate(zip(["radiograph", *titles], panels, strict=True)):
        sheet.paste(Image.fromarray(panel).resize(size, Image.Resampling.BICUBIC), (i * size[0], bar))
        pen.text((i * size[0] + 4, bar // 8), title, fill=_INK, font=_font(unit))
        if sample.boxes is None and sample.mask is not None:
            large = cv2.resize(sample.mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
            for outline in cv2.findContours(large, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)[0]:
                points = [(int(x) + i * size[0], int(y) + bar) for x, y in outline[:, 0]]
                pen.line([*points, points[0]], fill=(64, 200, 255), width=max(1, size[0] // 256))
        for box in sample.boxes if sample.boxes is not None else ():
            x0, y0, x1, y1 = (float(v) * factor for v in box[:4])
            corners = (i * size[0] + x0, bar + y0, i * size[0] + x1, bar + y1)
            pen.rectangle(corners, outline=(64, 200, 255), width=max(1, size[0] // 256))
            if i == 0 and findings:
                start = (corners[0] + 3, corners[1] + 2)
                pen.text(start, findings[int(box[4])], fill=(64, 200, 255), font=_font(unit * 2 // 3))
    for i, line in enumerate(lines):
        pen.text((4, bar + size[1] + unit // 3 + int(unit * 1.3) * i), line, fill=_INK, font=_font(unit))
    return sheet


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


def draw_similarity(
    scores: NDArray[np.float32], images: Sequence[NDArray[np.uint8]], texts: Sequence[str]
) -> Image.Image:
    """The scores ``[n,n]`` of every picture (a row) with every report (a column).

    The best of each row is outlined: in white if it is the picture's own report, else in red.
    """
    cell, label = 40, 640
    n = len(images)
    low, high = float(scores.min()), float(scores.max())
    level = np.asarray((scores - low) / max(high - low, 1e-12) * 255, np.uint8)
    colour = cv2.applyColorMap(level, cv2.COLORMAP_VIRIDIS)[..., ::-1]
    sheet = Image.new("RGB", (cell * (n + 1) + label, cell * (n + 1)), _PAPER)
    grid = Image.fromarray(np.ascontiguousarray(colour)).resize((cell * n, cell * n), Image.Resampling.NEAREST)
    sheet.paste(grid, (cell, cell))
    pen = ImageDraw.Draw(sheet)
    for i in range(n):
        thumb = Image.fromarray(images[i])
        thumb.thumbnail((cell - 2, cell - 2))
        sheet.paste(thumb, (1, cell * (i + 1) + 1))
        pen.text((cell * (i + 1) + 8, 12), str(i), fill=_INK, font=_font(14))
        report = f"{i}  {' '.join(texts[i].split())[:84]}"
        pen.text((cell * (n + 1) + 8, cell * (i + 1) + 11), report, fill=_INK, font=_font(14))
        best = int(scores[i].argmax())
        mark = (255, 255, 255) if best == i else (255, 80, 80)
        corner = (cell * (best + 1) + 2, cell * (i + 1) + 2)
        pen.rectangle((*corner, corner[0] + cell - 5, corner[1] + cell - 5), outline=mark, width=2)
    return sheet
