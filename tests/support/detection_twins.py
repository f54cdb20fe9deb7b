"""Average precision by pycocotools, and the challenge's score image by image."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchmetrics.detection import MeanAveragePrecision


def by_pycocotools(predicted, truth, findings, ious):
    """``[T,L]`` average precision; -1 where a finding has no box."""
    images = [{"id": i + 1} for i in range(len(truth))]
    classes = [{"id": finding} for finding in range(findings)]
    given = [(i + 1, box) for i, real in enumerate(truth) for box in real.tolist()]
    annotations = [
        {"id": k + 1, "image_id": i, "category_id": int(b[4]), "bbox": wide(b), "area": area(b), "iscrowd": 0}
        for k, (i, b) in enumerate(given)
    ]
    results = [
        {"image_id": i + 1, "category_id": int(b[4]), "bbox": wide(b), "score": b[5]}
        for i, shown in enumerate(predicted)
        for b in shown.tolist()
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {"images": images, "annotations": annotations, "categories": classes}
        coco.createIndex()
        run = COCOeval(coco, coco.loadRes(results), "bbox")
        run.params.iouThrs = np.asarray(ious)
        run.params.areaRng, run.params.areaRngLbl = [[0, 1e10]], ["all"]
        run.params.maxDets = [100]
        run.evaluate()
        run.accumulate()
    return run.eval["precision"][..., 0, 0].mean(axis=1)


def by_mgca(predicted, truth):
    """The mAP of MGCA's detector, image by image as its test step does, by torchmetrics as it does."""
    # torchmetrics' own recalls are float32, where 0.6 is above the recall of 3 boxes in 5.
    recalls = np.linspace(0, 1, 101).tolist()
    metric = MeanAveragePrecision(iou_thresholds=[0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75], rec_thresholds=recalls)
    for shown, real in zip(predicted, truth, strict=True):
        out = [box for box in shown.tolist() if box[5] >= 0.5]  # its conf_thres
        if not out:
            continue
        if len(real) > 0:
            boxes, scores, labels = (torch.tensor([f(b) for b in out]) for f in (lambda b: b[:4], lambda b: b[5], kind))
            target = {"boxes": torch.tensor(real[:, :4]), "labels": torch.tensor(real[:, 4]).long()}
            metric.update([{"boxes": boxes, "scores": scores, "labels": labels}], [target])
    return float(metric.compute()["map"])


def kind(box):
    return int(box[4])


def wide(box):
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]]


def area(box):
    return (box[2] - box[0]) * (box[3] - box[1])


def slow_iou(one, other):
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    both = max(width, 0) * max(height, 0)
    return both / (area(one) + area(other) - both)


def slow_challenge(shown, real, threshold):
    """As Kaggle tells it: most confident first, each takes the free box of its finding that it covers best."""
    shown = sorted((box for box in shown.tolist() if box[5] >= threshold), key=lambda box: -box[5])
    if not shown and not len(real):
        return None
    values = []
    for least in (0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75):
        free, right = real.tolist(), 0
        for box in shown:
            fits = [other for other in free if other[4] == box[4] and slow_iou(box, other) >= least]
            if fits:
                free.remove(max(fits, key=lambda other, box=box: slow_iou(box, other)))
                right += 1
        values.append(right / (len(shown) + len(real) - right))
    return float(np.mean(values))
