"""Zero-shot classification by prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from diptych.evaluation import scoring
from diptych.evaluation.base import EmbedText, Evaluator, Head
from diptych.evaluation.prompts import Entry, PromptSet, label_columns, load_prompts
from diptych.metrics.bootstrap import Metric
from diptych.predictions.base import named
from diptych.types import Batch, Embedding

__all__ = ["ZeroShot"]


class ZeroShot(Evaluator):
    """Zero-shot classification by prompts. :mod:`diptych.evaluation.prompts` describes prompt sets.

    With a binary set, the score of a finding is the mean similarity to its positive prompts, minus the mean similarity to
    its negative prompts. Samples whose label is uncertain (-1) or missing (NaN) are left out of that finding and counted. A
    finding that has only one class in the data is listed as ``absent``, and is in no mean. The metrics are
    ``auroc|accuracy|f1/<finding>|macro``.

    With a multi-class set, the score of a class is the mean similarity to its prompts. Only samples with exactly one of the
    classes are used. A tie at the top is wrong. The metrics are ``auroc|f1/<class>|macro``, and one ``accuracy``.

    The bootstrap draws patients and keeps the threshold.

    Args:
        prompts: name of a shipped prompt set, or path of a YAML file.
        threshold: score above which a finding counts as present, for accuracy and F1. ``zero`` is 0. ``best_f1`` is the
            score with the best F1 on the evaluated split itself, which is optimistic, and usual in the field.
        name: first part of the metrics' names. Give different ones to evaluate several prompt sets.
        resamples: number of bootstrap resamples for the intervals. 0 gives none.
        seed: seed of the bootstrap.
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
            ConfigError: the data set labels none of the prompt set's findings, or not every one of its classes.
        """
        super().start(embed_text, findings, intervals)
        self._columns: dict[Entry, list[int]] = {}
        self._scores: list[Tensor] = []
        self._labels: list[Tensor] = []
        self._facts = dict(self.prompts.facts)
        if not findings:
            return
        self._columns = label_columns(self.prompts, findings, self.name)
        labels_of = {entry.name: [findings[i] for i in columns] for entry, columns in self._columns.items()}
        self._facts |= {
            "not_labelled": [entry.name for entry in self.prompts.entries if entry not in self._columns],
            "any_of": {name: labels for name, labels in labels_of.items() if name not in findings},
        }
        texts = [text for entry in self._columns for text in (*entry.positive, *entry.negative)]
        self._prompts = embed_text(texts).to("cpu")

    @torch.no_grad()
    def update(self, batch: Batch, image: Embedding, text: Embedding | None, head: Head) -> None:
        """Score the valid images with all prompts. Keep the score and the label of each entry."""
        rows = self._samples.add(batch)
        if not self._columns or len(rows) == 0:
            return
        labels, scores = self._labels_of(batch, rows), self._prompt_scores(batch, rows, image, head)
        columns, at = [], 0
        for entry in self._columns:
            positive, negative = len(entry.positive), len(entry.negative)
            score = scores[:, at : at + positive].mean(dim=1)
            if negative:
                score = score - scores[:, at + positive : at + positive + negative].mean(dim=1)
            columns.append(score.float())  # drops the last bits, which depend on the size of the batch
            at += positive + negative
        self._scores.append(torch.stack(columns, dim=1))
        self._labels.append(torch.stack([_any(labels[:, c]) for c in self._columns.values()], dim=1))

    def _prompt_scores(self, batch: Batch, rows: Tensor, image: Embedding, head: Head) -> Tensor:
        """The scores ``[n,P]``, in float64, of some rows of a batch with every prompt."""
        blocks = scoring.blocks(head, image.select(rows), self._prompts, self._device)
        return torch.cat([block for _, block in blocks]).double()

    def compute(self, head: Head) -> dict[str, Metric]:
        """AUROC, accuracy and F1 of each finding or class, over the whole set. Collective."""
        self._gather()
        if not self._columns:
            self._facts["skipped"] = "the data set has no labels"
            return {}
        empty = torch.zeros(0, len(self._columns))
        scores = self._samples.values(torch.cat([empty, *self._scores])).numpy()
        labels = self._samples.values(torch.cat([empty, *self._labels])).numpy()
        names = [entry.name for entry in self._columns]
        kind = "classes" if self.prompts.kind == "multiclass" else "binary"
        settings = {} if kind == "classes" else {"threshold": self._threshold}
        results, facts = self._figures(kind, named("score", names, scores) | named("label", names, labels), **settings)
        self._facts |= facts
        return results


def _any(labels: Tensor) -> Tensor:
    """Whether any of ``K`` labels ``[n,K]`` is positive, as one label ``[n]``.

    It is 1 where any is 1, and 0 where all are 0. Otherwise it is -1 where any is uncertain, and NaN where none is.
    """
    unknown = torch.where((labels == -1).any(dim=1), -1.0, torch.nan)
    return torch.where((labels == 1).any(dim=1), 1.0, torch.where((labels == 0).all(dim=1), 0.0, unknown))
