"""Segmentation: a U-Net decoder on the feature pyramid of an image tower."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from diptych import distributed
from diptych.checks import check_number
from diptych.errors import ConfigError, DataError
from diptych.evaluation.rows import Rows
from diptych.files import replace_picture
from diptych.metrics import bootstrap
from diptych.model.optim import OptimizerFactory, ScheduleFactory
from diptych.predictions.base import Predictions
from diptych.results.drawing import draw_masks
from diptych.tasks.base import PyramidTask
from diptych.towers.image import ImageTower
from diptych.types import Batch

__all__ = ["Segment", "UNet", "dice_loss", "focal_loss", "overlaps"]

Floats = NDArray[np.float64]


def focal_loss(logits: Tensor, truth: Tensor, gamma: float = 2.0) -> Tensor:
    """The focal loss (arXiv 1708.02002): the mean over the pixels of ``-(1 - p)^gamma log p``.

    ``p`` is the predicted probability of the true class of a pixel.

    >>> focal_loss(torch.zeros(2), torch.tensor([0.0, 1.0]))
    tensor(0.1733)
    """
    entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    return ((1 - torch.exp(-entropy)) ** gamma * entropy).mean()


def dice_loss(logits: Tensor, truth: Tensor, smooth: float = 1.0) -> Tensor:
    """The Dice loss (arXiv 1606.04797): ``1 - (2 sum(p t) + smooth) / (sum(p) + sum(t) + smooth)``.

    The sums are over all pixels of the batch of all processes. A sum over one image would teach nothing where the image
    has no mask.

    >>> dice_loss(torch.full((4,), -100.0), torch.ones(4))
    tensor(0.8000)
    """
    predicted = logits.sigmoid()
    parts = torch.stack([(predicted * truth).sum(), predicted.sum() + truth.sum()])
    both, sizes = distributed.sum_with_gradient(parts)
    loss: Tensor = 1 - (2 * both + smooth) / (sizes + smooth)
    return loss


def overlaps(counts: Floats) -> tuple[Floats, Floats]:
    """Dice ``2 |P and T| / (|P| + |T|)`` and IoU ``|P and T| / |P or T|`` of each image.

    Both are 1 where truth and prediction are empty, and 0 where only one of them is.

    >>> overlaps(np.array([[2.0, 4.0, 4.0], [0.0, 0.0, 0.0]]))[0].tolist()
    [0.5, 1.0]

    Args:
        counts: numbers of pixels ``[n,3]``: in both, in the prediction, in the truth.

    Returns:
        Dice ``[n]`` and IoU ``[n]``.
    """
    both, predicted, true = counts.T
    total = predicted + true
    empty = total == 0
    dice = np.divide(2 * both, total, out=np.ones(len(counts)), where=~empty)
    iou = np.divide(both, total - both, out=np.ones(len(counts)), where=~empty)
    return dice, iou


class UNet(nn.Module):
    """U-Net decoder (arXiv 1505.04597) of segmentation-models-pytorch, from a feature pyramid to a map of logits.

    The decoder ends at half the size of the image. The logits are interpolated from there.

    Args:
        pyramid: widths of the levels, finest first.
        widths: widths of the blocks, coarsest first, one for each level.

    Raises:
        ConfigError: the library is not installed.
    """

    def __init__(self, pyramid: Sequence[int], widths: Sequence[int]) -> None:
        super().__init__()
        try:
            from segmentation_models_pytorch.base.initialization import initialize_decoder, initialize_head
            from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
        except ImportError as error:
            raise ConfigError(
                "Segment needs segmentation-models-pytorch: pip install 'diptych[seg]', or the library itself"
            ) from error
        self.decoder = UnetDecoder([0, *pyramid], list(widths), n_blocks=len(widths))
        self.last = nn.Conv2d(widths[-1], 1, 3, padding=1)
        initialize_decoder(self.decoder)
        initialize_head(self.last)

    def forward(self, levels: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Logits ``[B,H,V]`` at the ``size`` ``(H,V)``."""
        half = levels[0].new_empty(len(levels[0]), 0, *(-(-side // 2) for side in size))  # gives the last size
        logits = self.last(self.decoder([half, *levels]))
        return F.interpolate(logits, size, mode="bilinear").squeeze(1)


class Segment(PyramidTask):
    """Predicts the mask of a finding, with a U-Net on the tower's feature pyramid. The tower may be a ResNet or a ViT.

    The tower is trained along, unless it is ``frozen``. With a ``layer_decay`` its lower layers learn more slowly. The loss
    is ``focal_weight`` times the focal loss, plus the Dice loss.

    Metrics are computed for each image at the size of the network's input, padding included. They are averaged over the
    set, with a bootstrap over patients. A pixel is predicted where its probability is above 0.5.

    - ``segment/dice/positive`` and ``iou/positive`` are over the images with a mask.
    - ``segment/dice/all`` and ``iou/all`` are over all images. An image without a mask counts 1 if nothing is predicted in
      it, and 0 otherwise.

    Args:
        image: the tower. Its ``layer_decay``, ``frozen`` and ``freeze_layers`` hold here.
        widths: widths of the decoder's four blocks, coarsest first.
        focal_weight: weight of the focal loss beside the Dice loss. MGCA has 10.
        gamma: exponent of the focal loss. The higher it is, the less count pixels that are classified well.
        pictures: number of the first test images that are drawn into the run's ``figures``, with truth and prediction.
        lr: peak learning rate of the decoder and of the tower's top layer.
        weight_decay: weight decay of AdamW on filters.
        warmup: number of steps of linear warm-up. Below 1, their share of all steps.
        lr_floor: learning rate at the end of the cosine, as a share of ``lr``.
        resamples: number of bootstrap resamples of the test. 0 gives no intervals.
        optimizer: another optimiser than AdamW, as :class:`~diptych.model.module.AlignmentModule` has it. ``lr`` and
            ``weight_decay`` are then its own.
        schedule: another schedule than warm-up and cosine.

    Raises:
        ConfigError: an argument is out of its range, or the tower has no feature pyramid.
    """

    monitor = "val/segment/dice/positive"

    def __init__(
        self,
        image: ImageTower,
        *,
        widths: Sequence[int] = (256, 128, 64, 32),
        focal_weight: float = 10.0,
        gamma: float = 2.0,
        pictures: int = 8,
        lr: float = 5e-4,
        weight_decay: float = 1e-6,
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
        if len(widths) != len(image.pyramid_widths) or min(widths) < 1:
            raise ConfigError(f"Segment: widths is {list(widths)}; give {len(image.pyramid_widths)} positive numbers")
        for name, value in (("focal_weight", focal_weight), ("gamma", gamma)):
            check_number(f"Segment: {name}", value, least=0)
        self.focal_weight, self.gamma = focal_weight, gamma
        self.unet = UNet(image.pyramid_widths, widths)

    def forward(self, image: Tensor) -> Tensor:
        """Logits ``[B,H,V]`` of radiographs ``[B,1,H,V]``."""
        logits: Tensor = self.unet(self.image.pyramid(image), (image.shape[-2], image.shape[-1]))
        return logits.float()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss."""
        logits, truth = self(batch.image), self.masks_of(batch).float()
        focal, dice = focal_loss(logits, truth, self.gamma), dice_loss(logits, truth)
        loss = self.focal_weight * focal + dice
        values = {"train/loss": loss.detach(), "train/loss/focal": focal.detach(), "train/loss/dice": dice.detach()}
        self.log_dict(values, prog_bar=True, batch_size=len(batch))
        return loss

    def begin(self) -> None:
        """Begin a pass, with no pixels counted yet."""
        self._rows = Rows(self.device, 3)

    def collect(self, batch: Batch) -> None:
        """Count the pixels of each predicted mask, of each true mask and of their overlap. Draw the first test images."""
        logits, truth = self(batch.image), self.masks_of(batch)
        predicted = logits > 0  # probability above 0.5
        counts = torch.stack([x.flatten(1).sum(1) for x in (predicted & truth, predicted, truth)], dim=1).float()
        counts[~logits.isfinite().flatten(1).all(1), :2] = torch.nan  # a diverged model has no overlap
        self._rows.add(batch, counts)
        for row, file in self.picture_files(batch, "segmentation"):
            masks = {"truth": truth[row].cpu().numpy(), "prediction": predicted[row].cpu().numpy()}
            replace_picture(file, draw_masks(batch.image[row, 0].cpu().numpy(), masks))

    def finish(self, stage: str, resamples: int) -> None:
        """Compute Dice and IoU over the whole set."""
        patients, (pixels,) = self._rows.gather()
        counts = pixels.double().numpy()
        positive = counts[:, 2] != 0
        if not positive.any() and not self.trainer.sanity_checking:
            raise DataError(f"Segment: no image of '{stage}' of {self.data.protocol} has a mask that is not empty")
        dice, iou = overlaps(counts)
        columns = {"dice": dice, "iou": iou, "pixels": counts[:, 2]}
        kept = Predictions("overlap", columns, {"resamples": resamples, "seed": 0})
        figures, _ = self.figures(self._rows, patients.numpy(), "segment", kept)
        self.results = bootstrap.as_metrics(figures, f"{stage}/segment/")
        size = self.data.loading.image_size
        self.protocol["tower"]["decoder_parameters"] = sum(parameter.numel() for parameter in self.unet.parameters())
        self.protocol["segment"] = {
            "tower": self.how_trained(),
            "decoder": "U-Net",
            "measured": f"each image at {size} x {size} pixels, padding included, then the mean over images",
            "threshold": "probability above 0.5, fixed",
            "empty": "no mask and nothing predicted: 1; no mask and something predicted: 0",
            "interval": bootstrap.interval_name(resamples),
            "images": len(patients),
            "positive": int(positive.sum()),
        }
