"""Detection: torchvision's FCOS on the image tower's feature pyramid, frozen or trained along."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.models.detection.fcos import FCOS, FCOSHead
from torchvision.ops import FeaturePyramidNetwork

from diptych import distributed
from diptych.errors import ConfigError, DataError
from diptych.evaluation.rows import Rows
from diptych.files import replace_picture
from diptych.metrics import bootstrap, detection
from diptych.metrics import measures as metrics
from diptych.metrics.bootstrap import Metric
from diptych.metrics.classification import with_macro
from diptych.results.drawing import draw_boxes
from diptych.tasks.base import PyramidTask
from diptych.towers.image import STRIDES, ImageTower
from diptych.types import Batch

__all__ = ["Detect", "Detections", "Detector", "clip_boxes", "squares"]

_FLOOR = 0.05
"""Confidence below which nothing is predicted at all."""
_MEASURES = {"ap": detection.COCO, "ap50": slice(2, 3), "ap75": slice(7, 8), "ap40-75": detection.CHALLENGE}
"""Which of ``detection.IOUS`` an average precision is the mean of."""
_GROUPS = 32
"""Of the group norms, in the pyramid network as in torchvision's head."""


def clip_boxes(boxes: Tensor, size: tuple[int, int], least: float = 0.0) -> Tensor:
    """Boxes ``[K,5]`` cut to a picture of ``size`` ``(H,V)``; those left with no side above ``least`` pixels are left out."""
    high = boxes.new_tensor([size[1], size[0], size[1], size[0]])
    cut = torch.cat([boxes[:, :4].clamp(min=0).minimum(high), boxes[:, 4:]], dim=1)
    return cut[((cut[:, 2:4] - cut[:, :2]) > least).all(dim=1)]


def squares(grid: tuple[int, int], size: tuple[int, int], side: float) -> Tensor:
    """Squares of a ``side`` about the centres of a grid's cells in a picture of ``size``, row by row: ``[h*v,4]``."""
    down, across = ((torch.arange(n) + 0.5) * (length / n) for n, length in zip(grid, size, strict=True))
    y, x = (axis.flatten() for axis in torch.meshgrid(down, across, indexing="ij"))
    return torch.stack([x - side / 2, y - side / 2, x + side / 2, y + side / 2], dim=1)


class Detections(NamedTuple):
    """A detector's output for a batch: losses in training, boxes otherwise."""

    losses: dict[str, Tensor]
    """In training, those of findings, boxes and centres."""
    boxes: list[Tensor]
    """Outside training, one ``[k,6]`` an image: x0, y0, x1, y1, finding's index, confidence."""
    finite: Tensor
    """``[B]`` bool: False where something that was computed is not a number."""


class _BackboneWidth(nn.Module):
    """A stand-in for a backbone, of which torchvision reads the width alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out_channels = width


class _Head(FCOSHead):  # type: ignore[misc]  # torchvision is not typed
    """torchvision's, its losses divided by the places with a finding on all processes, not by this one's."""

    def compute_loss(
        self,
        targets: list[dict[str, Tensor]],
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        matched_idxs: list[Tensor],
    ) -> dict[str, Tensor]:
        losses = super().compute_loss(targets, head_outputs, anchors, matched_idxs)
        own = sum(
            ((index >= 0).sum() for index in matched_idxs), torch.zeros((), dtype=torch.int64, device=anchors[0].device)
        )
        return {name: distributed.mean_loss(loss * own.clamp_min(1), own) for name, loss in losses.items()}


class Detector(nn.Module):
    """FCOS (arXiv 1904.01355) with a feature pyramid network (arXiv 1612.03144), of torchvision, on given feature maps.

    Without anchors: each place of each level says how far the four sides are, and how near it is to the centre. Small boxes
    are of the fine levels, large ones of the coarse. Of torchvision's are the head, the losses and what makes boxes of
    the head's answers. Its scaling and normalisation of images have no place here, as the data and the tower have done
    both, nor has its grid, whose places are the cells' corners and drift where a side is no multiple of the stride.

    Args:
        pyramid: widths of the levels, of strides :data:`STRIDES`.
        findings: how many there are.
        width: of the pyramid network and of the head, a multiple of 32.
    """

    def __init__(self, pyramid: Sequence[int], findings: int, width: int) -> None:
        super().__init__()
        # Towers differ in the scale of their features by orders of magnitude; the norm makes one learning rate do.
        self.pyramid = FeaturePyramidNetwork(list(pyramid), width, norm_layer=partial(nn.GroupNorm, _GROUPS))
        self.fcos = FCOS(
            _BackboneWidth(width),
            num_classes=findings,
            head=_Head(width, 1, findings),
            score_thresh=_FLOOR,
            nms_thresh=0.5,
            detections_per_img=detection.LIMIT,
        )

    def forward(
        self, levels: Sequence[Tensor], size: tuple[int, int], truth: Sequence[Tensor] | None = None
    ) -> Detections:
        """From the levels ``[B,D,h,w]`` of images of ``size`` ``(H,V)``; with their boxes ``[K,5]``, the losses."""
        maps = list(self.pyramid(OrderedDict((str(i), level) for i, level in enumerate(levels))).values())
        outputs = self.fcos.head(maps)
        grids = [(level.shape[-2], level.shape[-1]) for level in maps]
        each = [rows * columns for rows, columns in grids]
        where = [squares(grid, size, side).to(maps[0]) for grid, side in zip(grids, STRIDES, strict=True)]
        finite = torch.stack([values.flatten(1).isfinite().all(1) for values in outputs.values()]).all(0)
        if truth is not None:
            targets = [{"boxes": boxes[:, :4], "labels": boxes[:, 4].long()} for boxes in truth]
            losses = self.fcos.compute_loss(targets, outputs, [torch.cat(where)] * len(targets), each)
            return Detections(losses, [], finite)
        by_level = {name: list(values.split(each, dim=1)) for name, values in outputs.items()}
        number = len(levels[0])
        detections = self.fcos.postprocess_detections(by_level, [where] * number, [size] * number)
        columns = [
            (one["boxes"], one["labels"][:, None].to(one["boxes"]), one["scores"][:, None]) for one in detections
        ]
        return Detections({}, [torch.cat(of, dim=1) for of in columns], finite)


class Detect(PyramidTask):
    """Where findings are, as boxes: FCOS on the tower's feature pyramid, of a ResNet or of a ViT alike.

    The tower is trained along, lower layers more slowly where it has a ``layer_decay``, or ``frozen`` and then in evaluation
    mode. Metrics over the whole set, all its images, with a bootstrap over patients: ``detect/ap/<finding>|macro`` (COCO's,
    IoU 0.50:0.05:0.95), ``ap50`` and ``ap75`` at one IoU, ``ap40-75`` over 0.40:0.05:0.75; ``challenge``, the score of the
    RSNA challenge, and with it ``false_alarms``, the share of images without a box in which something is predicted, and
    ``missed``, the share of boxes that no prediction hits. These three need a threshold of confidence: unless it is given,
    it is chosen on ``val`` for the highest ``challenge`` and kept in the checkpoint.

    Args:
        image: the tower; its ``layer_decay``, ``frozen`` and ``freeze_layers`` hold here.
        threshold: of confidence, 0 to 1, for the challenge's score and the pictures; chosen on ``val``, if not given.
        width: of the pyramid network and of the head, a multiple of 32.
        pictures: how many of the first test images are drawn into the run's ``figures``, with truth and prediction.
        lr: peak of the detector and of the tower's top layer.
        weight_decay: of AdamW, on filters and weight matrices.
        warmup: steps of linear warm-up, or its share of all steps where below 1.
        lr_floor: share of ``lr`` at the end of the cosine.
        resamples: of the bootstrap on the test; 0 for no intervals.

    Raises:
        ConfigError: an argument out of its range, or a tower without a feature pyramid.
    """

    monitor = "val/detect/ap40-75/macro"
    chosen: Tensor

    def __init__(
        self,
        image: ImageTower,
        *,
        threshold: float | None = None,
        width: int = 128,
        pictures: int = 8,
        lr: float = 5e-4,
        weight_decay: float = 1e-4,
        warmup: float = 0.05,
        lr_floor: float = 0.01,
        resamples: int = 1000,
    ) -> None:
        super().__init__(
            image,
            pictures=pictures,
            lr=lr,
            weight_decay=weight_decay,
            warmup=warmup,
            lr_floor=lr_floor,
            resamples=resamples,
        )
        if threshold is not None and not 0 <= threshold <= 1:
            raise ConfigError(f"Detect: threshold is {threshold}; give 0 to 1, or null to have it chosen on val")
        if width < 1 or width % _GROUPS:
            raise ConfigError(f"Detect: width is {width}; give a multiple of {_GROUPS}")
        self.width, self.threshold = width, threshold
        self.detector: Detector | None = None
        self.register_buffer("chosen", torch.tensor(float("nan")))

    def configure_model(self) -> None:
        """The detector, once the data say how many findings there are.

        Raises:
            ConfigError: the images are too small for a pyramid.
        """
        if (size := self.data.loading.image_size) <= STRIDES[-1]:
            raise ConfigError(
                f"Detect: loading.image_size is {size}; give more than {STRIDES[-1]}, or a level is one pixel"
            )
        super().configure_model()
        if self.detector is None:
            self.detector = Detector(self.image.pyramid_widths, len(self.labelled()), self.width)

    def forward(self, image: Tensor, truth: Sequence[Tensor] | None = None) -> Detections:
        """The boxes predicted in radiographs ``[B,1,H,V]``; with the true boxes ``[K,5]`` of each, the losses."""
        assert self.detector is not None  # configure_model comes first
        levels = self.image.pyramid(image)
        with torch.autocast(image.device.type, enabled=False):  # coordinates need float32
            detections: Detections = self.detector(
                [level.float() for level in levels], (image.shape[-2], image.shape[-1]), truth
            )
        return detections

    def _truth(self, batch: Batch, least: float = 0.0) -> list[Tensor]:
        """Boxes ``[K,5]`` of each image, cut to the picture.

        Raises:
            ConfigError: the data have none.
        """
        if batch.boxes is None:
            raise ConfigError(
                f"Detect: {self.data.protocol} gives no boxes; choose data that have some (rsna, phantom)"
            )
        size = (batch.image.shape[-2], batch.image.shape[-1])
        return [clip_boxes(boxes, size, least) for boxes in batch.boxes]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The sum of the three losses, equally weighted."""
        # Below a pixel a box has no shape to learn; its logarithm would rule the loss.
        losses = self(batch.image, self._truth(batch, least=1.0)).losses
        loss = torch.stack(list(losses.values())).sum()
        values = {f"train/loss/{name.removeprefix('bbox_')}": value.detach() for name, value in losses.items()}
        self.log_dict({"train/loss": loss.detach(), **values}, prog_bar=True, batch_size=len(batch))
        return loss

    def begin(self) -> None:
        """Begin a pass: predicted and true boxes are collected.

        Raises:
            ConfigError: there is no threshold for a test.
        """
        if self.trainer.testing and self.threshold is None and self.chosen.isnan():
            raise ConfigError("Detect: this checkpoint chose no threshold on val; give one as --model.threshold")
        self._rows = Rows(self.device, 3, 6, 5)

    def collect(self, batch: Batch) -> None:
        """Collect the predicted and true boxes of a batch, and draw the first test images."""
        found, truth = self(batch.image), self._truth(batch)
        numbers = [[len(shown), len(real)] for shown, real in zip(found.boxes, truth, strict=True)]
        facts = torch.cat([torch.tensor(numbers, device=self.device), found.finite[:, None]], dim=1)
        self._rows.add(batch, facts, found.boxes, truth)
        for row, file in self.picture_files(batch, "detection"):
            kept = found.boxes[row][found.boxes[row][:, 5] >= self._threshold()]
            boxes = {"truth": truth[row].cpu().numpy(), "prediction": kept.cpu().numpy()}
            replace_picture(file, draw_boxes(batch.image[row, 0].cpu().numpy(), boxes, self.labelled()))

    def _threshold(self) -> float:
        return round(float(self.chosen), 2) if self.threshold is None else self.threshold

    def finish(self, stage: str, resamples: int) -> None:
        """Average precision over the whole set, and the challenge's score; a validation chooses the threshold."""
        patients, (facts, shown, real) = self._rows.gather()
        names, (predicted, true) = self.labelled(), facts[:, :2].long().T.tolist()
        found = detection.match(_split(shown, predicted), _split(real, true), len(names))
        boxes = found.truths.sum(axis=0)
        if not boxes.any() and not self.trainer.sanity_checking:
            raise DataError(f"Detect: no image of '{stage}' of {self.data.protocol} has a box")
        broken = 0.0 if facts[:, 2].all() else float("nan")  # a diverged model has no figures
        if stage == "val" and boxes.any() and broken == 0 and not self.trainer.sanity_checking:
            self.chosen.fill_(detection.best_threshold(found))
        weights = bootstrap.figure_and_bootstrap(patients.numpy(), resamples)
        present = {name: finding for finding, name in enumerate(names) if boxes[finding]}
        values: dict[str, dict[str, Any]] = {measure: {} for measure in _MEASURES}
        for name, finding in present.items():
            precision = detection.average_precision(found, finding, weights) + broken
            for measure, part in _MEASURES.items():
                values[measure][name] = precision[:, part].mean(axis=1)
        counted = {name: len(patients) for name in present}
        self.results = {f"{stage}/detect/{k}": v for k, v in with_macro(values, counted, len(patients)).items()}
        self.results |= {f"{stage}/detect/{k}": v for k, v in self._at_threshold(found, weights, broken).items()}
        size = self.data.loading.image_size
        assert self.detector is not None  # configure_model comes first
        self.protocol["tower"]["detector_parameters"] = sum(value.numel() for value in self.detector.parameters())
        self.protocol["detect"] = {
            "tower": self.how_trained(),
            "detector": "FCOS with a feature pyramid network",
            "measured": f"boxes of all images, cut to the input of {size} x {size} pixels",
            "ap": f"101 recalls, {detection.LIMIT} predictions of an image at most, confidence from {_FLOOR}",
            "threshold": f"{self.threshold}, fixed" if self.threshold is not None else "the highest challenge on val",
            "thresholds": {"challenge": self._threshold()},
            "challenge": "image without box: 0 where something is predicted, otherwise left out",
            "missed": "boxes that no prediction hits at IoU 0.40",
            "interval": bootstrap.interval_name(resamples),
            "images": len(patients),
            "without a box": int((found.truths.sum(axis=1) == 0).sum()),
            "boxes": {name: int(number) for name, number in zip(names, boxes, strict=True)},
            "absent": [name for name in names if name not in present],
        }

    def _at_threshold(self, found: detection.Matches, weights: NDArray[Any], broken: float) -> dict[str, Metric]:
        """The score of the challenge, false alarms and misses."""
        scores = detection.challenge_scores(found, self._threshold())
        scored, number = ~np.isnan(scores), found.truths.sum(axis=1)
        normal, positive = number == 0, number > 0
        alarms = scored[normal]  # without a box an image is scored where something is predicted
        number, missed = number[positive], detection.misses(found, self._threshold())[positive]
        share = metrics.mean(missed / number, weights[:, positive] * number)  # of boxes, not of images
        return {
            "challenge": Metric.of(metrics.mean(scores[scored], weights[:, scored]) + broken, int(scored.sum())),
            "false_alarms": Metric.of(metrics.mean(alarms, weights[:, normal]) + broken, int(normal.sum())),
            "missed": Metric.of(share + broken, int(number.sum())),
        }


def _split(rows: Tensor, numbers: Sequence[int]) -> list[NDArray[np.float64]]:
    """The rows of each image."""
    return [part.double().numpy() for part in torch.split(rows, list(numbers))]
