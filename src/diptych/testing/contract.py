"""What all contracts share: a rule, and the one error of a broken one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from diptych.errors import ConfigError, DiptychError
from diptych.plugins import nearest

__all__ = ["BrokenContract", "Found", "Rule", "chosen", "close", "rule"]

C = TypeVar("C")


class BrokenContract(DiptychError, AssertionError):
    """A head, a datamodule, an evaluator or a task does not keep to its contract.

    It is an ``AssertionError`` too. So every test runner counts it as a failed test.

    Args:
        what: the thing that was checked, as ``head Margin``.
        rule: the name of the broken rule.
        figures: what was measured.
        cause: the likely cause.
        remedy: what to do about it.
    """

    def __init__(self, what: str, rule: str, figures: str, cause: str, remedy: str) -> None:
        super().__init__(f"{what} breaks the rule '{rule}': {figures}. Likely cause: {cause}. Remedy: {remedy}.")
        self.rule, self.figures = rule, figures


class Found(Exception):
    """What a rule found wrong, in figures.

    Args:
        figures: what was measured.
        cause: the likely cause, where it is not that of the rule.
        remedy: what to do about it, where it is not that of the rule.
    """

    def __init__(self, figures: str, cause: str = "", remedy: str = "") -> None:
        super().__init__(figures)
        self.figures, self.cause, self.remedy = figures, cause, remedy


@dataclass(frozen=True)
class Rule(Generic[C]):
    """One rule of a contract. Called with a case, it returns nothing or raises :class:`BrokenContract`."""

    name: str
    check: Callable[[C], None]
    """Function that raises :class:`Found` where the rule is broken."""
    cause: str
    remedy: str

    @property
    def __name__(self) -> str:
        return self.name

    @property
    def promise(self) -> str:
        """What the rule asks for, in one sentence."""
        return (self.check.__doc__ or "").partition("\n")[0]

    def __call__(self, case: C) -> None:
        """Check a case.

        Raises:
            BrokenContract: it breaks the rule.
        """
        try:
            self.check(case)
        except Found as found:
            raise BrokenContract(
                str(case), self.name, found.figures, found.cause or self.cause, found.remedy or self.remedy
            ) from None
        except Exception as error:  # whatever the code under test does
            first = str(error).strip().partition("\n")[0]
            raise BrokenContract(
                str(case), self.name, f"{type(error).__name__}: {first}", self.cause, self.remedy
            ) from error


def rule(name: str, cause: str, remedy: str) -> Callable[[Callable[[C], None]], Rule[C]]:
    """Make a rule of a function. Its docstring's first line is the promise."""
    return lambda check: Rule(name, check, cause, remedy)


def chosen(rules: Mapping[str, Rule[C]], without: Collection[str]) -> list[Rule[C]]:
    """All rules but some.

    Raises:
        ConfigError: a name in ``without`` is no rule.
    """
    for name in without:
        if name not in rules:
            raise ConfigError(
                f"without names '{name}'; the rules are, nearest first: {', '.join(nearest(name, rules))}"
            )
    return [each for name, each in rules.items() if name not in without]


def close(what: str, actual: Any, expected: Any, tolerance: float | None = None) -> None:
    """Raise :class:`Found` unless two tensors agree, relative to the larger one's largest value.

    Args:
        what: is compared, for the message.
        actual: a tensor.
        expected: a tensor of the same shape.
        tolerance: largest relative difference. Left out, it is 1e-9 for float64 and 1e-5 for anything shorter.
    """
    a, b = (
        x.detach() if isinstance(x, Tensor) else torch.as_tensor(x, dtype=torch.float64) for x in (actual, expected)
    )
    if a.shape != b.shape:
        raise Found(f"{what} has the shape {list(a.shape)} instead of {list(b.shape)}")
    if not a.numel():
        return
    if not (a.isfinite().all() and b.isfinite().all()):
        raise Found(f"{what} is not finite")
    limit = tolerance or (1e-9 if torch.float64 in (a.dtype, b.dtype) and a.dtype == b.dtype else 1e-5)
    scale = max(float(a.abs().max()), float(b.abs().max()), 1e-6)
    difference = float((a.double() - b.double()).abs().max()) / scale
    if difference > limit:
        place = int((a.double() - b.double()).abs().flatten().argmax())
        raise Found(
            f"{what} differs by {difference:.2g} of its largest value (allowed {limit:.0e}): "
            f"{float(a.flatten()[place]):.6g} instead of {float(b.flatten()[place]):.6g}"
        )
