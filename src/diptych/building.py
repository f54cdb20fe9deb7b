"""From names and plain values to objects: entry-point names in every configuration, and modules from stored ones."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

import jsonargparse
from jsonargparse import _typehints
from jsonargparse._util import import_object

from diptych.errors import ConfigError
from diptych.plugins import DATAMODULES, HEADS, Plugin, find, known, nearest

if TYPE_CHECKING:
    from diptych.module import AlignmentModule

__all__ = ["build_module", "import_object", "register_names"]

_NAMED = (
    "chexbert",
    "class_retrieval",
    "detect",
    "few_shot",
    "finetune",
    "generate",
    "grounding",
    "labeller",
    "multi_resolution",
    "multiple_instance",
    "probe",
    "segment",
    "trained",
)
"""Modules of classes that a configuration may name bare: jsonargparse looks among those that are imported."""

_resolve: Callable[[Any, str], str] = _typehints.resolve_class_path_by_name


def _resolve_with_catalogue(cls: Any, name: str) -> str:
    """What jsonargparse asks to turn a bare name into an import path, with our catalogues consulted first."""
    from diptych.data import RadiographDataModule
    from diptych.head import AlignmentHead

    bases = cls if isinstance(cls, tuple) else (cls,)
    for base, group in ((AlignmentHead, HEADS), (RadiographDataModule, DATAMODULES)):
        if any(isinstance(b, type) and issubclass(b, base) for b in bases):
            return _path_of(name, base, group)
    path = _resolve(cls, name)
    if "." not in path:
        names = [p.rpartition(".")[2] for b in bases for p in _typehints.get_all_subclass_paths(b)]
        raise ConfigError(f"unknown class '{name}'; known here, nearest first: {', '.join(nearest(name, names)[:8])}")
    return path


def _path_of(name: str, base: type, group: str) -> str:
    """The import path of a plug-in that can be imported, from any of its names."""
    if "." not in name:
        plugin: Plugin = find(group, name)
        plugin.load()
        return plugin.path
    try:
        target = import_object(name)
    except Exception as error:  # whatever a module does when it is imported
        raise ConfigError(f"'{name}' cannot be imported: {error}; known by name: {known(group, name)}") from error
    if isinstance(target, type) and not issubclass(target, base):
        raise ConfigError(f"'{name}' is no {base.__name__}; known by name: {known(group, name)}")
    return name


def register_names() -> None:
    """Let every configuration name heads and datamodules as the catalogue does. May be called more than once.

    jsonargparse has no public place for this: its name resolution is wrapped where all its uses find it, and a test
    holds it.
    """
    for name in _NAMED:
        import_module(f"diptych.{name}")
    _typehints.resolve_class_path_by_name = _resolve_with_catalogue


def build_module(config: dict[str, Any]) -> AlignmentModule:
    """The AlignmentModule that a plain configuration (the ``model:`` part of a YAML) describes.

    Raises:
        ConfigError: a key, type or name in it is wrong.
    """
    from diptych.module import AlignmentModule

    register_names()
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(AlignmentModule, "model")
    try:
        parsed = parser.parse_object({"model": config})
    except (jsonargparse.ArgumentError, TypeError, ValueError) as error:
        raise ConfigError(f"the stored configuration cannot be used: {error}") from error
    module: AlignmentModule = parser.instantiate_classes(parsed).model
    module.config = config
    return module
