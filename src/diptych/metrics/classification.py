"""Figures of binary classification, for several findings at once and many weightings of the samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from diptych.metrics import measures as metrics
from diptych.metrics.bootstrap import Draws, Interval
from diptych.metrics.curves import AT, brier, calibration_error, curve_figures
from diptych.metrics.decisions import CRITERIA, Criterion, best_threshold, decision_figures, matthews
from diptych.metrics.delong import Spread, components
from diptych.metrics.few import intervals

__all__ = ["VAL", "BinaryValues", "ScoreThreshold", "Threshold", "binary_values", "class_values", "with_macro"]

Array = NDArray[Any]
Threshold = Literal["zero", "half", "best_f1", "val_f1", "val_youden", "val_mcc"]
"""The score above which a finding counts as present.

It is 0, or 0.5, or the one with the best F1 on the evaluated split itself, or the one that is best on ``val`` by F1, Youden's
index or MCC.
"""
ScoreThreshold = Literal["zero", "best_f1", "val_f1", "val_youden", "val_mcc"]
"""The same of scores and logits, whose middle is 0."""
VAL: dict[str, Criterion] = {"val_f1": "f1", "val_youden": "youden", "val_mcc": "mcc"}
"""What a threshold of ``val`` is chosen by."""
_FIXED = {"zero": (0.0, "score > 0"), "half": (0.5, "score > 0.5")}


@dataclass(frozen=True)
class BinaryValues:
    """Figures of each finding that has both classes."""

    values: dict[str, dict[str, Array]]
    """``values[measure][finding]`` ``[1+R]``: the figure of all samples, then that of each resample."""
    counts: dict[str, int]
    """How many samples have a known label of each finding."""
    known: int
    """How many samples have a known label of any of them."""
    facts: dict[str, Any]
    """For the protocol: thresholds, findings with one class only, labels left out."""
    spreads: dict[str, Spread]
    """How the AUROC of each finding varies with the patients."""

    def figures(self) -> dict[str, Draws]:
        """The same, named ``measure/macro`` and ``measure/<finding>``."""
        few = intervals(self.spreads, self.values)
        return with_macro(self.values, self.counts, self.known, few, self.spreads)


def binary_values(
    names: Sequence[str],
    scores: Array,
    labels: Array,
    weights: Array,
    threshold: Threshold = "zero",
    *,
    chosen: Mapping[str, float | None] | None = None,
    probabilities: Array | None = None,
    group: Array | None = None,
    at: float = AT,
) -> BinaryValues:
    """Figures of each finding over its known labels.

    They are those of :func:`~diptych.metrics.curves.curve_figures` and
    :func:`~diptych.metrics.decisions.decision_figures`, and ``accuracy`` and ``f1``. Probabilities also have ``brier`` and
    ``ece``.

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
        chosen: the threshold of each finding, if it was chosen on ``val``. A score as high as it counts. A finding without
            one (None) has no figures of decisions.
        probabilities: ``[n,L]``, 0 to 1.
        group: the patients ``[n]``. With them, findings of few patients have other intervals (:mod:`diptych.metrics.few`).
        at: specificity at which the sensitivity is measured, and the reverse.
    """
    values: dict[str, dict[str, Array]] = {}
    counts, thresholds, absent, excluded, spreads = {}, {}, {}, {}, {}
    member = None if group is None else np.unique(group, return_inverse=True)[1]
    for i, (name, score, label) in enumerate(zip(names, scores.T, labels.T, strict=True)):
        known = (label == 0) | (label == 1)
        excluded[name] = {"uncertain": int((label == -1).sum()), "missing": int(np.isnan(label).sum())}
        score, positive, own = score[known], label[known] == 1, weights if known.all() else weights[:, known]
        if positive.all() or not positive.any():
            absent[name] = {"positive": int(positive.sum()), "negative": int((~positive).sum())}
            continue
        counts[name] = len(score)
        diverged = np.where(np.isnan(score).any(), np.nan, 0.0)  # a diverged model has no accuracy either
        found = curve_figures(score, positive, own, at)
        thresholds[name] = _threshold(score, positive, threshold, None if chosen is None else chosen.get(name))
        if (level := thresholds[name]) is not None:
            predicted = score > level if threshold in _FIXED else score >= level
            found |= {
                "accuracy": metrics.accuracy(predicted, positive, own),
                "f1": metrics.f1(predicted, positive, own),
            }
            found |= decision_figures(predicted, positive, own)
        if probabilities is not None:
            of_name = probabilities[known, i]
            found |= {"brier": brier(of_name, positive, own), "ece": calibration_error(of_name, positive, own)}
        for measure, value in found.items():
            values.setdefault(measure, {})[name] = value + diverged
        if member is not None and not np.isnan(score).any() and len(weights) > 1:
            spreads[name] = Spread.of(components(score, positive), positive, member[known], int(member.max()) + 1)
    order = [measure for measure in _ORDER if measure in values] + [m for m in values if m not in _ORDER]
    facts = {"threshold": _rule(threshold), "thresholds": thresholds, "absent": absent, "excluded": excluded}
    counted = [i for i, name in enumerate(names) if name in counts]
    known_at_all = int(((labels[:, counted] == 0) | (labels[:, counted] == 1)).any(axis=1).sum())
    by_measure = {m: values[m] for m in order} if values else {m: {} for m in _ORDER}
    return BinaryValues(by_measure, counts, known_at_all, facts, spreads)


_ORDER = ("auroc", "accuracy", "f1")
"""The measures that come first, and are undefined rather than left out where there is no finding."""


def _threshold(score: Array, positive: Array, rule: Threshold, chosen: float | None) -> float | None:
    if rule in VAL:
        return chosen
    return _FIXED[rule][0] if rule in _FIXED else best_threshold(score, positive)


def _rule(threshold: Threshold) -> str:
    """A threshold in words, with the split that it was chosen on."""
    if threshold in VAL:
        return f"{CRITERIA[VAL[threshold]]} on val"
    return _FIXED[threshold][1] if threshold in _FIXED else "best F1 on the evaluated split itself"


def class_values(
    names: Sequence[str], scores: Array, labels: Array, weights: Array, group: Array | None = None
) -> tuple[dict[str, Draws], dict[str, Any]]:
    """Figures of each class and of all, over the samples that have exactly one of the classes.

    >>> figures, facts = class_values(["a", "b"], np.array([[0.9, 0.1], [0.2, 0.8]]), np.eye(2), np.ones((1, 2)))
    >>> figures["accuracy"].values.tolist()
    [1.0]

    Args:
        names: the classes, ``L`` of them.
        scores: ``[n,L]``. The highest is the predicted class. A tie at the top is wrong.
        labels: ``[n,L]``. 1 is the sample's class.
        weights: ``[1+R,n]``, how often each sample counts. The first row is all ones.
        group: the patients ``[n]``. With them, classes of few patients have other intervals (:mod:`diptych.metrics.few`).

    Returns:
        ``accuracy``, ``balanced_accuracy`` (the mean recall of the classes), ``mcc``, then for each class against the others
        ``f1`` and those of :func:`~diptych.metrics.curves.curve_figures`, and facts for the protocol.
    """
    single = (labels == 1).sum(axis=1) == 1
    scores, true, weights = scores[single], (labels[single] == 1).argmax(axis=1), weights[:, single]
    predicted, n = metrics.top_class(scores), len(scores)
    values: dict[str, dict[str, Array]] = {"auroc": {}, "f1": {}}
    absent, spreads, recalls = {}, {}, []
    member = None if group is None else np.unique(group, return_inverse=True)[1]
    for i, name in enumerate(names):
        own = true == i
        positive = int(own.sum())
        if positive:
            recalls.append(metrics.mean((predicted == i)[own], weights[:, own]))
        if not 0 < positive < n:
            absent[name] = {"positive": positive, "negative": n - positive}
            continue
        found = {**curve_figures(scores[:, i], own, weights), "f1": metrics.f1(predicted == i, own, weights)}
        for measure, value in found.items():
            values.setdefault(measure, {})[name] = value
        if member is not None and not np.isnan(scores[:, i]).any() and len(weights) > 1:
            spreads[name] = Spread.of(components(scores[:, i], own), own, member[single], int(member.max()) + 1)
    facts = {
        "ties": "a tie at the top is wrong",
        "absent": absent,
        "excluded": {"none of the classes or several": int((~single).sum())},
    }
    instead = intervals(spreads, ("balanced_accuracy", "mcc", *values))
    each = np.stack(recalls) if recalls else np.full((1, len(weights)), np.nan)
    of_all = {
        "accuracy": Draws(metrics.accuracy(predicted, true, weights), n),
        "balanced_accuracy": Draws(each.mean(axis=0), n, instead.get("balanced_accuracy", {}).get("macro")),
        "mcc": Draws(matthews(predicted, true, len(names), weights), n, instead.get("mcc", {}).get("macro")),
    }
    return of_all | with_macro(values, dict.fromkeys(names, n), n, instead, spreads), facts


def with_macro(
    values: Mapping[str, Mapping[str, Array]],
    counts: Mapping[str, int],
    n: int,
    instead: Mapping[str, Mapping[str, Interval]] | None = None,
    spreads: Mapping[str, Spread] | None = None,
) -> dict[str, Draws]:
    """Figures of each finding, and their mean over the findings as ``measure/macro``.

    >>> values = {"f1": {"Edema": np.array([0.5]), "Nodule": np.array([1.0])}}
    >>> {name: draws.values[0].item() for name, draws in with_macro(values, {"Edema": 9, "Nodule": 9}, 9).items()}
    {'f1/macro': 0.75, 'f1/Edema': 0.5, 'f1/Nodule': 1.0}

    Args:
        values: ``values[measure][finding]`` ``[1+R]``: the figure of all samples, then that of each resample.
        counts: samples of each finding.
        n: samples of the mean.
        instead: ``instead[measure][finding or "macro"]``, the intervals that take the place of the bootstrap's.
        spreads: that of the AUROC of each finding, for differences.
    """
    by_name, instead = {}, instead or {}
    for measure, by_finding in values.items():
        if not by_finding:
            by_name[f"{measure}/macro"] = Draws(np.full(1, np.nan), 0)
            continue
        table = np.stack(list(by_finding.values()))
        defined = ~np.isnan(table) if not np.isnan(table[:, 0]).any() else np.zeros_like(table, dtype=bool)
        total, present = np.where(defined, table, 0).sum(axis=0), defined.sum(axis=0)
        macro = np.divide(total, present, out=np.full(table.shape[1], np.nan), where=present > 0)
        other = instead.get(measure, {})
        vary = spreads if measure == "auroc" and spreads is not None else {}
        by_name[f"{measure}/macro"] = Draws(macro, n, other.get("macro"), vary or None)
        for name, row in by_finding.items():
            own = {name: vary[name]} if name in vary else None
            by_name[f"{measure}/{name}"] = Draws(row, counts[name], other.get(name), own)
    return by_name
