"""The difference of two AUROCs on the same samples, by DeLong's test."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["components", "delong"]

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
    gap = components(ours, positive) - components(theirs, positive)
    member = np.unique(group, return_inverse=True)[1]
    patients = int(member.max()) + 1
    difference, sums, spread = float(gap[positive].mean()), [], 0.0
    for own in (positive, ~positive):
        each = np.bincount(member[own], minlength=patients)
        number, of_class = int((each > 0).sum()), int(own.sum())
        if number < 2:
            return math.nan
        above = np.bincount(member[own], gap[own], minlength=patients) - each * difference  # [patients]
        sums.append(above / of_class)
        spread += number / (number - 1) * float(sums[-1] @ sums[-1])
    spread += 2 * patients / (patients - 1) * float(sums[0] @ sums[1])
    if spread <= 0:
        return 1.0 if difference == 0 else 0.0
    return math.erfc(abs(difference) / math.sqrt(2 * spread))
