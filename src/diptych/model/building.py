"""From names to classes in recipes. A recipe may name any class as the catalogue or as diptych's public face does.

A recipe is like code: a class path in it is imported. What is built is always a class of the base that its place asks for.
A function is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from jsonargparse import Namespace, _typehints
from jsonargparse._util import import_object

from diptych.errors import ConfigError, shown
from diptych.names import PUBLIC, public_path
from diptych.plugins import DATAMODULES, EVALUATORS, HEADS, TASKS, Plugin, find, known, nearest, plugins

__all__ = ["import_object", "refuse_functions", "register_names"]

_resolve: Callable[[Any, str], str] = _typehints.resolve_class_path_by_name


def _resolve_with_catalogue(cls: Any, name: str) -> str:
    """The import path of a name, for jsonargparse. Our catalogues and public names come before its own lists."""
    from diptych.data.datamodule import RadiographDataModule
    from diptych.evaluation.base import Evaluator
    from diptych.head import AlignmentHead

    bases = tuple(base for base in (cls if isinstance(cls, tuple) else (cls,)) if isinstance(base, type))
    for base, group in ((AlignmentHead, HEADS), (RadiographDataModule, DATAMODULES)):
        if any(issubclass(b, base) for b in bases):
            return _path_of(name, base, group)
    path = public_path(name) or name
    if "." not in path and any(issubclass(b, Evaluator) for b in bases):
        path = _registered(path, EVALUATORS)
    elif "." not in path and any(_is_task(b) for b in bases):
        path = _registered(path, TASKS)
    path = path if "." in path else _resolve(cls, name)
    if "." not in path:
        names = [p.rpartition(".")[2] for b in bases for p in _typehints.get_all_subclass_paths(b)]
        raise ConfigError(f"unknown class '{name}'; known here, nearest first: {', '.join(nearest(name, names)[:8])}")
    if bases and all(base.__module__.partition(".")[0] == "diptych" for base in bases):
        _check_class(path, bases, "")
    return path


def _is_task(base: type) -> bool:
    """Whether a class is a task. The module of tasks is not imported, for it imports this folder."""
    return any(f"{kind.__module__}.{kind.__name__}" == "diptych.tasks.base.Task" for kind in base.__mro__)


def _registered(name: str, group: str) -> str:
    """The import path of a task or an evaluator by its entry point or class name, or the name itself if none has it."""
    if not any(name in {plugin.name, plugin.class_name} for plugin in plugins(group)):
        return name
    plugin = find(group, name)
    plugin.load()
    return public_path(plugin.path) or plugin.path


def _path_of(name: str, base: type, group: str) -> str:
    """The import path of a plug-in that can be imported, from any of its names."""
    path = name
    if "." not in name:
        plugin: Plugin = find(group, name)
        plugin.load()
        path = plugin.path
    _check_class(path, (base,), f"; known by name: {known(group, name)}")
    return path


def _check_class(path: str, bases: tuple[type, ...], remedy: str) -> None:
    """Refuse what is no class of one of the bases, before it is called."""
    try:
        target = import_object(path)
    except Exception as error:  # whatever a module does when it is imported
        raise ConfigError(f"'{path}' cannot be imported: {error}{remedy}") from error
    if not isinstance(target, type) or not issubclass(target, bases):
        raise ConfigError(f"'{path}' is no {' or '.join(base.__name__ for base in bases)}{remedy}")


def refuse_functions(config: Any, where: str) -> None:
    """Refuse functions among parsed values. Every place of ours asks for a class.

    Raises:
        ConfigError: there is one. The message names its place.
    """
    if callable(config) and not isinstance(config, type):
        name = f"{getattr(config, '__module__', '')}.{getattr(config, '__qualname__', shown(config))}"
        raise ConfigError(f"{where}: '{name}' is a function; give a class, by name or import path")
    if isinstance(config, dict | Namespace):
        for key, value in (vars(config) if isinstance(config, Namespace) else config).items():
            refuse_functions(value, f"{where}.{key}")
    elif isinstance(config, list | tuple):
        for value in config:
            refuse_functions(value, where)


def register_names() -> None:
    """Let every configuration name plug-ins as the catalogue does. May be called more than once.

    jsonargparse has no public place for this. So its private function of name resolution is replaced. A test guards that
    all its uses find the replacement.
    """
    for module in set(PUBLIC.values()):  # jsonargparse's lists of known classes are of what is imported
        import_module(module)
    _typehints.resolve_class_path_by_name = _resolve_with_catalogue
