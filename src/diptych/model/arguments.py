"""Constructor arguments from the plain values of a checkpoint: each of the type that the constructor asks for.

A checkpoint may come from anybody. It names classes. A class that the catalogue and :data:`diptych.names.PUBLIC` do not
hold is refused before it is imported. A class of another base than its place asks for is refused before it is built.
jsonargparse, which reads recipes, takes no part: it imports whatever a text names.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, is_dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from diptych.errors import ConfigError, DiptychError, shown
from diptych.evaluation.base import Evaluator
from diptych.head import AlignmentHead
from diptych.names import public_path
from diptych.plugins import EVALUATORS, HEADS, plugins

__all__ = ["build", "known_class", "read_arguments", "read_value"]


# -- classes by name ---------------------------------------------------------------------------------------------------


def known_class(name: object, base: type, where: str, trust: Collection[str] = ()) -> type:
    """The class of this name, if it is known and of this base. The module of any other name is not imported.

    Args:
        name: a head or an evaluator as the catalogue names it (entry point, class name or import path), or a public name of
            diptych.
        base: the class that its place asks for.
        where: the place, for messages.
        trust: import paths of other classes that are known.

    Raises:
        ConfigError: it is not known, cannot be imported, or is something else.
    """
    path = _known_path(name, base, trust)
    if path is None:
        kind = "head of the catalogue" if issubclass(base, AlignmentHead) else f"{base.__name__} of diptych"
        raise ConfigError(
            f"{where}: refused: {shown(name)} is no {kind}, and a checkpoint runs nothing else; if you trust that code, "
            "install its package (a head), or name it: diptych.load(path, trust=[...])"
        )
    module, _, attribute = path.rpartition(".")
    try:
        target = getattr(import_module(module), attribute)
    except Exception as error:  # whatever a module does when it is imported
        raise ConfigError(f"{where}: {path} cannot be imported ({error}); install or repair its package") from error
    if not isinstance(target, type) or not issubclass(target, base) or inspect.isabstract(target):
        raise ConfigError(f"{where}: refused: {path} is no {base.__name__} that can be built")
    return target


def _known_path(name: object, base: type, trust: Collection[str]) -> str | None:
    if not isinstance(name, str):
        return None
    if name in trust:
        return name
    if issubclass(base, AlignmentHead):
        return _in_catalogue(name, HEADS)
    public = public_path(name)
    return _in_catalogue(name, EVALUATORS) if public is None and issubclass(base, Evaluator) else public


def _in_catalogue(name: str, group: str) -> str | None:
    found = [plugin for plugin in plugins(group) if name in {plugin.name, plugin.path, plugin.class_name}]
    named = [plugin for plugin in found if plugin.class_name != name] or found
    return named[0].path if len(named) == 1 else None


# -- building ----------------------------------------------------------------------------------------------------------


@dataclass
class _Description:
    """A class with its arguments. It is built when all names of the configuration have been looked up."""

    kind: type
    arguments: dict[str, Any]


def build(kind: type, arguments: Mapping[str, Any], where: str, *first: Any) -> Any:
    """An object of a class, and before it the objects that its arguments describe.

    Args:
        kind: the class.
        arguments: what :func:`read_arguments` gave.
        where: the place of the class in the configuration, for messages.
        first: positional arguments of the constructor.

    Raises:
        ConfigError: a constructor refuses its arguments.
    """
    try:
        return kind(*first, **{name: _build_inside(value, f"{where}.{name}") for name, value in arguments.items()})
    except DiptychError:
        raise
    except Exception as error:  # constructors refuse values in many ways
        raise ConfigError(
            f"{where}: {kind.__name__} cannot be built from what is stored ({type(error).__name__}: {shown(str(error))})"
        ) from error


def _build_inside(value: Any, where: str) -> Any:
    """The value, with an object in place of each description in it."""
    if isinstance(value, _Description):
        return build(value.kind, value.arguments, where)
    if isinstance(value, list | tuple | set | frozenset):
        return type(value)(_build_inside(item, where) for item in value)
    return value


# -- types of arguments ------------------------------------------------------------------------------------------------


def read_arguments(
    kind: type, stored: object, where: str, trust: Collection[str], positional: int = 0
) -> dict[str, Any]:
    """The arguments of a class, each of the type that its constructor asks for. Classes in them are not built yet.

    Args:
        kind: the class.
        stored: the arguments as a checkpoint holds them.
        where: their place in the configuration, for messages.
        trust: as for :func:`known_class`.
        positional: how many arguments the constructor gets otherwise, before these.

    Raises:
        ConfigError: an argument is unknown, missing or of another type.
    """
    if not isinstance(stored, Mapping):
        raise ConfigError(f"{where}: refused: it is {shown(stored)}, and must be a mapping of arguments")
    hints, required = _signature(kind, positional)
    if unknown := sorted(set(stored) - set(hints)):
        raise ConfigError(f"{where}: {kind.__name__} has no argument {shown(unknown[0])}; it has {', '.join(hints)}")
    if missing := sorted(required - set(stored)):
        raise ConfigError(f"{where}: {kind.__name__} needs the argument '{missing[0]}'")
    return {name: read_value(hints[name], value, f"{where}.{name}", trust) for name, value in stored.items()}


def _signature(kind: type, positional: int) -> tuple[dict[str, Any], set[str]]:
    """The type of each argument of a constructor, and the names of those without a default.

    The first ``positional`` arguments are left out. A constructor with ``**kwargs`` hands them to the next base, so that
    base's arguments are added.
    """
    hints: dict[str, Any] = {}
    required: set[str] = set()
    for owner in kind.__mro__:
        if "__init__" not in vars(owner) or owner is object:
            continue
        constructor = vars(owner)["__init__"]
        own_hints = get_type_hints(constructor)
        parameters = list(inspect.signature(constructor).parameters.values())[1 + positional :]
        positional = 0
        for parameter in parameters:
            if parameter.kind in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD} or parameter.name in hints:
                continue
            hints[parameter.name] = own_hints.get(parameter.name, Any)
            if parameter.default is parameter.empty:
                required.add(parameter.name)
        if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters):
            break
    return hints, required


def read_value(hint: Any, value: Any, where: str, trust: Collection[str]) -> Any:
    """A stored value as a type asks for it. A class is looked up, and built later.

    Raises:
        ConfigError: it does not fit, or a type cannot come from a checkpoint.
    """
    origin, inner = get_origin(hint), get_args(hint)
    kind = origin or hint
    if origin in {Union, types.UnionType}:
        return _read_union(inner, value, where, trust)
    if hint in {Any, object} or kind in {dict, Mapping}:
        if hint not in {Any, object} and not isinstance(value, dict):
            raise ConfigError(f"{where}: refused: it is {shown(value)}, and must be a mapping")
        _refuse_classes(value, where)
        return value
    if origin is Literal and any(value == choice and type(value) is type(choice) for choice in inner):
        return value
    if hint in {None, types.NoneType} and value is None:
        return None
    if hint in {bool, int, str} and type(value) is hint:
        return value
    if hint is float and type(value) in {int, float}:
        return float(value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if kind in _SEQUENCES and isinstance(value, list | tuple):
        return _read_sequence(kind, inner, value, where, trust)
    if origin is Callable and isinstance(value, dict | str):
        return _read_factory(inner, value, where, trust)
    if isinstance(kind, type) and kind not in _VALUES and isinstance(value, dict | str):
        if is_dataclass(kind) and not (isinstance(value, dict) and "class_path" in value):
            return _Description(kind, read_arguments(kind, value, where, trust))
        return _Description(*_read_class(kind, value, where, trust))
    raise ConfigError(f"{where}: refused: it is {shown(value)}, and must be {_type_name(hint)}")


_SEQUENCES = {list, tuple, set, frozenset, Sequence, AbstractSet}
_VALUES = {bool, int, float, str, Path, types.NoneType, type, *_SEQUENCES}


def _type_name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")[:120]


def _read_union(hints: Sequence[Any], value: Any, where: str, trust: Collection[str]) -> Any:
    reasons = []
    for hint in hints:
        try:
            return read_value(hint, value, where, trust)
        except ConfigError as error:
            reasons.append(error)
    # what a described class lacks says more than that it is not null
    raise reasons[0]


def _refuse_classes(value: Any, where: str) -> None:
    """Refuse a value that names a class, at any depth."""
    if isinstance(value, dict):
        if "class_path" in value:
            raise ConfigError(f"{where}: refused: it names the class {shown(value['class_path'])} where none belongs")
        for key, item in value.items():
            _refuse_classes(item, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for item in value:
            _refuse_classes(item, where)


def _read_sequence(kind: type, inner: Sequence[Any], value: Sequence[Any], where: str, trust: Collection[str]) -> Any:
    if kind is tuple and Ellipsis not in inner and inner:
        if len(inner) != len(value):
            raise ConfigError(f"{where}: refused: it has {len(value)} values, and must have {len(inner)}")
        hints = list(inner)
    else:
        hints = [inner[0] if inner else Any] * len(value)
    items = [
        read_value(hint, item, f"{where}.{i}", trust) for i, (hint, item) in enumerate(zip(hints, value, strict=True))
    ]
    if kind in {set, frozenset, AbstractSet}:
        return frozenset(items) if kind is not set else set(items)
    return tuple(items) if kind is tuple else items


def _read_factory(inner: Sequence[Any], value: object, where: str, trust: Collection[str]) -> Any:
    """A function that builds an object of a known base, as a head from the towers' widths."""
    base = get_origin(inner[-1]) or inner[-1]
    if not isinstance(base, type) or base in _VALUES:
        raise ConfigError(f"{where}: refused: a function cannot come from a checkpoint")
    positional = len(inner[0]) if isinstance(inner[0], list) else 0
    kind, arguments = _read_class(base, value, where, trust, positional)
    return partial(build, kind, arguments, where)


def _read_class(
    base: type, value: Any, where: str, trust: Collection[str], positional: int = 0
) -> tuple[type, dict[str, Any]]:
    """The class that a value names, and its arguments."""
    description = {"class_path": value} if isinstance(value, str) else value
    if unknown := sorted(set(description) - {"class_path", "init_args"}):
        raise ConfigError(f"{where}: refused: the key {shown(unknown[0])}; a class has class_path and init_args")
    kind = known_class(description.get("class_path"), base, f"{where}.class_path", trust)
    return kind, read_arguments(kind, description.get("init_args") or {}, where, trust, positional)
