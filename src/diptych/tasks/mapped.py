"""Base of the tasks that learn from labels of whole images, and whose map of each finding says where it was seen."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from diptych import distributed
from diptych.evaluation.rows import Rows
from diptych.metrics import bootstrap
from diptych.metrics.localisation import MEASURES
from diptych.metrics.regions import at_pixels, in_picture, region_measures, regions_of
from diptych.predictions.base import Predictions
from diptych.predictions.kinds import named_regions
from diptych.tasks.classifying import ClassifyingTask, threshold_facts
from diptych.tasks.losses import known_bce
from diptych.types import Batch

__all__ = ["MappedTask"]


class MappedTask(ClassifyingTask):
    """Base of the tasks that give each image a logit and a map of each finding. They are trained on labels alone.

    - ``<name>/auroc/<finding>|macro`` measures the logit of the image.
    - ``<name>/map/pointing/<finding>|macro`` and so on measure the map. They are those of zero-shot grounding
      (:class:`~diptych.evaluation.grounding.Grounding`), over each image and finding with a box or a mask, in a test.

    The arguments are those of :class:`~diptych.tasks.classifying.ClassifyingTask`.
    """

    name: ClassVar[str]
    """First part of the metrics' names."""

    @abstractmethod
    def scored(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``[B,L]`` of radiographs ``[B,1,H,V]``, and a map of each finding over the regions ``[B,L,N]``."""

    def logits(self, image: Tensor) -> Tensor:
        """The logits ``[B,L]`` of :meth:`scored`."""
        return self.scored(image)[0]

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What the task's figures depend on, for the protocol."""

    def draw(self, batch: Batch, logits: Tensor, maps: Tensor) -> None:
        """Draw what ``picture_files`` names of a test batch. A task without pictures draws nothing."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The binary cross-entropy of the known labels."""
        assert batch.labels is not None  # label_names() has looked
        loss = distributed.mean_loss(*known_bce(self.scored(batch.image)[0], batch.labels))
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(batch))
        return loss

    def begin(self) -> None:
        """Begin a pass, with no logits, labels and measures of maps yet."""
        number = len(self.label_names())
        self._rows = Rows(self.device, number, number, number * (len(MEASURES) + 1))

    def collect(self, batch: Batch) -> None:
        """Keep the logits and labels of a batch, and in a test the measures of its maps."""
        assert batch.labels is not None  # as above
        logits, maps = self.scored(batch.image)
        self._rows.add(batch, logits, batch.labels, self._map_measures(batch, maps).flatten(1))
        self.draw(batch, logits, maps)

    def _map_measures(self, batch: Batch, maps: Tensor) -> Tensor:
        """The measures ``[B,L,6]`` of the map of each image and finding that has a region. They are NaN elsewhere."""
        findings = self.label_names()
        values = torch.full((len(batch), len(findings), len(MEASURES) + 1), torch.nan)
        if not self.trainer.testing or (batch.boxes is None and (batch.masks is None or len(findings) > 1)):
            return values
        rows = torch.arange(len(batch))
        for j in range(len(findings)):
            regions = regions_of(batch, rows, [j], findings, type(self).__name__)
            for i in (regions.flatten(1).any(1) & batch.valid.cpu()).nonzero().squeeze(1).tolist():
                heat = at_pixels(maps[i : i + 1, j], *batch.image.shape[-2:])[0].cpu()
                measures = region_measures(heat, regions[i], in_picture(batch.image[i].cpu()))
                if measures is not None:
                    values[i, j] = torch.tensor(measures)
        return values

    def finish(self, stage: str, resamples: int) -> None:
        """Compute the AUROC of each finding over the whole set, and in a test the measures of the maps."""
        findings = self.label_names()
        patients, (scores, labels, map_values) = self._rows.gather()
        values = scores, labels
        figures, of_labels = self.classified(stage, self._rows, patients.numpy(), self.name, values, resamples)
        of_image = self.predictions
        facts: dict[str, Any] = {
            "interval": bootstrap.interval_name(resamples),
            "trained on": "labels of whole images",
            **self.facts(),
            "samples": len(patients),
            **threshold_facts(of_labels),
            "absent": of_labels["absent"],
            "excluded": of_labels["excluded"],
        }
        table = map_values.double().numpy().reshape(len(patients), len(findings), -1)
        of_regions = Predictions("regions", named_regions(findings, table), {"resamples": resamples, "seed": 0})
        maps, of_maps = self.figures(self._rows, patients.numpy(), f"{self.name}/map", of_regions)
        self.predictions = of_image
        if of_maps["images"]:
            self.predictions = {**of_image, f"{self.name}/map": of_regions}
            figures |= {f"map/{name}": value for name, value in maps.items()}
            facts["images with a region"] = of_maps["images"]
            facts["chance"] = {f"map/{name}": value for name, value in of_maps["chance"].items()}
        elif stage == "test" and len(findings) > 1:
            facts["map"] = "not measured: no boxes, and a mask does not say which of several findings it is of"
        self.results = bootstrap.as_metrics(figures, f"{stage}/{self.name}/")
        self.protocol[self.name] = facts
