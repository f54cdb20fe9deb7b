"""Figures of subgroups of a test set, and the gap between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from diptych.metrics.bootstrap import Draws, Resampling, figure_and_bootstrap
from diptych.metrics.classification import with_macro
from diptych.metrics.few import TOO_FEW
from diptych.predictions.base import Array, Boxes, Chosen, Column, Predictions
from diptych.predictions.kinds import RESAMPLES, Figures, figures_of

__all__ = ["BANDS", "NOT_DIVIDED", "age_band", "by_group", "shared"]

BANDS = (40, 60, 80)
"""Ages at which a new band begins."""
NOT_DIVIDED = ("class_retrieval",)
"""Kinds whose figures rank all samples against each other, so that they have no figures of a part."""


def age_band(age: str, bands: Sequence[int] = BANDS) -> str:
    """The band of an age. It is empty where the age is.

    >>> age_band("39"), age_band("40"), age_band("90"), age_band("")
    ('below 40', '40 to 59', '80 and above', '')
    """
    if not age:
        return ""
    years = int(age)
    if years < bands[0]:
        return f"below {bands[0]}"
    return next((f"{low} to {high - 1}" for low, high in pairwise(bands) if years < high), f"{bands[-1]} and above")


def by_group(kept: Predictions, group: Array, values: Sequence[str]) -> Figures:
    """Figures of each subgroup, named ``<subgroup>/<figure>``, and their ``gap/<figure>``.

    The gap is the highest figure minus the lowest. The two subgroups are those of all samples, and stay the same in the
    resamples. A resample draws the patients of the whole set once, for both. With many subgroups the widest of many gaps is
    found, which is above 0 by chance too. The gap of a ``macro`` is over the findings that all subgroups have.

    Args:
        kept: predictions of the samples.
        group: their patients ``[n]``.
        values: the subgroup of each sample. An empty one is in no subgroup, and is counted.

    Returns:
        Figures by name, and facts for the protocol.
    """
    weights = figure_and_bootstrap(group, kept.settings.get("resamples", RESAMPLES), kept.settings.get("seed", 0))
    each: dict[str, dict[str, Draws]] = {}
    sizes: dict[str, dict[str, int]] = {}
    for name in sorted({value for value in values if value}, key=_order):
        rows = np.flatnonzero(np.array(values) == name)
        shown = name.replace("/", "_")
        columns = {key: _part(column, rows) for key, column in kept.columns.items()}
        draw = Resampling(group[rows], len(weights) - 1, given=weights[:, rows])
        each[shown] = figures_of(kept.kind, columns, draw, kept.settings)[0]
        sizes[shown] = {"images": len(rows), "patients": len(np.unique(group[rows]))}
    figures = {f"{name}/{key}": draws for name, of in each.items() for key, draws in of.items()}
    between = {}
    for key in next(iter(each.values()), {}) if len(each) > 1 else ():
        found = shared(list(each.values()), key)
        if found is None or any(np.isnan(one[0]) for one in found):
            continue
        points = [one[0] for one in found]
        high, low = int(np.argmax(points)), int(np.argmin(points))
        own = [of[key] for of in each.values()]
        few = TOO_FEW if any(own[i].instead is not None for i in (high, low)) else None
        figures[f"gap/{key}"] = Draws(found[high] - found[low], sum(own[i].n for i in {high, low}), few)
        between[key] = f"{list(each)[high]} - {list(each)[low]}"
    unknown = sum(not value for value in values)
    return figures, {"groups": sizes, "images of no group": unknown, "gap between": between}


def _order(name: str) -> tuple[int, str]:
    """Age bands by their first number, others by name."""
    return (0 if name.startswith("below") else 1), name


def _part(column: Column, rows: Array) -> Column:
    if isinstance(column, Boxes):
        return Boxes([column.rows[i] for i in rows.tolist()], column.findings)
    if isinstance(column, Chosen):
        return Chosen(column.rows[rows])
    return column[rows] if isinstance(column, np.ndarray) else [column[i] for i in rows.tolist()]


def shared(figures: Sequence[Mapping[str, Draws]], name: str) -> list[Array] | None:
    """The values ``[1+R]`` of a figure in several sets of figures. A macro is over the findings that all sets have.

    None if one set has no such figure.
    """
    if not all(name in of for of in figures):
        return None
    start, _, last = name.rpartition("/")
    means = {f"{start}/{average}" for average in ("macro", "micro", "example")}
    parts = [[key for key in of if key.startswith(f"{start}/") and key not in means] for of in figures]
    if last != "macro" or all(part == parts[0] for part in parts):
        return [of[name].values for of in figures]
    common = [key for key in parts[0] if all(key in part for part in parts)]
    if not common:
        return None
    counts = dict.fromkeys(common, 1)
    return [with_macro({"m": {key: of[key].values for key in common}}, counts, 1)["m/macro"].values for of in figures]
