"""Clinical precision, recall and F1 of generated reports: a labeller reads both, and its labels are compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diptych.metrics import bootstrap
from diptych.metrics import measures as metrics
from diptych.metrics.classification import with_macro
from diptych.reports.labeller import FINDINGS

__all__ = ["clinical"]

Floats = NDArray[np.float64]
_MEASURES = ("precision", "recall", "f1")


def _measures(sums: Floats) -> list[Floats]:
    """Precision, recall and F1 ``[R]`` of sums ``[R,3]``: hits, found, real.

    Precision is 0 where what is real is never found, as F1 is; recall is not defined (NaN) where nothing is real.
    """
    hits, found, real = sums.T
    none = np.where(found + real > 0, 0.0, np.nan)
    bases = (found, none), (real, np.full(len(real), np.nan)), ((found + real) / 2, none)
    return [np.divide(hits, base, out=empty.copy(), where=base > 0) for base, empty in bases]


def clinical(
    generated: NDArray[Any], reference: NDArray[Any], weights: NDArray[Any], uncertain: bool = False
) -> tuple[dict[str, bootstrap.Metric], dict[str, Any]]:
    """``f1/micro``, ``f1/macro``, ``f1/<finding>`` and the same of precision and recall, and what they do not cover.

    The micro average is over all fourteen findings, "No Finding" among them, and all reports; the macro average and the single
    findings are those that a reference has.

    Args:
        generated: labels ``[n,14]`` of a :class:`diptych.reports.labeller.Labeller`.
        reference: the same of the references.
        weights: ``[1+R,n]``, the first row all ones; see :mod:`diptych.metrics.measures`.
        uncertain: uncertain counts as present; otherwise as absent, which what is not mentioned always does.

    Returns:
        Metrics by name, and facts for the protocol.
    """
    said, real = (np.isin(labels, (1, -1) if uncertain else (1,)) for labels in (generated, reference))
    hits = np.stack([said & real, said, real], axis=2).astype(np.float64)  # [n,14,3]
    values: dict[str, dict[str, Floats]] = {measure: {} for measure in _MEASURES}
    absent: Sequence[str] = [name for name, column in zip(FINDINGS, real.T, strict=True) if not column.any()]
    for place, name in enumerate(FINDINGS):
        if name not in absent:
            for measure, value in zip(_MEASURES, _measures(metrics.sums(hits[:, place], weights)), strict=True):
                values[measure][name] = value
    n = len(real)
    micro = _measures(metrics.sums(hits.sum(axis=1), weights))
    found = {f"{measure}/micro": bootstrap.Metric.of(value, n) for measure, value in zip(_MEASURES, micro, strict=True)}
    found |= with_macro(values, dict.fromkeys(FINDINGS, n), n)
    facts = {
        "positive": "present or uncertain" if uncertain else "present; uncertain and not mentioned count as absent",
        "reports with each finding": dict(zip(FINDINGS, real.sum(axis=0).tolist(), strict=True)),
        "absent": list(absent),
    }
    return found, facts
