"""How an AUROC, and the difference of two, vary with the patients, by DeLong's covariance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Spread", "components", "delong", "difference_interval", "logit_interval", "mean_spread"]

Array = NDArray[Any]
Floats = NDArray[np.float64]


def components(scores: Array, positive: Array) -> Floats:
    """What each sample ``[n]`` adds to the AUROC: the share of the other class that it stands on the right side of.

    A tie counts one half. The mean over the positives is the AUROC, and so is the mean over the negatives.

    >>> components(np.array([0.9, 0.4, 0.4, 0.1]), np.array([True, True, False, False])).tolist()
    [1.0, 0.75, 0.75, 1.0]
    """
    values = np.empty(len(scores))
    for own, sign in ((positive, 1), (~positive, -1)):
        others = np.sort(sign * scores[~own])
        mine = sign * scores[own]
        below = np.searchsorted(others, mine, "left") + np.searchsorted(others, mine, "right")
        values[own] = below / (2 * len(others))
    return values


def delong(ours: Array, theirs: Array, positive: Array, group: Array) -> float:
    """The two-sided p-value of the difference of two AUROCs (DeLong et al., Biometrics 44, 1988).

    Samples of one patient are not independent. So the variance is that of sums over patients (Obuchowski, Biometrics 53,
    1997). With one sample a patient it is DeLong's. It is NaN with fewer than two patients of either class.

    >>> labels, group = np.array([1, 1, 0, 0], bool), np.arange(4)
    >>> round(delong(np.array([4.0, 2, 3, 1]), np.array([4.0, 3, 2, 1]), labels, group), 3)
    0.48

    Args:
        ours: scores ``[n]``.
        theirs: scores ``[n]`` of the other model.
        positive: ``[n]`` bool.
        group: ``[n]``, the same for samples of one patient.
    """
    if np.isnan(ours).any() or np.isnan(theirs).any():
        return math.nan
    member = np.unique(group, return_inverse=True)[1]
    gap = components(ours, positive) - components(theirs, positive)
    spread = Spread.of(gap, positive, member, int(member.max()) + 1)
    if min(spread.patients) < 2:
        return math.nan
    variance = _variance([spread])[0]
    if variance <= 0:
        return 1.0 if spread.value == 0 else 0.0
    return math.erfc(abs(spread.value) / math.sqrt(2 * variance))


@dataclass(frozen=True)
class Spread:
    """What each patient adds to an AUROC, or to a difference of two."""

    value: float
    """The AUROC, or the difference."""
    up: Floats
    """``[P]``: how far the patient's positives move it from its value."""
    down: Floats
    """``[P]``: the same of the negatives."""
    patients: tuple[int, int]
    """How many patients have a positive, and how many a negative."""
    of_either: int
    """How many have any of the two."""

    @classmethod
    def of(cls, values: Array, positive: Array, member: Array, patients: int) -> Spread:
        """The spread of what samples ``[n]`` add (:func:`components`, or a mean or a difference of them).

        Args:
            values: ``[n]``.
            positive: ``[n]`` bool, both classes among them.
            member: ``[n]``, the patient's number, from 0 to ``patients - 1``.
            patients: ``P``.
        """
        value, sides, numbers = float(values[positive].mean()), [], []
        for own in (positive, ~positive):
            each = np.bincount(member[own], minlength=patients)
            sides.append((np.bincount(member[own], values[own], minlength=patients) - each * value) / int(own.sum()))
            numbers.append(int((each > 0).sum()))
        return cls(value, sides[0], sides[1], (numbers[0], numbers[1]), len(np.unique(member)))

    def minus(self, other: Spread) -> Spread:
        """The spread of the difference from another AUROC of the same samples."""
        return replace(self, value=self.value - other.value, up=self.up - other.up, down=self.down - other.down)


def mean_spread(spreads: Sequence[Spread]) -> Spread:
    """The spread of the mean of AUROCs of several models on the same samples."""
    value, up, down = (np.mean([getattr(s, name) for s in spreads], axis=0) for name in ("value", "up", "down"))
    return replace(spreads[0], value=float(value), up=up, down=down)


def _variance(spreads: Sequence[Spread]) -> tuple[float, float]:
    """The variance of the mean of the values, and its degrees of freedom by Satterthwaite (Biometrics Bulletin 2, 1946).

    The variances of the two classes count as independent of each other in the degrees of freedom. Several values that say the
    same have no more degrees than one.
    """
    total, shares = 0.0, 0.0
    halves = []
    for side in (0, 1):
        scaled, own_shares, most = [], 0.0, 0
        for spread in spreads:
            number, own = spread.patients[side], (spread.up, spread.down)[side]
            scaled.append(math.sqrt(number / (number - 1)) * own / len(spreads))
            own_shares += float(scaled[-1] @ scaled[-1]) ** 2 / (number - 1)
            most = max(most, number)
        halves.append(np.sum(scaled, axis=0))
        own_total = float(halves[-1] @ halves[-1])
        most = max(most, int(np.count_nonzero(np.any(scaled, axis=0))))
        total += own_total
        shares += max(own_shares, own_total**2 / (most - 1))
    up, down = (np.mean([getattr(spread, name) for spread in spreads], axis=0) for name in ("up", "down"))
    patients = max(spread.of_either for spread in spreads)
    total += 2 * patients / (patients - 1) * float(up @ down)
    return total, total**2 / shares if shares > 0 else math.nan


def logit_interval(spreads: Sequence[Spread], level: float = 0.95) -> tuple[float, float] | None:
    """The interval of the mean of AUROCs: DeLong's variance with patients as clusters, on the logit scale.

    Student's t with Satterthwaite's degrees of freedom takes the normal's place, since the variance itself is estimated from
    few patients. None if it is not defined: a class of one patient, or no spread, as with an AUROC of 1.

    >>> positive, member = np.array([1, 1, 1, 0, 0, 0], bool), np.arange(6)
    >>> values = components(np.array([6.0, 5, 2, 4, 3, 1]), positive)
    >>> low, high = logit_interval([Spread.of(values, positive, member, 6)])
    >>> f"{low:.2f} to {high:.2f}"
    '0.03 to 1.00'

    Args:
        spreads: that of each AUROC.
        level: how often it is to hold, from 0 to 1.
    """
    from scipy.special import expit, logit, stdtrit

    if min(min(spread.patients) for spread in spreads) < 2:
        return None
    value = float(np.mean([spread.value for spread in spreads]))
    variance, freedom = _variance(spreads)
    if not 0 < value < 1 or not variance > 0 or math.isnan(freedom):
        return None
    half = float(stdtrit(freedom, (1 + level) / 2)) * math.sqrt(variance) / (value * (1 - value))
    return float(expit(logit(value) - half)), float(expit(logit(value) + half))


def difference_interval(ours: Sequence[Spread], theirs: Sequence[Spread]) -> tuple[float, float, float] | None:
    """The 95 % interval of the difference of two means of AUROCs, and its two-sided p-value, where patients are few.

    Each mean has its own interval, by :func:`logit_interval`. The two are joined with their correlation by DeLong, as Zou does
    (Psychological Methods 12, 2007). So an AUROC near 1 has little room above it and more below. The p-value is 1 minus the
    highest confidence at which the interval leaves out 0. None if it is not defined: a class of one patient, an AUROC of 0 or
    1, or models that rank alike.

    >>> positive, member = np.array([1, 1, 1, 0, 0, 0], bool), np.arange(6)
    >>> sides = [np.array(scores) for scores in ([6.0, 5, 2, 4, 3, 1], [6.0, 1, 2, 4, 3, 5])]
    >>> ours, theirs = (Spread.of(components(scores, positive), positive, member, 6) for scores in sides)
    >>> low, high, p = difference_interval([ours], [theirs])
    >>> f"{ours.value - theirs.value:.2f}: {low:.2f} to {high:.2f}, p {p:.2f}"
    '0.44: -0.30 to 0.75, p 0.32'

    Args:
        ours: of each AUROC of the one mean.
        theirs: those of the other mean, on the same samples.
    """
    gaps = [one.minus(other) for one, other in zip(ours, theirs, strict=True)]
    if logit_interval(ours) is None or logit_interval(theirs) is None or not (spread := _variance(gaps)[0]) > 0:
        return None
    both = _variance(ours)[0], _variance(theirs)[0]
    shared = (sum(both) - spread) / (2 * math.sqrt(both[0] * both[1]))
    shared = max(-1.0, min(1.0, shared))
    values = [float(np.mean([spread.value for spread in side])) for side in (ours, theirs)]
    gap = values[0] - values[1]

    def ends(level: float) -> tuple[float, float]:
        (low, high), (low_other, high_other) = (logit_interval(side, level) or (0.0, 1.0) for side in (ours, theirs))
        down, up, down_other, up_other = (
            values[0] - low,
            high - values[0],
            values[1] - low_other,
            high_other - values[1],
        )
        below = down**2 + up_other**2 - 2 * shared * down * up_other
        above = up**2 + down_other**2 - 2 * shared * up * down_other
        return gap - math.sqrt(max(0.0, below)), gap + math.sqrt(max(0.0, above))

    least, most = 0.0, 1.0  # levels at which the interval leaves out 0, and has it
    for _ in range(50 if gap else 0):
        level = (least + most) / 2
        low, high = ends(level)
        least, most = (least, level) if low <= 0 <= high else (level, most)
    return *ends(0.95), 1 - least
