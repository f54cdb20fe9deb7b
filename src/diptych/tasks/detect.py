"""Detection of findings as boxes: torchvision's FCOS on the feature pyramid of an image tower."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.models.detection.fcos import FCOS, FCOSHead
from torchvision.ops import FeaturePyramidNetwork

from diptych import distributed
from diptych.checks import check_number
from diptych.errors import ConfigError, DataError
from diptych.evaluation.rows import Rows
from diptych.files import replace_picture
from diptych.metrics import bootstrap, detection
from diptych.model.optim import OptimizerFactory, ScheduleFactory
from diptych.predictions.base import Boxes, Predictions
from diptych.results.drawing import draw_boxes
from diptych.tasks.base import PyramidTask
from diptych.towers.image import STRIDES, ImageTower
from diptych.types import Batch

__all__ = ["Detect", "Detections", "Detector", "clip_boxes", "squares"]

_FLOOR = 0.05
"""Lowest confidence of a prediction. What is below is dropped."""
_GROUPS = 32
"""Groups of a group norm, in the pyramid network as in torchvision's head."""


def clip_boxes(boxes: Tensor, size: tuple[int, int], least: float = 0.0) -> Tensor:
    """Boxes ``[K,5]`` cut to a picture of ``size`` ``(H,V)``.

    A box is dropped unless both its sides are then longer than ``least`` pixels.

    >>> clip_boxes(torch.tensor([[-4.0, 2.0, 6.0, 8.0, 0.0], [20.0, 0.0, 30.0, 9.0, 1.0]]), (10, 10))
    tensor([[0., 2., 6., 8., 0.]])
    """
    high = boxes.new_tensor([size[1], size[0], size[1], size[0]])
    cut = torch.cat([boxes[:, :4].clamp(min=0).minimum(high), boxes[:, 4:]], dim=1)
    return cut[((cut[:, 2:4] - cut[:, :2]) > least).all(dim=1)]


def squares(grid: tuple[int, int], size: tuple[int, int], side: float) -> Tensor:
    """A square around the centre of each cell of a grid, row by row: ``[h*v,4]``.

    >>> squares((1, 2), (4, 8), 2.0)
    tensor([[1., 1., 3., 3.],
            [5., 1., 7., 3.]])

    Args:
        grid: rows and columns ``(h,v)``.
        size: height and width ``(H,V)`` of the picture that the grid covers.
        side: side of the squares in pixels.
    """
    down, across = ((torch.arange(n) + 0.5) * (length / n) for n, length in zip(grid, size, strict=True))
    y, x = (axis.flatten() for axis in torch.meshgrid(down, across, indexing="ij"))
    return torch.stack([x - side / 2, y - side / 2, x + side / 2, y + side / 2], dim=1)


class Detections(NamedTuple):
    """The output of a detector for a batch: losses where the truth was given, boxes otherwise."""

    losses: dict[str, Tensor]
    """The losses of findings, boxes and centres."""
    boxes: list[Tensor]
    """One tensor ``[k,6]`` for each image: x0, y0, x1, y1, index of the finding, confidence."""
    finite: Tensor
    """``[B]`` bool: False where an output of the network is not a finite number."""


class _BackboneWidth(nn.Module):
    """A stand-in for a backbone. torchvision reads nothing of it but its width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out_channels = width


class _Head(FCOSHead):  # type: ignore[misc]  # torchvision is not typed
    """torchvision's head. Its losses are divided by the number of places with a finding on all processes.

    torchvision divides by the number on this process.
    """

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
    """torchvision's FCOS (arXiv 1904.01355) and feature pyramid network (arXiv 1612.03144), on given feature maps.

    FCOS has no anchors. Each place of each level predicts how far away the four sides of a box are, and how near the place
    is to the box's centre. Fine levels predict small boxes, and coarse levels large ones.

    The head, the losses and the conversion of outputs to boxes are torchvision's. Images are not scaled or normalised here:
    the data and the tower have done both. The places are the centres of the cells (:func:`squares`). torchvision takes the
    cells' corners, which drift where the side of an image is no multiple of the stride.

    Args:
        pyramid: widths of the levels. Their strides are :data:`STRIDES`.
        findings: number of findings.
        width: width of the pyramid network and of the head, a multiple of 32.
    """

    def __init__(self, pyramid: Sequence[int], findings: int, width: int) -> None:
        super().__init__()
        # The features of towers differ in scale by orders of magnitude. With the norm, one learning rate fits all.
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
        """The boxes predicted in a batch of images, or the losses where the truth is given.

        Args:
            levels: feature maps ``[B,D,h,v]``, finest first.
            size: height and width ``(H,V)`` of the images.
            truth: true boxes ``[K,5]`` of each image.
        """
        maps = list(self.pyramid(OrderedDict((str(i), level) for i, level in enumerate(levels))).values())
        outputs = self.fcos.head(maps)
        grids = [(level.shape[-2], level.shape[-1]) for level in maps]
        places = [rows * columns for rows, columns in grids]
        where = [squares(grid, size, side).to(maps[0]) for grid, side in zip(grids, STRIDES, strict=True)]
        finite = torch.stack([values.flatten(1).isfinite().all(1) for values in outputs.values()]).all(0)
        if truth is not None:
            targets = [{"boxes": boxes[:, :4], "labels": boxes[:, 4].long()} for boxes in truth]
            losses = self.fcos.compute_loss(targets, outputs, [torch.cat(where)] * len(targets), places)
            return Detections(losses, [], finite)
        by_level = {name: list(values.split(places, dim=1)) for name, values in outputs.items()}
        images = len(levels[0])
        predictions = self.fcos.postprocess_detections(by_level, [where] * images, [size] * images)
        columns = [
            (one["boxes"], one["labels"][:, None].to(one["boxes"]), one["scores"][:, None]) for one in predictions
        ]
        return Detections({}, [torch.cat(parts, dim=1) for parts in columns], finite)


class Detect(PyramidTask):
    """Predicts the boxes of findings, with FCOS on the tower's feature pyramid. The tower may be a ResNet or a ViT.

    The tower is trained along, unless it is ``frozen``. With a ``layer_decay`` its lower layers learn more slowly.

    The metrics are over all images of the set. Their intervals are a bootstrap over patients.

    - ``detect/ap/<finding>|macro`` is COCO's average precision, the mean over IoU 0.50:0.05:0.95.
    - ``ap50`` and ``ap75`` are the average precision at one IoU. ``ap40-75`` is the mean over 0.40:0.05:0.75.
    - ``mgca/ap40-75`` is the same by MGCA's published rule (:func:`~diptych.metrics.detection.as_mgca`), which drops images.
    - ``challenge`` is the score of the RSNA challenge.
    - ``false_alarms`` is the share of images without a box in which something is predicted.
    - ``missed`` is the share of boxes that no prediction hits.

    The last three need a threshold of confidence. If none is given, the one with the highest ``challenge`` on ``val`` is
    chosen and stored in the checkpoint.

    Args:
        image: the tower. Its ``layer_decay``, ``frozen`` and ``freeze_layers`` hold here.
        threshold: lowest confidence, 0 to 1, of predictions in the challenge's score and in pictures. If it is not given,
            it is chosen on ``val``.
        width: width of the pyramid network and of the head, a multiple of 32.
        pictures: number of the first test images that are drawn into the run's ``figures``, with truth and prediction.
        lr: peak learning rate of the detector and of the tower's top layer.
        weight_decay: weight decay of AdamW on filters and weight matrices.
        warmup: number of steps of linear warm-up. Below 1, their share of all steps.
        lr_floor: learning rate at the end of the cosine, as a share of ``lr``.
        resamples: number of bootstrap resamples of the test. 0 gives no intervals.
        optimizer: another optimiser than AdamW, as :class:`~diptych.model.module.AlignmentModule` has it. ``lr`` and
            ``weight_decay`` are then its own.
        schedule: another schedule than warm-up and cosine.

    Raises:
        ConfigError: an argument is out of its range, or the tower has no feature pyramid.
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
        optimizer: OptimizerFactory | None = None,
        schedule: ScheduleFactory | None = None,
    ) -> None:
        super().__init__(
            image,
            pictures=pictures,
            lr=lr,
            weight_decay=weight_decay,
            warmup=warmup,
            lr_floor=lr_floor,
            resamples=resamples,
            optimizer=optimizer,
            schedule=schedule,
        )
        if threshold is not None:
            remedy = "a number from 0 to 1, or null to have it chosen on val"
            check_number("Detect: threshold", threshold, least=0, most=1, remedy=remedy)
        if width < 1 or width % _GROUPS:
            raise ConfigError(f"Detect: width is {width}; give a multiple of {_GROUPS}")
        self.width, self.threshold = width, threshold
        self.detector: Detector | None = None
        self.register_buffer("chosen", torch.tensor(float("nan")))

    def configure_model(self) -> None:
        """Make the detector, when the data set has said how many findings there are.

        Raises:
            ConfigError: the images are too small for a pyramid.
        """
        remedy = f"more than {STRIDES[-1]}, or a level is one pixel"
        check_number("Detect: loading.image_size", self.data.loading.image_size, above=STRIDES[-1], remedy=remedy)
        super().configure_model()
        if self.detector is None:
            self.detector = Detector(self.image.pyramid_widths, len(self.label_names()), self.width)

    def forward(self, image: Tensor, truth: Sequence[Tensor] | None = None) -> Detections:
        """The boxes predicted in radiographs ``[B,1,H,V]``, or the losses where the true boxes ``[K,5]`` are given."""
        assert self.detector is not None  # configure_model comes first
        levels = self.image.pyramid(image)
        with torch.autocast(image.device.type, enabled=False):  # coordinates need float32
            detections: Detections = self.detector(
                [level.float() for level in levels], (image.shape[-2], image.shape[-1]), truth
            )
        return detections

    def _truth(self, batch: Batch, least: float = 0.0) -> list[Tensor]:
        """The true boxes ``[K,5]`` of each image, cut to the picture.

        Raises:
            ConfigError: the data set has no boxes.
        """
        if batch.boxes is None:
            raise ConfigError(
                f"Detect: {self.data.protocol} gives no boxes; choose data that have some (rsna, phantom)"
            )
        size = (batch.image.shape[-2], batch.image.shape[-1])
        return [clip_boxes(boxes, size, least) for boxes in batch.boxes]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The sum of the three losses, equally weighted."""
        # A box narrower than a pixel has no shape to learn, and its logarithm would dominate the loss.
        losses = self(batch.image, self._truth(batch, least=1.0)).losses
        loss = torch.stack(list(losses.values())).sum()
        values = {f"train/loss/{name.removeprefix('bbox_')}": value.detach() for name, value in losses.items()}
        self.log_dict({"train/loss": loss.detach(), **values}, prog_bar=True, batch_size=len(batch))
        return loss

    def begin(self) -> None:
        """Begin a pass, with no boxes yet.

        Raises:
            ConfigError: it is a test, and there is no threshold.
        """
        if self.trainer.testing and self.threshold is None and self.chosen.isnan():
            raise ConfigError("Detect: this checkpoint chose no threshold on val; give one as --model.threshold")
        self._rows = Rows(self.device, 3, 6, 5)

    def collect(self, batch: Batch) -> None:
        """Keep the predicted and true boxes of a batch, and draw the first test images."""
        detections, truth = self(batch.image), self._truth(batch)
        counts = [[len(predicted), len(true)] for predicted, true in zip(detections.boxes, truth, strict=True)]
        facts = torch.cat([torch.tensor(counts, device=self.device), detections.finite[:, None]], dim=1)
        self._rows.add(batch, facts, detections.boxes, truth)
        for row, file in self.picture_files(batch, "detection"):
            predicted = detections.boxes[row]
            confident = predicted[predicted[:, 5] >= self._threshold()]
            boxes = {"truth": truth[row].cpu().numpy(), "prediction": confident.cpu().numpy()}
            replace_picture(file, draw_boxes(batch.image[row, 0].cpu().numpy(), boxes, self.label_names()))

    def _threshold(self) -> float:
        return round(float(self.chosen), 2) if self.threshold is None else self.threshold

    def finish(self, stage: str, resamples: int) -> None:
        """Compute average precision and the challenge's score over the whole set. A validation chooses the threshold."""
        patients, (facts, predicted, true) = self._rows.gather()
        names, (n_predicted, n_true) = self.label_names(), facts[:, :2].long().T.tolist()
        predictions, truths = _split(predicted, n_predicted), _split(true, n_true)
        boxes = np.bincount(true[:, 4].long().numpy(), minlength=len(names))
        if not boxes.any() and not self.trainer.sanity_checking:
            raise DataError(f"Detect: no image of '{stage}' of {self.data.protocol} has a box")
        finite = facts[:, 2].bool()
        if stage == "val" and boxes.any() and finite.all() and not self.trainer.sanity_checking:
            self.chosen.fill_(detection.best_threshold(detection.match(predictions, truths, len(names))))
        shown = [part if sound else None for part, sound in zip(predictions, finite.tolist(), strict=True)]
        columns = {"boxes": Boxes(shown, names), "truth": Boxes(truths, names)}
        settings = {"findings": list(names), "confidence": self._threshold(), "resamples": resamples, "seed": 0}
        figures, _ = self.figures(self._rows, patients.numpy(), "detect", Predictions("boxes", columns, settings))
        self.results = bootstrap.as_metrics(figures, f"{stage}/detect/")
        size = self.data.loading.image_size
        assert self.detector is not None  # configure_model comes first
        self.protocol["tower"]["detector_parameters"] = sum(value.numel() for value in self.detector.parameters())
        self.protocol["detect"] = {
            "tower": self.how_trained(),
            "detector": "FCOS with a feature pyramid network",
            "measured": f"boxes of all images, cut to the input of {size} x {size} pixels",
            "ap": f"101 recalls, {detection.LIMIT} predictions of an image at most, confidence from {_FLOOR}",
            "mgca": f"as published: confidence from {detection.MGCA}; images without such a prediction or a box dropped",
            "threshold": f"{self.threshold}, fixed" if self.threshold is not None else "the highest challenge on val",
            "thresholds": {"challenge": self._threshold()},
            "challenge": "image without box: 0 where something is predicted, otherwise left out",
            "missed": "boxes that no prediction hits at IoU 0.40",
            "interval": bootstrap.interval_name(resamples),
            "images": len(patients),
            "without a box": n_true.count(0),
            "boxes": {name: int(number) for name, number in zip(names, boxes, strict=True)},
            "absent": [name for name, number in zip(names, boxes, strict=True) if not number],
        }


def _split(rows: Tensor, lengths: Sequence[int]) -> list[NDArray[np.float64]]:
    """The rows of each image, from those of all images and how many each has."""
    return [part.double().numpy() for part in torch.split(rows, list(lengths))]
