"""``diptych table --against RUN``: each run's difference from one, paired by test image, with p-values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from diptych.errors import ConfigError, DataError
from diptych.metrics.bootstrap import Resampling, interval
from diptych.metrics.delong import delong
from diptych.metrics.few import paired_interval
from diptych.predictions.base import Array, Column, Columns, Predictions
from diptych.predictions.kinds import figures_of
from diptych.predictions.reading import Tested, read_predictions
from diptych.predictions.subgroups import shared
from diptych.results.paired import RESAMPLES, holm, signed_interval
from diptych.results.runs import ResultsTable, RunResults
from diptych.results.tested import settings_of

__all__ = ["TESTS", "Against", "Difference", "Pair", "corrected", "pair_of", "swapped"]

_BY_FINDING = {"absent", "excluded", "not_labelled", "any_of"}
"""Facts of a protocol that list findings. Labels are compared one by one when two runs are read."""
TESTS = {
    "bootstrap": "paired bootstrap over patients",
    "DeLong": "DeLong's test, with patients as clusters",
    "DeLong, logit": "DeLong's variance on the logit scale, where fewer than 10 patients have a finding or lack it",
    "too few": "none: fewer than 5 such patients, or a figure that has no test under 10",
    "randomisation": "approximate randomisation by patient",
}
"""The tests by name."""


@dataclass(frozen=True)
class Difference:
    """How far a figure is above that of another run on the same test set."""

    value: float
    low: float
    """Lower end of the 95 % interval: of a paired bootstrap over patients, if ``interval`` does not say otherwise."""
    high: float
    p: float
    """Two-sided."""
    test: str
    """A name of :data:`TESTS`."""
    p_holm: float = math.nan
    """``p``, corrected for the number of runs that are compared."""
    interval: str = ""
    """``DeLong`` or ``too few`` (:mod:`diptych.metrics.few`)."""

    def cells(self) -> list[str]:
        """Difference, interval, both p-values and the test as text."""
        if math.isnan(self.value):
            return ["undefined", "-", "-", "-", self.test]
        ends = signed_interval(self.low, self.high, self.interval)
        both = ["-" if math.isnan(p) else f"{p:.4f}" for p in (self.p, self.p_holm)]
        return [f"{self.value:+.3f}", ends, *both, self.test]


def swapped(ours: Predictions, theirs: Predictions, group: Array, draws: int, seed: int) -> dict[str, Array]:
    """The differences ``[1+R]`` of two models whose outputs are swapped, patient by patient, by chance.

    The first is that of the models themselves. If the models do not differ, the others are like it (approximate
    randomisation: Noreen, 1989; Riezler and Maxwell, 2005).

    Args:
        ours: of a kind whose columns are numbers and texts.
        theirs: of the other model, on the same samples.
        group: the patients ``[n]``.
        draws: ``R``.
        seed: of the draws.
    """
    both: Columns = {name: _joined(column, theirs.columns[name]) for name, column in ours.columns.items()}
    names, member = np.unique(group, return_inverse=True)
    turned = np.random.default_rng(seed).integers(0, 2, (draws, len(names)), dtype=np.uint16)[:, member]
    turned = np.concatenate([np.zeros((1, len(group)), np.uint16), turned])
    sides = []
    for first, second in ((1 - turned, turned), (turned, 1 - turned)):
        draw = Resampling(np.concatenate([group, group]), draws, given=np.concatenate([first, second], axis=1))
        sides.append(figures_of(ours.kind, both, draw, ours.settings)[0])
    return {name: values.values - sides[1][name].values for name, values in sides[0].items()}


def _joined(one: Column, other: Any) -> Column:
    return np.concatenate([one, other]) if isinstance(one, np.ndarray) else [*one, *other]  # type: ignore[misc]  # texts


class Pair:
    """Two runs on the same test set.

    Args:
        ours: predictions of a run.
        theirs: those of the run that it is compared with.
        resamples: draws of the bootstrap, and of the randomisation.
        seed: of the draws.
    """

    def __init__(self, ours: Tested, theirs: Tested, resamples: int = RESAMPLES, seed: int = 0) -> None:
        self._ours, self._theirs = ours, theirs
        self._resamples, self._seed = resamples, seed
        self._first, self._second = (one.draws(resamples, seed) for one in (ours, theirs))
        self._swapped = cache(self._swap)

    def _swap(self, start: str) -> dict[str, Array]:
        ours, theirs = self._ours.predictions[start], self._theirs.predictions[start]
        return swapped(ours, theirs, self._ours.group, self._resamples, self._seed)

    def difference(self, name: str) -> Difference | None:
        """The difference of a figure, named as in ``results.json`` without the stage. None if one of the two lacks it.

        A ``macro`` is over the findings that both have.

        AUROCs of findings are tested by DeLong, reports by randomisation, and all else by the bootstrap. Where few patients
        have a finding, :mod:`diptych.metrics.few` says what holds.
        """
        if name not in self._first or name not in self._second:
            return None
        start = max((s for s in self._ours.predictions if name.startswith(f"{s}/")), key=len)
        ours, theirs = self._ours.predictions[start], self._theirs.predictions.get(start)
        both = shared([self._first, self._second], name)
        if both is None:
            return None
        values = both[0] - both[1]
        value, (low, high) = float(values[0]), interval(values[1:])
        if (few := paired_interval(self._first[name], self._second[name])) is not None:
            (low, high, kind), p = few
            test = "DeLong, logit" if kind == "DeLong" else kind
            return Difference(value, low, high, p, test, interval=kind)
        local = name[len(start) + 1 :]
        if theirs is not None and ours.kind == theirs.kind == "binary" and local.startswith("auroc/"):
            finding = local.removeprefix("auroc/")
            if finding != "macro" and _has_scores(ours, finding) and _has_scores(theirs, finding):
                label = np.asarray(ours.columns[f"label/{finding}"])
                known = (label == 0) | (label == 1)
                first, second = (np.asarray(one.columns[f"score/{finding}"])[known] for one in (ours, theirs))
                p = delong(first, second, label[known] == 1, self._ours.group[known])
                return Difference(value, low, high, p, "DeLong")
        if theirs is not None and ours.kind == theirs.kind == "reports":
            chance = self._swapped(start)[local]
            p = math.nan if math.isnan(value) else _share(np.abs(chance[1:]) >= abs(chance[0]) - 1e-12)
            return Difference(value, low, high, p, "randomisation")
        drawn = values[1:][~np.isnan(values[1:])]
        p = (
            min(1.0, 2 * min(_share(drawn <= 0), _share(drawn >= 0)))
            if len(drawn) and not math.isnan(value)
            else math.nan
        )
        return Difference(value, low, high, p, "bootstrap")


def _has_scores(kept: Predictions, finding: str) -> bool:
    return f"score/{finding}" in kept.columns


def _share(hits: Array) -> float:
    """The share of draws, with the models themselves as one of them, so that it is never 0."""
    return (1 + int(hits.sum())) / (1 + len(hits))


def corrected(differences: Sequence[Difference | None]) -> list[Difference | None]:
    """The same with ``p`` corrected for their number, by Holm."""
    there = [one for one in differences if one is not None]
    p = iter(holm([one.p for one in there]))
    return [None if one is None else replace(one, p_holm=next(p)) for one in differences]


def pair_of(ours: Path, theirs: Path) -> Pair:
    """The pair of two runs, by their ``results.json``.

    Raises:
        ConfigError: one has no predictions.
        DataError: predictions cannot be read, or are not of the same images and patients.
    """
    (own, of_own), (other, of_other) = (_predictions_of(results) for results in (ours, theirs))
    second = read_predictions(other, of_other)
    first = read_predictions(own, of_own, truth=other)
    if first.patients != second.patients:
        raise DataError(f"--against: '{own}' and '{other}' name other patients; compare runs on one test set")
    return Pair(first, second)


def _alike(ours: Mapping[str, str], theirs: Mapping[str, str]) -> bool:
    """Whether two protocols differ at most in which findings they list, as a file of fewer findings does."""
    return {k: v for k, v in ours.items() if k not in _BY_FINDING} == {
        k: v for k, v in theirs.items() if k not in _BY_FINDING
    }


def _predictions_of(results: Path) -> tuple[Path, dict[str, dict[str, Any]]]:
    file, of = settings_of(results)
    if file is None:
        raise ConfigError(
            f"--against: '{results}' has no predictions (a private run, one of an older release, or --predictions none); test "
            "it again with them"
        )
    return results.parent / file, of


class Against:
    """The differences of the runs of a table from one of them.

    Args:
        base: the run that the others are compared with.
        runs: all runs.

    Raises:
        ConfigError: one has no predictions.
        DataError: predictions cannot be read, or are not of the same images.
    """

    def __init__(self, base: RunResults, runs: Sequence[RunResults]) -> None:
        self.base = base
        self._pairs = {run.file: pair_of(run.file, base.file) for run in runs if run is not base}

    def of(self, table: ResultsTable, columns: Sequence[str]) -> dict[str, dict[str, Difference]]:
        """The differences in a table, ``[column][label of the run]``. There are none if it lacks the run to compare with."""
        others = [run for run in table.runs if run is not self.base]
        if self.base not in table.runs and not _alike(table.protocol, self.base.task(table.name)):
            return {}
        found = {}
        for column in columns:
            name = f"{table.name}/{column}".partition("/")[2]
            each = corrected([self._pairs[run.file].difference(name) for run in others])
            found[column] = {run.label: one for run, one in zip(others, each, strict=True) if one is not None}
        return {column: by_run for column, by_run in found.items() if by_run}

    def cells(self, table: ResultsTable, columns: Sequence[str]) -> list[list[str]]:
        """The same as rows of text, a header first. Empty if there are none."""
        found = self.of(table, columns)
        rows = [[column, label, *one.cells()] for column, by_run in found.items() for label, one in by_run.items()]
        return [["metric", "run", "difference", "95 %", "p", "p (Holm)", "test"], *rows] if rows else []

    def note(self) -> str:
        """What the differences are, in words."""
        return (
            f"Difference from {self.base.label} on the same test images. Interval: paired bootstrap over patients, "
            f"{RESAMPLES} draws, the same for both, or the one that is named beside it, where few patients have a finding. "
            "A macro is over the findings that both have. Holm's correction is for the number of runs."
        )
