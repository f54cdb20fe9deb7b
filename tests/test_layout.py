"""Imports run one way through the folders, and the core names no head and no data set."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from mini import ROOT

from diptych.plugins import DATAMODULES, HEADS, plugins

PACKAGES = {"diptych": ROOT / "src", "diptych_heads": ROOT / "heads", "diptych_datamodules": ROOT / "datamodules"}
FILES = {
    ".".join(file.relative_to(base).with_suffix("").parts).removesuffix(".__init__"): file
    for package, base in PACKAGES.items()
    for file in sorted((base / package).rglob("*.py"))
}
FACE = "diptych"
"""The face hands on names of every room, by strings; its imports are for type checkers alone."""


def room(module: str) -> str:
    """The folder a module is in; a file directly in a package is a room of its own in the core."""
    parts = module.split(".")
    inner = PACKAGES[parts[0]].joinpath(*parts[:2]).is_dir()
    return ".".join(parts[:2]) if inner or parts[0] == "diptych" else parts[0]


def imported(file: Path) -> set[str]:
    """Our modules that a file imports, within functions too."""
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = [ast.Pass()]
    found = set()
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in FILES else node.module for name in names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {name for name in names if name in FILES}
    return found


ARROWS = {(room(here), room(there)) for here, file in FILES.items() if here != FACE for there in imported(file)}


def test_imports_run_one_way_through_the_folders():
    graph: dict[str, set[str]] = {room(module): set() for module in FILES}
    for here, there in ARROWS:
        if here != there:
            graph[here].add(there)
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"folders import each other in a circle: {' -> '.join(reversed(error.args[1]))}")
    assert set(order) >= set(graph)


def test_the_core_names_no_head_and_no_data_set():
    assert not [(here, there) for here, there in ARROWS if here.startswith("diptych.") and there.startswith("diptych_")]


def test_data_modules_know_no_head_and_heads_know_no_data():
    of = {"diptych_datamodules": "diptych_heads", "diptych_heads": "diptych_datamodules"}
    assert not [(a, b) for a, b in ARROWS if of.get(a.split(".")[0]) == b.split(".")[0]]
    known = {b for a, b in ARROWS if a.startswith("diptych_heads") and b.startswith("diptych.")}
    assert not known & {f"diptych.{name}" for name in ("data", "model", "evaluation", "tasks", "cli", "results")}


def test_nothing_imports_the_command_line():
    inside = {"diptych.cli", "diptych.__main__"}
    assert not [(here, there) for here, there in ARROWS if there == "diptych.cli" and here not in inside]


def test_plugins_take_no_private_name_of_the_core():
    """A private method of one name in both would replace the core's unseen: a check of images was once skipped so."""
    for plugin in [*plugins(HEADS), *plugins(DATAMODULES)]:
        line = plugin.load().__mro__
        core = {name for kind in line if kind.__module__.startswith("diptych.") for name in vars(kind)}
        for kind in line:
            if kind.__module__.startswith(("diptych_heads.", "diptych_datamodules.")):
                private = {name for name in vars(kind) if name.startswith("_") and not name.startswith(("__", "_abc"))}
                assert not private & core, kind
