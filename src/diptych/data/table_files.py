"""Opens the files of tables, plain or packed, and reads them line by line. A file of another kind is refused by name."""

from __future__ import annotations

import csv
import gzip
import io
import os
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TextIO

from diptych.data.cells import name_of
from diptych.errors import DataError
from diptych.plugins import nearest

__all__ = ["find_file", "lines_of", "require", "rows_of", "scan_table", "scan_zip", "text_of", "unique"]

_SEPARATORS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a bar"}
_FOREIGN = (
    (b"\xd0\xcf\x11\xe0", "an Excel workbook; save the sheet as csv (UTF-8)"),
    (b"\xff\xfe", "UTF-16 text; save it as UTF-8"),
    (b"\xfe\xff", "UTF-16 text; save it as UTF-8"),
    (b"PAR1", "a parquet file; give its name the ending .parquet"),
    (b"version https://git-lfs", "a pointer of git-lfs, not the file itself; run `git lfs pull`"),
    (b"<!doctype", "an HTML page, perhaps of a login; download the table anew"),
    (b"<html", "an HTML page, perhaps of a login; download the table anew"),
)
"""How files begin that are no tables (text in lower case), and what they are."""
_IN_ZIPS = (
    ("xl/", "an Excel workbook; save the sheet as csv (UTF-8)"),
    ("content.xml", "an OpenDocument sheet; save it as csv (UTF-8)"),
)


def require(path: Path, have: Sequence[str], columns: Sequence[str]) -> None:
    """Check that columns exist.

    Raises:
        DataError: one does not. The message has its name and those of the columns, the nearest first.
    """
    for column in columns:
        if column not in have:
            near = ", ".join(nearest(column, have)[:12])
            raise DataError(f"{path}: no column '{column}'; it has, nearest first: {near}; set columns to match")


def unique(where: Path | str, names: Sequence[str]) -> None:
    """Check that no two columns have one name.

    Raises:
        DataError: two have. The message has the name.
    """
    for name, number in Counter(filter(None, names)).items():
        if number > 1:
            raise DataError(f"{where}: {number} columns are called '{name}'; rename all but one")


def find_file(root: Path | str, names: Sequence[str], obtain: str) -> Path:
    """Find the first of ``names`` that lies directly in ``root``. The file may also end in ``.gz`` or ``.zip``.

    Args:
        root: the folder of a release.
        names: its names in the versions of the release, without ``.gz`` or ``.zip``.
        obtain: how to obtain it, for the message.

    Raises:
        DataError: none of them is there.
    """
    root = Path(root)
    for name in names:
        for path in (root / name, root / f"{name}.gz", root / f"{name}.zip"):
            if path.is_file():
                return path
    there = f"no {' or '.join(names)} (.gz, .zip) in it" if root.is_dir() else "the folder does not exist"
    raise DataError(f"{root}: {there}; {obtain}, and give its folder as data.root")


def scan_table(path: Path | str, columns: Sequence[str], optional: Sequence[str] = ()) -> Iterator[tuple[str, ...]]:
    """Stream the named columns of a ``.csv`` table (or ``.csv.gz``, ``.csv.zip``), one tuple for each row.

    A large table takes no more memory than what the caller stores. Column names and values are stripped, and columns may stand
    in any order. A column of ``optional`` that is not there is empty.

    Raises:
        DataError: missing, ragged, not text, damaged, or without one of the columns.
    """
    path = Path(path)
    lines = rows_of(path, ",", columns, optional)
    header = next(lines)[1]
    require(path, header, columns)
    wanted = (*columns, *optional)
    unique(path, [name for name in header if name in wanted])
    at = [header.index(name) if name in header else -1 for name in wanted]
    for _, values in lines:
        values.append("")
        yield tuple([values[i].strip() for i in at])


def scan_zip(path: Path, chosen: Callable[[str], bool], largest: int) -> Iterator[tuple[str, bytes]]:
    """Stream name and content of chosen members of a zip. With many small members it is twice as fast as ``ZipFile.open``.

    Args:
        path: of the archive.
        chosen: whether to read the member of a name.
        largest: bytes after which a member is cut off.

    Raises:
        zipfile.BadZipFile: the archive is damaged. Other errors of :mod:`zipfile` are raised as they are.
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
def text_of(path: Path) -> Iterator[TextIO]:
    """Open the text of a plain, gzipped or zipped file. Every error in reading it has its path.

    Raises:
        DataError: the file is not there, is of another kind, or is damaged.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such table; check the path")
    try:
        with path.open("rb") as plain:
            start = plain.read(64)
        for signature, what in _FOREIGN:
            if start.startswith(signature) or start.lower().lstrip().startswith(signature):
                raise DataError(f"{path}: {what}")
        if start[:2] == b"\x1f\x8b":
            with gzip.open(path, "rt", encoding="utf-8-sig", newline="") as file:
                yield file
        elif start[:4] == b"PK\x03\x04":
            with zipfile.ZipFile(path) as archive, archive.open(_member(path, archive.namelist())) as member:
                yield io.TextIOWrapper(member, encoding="utf-8-sig", newline="")
        else:
            with path.open(encoding="utf-8-sig", newline="") as file:
                yield file
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error}); save it as UTF-8") from error
    except (OSError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: damaged, or cannot be read ({error}); get it anew") from error


def _member(path: Path, names: Sequence[str]) -> str:
    for start, what in _IN_ZIPS:
        if any(name.startswith(start) for name in names):
            raise DataError(f"{path}: {what}")
    tables = [name for name in names if name.endswith(".csv") and "__MACOSX" not in name]
    if len(tables) != 1:
        raise DataError(f"{path}: holds {len(tables)} csv files, not one; unpack the one that is meant")
    return tables[0]


def lines_of(path: Path, file: TextIO) -> Iterator[str]:
    """The lines of a text.

    Raises:
        DataError: a line holds a NUL, which is no text.
    """
    for number, line in enumerate(file, start=1):
        if "\0" in line:
            raise DataError(f"{path}, line {number}: a NUL byte: binary, or UTF-16 text; save it as UTF-8 text")
        yield line


def rows_of(
    path: Path, separator: str, columns: Sequence[str], optional: Sequence[str] = (), strict: bool = False
) -> Iterator[tuple[int, list[str]]]:
    """The header of a csv file, then each row, with the number of its first line.

    Another separator is taken if only that one gives the columns. Cells beyond the last named column are cut off.

    Args:
        path: of the file.
        separator: the usual one for a file of that name.
        columns: columns that the file must have.
        optional: columns of which it should have one, if ``columns`` is empty.
        strict: refuse a quote that is not closed, and text after a closing one.

    Raises:
        DataError: not text, damaged, empty, or ragged.
    """
    with text_of(path) as file:
        lines = lines_of(path, file)
        head, before = _head(lines)
        if declared := re.fullmatch(r"sep=(.)\s*", head, re.IGNORECASE):  # as Excel writes it
            separator = declared.group(1)
            head, more = _head(lines)
            before += more
        elif head:
            separator = _separator(path, head, separator, columns, optional)
        reader = csv.reader(chain(io.StringIO(head, newline=""), lines), delimiter=separator, strict=strict)
        begin, header = 0, list[str]()
        try:
            for values in reader:
                line, begin = before + begin + 1, reader.line_num
                if line == before + 1:
                    header = [name_of(name) for name in values]
                    while header and not header[-1]:
                        header.pop()
                    if not header:
                        break
                    width = len(header)
                    yield line, list(header)
                elif values:
                    if len(values) != width:
                        if len(values) < width or any(value.strip() for value in values[width:]):
                            what = _SEPARATORS.get(separator, separator)
                            message = f"{len(values)} values for {width} columns; quote text that holds {what}"
                            raise DataError(f"{path}, line {line}: {message}")
                        values = values[:width]
                    yield line, values
        except csv.Error as error:
            raise DataError(
                f"{path}, line {before + reader.line_num}: {error}; see that quotes are closed, and doubled within text"
            ) from error
        if not header:
            raise DataError(f"{path}: the table is empty; it needs a line of column names")


def _head(lines: Iterator[str]) -> tuple[str, int]:
    """The first line that is not empty, with those that its quotes go on over, and the number of empty lines before."""
    before, head = 0, ""
    for line in lines:
        if not head and not line.strip():
            before += 1
            continue
        head += line
        if head.count('"') % 2 == 0 or len(head) > 2**20:
            break
    return head, before


def _separator(path: Path, head: str, usual: str, columns: Sequence[str], optional: Sequence[str]) -> str:
    """The usual separator, unless only another one gives the columns."""
    names_by = {}
    for separator in (usual, *(other for other in _SEPARATORS if other != usual)):
        try:
            names = next(csv.reader(io.StringIO(head, newline=""), delimiter=separator), [])
        except csv.Error:
            names = []
        names_by[separator] = {name_of(name) for name in names} - {""}

    def gives(names: set[str]) -> bool:
        return names >= set(columns) if columns else not optional or bool(names & set(optional))

    if gives(names_by[usual]):
        return usual
    right = [separator for separator, names in names_by.items() if gives(names)]
    if len(right) == 1:
        from lightning.pytorch.utilities import rank_zero_info  # slow to import, and seldom needed

        rank_zero_info(f"{path}: columns are separated by {_SEPARATORS[right[0]]}, and read so")
        return right[0]
    return max(names_by, key=lambda separator: len(names_by[separator])) if len(names_by[usual]) == 1 else usual
