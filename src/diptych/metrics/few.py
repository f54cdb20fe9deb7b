"""Which interval a figure of a finding has, where only a few patients have the finding or lack it.

A percentile bootstrap holds too seldom there. Its 95 % interval of an AUROC holds in 75 % of draws with six positive patients,
and in 52 % with two. The rule, by the smaller number of patients with a positive and with a negative:

- From :data:`FEW` on: the bootstrap.
- From :data:`LEAST` on: for the AUROC, DeLong's interval on the logit scale, with patients as clusters
  (:func:`diptych.metrics.delong.logit_interval`). It is called ``DeLong``.
- Below, or where DeLong's is not defined (an AUROC of 0 or 1): none. It is called ``too few``.
- Other measures have no such interval: ``too few`` below :data:`FEW`. Means over all samples (:data:`OF_ALL`) keep the
  bootstrap, since they do not hang on the few.
- A ``macro`` is under the rule if one of its findings is. That of the AUROC takes the covariance of its findings.

The difference of two models on the same patients is under the same rule. Its interval by DeLong is
:func:`diptych.metrics.delong.difference_interval`, and its p-value goes with it. Where it is ``too few`` there is no p-value.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence

from diptych.metrics.bootstrap import Draws, Interval
from diptych.metrics.delong import Spread, difference_interval, logit_interval, mean_spread

__all__ = ["FEW", "LEAST", "OF_ALL", "TOO_FEW", "explained", "intervals", "mean_spreads", "paired_interval"]

FEW = 10
"""With fewer patients of either class the bootstrap is not used."""
LEAST = 5
"""With fewer patients of either class there is no interval."""
OF_ALL = ("accuracy", "brier", "ece")
"""Measures that are means over all samples."""
TOO_FEW = Interval(math.nan, math.nan, "too few")


def intervals(spreads: Mapping[str, Spread], measures: Iterable[str]) -> dict[str, dict[str, Interval]]:
    """The intervals that take the place of the bootstrap's, ``[measure][finding or "macro"]``.

    Args:
        spreads: that of the AUROC of each finding with both classes.
        measures: names of the measures.
    """
    few = [name for name, spread in spreads.items() if min(spread.patients) < FEW]
    if not few:
        return {}
    of_auroc = {name: _of(spreads[name]) for name in few} | {"macro": _of(*spreads.values())}
    none = dict.fromkeys(of_auroc, TOO_FEW)
    return {measure: of_auroc if measure == "auroc" else none for measure in measures if measure not in OF_ALL}


def explained(named: Collection[str]) -> str:
    """What the intervals that these names stand for are, a sentence each.

    >>> explained(["", "too few"])
    'Too few: patients of either class, so that no interval holds.'

    Args:
        named: names of intervals, as :class:`diptych.metrics.bootstrap.Metric` has them.
    """
    said = {
        "DeLong": f"DeLong: on the logit scale, for an AUROC of fewer than {FEW} patients of either class.",
        "too few": "Too few: patients of either class, so that no interval holds.",
    }
    return " ".join(text for name, text in said.items() if name in named)


def _of(*spreads: Spread) -> Interval:
    if min(min(spread.patients) for spread in spreads) < LEAST or (ends := logit_interval(spreads)) is None:
        return TOO_FEW
    return Interval(*ends, "DeLong")


def mean_spreads(figures: Sequence[Draws]) -> dict[str, Spread] | None:
    """The spreads of the mean of a figure of several models on the same samples. None if one has none."""
    each = [draws.spreads for draws in figures if draws.spreads]
    if not each or len(each) < len(figures):
        return None
    return {name: mean_spread([of[name] for of in each]) for name in each[0] if all(name in of for of in each)}


def paired_interval(ours: Draws, theirs: Draws) -> tuple[Interval, float] | None:
    """The interval of the difference of a figure of two models, and its p-value, where the bootstrap's do not hold.

    A mean of AUROCs is that of the findings that both have.

    Args:
        ours: the figure.
        theirs: the same of the other model, on the same samples.

    Returns:
        None where the bootstrap holds. The p-value is NaN where the patients are too few.
    """
    if ours.instead is None and theirs.instead is None:
        return None
    first, second = ours.spreads or {}, theirs.spreads or {}
    shared = [name for name in first if name in second]
    fewest = min((min(first[name].patients) for name in shared), default=0)
    if fewest >= FEW:
        return None
    sides = [first[name] for name in shared], [second[name] for name in shared]
    found = difference_interval(*sides) if fewest >= LEAST else None
    return (TOO_FEW, math.nan) if found is None else (Interval(*found[:2], "DeLong"), found[2])
