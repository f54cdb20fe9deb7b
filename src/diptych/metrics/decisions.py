"""Figures of decisions, which are scores above a threshold, and how a threshold is chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from diptych.metrics.measures import ratio, sums

__all__ = ["CRITERIA", "Criterion", "best_threshold", "decision_figures", "matthews", "thresholds_of"]

Array = NDArray[Any]
Floats = NDArray[np.float64]
Criterion = Literal["f1", "youden", "mcc"]
CRITERIA: Mapping[Criterion, str] = {"f1": "best F1", "youden": "best Youden index", "mcc": "best MCC"}
"""What a threshold is chosen by. Youden's index is sensitivity + specificity - 1."""


def best_threshold(scores: Array, labels: Array, by: Criterion = "f1") -> float:
    """The score ``t`` for which ``scores >= t`` is best. A tie goes to the highest. There must be both classes for all but F1.

    >>> scores, labels = np.array([0.9, 0.6, 0.2, 0.1]), np.array([1, 1, 0, 0])
    >>> [best_threshold(scores, labels, by) for by in ("f1", "youden", "mcc")]
    [0.6, 0.6, 0.6]

    Args:
        scores: ``[n]``.
        labels: ``[n]``, 0 or 1, one of them 1.
        by: what is best: F1, sensitivity + specificity, or the Matthews correlation.
    """
    order = np.argsort(-scores, kind="stable")
    ordered, upto = scores[order], np.cumsum(labels[order] == 1)
    last = np.flatnonzero(np.r_[ordered[1:] != ordered[:-1], True])  # a threshold takes all of a tie or none
    hits, taken, n, positives = upto[last], last + 1, len(scores), upto[-1]
    alarms = taken - hits
    if by == "f1":
        values = 2 * hits / (taken + positives)
    elif by == "youden":
        values = hits * (n - positives) - alarms * positives  # whole numbers, so that ties are ties
    else:
        values = _matthews(hits, alarms, positives - hits, n - positives - alarms)
    return float(ordered[last[np.argmax(values)]])


def thresholds_of(names: Sequence[str], scores: Array, labels: Array, by: Criterion) -> dict[str, float | None]:
    """The best threshold of each finding over its known labels. None where it has one class only, or a score is NaN.

    >>> thresholds_of(["Edema", "Mass"], np.array([[0.9, 1], [0.1, 2]]), np.array([[1.0, 0], [0, 0]]), "f1")
    {'Edema': 0.9, 'Mass': None}

    Args:
        names: the findings, ``L`` of them.
        scores: ``[n,L]``.
        labels: ``[n,L]``. 1 and 0 count.
        by: what is best.
    """
    chosen: dict[str, float | None] = {}
    for name, score, label in zip(names, scores.T, labels.T, strict=True):
        known = (label == 0) | (label == 1)
        both = (label == 0).any() and (label == 1).any() and not np.isnan(score[known]).any()
        chosen[name] = best_threshold(score[known], label[known], by) if both else None
    return chosen


def decision_figures(predicted: Array, labels: Array, weights: Array | None = None) -> dict[str, Floats]:
    """Sensitivity, specificity, their mean (balanced accuracy), and the Matthews correlation, each ``[R]``.

    They are NaN where either class has no weight. The correlation is 0 where all predictions are equal.

    >>> figures = decision_figures(np.array([1, 1, 0, 0]), np.array([1, 0, 0, 0]))
    >>> {name: values.round(3).tolist() for name, values in figures.items()}
    {'sensitivity': [1.0], 'specificity': [0.667], 'balanced_accuracy': [0.833], 'mcc': [0.577]}

    Args:
        predicted: ``[n]``, True where the finding counts as present.
        labels: ``[n]``, 0 or 1.
        weights: ``[R,n]``, how often each sample counts.
    """
    positive, real = predicted.astype(bool), labels.astype(bool)
    cells = np.stack([positive & real, positive & ~real, ~positive & real, ~positive & ~real], axis=1)
    hits, alarms, misses, rejected = sums(cells, weights).T
    sensitivity, specificity = ratio(hits, hits + misses), ratio(rejected, rejected + alarms)
    both = np.where((hits + misses > 0) & (rejected + alarms > 0), 0.0, np.nan)
    return {
        "sensitivity": sensitivity,
        "specificity": specificity,
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "mcc": _matthews(hits, alarms, misses, rejected) + both,
    }


def _matthews(hits: Array, alarms: Array, misses: Array, rejected: Array) -> Floats:
    """The correlation of the four cells (Matthews, 1975). It is 0 where a margin is."""
    hits, alarms, misses, rejected = (np.asarray(cell, np.float64) for cell in (hits, alarms, misses, rejected))
    margins = (hits + alarms) * (hits + misses) * (rejected + alarms) * (rejected + misses)
    return np.nan_to_num(ratio(hits * rejected - alarms * misses, np.sqrt(margins)))


def matthews(predicted: Array, true: Array, classes: int, weights: Array | None = None) -> Floats:
    """The Matthews correlation ``[R]`` of several classes (Gorodkin, Computational Biology and Chemistry 28, 2004).

    >>> matthews(np.array([0, 1, 2, 2]), np.array([0, 1, 2, 1]), 3).round(3).tolist()
    [0.7]

    Args:
        predicted: ``[n]``, the class of each sample. -1 is none of them.
        true: ``[n]``, from 0 to ``classes - 1``.
        classes: ``K``.
        weights: ``[R,n]``, how often each sample counts.
    """
    told, real = (labels[:, None] == np.arange(-1, classes) for labels in (predicted, true))  # [n,1+K]
    total = sums(np.concatenate([told, real, (predicted == true)[:, None]], axis=1), weights)
    of_told, of_real, right = total[:, : classes + 1], total[:, classes + 1 : -1], total[:, -1]
    n = of_real.sum(axis=1)
    spread = (n**2 - (of_told**2).sum(axis=1)) * (n**2 - (of_real**2).sum(axis=1))
    return np.nan_to_num(ratio(right * n - (of_told * of_real).sum(axis=1), np.sqrt(spread)))
