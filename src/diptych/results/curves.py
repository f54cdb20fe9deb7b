"""A picture of label efficiency. Each metric has a panel, and each model a line over the share of the labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from diptych.files import replace_picture
from diptych.results.dotplot import marks
from diptych.results.seeds import Summary

__all__ = ["Curves", "draw_curves"]

_INK, _PAPER, _GRID = (40, 40, 40), (255, 255, 255), (228, 228, 228)
# Okabe and Ito's colours, which the colour-blind can tell apart too.
_COLOURS = ((0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233), (90, 90, 90))
_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM, _RIGHT = 560, 420, 110, 64, 100, 40
_COLUMNS = 2


@dataclass(frozen=True)
class Curves:
    """What the panel of one metric shows."""

    title: str
    lines: Mapping[str, Mapping[float, Summary]]
    """For each model its figures, by percent of the labels."""


def _panel(pen: Any, left: int, top: int, of: Curves, names: Sequence[str]) -> None:
    font, bold = ImageFont.load_default(22), ImageFont.load_default(26)
    pen.text((left, top - 18), of.title, fill=_INK, font=bold, anchor="ls")
    shares = sorted({share for line in of.lines.values() for share in line})
    summaries = [s for line in of.lines.values() for s in line.values() if not math.isnan(s.mean)]
    if not summaries:
        pen.text((left + 8, top + 8), "undefined", fill=_INK, font=font)
        return
    ends = [end for s in summaries for end in (s.mean, s.low, s.high) if not math.isnan(end)]
    low, high = min(ends), max(ends)
    room = 0.08 * ((high - low) or 0.1)
    low, high = low - room, high + room
    span = math.log(shares[-1] / shares[0]) or 1.0

    def at(share: float, value: float) -> tuple[float, float]:
        x = left + _WIDTH * (0.06 + 0.88 * (math.log(share / shares[0]) / span if len(shares) > 1 else 0.5))
        return x, top + _HEIGHT * (high - value) / (high - low)

    for tick, text in marks(low, high):
        y = at(shares[0], tick)[1]
        pen.line((left, y, left + _WIDTH, y), fill=_GRID, width=1)
        pen.text((left - 10, y), text, fill=_INK, font=font, anchor="rm")
    for share in shares:
        x = at(share, low)[0]
        pen.line((x, top + _HEIGHT, x, top + _HEIGHT + 8), fill=_INK, width=2)
        pen.text((x, top + _HEIGHT + 12), f"{share:g} %", fill=_INK, font=font, anchor="ma")
    pen.line((left, top + _HEIGHT, left + _WIDTH, top + _HEIGHT), fill=_INK, width=2)
    pen.text((left + _WIDTH / 2, top + _HEIGHT + 44), "of the labels", fill=_INK, font=font, anchor="ma")
    for number, name in enumerate(names):
        line = {share: s for share, s in sorted(of.lines.get(name, {}).items()) if not math.isnan(s.mean)}
        colour = _COLOURS[number % len(_COLOURS)]
        shift = 5 * (number - (len(names) - 1) / 2)  # so that bars do not hide each other
        points = [(x + shift, y) for x, y in (at(share, s.mean) for share, s in line.items())]
        if len(points) > 1:
            pen.line(points, fill=colour, width=3)
        for (x, y), s in zip(points, line.values(), strict=True):
            if not math.isnan(s.low):
                pen.line((x, at(1, s.low)[1], x, at(1, s.high)[1]), fill=colour, width=3)
            pen.ellipse((x - 6, y - 6, x + 6, y + 6), fill=colour, outline=_PAPER)


def draw_curves(panels: Sequence[Curves], names: Sequence[str], path: Path, bar: str) -> None:
    """Write the picture as PNG, all or nothing.

    Args:
        panels: one for each metric.
        names: of the models, in order.
        path: the file.
        bar: what the bars stand for.
    """
    font = ImageFont.load_default(22)
    columns = min(_COLUMNS, len(panels))
    wide, tall = _LEFT + _WIDTH + _RIGHT, _TOP + _HEIGHT + _BOTTOM
    key = 40 + 34 * len(names)
    sheet = Image.new("RGB", (columns * wide, key + -(-len(panels) // columns) * tall), _PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((columns * wide - 20, 28), f"bars: {bar}", fill=_INK, font=font, anchor="rm")
    for number, name in enumerate(names):
        y = 28 + 34 * number
        pen.line((20, y, 60, y), fill=_COLOURS[number % len(_COLOURS)], width=4)
        pen.text((72, y), name, fill=_INK, font=font, anchor="lm")
    for k, panel in enumerate(panels):
        row, column = divmod(k, columns)
        _panel(pen, column * wide + _LEFT, key + row * tall + _TOP, panel, names)
    replace_picture(path, sheet)
