"""The content of one cell of a table: a text, several texts, or nothing. csv, JSON and parquet hold them in different ways."""

from __future__ import annotations

import ast
import json
import re
import unicodedata
from datetime import date, time
from typing import Any

__all__ = ["cell_text", "is_empty", "items", "name_of", "patient_id", "values"]

_NOTHING = frozenset(
    {"", "na", "n/a", "n.a", "nan", "nat", "none", "null", "missing", "unknown", "notavailable", "notapplicable"}
)
"""Words that mean nothing, in lower case, without spaces and without punctuation around them."""
_LONGEST = 24  # no word that means nothing is longer
_AROUND = re.compile(r"^[\W_]+|[\W_]+$|\s+")
_WHOLE = re.compile(r"([0-9]+)(?:\.0*|,0{1,2})")  # 101.0, and 101,0 where the comma is the decimal sign
_SHORTENED = re.compile(r"[0-9](?:[.,][0-9]+)?[eE]\+[0-9]+")
_QUOTED = r"""(?:[uU]?(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")|None)"""
_COMMAS = re.compile(rf"[\[(]\s*(?:{_QUOTED}(?:\s*,\s*{_QUOTED})*\s*,?\s*)?[\])]", re.DOTALL)
_NUMPY = re.compile(rf"\[\s*{_QUOTED}(?:\s+{_QUOTED})+\s*\]", re.DOTALL)  # ['a' 'b'], which Python reads as ['ab']
_LIST_LIKE = re.compile(r"""[\[(]\s*(?:[uU]?['"]|nan\b|None\b|null\b)""")
_EXACT = 2**53  # whole numbers beyond it are not all floats


def is_empty(text: str) -> bool:
    r"""Whether a text means nothing, as ``NA``, ``n/a``, ``None``, ``-``, ``.``, ``<NA>``, ``\\N`` and white space do.

    >>> is_empty("n/a"), is_empty(" - "), is_empty("No effusion.")
    (True, True, False)
    """
    if len(text) <= _LONGEST and (_AROUND.sub("", text.casefold()) in _NOTHING or text == r"\N"):
        return True
    return not any(map(str.isalnum, text))


def name_of(column: str) -> str:
    r"""The name of a column in one form of Unicode, without invisible signs, and without white space around it.

    >>> name_of("\ufeff Effusion ")
    'Effusion'
    """
    return _without_invisible(column).strip()


def _without_invisible(text: str) -> str:
    if text.isascii():
        return text
    return "".join(c for c in unicodedata.normalize("NFC", text) if unicodedata.category(c) != "Cf")


def patient_id(text: str) -> str:
    """A patient's id in one form: ``101.0`` is ``101``. Leading zeros and capitals stay, since they may matter.

    >>> patient_id("101.0"), patient_id("007"), patient_id("p10 ")
    ('101', '007', 'p10')

    Raises:
        ValueError: a spreadsheet has shortened the number, so that its last digits are lost.
    """
    text = _without_invisible(text).strip()
    if _SHORTENED.fullmatch(text):
        raise ValueError(f"'{text}', a number without its last digits; export the column as text")
    whole = _WHOLE.fullmatch(text)
    return whole.group(1) if whole else text


def cell_text(value: Any) -> str:
    """One value as text, without white space around it. None and NaN give an empty text.

    >>> cell_text(3.0), cell_text([" left "]), cell_text(None)
    ('3', 'left', '')

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
        return cell_text(value[0]) if value else ""
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
    """The values of a list, or None if the value is no list.

    A text may spell a list as JSON or Python do (``['a.jpg', 'b.jpg']``), if all its items are texts. Nothing is evaluated.

    >>> values("['a.jpg', 'b.jpg']"), values("a.jpg")
    (['a.jpg', 'b.jpg'], None)

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
    content = _parse(text)
    if isinstance(content, dict):
        cell_text(content)  # refuses it
    if isinstance(content, list | tuple) and all(isinstance(item, str | None) for item in content):
        return list(content)
    if content is None and _LIST_LIKE.match(text):
        raise ValueError(f"'{text[:40]}', a list that cannot be read; write it as JSON")
    return None


def _parse(text: str) -> Any:
    """The content of JSON or of a Python literal. None if the text is neither."""
    if _NUMPY.fullmatch(text):
        return [ast.literal_eval(quoted) for quoted in re.findall(_QUOTED, text, re.DOTALL)]
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        try:
            content = ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # all that a hostile text raises
            return None
    joined = isinstance(content, list | tuple) and not _COMMAS.fullmatch(text)  # Python joins 'a' 'b' without a comma
    return None if joined and all(isinstance(item, str | None) for item in content) else content


def items(value: Any) -> list[str] | None:
    """The texts of a list that are not empty, or None if the value is no list.

    >>> items('["effusion", "NA", "left"]')
    ['effusion', 'left']

    Raises:
        ValueError: it is an object, or a list that holds objects or lists.
    """
    content = values(value)
    if content is None:
        return None
    texts = []
    for item in content:
        if isinstance(item, list | tuple):
            raise ValueError("a list within a list; give one list of texts")
        texts.append(cell_text(item))
    return [text for text in texts if not is_empty(text)]
