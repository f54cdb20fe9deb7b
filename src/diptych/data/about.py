"""What a table knows of a sample beside its findings, by which a test set is divided into subgroups."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

__all__ = ["ABOUT", "OLDEST", "described", "sex", "years"]

ABOUT = ("sex", "age", "view", "site")
"""The names of these columns in a file of predictions."""
OLDEST = 90
"""Higher ages are written as this one, as an age above 89 may point at a person (HIPAA, 45 CFR 164.514)."""
_SEXES = {"f": "F", "female": "F", "w": "F", "woman": "F", "m": "M", "male": "M", "man": "M"}
_AGE = re.compile(r"0*(\d{1,3})(?:\.\d+)?\s*([YMWD]?)", re.IGNORECASE)


def sex(text: str) -> str:
    """F, M, or an empty text for all else.

    >>> sex("Female"), sex("m"), sex("Unknown")
    ('F', 'M', '')
    """
    return _SEXES.get(text.strip().casefold(), "")


def years(text: str) -> str:
    """An age in whole years, at most :data:`OLDEST`. It is empty where none is read, and where it is above 120.

    >>> years("58"), years("058Y"), years("008M"), years("93.0"), years("411"), years("")
    ('58', '58', '0', '90', '', '')
    """
    match = _AGE.fullmatch(text.strip())
    if match is None or int(match[1]) > 120:
        return ""
    age = (
        int(match[1])
        if match[2].upper() in ("", "Y")
        else int(match[1]) // {"M": 12, "W": 52, "D": 365}[match[2].upper()]
    )
    return str(min(age, OLDEST))


def described(**columns: Sequence[str]) -> Mapping[str, Sequence[str]]:
    """The columns in which anything is known.

    >>> described(sex=["F", ""], view=["", ""])
    {'sex': ['F', '']}
    """
    return {name: values for name, values in columns.items() if any(values)}
