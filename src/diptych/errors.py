"""The one kind of error a user is meant to see: what is wrong, where, and what to do about it, in one line."""

from __future__ import annotations

__all__ = ["ConfigError", "DataError", "DiptychError"]


class DiptychError(Exception):
    """Base of every error that names a thing, its value and a remedy. The command line prints it without a traceback."""


class ConfigError(DiptychError):
    """An option, head, tower or checkpoint that cannot be used as asked."""


class DataError(DiptychError):
    """A file, column, label or split that cannot be used as asked."""
