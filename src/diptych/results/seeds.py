"""Figures over the seeds of a model, and how figures are written."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from diptych.escaping import for_markdown

__all__ = ["Summary", "cell", "markdown", "show", "summarise"]


@dataclass(frozen=True)
class Summary:
    """A metric over the seeds of a variant. If it is undefined for a seed, mean and interval are NaN."""

    mean: float
    low: float
    high: float
    n: int
    """How many seeds there are."""
    undefined: int = 0
    """How many of them have no value."""


def summarise(values: Sequence[float]) -> Summary:
    """Mean and 95 % interval of Student's t over seeds. The interval of a single seed is NaN.

    >>> summary = summarise([0.7, 0.8, 0.75])
    >>> f"{summary.mean:.3f}, {summary.low:.3f} to {summary.high:.3f}"
    '0.750, 0.626 to 0.874'
    """
    from scipy.special import stdtrit

    array = np.asarray(values, np.float64)
    n, undefined = len(array), int(np.isnan(array).sum())
    mean = float(array.mean())
    half = math.nan if n < 2 else float(stdtrit(n - 1, 0.975) * array.std(ddof=1) / math.sqrt(n))
    return Summary(mean, mean - half, mean + half, n, undefined)


def show(value: float, digits: int | None = None) -> str:
    """A figure as text: three digits after the point below 10, one below 1,000, else none.

    >>> show(0.5), show(17.25), show(12345.6), show(math.nan)
    ('0.500', '17.2', '12,346', 'undefined')
    """
    if math.isnan(value):
        return "undefined"
    if digits is None:
        digits = 3 if abs(value) < 10 else 1 if abs(value) < 1000 else 0
    return f"{value:,.{digits}f}"


def cell(summary: Summary | None) -> str:
    """Mean and half of the interval as text, for a cell of a table.

    >>> cell(Summary(0.8, 0.7, 0.9, 3)), cell(Summary(math.nan, math.nan, math.nan, 3, undefined=1)), cell(None)
    ('0.800 ± 0.100', 'undefined in 1 of 3', '-')
    """
    if summary is None:
        return "-"
    if summary.undefined:
        return f"undefined in {summary.undefined} of {summary.n}"
    if math.isnan(summary.low):
        return show(summary.mean)
    return f"{show(summary.mean)} ± {show(summary.high - summary.mean)}"


def markdown(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    foot: Sequence[str] = (),
    bold: Collection[tuple[int, int]] = (),
) -> str:
    """A table in Markdown. Its columns are aligned in the text, and signs of Markdown in cells are escaped.

    >>> print(markdown(["run", "r@5"], [["a", "0.5"]]))
    | run | r@5 |
    |-----|-----|
    | a   | 0.5 |

    Args:
        header: names of the columns.
        rows: each has as many cells as the header.
        foot: a last row, whose first cell is in italics.
        bold: row and column, from 0, of the cells in bold.
    """
    cells = [[for_markdown(cell) for cell in row] for row in [header, *rows]]
    for row, column in bold:
        cells[row + 1][column] = f"**{cells[row + 1][column]}**"
    if foot:
        cells.append([f"*{for_markdown(foot[0])}*", *map(for_markdown, foot[1:])])
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in cells]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)
