"""A figure with its interval, by resampling patients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from diptych.metrics.delong import Spread
from diptych.metrics.measures import Array

__all__ = [
    "Draws", "Interval", "Metric", "Resampling", "as_metrics", "bootstrap_weights", "figure_and_bootstrap", "interval",
    "interval_name",
]  # fmt: skip


class Interval(NamedTuple):
    """An interval that takes the place of the bootstrap's (:mod:`diptych.metrics.few` says where)."""

    low: float
    """NaN if there is none."""
    high: float
    name: str
    """How it was made, or why there is none."""


@dataclass(frozen=True)
class Metric:
    """A figure with its 95 % interval and the number of samples behind it. A figure that is not defined is NaN."""

    value: float
    low: float
    high: float
    n: int
    interval: str = ""
    """``DeLong`` or ``too few`` (:mod:`diptych.metrics.few`). Empty if it is the one that the protocol names."""

    @classmethod
    def of(cls, values: Array, n: int, instead: Interval | None = None) -> Metric:
        """Make a metric of ``values`` ``[1+R]``: the figure itself, then that of each resample.

        >>> Metric.of(np.array([0.8, 0.7, 0.7, 0.9, 0.9]), n=12)
        Metric(value=0.8, low=0.7, high=0.9, n=12, interval='')

        Args:
            values: ``[1+R]``. Without resamples the metric has no interval.
            n: number of samples behind it.
            instead: the interval, if the bootstrap's does not hold.
        """
        if instead is not None and len(values) > 1 and not np.isnan(values[0]):
            return cls(float(values[0]), instead.low, instead.high, n, instead.name)
        low, high = interval(values[1:])
        return cls(float(values[0]), low, high, n)


class Draws(NamedTuple):
    """A figure of all samples, and the same of each resample."""

    values: Array
    """``[1+R]``"""
    n: int
    """Number of samples behind it."""
    instead: Interval | None = None
    """The interval, if the bootstrap's does not hold."""
    spreads: Mapping[str, Spread] | None = None
    """How the AUROC of each finding behind the figure varies with the patients. None of other figures."""


def as_metrics(figures: Mapping[str, Draws], start: str = "") -> dict[str, Metric]:
    """Figures with their intervals, each name with ``start`` before it.

    >>> as_metrics({"f1": Draws(np.array([0.5]), 9)}, "test/")["test/f1"].value
    0.5
    """
    return {f"{start}{name}": Metric.of(draws.values, draws.n, draws.instead) for name, draws in figures.items()}


@dataclass(frozen=True)
class Resampling:
    """How the samples of a set are drawn again, patient by patient."""

    group: Array
    """``[n]`` integers, the same for the samples of one patient."""
    resamples: int
    """Number of draws. 0 gives no interval."""
    seed: int = 0
    given: Array | None = None
    """``[1+R,n]``: weights that take the place of a draw."""

    def weights(self, rows: Array | None = None) -> Array:
        """Weights ``[1+R,n]``, as :func:`figure_and_bootstrap` gives them, of all samples or of the patients of ``rows``."""
        if self.given is not None:
            return self.given if rows is None else self.given[:, rows]
        return figure_and_bootstrap(self.group if rows is None else self.group[rows], self.resamples, self.seed)


def interval(values: Array) -> tuple[float, float]:
    """Ends of the percentile interval that holds 95 % of ``values`` ``[R]``.

    NaN is left out. If nothing is left, both ends are NaN.

    >>> interval(np.arange(101.0))
    (2.5, 97.5)
    >>> interval(np.array([np.nan]))
    (nan, nan)
    """
    defined = values[~np.isnan(values)]
    if defined.size == 0:
        return float("nan"), float("nan")
    low, high = np.percentile(defined, (2.5, 97.5))
    return float(low), float(high)


def bootstrap_weights(group: Array, resamples: int, seed: int = 0) -> Array:
    """How often each sample counts when whole groups are drawn with replacement.

    >>> weights = bootstrap_weights(np.array([7, 7, 9]), resamples=3)
    >>> weights.shape, bool((weights[:, 0] == weights[:, 1]).all())  # the two of group 7 are drawn together
    ((3, 3), True)

    Args:
        group: ``[n]`` integers, the same for the samples of one patient.
        resamples: number of draws. Each draws as many groups as there are.
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
    """Weights ``[1+R,n]`` for :meth:`Metric.of`. The first row counts each sample once, and the others resample the groups.

    ``R`` is 0 if all samples are of one group, which has no spread.

    >>> figure_and_bootstrap(np.array([4, 4, 4]), resamples=1000).tolist()
    [[1, 1, 1]]
    """
    resampled = bootstrap_weights(group, resamples if len(np.unique(group)) > 1 else 0, seed)
    return np.concatenate([np.ones((1, len(group)), np.uint16), resampled])


def interval_name(resamples: int, of: str = "patients") -> str:
    """How the interval was made, for a protocol.

    >>> interval_name(1000)
    '95 % percentile bootstrap over patients, 1000 resamples'
    """
    return f"95 % percentile bootstrap over {of}, {resamples} resamples"
