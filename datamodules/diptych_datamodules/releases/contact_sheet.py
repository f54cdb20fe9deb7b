"""The contact sheet of ``diptych check-data``: some images as the reader gives them, with boxes and masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from diptych.data.dataset import RadiographDataset, Sample, Split

__all__ = ["contact_sheet"]

TILE = 256
_BAR, _TYPE, _COLUMNS = 46, 13, 6
_INK, _PAPER, _BOX, _MASK = (32, 32, 32), (255, 255, 255), (64, 200, 255), (255, 96, 64)


def contact_sheet(
    datasets: Mapping[Split, RadiographDataset], read: Sequence[tuple[Split, int, str]], findings: Sequence[str]
) -> Image.Image:
    """A tile for each image, with its split, its name and the findings present (``?``: uncertain).

    The tile of an image that cannot be used has the reason.

    Args:
        datasets: the splits.
        read: split, index, and the rule by which the image cannot be used. The rule is empty, if it can.
        findings: names of the labels.
    """
    rows = -(-len(read) // _COLUMNS)
    columns = min(_COLUMNS, len(read))
    sheet = Image.new("RGB", (columns * (TILE + 8) + 8, rows * (TILE + _BAR + 8) + 8), _PAPER)
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(_TYPE)
    for place, (split, index, rule) in enumerate(read):
        x, y = 8 + place % _COLUMNS * (TILE + 8), 8 + place // _COLUMNS * (TILE + _BAR + 8)
        caption = rule
        if not rule:
            sample = datasets[split].read(index, np.random.default_rng(0))
            picture = _tile(sample)
            sheet.paste(picture, (x + (TILE - picture.width) // 2, y + _BAR + (TILE - picture.height) // 2))
            caption = _findings_present(sample, findings)
        pen.rectangle((x, y + _BAR, x + TILE - 1, y + _BAR + TILE - 1), outline=_MASK if rule else _INK)
        pen.text((x, y + 4), _fit(f"{split}: {caption}", font, keep_end=False), fill=_INK, font=font)
        pen.text((x, y + 24), _fit(datasets[split].ids[index], font, keep_end=True), fill=_INK, font=font)
        if rule:
            pen.text((x + 8, y + _BAR + TILE // 2), f"cannot be used: {rule}", fill=_MASK, font=font)
    return sheet


def _tile(sample: Sample) -> Image.Image:
    height, width = sample.image.shape
    scale = TILE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    picture = np.repeat(cv2.resize(sample.image, size, interpolation=cv2.INTER_AREA)[..., None], 3, axis=2)
    if sample.mask is not None:
        mask = cv2.resize(sample.mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
        outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        picture = cv2.drawContours(np.ascontiguousarray(picture), outlines, -1, _MASK, 1)
    tile = Image.fromarray(np.asarray(picture, np.uint8))
    pen = ImageDraw.Draw(tile)
    for box in sample.boxes if sample.boxes is not None else ():
        pen.rectangle([float(value) * scale for value in box[:4]], outline=_BOX, width=2)
    return tile


def _findings_present(sample: Sample, findings: Sequence[str]) -> str:
    if sample.labels is None:
        return "no labels"
    signs = {1.0: "", -1.0: "?"}
    named = [f"{name}{signs[v]}" for name, v in zip(findings, sample.labels.tolist(), strict=True) if v in signs]
    return ", ".join(named) or "-"


def _fit(text: str, font: Any, keep_end: bool) -> str:
    """The text cut to the width of a tile. Names keep their end, in which they differ."""
    if font.getlength(text) <= TILE:
        return text
    while text and font.getlength(f"...{text}") > TILE:
        text = text[1:] if keep_end else text[:-1]
    return f"...{text}" if keep_end else f"{text}..."
