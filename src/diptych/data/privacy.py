"""What a private run may write or print: names, columns and counts, but no id, path or text of the data."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

from diptych.errors import DataError
from diptych.radiographs.limits import ImageError, refuse

__all__ = ["discreet", "redact", "strings"]

_HIDDEN = "(withheld)"
_LINES = r"\b(?:lines?|rows?|columns?) \d+(?:(?:, | and |-)\d+)*"
_QUOTED = r"(?<!\w)'.*?'(?!\w)|(?<!\w)\".*?\"(?!\w)|`[^`]*`"
_PATH = r"(?<![\w(])(?:[\w.~-]*/)+[^\s:;,)]*"
_NUMBERED = r"[\w.-]*\d{3,}[\w.-]*"
_TOKENS = re.compile(f"({_LINES})|({_QUOTED})|({_PATH})|({_NUMBERED})", re.DOTALL)
_LOGGERS = ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch")


@contextmanager
def discreet(known: Iterable[str]) -> Iterator[None]:
    """A context in which errors of the data, warnings and Lightning's log pass through :func:`redact`."""
    keep = set(known)

    def hide(record: logging.LogRecord) -> bool:
        record.msg, record.args = redact(record.getMessage(), keep), ()
        return True

    for name in _LOGGERS:
        logging.getLogger(name).addFilter(hide)
    try:
        with warnings.catch_warnings(record=True) as caught:
            yield
    except ImageError as error:
        raise refuse(error.rule, redact(str(error), keep)) from None
    except DataError as error:
        raise DataError(redact(str(error), keep)) from None
    finally:
        for name in _LOGGERS:
            logging.getLogger(name).removeFilter(hide)
    for warning in caught:
        warnings.warn(redact(str(warning.message), keep), warning.category, stacklevel=3)


def strings(value: Any) -> set[str]:
    """All texts in a configuration, those in lists, mappings and dataclasses included.

    >>> sorted(strings({"root": "data", "text": ["findings", "impression"], "seed": 0}))
    ['data', 'findings', 'impression', 'root', 'seed', 'text']
    """
    if isinstance(value, str):
        return {value}
    if is_dataclass(value) and not isinstance(value, type):
        return strings([getattr(value, item.name) for item in fields(value)])
    if isinstance(value, dict):
        return strings([*value.keys(), *value.values()])
    if isinstance(value, list | tuple | set | frozenset):
        return {text for item in value for text in strings(item)}
    return set()


def redact(message: str, known: Iterable[str]) -> str:
    """Leave out of a message what may tell of patients: quoted values, paths, and words with three digits or more.

    >>> redact("/data/p1000/a.png, line 12: the label is 'maybe' in column 'Edema'", ["Edema"])
    "(withheld), line 12: the label is '(withheld)' in column 'Edema'"

    Args:
        message: of an error.
        known: texts that stay, since they stand in the run's configuration.
    """
    keep = {text for text in known if text}

    def replacement(token: re.Match[str]) -> str:
        lines, quoted, path, numbered = token.groups()
        if lines:
            return lines
        if quoted:
            return quoted if quoted[1:-1] in keep else f"{quoted[0]}{_HIDDEN}{quoted[-1]}"
        word = (path or numbered).rstrip(".")
        return token[0] if word in keep else _HIDDEN + token[0][len(word) :]

    return _TOKENS.sub(replacement, message)
