"""A picture of figures. Each metric has a panel, and each model a row: single values as dots, the mean, and its interval."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from diptych.files import replace_picture
from diptych.results.seeds import Summary

__all__ = ["SEEDS", "Panel", "draw", "marks", "span", "ticks"]

_INK, _FAINT, _BAND, _PAPER = (40, 40, 40), (150, 150, 150), (244, 246, 249), (255, 255, 255)
_BAR, _MEAN, _DOT, _CHANCE = (166, 196, 228), (23, 78, 140), (226, 120, 30), (190, 30, 45)
_ROW, _WIDTH, _GAP, _TOP, _BOTTOM = 44, 520, 56, 56, 64
_COLUMNS = 3


SEEDS = {"dot": "one seed", "mean": "mean", "bar": "95 % interval over seeds", "chance": "chance"}
"""The key of a picture of figures over seeds: what each sign stands for."""


@dataclass(frozen=True)
class Panel:
    """What the panel of one metric shows."""

    title: str
    summaries: Mapping[str, Summary]
    """The mean with its interval, of each row that has the metric."""
    dots: Mapping[str, Sequence[float]]
    """The single values of each row. One that is not defined is NaN."""
    chance: float | None = None
    whole: bool = False
    """The axis holds every interval. Otherwise one far wider than the values is cut, and ends in an arrow."""


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from ``low`` to ``high``, ``most`` of them at most. Their steps are 1, 2 or 5 times a power of ten.

    >>> ticks(0, 11)
    [0.0, 5.0, 10.0]
    """
    rough = (high - low) / (most - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def marks(low: float, high: float) -> list[tuple[float, str]]:
    """The ticks of an axis, each with its text.

    >>> marks(0, 2)
    [(0.0, '0.0'), (0.5, '0.5'), (1.0, '1.0'), (1.5, '1.5'), (2.0, '2.0')]
    """
    places = ticks(low, high)
    digits = max(0, -math.floor(math.log10(places[1] - places[0]) + 1e-9)) if len(places) > 1 else 3
    return [(place, f"{place + 0.0:.{digits}f}") for place in places]


def span(values: list[float], intervals: list[Summary]) -> tuple[float, float]:
    """Ends of an axis that holds all values, and the intervals unless they are far wider, as those of two seeds are.

    >>> span([0.0, 1.0], [Summary(0.5, 0.2, 0.8, 3)])
    (-0.06, 1.06)
    """
    low, high = min(values), max(values)
    room = (high - low) or max(abs(high), 1e-3) * 0.1
    ends = [end for s in intervals for end in (s.low, s.high) if not math.isnan(end)]
    low, high = max(min([low, *ends]), low - room), min(max([high, *ends]), high + room)
    return low - 0.06 * (high - low or room), high + 0.06 * (high - low or room)


def _panel(pen: Any, left: int, top: int, of: Panel, names: Sequence[str], font: Any, bold: Any) -> None:
    chance, summaries = of.chance, of.summaries
    dots = {name: of.dots.get(name, ()) for name in names}
    values = [v for row in [*dots.values(), [s.mean for s in summaries.values()]] for v in row if not math.isnan(v)]
    values += [] if chance is None else [chance]
    values += [end for s in summaries.values() for end in (s.low, s.high) if of.whole and not math.isnan(end)]
    fitting = min(28.0, 28 * (_WIDTH + _GAP - 12) / max(1.0, bold.getlength(of.title)))  # a long title in smaller type
    pen.text((left, top - 14), of.title, fill=_INK, font=ImageFont.load_default(fitting), anchor="ls")
    bottom = top + _ROW * len(names)
    for i in range(0, len(names), 2):
        pen.rectangle((left, top + _ROW * i, left + _WIDTH, top + _ROW * (i + 1)), fill=_BAND)
    if not values:
        pen.text((left + 8, top + 8), "undefined", fill=_INK, font=font)
        return
    low, high = span(values, list(summaries.values()))

    def at(value: float) -> float:
        return left + _WIDTH * min(1.0, max(0.0, (value - low) / (high - low)))

    pen.line((left, bottom, left + _WIDTH, bottom), fill=_INK, width=2)
    for tick, text in marks(low, high):
        pen.line((at(tick), top, at(tick), bottom), fill=(225, 225, 225), width=1)
        pen.line((at(tick), bottom, at(tick), bottom + 8), fill=_INK, width=2)
        pen.text((at(tick), bottom + 12), text, fill=_INK, font=font, anchor="ma")
    for i, name in enumerate(names):
        y = top + _ROW * i + _ROW / 2
        mean = summaries.get(name)
        if mean is None or mean.undefined:
            text = "not given" if mean is None else f"undefined in {mean.undefined} of {mean.n} seeds"
            there = [at(value) for value in dots[name] if not math.isnan(value)]
            right = not there or sum(there) / len(there) < left + _WIDTH / 2  # the side without dots
            place, anchor = (left + _WIDTH - 8, "rm") if right else (left + 8, "lm")
            pen.text((place, y), text, fill=_FAINT, font=font, anchor=anchor)
        else:
            if not math.isnan(mean.low):
                pen.rectangle((at(mean.low), y - 11, at(mean.high), y + 11), fill=_BAR)
                for end, beyond, back in ((at(mean.low), mean.low < low, 10), (at(mean.high), mean.high > high, -10)):
                    if beyond:  # an arrow where the interval leaves the panel
                        pen.polygon([(end, y), (end + back, y - 11), (end + back, y + 11)], fill=_MEAN)
            pen.rectangle((at(mean.mean) - 2, y - 14, at(mean.mean) + 2, y + 14), fill=_MEAN)
        for value in dots[name]:
            if not math.isnan(value):
                pen.ellipse((at(value) - 5, y - 5, at(value) + 5, y + 5), fill=_DOT, outline=_PAPER)
    if chance is not None:
        for y0 in range(top, bottom, 14):
            pen.line((at(chance), y0, at(chance), min(y0 + 8, bottom)), fill=_CHANCE, width=3)


def draw(panels: Sequence[Panel], names: Sequence[str], path: Path, key: Mapping[str, str] = SEEDS) -> None:
    """Write the picture as PNG, all or nothing.

    Args:
        panels: one for each metric.
        names: the rows, in order.
        path: the file.
        key: what the signs ``dot``, ``mean``, ``bar`` and ``chance`` stand for. The picture's key shows these alone.
    """
    font, bold = ImageFont.load_default(22), ImageFont.load_default(28)
    wide = max((int(font.getlength(name)) for name in names), default=0) + 24
    columns = max(1, min(_COLUMNS, len(panels)))
    tall = _TOP + _ROW * len(names) + _BOTTOM
    rows = -(-len(panels) // columns)
    sheet = Image.new("RGB", (wide + columns * (_WIDTH + _GAP), 60 + rows * tall), _PAPER)
    pen = ImageDraw.Draw(sheet)
    x = 16
    for mark, colour in (("dot", _DOT), ("mean", _MEAN), ("bar", _BAR), ("chance", _CHANCE)):
        if mark in key:
            pen.rectangle((x, 20, x + 22, 42), fill=colour)
            pen.text((x + 32, 31), key[mark], fill=_INK, font=font, anchor="lm")
            x += int(font.getlength(key[mark])) + 72
    for k, panel in enumerate(panels):
        row, column = divmod(k, columns)
        top = 60 + row * tall + _TOP
        if column == 0:
            for i, name in enumerate(names):
                pen.text((wide - 12, top + _ROW * i + _ROW / 2), name, fill=_INK, font=font, anchor="rm")
        _panel(pen, wide + column * (_WIDTH + _GAP), top, panel, names, font, bold)
    replace_picture(path, sheet)
