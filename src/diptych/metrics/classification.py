"""Figures of binary classification, for several findings at once and many weightings of the samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from diptych.metrics import measures as metrics
from diptych.metrics.bootstrap import Draws

__all__ = ["BinaryValues", "Threshold", "binary_values", "class_values", "with_macro"]

Array = NDArray[Any]
Threshold = Literal["zero", "half", "best_f1"]
"""The score above which a finding counts as present: 0, 0.5, or the one with the best F1 on the evaluated split itself."""
_FIXED = {"zero": (0.0, "score > 0"), "half": (0.5, "score > 0.5")}


@dataclass(frozen=True)
class BinaryValues:
    """AUROC, accuracy and F1 of each finding that has both classes."""

    values: dict[str, dict[str, Array]]
    """``values[measure][finding]`` ``[1+R]``: the figure of all samples, then that of each resample."""
    counts: dict[str, int]
    """How many samples have a known label of each finding."""
    known: int
    """How many samples have a known label of any of them."""
    facts: dict[str, Any]
    """For the protocol: thresholds, findings with one class only, labels left out."""

    def figures(self) -> dict[str, Draws]:
        """The same, named ``measure/macro`` and ``measure/<finding>``."""
        return with_macro(self.values, self.counts, self.known)


def binary_values(
    names: Sequence[str], scores: Array, labels: Array, weights: Array, threshold: Threshold = "zero"
) -> BinaryValues:
    """AUROC, accuracy and F1 of each finding over its known labels.

    >>> scores, labels = np.array([[0.4], [-0.2], [0.1]]), np.array([[1.0], [0.0], [np.nan]])
    >>> figures = binary_values(["Edema"], scores, labels, np.ones((1, 3)))
    >>> figures.values["auroc"]["Edema"].tolist(), figures.counts
    ([1.0], {'Edema': 2})

    Args:
        names: the findings, ``L`` of them.
        scores: ``[n,L]``. A higher score means that the finding is more likely there.
        labels: ``[n,L]``. 1 and 0 count. -1 (uncertain) and NaN (missing) are left out of that finding, and counted.
        weights: ``[1+R,n]``, how often each sample counts. The first row is all ones.
        threshold: above which score a finding counts as present.
    """
    values: dict[str, dict[str, Array]] = {"auroc": {}, "accuracy": {}, "f1": {}}
    counts, thresholds, absent, excluded = {}, {}, {}, {}
    for name, score, label in zip(names, scores.T, labels.T, strict=True):
        known = (label == 0) | (label == 1)
        excluded[name] = {"uncertain": int((label == -1).sum()), "missing": int(np.isnan(label).sum())}
        score, positive, own = score[known], label[known] == 1, weights if known.all() else weights[:, known]
        if positive.all() or not positive.any():
            absent[name] = {"positive": int(positive.sum()), "negative": int((~positive).sum())}
            continue
        counts[name] = len(score)
        if threshold in _FIXED:
            thresholds[name] = _FIXED[threshold][0]
            predicted = score > thresholds[name]
        else:
            thresholds[name] = metrics.best_f1_threshold(score, positive)
            predicted = score >= thresholds[name]
        diverged = np.where(np.isnan(score).any(), np.nan, 0.0)  # a diverged model has no accuracy either
        values["auroc"][name] = metrics.auroc(score, positive, own)
        values["accuracy"][name] = metrics.accuracy(predicted, positive, own) + diverged
        values["f1"][name] = metrics.f1(predicted, positive, own) + diverged
    rule = _FIXED[threshold][1] if threshold in _FIXED else "best F1 on the evaluated split itself"
    facts = {"threshold": rule, "thresholds": thresholds, "absent": absent, "excluded": excluded}
    counted = [i for i, name in enumerate(names) if name in counts]
    known_at_all = int(((labels[:, counted] == 0) | (labels[:, counted] == 1)).any(axis=1).sum())
    return BinaryValues(values, counts, known_at_all, facts)


def class_values(
    names: Sequence[str], scores: Array, labels: Array, weights: Array
) -> tuple[dict[str, Draws], dict[str, Any]]:
    """AUROC and F1 of each class, and the accuracy, over the samples that have exactly one of the classes.

    >>> figures, facts = class_values(["a", "b"], np.array([[0.9, 0.1], [0.2, 0.8]]), np.eye(2), np.ones((1, 2)))
    >>> figures["accuracy"].values.tolist()
    [1.0]

    Args:
        names: the classes, ``L`` of them.
        scores: ``[n,L]``. The highest is the predicted class. A tie at the top is wrong.
        labels: ``[n,L]``. 1 is the sample's class.
        weights: ``[1+R,n]``, how often each sample counts. The first row is all ones.

    Returns:
        ``accuracy``, ``auroc|f1/<class>|macro``, and facts for the protocol.
    """
    single = (labels == 1).sum(axis=1) == 1
    scores, true, weights = scores[single], (labels[single] == 1).argmax(axis=1), weights[:, single]
    predicted, n = metrics.top_class(scores), len(scores)
    values: dict[str, dict[str, Array]] = {"auroc": {}, "f1": {}}
    absent = {}
    for i, name in enumerate(names):
        positive = int((true == i).sum())
        if not 0 < positive < n:
            absent[name] = {"positive": positive, "negative": n - positive}
            continue
        values["auroc"][name] = metrics.auroc(scores[:, i], true == i, weights)
        values["f1"][name] = metrics.f1(predicted == i, true == i, weights)
    facts = {
        "ties": "a tie at the top is wrong",
        "absent": absent,
        "excluded": {"none of the classes or several": int((~single).sum())},
    }
    accuracy = {"accuracy": Draws(metrics.accuracy(predicted, true, weights), n)}
    return accuracy | with_macro(values, dict.fromkeys(names, n), n), facts


def with_macro(values: Mapping[str, Mapping[str, Array]], counts: Mapping[str, int], n: int) -> dict[str, Draws]:
    """Figures of each finding, and their mean over the findings as ``measure/macro``.

    >>> values = {"f1": {"Edema": np.array([0.5]), "Nodule": np.array([1.0])}}
    >>> {name: draws.values[0].item() for name, draws in with_macro(values, {"Edema": 9, "Nodule": 9}, 9).items()}
    {'f1/macro': 0.75, 'f1/Edema': 0.5, 'f1/Nodule': 1.0}

    Args:
        values: ``values[measure][finding]`` ``[1+R]``: the figure of all samples, then that of each resample.
        counts: samples of each finding.
        n: samples of the mean.
    """
    by_name = {}
    for measure, by_finding in values.items():
        if not by_finding:
            by_name[f"{measure}/macro"] = Draws(np.full(1, np.nan), 0)
            continue
        table = np.stack(list(by_finding.values()))
        defined = ~np.isnan(table) if not np.isnan(table[:, 0]).any() else np.zeros_like(table, dtype=bool)
        total, present = np.where(defined, table, 0).sum(axis=0), defined.sum(axis=0)
        macro = np.divide(total, present, out=np.full(table.shape[1], np.nan), where=present > 0)
        by_name[f"{measure}/macro"] = Draws(macro, n)
        by_name |= {f"{measure}/{name}": Draws(row, counts[name]) for name, row in by_finding.items()}
    return by_name
