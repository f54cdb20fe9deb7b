"""The catalogue: heads, datamodules, tasks, evaluators, peers and commands that installed packages register as entry points.

Nothing is imported until it is chosen. So a broken plug-in breaks only the run that asks for it.
"""

from __future__ import annotations

import ast
import difflib
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from diptych.errors import ConfigError

__all__ = [
    "COMMANDS",
    "DATAMODULES",
    "EVALUATORS",
    "HEADS",
    "PEERS",
    "TASKS",
    "Plugin",
    "describe",
    "find",
    "known",
    "nearest",
    "plugins",
]

HEADS = "diptych.heads"
DATAMODULES = "diptych.datamodules"
COMMANDS = "diptych.commands"
PEERS = "diptych.peers"
TASKS = "diptych.tasks"
EVALUATORS = "diptych.evaluators"
_KIND = {
    HEADS: "head",
    DATAMODULES: "datamodule",
    TASKS: "task",
    EVALUATORS: "evaluator",
    COMMANDS: "command",
    PEERS: "peer",
}


@dataclass(frozen=True)
class Plugin:
    """One line of a catalogue."""

    name: str
    """The entry point's name, as ``local_pooling``."""
    path: str
    """The import path, as ``diptych_heads.local_pooling.LocalPooling``."""
    distribution: str
    """The installed package that brings it."""
    group: str

    @property
    def class_name(self) -> str:
        """The bare class name, as ``LocalPooling``."""
        return self.path.rpartition(".")[2]

    @property
    def summary(self) -> str:
        """The first line of its module's docstring, read without importing anything. Empty if there is none.

        A function of another name than ``main`` has its own.
        """
        module = self.path.rpartition(".")[0]
        package = find_spec(module.partition(".")[0])
        if package is None:
            return ""
        inside = [Path(folder, *module.split(".")[1:]) for folder in package.submodule_search_locations or []]
        files = [file for path in inside for file in (path.with_suffix(".py"), path / "__init__.py")]
        for file in files or [Path(package.origin or "")]:  # a plug-in may be one file
            if file.is_file():
                tree: ast.Module | ast.FunctionDef = ast.parse(file.read_text(encoding="utf-8"))
                for node in tree.body if self.class_name != "main" else ():
                    if (
                        isinstance(node, ast.FunctionDef) and node.name == self.class_name
                    ):  # several commands in a module
                        tree = node
                text = ast.get_docstring(tree) or ""
                return text.partition("\n")[0].partition(": ")[2] or text.partition("\n")[0]
        return ""

    def load(self) -> Any:
        """Import and return the registered object.

        Raises:
            ConfigError: the package that registers it cannot be imported.
        """
        module, _, attribute = self.path.rpartition(".")
        try:
            __import__(module)
            return getattr(sys.modules[module], attribute)
        except Exception as error:  # whatever a module does when it is imported
            raise ConfigError(
                f"the {_KIND[self.group]} '{self.name}' of the package '{self.distribution}' cannot be imported from "
                f"{self.path}: {type(error).__name__}: {error}; repair or uninstall that package"
            ) from error


@cache
def plugins(group: str) -> tuple[Plugin, ...]:
    """Every registered plug-in of a group, sorted by name.

    Raises:
        ConfigError: two packages register the same name, or nothing is registered (diptych is not installed).
    """
    by_name: dict[str, Plugin] = {}
    for point in entry_points(group=group):
        owner = point.dist.name if point.dist is not None else "unknown"
        plugin = Plugin(point.name, point.value.replace(":", "."), owner, group)
        other = by_name.setdefault(plugin.name, plugin)
        if other.path != plugin.path:
            raise ConfigError(
                f"the {_KIND[group]} name '{plugin.name}' is registered twice, by '{other.distribution}' ({other.path}) "
                f"and by '{plugin.distribution}' ({plugin.path}); uninstall one of them"
            )
    if not by_name:
        raise ConfigError(
            f"no {_KIND[group]}s are registered: install diptych (`make install`, or pip install diptych)"
        )
    return tuple(sorted(by_name.values(), key=lambda plugin: plugin.name))


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """All of ``known``, for messages. Those most similar to ``name`` come first.

    >>> nearest("globl", ["pcma", "global"])
    ['global', 'pcma']
    """

    def distance(other: str) -> float:
        return -difflib.SequenceMatcher(None, name.lower(), other.lower()).ratio()

    return sorted(known, key=lambda other: (distance(other), other))


def known(group: str, name: str) -> str:
    """The names in a catalogue, for messages. Those most similar to ``name`` come first."""
    return ", ".join(nearest(name, [plugin.name for plugin in plugins(group)]))


def find(group: str, name: str) -> Plugin:
    """The plug-in with this entry-point name or bare class name.

    Raises:
        ConfigError: no plug-in has the name, or several have it as their class name. The message lists the known names.
    """
    for plugin in plugins(group):
        if name == plugin.name:
            return plugin
    of_class = [plugin for plugin in plugins(group) if name == plugin.class_name]
    if len(of_class) == 1:
        return of_class[0]
    if of_class:
        names = ", ".join(f"{plugin.name} ({plugin.path})" for plugin in of_class)
        raise ConfigError(f"the class name '{name}' is ambiguous: it is that of {names}; use one of these names")
    kind = _KIND[group]
    listing = "docs/peers.md" if group == PEERS else f"`diptych {kind}s`"
    raise ConfigError(
        f"unknown {kind} '{name}'; known {kind}s, nearest first: {known(group, name)} ({listing} describes them)"
    )


def describe(group: str) -> list[dict[str, Any]]:
    """What ``diptych heads`` and the other lists print: one mapping for each plug-in, ``name`` first.

    The mapping of a plug-in that cannot be imported has the reason under ``error``.
    """
    rows = []
    for plugin in plugins(group):
        row: dict[str, Any] = {"name": plugin.name, "class": plugin.path, "distribution": plugin.distribution}
        try:
            target = plugin.load()
            if group in {TASKS, EVALUATORS}:
                row["summary"] = (target.__doc__ or "").partition("\n")[0]
                row["monitor" if group == TASKS else "wants_val"] = (
                    target.monitor if group == TASKS else target.wants_val
                )
                rows.append(row)
                continue
            row |= {"paper": target.paper, "needs": sorted(target.needs), "gathers": sorted(target.gathers)}
            if group == DATAMODULES:
                row["holds"] = sorted(target.holds)
        except (ConfigError, AttributeError) as error:  # it cannot be imported, or is something else
            lacks = {"summary": ""} if group in {TASKS, EVALUATORS} else {"paper": "", "needs": [], "gathers": []}
            row |= {**lacks, "error": str(error)}
        rows.append(row)
    return rows
