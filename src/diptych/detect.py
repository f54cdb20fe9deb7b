"""Detection: torchvision's Faster R-CNN on the image tower's feature pyramid, frozen or trained along."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FasterRCNN, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign

from diptych import detection, metrics
from diptych.classification import with_macro
from diptych.errors import ConfigError, DataError
from diptych.figures import draw_boxes
from diptych.image import ImageTower
from diptych.metrics import Metric
from diptych.task import Located, Rows
from diptych.types import Batch

__all__ = ["Detect", "Detector", "Found", "within"]

_RATIOS = (0.5, 1.0, 2.0)
_FLOOR = 0.05
"""Confidence below which nothing is predicted at all."""


def within(boxes: Tensor, size: tuple[int, int], least: float = 0.0) -> Tensor:
    """Boxes ``[K,5]`` cut to a picture of ``size`` ``(H,V)``; those left with no side above ``least`` pixels are left out."""
    high = boxes.new_tensor([size[1], size[0], size[1], size[0]])
    cut = torch.cat([boxes[:, :4].clamp(min=0).minimum(high), boxes[:, 4:]], dim=1)
    return cut[((cut[:, 2:4] - cut[:, :2]) > least).all(dim=1)]


class Found(NamedTuple):
    """What a detector says of a batch."""

    losses: dict[str, Tensor]
    """In training: of objectness and boxes, proposed and final."""
    boxes: list[Tensor]
    """Otherwise, of each image ``[k,6]``: x0, y0, x1, y1, finding's index, confidence."""
    finite: Tensor
    """``[B]`` bool: False where the features of an image, or any weight, are not numbers."""


class _Announced(nn.Module):
    """What Faster R-CNN asks of a backbone: its width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out_channels = width


class Detector(nn.Module):
    """Faster R-CNN (arXiv 1506.01497) with a feature pyramid network (arXiv 1612.03144), of torchvision, on given maps.

    Its own scaling and normalisation of images have no place here: the tower has done both.

    Args:
        pyramid: widths of the levels, finest first.
        findings: how many there are.
        image_size: of the network's input, pixels.
        anchors: side of each level's anchors, as a share of the image's.
        width: of the pyramid network.
        hidden: of the two layers that judge a region.
    """

    def __init__(
        self, pyramid: Sequence[int], findings: int, image_size: int, anchors: Sequence[float], width: int, hidden: int
    ) -> None:
        super().__init__()
        names = [str(level) for level in range(len(pyramid))]
        sizes = tuple((share * image_size,) for share in anchors)
        self.pyramid = FeaturePyramidNetwork(list(pyramid), width)
        # A region is pooled from the level whose anchors are nearest: one as large as the image from the coarsest.
        pool = MultiScaleRoIAlign(names, 7, 2, canonical_scale=image_size, canonical_level=5)
        built = FasterRCNN(
            _Announced(width),
            rpn_anchor_generator=AnchorGenerator(sizes, (_RATIOS,) * len(sizes)),
            box_roi_pool=pool,
            box_head=TwoMLPHead(width * 49, hidden),
            box_predictor=FastRCNNPredictor(hidden, findings + 1),
            box_score_thresh=_FLOOR,
            box_detections_per_img=detection.LIMIT,
        )
        self.rpn, self.roi_heads = built.rpn, built.roi_heads

    def forward(self, levels: Sequence[Tensor], size: tuple[int, int], truth: Sequence[Tensor] | None = None) -> Found:
        """From the levels ``[B,D,h,w]`` of images of ``size`` ``(H,V)``; in training with boxes ``[K,5]`` of each."""
        number = len(levels[0])
        maps = self.pyramid(OrderedDict((str(i), level) for i, level in enumerate(levels)))
        images = ImageList(levels[0].new_empty(number, 0, *size), [size] * number)  # says how large they are
        targets = None
        if truth is not None:
            targets = [{"boxes": boxes[:, :4], "labels": boxes[:, 4].long() + 1} for boxes in truth]
        proposals, proposed = self.rpn(images, maps, targets)
        found, judged = self.roi_heads(maps, proposals, images.image_sizes, targets)
        sound = torch.stack([parameter.isfinite().all() for parameter in self.parameters()]).all()
        finite = torch.stack([level.flatten(1).isfinite().all(1) for level in maps.values()]).all(0) & sound
        boxes = [
            torch.cat([one["boxes"], (one["labels"] - 1)[:, None].to(one["boxes"]), one["scores"][:, None]], dim=1)
            for one in found
        ]
        return Found({**proposed, **judged}, boxes, finite)


class Detect(Located):
    """Where findings are, as boxes: Faster R-CNN on the tower's feature pyramid, of a ResNet or of a ViT alike.

    The tower is trained along, lower layers more slowly where it has a ``layer_decay``, or ``frozen`` and then in evaluation
    mode. Metrics over the whole set, all its images, with a bootstrap over patients: ``detect/ap/<finding>|macro`` (COCO's,
    IoU 0.50:0.05:0.95), ``ap50`` and ``ap75`` at one IoU, ``ap40-75`` over 0.40:0.05:0.75; ``challenge``, the score of the
    RSNA challenge, and with it ``false_alarms``, the share of images without a box in which something is predicted, and
    ``missed``, the share of boxes that no prediction hits. These three need a threshold of confidence: unless it is given,
    it is chosen on ``val`` for the highest ``challenge`` and kept in the checkpoint.

    Args:
        image: the tower; its ``layer_decay``, ``frozen`` and ``freeze_layers`` hold here.
        threshold: of confidence, 0 to 1, for the challenge's score and the pictures; chosen on ``val``, if not given.
        anchors: side of each level's anchors, finest first, as a share of the image's; each in the proportions 1:2, 1:1, 2:1.
        width: of the pyramid network.
        hidden: of the two layers that judge a region.
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
        anchors: Sequence[float] = (0.06, 0.12, 0.25, 0.5),
        width: int = 128,
        hidden: int = 256,
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
        if len(anchors) != len(image.pyramid_widths) or min(anchors) <= 0:
            raise ConfigError(
                f"Detect: anchors is {list(anchors)}; give {len(image.pyramid_widths)} positive shares of the image's side"
            )
        for name, value in (("width", width), ("hidden", hidden)):
            if value < 1:
                raise ConfigError(f"Detect: {name} is {value}; give 1 or more")
        self.anchors, self.width, self.hidden, self.threshold = list(anchors), width, hidden, threshold
        self.detector: Detector | None = None
        self.register_buffer("chosen", torch.tensor(float("nan")))

    def configure_model(self) -> None:
        """The detector, once the data say how many findings there are and how large the images are."""
        super().configure_model()
        if self.detector is None:
            size = self.data.loading.image_size
            number = len(self.labelled())
            self.detector = Detector(
                self.image.pyramid_widths, number, size, self.anchors, width=self.width, hidden=self.hidden
            )

    def forward(self, image: Tensor, truth: Sequence[Tensor] | None = None) -> Found:
        """What is found in radiographs ``[B,1,H,V]``; in training with boxes ``[K,5]`` of each."""
        assert self.detector is not None  # configure_model comes first
        levels = self.image.pyramid(image)
        with torch.autocast(image.device.type, enabled=False):  # coordinates need float32
            found: Found = self.detector([level.float() for level in levels], (image.shape[-2], image.shape[-1]), truth)
        return found

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
        return [within(boxes, size, least) for boxes in batch.boxes]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The sum of the four losses."""
        # Below a pixel a box has no shape to learn; its logarithm would rule the loss.
        losses = self(batch.image, self._truth(batch, least=1.0)).losses
        loss = torch.stack(list(losses.values())).sum()
        values = {f"train/loss/{name.removeprefix('loss_')}": value.detach() for name, value in losses.items()}
        self.log_dict({"train/loss": loss.detach(), **values}, prog_bar=True, batch_size=len(batch))
        return loss

    def begin(self) -> None:
        """See :meth:`Tuned.begin`.

        Raises:
            ConfigError: there is no threshold for a test.
        """
        if self.trainer.testing and self.threshold is None and self.chosen.isnan():
            raise ConfigError("Detect: this checkpoint chose no threshold on val; give one as --model.threshold")
        self._rows = Rows(self.device, 3, 6, 5)

    def collect(self, batch: Batch) -> None:
        """See :meth:`Tuned.collect`."""
        found, truth = self(batch.image), self._truth(batch)
        numbers = [[len(shown), len(real)] for shown, real in zip(found.boxes, truth, strict=True)]
        facts = torch.cat([torch.tensor(numbers, device=self.device), found.finite[:, None]], dim=1)
        self._rows.add(batch, facts, found.boxes, truth)
        for row, file in self.pictured(batch, "detection"):
            kept = found.boxes[row][found.boxes[row][:, 5] >= self._threshold()]
            boxes = {"truth": truth[row].cpu().numpy(), "prediction": kept.cpu().numpy()}
            draw_boxes(batch.image[row, 0].cpu().numpy(), boxes, self.labelled()).save(file)

    def _threshold(self) -> float:
        return float(self.chosen) if self.threshold is None else self.threshold

    def finish(self, stage: str, resamples: int) -> None:
        """See :meth:`Tuned.finish`."""
        patients, (facts, shown, real) = self._rows.gather()
        names, (predicted, true) = self.labelled(), facts[:, :2].long().T.tolist()
        found = detection.match(_split(shown, predicted), _split(real, true), len(names))
        boxes = found.truths.sum(axis=0)
        if not boxes.any() and not self.trainer.sanity_checking:
            raise DataError(f"Detect: no image of '{stage}' of {self.data.protocol} has a box")
        broken = 0.0 if facts[:, 2].all() else float("nan")  # a diverged model has no figures
        if stage == "val" and boxes.any() and not broken and not self.trainer.sanity_checking:
            self.chosen.fill_(detection.best_threshold(found))
        weights = metrics.figure_and_bootstrap(patients.numpy(), resamples)
        present = {name: finding for finding, name in enumerate(names) if boxes[finding]}
        values: dict[str, dict[str, Any]] = {"ap": {}, "ap50": {}, "ap75": {}, "ap40-75": {}}
        for name, finding in present.items():
            precision = detection.average_precision(found, finding, weights) + broken
            for measure, part in (
                ("ap", detection.COCO),
                ("ap50", [2]),
                ("ap75", [7]),
                ("ap40-75", detection.CHALLENGE),
            ):
                values[measure][name] = precision[:, part].mean(axis=1)
        counted = {name: len(patients) for name in present}
        self.results = {f"{stage}/detect/{k}": v for k, v in with_macro(values, counted, len(patients)).items()}
        self.results |= {f"{stage}/detect/{k}": v for k, v in self._at_threshold(found, weights, broken).items()}
        size = self.data.loading.image_size
        assert self.detector is not None  # configure_model comes first
        self.protocol["tower"]["detector_parameters"] = sum(value.numel() for value in self.detector.parameters())
        self.protocol["detect"] = {
            "tower": self.how_trained(),
            "detector": "Faster R-CNN with a feature pyramid network",
            "measured": f"boxes of all images, cut to the input of {size} x {size} pixels",
            "ap": f"101 recalls, {detection.LIMIT} predictions of an image at most, confidence from {_FLOOR}",
            "threshold": "chosen on val for the highest challenge"
            if self.threshold is None
            else f"{self.threshold}, fixed",
            "thresholds": {"challenge": self._threshold()},
            "challenge": "image without box: 0 where something is predicted, otherwise left out",
            "missed": "boxes that no prediction hits at IoU 0.40",
            "interval": f"95 % percentile bootstrap over patients, {resamples} resamples",
            "images": len(patients),
            "without a box": int((found.truths.sum(axis=1) == 0).sum()),
            "boxes": {name: int(number) for name, number in zip(names, boxes, strict=True)},
            "absent": [name for name in names if name not in present],
        }
        self.log_dict({name: value.value for name, value in self.results.items()}, rank_zero_only=False)

    def _at_threshold(self, found: detection.Matches, weights: NDArray[Any], broken: float) -> dict[str, Metric]:
        """The score of the challenge, false alarms and misses."""
        scores = detection.challenge_scores(found, self._threshold())
        scored, number = ~np.isnan(scores), found.truths.sum(axis=1)
        normal, positive = number == 0, number > 0
        alarms = scored[normal]  # without a box an image is scored where something is predicted
        missed = detection.misses(found, self._threshold())[positive]
        drawn = weights[:, positive].astype(np.float64)
        share = np.divide(
            drawn @ missed, below := drawn @ number[positive], out=np.full(len(drawn), np.nan), where=below > 0
        )
        return {
            "challenge": Metric.of(metrics.mean(scores[scored], weights[:, scored]) + broken, int(scored.sum())),
            "false_alarms": Metric.of(metrics.mean(alarms, weights[:, normal]) + broken, int(normal.sum())),
            "missed": Metric.of(share + broken, int(number.sum())),
        }


def _split(rows: Tensor, numbers: Sequence[int]) -> list[NDArray[np.float64]]:
    """The rows of each image."""
    return [part.double().numpy() for part in torch.split(rows, list(numbers))]
