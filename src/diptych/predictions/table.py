"""The file of predictions, ``predictions.csv`` or ``.parquet``: a row a sample, numbers with all their digits."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np

from diptych.data.about import ABOUT
from diptych.data.table_files import rows_of, unique
from diptych.errors import ConfigError, DataError, shown
from diptych.escaping import csv_rows, text_of_cell
from diptych.files import replace_bytes, replace_text
from diptych.predictions.base import Boxes, Chosen, Column, Predictions

__all__ = ["ENDINGS", "OWN", "Format", "Table", "need_format", "need_pyarrow", "read_table", "write_table"]

Format = Literal["csv", "parquet", "none"]
"""How a test writes its predictions. ``none`` writes no file."""
ENDINGS = ("csv", "parquet")
"""The endings of files of predictions."""
OWN = ("id", "patient", *ABOUT)
"""Columns of the data, which are no predictions."""


def need_format(form: Format) -> None:
    """Say early that predictions cannot be written.

    Raises:
        ConfigError: parquet is asked for, and pyarrow is not installed.
    """
    if form == "parquet":
        need_pyarrow("predictions")


def need_pyarrow(option: str) -> None:
    """Say early that no parquet file can be written.

    Raises:
        ConfigError: pyarrow is not installed. The message begins with the option that asks for it.
    """
    try:
        import_module("pyarrow.parquet")
    except ImportError as error:
        raise ConfigError(
            f"{option}: parquet needs pyarrow: pip install 'diptych[parquet]', or pyarrow itself, or give csv"
        ) from error


def write_table(
    path: Path,
    ids: Sequence[str],
    patients: Sequence[str],
    index: Sequence[int],
    kept: Mapping[str, Predictions],
    about: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Write predictions, all or nothing.

    Args:
        path: the file. Its ending says whether it is csv or parquet.
        ids: the name of each sample of the data set.
        patients: the patient of each sample of the data set.
        index: numbers ``[n]`` in the data set of the samples that were tested, in order.
        kept: predictions of these samples, by the first part of metrics' names.
        about: what is known of each sample of the data set, by the names of :data:`diptych.data.about.ABOUT`.

    Raises:
        DataError: the file cannot be written.
    """
    columns: dict[str, list[Any]] = {
        "id": [_text(ids[i]) for i in index],
        "patient": [_text(patients[i]) for i in index],
    }
    columns |= {name: [_text(values[i]) for i in index] for name, values in (about or {}).items()}
    for name, predictions in kept.items():
        columns |= {f"{name}/{key}": _values(column, ids) for key, column in predictions.columns.items()}
    if path.suffix == ".parquet":
        _write_parquet(path, columns)
    else:
        replace_text(path, csv_rows([list(columns), *zip(*columns.values(), strict=True)]))


def _text(text: str) -> str:
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")  # a NUL is in no text file


def _values(column: Column, ids: Sequence[str]) -> list[Any]:
    """The values of a column as numbers (None for NaN) or texts."""
    if isinstance(column, Boxes):
        return list(column.cells())
    if isinstance(column, Chosen):
        return list(column.cells(ids))
    if isinstance(column, np.ndarray):
        numbers: list[Any] = column.tolist()  # a float32 becomes the float64 of the same value
        return [None if number != number else number for number in numbers]
    return [_text(str(value)) for value in column]


def _write_parquet(path: Path, columns: Mapping[str, list[Any]]) -> None:
    need_format("parquet")
    pyarrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    file = io.BytesIO()
    parquet.write_table(pyarrow.table(dict(columns)), file)
    replace_bytes(path, file.getvalue())


@dataclass(frozen=True)
class Table:
    """A file of predictions as text, cell by cell."""

    path: Path
    cells: dict[str, list[str]]
    """By column."""
    lines: list[int]
    """The line of each row in the file, or the number of the row in a parquet file."""
    unit: str = "line"

    def where(self, row: int, column: str) -> str:
        """The place of a cell, for a message."""
        return f"{self.path}, {self.unit} {self.lines[row]}: {column}"


def read_table(path: Path) -> Table:
    """Read a csv or parquet file of predictions.

    Raises:
        DataError: it is missing, damaged, ragged or empty, two columns have one name, it has no ``id``, or two rows have one.
    """
    table = _read_parquet(path) if path.suffix == ".parquet" else _read_csv(path)
    if "id" not in table.cells:
        raise DataError(f"{path}: no column 'id'; add one with a different name for each image")
    if not table.lines:
        raise DataError(f"{path}: no row below the names of columns; a row a test image is needed")
    first: dict[str, int] = {}
    for row, name in enumerate(table.cells["id"]):
        if not name:
            raise DataError(f"{table.where(row, 'id')} is empty; name each image")
        if name in first:
            raise DataError(
                f"{path}, {table.unit}s {table.lines[first[name]]} and {table.lines[row]}: both are id {shown(name)}; "
                "keep one row for each image"
            )
        first[name] = row
    return table


def _read_csv(path: Path) -> Table:
    rows = rows_of(path, ",", ["id"])
    header = next(rows)[1]
    unique(path, header)
    lines, values = [], []
    for line, row in rows:
        lines.append(line)
        values.append(row)
    by_column = list(zip(*values, strict=True)) or [()] * len(header)
    return Table(path, {n: [text_of_cell(c) for c in cells] for n, cells in zip(header, by_column, strict=True)}, lines)


def _read_parquet(path: Path) -> Table:
    need_format("parquet")
    parquet, errors = import_module("pyarrow.parquet"), import_module("pyarrow")
    try:
        content = parquet.read_table(path)
    except (OSError, errors.ArrowException) as error:
        raise DataError(f"{path}: cannot be read as parquet ({' '.join(str(error).split())}); get it anew") from error
    names = content.column_names
    if twice := [name for name, number in Counter(names).items() if number > 1]:
        raise DataError(f"{path}: several columns are called '{twice[0]}'; rename all but one")
    cells = {
        name: ["" if value is None else str(value) for value in column.to_pylist()]
        for name, column in zip(names, content.columns, strict=True)
    }
    return Table(path, cells, list(range(1, content.num_rows + 1)), "row")
