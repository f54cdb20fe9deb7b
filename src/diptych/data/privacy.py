"""What leaves a private run: names, columns and counts, but no id, path or text of the data."""

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

__all__ = ["discreet", "strings", "withheld"]

_HIDDEN = "(withheld)"
_LINES = r"\b(?:lines?|rows?|columns?) \d+(?:(?:, | and |-)\d+)*"
_QUOTED = r"(?<!\w)'.*?'(?!\w)|(?<!\w)\".*?\"(?!\w)|`[^`]*`"
_PATH = r"(?<![\w(])(?:[\w.~-]*/)+[^\s:;,)]*"
_NUMBERED = r"[\w.-]*\d{3,}[\w.-]*"
_TOKENS = re.compile(f"({_LINES})|({_QUOTED})|({_PATH})|({_NUMBERED})", re.DOTALL)


_LOGGERS = ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch")


@contextmanager
def discreet(known: Iterable[str]) -> Iterator[None]:
    """Within it, errors of the data, warnings and Lightning's log pass through :func:`withheld`."""
    keep = set(known)

    def hide(record: logging.LogRecord) -> bool:
        record.msg, record.args = withheld(record.getMessage(), keep), ()
        return True

    for name in _LOGGERS:
        logging.getLogger(name).addFilter(hide)
    try:
        with warnings.catch_warnings(record=True) as caught:
            yield
    except ImageError as error:
        raise refuse(error.rule, withheld(str(error), keep)) from None
    except DataError as error:
        raise DataError(withheld(str(error), keep)) from None
    finally:
        for name in _LOGGERS:
            logging.getLogger(name).removeFilter(hide)
    for warning in caught:
        warnings.warn(withheld(str(warning.message), keep), warning.category, stacklevel=3)


def strings(value: Any) -> set[str]:
    """All texts in a configuration: those of lists, mappings and dataclasses too."""
    if isinstance(value, str):
        return {value}
    if is_dataclass(value) and not isinstance(value, type):
        return strings([getattr(value, item.name) for item in fields(value)])
    if isinstance(value, dict):
        return strings([*value.keys(), *value.values()])
    if isinstance(value, list | tuple | set | frozenset):
        return {text for item in value for text in strings(item)}
    return set()


def withheld(message: str, known: Iterable[str]) -> str:
    """A message without what it may say of patients: quoted values, paths, and words with numbers of three digits or more.

    Args:
        message: of an error.
        known: what may be said, for it stands in the run's configuration.
    """
    keep = {text for text in known if text}

    def judged(found: re.Match[str]) -> str:
        lines, quoted, path, numbered = found.groups()
        if lines:
            return lines
        if quoted:
            return quoted if quoted[1:-1] in keep else f"{quoted[0]}{_HIDDEN}{quoted[-1]}"
        word = (path or numbered).rstrip(".")
        return found[0] if word in keep else _HIDDEN + found[0][len(word) :]

    return _TOKENS.sub(judged, message)
