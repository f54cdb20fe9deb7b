"""Binary classification of several findings at once, over many weightings of the samples: zero-shot, probe, fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from diptych.metrics import measures as metrics
from diptych.metrics.bootstrap import Metric

__all__ = ["BinaryValues", "Threshold", "binary_values", "with_macro"]

Array = NDArray[Any]
Threshold = Literal["zero", "best_f1"]
"""Above which score a finding counts as present: 0, or the one with the best F1 on the evaluated split itself."""


@dataclass(frozen=True)
class BinaryValues:
    """Measures of each finding that has both classes."""

    values: dict[str, dict[str, Array]]
    """``values[measure][finding]`` ``[1+R]``: AUROC, accuracy and F1, of all samples and of each resample."""
    counts: dict[str, int]
    """Samples with a known label of each finding."""
    known: int
    """Samples with any."""
    facts: dict[str, Any]
    """For the protocol: thresholds, findings with one class only, labels left out."""

    def metrics(self) -> dict[str, Metric]:
        """``measure/macro`` and ``measure/<finding>``."""
        return with_macro(self.values, self.counts, self.known)


def binary_values(
    names: Sequence[str], scores: Array, labels: Array, weights: Array, threshold: Threshold = "zero"
) -> BinaryValues:
    """AUROC, accuracy and F1 of each finding over its known labels.

    Args:
        names: the findings, ``L`` of them.
        scores: ``[n,L]``, higher where it is thought to be there.
        labels: ``[n,L]``: 1 and 0 count; -1 (uncertain) and NaN (missing) are left out of that finding and counted.
        weights: ``[1+R,n]``, the first row all ones; see :mod:`diptych.metrics.measures`.
        threshold: see :data:`Threshold`.
    """
    values: dict[str, dict[str, Array]] = {"auroc": {}, "accuracy": {}, "f1": {}}
    counts, thresholds, absent, excluded = {}, {}, {}, {}
    for name, score, label in zip(names, scores.T, labels.T, strict=True):
        known = (label == 0) | (label == 1)
        excluded[name] = {"uncertain": int((label == -1).sum()), "missing": int(np.isnan(label).sum())}
        score, real, drawn = score[known], label[known] == 1, weights if known.all() else weights[:, known]
        if real.all() or not real.any():
            absent[name] = {"positive": int(real.sum()), "negative": int((~real).sum())}
            continue
        counts[name] = len(score)
        if threshold == "zero":
            thresholds[name], predicted = 0.0, score > 0
        else:
            thresholds[name] = metrics.best_f1_threshold(score, real)
            predicted = score >= thresholds[name]
        broken = np.where(np.isnan(score).any(), np.nan, 0.0)  # a diverged model has no accuracy either
        values["auroc"][name] = metrics.auroc(score, real, drawn)
        values["accuracy"][name] = metrics.accuracy(predicted, real, drawn) + broken
        values["f1"][name] = metrics.f1(predicted, real, drawn) + broken
    rule = "score > 0" if threshold == "zero" else "best F1 on the evaluated split itself"
    facts = {"threshold": rule, "thresholds": thresholds, "absent": absent, "excluded": excluded}
    counted = [i for i, name in enumerate(names) if name in counts]
    known_at_all = int(((labels[:, counted] == 0) | (labels[:, counted] == 1)).any(axis=1).sum())
    return BinaryValues(values, counts, known_at_all, facts)


def with_macro(values: Mapping[str, Mapping[str, Array]], counts: Mapping[str, int], n: int) -> dict[str, Metric]:
    """``values[measure][finding]`` ``[1+R]`` as metrics, with the mean over the findings as ``measure/macro``."""
    found = {}
    for measure, by_finding in values.items():
        if not by_finding:
            found[f"{measure}/macro"] = Metric(float("nan"), float("nan"), float("nan"), 0)
            continue
        table = np.stack(list(by_finding.values()))
        defined = ~np.isnan(table) if not np.isnan(table[:, 0]).any() else np.zeros_like(table, dtype=bool)
        total, present = np.where(defined, table, 0).sum(axis=0), defined.sum(axis=0)
        macro = np.divide(total, present, out=np.full(table.shape[1], np.nan), where=present > 0)
        found[f"{measure}/macro"] = Metric.of(macro, n)
        found |= {f"{measure}/{name}": Metric.of(row, counts[name]) for name, row in by_finding.items()}
    return found
