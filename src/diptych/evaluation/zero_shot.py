"""Zero-shot classification by prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import torch
from scipy.special import expit
from torch import Tensor

from diptych.checks import check_choice
from diptych.errors import ConfigError
from diptych.evaluation.asked import Asked
from diptych.evaluation.base import Array, EmbedText, Evaluator, Head
from diptych.evaluation.prompts import Entry, PromptSet, label_columns, load_prompts
from diptych.evaluation.protocols import (
    PROTOCOLS,
    ProtocolName,
    check_prompts,
    draw_prompts,
    join_sides,
    z_scores,
)
from diptych.metrics.bootstrap import Metric
from diptych.metrics.classification import VAL, ScoreThreshold
from diptych.metrics.decisions import thresholds_of
from diptych.predictions.base import Column, named
from diptych.types import Batch, Embedding

__all__ = ["ZeroShot"]


class ZeroShot(Evaluator):
    """Zero-shot classification by prompts. :mod:`diptych.evaluation.prompts` describes prompt sets.

    With a binary set, each finding has a score. Samples whose label is uncertain (-1) or missing (NaN) are left out of that
    finding and counted. A finding that has only one class in the data is listed as ``absent``, and is in no mean. The
    metrics are ``<measure>/<finding>|macro``, of the measures of :func:`~diptych.metrics.classification.binary_values`.

    With a multi-class set, each class has a score. Only samples with exactly one of the classes are used. A tie at the top
    is wrong. The metrics are those of
    :func:`~diptych.metrics.classification.class_values`.

    The protocol says what the score is (:data:`diptych.evaluation.protocols.PROTOCOLS`). ``diptych`` and ``gloria`` take the
    head's own score of image and prompt. ``chexzero``, ``biovil`` and ``convirt`` take the cosine of the pooled vectors, as
    published. So does any protocol with ``average_prompts``, as a mean of texts has no words.

    - ``diptych``: mean score over the positive prompts, minus that over the negative ones. Of a class it is the mean.
    - ``chexzero``: logit of the soft-max of two cosines, with the averaged vectors of the positive and the negative prompts.
    - ``gloria``: the highest score among drawn prompts. Then each side's or class's values are standardised over the test
      set. It is transductive: the score of an image depends on the other images.
    - ``biovil``: as ``chexzero``, with one prompt a side.
    - ``convirt``: the probability of the texts given the image, at temperature 0.1. The score is its logit, or of a class
      its logarithm.

    The bootstrap draws patients. It keeps the threshold, and the z-scores of ``gloria``.

    Args:
        prompts: name of a shipped prompt set, or path of a YAML file.
        threshold: score above which a finding counts as present, for accuracy, F1 and so on. ``zero`` is 0. ``best_f1`` is
            the score with the best F1 on the evaluated split itself, which is optimistic, and usual in the field. ``val_f1``,
            ``val_youden`` and ``val_mcc`` are the best scores on ``val``, which a test reads first.
        name: first part of the metrics' names. Give different ones to evaluate several prompt sets.
        resamples: number of bootstrap resamples for the intervals. 0 gives none.
        seed: seed of the bootstrap, and of the prompts that ``gloria`` draws.
        protocol: how the score is made.
        average_prompts: whether the text vectors of each side or class are averaged to one, of length 1. ``chexzero`` always
            does so.
        drawn_prompts: how many prompts of each side or class ``gloria`` draws, 1 or more. None is 5, as in its code.

    Raises:
        ConfigError: the protocol cannot ask the prompt set, or an argument is of another protocol.
    """

    def __init__(
        self,
        prompts: str,
        threshold: ScoreThreshold = "zero",
        name: str = "zero_shot",
        resamples: int = 1000,
        seed: int = 0,
        protocol: ProtocolName = "diptych",
        average_prompts: bool = False,
        drawn_prompts: int | None = None,
    ) -> None:
        super().__init__(name, resamples, seed)
        self.prompts: PromptSet = load_prompts(prompts)
        check_prompts(protocol, self.prompts, average_prompts, name)
        rule = PROTOCOLS[protocol]
        if drawn_prompts is not None and not rule.draws:
            raise ConfigError(
                f"{name}: drawn_prompts is {drawn_prompts}, and protocol {protocol} draws none; leave it out, or take gloria"
            )
        if rule.draws:
            self.prompts = draw_prompts(
                self.prompts, rule.draws if drawn_prompts is None else drawn_prompts, seed, name
            )
        check_choice(f"{name}: threshold", threshold, get_args(ScoreThreshold))
        self._threshold = threshold
        self._chosen: dict[str, float | None] | None = None
        self.wants_val = threshold in VAL and self.prompts.kind == "binary"
        self._protocol, self._rule = protocol, rule
        self._averages = average_prompts or rule.averages
        self._described: dict[str, Any] = {
            "protocol": protocol,
            "rule": rule.rule,
            "source": rule.source,
            "score": "cosine of the pooled vectors" if rule.pooled or self._averages else "the head's similarity",
            "text_vectors": "mean over a side's prompts, of length 1" if self._averages else "one a prompt",
        }

    def start(self, embed_text: EmbedText, findings: Sequence[str], intervals: bool = True) -> None:
        """Begin a pass: find the columns that label each prompt entry, and embed each different prompt once.

        Raises:
            ConfigError: the data set labels none of the prompt set's findings, or not every one of its classes.
        """
        super().start(embed_text, findings, intervals)
        self._columns: dict[Entry, list[int]] = {}
        self._scores: list[Tensor] = []
        self._labels: list[Tensor] = []
        self._facts |= self.prompts.facts | self._described
        if not findings:
            return
        self._columns = label_columns(self.prompts, findings, self.name)
        labels_of = {entry.name: [findings[i] for i in columns] for entry, columns in self._columns.items()}
        self._facts |= {
            "not_labelled": [entry.name for entry in self.prompts.entries if entry not in self._columns],
            "any_of": {name: labels for name, labels in labels_of.items() if name not in findings},
        }
        if self._rule.draws:
            self._facts["drawn"] = {entry.name: [*entry.positive, *entry.negative] for entry in self._columns}
        self._asked = Asked(list(self._columns), embed_text, self._protocol, self._averages, self._device)

    @torch.no_grad()
    def update(self, batch: Batch, image: Embedding, text: Embedding | None, head: Head) -> None:
        """Score the valid images with all prompts. Keep the score and the label of each entry."""
        rows = self._samples.add(batch)
        if not self._columns or len(rows) == 0:
            return
        labels, scores = self._labels_of(batch, rows), self._prompt_scores(batch, rows, image, head)
        kept = self._asked.sides(scores) if self._rule.transductive else self._asked.entry_scores(scores)
        self._scores.append(kept.float())  # drops the last bits, which depend on the size of the batch
        self._labels.append(torch.stack([_any(labels[:, c]) for c in self._columns.values()], dim=1))

    def _prompt_scores(self, batch: Batch, rows: Tensor, image: Embedding, head: Head) -> Tensor:
        """The scores ``[n,P]``, in float64, of some rows of a batch with every different text."""
        return self._asked.prompt_scores(image.select(rows), head)

    def compute(self, head: Head) -> dict[str, Metric]:
        """AUROC, accuracy and F1 of each finding or class, over the whole set. Collective."""
        self._gather()
        if not self._columns:
            self._facts["skipped"] = "the data set has no labels"
            return {}
        names, scores, labels = self._table()
        binary = self.prompts.kind == "binary"
        columns: dict[str, Column] = {**named("score", names, scores)}
        if binary and self._rule.probability:
            columns |= named("probability", names, expit(scores))
        columns |= named("label", names, labels)
        settings: dict[str, Any] = {"threshold": self._threshold} if binary else {}
        if self.wants_val:
            if self._chosen is None:
                raise ConfigError(
                    f"{self.name}: threshold is '{self._threshold}', and no 'val' was seen; call settle() after a pass over "
                    "it, or use threshold: zero"
                )
            settings["thresholds"] = self._chosen
        kind = "binary" if binary else "classes"
        results, facts = self._figures(kind, columns, **settings, protocol=self._protocol)
        self._facts |= facts
        return results

    def _table(self) -> tuple[list[str], Array, Array]:
        """Names of the findings, then scores and labels ``[n,L]`` of all processes, in order. Collective."""
        transductive = self._rule.transductive
        empty = torch.zeros(0, sum(self._asked.lengths) if transductive else len(self._columns))
        values = self._samples.values(torch.cat([empty, *self._scores]))
        if transductive:
            values = join_sides(self._protocol, z_scores(values.double()), self._asked.lengths).float()
            self._facts["transductive"] = f"z-scores over the {self.count} images of this test set, held in resamples"
        scores = values.numpy()
        labels = self._samples.values(torch.cat([torch.zeros(0, len(self._columns)), *self._labels])).numpy()
        return [entry.name for entry in self._columns], scores, labels

    def settle(self) -> None:
        """Choose the threshold of each finding on the samples seen so far. Collective."""
        if self.wants_val and self._columns:
            self._gather()
            self._chosen = thresholds_of(*self._table(), VAL[self._threshold])


def _any(labels: Tensor) -> Tensor:
    """Whether any of ``K`` labels ``[n,K]`` is positive, as one label ``[n]``.

    It is 1 where any is 1, and 0 where all are 0. Otherwise it is -1 where any is uncertain, and NaN where none is.
    """
    unknown = torch.where((labels == -1).any(dim=1), -1.0, torch.nan)
    return torch.where((labels == 1).any(dim=1), 1.0, torch.where((labels == 0).all(dim=1), 0.0, unknown))
