"""The catalogue: heads, datamodules, peers and commands that installed packages register as entry points.

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

__all__ = ["COMMANDS", "DATAMODULES", "HEADS", "PEERS", "Plugin", "describe", "find", "known", "nearest", "plugins"]

HEADS = "diptych.heads"
DATAMODULES = "diptych.datamodules"
COMMANDS = "diptych.commands"
PEERS = "diptych.peers"
_KIND = {HEADS: "head", DATAMODULES: "datamodule", COMMANDS: "command", PEERS: "peer"}


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
        """The first line of its module's docstring, read without importing anything. Empty if there is none."""
        module = self.path.rpartition(".")[0]
        package = find_spec(module.partition(".")[0])
        if package is None:
            return ""
        inside = [Path(folder, *module.split(".")[1:]) for folder in package.submodule_search_locations or []]
        files = [file for path in inside for file in (path.with_suffix(".py"), path / "__init__.py")]
        for file in files or [Path(package.origin or "")]:  # a plug-in may be one file
            if file.is_file():
                text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
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
    """What ``diptych heads`` and ``diptych datamodules`` print: one mapping for each plug-in, ``name`` first.

    The mapping of a plug-in that cannot be imported has the reason under ``error``.
    """
    rows = []
    for plugin in plugins(group):
        row: dict[str, Any] = {"name": plugin.name, "class": plugin.path, "distribution": plugin.distribution}
        try:
            target = plugin.load()
            row |= {"paper": target.paper, "needs": sorted(target.needs), "gathers": sorted(target.gathers)}
            if group == DATAMODULES:
                row["holds"] = sorted(target.holds)
        except (ConfigError, AttributeError) as error:  # it cannot be imported, or is something else
            row |= {"paper": "", "needs": [], "gathers": [], "error": str(error)}
        rows.append(row)
    return rows
