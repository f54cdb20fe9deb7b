"""Figures over seeds, and how they are written."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from diptych.escaping import for_markdown

__all__ = ["Summary", "markdown", "separated", "show", "summarise"]


@dataclass(frozen=True)
class Summary:
    """A metric over the seeds of a variant."""

    mean: float
    low: float
    high: float
    n: int
    """Seeds."""
    undefined: int = 0
    """Seeds without a value; with any, mean and interval are NaN."""


def summarise(values: Sequence[float]) -> Summary:
    """Mean and 95 % interval of Student's t over seeds; the interval of a single seed is NaN."""
    from scipy.special import stdtrit

    array = np.asarray(values, np.float64)
    n, undefined = len(array), int(np.isnan(array).sum())
    mean = float(array.mean())
    half = math.nan if n < 2 else float(stdtrit(n - 1, 0.975) * array.std(ddof=1) / math.sqrt(n))
    return Summary(mean, mean - half, mean + half, n, undefined)


def separated(summaries: dict[str, Summary]) -> list[tuple[str, str]]:
    """Pairs (above, below) of variants whose intervals do not overlap."""
    return [(a, b) for a, one in summaries.items() for b, other in summaries.items() if one.low > other.high]


def show(value: float, digits: int | None = None) -> str:
    """A figure of three digits after the point below 10, one below 1,000."""
    if math.isnan(value):
        return "undefined"
    if digits is None:
        digits = 3 if abs(value) < 10 else 1 if abs(value) < 1000 else 0
    return f"{value:,.{digits}f}"


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]], foot: Sequence[str] = ()) -> str:
    """Markdown whose columns stand under each other as text too; what stands in cells is shown as it is.

    Args:
        header: names of the columns.
        rows: as long as the header.
        foot: a last row, its name in italics.
    """
    cells = [[for_markdown(cell) for cell in row] for row in [header, *rows]]
    if foot:
        cells.append([f"*{for_markdown(foot[0])}*", *map(for_markdown, foot[1:])])
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in cells]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)
