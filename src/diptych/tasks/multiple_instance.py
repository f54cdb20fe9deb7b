"""Weakly supervised localisation: a linear layer on regions, trained from labels of whole images."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from diptych import distributed
from diptych.checks import check_number
from diptych.evaluation.rows import Rows
from diptych.metrics import bootstrap
from diptych.metrics.localisation import MEASURES
from diptych.metrics.regions import at_pixels, in_picture, region_measures, regions_of
from diptych.predictions.base import Predictions
from diptych.predictions.kinds import named_regions
from diptych.tasks.base import TrainedTask, classified
from diptych.tasks.probe import known_bce
from diptych.towers.image import ImageTower
from diptych.types import Batch

__all__ = ["MultipleInstance", "top_share"]


def top_share(logits: Tensor, share: float) -> Tensor:
    """The mean ``[...]`` of the highest ``ceil(share N)`` values of ``[...,N]``.

    >>> top_share(torch.tensor([1.0, 4.0, 2.0, 0.0]), 0.5).item()
    3.0
    """
    return logits.topk(max(1, math.ceil(share * logits.shape[-1])), dim=-1).values.mean(-1)


class MultipleInstance(TrainedTask):
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
        resamples: number of bootstrap resamples of the test. 0 gives no intervals.

    Raises:
        ConfigError: an argument is out of its range.
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

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss."""
        assert batch.labels is not None  # label_names() has looked
        loss = distributed.mean_loss(*known_bce(top_share(self(batch.image), self.share), batch.labels))
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(batch))
        return loss

    def begin(self) -> None:
        """Begin a pass, with no logits, labels and measures of maps yet."""
        number = len(self.label_names())
        self._rows = Rows(self.device, number, number, number * (len(MEASURES) + 1))

    def collect(self, batch: Batch) -> None:
        """Keep the logits and labels of a batch, and in a test the measures of its maps."""
        assert batch.labels is not None  # as above
        logits = self(batch.image)
        self._rows.add(batch, top_share(logits, self.share), batch.labels, self._map_measures(batch, logits).flatten(1))

    def _map_measures(self, batch: Batch, logits: Tensor) -> Tensor:
        """The measures ``[B,L,6]`` of the map of each image and finding that has a region. They are NaN elsewhere."""
        findings = self.label_names()
        values = torch.full((len(batch), len(findings), len(MEASURES) + 1), torch.nan)
        if not self.trainer.testing or (batch.boxes is None and (batch.masks is None or len(findings) > 1)):
            return values
        rows = torch.arange(len(batch))
        for j in range(len(findings)):
            regions = regions_of(batch, rows, [j], findings, "MultipleInstance")
            for i in (regions.flatten(1).any(1) & batch.valid.cpu()).nonzero().squeeze(1).tolist():
                heat = at_pixels(logits[i : i + 1, j], *batch.image.shape[-2:])[0].cpu()
                measures = region_measures(heat, regions[i], in_picture(batch.image[i].cpu()))
                if measures is not None:
                    values[i, j] = torch.tensor(measures)
        return values

    def finish(self, stage: str, resamples: int) -> None:
        """Compute the AUROC of each finding over the whole set, and in a test the measures of the maps."""
        findings = self.label_names()
        patients, (scores, labels, map_values) = self._rows.gather()
        kept = classified(findings, scores, labels, resamples)
        figures, of_labels = self.figures(self._rows, patients.numpy(), "multiple_instance", kept)
        facts: dict[str, Any] = {
            "interval": bootstrap.interval_name(resamples),
            "trained on": "labels of whole images",
            "share": self.share,
            "samples": len(patients),
            "absent": of_labels["absent"],
            "excluded": of_labels["excluded"],
        }
        table = map_values.double().numpy().reshape(len(patients), len(findings), -1)
        of_regions = Predictions("regions", named_regions(findings, table), {"resamples": resamples, "seed": 0})
        maps, of_maps = self.figures(self._rows, patients.numpy(), "multiple_instance/map", of_regions)
        self.predictions = {"multiple_instance": kept}
        if of_maps["images"]:
            self.predictions["multiple_instance/map"] = of_regions
            figures |= {f"map/{name}": value for name, value in maps.items()}
            facts["images with a region"] = of_maps["images"]
            facts["chance"] = {f"map/{name}": value for name, value in of_maps["chance"].items()}
        elif stage == "test" and len(findings) > 1:
            facts["map"] = "not measured: no boxes, and a mask does not say which of several findings it is of"
        self.results = bootstrap.as_metrics(figures, f"{stage}/multiple_instance/")
        self.protocol["multiple_instance"] = facts
