"""Checks of arguments: one sentence for whatever is out of range."""

from __future__ import annotations

from collections.abc import Collection
from numbers import Integral, Real

from diptych.errors import ConfigError

__all__ = ["check_choice", "check_number"]


def check_number(
    name: str,
    value: object,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    whole: bool = False,
    remedy: str = "",
) -> None:
    """Refuse a number out of its range. NaN is out of every range.

    >>> check_number("head reclf: steps", 0, least=1, whole=True)
    Traceback (most recent call last):
    diptych.errors.ConfigError: head reclf: steps is 0; give a whole number of 1 or more

    Args:
        name: the argument, with what it belongs to.
        value: what the user gave.
        least: the smallest value allowed.
        above: values must be larger than this.
        most: the largest value allowed.
        below: values must be smaller than this.
        whole: whether it must be a whole number.
        remedy: what to give instead. If it is empty, the message names the range.

    Raises:
        ConfigError: it is no number, or out of range.
    """
    fits = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
    if fits and isinstance(value, Real):
        number = float(value)
        fits = (
            (number == number)
            and (least is None or number >= least)
            and (above is None or number > above)
            and (most is None or number <= most)
            and (below is None or number < below)
        )
    if not fits:
        raise ConfigError(f"{name} is {value}; give {remedy or _range(least, above, most, below, whole)}")


def _range(least: float | None, above: float | None, most: float | None, below: float | None, whole: bool) -> str:
    kind = "a whole number" if whole else "a number"
    if least is not None and most is not None:
        return f"{kind} from {least:g} to {most:g}"
    low = f"above {above:g}" if above is not None else ""
    high = f"up to {most:g}" if most is not None else f"below {below:g}" if below is not None else ""
    if least is not None:
        low = f"of {least:g} or more"
    return " ".join([kind, " and ".join(part for part in (low, high) if part)]).strip()


def check_choice(name: str, value: object, choices: Collection[object]) -> None:
    """Refuse what is none of the choices.

    >>> check_choice("head reclf: mode", "both", ["srm", "irm"])
    Traceback (most recent call last):
    diptych.errors.ConfigError: head reclf: mode is 'both'; choose among: srm, irm

    Raises:
        ConfigError: it is none of them.
    """
    if value not in choices:
        raise ConfigError(f"{name} is {value!r}; choose among: {', '.join(str(choice) for choice in choices)}")
