"""Weakly supervised localisation: a linear layer on regions, trained from labels of whole images."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from diptych import distributed
from diptych.errors import ConfigError
from diptych.evaluation.rows import Rows
from diptych.metrics import bootstrap
from diptych.metrics.classification import binary_values
from diptych.metrics.localisation import MEASURES
from diptych.metrics.regions import at_pixels, in_picture, region_measures, region_metrics, regions_of
from diptych.tasks.base import TrainedTask
from diptych.tasks.probe import known_bce
from diptych.towers.image import ImageTower
from diptych.types import Batch

__all__ = ["MultipleInstance", "top_share"]


def top_share(logits: Tensor, share: float) -> Tensor:
    """Mean of the highest ``ceil(share N)`` of ``[...,N]``. One is the maximum, all are the mean.

    >>> top_share(torch.tensor([1.0, 4.0, 2.0, 0.0]), 0.5).item()
    3.0
    """
    return logits.topk(max(1, math.ceil(share * logits.shape[-1])), dim=-1).values.mean(-1)


class MultipleInstance(TrainedTask):
    """Where a finding is, learned from labels of whole images only (multiple-instance learning).

    A linear layer gives each region of the frozen tower a logit of each finding; an image's logit is the mean of its
    highest ``share`` of them, trained by the binary cross-entropy of the known labels. Boxes and masks are never trained on.
    Metrics: ``multiple_instance/auroc/<finding>|macro`` of the image's logit; and in the test, where the data have boxes or
    masks, those of zero-shot grounding (:class:`~diptych.evaluation.grounding.Grounding`) of the map of logits, as
    ``multiple_instance/map/pointing/<finding>|macro`` and so on, for each image and finding with a region.

    Args:
        image: the tower; frozen here, whatever it says.
        share: of the regions that make an image's logit, above 0 to 1.
        lr: peak, of the linear layer; its inputs are normalised, so it does not depend on the tower's scale.
        weight_decay: of AdamW.
        warmup: steps of linear warm-up, or its share of all steps where below 1.
        lr_floor: share of ``lr`` at the end of the cosine.
        resamples: of the bootstrap on the test; 0 for no intervals.

    Raises:
        ConfigError: an argument out of its range.
    """

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
        resamples: int = 1000,
    ) -> None:
        super().__init__(image, lr=lr, weight_decay=weight_decay, warmup=warmup, lr_floor=lr_floor, resamples=resamples)
        if not 0 < share <= 1:
            raise ConfigError(f"MultipleInstance: share is {share}; give a number above 0 and at most 1")
        self.image.freeze()
        self.share = share
        self.norm = nn.LayerNorm(image.token_width, elementwise_affine=False)
        self.linear: nn.Linear | None = None

    def configure_model(self) -> None:
        """The linear layer, once the data say how many findings there are."""
        if self.linear is None:
            self.linear = nn.Linear(self.image.token_width, len(self.labelled()))

    def forward(self, image: Tensor) -> Tensor:
        """Logits of the regions ``[B,L,N]`` of radiographs ``[B,1,H,V]``."""
        assert self.linear is not None  # configure_model comes first
        logits: Tensor = self.linear(self.norm(self.image(image).tokens))
        return logits.transpose(1, 2).float()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss."""
        assert batch.labels is not None  # labelled() has looked
        loss = distributed.mean_loss(*known_bce(top_share(self(batch.image), self.share), batch.labels))
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(batch))
        return loss

    def begin(self) -> None:
        """Begin a pass: logits, labels and the measures of maps are collected."""
        number = len(self.labelled())
        self._rows = Rows(self.device, number, number, number * (len(MEASURES) + 1))

    def collect(self, batch: Batch) -> None:
        """Collect the logits and labels of a batch; in a test the measures of its maps too."""
        assert batch.labels is not None  # as above
        logits = self(batch.image)
        self._rows.add(batch, top_share(logits, self.share), batch.labels, self._located(batch, logits).flatten(1))

    def _located(self, batch: Batch, logits: Tensor) -> Tensor:
        """Measures ``[B,L,6]`` of each image and finding that has a region (:func:`region_measures`), elsewhere NaN."""
        findings = self.labelled()
        values = torch.full((len(batch), len(findings), len(MEASURES) + 1), torch.nan)
        if not self.trainer.testing or (batch.boxes is None and (batch.masks is None or len(findings) > 1)):
            return values
        rows = torch.arange(len(batch))
        for j in range(len(findings)):
            regions = regions_of(batch, rows, [j], findings, "MultipleInstance")
            for i in (regions.flatten(1).any(1) & batch.valid.cpu()).nonzero().squeeze(1).tolist():
                heat = at_pixels(logits[i : i + 1, j], *batch.image.shape[-2:])[0].cpu()
                found = region_measures(heat, regions[i], in_picture(batch.image[i].cpu()))
                if found is not None:
                    values[i, j] = torch.tensor(found)
        return values

    def finish(self, stage: str, resamples: int) -> None:
        """AUROC of each finding over the whole set; in a test the measures of the maps too."""
        findings = self.labelled()
        patients, (scores, labels, located) = self._rows.gather()
        weights = bootstrap.figure_and_bootstrap(patients.numpy(), resamples)
        found = binary_values(findings, scores.numpy(), labels.numpy(), weights)
        results = {name: value for name, value in found.metrics().items() if name.startswith("auroc/")}
        facts: dict[str, Any] = {
            "interval": bootstrap.interval_name(resamples),
            "trained on": "labels of whole images",
            "share": self.share,
            "samples": len(patients),
            "absent": found.facts["absent"],
            "excluded": found.facts["excluded"],
        }
        table = located.double().numpy().reshape(len(patients), len(findings), -1)
        maps, of_maps = region_metrics(table, findings, weights)
        if of_maps["images"]:
            results |= {f"map/{name}": value for name, value in maps.items()}
            facts["images with a region"] = of_maps["images"]
            facts["chance"] = {f"map/{name}": value for name, value in of_maps["chance"].items()}
        elif stage == "test" and len(findings) > 1:
            facts["map"] = "not measured: no boxes, and a mask does not say which of several findings it is of"
        self.results = {f"{stage}/multiple_instance/{name}": value for name, value in results.items()}
        self.protocol["multiple_instance"] = facts
