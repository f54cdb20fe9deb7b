"""Metrics of detection: boxes against boxes, over whole sets, as pure functions of arrays.

As in :mod:`diptych.metrics.measures`, ``weights`` ``[R,n]`` says how often each of ``n`` images counts in each of ``R``
weightings.
Boxes are x0, y0, x1, y1 in any unit. Predictions are matched once, best first; a higher threshold of confidence leaves
the matches of those above it as they are, so every metric below follows from the one matching.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diptych.metrics import measures as metrics

__all__ = [
    "CHALLENGE",
    "COCO",
    "IOUS",
    "LIMIT",
    "Matches",
    "average_precision",
    "best_threshold",
    "challenge_scores",
    "iou",
    "match",
    "misses",
]

Array = NDArray[Any]
Floats = NDArray[np.float64]

IOUS: Floats = np.concatenate([[0.40, 0.45], np.linspace(0.50, 0.95, 10)])
"""IoU from which on a prediction is a hit, ``T`` of them; pycocotools' own numbers, whose 0.90 is not the nearest one."""
CHALLENGE, COCO = slice(0, 8), slice(2, 12)
"""Of these, 0.40:0.05:0.75 of the RSNA challenge, and 0.50:0.05:0.95 of COCO."""
LIMIT = 100
"""Predictions of a finding in an image that count, the most confident ones (COCO's ``maxDets``)."""
_RECALLS = np.linspace(0, 1, 101)


def iou(one: Array, other: Array) -> Floats:
    """Intersection over union of boxes ``[D,4]`` and ``[K,4]``: ``[D,K]``; 0 where the union has no area."""
    a, b = one[:, None, :4].astype(np.float64), other[None, :, :4].astype(np.float64)
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    both: Floats = sides.clip(min=0).prod(axis=-1)
    union = (a[..., 2:] - a[..., :2]).prod(axis=-1) + (b[..., 2:] - b[..., :2]).prod(axis=-1) - both
    shared: Floats = np.divide(both, union, out=np.zeros_like(both), where=union > 0)
    return shared


@dataclass(frozen=True)
class Matches:
    """The predictions of a set, ``D`` of them, and which of them are hits; those of an image stand together, best first."""

    image: NDArray[np.int64]
    """``[D]`` position of the image."""
    finding: NDArray[np.int64]
    """``[D]``"""
    score: Floats
    """``[D]``"""
    hit: NDArray[np.bool_]
    """``[T,D]`` at each of :data:`IOUS`."""
    truths: NDArray[np.int64]
    """``[n,L]`` boxes of each image and finding."""


def match(predicted: Sequence[Array], truth: Sequence[Array], findings: int) -> Matches:
    """Match the predictions of every image with its boxes, within each finding.

    The most confident prediction takes first: of the boxes still free, that with the highest IoU, if it is at least the
    threshold's. So do COCO and the RSNA challenge.

    Args:
        predicted: of each image ``[k,6]``: box, finding's index, confidence.
        truth: of each image ``[k,5]``: box, finding's index.
        findings: ``L``, how many there are.
    """
    order: list[tuple[int, int, float]] = []
    hits: list[NDArray[np.bool_]] = []
    truths = np.zeros((len(truth), findings), np.int64)
    for image, (shown, real) in enumerate(zip(predicted, truth, strict=True)):
        truths[image] = np.bincount(real[:, 4].astype(np.int64), minlength=findings)
        for finding in np.unique(shown[:, 4]).astype(int).tolist():
            mine = shown[shown[:, 4] == finding]
            mine = mine[np.argsort(-mine[:, 5], kind="stable")[:LIMIT]]
            order += [(image, finding, score) for score in mine[:, 5].tolist()]
            hits.append(_hits(iou(mine, real[real[:, 4] == finding])))
    image_of, finding_of, score_of = zip(*order, strict=True) if order else ((), (), ())
    return Matches(
        np.array(image_of, np.int64),
        np.array(finding_of, np.int64),
        np.array(score_of, np.float64),
        np.concatenate(hits, axis=1) if hits else np.zeros((len(IOUS), 0), bool),
        truths,
    )


def _hits(overlap: Floats) -> NDArray[np.bool_]:
    """``[T,D]`` from IoU ``[D,K]`` of predictions, best first, with boxes; of equal boxes the last is taken, as COCO does."""
    number, boxes = overlap.shape
    hit = np.zeros((len(IOUS), number), bool)
    free = np.ones((len(IOUS), boxes), bool)
    for row in np.flatnonzero((overlap >= IOUS[0]).any(axis=1)) if boxes else ():
        fits = np.where(free & (overlap[row] >= IOUS[:, None]), overlap[row], -1.0)  # [T,K]
        best = boxes - 1 - fits[:, ::-1].argmax(axis=1)
        hit[:, row] = fits.max(axis=1) >= 0
        free[hit[:, row], best[hit[:, row]]] = False
    return hit


def average_precision(found: Matches, finding: int, weights: Array | None = None) -> Floats:
    """COCO's average precision of a finding at each of :data:`IOUS`: ``[R,T]``; NaN where no box has weight.

    The mean over the recalls 0, 0.01 ... 1 of the highest precision at that recall or above (Lin et al., ECCV 2014,
    arXiv 1405.0312). Predictions in images without a box are false alarms like any other.
    """
    mine = np.flatnonzero(found.finding == finding)
    mine = mine[np.argsort(-found.score[mine], kind="stable")]
    image, hit = found.image[mine], found.hit[:, mine]
    boxes = found.truths[:, finding].astype(np.float64)
    given = np.ones((1, len(boxes)), np.uint16) if weights is None else weights
    values = np.full((len(given), len(IOUS)), np.nan)
    for row, weight in enumerate(given):
        total = float(weight @ boxes)
        if total == 0:
            continue
        drawn = weight[image].astype(np.float64)
        shown = np.cumsum(drawn)  # [D], those at least as confident
        for level, right in enumerate(hit):
            at = np.flatnonzero(right & (drawn > 0))  # precision is highest, and recall new, at a hit
            true = np.cumsum(drawn[at])
            precision = np.maximum.accumulate((true / shown[at])[::-1])[::-1]
            place = np.searchsorted(true / total, _RECALLS)
            values[row, level] = precision[place[place < len(at)]].sum() / len(_RECALLS)
    return values


def challenge_scores(found: Matches, threshold: float) -> Floats:
    """The RSNA challenge's score of each image ``[n]``: the mean over 0.40:0.05:0.75 of ``TP / (TP + FP + FN)``.

    Predictions count whose confidence is at least ``threshold``. An image without a box in which something is predicted
    has 0; one without a box and without a prediction has no score (NaN) and is left out of the mean, as in the challenge.
    """
    kept = found.score >= threshold
    image, n = found.image[kept], len(found.truths)
    hits = np.stack([np.bincount(image[hit], minlength=n) for hit in found.hit[CHALLENGE][:, kept]])  # [T,n]
    below = np.bincount(image, minlength=n) + found.truths.sum(axis=1) - hits
    scores: Floats = np.divide(hits, below, out=np.full(hits.shape, np.nan), where=below > 0).mean(axis=0)
    return scores


def misses(found: Matches, threshold: float) -> NDArray[np.int64]:
    """Boxes of each image ``[n]`` that no prediction of at least this confidence hits, at the lowest of :data:`IOUS`."""
    kept = found.hit[0] & (found.score >= threshold)
    missed: NDArray[np.int64] = found.truths.sum(axis=1) - np.bincount(found.image[kept], minlength=len(found.truths))
    return missed


def best_threshold(found: Matches) -> float:
    """Of 0.05, 0.06 ... 0.99 the confidence with the highest mean of :func:`challenge_scores`; of equals the middle one."""
    candidates = np.arange(5, 100) / 100
    scores = [challenge_scores(found, threshold) for threshold in candidates]
    means = np.array([metrics.mean(of_image[~np.isnan(of_image)])[0] for of_image in scores])
    best = candidates[means == np.nanmax(means)]
    return float(best[len(best) // 2])
