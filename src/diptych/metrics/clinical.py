"""Clinical precision, recall and F1 of generated reports. A labeller reads both texts, and its labels are compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diptych.metrics import measures as metrics
from diptych.metrics.bootstrap import Draws
from diptych.metrics.classification import with_macro
from diptych.reports.labeller import FINDINGS

__all__ = ["clinical"]

Floats = NDArray[np.float64]
_MEASURES = ("precision", "recall", "f1")


def _measures(sums: Floats) -> list[Floats]:
    """Precision, recall and F1 ``[R]`` of sums ``[R,3]``: labels in both texts, in the generated one, in the reference.

    Where the generated text never has a label of the reference, precision and F1 are 0. Where the reference has none,
    recall is not defined (NaN).
    """
    hits, generated, real = sums.T
    none = np.where(generated + real > 0, 0.0, np.nan)
    bases = (generated, none), (real, np.full(len(real), np.nan)), ((generated + real) / 2, none)
    return [np.divide(hits, base, out=empty.copy(), where=base > 0) for base, empty in bases]


def clinical(
    generated: NDArray[Any], reference: NDArray[Any], weights: NDArray[Any], uncertain: bool = False
) -> tuple[dict[str, Draws], dict[str, Any]]:
    """Precision, recall and F1 of the findings, named ``f1/micro``, ``f1/macro``, ``f1/<finding>`` and so on.

    The micro average is over all reports and all fourteen findings, "No Finding" among them. The macro average, and the
    figures of single findings, leave out the findings that no reference has.

    Args:
        generated: labels ``[n,14]`` of a :class:`diptych.reports.labeller.Labeller`.
        reference: labels ``[n,14]`` of the references.
        weights: ``[1+R,n]``, how often each report counts. The first row is all ones.
        uncertain: an uncertain finding counts as present, rather than as absent. One that is not mentioned is absent.

    Returns:
        Figures by name, and facts for the protocol.
    """
    predicted, real = (np.isin(labels, (1, -1) if uncertain else (1,)) for labels in (generated, reference))
    hits = np.stack([predicted & real, predicted, real], axis=2).astype(np.float64)  # [n,14,3]
    values: dict[str, dict[str, Floats]] = {measure: {} for measure in _MEASURES}
    absent: Sequence[str] = [name for name, column in zip(FINDINGS, real.T, strict=True) if not column.any()]
    for place, name in enumerate(FINDINGS):
        if name not in absent:
            for measure, value in zip(_MEASURES, _measures(metrics.sums(hits[:, place], weights)), strict=True):
                values[measure][name] = value
    n = len(real)
    micro = _measures(metrics.sums(hits.sum(axis=1), weights))
    by_name = {f"{key}/micro": Draws(value, n) for key, value in zip(_MEASURES, micro, strict=True)}
    by_name |= with_macro(values, dict.fromkeys(FINDINGS, n), n)
    facts = {
        "positive": "present or uncertain" if uncertain else "present; uncertain and not mentioned count as absent",
        "reports with each finding": dict(zip(FINDINGS, real.sum(axis=0).tolist(), strict=True)),
        "absent": list(absent),
    }
    return by_name, facts
