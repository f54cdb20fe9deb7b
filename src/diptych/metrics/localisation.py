"""How well a map over pixels points at a region, as pure functions of flat arrays ``[P]`` of pixels.

Ties count against the map. A map that is the same everywhere misses, has no contrast and outlines nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr

from diptych.metrics import measures as metrics
from diptych.metrics.bootstrap import Draws
from diptych.metrics.classification import with_macro

__all__ = [
    "MEASURES", "THRESHOLDS", "contrast_to_noise", "flatness", "measures", "overlap", "overlap_above", "pointing",
    "region_figures", "stretch",
]  # fmt: skip

Array = NDArray[Any]

MEASURES = ("pointing", "cnr", "miou", "dice", "auroc")
"""Names of the values of :func:`measures`."""
THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5)
"""The thresholds of BioViL (Boecking et al., ECCV 2022) on MS-CXR."""
_TIE = 1e-6
"""Values that differ by less than this share of the largest are equal. Interpolation in float32 cannot tell them apart."""


def pointing(heat: Array, inside: Array) -> float:
    """The pointing game (Zhang et al., ECCV 2016): 1 if the map's peak is inside the region, else 0.

    If several pixels are the peak, all of them must be inside.

    >>> pointing(np.array([0.1, 0.9, 0.2]), np.array([False, True, False]))
    1.0
    """
    peak = heat >= heat.max() - _TIE * np.abs(heat).max()
    return float(np.nan) if np.isnan(heat).any() else float(inside[peak].all())


def contrast_to_noise(heat: Array, inside: Array) -> float:
    """CNR (BioViL): the mean inside minus the mean outside, over the root of the sum of both variances.

    It has a sign: a map that is dark where it should be bright is below 0. BioViL takes the absolute value. A map without
    contrast has 0.

    >>> round(contrast_to_noise(np.array([4.0, 2.0, 1.0, -1.0]), np.array([True, True, False, False])), 3)
    2.121
    """
    within, without = heat[inside].astype(np.float64), heat[~inside].astype(np.float64)
    above = within.mean() - without.mean()
    noise = np.sqrt(within.var() + without.var())
    if np.isnan(above):
        return float("nan")
    if abs(above) <= _TIE * np.abs(heat).max():
        return 0.0
    return float(above / noise) if noise > 0 else float(np.copysign(np.inf, above))


def stretch(heat: Array) -> Array:
    """The map, stretched to 0 at its lowest value and 1 at its highest. A constant map gives zeros.

    >>> stretch(np.array([2.0, 3.0, 6.0])).tolist()
    [0.0, 0.25, 1.0]
    """
    low, high = float(heat.min()), float(heat.max())
    if high - low <= _TIE * max(abs(low), abs(high)):
        return np.zeros(heat.shape)
    return (heat.astype(np.float64) - low) / (high - low)


def overlap(heat: Array, inside: Array, thresholds: Sequence[float] = THRESHOLDS) -> tuple[float, float]:
    """Mean IoU and mean Dice of the region with the pixels above a threshold, over all thresholds.

    BioViL's thresholds are of cosines. Attention has no such scale, so the map is stretched to 0 and 1 first.

    >>> overlap(np.array([0.0, 0.2, 1.0]), np.array([False, False, True]), thresholds=[0.5])
    (1.0, 1.0)

    Args:
        heat: the map.
        inside: the region, which has at least one pixel.
        thresholds: of the stretched map.
    """
    if np.isnan(heat).any():
        return float("nan"), float("nan")
    level = stretch(heat)
    iou, dice = np.mean([_iou_and_dice(level >= threshold, inside) for threshold in thresholds], axis=0)
    return float(iou), float(dice)


def overlap_above(heat: Array, inside: Array, threshold: float) -> tuple[float, float]:
    """IoU and Dice of the region with the pixels above one threshold of the map as it is (RadZero, arXiv 2504.07416).

    It is for maps on a fixed scale, as cosines.

    >>> overlap_above(np.array([-0.5, 0.2, 0.7]), np.array([False, False, True]), threshold=0.2)
    (1.0, 1.0)

    Args:
        heat: the map.
        inside: the region, which has at least one pixel.
        threshold: pixels above it are the mask. One that is equal is not.
    """
    if np.isnan(heat).any():
        return float("nan"), float("nan")
    return _iou_and_dice(heat > threshold, inside)


def _iou_and_dice(bright: Array, inside: Array) -> tuple[float, float]:
    both, either = int((bright & inside).sum()), int((bright | inside).sum())
    return both / either, 2 * both / (int(bright.sum()) + int(inside.sum()))


def flatness(weights: Array) -> Array:
    """The entropy ``[...]`` of weights ``[...,R]`` that sum to 1, over the logarithm of their number.

    0 is a single region, and 1 is all regions alike. Of one region it is 0.

    >>> flatness(np.array([[0.5, 0.5], [1.0, 0.0]])).tolist()
    [1.0, 0.0]
    """
    flat: Array = entr(weights).sum(axis=-1) / np.log(max(2, weights.shape[-1]))
    return flat


def measures(heat: Array, inside: Array) -> tuple[float, ...]:
    """All of :data:`MEASURES`. ``auroc`` is of the pixels inside against those outside."""
    iou, dice = overlap(heat, inside)
    auroc = float(metrics.auroc(heat, inside)[0])
    return pointing(heat, inside), contrast_to_noise(heat, inside), iou, dice, auroc


def region_figures(
    table: Array, names: Sequence[str], weights: Array, measures: Sequence[str] = MEASURES
) -> tuple[dict[str, Draws], dict[str, Any]]:
    """Means over images of :func:`measures`, named ``pointing/<finding>``, ``pointing/macro`` and so on.

    Args:
        table: ``[n,L,M+1]``, ``M`` measures of each image and finding, then the share of the picture that its region takes. All
            are NaN where it has no region.
        names: of the ``L`` findings.
        weights: ``[1+R,n]``, how often each image counts. The first row is all ones.
        measures: names of the ``M`` measures.

    Returns:
        Figures by name, and facts for the protocol.
    """
    shown = ~np.isnan(table[..., -1])  # [n,L]
    own = {name: (table[rows, j], weights[:, rows]) for j, (name, rows) in enumerate(zip(names, shown.T, strict=True))}
    own = {name: (values, mine) for name, (values, mine) in own.items() if len(values)}
    counts = {name: len(values) for name, (values, _) in own.items()}
    means = {
        measure: {name: metrics.mean(values[:, m], mine) for name, (values, mine) in own.items()}
        for m, measure in enumerate(measures)
    }
    facts = {
        "images": counts,
        "absent": [name for name in names if name not in own],
        "chance": {f"pointing/{name}": float(values[:, -1].mean()) for name, (values, _) in own.items()},
    }
    return with_macro(means, counts, int(shown.any(axis=1).sum())), facts
