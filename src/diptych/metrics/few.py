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
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping

from diptych.metrics.bootstrap import Interval
from diptych.metrics.delong import Spread, logit_interval

__all__ = ["FEW", "LEAST", "OF_ALL", "TOO_FEW", "explained", "intervals"]

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
