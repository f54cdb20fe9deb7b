"""Evaluators: what is measured on a validation or test set, through ``head.similarity`` alone.

An evaluator collects over the whole set, each sample once, and computes at the end; nothing is averaged over batches.
Samples are put in the order of their index and images are scored a fixed number at a time, so that neither the batch
size, nor the order, nor the number of processes changes a figure. Intervals are percentile bootstraps over patients
(``Batch.group``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from diptych.errors import ConfigError, DataError
from diptych.evaluation.rows import SampleOrder
from diptych.head import AlignmentHead
from diptych.metrics import bootstrap
from diptych.metrics.bootstrap import Metric
from diptych.types import Batch, Embedding

__all__ = ["EmbedText", "Evaluator"]

EmbedText = Callable[[list[str]], Embedding]
Head = AlignmentHead[Any]
Array = NDArray[Any]

_NONE = torch.zeros(0, dtype=torch.int64)


class Evaluator(ABC):
    """One way to evaluate. A pass is ``start``, any number of ``update``, then ``compute`` on every process.

    Args:
        name: first part of the metrics' names; different for each evaluator of a run.
        resamples: bootstrap resamples for the intervals; 0 for none (NaN).
        seed: of the bootstrap.
    """

    name: str
    """First part of the metrics' names."""
    embed_image: Callable[[Tensor], Embedding] | None = None
    """Embeds uint8 images ``[B,1,H,V]`` with the model as it is now; the module gives it before each pass."""
    count: int
    """Samples counted over all processes; known after ``compute``."""
    doubt: str = ""
    """Why figures of the last ``compute`` say nothing of the model, if some do; told in one line."""

    def __init__(self, name: str, resamples: int = 1000, seed: int = 0) -> None:
        if resamples < 0:
            raise ConfigError(f"{name}: resamples is {resamples}; it must be 0 (no intervals) or more")
        self.name, self._resamples, self._seed = name, resamples, seed
        self._facts: dict[str, Any] = {}
        self.count = 0

    def start(self, embed_text: EmbedText, findings: Sequence[str], intervals: bool = True) -> None:
        """Begin a pass over a set, forgetting the last one.

        Args:
            embed_text: embeds texts with the model as it is now.
            findings: names of the columns of ``Batch.labels``; empty where the data set has no labels.
            intervals: bootstrap intervals too; within training they only cost time.
        """
        self._resamples_here = self._resamples if intervals else 0
        self._example = embed_text(["Normal."])  # so that a process without samples knows what and where it gathers
        self._device = self._example.pooled.device
        self._samples = SampleOrder(self._device, self.name)
        self._facts = {}
        self.count = 0

    @abstractmethod
    def update(self, batch: Batch, image: Embedding, text: Embedding | None, head: Head) -> None:
        """Take in a batch and its embeddings; rows with ``batch.valid`` False are left out."""

    @abstractmethod
    def compute(self, head: Head) -> dict[str, Metric]:
        """The metrics of the whole set, the same on every process. Collective: every process must call it.

        Empty where the set holds nothing to evaluate; ``protocol["skipped"]`` then says why.

        Raises:
            DataError: a sample was counted twice.
        """

    @property
    def protocol(self) -> dict[str, Any]:
        """How the figures were made, for ``results.json``; complete after ``compute``."""
        interval = f"{bootstrap.interval_name(self._resamples)}, seed {self._seed}"
        return {"interval": interval, "samples": self.count, **self._facts}

    def _weights(self) -> Array:
        """Weights ``[1+R,n]`` of all processes' samples in order, whose first row is all ones. Collective."""
        group = self._samples.gather()
        self.count = len(group)
        return bootstrap.figure_and_bootstrap(group.numpy(), self._resamples_here, self._seed)

    def _labels_of(self, batch: Batch, rows: Tensor) -> Tensor:
        """The labels ``[n,L]`` of these rows."""
        if batch.labels is None:
            raise DataError(f"{self.name}: the data set names findings but its batches hold no labels")
        return batch.labels[rows].cpu()
