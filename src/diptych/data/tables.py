"""Tables as users have them: csv, json, jsonl and parquet, the meaning of their columns, and clear errors.

:mod:`diptych.data.table_files` opens files and reads csv. :mod:`diptych.data.cells` reads one cell.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from diptych.data.cells import cell_text, is_empty, items, name_of, patient_id, values
from diptych.data.table_files import find_file, lines_of, require, rows_of, scan_table, scan_zip, text_of, unique
from diptych.errors import ConfigError, DataError

__all__ = ["Columns", "Row", "Table", "find_file", "read_table", "scan_table", "scan_zip"]

T = TypeVar("T")

_LABELS = {"true": 1.0, "t": 1.0, "yes": 1.0, "y": 1.0, "present": 1.0, "positive": 1.0, "uncertain": -1.0}
_LABELS |= dict.fromkeys(("false", "f", "no", "n", "absent", "negative"), 0.0)
_SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validate": "val", "validation": "val"}
_SPLITS["test"] = "test"


@dataclass(frozen=True)
class Columns:
    """The names of a table's columns, by what they hold.

    Args:
        image: path of the image, below the datamodule's ``root``. Or a list of paths, each of which is a sample.
        text: column of the report, or several columns. Blank lines join them, and the items of a list. Empty ones are skipped.
        labels: one column for each finding, with 1, 0, -1 (uncertain) or nothing.
        label_list: instead of ``labels``, one column of the findings present, as ``Effusion|Cardiomegaly`` or as a list.
        separator: the sign between the names in ``label_list``, for cells that are no list.
        patient: patient's id. Without it every image counts as a patient of its own. Rows in which it is empty are left out.
        split: ``train``, ``val`` (or ``validate``, ``valid``) and ``test``. Without it patients are assigned by hash.
        id: a name for each row. It is the image path, if not given or empty.
        mask: path of a mask's picture (PNG), below ``root`` too. The finding is where it is not black. A mask that is all
            black says that the finding is nowhere.
        sex: patient's sex, as F or Female. It is for subgroups, as are the next three.
        age: patient's age in years, as 58 or 058Y.
        view: the view, as PA.
        site: where the image was taken.
        others: columns with paths of other images of the study or of a prior one, as ``[lateral, prior]``, below ``root`` too.
            Each column is a place. An empty cell is an image that is absent.
    """

    image: str = "image"
    text: str | list[str] = field(default_factory=lambda: ["text"])
    labels: str | list[str] | None = None
    label_list: str | None = None
    separator: str = "|"
    patient: str | None = None
    split: str | None = None
    id: str | None = None
    mask: str | None = None
    sex: str | None = None
    age: str | None = None
    view: str | None = None
    site: str | None = None
    others: str | list[str] | None = None

    def __post_init__(self) -> None:
        if self.labels and self.label_list:
            raise ConfigError("columns.labels and columns.label_list are both given; a table has one or the other")

    @property
    def text_columns(self) -> list[str]:
        """The columns of the report, as a list."""
        return [self.text] if isinstance(self.text, str) else self.text

    @property
    def label_columns(self) -> list[str]:
        """The columns of the findings, as a list."""
        return [self.labels] if isinstance(self.labels, str) else self.labels or []

    @property
    def other_columns(self) -> list[str]:
        """The columns of other images, as a list."""
        return [self.others] if isinstance(self.others, str) else self.others or []

    def needed(self, *, images: bool, text: bool) -> list[str]:
        """Every column that a table must have. ``images`` and ``text`` say whether images and reports are read."""
        of_images = [self.image, self.mask, self.sex, self.age, self.view, self.site, *self.other_columns]
        single = [self.label_list, self.patient, self.split, self.id, *(of_images if images else [])]
        named = [
            *(name for name in single if name is not None),
            *(self.text_columns if text else []),
            *self.label_columns,
        ]
        return list(dict.fromkeys(named))


@dataclass(frozen=True)
class Row:
    """One row, and its place in the table."""

    values: dict[str, Any]
    line: int
    table: Table

    def where(self, column: str) -> str:
        """File, line and column, for messages."""
        return f"{self.table.path}, {self.table.unit} {self.line}, column '{column}'"

    def _read(self, column: str, read: Callable[[Any], T]) -> T:
        try:
            return read(self.values[column])
        except ValueError as error:
            raise DataError(f"{self.where(column)}: {error}") from None

    def get(self, column: str) -> str:
        """The column's text, stripped. It is empty for every word that means nothing.

        Raises:
            DataError: it is several values, an object, or binary.
        """
        value = self._read(column, cell_text)
        return "" if is_empty(value) else value

    def several(self, column: str) -> list[str]:
        """The column's texts: the items of a list, or the only text. Empty ones are left out.

        Raises:
            DataError: it is an object, a list of lists, or binary.
        """
        texts = self._read(column, items)
        return [text for text in (self.get(column),) if text] if texts is None else texts

    def text(self, columns: Sequence[str]) -> str:
        """The report: blank lines join the texts of all its columns, and the items of lists."""
        return "\n\n".join(part for column in columns for part in self.several(column))

    def patient(self, column: str) -> str:
        """The patient's id in one form (:func:`~diptych.data.cells.patient_id`), or an empty text if none is known.

        Raises:
            DataError: it is several values, an object, or binary, or its last digits are lost.
        """
        return self._read(column, lambda value: patient_id(cell_text(value))) if self.get(column) else ""

    def names(self, column: str, separator: str) -> list[str]:
        """The names of a list, or those between separators.

        Raises:
            DataError: it is an object, or a list that holds something other than names.
        """
        content = self._read(column, values)
        if content is None:
            value = self.get(column)
            if value[:1] in {"[", "("}:  # which would otherwise become a name
                raise DataError(
                    f"{self.where(column)}: '{value[:40]}' is no list of names; write ['Effusion', 'Nodule']"
                )
            return [name for name in map(str.strip, value.split(separator)) if not is_empty(name)]
        if wrong := [name for name in content if not isinstance(name, str | None)]:
            raise DataError(
                f"{self.where(column)}: a list with '{wrong[0]}', which is no name; write the findings' names"
            )
        return self.several(column)

    def label(self, column: str) -> float:
        """The label as 1, 0, -1 or NaN (empty). Words as ``True``, ``no`` and ``uncertain`` are read too.

        Raises:
            DataError: anything else.
        """
        value = self.get(column)
        if not value and not set(self._read(column, cell_text)) & {"+", "?"}:  # these two mean something
            return float("nan")
        number = _LABELS.get(value.casefold())
        if number is None:
            try:
                number = float(value.replace(",", ".").replace("\N{MINUS SIGN}", "-"))
            except ValueError:
                number = float("inf")
        if number not in (1.0, 0.0, -1.0):
            shown = value or self._read(column, cell_text)
            raise DataError(
                f"{self.where(column)}: the label is '{shown}'; "
                "write 1 (present), 0 (absent), -1 (uncertain) or nothing"
            )
        return number

    def split(self, column: str) -> str:
        """The split: ``train``, ``val`` or ``test``.

        Raises:
            DataError: it is another word.
        """
        value = self.get(column)
        if value.lower() not in _SPLITS:
            raise DataError(f"{self.where(column)}: the split is '{value}'; write one of {', '.join(sorted(_SPLITS))}")
        return _SPLITS[value.lower()]


@dataclass(frozen=True)
class Table:
    """A whole table."""

    path: Path
    columns: tuple[str, ...]
    records: list[dict[str, Any]]
    lines: Sequence[int]
    """The number of each record in the file."""
    unit: str = "line"
    """What ``lines`` counts: lines, rows or records."""

    def rows(self) -> list[Row]:
        """All rows of the table."""
        return [Row(values, line, self) for values, line in zip(self.records, self.lines, strict=True)]

    def require(self, columns: Sequence[str]) -> None:
        """Check that columns exist.

        Raises:
            DataError: one does not. The message has its name and those of the columns, the nearest first.
        """
        require(self.path, self.columns, columns)

    def finding_names(self, columns: Columns) -> tuple[str, ...]:
        """The findings that a table labels: its label columns, or all names in its lists, sorted."""
        if columns.label_columns:
            return tuple(columns.label_columns)
        if columns.label_list is None:
            return ()
        return tuple(sorted({name for row in self.rows() for name in names(row, columns)}))


def names(row: Row, columns: Columns) -> list[str]:
    """The names in a row's label list."""
    assert columns.label_list is not None
    return row.names(columns.label_list, columns.separator)


def label_vector(row: Row, columns: Columns, findings: Sequence[str]) -> NDArray[np.float32] | None:
    """The labels ``[L]`` of a row, or None if the table has no labels. A finding that a list does not name is absent (0)."""
    if columns.label_columns:
        return np.array([row.label(name) for name in findings], np.float32)
    if columns.label_list is not None:
        present = set(names(row, columns))
        return np.array([float(name in present) for name in findings], np.float32)
    return None


def read_table(path: Path | str, columns: Sequence[str] = ()) -> Table:
    """Read ``.csv`` or ``.tsv`` (also ``.gz``, ``.zip``), ``.jsonl``, ``.json`` or ``.parquet``.

    Names of columns are stripped. A JSON file is a list of objects, or one object with such a list for each split, as
    R2Gen's ``annotation.json``. In the second form the names of the splits become the column ``split``.

    Args:
        path: of the table.
        columns: columns that the table must have. If only another separator gives them, a csv file is read with that one.

    Raises:
        DataError: the file is missing, empty, of another kind, ragged or not text, lacks a column, or has two of one name.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such table; check the path")
    kind = path.name.lower().removesuffix(".gz").removesuffix(".zip").rpartition(".")[2]
    if kind in {"csv", "tsv"}:
        lines = rows_of(path, "\t" if kind == "tsv" else ",", columns, strict=True)
        header = next(lines)[1]
        rows = list(lines)
        table = Table(
            path, tuple(header), [dict(zip(header, row, strict=True)) for _, row in rows], [line for line, _ in rows]
        )
    elif kind in {"jsonl", "ndjson"}:
        table = _jsonl(path)
    elif kind == "json":
        table = _json(path)
    elif kind == "parquet":
        table = _parquet(path, columns)
    else:
        sheet = " (save the sheet as csv)" if kind.startswith(("xls", "ods")) else ""
        raise DataError(f"{path}: a table is .csv, .tsv, .jsonl, .json (also .gz) or .parquet, not '.{kind}'{sheet}")
    unique(path, table.columns)
    table.require(columns)
    return table


def _object(path: Path, where: str) -> Callable[[list[tuple[str, Any]]], dict[str, Any]]:
    """A hook that makes the objects of JSON, and refuses one in which two names are equal."""

    def make(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = {name_of(key): value for key, value in pairs}
        if len(content) < len(pairs):
            unique(f"{path}{where}", [name_of(key) for key, _ in pairs])
        return content

    return make


def _decode(path: Path, where: str, text: str, remedy: str) -> Any:
    """Read JSON, whose strings may hold control characters."""
    try:
        content = json.loads(text, strict=False, object_pairs_hook=_object(path, where))
        if "\\u" in text:
            json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise DataError(
            f"{path}{where}: half of a surrogate pair (\\ud800 to \\udfff), which is no text; mend it"
        ) from None
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise DataError(f"{path}{where}: not JSON ({reason}); {remedy}") from error
    return content


def _unite(path: Path, records: list[dict[str, Any]], lines: Sequence[int], unit: str) -> Table:
    """Make a table of records. It has every column that one of them has."""
    if not records:
        raise DataError(f"{path}: the table is empty; it needs an object for each image")
    columns = tuple(dict.fromkeys(key for record in records for key in record))
    return Table(path, columns, [{key: record.get(key) for key in columns} for record in records], lines, unit)


def _jsonl(path: Path) -> Table:
    records, lines = [], []
    with text_of(path) as file:
        for number, line in enumerate("".join(lines_of(path, file)).split("\n"), start=1):  # U+2028 ends no line
            if not line.strip():
                continue
            record = _decode(path, f", line {number}", line, "write one object a line")
            if not isinstance(record, dict):
                raise DataError(f"{path}, line {number}: not an object; write one object a line")
            records.append(record)
            lines.append(number)
    return _unite(path, records, lines, "line")


def _json(path: Path) -> Table:
    with text_of(path) as file:
        content = _decode(path, "", "".join(lines_of(path, file)), "where each line is an object, call it .jsonl")
    groups = content if isinstance(content, dict) else {"": content}
    records: list[dict[str, Any]] = []
    for name, group in groups.items():
        if (name and name.lower() not in _SPLITS) or not isinstance(group, list):
            raise DataError(
                f"{path}: '{name[:40]}' is no list of a split; give a list of objects, or one for each of train, val, test"
                if name
                else f"{path}: neither a list nor an object; give a list of objects"
            )
        for record in group:
            if not isinstance(record, dict):
                raise DataError(f"{path}, record {len(records) + 1}: not an object; give a list of objects")
            split = record.get("split")
            if name and isinstance(split, str) and _SPLITS.get(split.lower()) != _SPLITS[name.lower()]:
                raise DataError(
                    f"{path}, record {len(records) + 1}: the split is '{split}' in the list '{name}'; mend one of them"
                )
            records.append(record | ({"split": name} if name else {}))
    return _unite(path, records, range(1, len(records) + 1), "record")


def _parquet(path: Path, columns: Sequence[str]) -> Table:
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise DataError(
            f"{path}: parquet needs pyarrow; run `pip install diptych[parquet]`, or save it as csv"
        ) from error
    try:
        have = [name_of(name) for name in pq.read_schema(path).names]
        unique(path, have)
        require(path, have, columns)
        raw = {name_of(name): name for name in pq.read_schema(path).names}
        table = pq.read_table(path, columns=[raw[name] for name in columns] or None)
        records = [{name_of(key): value for key, value in record.items()} for record in table.to_pylist()]
    except DataError:
        raise
    except Exception as error:  # pyarrow raises many kinds
        raise DataError(f"{path}: cannot be read as parquet ({' '.join(str(error).split())[:160]})") from error
    return Table(path, tuple(have), records, range(1, len(records) + 1), "row")
