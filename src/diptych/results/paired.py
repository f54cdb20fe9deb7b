"""Differences of two variants, paired: over seeds by a t-test, and over studies by a bootstrap of both together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from diptych.errors import DataError
from diptych.metrics.bootstrap import bootstrap_weights, interval
from diptych.metrics.measures import Array, auroc, recall_at

__all__ = ["RESAMPLES", "Paired", "holm", "over_seeds", "over_studies", "study_figures"]

RESAMPLES = 2000
"""Draws of the bootstrap over studies."""
Samples = Mapping[str, Array]
"""``samples.npz`` of a test: arrays by name, as ``retrieval/image_ranks``."""


@dataclass(frozen=True)
class Paired:
    """How a variant differs from another in one metric, with the same seeds. What is not defined is NaN."""

    difference: float
    """Mean over seeds."""
    low: float
    """Lower end of the 95 % interval of Student's t over seeds."""
    high: float
    p: float
    """Of the paired t-test, two-sided."""
    seeds: int
    """How many seeds both have."""
    studies_low: float = math.nan
    """Lower end of the 95 % percentile interval over studies."""
    studies_high: float = math.nan
    p_holm: float = math.nan
    """``p``, corrected for the number of variants in the table."""


def over_seeds(ours: Sequence[float], theirs: Sequence[float]) -> Paired:
    """The paired t-test of values with the same seeds. A single seed has no interval.

    >>> paired = over_seeds([0.52, 0.43, 0.50], [0.44, 0.34, 0.47])
    >>> f"{paired.difference:.3f} ({paired.low:.3f} to {paired.high:.3f}), p {paired.p:.3f}"
    '0.067 (-0.013 to 0.147), p 0.070'
    """
    from scipy.special import stdtr, stdtrit

    differences = np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)
    n = len(differences)
    mean = float(differences.mean()) if n else math.nan
    if n < 2 or math.isnan(mean):
        return Paired(mean, math.nan, math.nan, math.nan, n)
    error = float(differences.std(ddof=1)) / math.sqrt(n)
    half = float(stdtrit(n - 1, 0.975)) * error
    # Equal differences have no spread. They are no chance, unless they are all zero.
    p = 2 * float(stdtr(n - 1, -abs(mean) / error)) if error > 0 else float(mean == 0)
    return Paired(mean, mean - half, mean + half, p, n)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's correction of p-values for their number (Scandinavian Journal of Statistics 6, 1979). NaN counts as no test.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    corrected = [math.nan] * len(p)
    order = sorted((i for i in range(len(p)) if not math.isnan(p[i])), key=lambda i: p[i])
    highest = 0.0
    for place, i in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - place) * p[i]))
        corrected[i] = highest
    return corrected


def study_figures(samples: Samples, weights: Array) -> dict[str, Array]:
    """R@5 and macro AUROCs ``[R]`` of a test, in ``R`` weightings of its studies.

    Args:
        samples: of the test. A text goes with its first image. An evaluator with scores and labels has an AUROC.
        weights: ``[R,n]``. Of a finding, only draws that hold both classes count.
    """
    figures = {}
    if "retrieval/image_ranks" in samples:
        of_images = recall_at(samples["retrieval/image_ranks"], 5, weights)
        of_texts = recall_at(samples["retrieval/text_ranks"], 5, weights[:, samples["retrieval/text_first"]])
        figures["retrieval/r@5"] = (of_images + of_texts) / 2
    for name in sorted(name.removesuffix("/scores") for name in samples if name.endswith("/scores")):
        values = []
        for score, label in zip(samples[f"{name}/scores"].T, samples[f"{name}/labels"].T, strict=True):
            known = (label == 0) | (label == 1)
            if len(np.unique(label[known])) == 2:  # a finding with one class has no AUROC
                values.append(auroc(score[known], label[known], weights[:, known]))
        if values:
            table = np.ma.masked_invalid(np.stack(values))
            figures[f"{name}/auroc/macro"] = table.mean(axis=0).filled(np.nan)
    return figures


def over_studies(
    ours: Sequence[Samples], theirs: Sequence[Samples], resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """The 95 % percentile interval of each difference, by a bootstrap over the patients of the test set.

    A draw takes the same patients for both variants and all seeds. The figures are means over the seeds.

    Args:
        ours: the samples of each seed.
        theirs: those of the other variant, with the same seeds.
        resamples: draws of the bootstrap.
        seed: of the draws.

    Raises:
        DataError: they are not of the same studies.
    """
    patients = [
        values for samples in (*ours, *theirs) for name, values in samples.items() if name.endswith("/patients")
    ]
    if not patients or not all([*ours, *theirs]):
        return {}
    if any(not np.array_equal(values, patients[0]) for values in patients):
        raise DataError(
            "two tests of the comparison are of different studies; remove the folders of one and start again"
        )
    weights = bootstrap_weights(patients[0], resamples, seed)
    sums: list[dict[str, Array]] = []
    for side in (ours, theirs):
        each = [study_figures(samples, weights) for samples in side]
        common = [name for name in each[0] if all(name in figures for figures in each)]
        sums.append({name: np.mean([figures[name] for figures in each], axis=0) for name in common})
    first, second = sums
    return {name: interval(first[name] - second[name]) for name in first if name in second}
