"""What one cell of a table says: a text, several, or nothing, however csv, JSON or parquet hold it."""

from __future__ import annotations

import ast
import json
import re
import unicodedata
from datetime import date, time
from typing import Any

__all__ = ["is_empty", "items", "name_of", "patient_id", "values", "written"]

_NOTHING = frozenset(
    {"", "na", "n/a", "n.a", "nan", "nat", "none", "null", "missing", "unknown", "notavailable", "notapplicable"}
)
"""Ways to write nothing, in small letters, without spaces and without punctuation around them."""
_LONGEST = 24  # no way to write nothing is longer
_AROUND = re.compile(r"^[\W_]+|[\W_]+$|\s+")
_WHOLE = re.compile(r"([0-9]+)(?:\.0*|,0{1,2})")  # 101.0, and 101,0 where the comma is the decimal sign
_SHORTENED = re.compile(r"[0-9](?:[.,][0-9]+)?[eE]\+[0-9]+")
_QUOTED = r"""(?:[uU]?(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")|None)"""
_COMMAS = re.compile(rf"[\[(]\s*(?:{_QUOTED}(?:\s*,\s*{_QUOTED})*\s*,?\s*)?[\])]", re.DOTALL)
_NUMPY = re.compile(rf"\[\s*{_QUOTED}(?:\s+{_QUOTED})+\s*\]", re.DOTALL)  # ['a' 'b'], which Python reads as ['ab']
_LIST_LIKE = re.compile(r"""[\[(]\s*(?:[uU]?['"]|nan\b|None\b|null\b)""")
_EXACT = 2**53  # whole numbers beyond it are not all floats


def is_empty(text: str) -> bool:
    r"""Whether a text is a way of writing nothing: ``NA``, ``n/a``, ``None``, ``-``, ``.``, ``<NA>``, ``\\N``, white space."""
    if len(text) <= _LONGEST and (_AROUND.sub("", text.casefold()) in _NOTHING or text == r"\N"):
        return True
    return not any(map(str.isalnum, text))


def name_of(column: str) -> str:
    """The name of a column in one form of Unicode, without white space or invisible signs around it."""
    return _visible(column).strip()


def _visible(text: str) -> str:
    if text.isascii():
        return text
    return "".join(c for c in unicodedata.normalize("NFC", text) if unicodedata.category(c) != "Cf")


def patient_id(text: str) -> str:
    """The one way of writing a patient's id: ``101.0`` is ``101``. Leading zeros and capitals stay, since they may matter.

    Raises:
        ValueError: a spreadsheet has shortened the number, so that its last digits are lost.
    """
    text = _visible(text).strip()
    if _SHORTENED.fullmatch(text):
        raise ValueError(f"'{text}', a number without its last digits; export the column as text")
    whole = _WHOLE.fullmatch(text)
    return whole.group(1) if whole else text


def written(value: Any) -> str:
    """One value as text, white space around it removed; empty for None and NaN.

    Raises:
        ValueError: it is several values, an object, or binary.
    """
    if isinstance(value, str):
        return value.strip()
    if value is None or value != value:  # NaN is not equal to itself
        return ""
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
        return str(int(value))
    if isinstance(value, list | tuple):
        if len(value) > 1:
            raise ValueError(f"a list of {len(value)} values where one belongs; give one")
        return written(value[0]) if value else ""
    if isinstance(value, dict):
        fields = ", ".join(str(key) for key in list(value)[:6])
        raise ValueError(f"an object with {fields or 'no field'}; make each field a column of its own")
    if isinstance(value, bytes):
        try:
            return value.decode().strip()
        except UnicodeDecodeError:
            raise ValueError(f"{len(value)} bytes that are no text; give text, or the path of a file") from None
    if isinstance(value, date | time):  # a datetime is a date
        return value.isoformat()
    return str(value)


def values(value: Any) -> list[Any] | None:
    """The values of a list, typed or written as JSON or Python writes it (``['a.jpg', 'b.jpg']``); None for any other.

    Text is taken for a list where it is one of texts alone, and for an object where it is one. Nothing is evaluated.

    Raises:
        ValueError: it is an object, or a list that cannot be read.
    """
    if isinstance(value, list | tuple):
        return list(value)
    if not isinstance(value, str):
        return None
    text = value.strip()
    if text[:1] + text[-1:] not in {"[]", "()", "{}"}:
        return None
    found = _parsed(text)
    if isinstance(found, dict):
        written(found)
    if isinstance(found, list | tuple) and all(isinstance(item, str | None) for item in found):
        return list(found)
    if found is None and _LIST_LIKE.match(text):
        raise ValueError(f"'{text[:40]}', a list that cannot be read; write it as JSON")
    return None


def _parsed(text: str) -> Any:
    """What JSON or a Python literal says; None if it is neither."""
    if _NUMPY.fullmatch(text):
        return [ast.literal_eval(quoted) for quoted in re.findall(_QUOTED, text, re.DOTALL)]
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        try:
            found = ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # all that a hostile text raises
            return None
    joined = isinstance(found, list | tuple) and not _COMMAS.fullmatch(text)  # Python joins 'a' 'b' without a comma
    return None if joined and all(isinstance(item, str | None) for item in found) else found


def items(value: Any) -> list[str] | None:
    """The texts of a list that are not empty; None where the value is no list.

    Raises:
        ValueError: it is an object, or holds one, or a list.
    """
    found = values(value)
    if found is None:
        return None
    texts = []
    for item in found:
        if isinstance(item, list | tuple):
            raise ValueError("a list within a list; give one list of texts")
        texts.append(written(item))
    return [text for text in texts if not is_empty(text)]
