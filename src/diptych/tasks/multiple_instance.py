"""Weakly supervised localisation: a linear layer on regions, trained from labels of whole images."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from diptych.checks import check_number
from diptych.metrics.classification import ScoreThreshold
from diptych.model.optim import OptimizerFactory, ScheduleFactory
from diptych.tasks.mapped import MappedTask
from diptych.towers.image import ImageTower

__all__ = ["MultipleInstance", "top_share"]


def top_share(logits: Tensor, share: float) -> Tensor:
    """The mean ``[...]`` of the highest ``ceil(share N)`` values of ``[...,N]``.

    >>> top_share(Tensor([1.0, 4.0, 2.0, 0.0]), 0.5).item()
    3.0
    """
    return logits.topk(max(1, math.ceil(share * logits.shape[-1])), dim=-1).values.mean(-1)


class MultipleInstance(MappedTask):
    """Learns where a finding is from labels of whole images (multiple-instance learning).

    A linear layer gives each region of the frozen tower a logit for each finding. The logit of an image is the mean of the
    highest ``share`` of them. It is trained by the binary cross-entropy of the known labels, never on boxes or masks.

    - ``multiple_instance/auroc/<finding>|macro`` measures the logit of the image.
    - ``multiple_instance/map/pointing/<finding>|macro`` and so on measure the map of logits. They are those of zero-shot
      grounding (:class:`~diptych.evaluation.grounding.Grounding`), over each image and finding with a box or a mask, in a
      test.

    Args:
        image: the tower. It is frozen here, whatever its own setting.
        share: share of the regions whose logits are averaged, above 0 to 1.
        lr: peak learning rate of the linear layer. Its inputs are normalised, so any tower takes the same.
        weight_decay: weight decay of AdamW.
        warmup: number of steps of linear warm-up. Below 1, their share of all steps.
        lr_floor: learning rate at the end of the cosine, as a share of ``lr``.
        threshold: logit above which a finding counts as present, for accuracy, F1 and so on. ``zero`` is 0. ``best_f1`` is
            the best on the evaluated split itself, which is optimistic. ``val_f1``, ``val_youden`` and ``val_mcc`` are the
            best on ``val``, which a test reads first.
        resamples: number of bootstrap resamples of the test. 0 gives no intervals.
        optimizer: another optimiser than AdamW, as :class:`~diptych.model.module.AlignmentModule` has it. ``lr`` and
            ``weight_decay`` are then its own.
        schedule: another schedule than warm-up and cosine.

    Raises:
        ConfigError: an argument is out of its range.
    """

    name = "multiple_instance"
    monitor = "val/multiple_instance/auroc/macro"

    def __init__(
        self,
        image: ImageTower,
        *,
        share: float = 0.1,
        lr: float = 1e-2,
        weight_decay: float = 1e-6,
        warmup: float = 0.05,
        lr_floor: float = 0.01,
        threshold: ScoreThreshold = "zero",
        resamples: int = 1000,
        optimizer: OptimizerFactory | None = None,
        schedule: ScheduleFactory | None = None,
    ) -> None:
        super().__init__(
            image,
            threshold=threshold,
            lr=lr,
            weight_decay=weight_decay,
            warmup=warmup,
            lr_floor=lr_floor,
            resamples=resamples,
            optimizer=optimizer,
            schedule=schedule,
        )
        check_number("MultipleInstance: share", share, above=0, most=1)
        self.image.freeze()
        self.share = share
        self.norm = nn.LayerNorm(image.token_width, elementwise_affine=False)
        self.linear: nn.Linear | None = None

    def configure_model(self) -> None:
        """Make the linear layer, when the data set has said how many findings there are."""
        if self.linear is None:
            self.linear = nn.Linear(self.image.token_width, len(self.label_names()))

    def forward(self, image: Tensor) -> Tensor:
        """Logits of the regions ``[B,L,N]`` of radiographs ``[B,1,H,V]``."""
        assert self.linear is not None  # configure_model comes first
        logits: Tensor = self.linear(self.norm(self.image(image).tokens))
        return logits.transpose(1, 2).float()

    def scored(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The mean of the highest logits ``[B,L]`` of radiographs, and the logits of their regions ``[B,L,N]``."""
        logits = self(image)
        return top_share(logits, self.share), logits

    def facts(self) -> dict[str, Any]:
        """The share of the regions that makes an image's logit."""
        return {"share": self.share}
