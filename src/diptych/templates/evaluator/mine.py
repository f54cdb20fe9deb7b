"""An evaluator: how far an image's score with its own report is above its score with a fixed sentence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from diptych import Batch, Embedding, Evaluator, Metric
from diptych.errors import DataError
from diptych.evaluation.base import EmbedText, Head
from diptych.evaluation.rows import SampleOrder
from diptych.metrics import bootstrap

__all__ = ["Mine"]


class Mine(Evaluator):
    """The mean gap between the scores of the own report and of a sentence. The figure is ``gap``.

    Args:
        sentence: which fits no report.
        name: first part of the metrics' names.
        resamples: number of bootstrap resamples for the interval. 0 gives none.
    """

    def __init__(self, sentence: str = "No image.", name: str = "mine", resamples: int = 1000) -> None:
        super().__init__(name, resamples)
        self.sentence, self.resamples = sentence, resamples

    def start(self, embed_text: EmbedText, findings: Sequence[str], intervals: bool = True) -> None:
        """Forget the pass before."""
        super().start(embed_text, findings, intervals)
        self.draws = self.resamples if intervals else 0
        self.fixed = embed_text([self.sentence])
        self.samples = SampleOrder(self.fixed.pooled.device, self.name)
        self.gaps = [torch.zeros(0)]

    def update(self, batch: Batch, image: Embedding, text: Embedding | None, head: Head) -> None:
        """Keep a row a sample. Rows that only fill up the batch are left out."""
        if text is None:
            raise DataError(f"{self.name}: the data set has no reports; choose data that have some")
        rows = self.samples.add(batch)
        own = head.similarity(image.select(rows), text.select(rows)).diagonal()
        self.gaps.append((own - head.similarity(image.select(rows), self.fixed)[:, 0]).cpu())

    def compute(self, head: Head) -> dict[str, Metric]:
        """The mean over the samples of all processes, with an interval over patients."""
        patients = self.samples.gather().numpy()
        gaps = self.samples.values(torch.cat(self.gaps)).double().numpy()
        self.count, self.index = len(gaps), self.samples.index.numpy()
        weights = bootstrap.figure_and_bootstrap(patients, self.draws)
        return {"gap": Metric.of(weights @ gaps / weights.sum(1), len(gaps))}

    @property
    def protocol(self) -> dict[str, Any]:
        """All that the figure depends on."""
        return super().protocol | {"sentence": self.sentence}
