"""Evaluators: what is measured on a validation or test set, through ``head.similarity`` alone.

An evaluator collects over the whole set, each sample once, and computes at the end; nothing is averaged over batches.
Samples are put in the order of their index and images are scored a fixed number at a time, so that neither the batch
size, nor the order, nor the number of processes changes a figure. Intervals are percentile bootstraps over patients
(``Batch.group``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diptych import distributed, metrics, scoring
from diptych.classification import binary_values, with_macro
from diptych.errors import ConfigError, DataError
from diptych.head import AlignmentHead
from diptych.metrics import Metric
from diptych.prompts import Entry, PromptSet, labelled, load_prompts
from diptych.types import Batch, Embedding

__all__ = ["EmbedText", "Evaluator", "Retrieval", "ZeroShot"]

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
        self._drawn = self._resamples if intervals else 0
        self._example = embed_text(["Normal."])  # so that a process without samples knows what and where it gathers
        self._device = self._example.pooled.device
        self._index: list[Tensor] = []
        self._group: list[Tensor] = []
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
        interval = f"{metrics.interval_name(self._resamples)}, seed {self._seed}"
        return {"interval": interval, "samples": self.count, **self._facts}

    def _valid(self, batch: Batch) -> Tensor:
        """Rows to count ``[n]``; remembers whose they are."""
        rows = batch.valid.nonzero().squeeze(1)
        self._index.append(batch.index[rows].cpu())
        self._group.append(batch.group[rows].cpu())
        return rows

    def _order(self, device: torch.device) -> tuple[Tensor, Tensor, Array]:
        """Order by index of this process's rows; then that of all processes' rows, gathered in the first order.

        With them the weights ``[1+R,n]`` of the samples in the second order, whose first row is all ones.
        """
        index, own = torch.cat([_NONE, *self._index]).sort(stable=True)
        order = scoring.gather_order(index, device, self.name)
        self.count = len(order)
        group = scoring.gather_rows(torch.cat([_NONE, *self._group])[own], device)
        return own, order, metrics.figure_and_bootstrap(group[order].numpy(), self._drawn, self._seed)

    def _labels_of(self, batch: Batch, rows: Tensor) -> Tensor:
        """The labels ``[n,L]`` of these rows."""
        if batch.labels is None:
            raise DataError(f"{self.name}: the data set names findings but its batches hold no labels")
        return batch.labels[rows].cpu()


class Retrieval(Evaluator):
    """Image-report retrieval over the whole set, in both directions.

    Equal texts count as one. For an image its own text must come first among the different texts; for a text, the best
    of its images among all images. Scores that tie with the right one count against it, so that a constant score is
    the worst and not the best. Metrics: ``image_to_text/r@k``, ``text_to_image/r@k``, their mean ``r@k``, and
    ``*/median_rank``. The bootstrap draws patients and keeps the ranks; a text goes with its first image.

    Args:
        ks: cut-offs of R@k.
        resamples: bootstrap resamples for the intervals; 0 for none.
        seed: of the bootstrap.
        keep_bytes: scores kept between the two passes over them; where they need more they are computed twice.
    """

    def __init__(
        self, ks: Sequence[int] = (1, 5, 10), resamples: int = 1000, seed: int = 0, keep_bytes: int = 2**30
    ) -> None:
        super().__init__("retrieval", resamples, seed)
        if not ks or min(ks) < 1:
            raise ConfigError(f"Retrieval: ks is {list(ks)}; it must hold at least one cut-off, each 1 or more")
        self._ks, self._keep_bytes = tuple(ks), keep_bytes

    def start(self, embed_text: EmbedText, findings: Sequence[str], intervals: bool = True) -> None:
        """See :meth:`Evaluator.start`."""
        super().start(embed_text, findings, intervals)
        self._images: list[Embedding] = []
        self._texts: list[Embedding] = [self._example.to("cpu").select(_NONE)]
        self._hashes: list[Tensor] = [_NONE]

    def update(self, batch: Batch, image: Embedding, text: Embedding | None, head: Head) -> None:
        """See :meth:`Evaluator.update`."""
        rows = self._valid(batch)
        if batch.text is None or text is None or len(rows) == 0:
            return
        self._images.append(image.select(rows).to("cpu"))
        self._texts.append(text.select(rows).to("cpu"))
        self._hashes.append(batch.text.hash[rows].cpu())

    @torch.no_grad()
    def compute(self, head: Head) -> dict[str, Metric]:
        """See :meth:`Evaluator.compute`."""
        device = self._device
        own, order, weights = self._order(device)
        total = int(distributed.sum_over_processes(torch.tensor(sum(map(len, self._hashes)), device=device)))
        if total == 0:
            self._facts["skipped"] = "the data set has no reports"
            return {}
        if total != self.count:
            raise DataError(f"retrieval: only {total} of {self.count} samples have a report; drop the others")
        own_hashes = torch.cat(self._hashes)[own]
        hashes = scoring.gather_rows(own_hashes, device)[order]
        unique, first = np.unique(hashes.numpy(), return_index=True)
        texts = scoring.gather_embedding(scoring.stack(self._texts).select(own), device)
        texts = texts.select(order[torch.from_numpy(first)])
        column = torch.searchsorted(torch.from_numpy(unique), own_hashes)

        images = scoring.stack(self._images).select(own) if self._images else None

        def own_blocks() -> Iterator[tuple[Tensor, Tensor]]:
            if images is not None:
                for rows, scores in scoring.blocks(head, images, texts, device, min(self.count, 4 * scoring.IMAGES)):
                    yield column[rows], scores

        keep = len(own) * len(unique) * 4 <= self._keep_bytes
        passes: Iterable[tuple[Tensor, Tensor]] = list(own_blocks()) if keep else own_blocks()
        image_ranks, text_ranks = scoring.ranks(passes, passes if keep else own_blocks(), len(unique), device)
        image_ranks = scoring.gather_rows(image_ranks, device)[order]
        self._facts |= {
            "images": self.count,
            "texts": len(unique),
            "duplicates": "equal reports (case and white space folded) count as one text; a text's best image counts",
            "ties": f"count against the model; scores within {scoring.TIE:g} of the largest are tied",
            "resampling": "ranks are held; a text goes with the patient of its first image",
        }
        self.doubt = ""
        if certain := [f"r@{k}" for k in self._ks if k >= len(unique)]:
            self.doubt = (
                f"{self.name}: {self.count} pairs hold {len(unique)} different reports, so image_to_text/"
                f"{', '.join(certain)} is 1 whatever the model; give more pairs, or Retrieval smaller ks"
            )
        found: dict[str, Metric] = {}
        sides = {
            "image_to_text": (image_ranks.numpy(), weights),
            "text_to_image": (text_ranks.numpy(), weights[:, first]),
        }
        recalls: dict[str, list[Array]] = {f"r@{k}": [] for k in self._ks}
        for side, (ranks, drawn) in sides.items():
            for k in self._ks:
                recalls[f"r@{k}"].append(metrics.recall_at(ranks, k, drawn))
                found[f"{side}/r@{k}"] = Metric.of(recalls[f"r@{k}"][-1], len(ranks))
            found[f"{side}/median_rank"] = Metric.of(metrics.median_rank(ranks, drawn), len(ranks))
        found |= {name: Metric.of(np.mean(both, axis=0), self.count) for name, both in recalls.items()}
        return found


class ZeroShot(Evaluator):
    """Zero-shot classification by prompts; see :mod:`diptych.prompts` for the sets.

    Binary sets: a finding's score is its mean similarity to the prompts for it less that to the prompts against it;
    labels 1 and 0 are used, uncertain (-1) and missing (NaN) ones are left out of that finding and counted. A finding
    of which the set has one class only is listed as ``absent`` and averaged into nothing. Multi-class sets: a class's
    score is its mean similarity; samples with exactly one of the classes are used, and a tie at the top is wrong.
    Metrics: ``auroc|accuracy|f1/<finding>`` and ``auroc|accuracy|f1/macro``; multi-class ``accuracy`` in place of
    ``accuracy/...``. The bootstrap draws patients and keeps the threshold.

    Args:
        prompts: name of a shipped prompt set, or path of a YAML file.
        threshold: above which a finding's score counts as present, for accuracy and F1: ``zero``, or ``best_f1``, the
            one with the best F1 on the evaluated split itself (optimistic, as is usual in the field).
        name: first part of the metrics' names; give different ones to evaluate several prompt sets.
        resamples: bootstrap resamples for the intervals; 0 for none.
        seed: of the bootstrap.
    """

    def __init__(
        self,
        prompts: str,
        threshold: Literal["zero", "best_f1"] = "zero",
        name: str = "zero_shot",
        resamples: int = 1000,
        seed: int = 0,
    ) -> None:
        super().__init__(name, resamples, seed)
        self.prompts: PromptSet = load_prompts(prompts)
        self._threshold = threshold

    def start(self, embed_text: EmbedText, findings: Sequence[str], intervals: bool = True) -> None:
        """See :meth:`Evaluator.start`.

        Raises:
            ConfigError: none of the findings (or not each of the classes) of the prompt set is labelled.
        """
        super().start(embed_text, findings, intervals)
        self._columns: dict[Entry, list[int]] = {}
        self._scores: list[Tensor] = []
        self._labels: list[Tensor] = []
        self._facts = dict(self.prompts.facts)
        if not findings:
            return
        self._columns = labelled(self.prompts, findings, self.name)
        missing = [entry.name for entry in self.prompts.entries if entry not in self._columns]
        derived = {e.name: [findings[i] for i in c] for e, c in self._columns.items() if e.name not in findings}
        self._facts |= {"not_labelled": missing, "any_of": derived}
        texts = [text for entry in self._columns for text in (*entry.positive, *entry.negative)]
        self._prompts = embed_text(texts).to("cpu")

    @torch.no_grad()
    def update(self, batch: Batch, image: Embedding, text: Embedding | None, head: Head) -> None:
        """See :meth:`Evaluator.update`."""
        rows = self._valid(batch)
        if not self._columns or len(rows) == 0:
            return
        labels, scores = self._labels_of(batch, rows), self._with_prompts(batch, rows, image, head)
        columns, at = [], 0
        for entry in self._columns:
            positive, negative = len(entry.positive), len(entry.negative)
            score = scores[:, at : at + positive].mean(dim=1)
            if negative:
                score = score - scores[:, at + positive : at + positive + negative].mean(dim=1)
            columns.append(score.float())  # hides the last bits, which depend on the size of the batch
            at += positive + negative
        self._scores.append(torch.stack(columns, dim=1))
        self._labels.append(torch.stack([_any(labels[:, c]) for c in self._columns.values()], dim=1))

    def _with_prompts(self, batch: Batch, rows: Tensor, image: Embedding, head: Head) -> Tensor:
        """Scores ``[n,P]`` of the batch's ``rows`` with every prompt, float64."""
        blocks = scoring.blocks(head, image.select(rows), self._prompts, self._device)
        return torch.cat([block for _, block in blocks]).double()

    def compute(self, head: Head) -> dict[str, Metric]:
        """See :meth:`Evaluator.compute`."""
        device = self._device
        own, order, weights = self._order(device)
        if not self._columns:
            self._facts["skipped"] = "the data set has no labels"
            return {}
        empty = torch.zeros(0, len(self._columns))
        scores = scoring.gather_rows(torch.cat([empty, *self._scores])[own], device)[order].numpy()
        labels = scoring.gather_rows(torch.cat([empty, *self._labels])[own], device)[order].numpy()
        names = [entry.name for entry in self._columns]
        if self.prompts.kind == "multiclass":
            return self._multiclass(names, scores, labels, weights)
        return self._binary(names, scores, labels, weights)

    def _binary(self, names: list[str], scores: Array, labels: Array, weights: Array) -> dict[str, Metric]:
        found = binary_values(names, scores, labels, weights, self._threshold)
        self._facts |= found.facts
        return found.metrics()

    def _multiclass(self, names: list[str], scores: Array, labels: Array, weights: Array) -> dict[str, Metric]:
        single = (labels == 1).sum(axis=1) == 1
        scores, real, drawn = scores[single], (labels[single] == 1).argmax(axis=1), weights[:, single]
        predicted, n = metrics.top_class(scores), len(scores)
        values: dict[str, dict[str, Array]] = {"auroc": {}, "f1": {}}
        absent = {}
        for i, name in enumerate(names):
            if not 0 < (real == i).sum() < n:
                absent[name] = {"positive": int((real == i).sum()), "negative": int((real != i).sum())}
                continue
            values["auroc"][name] = metrics.auroc(scores[:, i], real == i, drawn)
            values["f1"][name] = metrics.f1(predicted == i, real == i, drawn)
        self._facts |= {
            "ties": "a tie at the top is wrong",
            "absent": absent,
            "excluded": {"none of the classes or several": int((~single).sum())},
        }
        accuracy = {"accuracy": Metric.of(metrics.accuracy(predicted, real, drawn), n)}
        return accuracy | with_macro(values, dict.fromkeys(names, n), n)


def _any(labels: Tensor) -> Tensor:
    """Of ``[n,K]`` labels: 1 where any is 1, 0 where all are 0, else -1 where any is uncertain, else NaN; ``[n]``."""
    unknown = torch.where((labels == -1).any(dim=1), -1.0, torch.nan)
    return torch.where((labels == 1).any(dim=1), 1.0, torch.where((labels == 0).all(dim=1), 0.0, unknown))
