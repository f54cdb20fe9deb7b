"""Releases whose tables are JSON objects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from diptych.data.table_files import text_of
from diptych.errors import DataError

__all__ = ["field", "read_object"]


def read_object(path: Path) -> dict[str, Any]:
    """The object that a file holds, plain or gzipped.

    Raises:
        DataError: it is not there, damaged, or holds something else.
    """
    with text_of(path) as file:
        try:
            content = json.load(file)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: no JSON ({error}); get it anew") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: holds a {type(content).__name__}, not an object; get the file of that name anew")
    return content


def field(entry: Any, name: str, kind: type | tuple[type, ...], where: str) -> Any:
    """A value of an entry.

    >>> field({"id": 3}, "id", int, "images")
    3

    Raises:
        DataError: the entry has none, or one of another kind.
    """
    value = entry.get(name) if isinstance(entry, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise DataError(f"{where}: '{name}' is {str(value)[:80]!r}; get the release's own file anew")
    return value
