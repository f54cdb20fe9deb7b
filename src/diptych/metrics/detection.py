"""Metrics of detection: boxes against boxes, over whole sets, as pure functions of arrays.

Boxes are x0, y0, x1, y1 in any unit. Predictions are matched with boxes once, the most confident first. A higher threshold
of confidence leaves the matches of those above it as they are. So every metric below follows from the one matching.
``weights`` ``[R,n]`` says how often each of ``n`` images counts in each of ``R`` weightings, as in
:mod:`diptych.metrics.measures`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diptych.metrics import measures as metrics
from diptych.metrics.bootstrap import Draws
from diptych.metrics.classification import with_macro

__all__ = [
    "CHALLENGE", "COCO", "IOUS", "LIMIT", "MGCA", "Matches", "as_mgca", "average_precision", "best_threshold", "box_figures",
    "challenge_scores", "iou", "match", "misses",
]  # fmt: skip

Array = NDArray[Any]
Floats = NDArray[np.float64]

IOUS: Floats = np.concatenate([[0.40, 0.45], np.linspace(0.50, 0.95, 10)])
"""The ``T`` thresholds of IoU. A prediction is a hit from there on. The numbers are pycocotools', whose 0.90 is not the
nearest float."""
CHALLENGE, COCO = slice(0, 8), slice(2, 12)
"""Places in :data:`IOUS` of the RSNA challenge's 0.40:0.05:0.75, and of COCO's 0.50:0.05:0.95."""
LIMIT = 100
"""How many predictions of a finding count in an image. The most confident ones do (COCO's ``maxDets``)."""
MGCA = 0.5
"""Lowest confidence of a prediction in MGCA's rule (:func:`as_mgca`)."""
_RECALLS = np.linspace(0, 1, 101)
_MEASURES = {"ap": COCO, "ap50": slice(2, 3), "ap75": slice(7, 8), "ap40-75": CHALLENGE}
"""Name of each average precision, with the part of :data:`IOUS` over which it is the mean."""


def iou(one: Array, other: Array) -> Floats:
    """Intersection over union ``[D,K]`` of boxes ``[D,4]`` and ``[K,4]``. It is 0 where the union has no area.

    >>> iou(np.array([[0, 0, 2, 2]]), np.array([[0, 0, 2, 2], [1, 0, 3, 2], [5, 5, 6, 6]])).round(3).tolist()
    [[1.0, 0.333, 0.0]]
    """
    a, b = one[:, None, :4].astype(np.float64), other[None, :, :4].astype(np.float64)
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    both: Floats = sides.clip(min=0).prod(axis=-1)
    union = (a[..., 2:] - a[..., :2]).prod(axis=-1) + (b[..., 2:] - b[..., :2]).prod(axis=-1) - both
    shared: Floats = np.divide(both, union, out=np.zeros_like(both), where=union > 0)
    return shared


@dataclass(frozen=True)
class Matches:
    """The ``D`` predictions of a set, and which are hits. Those of an image stand together, the most confident first."""

    image: NDArray[np.int64]
    """``[D]``: the image's place in the set."""
    finding: NDArray[np.int64]
    """``[D]``: the finding's index."""
    score: Floats
    """``[D]``: the confidence."""
    hit: NDArray[np.bool_]
    """``[T,D]``: whether it is a hit at each of :data:`IOUS`."""
    truths: NDArray[np.int64]
    """``[n,L]``: how many boxes each image has of each finding."""


def match(predicted: Sequence[Array], truth: Sequence[Array], findings: int) -> Matches:
    """Match the predictions of every image with its boxes, within each finding.

    The most confident prediction comes first. It takes the free box with the highest IoU, if that reaches the threshold.
    COCO and the RSNA challenge do the same.

    >>> matches = match([np.array([[0, 0, 4, 4, 0, 0.9]])], [np.array([[0, 0, 4, 3, 0]])], findings=1)
    >>> dict(zip(IOUS[6:10].round(2).tolist(), matches.hit[6:10, 0].tolist()))  # their IoU is 0.75
    {0.7: True, 0.75: True, 0.8: False, 0.85: False}

    Args:
        predicted: an array ``[k,6]`` for each image: box, finding's index, confidence.
        truth: an array ``[k,5]`` for each image: box, finding's index.
        findings: ``L``, the number of findings.
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
    """Hits ``[T,D]`` from the IoU ``[D,K]`` of predictions, most confident first, with boxes.

    Of boxes with equal IoU the last is taken, as COCO does.
    """
    number, boxes = overlap.shape
    hit = np.zeros((len(IOUS), number), bool)
    free = np.ones((len(IOUS), boxes), bool)
    for row in np.flatnonzero((overlap >= IOUS[0]).any(axis=1)) if boxes else ():
        fits = np.where(free & (overlap[row] >= IOUS[:, None]), overlap[row], -1.0)  # [T,K]
        best = boxes - 1 - fits[:, ::-1].argmax(axis=1)
        hit[:, row] = fits.max(axis=1) >= 0
        free[hit[:, row], best[hit[:, row]]] = False
    return hit


def average_precision(matches: Matches, finding: int, weights: Array | None = None) -> Floats:
    """COCO's average precision ``[R,T]`` of a finding at each of :data:`IOUS` (Lin et al., ECCV 2014, arXiv 1405.0312).

    For each of the recalls 0, 0.01 ... 1 it takes the highest precision at that recall or above, and averages them. A
    prediction in an image without a box is a false alarm like any other. The value is NaN where no box has weight.
    """
    mine = np.flatnonzero(matches.finding == finding)
    mine = mine[np.argsort(-matches.score[mine], kind="stable")]
    image, hit = matches.image[mine], matches.hit[:, mine]
    boxes = matches.truths[:, finding].astype(np.float64)
    weights = np.ones((1, len(boxes)), np.uint16) if weights is None else weights
    values = np.full((len(weights), len(IOUS)), np.nan)
    for row, weight in enumerate(weights):
        total = float(weight @ boxes)
        if total == 0:
            continue
        counted = weight[image].astype(np.float64)
        shown = np.cumsum(counted)  # [D], predictions at least as confident
        for level, right in enumerate(hit):
            at = np.flatnonzero(right & (counted > 0))  # precision is highest, and recall new, at a hit
            true = np.cumsum(counted[at])
            precision = np.maximum.accumulate((true / shown[at])[::-1])[::-1]
            place = np.searchsorted(true / total, _RECALLS)
            values[row, level] = precision[place[place < len(at)]].sum() / len(_RECALLS)
    return values


def as_mgca(matches: Matches) -> Matches:
    """What counts by the rule of MGCA's published detector (Wang et al., NeurIPS 2022, arXiv 2210.06044).

    Predictions count from a confidence of 0.5 on. An image without such a prediction is dropped, with the boxes that were
    missed in it. An image without a box is dropped too, with its false alarms. The mAP of MGCA, and of the papers that use its
    code, is the :func:`average_precision` of the rest over :data:`CHALLENGE`. It forgives silence, and false alarms on normals.

    >>> box, none = np.array([[0.0, 0, 4, 4, 0]]), np.zeros((0, 6))
    >>> matches = match([np.array([[0.0, 0, 4, 4, 0, 0.9]]), none], [box, box], findings=1)
    >>> [float(average_precision(one, 0)[0, 0].round(3)) for one in (matches, as_mgca(matches))]
    [0.505, 1.0]
    """
    sure = matches.score >= MGCA
    shown = np.bincount(matches.image[sure], minlength=len(matches.truths)) > 0
    kept = shown & (matches.truths.sum(axis=1) > 0)
    own = sure & kept[matches.image]
    truths = matches.truths * kept[:, None]
    return Matches(matches.image[own], matches.finding[own], matches.score[own], matches.hit[:, own], truths)


def challenge_scores(matches: Matches, threshold: float) -> Floats:
    """The RSNA challenge's score of each image ``[n]``: the mean over 0.40:0.05:0.75 of ``TP / (TP + FP + FN)``.

    Predictions count if their confidence is at least ``threshold``. An image with a prediction and no box has 0. One with
    neither has no score (NaN), and is left out of the challenge's mean.
    """
    confident = matches.score >= threshold
    image, n = matches.image[confident], len(matches.truths)
    hits = np.stack([np.bincount(image[hit], minlength=n) for hit in matches.hit[CHALLENGE][:, confident]])  # [T,n]
    below = np.bincount(image, minlength=n) + matches.truths.sum(axis=1) - hits
    scores: Floats = np.divide(hits, below, out=np.full(hits.shape, np.nan), where=below > 0).mean(axis=0)
    return scores


def misses(matches: Matches, threshold: float) -> NDArray[np.int64]:
    """How many boxes of each image ``[n]`` no prediction of at least this confidence hits, at the lowest of :data:`IOUS`."""
    boxes: NDArray[np.int64] = matches.truths.sum(axis=1)
    hits = matches.image[matches.hit[0] & (matches.score >= threshold)]
    return boxes - np.bincount(hits, minlength=len(boxes))


def best_threshold(matches: Matches) -> float:
    """The confidence of 0.05, 0.06 ... 0.99 with the highest mean challenge score. Of equal ones it is the middle one."""
    candidates = np.arange(5, 100) / 100
    scores = [challenge_scores(matches, threshold) for threshold in candidates]
    means = np.array([metrics.mean(of_image[~np.isnan(of_image)])[0] for of_image in scores])
    best = candidates[means == np.nanmax(means)]
    return float(best[len(best) // 2])


def box_figures(
    matches: Matches, names: Sequence[str], weights: Array, threshold: float | None, broken: bool = False
) -> dict[str, Draws]:
    """Every figure of a set.

    They are named ``ap|ap50|ap75|ap40-75|mgca/ap40-75/<finding>|macro``, ``challenge``, ``false_alarms`` and ``missed``.

    Args:
        matches: of the whole set.
        names: of the ``L`` findings. One without a box has no average precision.
        weights: ``[1+R,n]``, how often each image counts. The first row is all ones.
        threshold: lowest confidence of a prediction in the last three. Without it there are none of these.
        broken: the model has diverged, and every figure is NaN.
    """
    add, n = (float("nan") if broken else 0.0), len(matches.truths)
    present = {name: finding for finding, name in enumerate(names) if matches.truths[:, finding].any()}
    values: dict[str, dict[str, Floats]] = {measure: {} for measure in _MEASURES}
    for name, finding in present.items():
        precision = average_precision(matches, finding, weights) + add
        for measure, part in _MEASURES.items():
            values[measure][name] = precision[:, part].mean(axis=1)
    figures = with_macro(values, dict.fromkeys(present, n), n) | _mgca_figures(matches, present, weights, add)
    if threshold is None:
        return figures
    scores = challenge_scores(matches, threshold)
    scored, boxes = ~np.isnan(scores), matches.truths.sum(axis=1)
    normal, positive = boxes == 0, boxes > 0
    alarms = scored[normal]  # an image without a box has a score only if something is predicted in it
    boxes, missed = boxes[positive], misses(matches, threshold)[positive]
    share = metrics.mean(missed / boxes, weights[:, positive] * boxes)  # of boxes, not of images
    return figures | {
        "challenge": Draws(metrics.mean(scores[scored], weights[:, scored]) + add, int(scored.sum())),
        "false_alarms": Draws(metrics.mean(alarms, weights[:, normal]) + add, int(normal.sum())),
        "missed": Draws(share + add, int(boxes.sum())),
    }


def _mgca_figures(matches: Matches, present: Mapping[str, int], weights: Array, add: float) -> dict[str, Draws]:
    """MGCA's mAP. A finding whose boxes are all dropped is in no mean, unless that is so of every finding."""
    kept = as_mgca(matches)
    counted = {name: finding for name, finding in present.items() if kept.truths[:, finding].any()} or present
    values = {
        name: average_precision(kept, finding, weights)[:, CHALLENGE].mean(axis=1) + add
        for name, finding in counted.items()
    }
    images = int(kept.truths.any(axis=1).sum())
    return with_macro({"mgca/ap40-75": values}, dict.fromkeys(counted, images), images)
