"""Metrics as pure functions of arrays, each over many weightings of the samples at once.

``weights`` ``[R,n]`` says how often each of the ``n`` samples counts in each of ``R`` weightings. Without it there is one
weighting, in which each counts once. A bootstrap is such a matrix (:func:`diptych.metrics.bootstrap.bootstrap_weights`). So a
thousand resamples cost a few vectorised passes. A value that is not defined (an AUROC without positives) is NaN.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "TIE",
    "accuracy",
    "area",
    "auroc",
    "f1",
    "mean",
    "median_rank",
    "ranked",
    "ratio",
    "recall_at",
    "sums",
    "top_class",
]

Array = NDArray[Any]
Floats = NDArray[np.float64]

TIE = 1e-6
"""Scores closer than this share of the largest one are tied. A matrix product in float32 cannot tell them apart."""
_BLOCK = 2**22
"""How many weights become float64 at a time: 32 MiB."""


def auroc(scores: Array, labels: Array, weights: Array | None = None) -> Floats:
    """Area under the ROC curve: the chance that a positive scores above a negative. A tie counts one half.

    It is the Mann-Whitney statistic, exact with ties (Hanley and McNeil, Radiology 143, 1982).

    >>> auroc(np.array([0.9, 0.4, 0.4, 0.1]), np.array([1, 1, 0, 0])).tolist()
    [0.875]

    Args:
        scores: ``[n]``. Any NaN makes every value NaN.
        labels: ``[n]``, 0 or 1.
        weights: ``[R,n]``.

    Returns:
        ``[R]``. It is NaN where either class has no weight.
    """
    if np.isnan(scores).any() or len(scores) == 0:
        return np.full(_rows(weights), np.nan)
    return np.concatenate([area(up, down) for up, down in ranked(scores, labels, weights)])


def ranked(scores: Array, labels: Array, weights: Array | None = None) -> Iterator[tuple[Floats, Floats]]:
    """The weight of the positives and of the negatives at each distinct score, lowest first. It comes in blocks of weightings.

    >>> [(up.tolist(), down.tolist()) for up, down in ranked(np.array([0.9, 0.4, 0.4]), np.array([1, 1, 0]))]
    [([[1.0, 1.0]], [[1.0, 0.0]])]

    Args:
        scores: ``[n]``, of which one at least and none NaN.
        labels: ``[n]``, 0 or 1.
        weights: ``[R,n]``.

    Yields:
        Two arrays ``[r,D]``.
    """
    order = np.argsort(scores, kind="stable")
    ordered = scores[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])  # first sample of each distinct score
    positive = (labels[order] == 1).astype(np.float64)
    for block in _blocks(weights, len(scores)):
        block = block[:, order]
        up = np.add.reduceat(block * positive, starts, axis=1)
        yield up, np.add.reduceat(block * (1 - positive), starts, axis=1)


def area(up: Floats, down: Floats) -> Floats:
    """The AUROC ``[r]`` of weights ``[r,D]`` of positives and negatives at each distinct score, lowest first.

    >>> area(np.array([[0.0, 1.0, 1.0]]), np.array([[1.0, 1.0, 0.0]])).tolist()
    [0.875]
    """
    below = np.cumsum(down, axis=1) - down / 2
    return ratio((up * below).sum(axis=1), up.sum(axis=1) * down.sum(axis=1))


def accuracy(predicted: Array, labels: Array, weights: Array | None = None) -> Floats:
    """Share ``[R]`` of the samples ``[n]`` whose prediction equals the label.

    >>> accuracy(np.array([1, 1, 0]), np.array([1, 0, 0]), np.array([[1, 1, 1], [2, 0, 1]])).round(3).tolist()
    [0.667, 1.0]
    """
    return mean(predicted == labels, weights)


def f1(predicted: Array, labels: Array, weights: Array | None = None) -> Floats:
    """``2 TP / (2 TP + FP + FN)`` ``[R]`` of boolean ``predicted`` and ``labels`` ``[n]``. It is NaN where that is 0 / 0.

    With more than two classes, ``f1(predicted == c, labels == c)`` is that of class ``c``, and the macro F1 is their mean.

    >>> f1(np.array([1, 1, 0]), np.array([1, 0, 0])).round(3).tolist()
    [0.667]
    """
    positive, real = predicted.astype(bool), labels.astype(bool)
    hits = np.stack([positive & real, positive.astype(np.int64) + real], axis=1).astype(np.float64)  # [n,2]
    total = sums(hits, weights)
    return ratio(2 * total[:, 0], total[:, 1])


def top_class(scores: Array) -> NDArray[np.int64]:
    """The class ``[n]`` with the highest of ``scores`` ``[n,K]``. It is -1 where two are highest or any is NaN.

    >>> top_class(np.array([[0.1, 0.9], [0.5, 0.5]])).tolist()
    [1, -1]
    """
    best = scores.max(axis=1, keepdims=True)
    alone = (scores == best).sum(axis=1) == 1  # a NaN equals nothing
    return np.where(alone, scores.argmax(axis=1), -1)


def recall_at(ranks: Array, k: int, weights: Array | None = None) -> Floats:
    """R@k: the share ``[R]`` of ``ranks`` ``[n]`` (1 is best) that are at most ``k``.

    >>> recall_at(np.array([1, 4, 6, 2]), 5).tolist()
    [0.75]
    """
    return mean(ranks <= k, weights)


def median_rank(ranks: Array, weights: Array | None = None) -> Floats:
    """Median ``[R]`` of ``ranks`` ``[n]``. For an even number it is the mean of the middle two.

    >>> median_rank(np.array([1, 4, 6, 2])).tolist()
    [3.0]
    """
    ranked = np.sort(ranks, kind="stable").astype(np.float64)
    order = np.argsort(ranks, kind="stable")
    values = []
    for block in _blocks(weights, len(ranks)):
        upto = np.cumsum(block[:, order], axis=1)  # samples at or before each place
        total = upto[:, -1:]
        lower, upper = ((upto < place).sum(axis=1) for place in ((total + 1) // 2, total // 2 + 1))
        middle = [ranked[np.minimum(place, len(ranks) - 1)] for place in (lower, upper)]
        values.append(np.where(total[:, 0] > 0, (middle[0] + middle[1]) / 2, np.nan))
    return np.concatenate(values)


def mean(hits: Array, weights: Array | None = None) -> Floats:
    """Mean ``[R]`` of a value of each sample ``[n]``. It is NaN where no sample has weight."""
    sums = [(block @ hits.astype(np.float64), block.sum(axis=1)) for block in _blocks(weights, len(hits))]
    return ratio(np.concatenate([hit for hit, _ in sums]), np.concatenate([total for _, total in sums]))


def sums(values: Array, weights: Array | None = None) -> Floats:
    """Weighted sums ``[R,k]`` over the samples of ``k`` values each ``[n,k]``, for metrics of a whole set."""
    return np.concatenate([block @ values.astype(np.float64) for block in _blocks(weights, len(values))])


def _rows(weights: Array | None) -> int:
    return 1 if weights is None else len(weights)


def _blocks(weights: Array | None, n: int) -> Iterator[Floats]:
    if weights is None:
        yield np.ones((1, n))
        return
    step = max(1, _BLOCK // max(1, n))
    for start in range(0, len(weights), step):
        yield weights[start : start + step].astype(np.float64)


def ratio(above: Floats, below: Floats) -> Floats:
    """``above / below``. It is NaN where ``below`` is 0."""
    quotient: Floats = np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)
    return quotient
