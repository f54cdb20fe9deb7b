"""From a file of predictions to typed columns: what each column is, and whether every cell is what it must be."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diptych.data.about import ABOUT, years
from diptych.errors import DataError, shown
from diptych.metrics.bootstrap import Draws
from diptych.plugins import nearest
from diptych.predictions.base import Array, Boxes, Column, Predictions
from diptych.predictions.kinds import KINDS, with_draws
from diptych.predictions.table import OWN, Table, read_table

__all__ = ["Tested", "read_predictions"]

_DOCUMENTED = "docs/evaluation.md lists the columns"
_LABELS = {0.0, 1.0, -1.0}


@dataclass(frozen=True)
class Tested:
    """What a model said of the samples of a test."""

    ids: Sequence[str]
    patients: Sequence[str]
    predictions: Mapping[str, Predictions]
    """By the first part of metrics' names."""
    about: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Sex, age, view and site of each, as far as the file has them."""

    @property
    def group(self) -> NDArray[np.int64]:
        """The patients ``[n]``, numbered in the order in which they come."""
        numbers = {patient: i for i, patient in enumerate(dict.fromkeys(self.patients))}
        return np.array([numbers[patient] for patient in self.patients], np.int64)

    def figures(
        self, resamples: int | None = None, seed: int | None = None
    ) -> dict[str, tuple[dict[str, Draws], dict[str, Any]]]:
        """Figures and facts by the first part of metrics' names.

        Args:
            resamples: draws of the bootstrap. None takes those of the settings.
            seed: of the draws, likewise.
        """
        group = self.group
        return {name: with_draws(kept, group, resamples, seed) for name, kept in self.predictions.items()}

    def draws(self, resamples: int | None = None, seed: int | None = None) -> dict[str, Draws]:
        """All figures, named as in ``results.json`` without the stage. The arguments are those of ``figures``."""
        every = self.figures(resamples, seed)
        return {f"{start}/{name}": value for start, (figures, _) in every.items() for name, value in figures.items()}


def read_predictions(
    path: Path, settings: Mapping[str, Mapping[str, Any]] | None = None, truth: Path | None = None
) -> Tested:
    """Read a file that ``diptych test`` wrote, or one of another project with these columns.

    Args:
        path: the file, csv or parquet.
        settings: for each first part of metrics' names its ``kind``, and what its figures depend on, as ``results.json`` has
            them. What is not there is taken from the names of columns.
        truth: another file of the same test set. Its order of rows is taken, and its patients and labels where ``path`` has
            none.

    Raises:
        DataError: a column is missing or unknown, or a cell is not what it must be. The message names file, line, column and
            value.
    """
    settings = settings or {}
    table = read_table(path)
    if truth is not None and truth.resolve() != path.resolve():
        table = _aligned(table, read_table(truth), settings)
    if "patient" not in table.cells:
        raise DataError(
            f"{path}: no column 'patient'; add one, as the bootstrap draws patients (a copy of 'id' if each has one image)"
        )
    kinds = _kinds(table, settings)
    of: dict[str, dict[str, str]] = {name: {} for name in kinds}
    for column in table.cells:
        if column not in OWN:
            name = _owner(column, kinds)
            if name is None:
                raise _unknown(table, column, kinds)
            of[name][column[len(name) + 1 :]] = column
    predictions = {
        name: _typed(table, name, kind, of[name], dict(settings.get(name, {}))) for name, kind in kinds.items()
    }
    if not predictions:
        raise DataError(f"{path}: no column of predictions beside id and patient; {_DOCUMENTED}")
    about = {name: table.cells[name] for name in ABOUT if name in table.cells}
    if "age" in about:
        about["age"] = [_age(table, row) for row in range(len(table.lines))]
    return Tested(table.cells["id"], table.cells["patient"], predictions, about)


def _age(table: Table, row: int) -> str:
    text = table.cells["age"][row]
    if text and not (age := years(text)):
        raise DataError(f"{table.where(row, 'age')} is {shown(text)}; give whole years up to 120, or leave it empty")
    return age if text else ""


def _aligned(table: Table, truth: Table, settings: Mapping[str, Mapping[str, Any]]) -> Table:
    """The rows in the order of another file, which gives the patients and labels that are missing.

    Raises:
        DataError: the files are not of the same images, or a label differs.
    """
    place = {name: row for row, name in enumerate(table.cells["id"])}
    for one, other in ((truth, table), (table, truth)):
        there = set(other.cells["id"])
        if missing := [name for name in one.cells["id"] if name not in there]:
            raise DataError(
                f"{other.path}: {len(missing)} images of {one.path} are not there, the first is id {shown(missing[0])}; "
                "give predictions of the same test set"
            )
    order = [place[name] for name in truth.cells["id"]]
    cells = {column: [values[row] for row in order] for column, values in table.cells.items()}
    lines = [table.lines[row] for row in order]
    aligned = Table(table.path, cells, lines, table.unit)
    cells.setdefault("patient", truth.cells.get("patient", []))
    if not cells["patient"]:
        del cells["patient"]
    for name in ABOUT:
        if name in truth.cells:
            cells.setdefault(name, truth.cells[name])
    for name, kind in _kinds(aligned, settings).items():
        given = re.compile(rf"{re.escape(name)}/({KINDS[kind].given})")
        ours = [column for column in truth.cells if KINDS[kind].given and given.fullmatch(column)]
        asked = {f"{name}/{key}" for key in _needed(name, kind, cells)}
        for column in ours:
            if column not in cells:
                if column in asked:
                    cells[column] = truth.cells[column]
                continue
            pairs = enumerate(zip(cells[column], truth.cells[column], strict=True))
            differ = _differ_in_being_there if KINDS[kind].measured else _differ
            if odd := [row for row, pair in pairs if differ(*pair)]:
                raise DataError(
                    f"{aligned.where(odd[0], column)} is {shown(cells[column][odd[0]])}, and "
                    f"{shown(truth.cells[column][odd[0]])} in {truth.path}; give the same test set, or leave the column out"
                )
    return aligned


def _differ(one: str, other: str) -> bool:
    """Whether two cells of a column of the data say different things. Numbers may be written differently."""
    try:
        return one != other and not math.isclose(float(one), float(other), abs_tol=1e-9)
    except ValueError:
        return one.split() != other.split() and not (one[:1] == other[:1] == "[")


def _differ_in_being_there(one: str, other: str) -> bool:
    """Whether one cell is empty, and the other is not."""
    return bool(one) != bool(other)


def _kinds(table: Table, settings: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The kind of each name that the columns have predictions of."""
    kinds: dict[str, str] = {}
    for column in table.cells:
        for kind, signs in ((kind, KINDS[kind].signs) for kind in KINDS):
            if match := re.fullmatch(rf"(?P<name>.+?)/(?:{signs})", column):
                kinds.setdefault(match["name"], kind)
                break
    for name in list(kinds):
        known = settings.get(name, {}).get("kind", kinds[name])
        if known not in KINDS:
            raise DataError(
                f"{table.path}: {name} is of the kind {shown(known)}, which is not known; test the run anew"
            )
        kinds[name] = known
    return kinds


def _owner(column: str, kinds: Mapping[str, str]) -> str | None:
    """The name whose kind has the column."""
    for name in sorted(kinds, key=len, reverse=True):
        patterns = KINDS[kinds[name]].columns
        if column.startswith(f"{name}/") and any(re.fullmatch(p, column[len(name) + 1 :]) for p in patterns):
            return name
    return None


def _unknown(table: Table, column: str, kinds: Mapping[str, str]) -> DataError:
    known = [c for c in table.cells if c in OWN or _owner(c, kinds) is not None]
    near = ", ".join(nearest(column, known)[:4])
    return DataError(
        f"{table.path}, {table.unit} 1: the column {shown(column)} is not known (nearest of those that are: {near}); rename or "
        f"remove it ({_DOCUMENTED})"
    )


def _needed(name: str, kind: str, cells: Mapping[str, list[str]]) -> list[str]:
    """The columns that the predictions of a name must have, without the name."""
    local = [column[len(name) + 1 :] for column in cells if column.startswith(f"{name}/")]
    matches = [match for match in (re.fullmatch(KINDS[kind].signs, key) for key in local) if match]
    findings = dict.fromkeys(m["finding"] for m in matches if "finding" in m.groupdict())
    needs = list(KINDS[kind].needs)
    if kind in ("binary", "classes"):
        of = "score" if any(key.startswith("score/") for key in local) else "probability"
        needs.append(f"{of}/{{finding}}")
    if kind == "reports" and any("_label/" in key for key in local):
        from diptych.reports.labeller import FINDINGS

        needs += [f"{side}_label/{finding}" for side in ("hypothesis", "reference") for finding in FINDINGS]
    return list(dict.fromkeys(need.format(finding=f) for need in needs for f in (findings if "{" in need else [""])))


def _typed(table: Table, name: str, kind: str, columns: Mapping[str, str], settings: dict[str, Any]) -> Predictions:
    """The columns of a name, each cell checked."""
    needed = _needed(name, kind, table.cells)
    for key in needed:
        if key not in columns:
            raise DataError(f"{table.path}: no column '{name}/{key}', which {name} needs; add it ({_DOCUMENTED})")
    for key in columns:
        if re.fullmatch("label/.+", key) and key not in needed:
            raise DataError(
                f"{table.path}: the column '{name}/{key}' has no score beside it; add '{name}/score/{key[6:]}', or remove it"
            )
    typed: dict[str, Column] = {}
    of_boxes: dict[str, list[Any]] = {}
    for key, column in columns.items():
        kinds = (value for pattern, value in KINDS[kind].columns.items() if re.fullmatch(pattern, key))
        form = next(kinds)
        if form == "text":
            typed[key] = table.cells[column]
        elif form in ("boxes", "truth"):
            of_boxes[key] = _json(table, column, 6 if form == "boxes" else 5)
        elif form != "ids":
            typed[key] = _numbers(table, column, form)
    if of_boxes:
        findings = settings.get("findings") or sorted(
            {b[4] for rows in of_boxes.values() for row in rows for b in row or ()}
        )
        typed |= {key: _boxes(table, f"{name}/{key}", rows, findings) for key, rows in of_boxes.items()}
    if kind == "reports" and not any("_label/" in key for key in columns):
        from diptych.reports.labeller import FINDINGS, Rules

        for side in ("hypothesis", "reference"):
            read = Rules()(table.cells[columns[side]])
            typed |= {f"{side}_label/{finding}": read[:, i] for i, finding in enumerate(FINDINGS)}
    return Predictions(kind, typed, settings)


def _is_rank(value: float) -> bool:
    return value >= 1 and value.is_integer()


_CHECKS: dict[str, tuple[Callable[[float], bool], str]] = {
    "number": (lambda value: True, "give a number, or leave it empty"),
    "probability": (lambda v: 0 <= v <= 1 or math.isnan(v), "give a number from 0 to 1 (or call it a score)"),
    "label": (
        lambda v: v in _LABELS or math.isnan(v),
        "give 1 (present), 0 (absent), -1 (uncertain), or leave it empty",
    ),
    "rank": (_is_rank, "give a whole number of 1 or more"),
    "rank or empty": (lambda v: _is_rank(v) or math.isnan(v), "give a whole number of 1 or more, or leave it empty"),
    "flag": (lambda value: value in (0, 1), "give 0 or 1"),
    "count": (lambda value: value >= 0, "give a number of 0 or more"),
}
"""What each type of number must be, and the remedy."""


def _numbers(table: Table, column: str, form: str) -> Array:
    """The numbers of a column. An empty cell is NaN."""
    fits, remedy = _CHECKS[form]
    values = np.full(len(table.lines), np.nan)
    for row, text in enumerate(table.cells[column]):
        try:
            values[row] = float(text) if text else math.nan
        except ValueError:
            raise DataError(f"{table.where(row, column)} is {shown(text)}, and no number; {remedy}") from None
        if not fits(float(values[row])):
            raise DataError(f"{table.where(row, column)} is {shown(text)}; {remedy}")
    return values


def _json(table: Table, column: str, width: int) -> list[Any]:
    """The boxes of each cell, each ``[x0, y0, x1, y1, finding]`` and a confidence if ``width`` is 6. None where it is null."""
    what = "[x0, y0, x1, y1, finding, confidence]" if width == 6 else "[x0, y0, x1, y1, finding]"
    rows = []
    for row, text in enumerate(table.cells[column]):
        try:
            boxes = json.loads(text)
        except (ValueError, RecursionError):
            boxes = text
        if boxes is not None and not (isinstance(boxes, list) and all(_is_box(box, width) for box in boxes)):
            raise DataError(
                f"{table.where(row, column)} is {shown(text)}; give a JSON list of {what}, with x0 <= x1, y0 <= y1 and a "
                "confidence from 0 to 1, and [] where there is none"
            )
        rows.append(boxes)
    return rows


def _is_box(box: Any, width: int) -> bool:
    if not isinstance(box, list) or len(box) != width or not isinstance(box[4], str):
        return False
    numbers = [*box[:4], *box[5:]]
    if any(isinstance(v, bool) or not isinstance(v, int | float) or not math.isfinite(v) for v in numbers):
        return False
    return bool(box[0] <= box[2] and box[1] <= box[3] and (width == 5 or 0 <= box[5] <= 1))


def _boxes(table: Table, column: str, rows: Sequence[Any], findings: Sequence[str]) -> Boxes:
    """Boxes with the numbers of their findings."""
    width = 6 if column.endswith("/boxes") else 5
    arrays: list[Array | None] = []
    for i, row in enumerate(rows):
        for box in row or ():
            if box[4] not in findings:
                raise DataError(
                    f"{table.where(i, column)} has the finding {shown(box[4])}; known are {', '.join(findings)}"
                )
        boxes = None if row is None else [[*b[:4], findings.index(b[4]), *b[5:]] for b in row]
        arrays.append(None if boxes is None else np.array(boxes, np.float64).reshape(-1, width))
    return Boxes(arrays, list(findings))
