"""A figure with its interval, by resampling patients."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diptych.metrics.measures import Array

__all__ = ["Metric", "bootstrap_weights", "figure_and_bootstrap", "interval", "interval_name"]


@dataclass(frozen=True)
class Metric:
    """A figure with its 95 % interval and the number of samples behind it; NaN where it is not defined."""

    value: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Array, n: int) -> Metric:
        """From ``values`` ``[1+R]``: the figure itself, then that of each resample."""
        low, high = interval(values[1:])
        return cls(float(values[0]), low, high, n)


def interval(values: Array) -> tuple[float, float]:
    """Percentile interval holding 95 % of ``values`` ``[R]``; undefined ones are left out, none gives NaN."""
    defined = values[~np.isnan(values)]
    if defined.size == 0:
        return float("nan"), float("nan")
    low, high = np.percentile(defined, (2.5, 97.5))
    return float(low), float(high)


def bootstrap_weights(group: Array, resamples: int, seed: int = 0) -> Array:
    """How often each sample counts when whole groups are drawn with replacement.

    Args:
        group: ``[n]`` integers, the same for the samples of one patient.
        resamples: number of draws; each draws as many groups as there are.
        seed: the same seed and groups give the same draws, whatever the order of the samples.

    Returns:
        ``[resamples,n]`` uint16.
    """
    names, member = np.unique(group, return_inverse=True)
    rng = np.random.default_rng(seed)
    weights = np.empty((resamples, len(member)), dtype=np.uint16)
    for row in weights:
        row[:] = np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))[member]
    return weights


def figure_and_bootstrap(group: Array, resamples: int, seed: int = 0) -> Array:
    """Weights ``[1+R,n]`` for :meth:`Metric.of`: each sample once, then :func:`bootstrap_weights`.

    ``R`` is 0 where all samples are of one group, which has no spread.
    """
    drawn = bootstrap_weights(group, resamples if len(np.unique(group)) > 1 else 0, seed)
    return np.concatenate([np.ones((1, len(group)), np.uint16), drawn])


def interval_name(resamples: int, of: str = "patients") -> str:
    """How the interval was made, for a protocol.

    >>> interval_name(1000)
    '95 % percentile bootstrap over patients, 1000 resamples'
    """
    return f"95 % percentile bootstrap over {of}, {resamples} resamples"
