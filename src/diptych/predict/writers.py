"""Parts of a prediction as one file: csv, npy or parquet. Memory holds one part at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from diptych.errors import ConfigError, DataError
from diptych.escaping import csv_rows
from diptych.files import replace_bytes, replacing
from diptych.predict.values import Column
from diptych.predictions.table import need_pyarrow

__all__ = ["Rows", "check_format", "write"]


class Rows(NamedTuple):
    """The images of one part that could be used, ``m`` of them."""

    ids: list[str]
    splits: list[str]
    values: dict[str, NDArray[Any]]
    """By the names of the columns. Each has ``m`` rows."""


Parts = Callable[[], Iterator[Rows]]
"""Goes through the parts that have rows, in order. It may be called more than once."""


def check_format(path: Path, columns: Sequence[Column]) -> None:
    """Refuse a file that cannot hold the columns, before anything is computed.

    Raises:
        ConfigError: its ending is another one, or cannot hold what is asked, or a package is missing.
    """
    kind, names = path.suffix.lower(), [column.name for column in columns]
    if kind not in _WRITERS:
        raise ConfigError(f"--out {path}: ends in '{kind}'; end it in one of {', '.join(_WRITERS)}")
    if kind == ".npy" and (len(columns) > 1 or columns[0].texts):
        raise ConfigError(
            f"--out {path}: npy holds one array of numbers, and --what gives {', '.join(names)}; take .parquet"
        )
    if kind == ".csv" and "regions" in names:
        raise ConfigError(f"--out {path}: csv holds no regions; take .npy or .parquet")
    if kind == ".parquet":
        need_pyarrow(f"--out {path}")


def write(path: Path, columns: Sequence[Column], parts: Parts) -> int:
    """Write all parts as one file, whole or not at all. The result is the number of images.

    An ``.npy`` file holds numbers alone. Its ids are in ``NAME.npy.ids.csv``, written before it.

    Raises:
        DataError: it cannot be written.
    """
    if path.suffix.lower() == ".npy":
        replace_bytes(f"{path}.ids.csv", _ids(parts))
    with replacing(path) as file:
        return _WRITERS[path.suffix.lower()](file, columns, parts)


def _ids(parts: Parts) -> Iterator[bytes]:
    yield b"id,split\n"
    for rows in parts():
        yield csv_rows(zip(rows.ids, rows.splits, strict=True)).encode("utf-8", "backslashreplace")


def _write_npy(file: BinaryIO, columns: Sequence[Column], parts: Parts) -> int:
    name, number, kind = columns[0].name, 0, ""
    shape: tuple[int, ...] = ()
    for rows in parts():
        value = rows.values[name]
        number, shape, kind = number + len(value), value.shape[1:], value.dtype.str
    header = {"descr": kind, "fortran_order": False, "shape": (number, *shape)}
    np.lib.format.write_array_header_1_0(file, header)
    for rows in parts():
        file.write(np.ascontiguousarray(rows.values[name]).tobytes())
    return number


def _table(column: Column, value: NDArray[Any]) -> dict[str, list[Any]]:
    """A value of each image as named columns of texts or numbers. A float32 is written with the digits that it needs."""
    names = column.parts or tuple(map(str, range(value.shape[1])))
    if column.texts:
        return {f"{column.name}/{name}": [column.texts[i] for i in value[:, j]] for j, name in enumerate(names)}
    short = value.astype("U32").astype(np.float64) if value.dtype == np.float32 else value
    return {f"{column.name}/{name}": short[:, j].tolist() for j, name in enumerate(names)}


def _write_csv(file: BinaryIO, columns: Sequence[Column], parts: Parts) -> int:
    number = 0
    for rows in parts():
        tables = {"id": rows.ids, "split": rows.splits}
        for column in columns:
            tables |= _table(column, rows.values[column.name])
        if not number:
            file.write(csv_rows([list(tables)]).encode())
        file.write(csv_rows(zip(*tables.values(), strict=True)).encode("utf-8", "backslashreplace"))
        number += len(rows.ids)
    return number


def _write_parquet(file: BinaryIO, columns: Sequence[Column], parts: Parts) -> int:
    import pyarrow as pa
    from pyarrow import parquet

    writer: Any = None
    number = 0
    for rows in parts():
        ids = [key.encode("utf-8", "backslashreplace").decode() for key in rows.ids]
        tables: dict[str, Any] = {"id": pa.array(ids, pa.string()), "split": pa.array(rows.splits, pa.string())}
        for column in columns:
            value = rows.values[column.name]
            if column.parts:
                kind = pa.string() if column.texts else pa.from_numpy_dtype(value.dtype)
                for j, name in enumerate(column.parts):
                    cells = [column.texts[i] for i in value[:, j]] if column.texts else value[:, j]
                    tables[f"{column.name}/{name}"] = pa.array(cells, kind)
            else:
                cells = pa.array(np.ascontiguousarray(value).reshape(-1))
                for size in reversed(value.shape[1:]):
                    cells = pa.FixedSizeListArray.from_arrays(cells, size)
                tables[column.name] = cells
        table = pa.table(tables)
        writer = writer or parquet.ParquetWriter(file, table.schema)
        writer.write_table(table)
        number += len(ids)
    if writer is None:
        raise DataError("no image could be used, so there is nothing to write")
    writer.close()
    return number


_WRITERS: dict[str, Callable[[BinaryIO, Sequence[Column], Parts], int]] = {
    ".csv": _write_csv,
    ".npy": _write_npy,
    ".parquet": _write_parquet,
}
