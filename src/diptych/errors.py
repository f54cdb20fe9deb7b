"""The errors that a user can cause. One line says what is wrong, where, and what to do about it."""

from __future__ import annotations

__all__ = ["ConfigError", "DataError", "DiptychError", "shown"]


class DiptychError(Exception):
    """Base of every error that names a thing, its value and a remedy. The command line prints it without a traceback."""


class ConfigError(DiptychError):
    """An option, head, tower or checkpoint that cannot be used as asked."""


class DataError(DiptychError):
    """A file, column, label or split that cannot be used as asked."""


def shown(value: object) -> str:
    r"""A value for a message, in one short line whatever it holds.

    >>> print(shown("two\nlines"))
    'two\nlines'
    """
    try:
        text = repr(value[:200] if isinstance(value, str | bytes) else value if _small(value) else type(value).__name__)
    except (ValueError, RecursionError):  # a whole number of too many digits, a list within itself
        text = type(value).__name__
    return text if len(text) <= 80 else f"{text[:77]}..."


def _small(value: object) -> bool:
    return not isinstance(value, list | tuple | dict | set) or (len(value) <= 8 and all(_flat(v) for v in value))


def _flat(value: object) -> bool:
    return value is None or isinstance(value, str | int | float)
