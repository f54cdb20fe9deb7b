"""The contract suite: what every head, datamodule, evaluator and task must hold to, for the tests of any package.

``check_head(Mine)`` runs the whole contract, and raises one error that names the broken rule, the figures, the likely cause
and the remedy (``docs/testing.md``). No test runner is needed.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diptych.testing.contract import BrokenContract as BrokenContract
    from diptych.testing.datamodules import check_datamodule as check_datamodule
    from diptych.testing.evaluators import check_evaluator as check_evaluator
    from diptych.testing.heads import check_head as check_head
    from diptych.testing.tasks import check_task as check_task

_FROM = {
    "BrokenContract": "contract",
    "check_datamodule": "datamodules",
    "check_evaluator": "evaluators",
    "check_head": "heads",
    "check_task": "tasks",
}
"""The module that defines each name. It is imported when the name is first used."""


def __getattr__(name: str) -> Any:
    if name not in _FROM:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_FROM[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_FROM)
