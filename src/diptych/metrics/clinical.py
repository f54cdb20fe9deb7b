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

__all__ = ["FIVE", "as_published", "clinical"]

Floats = NDArray[np.float64]
_MEASURES = ("precision", "recall", "f1")
FIVE = ("Cardiomegaly", "Edema", "Consolidation", "Atelectasis", "Pleural Effusion")
"""The findings of CheXpert's competition, over which report papers give figures beside those over all fourteen."""


def _measures(sums: Floats) -> list[Floats]:
    """Precision, recall and F1 ``[R]`` of sums ``[R,3]``: labels in both texts, in the generated one, in the reference.

    Where the generated text never has a label of the reference, precision and F1 are 0. Where the reference has none,
    recall is not defined (NaN).
    """
    hits, generated, real = sums.T
    none = np.where(generated + real > 0, 0.0, np.nan)
    bases = (generated, none), (real, np.full(len(real), np.nan)), ((generated + real) / 2, none)
    return [np.divide(hits, base, out=empty.copy(), where=base > 0) for base, empty in bases]


def as_published(hits: NDArray[Any], weights: NDArray[Any]) -> dict[str, Draws]:
    """Precision, recall and F1 as report papers print them, named ``f1_14/micro|macro|example`` and ``f1_5/...``.

    They are those of scikit-learn's ``classification_report``, which ``f1chexbert`` (Delbrouck et al., ViLMedic) calls: what is
    0 / 0 counts as 0. So a finding that no reference has pulls the macro average down, and so does a report without findings
    that is matched by another, in the mean over examples. No Finding is one of the fourteen.

    Args:
        hits: ``[n,14,3]``: whether a finding is in both texts, in the generated one, and in the reference.
        weights: ``[1+R,n]``, how often each report counts.
    """
    n, figures = len(hits), {}
    for names in (FINDINGS, FIVE):
        own = hits[:, [FINDINGS.index(name) for name in names]]
        each = np.stack(_measures(own.sum(axis=1)), axis=1)  # [n,3]
        by_average = {
            "micro": np.stack(_measures(metrics.sums(own.sum(axis=1), weights)), axis=1),
            "macro": np.mean(
                [np.nan_to_num(np.stack(_measures(metrics.sums(one, weights)), axis=1)) for one in own.swapaxes(0, 1)],
                axis=0,
            ),
            "example": np.stack([metrics.mean(value, weights) for value in np.nan_to_num(each).T], axis=1),
        }
        for average, values in by_average.items():
            for measure, value in zip(_MEASURES, np.nan_to_num(values).T, strict=True):
                figures[f"{measure}_{len(names)}/{average}"] = Draws(value, n)
    return figures


def clinical(
    generated: NDArray[Any], reference: NDArray[Any], weights: NDArray[Any], uncertain: bool = False
) -> tuple[dict[str, Draws], dict[str, Any]]:
    """Precision, recall and F1 of the findings, named ``f1/micro``, ``f1/macro``, ``f1/<finding>`` and so on.

    Those of :func:`as_published` stand beside them.

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
    by_name |= with_macro(values, dict.fromkeys(FINDINGS, n), n) | as_published(hits, weights)
    facts = {
        "positive": "present or uncertain" if uncertain else "present; uncertain and not mentioned count as absent",
        "reports with each finding": dict(zip(FINDINGS, real.sum(axis=0).tolist(), strict=True)),
        "absent": list(absent),
    }
    return by_name, facts
