"""Figures of binary classification that follow from the whole curve, or from probabilities, and the curves themselves.

``weights`` ``[R,n]`` says how often each sample counts, as in :mod:`diptych.metrics.measures`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from diptych.metrics.measures import area, mean, ranked, ratio, sums

__all__ = ["AT", "BINS", "brier", "calibration_error", "curve_figures", "pr_points", "reliability", "roc_points"]

Array = NDArray[Any]
Floats = NDArray[np.float64]

AT = 0.9
"""The specificity at which the sensitivity is measured, and the other way."""
BINS = 15
"""Bins of equal width of the expected calibration error, as Guo et al. have them (ICML 2017)."""


def curve_figures(scores: Array, labels: Array, weights: Array | None = None, at: float = AT) -> dict[str, Floats]:
    """AUROC, AUPRC, the sensitivity at a specificity, and the reverse, each ``[R]``.

    - ``auprc`` is the average precision: the precision at each distinct score, weighted by the recall that it adds. It has no
      interpolation (scikit-learn's ``average_precision_score``).
    - ``sensitivity@spec0.9`` is the highest sensitivity of a threshold whose specificity is at least 0.9.
    - ``specificity@sens0.9`` is the highest specificity of a threshold whose sensitivity is at least 0.9.

    The thresholds of the last two are chosen on these samples themselves, anew in each resample.

    >>> scores, labels = np.array([0.9, 0.6, 0.5, 0.1]), np.array([1, 0, 1, 0])
    >>> {name: values.round(3).tolist() for name, values in curve_figures(scores, labels).items()}
    {'auroc': [0.75], 'auprc': [0.833], 'sensitivity@spec0.9': [0.5], 'specificity@sens0.9': [0.5]}

    Args:
        scores: ``[n]``, one at least. Any NaN makes every value NaN.
        labels: ``[n]``, 0 or 1.
        weights: ``[R,n]``.
        at: the least specificity, and the least sensitivity, 0 to 1.

    Returns:
        Figures by name. They are NaN where either class has no weight.
    """
    names = ("auroc", "auprc", f"sensitivity@spec{at:g}", f"specificity@sens{at:g}")
    if np.isnan(scores).any() or len(scores) == 0:
        return {name: np.full(1 if weights is None else len(weights), np.nan) for name in names}
    blocks: list[tuple[Floats, ...]] = []
    for up, down in ranked(scores, labels, weights):
        hits, alarms = (
            np.cumsum(side[:, ::-1], axis=1) for side in (up, down)
        )  # at this score or above, highest first
        positives, negatives = hits[:, -1], alarms[:, -1]
        both = np.where((positives > 0) & (negatives > 0), 0.0, np.nan)
        precision = np.nan_to_num(ratio(hits, hits + alarms))
        allowed = alarms <= (1 - at) * negatives[:, None] + 1e-9
        enough = hits >= at * positives[:, None] - 1e-9
        fewest = np.where(enough, alarms, np.inf).min(axis=1)
        blocks.append(
            (
                area(up, down),
                ratio((up[:, ::-1] * precision).sum(axis=1), positives) + both,
                ratio(np.where(allowed, hits, 0).max(axis=1), positives) + both,
                1 - ratio(fewest, negatives) + both,
            )
        )
    return {name: np.concatenate(values) for name, values in zip(names, zip(*blocks, strict=True), strict=True)}


def brier(probabilities: Array, labels: Array, weights: Array | None = None) -> Floats:
    """Brier score ``[R]``: the mean squared difference of probabilities ``[n]`` and labels ``[n]`` (0 or 1). 0 is best.

    >>> brier(np.array([0.9, 0.2]), np.array([1, 0])).round(3).tolist()
    [0.025]
    """
    return mean((probabilities - labels) ** 2, weights)


def calibration_error(probabilities: Array, labels: Array, weights: Array | None = None) -> Floats:
    """Expected calibration error ``[R]``, 0 to 1, over :data:`BINS` bins of equal width (Guo et al., ICML 2017).

    In each bin the mean probability of the finding is compared with the share of samples that have it. The differences are
    weighted by the samples of the bin. A small set has an error above 0 by chance, and its resamples a larger one.

    >>> calibration_error(np.array([0.75, 0.75, 0.75, 0.75]), np.array([1, 1, 1, 0])).tolist()
    [0.0]

    Args:
        probabilities: ``[n]``, 0 to 1. Any NaN makes every value NaN.
        labels: ``[n]``, 0 or 1.
        weights: ``[R,n]``.
    """
    if np.isnan(probabilities).any() or len(probabilities) == 0:
        return np.full(1 if weights is None else len(weights), np.nan)
    inside = (_bins(probabilities)[:, None] == np.arange(BINS)).astype(np.float64)  # [n,bins]
    gaps = np.abs(sums(inside * (probabilities - labels)[:, None], weights)).sum(axis=1)
    return ratio(gaps, sums(np.ones((len(probabilities), 1)), weights)[:, 0])


def _bins(probabilities: Array) -> NDArray[np.int64]:
    return np.clip((probabilities * BINS).astype(np.int64), 0, BINS - 1)


def reliability(probabilities: Array, labels: Array) -> Floats:
    """For each bin that holds samples: the mean probability, the share of samples with the finding, and how many there are.

    >>> reliability(np.array([0.75, 0.75, 0.1]), np.array([1, 0, 0])).tolist()
    [[0.1, 0.0, 1.0], [0.75, 0.5, 2.0]]
    """
    rows = _bins(probabilities)
    number = np.bincount(rows, minlength=BINS)
    held = np.flatnonzero(number)
    means = [np.bincount(rows, value, minlength=BINS)[held] / number[held] for value in (probabilities, labels)]
    return np.stack([*means, number[held].astype(np.float64)], axis=1)


def roc_points(scores: Array, labels: Array) -> Floats:
    """The ROC curve ``[D+1,2]``: 1 - specificity and sensitivity of every threshold, from none to all.

    >>> roc_points(np.array([0.9, 0.6, 0.5, 0.1]), np.array([1, 0, 1, 0])).tolist()
    [[0.0, 0.0], [0.0, 0.5], [0.5, 0.5], [0.5, 1.0], [1.0, 1.0]]
    """
    hits, alarms = _upto(scores, labels)
    points = np.stack([alarms / alarms[-1], hits / hits[-1]], axis=1)
    return np.concatenate([np.zeros((1, 2)), points])


def pr_points(scores: Array, labels: Array) -> Floats:
    """The precision-recall curve ``[D,2]``: recall and precision of every threshold, the highest first.

    >>> pr_points(np.array([0.9, 0.6, 0.5, 0.1]), np.array([1, 0, 1, 0])).round(2).tolist()
    [[0.5, 1.0], [0.5, 0.5], [1.0, 0.67], [1.0, 0.5]]
    """
    hits, alarms = _upto(scores, labels)
    return np.stack([hits / hits[-1], hits / (hits + alarms)], axis=1)


def _upto(scores: Array, labels: Array) -> tuple[Floats, Floats]:
    """How many positives and negatives have each distinct score or a higher one, highest first."""
    up, down = next(ranked(scores, labels))
    return np.cumsum(up[0, ::-1]), np.cumsum(down[0, ::-1])
