"""Tables as users have them: csv (or csv.gz), jsonl and parquet, read as text with clear errors."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from diptych.errors import ConfigError, DataError
from diptych.plugins import nearest
from diptych.splits import assign

__all__ = ["Columns", "Fractions", "Row", "Table", "find_file", "read_table", "scan_table", "scan_zip"]

_EMPTY = {"", "nan", "none", "null", "<na>"}
_SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validate": "val", "validation": "val"}
_SPLITS["test"] = "test"


@dataclass(frozen=True)
class Columns:
    """Which column holds what.

    Args:
        image: path of the image, below the datamodule's ``root``.
        text: columns of the report, joined by a blank line where more than one is not empty.
        labels: one column for each finding, with 1, 0, -1 (uncertain) or nothing.
        label_list: instead: one column that lists the findings present, as ``Effusion|Cardiomegaly``.
        separator: between the names in ``label_list``.
        patient: patient's id; without it every image counts as a patient of its own.
        split: ``train``, ``val`` (or ``validate``, ``valid``) and ``test``; without it patients are assigned by hash.
        id: a name for each row; the image path, if not given.
        mask: path of a mask's picture (PNG), below ``root`` too, true where it is not black; all black where nothing is there.
    """

    image: str = "image"
    text: list[str] = field(default_factory=lambda: ["text"])
    labels: list[str] | None = None
    label_list: str | None = None
    separator: str = "|"
    patient: str | None = None
    split: str | None = None
    id: str | None = None
    mask: str | None = None

    def __post_init__(self) -> None:
        if self.labels and self.label_list:
            raise ConfigError("columns.labels and columns.label_list are both given; a table has one or the other")


@dataclass(frozen=True)
class Fractions:
    """Shares of the patients, where the table names no split."""

    train: float = 0.7
    val: float = 0.1
    test: float = 0.2

    def __post_init__(self) -> None:
        total = self.train + self.val + self.test
        if min(self.train, self.val, self.test) < 0 or abs(total - 1) > 1e-6:
            raise ConfigError(
                f"fractions train {self.train}, val {self.val}, test {self.test} do not sum to 1; make them"
            )

    def split(self, patient: str, seed: int) -> str:
        """The split of a patient, by hash."""
        return assign(patient, {"train": self.train, "val": self.val, "test": self.test}, seed)


@dataclass(frozen=True)
class Row:
    """One row, and where it stands."""

    values: dict[str, str]
    line: int
    table: Table

    def get(self, column: str) -> str:
        """The column's text, stripped; empty for every way of writing nothing."""
        value = self.values[column].strip()
        return "" if value.lower() in _EMPTY else value

    def text(self, columns: Sequence[str]) -> str:
        """The report: its non-empty columns, joined by a blank line."""
        return "\n\n".join(part for part in (self.get(column) for column in columns) if part)

    def label(self, column: str) -> float:
        """1, 0, -1 or NaN (empty).

        Raises:
            DataError: anything else.
        """
        value = self.get(column)
        if not value:
            return float("nan")
        try:
            number = float(value)
        except ValueError:
            number = float("inf")
        if number not in (1.0, 0.0, -1.0):
            raise DataError(
                f"{self.table.path}, line {self.line}, column '{column}': the label is '{value}'; "
                "write 1 (present), 0 (absent), -1 (uncertain) or nothing"
            )
        return number

    def split(self, column: str) -> str:
        """``train``, ``val`` or ``test``.

        Raises:
            DataError: another word.
        """
        value = self.get(column)
        if value.lower() not in _SPLITS:
            raise DataError(
                f"{self.table.path}, line {self.line}, column '{column}': the split is '{value}'; "
                f"write one of {', '.join(sorted(_SPLITS))}"
            )
        return _SPLITS[value.lower()]


@dataclass(frozen=True)
class Table:
    """A whole table."""

    path: Path
    columns: tuple[str, ...]
    records: list[dict[str, str]]
    first_line: int = 2

    def rows(self) -> list[Row]:
        """Its rows."""
        return [Row(values, line, self) for line, values in enumerate(self.records, start=self.first_line)]

    def require(self, columns: Sequence[str]) -> None:
        """Check that columns exist.

        Raises:
            DataError: one does not; names it, and what there is, the nearest first.
        """
        for column in columns:
            if column not in self.columns:
                have = ", ".join(nearest(column, self.columns)[:12])
                raise DataError(
                    f"{self.path}: no column '{column}'; it has, nearest first: {have}; set columns to match"
                )

    def finding_names(self, columns: Columns) -> tuple[str, ...]:
        """The findings a table labels: its label columns, or every name its lists hold, sorted."""
        if columns.labels:
            return tuple(columns.labels)
        if columns.label_list is None:
            return ()
        return tuple(sorted({name for row in self.rows() for name in names(row, columns)}))


def names(row: Row, columns: Columns) -> list[str]:
    """The names in a row's label list."""
    assert columns.label_list is not None
    parts = row.get(columns.label_list).split(columns.separator)
    return [part.strip() for part in parts if part.strip()]


def label_vector(row: Row, columns: Columns, findings: Sequence[str]) -> NDArray[np.float32] | None:
    """The labels ``[L]`` of a row; None where the table has none. A name missing from a list is absent (0)."""
    if columns.labels:
        return np.array([row.label(name) for name in findings], np.float32)
    if columns.label_list is not None:
        present = set(names(row, columns))
        return np.array([float(name in present) for name in findings], np.float32)
    return None


def _text(value: Any) -> str:
    return "" if value is None or value != value else str(value)  # NaN is not equal to itself


def read_table(path: Path | str) -> Table:
    """Read ``.csv``, ``.csv.gz``, ``.tsv``, ``.jsonl`` or ``.parquet``; names and values are stripped.

    Raises:
        DataError: missing, empty, of another kind, ragged, or not text.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such table; check the path")
    kind = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    if kind == "parquet":
        return _parquet(path)
    if kind not in {"csv", "tsv", "jsonl"}:
        raise DataError(f"{path}: a table is .csv, .tsv (also .gz), .jsonl or .parquet, not '.{kind}'")
    if kind == "jsonl":
        with _text_of(path) as file:
            return _jsonl(path, file.read())
    lines = _lines(path, "\t" if kind == "tsv" else ",")
    header = next(lines)[1]
    records = [dict(zip(header, values, strict=True)) for _, values in lines]
    return Table(path, tuple(header), records)


def find_file(root: Path | str, names: Sequence[str], obtain: str) -> Path:
    """The first of ``names`` that lies directly in ``root``; a table also as ``.gz`` or ``.zip``, or unpacked.

    Args:
        root: the folder of a release.
        names: names it has in the versions of the release, without ``.gz`` or ``.zip``.
        obtain: where it can be had, for the message.

    Raises:
        DataError: none of them is there.
    """
    root = Path(root)
    for name in names:
        for path in (root / name, root / f"{name}.gz", root / f"{name}.zip"):
            if path.is_file():
                return path
    looked = " or ".join(names)
    there = "the folder does not exist" if not root.is_dir() else f"no {looked} (.gz, .zip) in it"
    raise DataError(f"{root}: {there}; {obtain}, and give its folder as data.root")


def scan_table(path: Path | str, columns: Sequence[str], optional: Sequence[str] = ()) -> Iterator[tuple[str, ...]]:
    """Stream the named columns of a ``.csv`` table (or ``.csv.gz``, ``.csv.zip``), one tuple a row.

    Column names and values are stripped, and columns may stand in any order; so a table of a release needs no more
    memory than what is kept of it. A column of ``optional`` that is not there is empty.

    Raises:
        DataError: missing, ragged, not text, damaged, or without one of the columns.
    """
    path = Path(path)
    lines = _lines(path, ",")
    header = next(lines)[1]
    Table(path, tuple(header), []).require(columns)
    at = [header.index(name) if name in header else -1 for name in (*columns, *optional)]
    for _, values in lines:
        values.append("")
        yield tuple([values[i].strip() for i in at])


def scan_zip(path: Path, chosen: Callable[[str], bool], largest: int) -> Iterator[tuple[str, bytes]]:
    """Stream name and content of the chosen members of a zip; of many small ones, twice as fast as ``ZipFile.open``.

    Args:
        path: of the archive.
        chosen: tells by a member's name whether it is wanted.
        largest: bytes after which a member is cut off.

    Raises:
        zipfile.BadZipFile: or what else :mod:`zipfile` raises of a damaged or encrypted archive.
    """
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        for member in archive.infolist():
            if not chosen(member.filename):
                continue
            if member.flag_bits & 1 or member.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
                with archive.open(member) as slow:
                    yield member.filename, slow.read(largest)
                continue
            file.seek(member.header_offset)
            header = file.read(30)
            if len(header) < 30 or header[:4] != b"PK\3\4":
                raise zipfile.BadZipFile(f"no header of {member.filename}")
            file.seek(int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little"), os.SEEK_CUR)
            raw = file.read(min(member.compress_size, 2 * largest + 64))  # what cannot be compressed grows a little
            if member.compress_type == zipfile.ZIP_DEFLATED:
                raw = zlib.decompressobj(-zlib.MAX_WBITS).decompress(raw, largest)
            raw = raw[:largest]
            if (len(raw) < largest or member.file_size == largest) and zlib.crc32(raw) != member.CRC:
                raise zipfile.BadZipFile(f"bad CRC-32 of {member.filename}")
            yield member.filename, raw


@contextmanager
def _text_of(path: Path) -> Iterator[TextIO]:
    """The text of a plain, gzipped or zipped file, named in every error."""
    if not path.is_file():
        raise DataError(f"{path}: no such table; check the path")
    try:
        with path.open("rb") as plain:
            start = plain.read(4)
        if start[:2] == b"\x1f\x8b":
            with gzip.open(path, "rt", encoding="utf-8-sig", newline="") as file:
                yield file
        elif start == b"PK\x03\x04":
            with zipfile.ZipFile(path) as archive:
                members = [name for name in archive.namelist() if name.endswith(".csv") and "__MACOSX" not in name]
                if len(members) != 1:
                    raise DataError(f"{path}: holds {len(members)} csv files, not one; unpack the one that is meant")
                with archive.open(members[0]) as member:
                    yield io.TextIOWrapper(member, encoding="utf-8-sig", newline="")
        else:
            with path.open(encoding="utf-8-sig", newline="") as file:
                yield file
    except (OSError, UnicodeDecodeError, EOFError, zlib.error, zipfile.BadZipFile, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error}); save it as UTF-8") from error


def _lines(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The header, then each row, with the line it ends at; empty cells beyond the last named column are cut off."""
    with _text_of(path) as file:
        reader = csv.reader(file, delimiter=delimiter)
        header = [name.strip() for name in next(reader, [])]
        while header and not header[-1]:
            header.pop()
        if not header:
            raise DataError(f"{path}: the table is empty; it needs a line of column names")
        yield 1, header
        width = len(header)
        for values in reader:
            if not values:
                continue
            if len(values) != width:
                if len(values) < width or any(value.strip() for value in values[width:]):
                    message = f"{len(values)} values for {width} columns; quote commas in text"
                    raise DataError(f"{path}, line {reader.line_num}: {message}")
                values = values[:width]
            yield reader.line_num, values


def _jsonl(path: Path, text: str) -> Table:
    records: list[dict[str, str]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {number}: not JSON ({error.msg}); write one object a line") from error
        if not isinstance(record, dict):
            raise DataError(f"{path}, line {number}: not an object; write one object a line")
        records.append({key: _text(value) for key, value in record.items()})
    columns = tuple(dict.fromkeys(key for record in records for key in record))
    return Table(path, columns, [{key: record.get(key, "") for key in columns} for record in records], first_line=1)


def _parquet(path: Path) -> Table:
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise DataError(
            f"{path}: parquet needs pyarrow; run `pip install diptych[parquet]`, or save it as csv"
        ) from error
    try:
        table = pq.read_table(path)
    except Exception as error:  # pyarrow raises many kinds
        raise DataError(f"{path}: cannot be read as parquet ({' '.join(str(error).split())[:160]})") from error
    records = [{key: _text(value) for key, value in record.items()} for record in table.to_pylist()]
    return Table(path, tuple(table.column_names), records, first_line=1)
