"""The public face: every public name is at hand as ``diptych.NAME``, documented, and may stand bare in a recipe."""

from __future__ import annotations

import ast
import importlib
import inspect
from abc import ABC

import pytest
from mini import ROOT

import diptych
from diptych.data.datamodule import RadiographDataModule
from diptych.head import AlignmentHead
from diptych.model import building
from diptych.names import PUBLIC, RENAMED, public_path

CLASSES = [name for name in PUBLIC if inspect.isclass(getattr(diptych, name))]
CATALOGUED = (AlignmentHead, RadiographDataModule)
"""Bases of what the catalogues name; a recipe names what derives from them by its entry point."""


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_is_at_hand_and_documented(name):
    value = getattr(diptych, name)
    assert value is getattr(importlib.import_module(PUBLIC[name]), name)
    assert value.__module__ == PUBLIC[name], "the table names another module than the one that defines it"
    assert name in dir(diptych)
    written = vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__
    assert written, f"{name} has no docstring of its own"
    assert not written.startswith((f"{name}(", "See ")), f"{name}: the docstring says nothing"


@pytest.mark.parametrize("name", CLASSES)
def test_a_recipe_names_a_public_class_bare_or_by_any_module_it_has_had(name):
    value = getattr(diptych, name)
    path = f"diptych.{name}"
    old = [f"diptych.gone.{before}" for before, now in RENAMED.items() if now == name]
    for written in (name, path, f"{PUBLIC[name]}.{name}", f"diptych.gone.{name}", *old):
        assert public_path(written) == path, written
        if not issubclass(value, CATALOGUED):
            assert building._resolve_with_catalogue(value, written) == path, written


def test_other_packages_keep_their_names():
    assert public_path("mine.TimmImage") is None
    assert public_path("diptych.image.Unknown") is None


def test_the_face_for_type_checkers_is_the_table():
    """The names are handed on by strings, so a type checker reads a list of imports, which must be the same."""
    tree = ast.parse((ROOT / "src/diptych/__init__.py").read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    listed = {alias.asname: node.module for node in block.body for alias in node.names}
    assert listed == PUBLIC


def test_an_abstract_public_class_is_a_base_that_says_what_to_add():
    bases = [getattr(diptych, name) for name in CLASSES if inspect.isabstract(getattr(diptych, name))]
    assert {diptych.AlignmentHead, diptych.Evaluator, diptych.RadiographDataModule, diptych.RadiographDataset} <= set(
        bases
    )
    for base in bases:
        assert issubclass(base, ABC)
        assert all(getattr(base, name).__doc__ for name in base.__abstractmethods__), base
