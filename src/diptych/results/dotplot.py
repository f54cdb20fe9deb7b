"""A picture of figures. Each metric has a panel, and each model a row: single values as dots, the mean, and its interval."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from diptych.results.seeds import Summary
from diptych.results.sheet import Sheet, text_width

__all__ = ["SEEDS", "Panel", "draw", "marks", "span", "ticks"]

_INK, _FAINT, _BAND, _GRID = (40, 40, 40), (150, 150, 150), (244, 246, 249), (225, 225, 225)
_BAR, _MEAN, _DOT, _CHANCE = (166, 196, 228), (23, 78, 140), (226, 120, 30), (190, 30, 45)
_ROW, _WIDTH, _GAP, _TOP, _BOTTOM, _KEY = 22.0, 260.0, 28.0, 28.0, 32.0, 30.0
_TYPE, _TITLE = 11.0, 14.0
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


def _panel(sheet: Sheet, left: float, top: float, of: Panel, names: Sequence[str]) -> None:
    chance, summaries = of.chance, of.summaries
    dots = {name: of.dots.get(name, ()) for name in names}
    values = [v for row in [*dots.values(), [s.mean for s in summaries.values()]] for v in row if not math.isnan(v)]
    values += [] if chance is None else [chance]
    values += [end for s in summaries.values() for end in (s.low, s.high) if of.whole and not math.isnan(end)]
    title_size = min(_TITLE, _TITLE * (_WIDTH + _GAP - 6) / max(1.0, text_width(of.title, _TITLE)))
    sheet.text(left, top - 7, of.title, title_size, _INK)  # a long title in smaller type
    bottom = top + _ROW * len(names)
    for i in range(0, len(names), 2):
        sheet.box(left, top + _ROW * i, left + _WIDTH, top + _ROW * (i + 1), _BAND)
    if not values:
        sheet.text(left + 4, top + 14, "undefined", _TYPE, _INK)
        return
    low, high = span(values, list(summaries.values()))

    def at(value: float) -> float:
        return left + _WIDTH * min(1.0, max(0.0, (value - low) / (high - low)))

    for tick, text in marks(low, high):
        sheet.line([(at(tick), top), (at(tick), bottom)], _GRID, 0.5)
        sheet.line([(at(tick), bottom), (at(tick), bottom + 4)], _INK)
        sheet.text(at(tick), bottom + 15, text, _TYPE, _INK, "middle")
    sheet.line([(left, bottom), (left + _WIDTH, bottom)], _INK)
    for i, name in enumerate(names):
        y = top + _ROW * (i + 0.5)
        mean = summaries.get(name)
        if mean is None or mean.undefined:
            text = "not given" if mean is None else f"undefined in {mean.undefined} of {mean.n} seeds"
            there = [at(value) for value in dots[name] if not math.isnan(value)]
            right = not there or sum(there) / len(there) < left + _WIDTH / 2  # the side without dots
            sheet.text(left + (_WIDTH - 4 if right else 4), y + 4, text, _TYPE, _FAINT, "end" if right else "start")
        else:
            if not math.isnan(mean.low):
                sheet.box(at(mean.low), y - 5.5, at(mean.high), y + 5.5, _BAR)
                for end, beyond, back in ((at(mean.low), mean.low < low, 5), (at(mean.high), mean.high > high, -5)):
                    if beyond:  # an arrow where the interval leaves the panel
                        sheet.area([(end, y), (end + back, y - 5.5), (end + back, y + 5.5)], _MEAN)
            sheet.box(at(mean.mean) - 1, y - 7, at(mean.mean) + 1, y + 7, _MEAN)
        for value in dots[name]:
            if not math.isnan(value):
                sheet.disc(at(value), y, 2.5, _DOT)
    if chance is not None:
        for k in range(math.ceil((bottom - top) / 7)):
            sheet.line([(at(chance), top + 7 * k), (at(chance), min(top + 7 * k + 4, bottom))], _CHANCE, 1.5)


def draw(panels: Sequence[Panel], names: Sequence[str], path: Path, key: Mapping[str, str] = SEEDS) -> None:
    """Write the picture as PNG, SVG or PDF, all or nothing.

    Args:
        panels: one for each metric.
        names: the rows, in order.
        path: the file, whose ending says which kind it is.
        key: what the signs ``dot``, ``mean``, ``bar`` and ``chance`` stand for. The picture's key shows these alone.

    Raises:
        ConfigError: the ending is another one.
        DataError: the file cannot be written.
    """
    wide = max((text_width(name, _TYPE) for name in names), default=0) + 12
    columns = max(1, min(_COLUMNS, len(panels)))
    tall = _TOP + _ROW * len(names) + _BOTTOM
    rows = -(-len(panels) // columns)
    sheet = Sheet(wide + columns * (_WIDTH + _GAP), _KEY + rows * tall)
    x = 8.0
    for mark, colour in (("dot", _DOT), ("mean", _MEAN), ("bar", _BAR), ("chance", _CHANCE)):
        if mark in key:
            sheet.box(x, 10, x + 11, 21, colour)
            sheet.text(x + 16, 19.5, key[mark], _TYPE, _INK)
            x += text_width(key[mark], _TYPE) + 36
    for k, panel in enumerate(panels):
        row, column = divmod(k, columns)
        top = _KEY + row * tall + _TOP
        if column == 0:
            for i, name in enumerate(names):
                sheet.text(wide - 6, top + _ROW * (i + 0.5) + 4, name, _TYPE, _INK, "end")
        _panel(sheet, wide + column * (_WIDTH + _GAP), top, panel, names)
    sheet.save(path)
