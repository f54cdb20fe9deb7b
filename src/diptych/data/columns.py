"""Records of one kind as columns, for data sets of hundreds of thousands of rows.

So many Python objects take much memory, and are slow to send to a worker. A forked worker copies them page by page, since
reading an object writes its count of references. Columns are a few arrays. A record is made when it is asked for.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar, cast, overload

import numpy as np

from diptych.radiographs.packed import PackedImage

__all__ = ["Column", "Records", "Strings"]

T = TypeVar("T")


class _Sequence(Sequence[T]):
    """The methods of a list, made of ``_at`` and ``__len__``."""

    @abstractmethod
    def _at(self, index: int) -> T:
        """The value at a place, counted from 0."""

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return [self._at(i) for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self._at(index % len(self))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(other) != len(self):
            return False
        return all(mine == its for mine, its in zip(self, other, strict=True))


class Strings(_Sequence[str]):
    """Strings in one block of bytes.

    >>> strings = Strings(["effusion", "", "nodule"])
    >>> len(strings), strings[-1], strings[:2]
    (3, 'nodule', ['effusion', ''])
    """

    def __init__(self, strings: Iterable[str]) -> None:
        encoded = [text.encode(errors="surrogatepass") for text in strings]
        self._ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        self._bytes = b"".join(encoded)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __iter__(self) -> Iterator[str]:
        ends = self._ends.tolist()
        return (self._bytes[begin:end].decode(errors="surrogatepass") for begin, end in pairwise(ends))

    def _at(self, index: int) -> str:
        begin, end = self._ends[index : index + 2].tolist()
        return self._bytes[begin:end].decode(errors="surrogatepass")


class Column(_Sequence[T]):
    """Values of one field. Equal strings and identical objects are stored once."""

    def __init__(self, values: Sequence[T]) -> None:
        some = next((value for value in values if value is not None), None)
        self._store = some.store if isinstance(some, PackedImage) else None
        if isinstance(some, PackedImage):
            places = [value.at if isinstance(value, PackedImage) else -1 for value in values]
            self._codes = np.array(places, np.int32)
            return
        self._path = isinstance(some, Path)
        plain: Sequence[Any] = [None if value is None else str(value) for value in values] if self._path else values
        text = isinstance(some, str) or self._path
        keys: list[Any] = list(plain) if text else list(map(id, plain))
        unique = dict(zip(keys, plain, strict=True))
        unique.pop(None if text else id(None), None)
        number = {None if text else id(None): -1} | {key: i for i, key in enumerate(unique)}
        self._codes = np.fromiter(map(number.__getitem__, keys), np.int32, len(keys))
        self._distinct: Sequence[Any] = Strings(unique.values()) if text else list(unique.values())

    def __len__(self) -> int:
        return len(self._codes)

    def __iter__(self) -> Iterator[T]:
        if self._store is not None:
            return super().__iter__()
        distinct = [self._restore(value) for value in self._distinct]
        distinct.append(None)  # the code -1
        return (distinct[code] for code in self._codes.tolist())

    def _restore(self, value: Any) -> Any:
        return Path(value) if self._path else value

    def _at(self, index: int) -> T:
        code = int(self._codes[index])
        if code < 0:
            return cast("T", None)
        return cast("T", self._restore(self._distinct[code]) if self._store is None else PackedImage(self._store, code))


class Records(_Sequence[T]):
    """Records by field. All are dataclasses of one class."""

    def __init__(self, records: Sequence[T]) -> None:
        kind: Any = type(records[0]) if records else None
        self._kind = kind
        names = [field.name for field in fields(kind)] if records else []
        self._columns = {name: Column([getattr(record, name) for record in records]) for name in names}
        self._len = len(records)

    def column(self, name: str) -> Sequence[Any]:
        """The values of one field."""
        return self._columns[name] if self._len else []

    def __len__(self) -> int:
        return self._len

    def _at(self, index: int) -> T:
        record: T = self._kind(**{name: column._at(index) for name, column in self._columns.items()})
        return record
