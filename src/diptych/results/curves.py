"""A picture of label efficiency. Each metric has a panel, and each model a line over the share of the labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from diptych.results.dotplot import marks
from diptych.results.seeds import Summary
from diptych.results.sheet import Colour, Sheet, fitted

__all__ = ["Curves", "draw_curves"]

_INK, _GRID = (40, 40, 40), (228, 228, 228)
# Okabe and Ito's colours, which the colour-blind can tell apart too.
_COLOURS: tuple[Colour, ...] = (
    (0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233), (90, 90, 90),
)  # fmt: skip
_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM, _RIGHT = 280.0, 210.0, 55.0, 32.0, 50.0, 20.0
_TYPE, _TITLE = 11.0, 13.0
_COLUMNS = 2


@dataclass(frozen=True)
class Curves:
    """What the panel of one metric shows."""

    title: str
    lines: Mapping[str, Mapping[float, Summary]]
    """For each model its figures, by percent of the labels."""


def _panel(sheet: Sheet, left: float, top: float, of: Curves, names: Sequence[str]) -> None:
    sheet.text(left, top - 9, fitted(of.title, _TITLE, _WIDTH + _RIGHT), _TITLE, _INK)
    shares = sorted({share for line in of.lines.values() for share in line})
    summaries = [s for line in of.lines.values() for s in line.values() if not math.isnan(s.mean)]
    if not summaries:
        sheet.text(left + 4, top + 14, "undefined", _TYPE, _INK)
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
        sheet.line([(left, y), (left + _WIDTH, y)], _GRID, 0.5)
        sheet.text(left - 5, y + 4, text, _TYPE, _INK, "end")
    for share in shares:
        x = at(share, low)[0]
        sheet.line([(x, top + _HEIGHT), (x, top + _HEIGHT + 4)], _INK)
        sheet.text(x, top + _HEIGHT + 15, f"{share:g} %", _TYPE, _INK, "middle")
    sheet.line([(left, top + _HEIGHT), (left + _WIDTH, top + _HEIGHT)], _INK)
    sheet.text(left + _WIDTH / 2, top + _HEIGHT + 32, "of the labels", _TYPE, _INK, "middle")
    for number, name in enumerate(names):
        line = {share: s for share, s in sorted(of.lines.get(name, {}).items()) if not math.isnan(s.mean)}
        colour = _COLOURS[number % len(_COLOURS)]
        shift = 2.5 * (number - (len(names) - 1) / 2)  # so that bars do not hide each other
        points = [(x + shift, y) for x, y in (at(share, s.mean) for share, s in line.items())]
        if len(points) > 1:
            sheet.line(points, colour, 1.5)
        for (x, y), s in zip(points, line.values(), strict=True):
            if not math.isnan(s.low):
                sheet.line([(x, at(1, s.low)[1]), (x, at(1, s.high)[1])], colour, 1.5)
            sheet.disc(x, y, 3, colour)


def draw_curves(panels: Sequence[Curves], names: Sequence[str], path: Path, bar: str) -> None:
    """Write the picture as PNG, SVG or PDF, all or nothing.

    Args:
        panels: one for each metric.
        names: of the models, in order.
        path: the file, whose ending says which kind it is.
        bar: what the bars stand for.

    Raises:
        ConfigError: the ending is another one.
        DataError: the file cannot be written.
    """
    columns = min(_COLUMNS, len(panels))
    wide, tall = _LEFT + _WIDTH + _RIGHT, _TOP + _HEIGHT + _BOTTOM
    key = 20.0 + 17 * len(names)
    sheet = Sheet(columns * wide, key + -(-len(panels) // columns) * tall)
    sheet.text(columns * wide - 10, 18, f"bars: {bar}", _TYPE, _INK, "end")
    for number, name in enumerate(names):
        y = 14 + 17.0 * number
        sheet.line([(10, y), (30, y)], _COLOURS[number % len(_COLOURS)], 2)
        sheet.text(36, y + 4, fitted(name, _TYPE, columns * wide - 46), _TYPE, _INK)
    for k, panel in enumerate(panels):
        row, column = divmod(k, columns)
        _panel(sheet, column * wide + _LEFT, key + row * tall + _TOP, panel, names)
    sheet.save(path)
