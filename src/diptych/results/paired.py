"""Differences of two variants, paired: over seeds by a t-test, and over studies by a bootstrap of both together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diptych.errors import DataError
from diptych.metrics.bootstrap import Draws, Interval, interval
from diptych.metrics.few import TOO_FEW, mean_spreads, paired_interval
from diptych.predictions.reading import Tested

__all__ = ["RESAMPLES", "Paired", "holm", "mean_draws", "over_seeds", "over_studies", "signed_interval"]

RESAMPLES = 2000
"""Draws of the bootstrap over studies."""


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
    """Lower end of the 95 % interval over studies: the bootstrap's, if ``studies_interval`` does not say otherwise."""
    studies_high: float = math.nan
    studies_interval: str = ""
    """``DeLong`` or ``too few`` (:mod:`diptych.metrics.few`)."""
    p_holm: float = math.nan
    """``p``, corrected for the number of variants in the table."""


def signed_interval(low: float, high: float, name: str = "") -> str:
    """An interval of a difference as text, with its name where it has one.

    >>> signed_interval(-0.1, 0.25, "DeLong"), signed_interval(math.nan, math.nan, "too few"), signed_interval(0, 0.5)
    ('-0.100 to +0.250, DeLong', 'too few', '+0.000 to +0.500')
    """
    return name or "-" if math.isnan(low) else ", ".join(filter(None, (f"{low:+.3f} to {high:+.3f}", name)))


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


def mean_draws(tests: Sequence[Tested], resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Draws]:
    """The mean over seeds of each figure that all tests have, and the same of each draw of patients.

    A draw takes the same patients for all seeds. Where one of the seeds has other intervals for want of patients
    (:mod:`diptych.metrics.few`), the mean has none.

    Args:
        tests: of each seed, one at least.
        resamples: draws of the bootstrap.
        seed: of the draws.

    Raises:
        DataError: they are not of the same samples.
    """
    if any((one.ids, one.patients) != (tests[0].ids, tests[0].patients) for one in tests):
        raise DataError("tests of one model are of different test sets; test its seeds on the same one")
    each = [one.draws(resamples, seed) for one in tests]
    means = {}
    for name in each[0]:
        if all(name in figures for figures in each):
            own = [figures[name] for figures in each]
            few = TOO_FEW if any(draws.instead for draws in own) else None
            means[name] = Draws(np.mean([draws.values for draws in own], axis=0), own[0].n, few, mean_spreads(own))
    return means


def over_studies(
    ours: Sequence[Tested], theirs: Sequence[Tested], resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Interval]:
    """The 95 % percentile interval of each difference, by a bootstrap over the patients of the test set.

    Where few patients have a finding, it is named, and is DeLong's or none (:mod:`diptych.metrics.few`).

    A draw takes the same patients for both variants and all seeds. The figures are means over the seeds. Their names are
    those of ``results.json`` without the stage.

    Args:
        ours: the tests of each seed.
        theirs: those of the other variant, with the same seeds.
        resamples: draws of the bootstrap.
        seed: of the draws.

    Raises:
        DataError: they are not of the same studies.
    """
    everyone = [*ours, *theirs]
    if not everyone:
        return {}
    if any((one.ids, one.patients) != (everyone[0].ids, everyone[0].patients) for one in everyone):
        raise DataError(
            "two tests of the comparison are of different studies; remove the folders of one and start again"
        )
    first, second = (mean_draws(side, resamples, seed) for side in (ours, theirs))
    found = {}
    for name in first:
        if name in second:
            few = paired_interval(first[name], second[name])
            ends = interval(first[name].values[1:] - second[name].values[1:])
            found[name] = Interval(*ends, "") if few is None else few[0]
    return found
