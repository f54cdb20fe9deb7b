"""The base of evaluators, which measure a model on a validation or test set through ``head.similarity`` alone.

An evaluator keeps what it needs of every sample, and computes over the whole set at the end. Nothing is averaged over
batches. Samples are put in the order of their index, and images are scored a fixed number at a time. So no metric depends
on the batch size, the order or the number of processes. Intervals are percentile bootstraps over patients
(``Batch.group``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diptych.checks import check_number
from diptych.errors import DataError
from diptych.evaluation.rows import SampleOrder, stack
from diptych.head import AlignmentHead
from diptych.metrics import bootstrap
from diptych.metrics.bootstrap import Metric
from diptych.predictions.base import Columns, Predictions
from diptych.predictions.kinds import with_draws
from diptych.types import Batch, Embedding

__all__ = ["NO_ROWS", "Array", "EmbedText", "Evaluator", "Head", "embed_once"]

EmbedText = Callable[[list[str]], Embedding]
Head = AlignmentHead[Any]
Array = NDArray[Any]

NO_ROWS = torch.zeros(0, dtype=torch.int64)
"""The numbers of no rows, to select an empty part of an embedding."""


def embed_once(embed_text: EmbedText) -> EmbedText:
    """A function like ``embed_text`` that embeds each different text once, whoever asks for it and how often.

    >>> asked = []
    >>> embed = embed_once(lambda texts: asked.extend(texts) or Embedding(torch.zeros(len(texts), 1)))
    >>> len(embed(["a", "b", "a"]).pooled), len(embed(["b", "c"]).pooled), asked
    (3, 2, ['a', 'b', 'c'])
    """
    known: dict[str, Embedding] = {}

    def embed(texts: list[str]) -> Embedding:
        new = [text for text in dict.fromkeys(texts) if text not in known]
        if new:
            embedded = embed_text(new)
            known.update((text, embedded.select(torch.tensor([i]))) for i, text in enumerate(new))
        return stack([known[text] for text in texts])

    return embed


class Evaluator(ABC):
    """Base of the evaluators. A pass is ``start``, any number of ``update``, then ``compute`` on every process.

    Args:
        name: first part of the metrics' names. Each evaluator of a run has its own.
        resamples: bootstrap resamples for the intervals; 0 for none (NaN).
        seed: seed of the bootstrap.
    """

    name: str
    """First part of the metrics' names."""
    embed_image: Callable[[Tensor], Embedding] | None = None
    """Function that embeds uint8 images ``[B,1,H,V]`` with the present model. The module sets it before each pass."""
    training_reports: Callable[[], list[tuple[str | None, str]]] | None = None
    """Function that gives the patient (None where not known) and the report of each training image. The module sets it."""
    embed_reports: EmbedText | None = None
    """Function that embeds texts and keeps none of them, for as many as training has. The module sets it."""
    count: int
    """Number of samples over all processes, known after ``compute``."""
    index: Array
    """Numbers ``[n]`` in the data set of the samples of the last pass, in order. Known after ``compute``."""
    predictions: Predictions | None
    """What ``compute`` kept of each of these samples, for ``predictions.csv``. None if it keeps nothing."""
    wants_val: bool = False
    """Whether a test must show ``val`` first, so that ``settle`` can choose thresholds on it."""
    doubt: str = ""
    """One line that says why some metrics of the last ``compute`` tell nothing of the model. Empty if all do."""

    def __init__(self, name: str, resamples: int = 1000, seed: int = 0) -> None:
        check_number(f"{name}: resamples", resamples, least=0, remedy="0 (no intervals) or more")
        self.name, self._resamples, self._seed = name, resamples, seed
        self._facts: dict[str, Any] = {}
        self.index, self.predictions = np.zeros(0, np.int64), None
        self.count = 0

    def start(self, embed_text: EmbedText, findings: Sequence[str], intervals: bool = True) -> None:
        """Begin a pass over a set, and forget the one before.

        Args:
            embed_text: function that embeds texts with the present model.
            findings: names of the columns of ``Batch.labels``, empty where the data set has no labels.
            intervals: whether to compute bootstrap intervals. Within training they only cost time.
        """
        self._resamples_here = self._resamples if intervals else 0
        self._example = embed_text(["Normal."])  # shape and device for a process without samples
        self._device = self._example.pooled.device
        self._samples = SampleOrder(self._device, self.name)
        self._facts = {}
        self.index, self.predictions = np.zeros(0, np.int64), None
        self.count = 0

    @abstractmethod
    def update(self, batch: Batch, image: Embedding, text: Embedding | None, head: Head) -> None:
        """Keep what ``compute`` needs of a batch and its embeddings. Rows where ``batch.valid`` is False are left out."""

    def settle(self) -> None:  # noqa: B027  # most evaluators choose nothing
        """Choose on the samples seen so far what later passes keep, where ``wants_val``. Collective."""

    @abstractmethod
    def compute(self, head: Head) -> dict[str, Metric]:
        """The metrics of the whole set, the same on every process. Every process must call it.

        They are empty where the set holds nothing to evaluate. ``protocol["skipped"]`` then says why.

        Raises:
            DataError: a sample was counted twice.
        """

    @property
    def protocol(self) -> dict[str, Any]:
        """All that the metrics depend on, for ``results.json``. It is complete after ``compute``."""
        interval = f"{bootstrap.interval_name(self._resamples)}, seed {self._seed}"
        return {"interval": interval, "samples": self.count, **self._facts}

    def _gather(self) -> None:
        """Put the samples of all processes in order, and count them. Collective."""
        self._group = self._samples.gather().numpy()
        self.index, self.count = self._samples.index.numpy(), len(self._group)

    def _weights(self) -> Array:
        """Weights ``[1+R,n]`` of the samples of all processes, in order. The first row is all ones. Collective."""
        self._gather()
        return bootstrap.figure_and_bootstrap(self._group, self._resamples_here, self._seed)

    def _figures(self, kind: str, columns: Columns, **settings: Any) -> tuple[dict[str, Metric], dict[str, Any]]:
        """Keep what was found of each sample, and compute the metrics from it. ``_gather`` comes first.

        Args:
            kind: a name of :data:`diptych.predictions.kinds.KINDS`.
            columns: of the samples of all processes, in order.
            settings: what else the metrics depend on, in plain values.

        Returns:
            Metrics by name, and facts for the protocol.
        """
        self.predictions = Predictions(
            kind, columns, {**settings, "resamples": self._resamples_here, "seed": self._seed}
        )
        figures, facts = with_draws(self.predictions, self._group)
        return bootstrap.as_metrics(figures), facts

    def _labels_of(self, batch: Batch, rows: Tensor) -> Tensor:
        """The labels ``[n,L]`` of some rows of a batch."""
        if batch.labels is None:
            raise DataError(f"{self.name}: the data set names findings but its batches hold no labels")
        return batch.labels[rows].cpu()
