"""Classification by prompts, without training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from diptych.evaluation import scoring
from diptych.evaluation.base import Array, EmbedText, Evaluator, Head
from diptych.evaluation.prompts import Entry, PromptSet, label_columns, load_prompts
from diptych.metrics import measures as metrics
from diptych.metrics.bootstrap import Metric
from diptych.metrics.classification import binary_values, with_macro
from diptych.types import Batch, Embedding

__all__ = ["ZeroShot"]


class ZeroShot(Evaluator):
    """Zero-shot classification by prompts; see :mod:`diptych.evaluation.prompts` for the sets.

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
        """Begin a pass: find the columns that label each prompt entry, and embed the prompts.

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
        self._columns = label_columns(self.prompts, findings, self.name)
        missing = [entry.name for entry in self.prompts.entries if entry not in self._columns]
        derived = {e.name: [findings[i] for i in c] for e, c in self._columns.items() if e.name not in findings}
        self._facts |= {"not_labelled": missing, "any_of": derived}
        texts = [text for entry in self._columns for text in (*entry.positive, *entry.negative)]
        self._prompts = embed_text(texts).to("cpu")

    @torch.no_grad()
    def update(self, batch: Batch, image: Embedding, text: Embedding | None, head: Head) -> None:
        """Score the valid images with all prompts, and keep the scores and labels of each entry."""
        rows = self._samples.add(batch)
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
        """AUROC, accuracy and F1 of each finding or class, over the whole set. Collective."""
        weights = self._weights()
        if not self._columns:
            self._facts["skipped"] = "the data set has no labels"
            return {}
        empty = torch.zeros(0, len(self._columns))
        scores = self._samples.values(torch.cat([empty, *self._scores])).numpy()
        labels = self._samples.values(torch.cat([empty, *self._labels])).numpy()
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
