"""Modules from the configuration that a checkpoint holds, which may come from anybody.

A class that the catalogue and :data:`diptych.names.PUBLIC` do not hold is refused before it is imported. A class of
another base than its place asks for is refused before it is built. Nothing is built that is much larger than the weights
that the checkpoint brings. jsonargparse, which reads recipes, takes no part: it imports whatever a text names.
"""

from __future__ import annotations

import copy
import inspect
import types
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, is_dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from diptych.errors import ConfigError, DiptychError, shown
from diptych.head import AlignmentHead
from diptych.names import public_path
from diptych.plain import check_plain
from diptych.plugins import HEADS, plugins

if TYPE_CHECKING:
    from diptych.model.module import AlignmentModule

__all__ = ["Budget", "build_module", "build_stored", "check_weights", "known_class", "load_weights"]

MOST_WEIGHTS = 100_000
"""Tensors of a checkpoint."""


# -- classes by name ---------------------------------------------------------------------------------------------------


def known_class(name: object, base: type, where: str, trust: Collection[str] = ()) -> type:
    """The class of this name, if it is known and is of this base; only then is its module imported.

    Args:
        name: of a head, as in the catalogue (entry point, class name or import path); else a public name of diptych.
        base: what its place asks for.
        where: the place, for messages.
        trust: import paths that are known besides.

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
        heads = [plugin for plugin in plugins(HEADS) if name in {plugin.name, plugin.path, plugin.class_name}]
        named = [plugin for plugin in heads if plugin.class_name != name] or heads
        return named[0].path if len(named) == 1 else None
    return public_path(name)


# -- objects from plain values -----------------------------------------------------------------------------------------


def build_module(config: dict[str, Any], trust: Collection[str] = (), budget: Budget | None = None) -> AlignmentModule:
    """The AlignmentModule that a plain configuration (the ``model:`` part of a YAML) describes.

    Args:
        config: plain values.
        trust: see :func:`known_class`.
        budget: what building it may use.

    Raises:
        ConfigError: a key, type or name in it is wrong, or more is built than the budget allows.
    """
    from diptych.model.module import AlignmentModule

    check_plain(config, "model")
    arguments = _arguments(AlignmentModule, config, "model", trust)
    with budget or Budget():
        module: AlignmentModule = _call(AlignmentModule, arguments, "model")
    module.config = config
    return module


@dataclass
class _Later:
    """A class with its arguments, to be built when everything has been looked up."""

    kind: type
    arguments: dict[str, Any]


def _call(kind: type, arguments: Mapping[str, Any], where: str, *first: Any) -> Any:
    try:
        return kind(*first, **{name: _built(value, f"{where}.{name}") for name, value in arguments.items()})
    except DiptychError:
        raise
    except Exception as error:  # constructors refuse values in many ways
        raise ConfigError(
            f"{where}: {kind.__name__} cannot be built from what is stored ({type(error).__name__}: {shown(str(error))})"
        ) from error


def _built(value: Any, where: str) -> Any:
    if isinstance(value, _Later):
        return _call(value.kind, value.arguments, where)
    if isinstance(value, list | tuple | set | frozenset):
        return type(value)(_built(item, where) for item in value)
    return value


def _arguments(kind: type, given: object, where: str, trust: Collection[str], positional: int = 0) -> dict[str, Any]:
    """The constructor's arguments, each of the type that its signature asks for."""
    if not isinstance(given, Mapping):
        raise ConfigError(f"{where}: refused: it is {shown(given)}, and must be a mapping of arguments")
    known, required = _signature(kind, positional)
    if unknown := sorted(set(given) - set(known)):
        raise ConfigError(f"{where}: {kind.__name__} has no argument {shown(unknown[0])}; it has {', '.join(known)}")
    if missing := sorted(required - set(given)):
        raise ConfigError(f"{where}: {kind.__name__} needs the argument '{missing[0]}'")
    return {name: _typed(known[name], value, f"{where}.{name}", trust) for name, value in given.items()}


def _signature(kind: type, positional: int) -> tuple[dict[str, Any], set[str]]:
    """Types of a constructor's arguments but the first, and which have no default; ``**kwargs`` are the next base's."""
    types_of: dict[str, Any] = {}
    required: set[str] = set()
    for owner in kind.__mro__:
        if "__init__" not in vars(owner) or owner is object:
            continue
        constructor = vars(owner)["__init__"]
        hints = get_type_hints(constructor)
        parameters = list(inspect.signature(constructor).parameters.values())[1 + positional :]
        positional = 0
        for parameter in parameters:
            if parameter.kind in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD} or parameter.name in types_of:
                continue
            types_of[parameter.name] = hints.get(parameter.name, Any)
            if parameter.default is parameter.empty:
                required.add(parameter.name)
        if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters):
            break
    return types_of, required


def _typed(hint: Any, value: Any, where: str, trust: Collection[str]) -> Any:
    """A stored value as its type asks; a class is looked up, and built later.

    Raises:
        ConfigError: it does not fit, or a type cannot come from a checkpoint.
    """
    origin, inner = get_origin(hint), get_args(hint)
    if origin in {Union, types.UnionType}:
        return _one_of(inner, value, where, trust)
    if hint in {Any, object} or (origin or hint) in {dict, Mapping}:
        return _without_classes(value, where, must_be_mapping=hint not in {Any, object})
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
    if (origin or hint) in _SEQUENCES and isinstance(value, list | tuple):
        return _sequence(origin or hint, inner, value, where, trust)
    if origin is Callable and isinstance(
        value, dict | str
    ):  # as a head's factory: what is called later, of a known base
        return _factory(inner, value, where, trust)
    if isinstance(origin or hint, type) and (origin or hint) not in _VALUES and isinstance(value, dict | str):
        return _described(origin or hint, value, where, trust)
    raise ConfigError(f"{where}: refused: it is {shown(value)}, and must be {_name(hint)}")


_SEQUENCES = {list, tuple, set, frozenset, Sequence, AbstractSet}
_VALUES = {bool, int, float, str, Path, types.NoneType, type, *_SEQUENCES}


def _name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")[:120]


def _one_of(hints: Sequence[Any], value: Any, where: str, trust: Collection[str]) -> Any:
    reasons = []
    for hint in hints:
        try:
            return _typed(hint, value, where, trust)
        except ConfigError as error:
            reasons.append(error)
    # what a described class lacks says more than that it is not null
    raise reasons[0]


def _without_classes(value: Any, where: str, *, must_be_mapping: bool) -> Any:
    if must_be_mapping and not isinstance(value, dict):
        raise ConfigError(f"{where}: refused: it is {shown(value)}, and must be a mapping")
    if isinstance(value, dict):
        if "class_path" in value:
            raise ConfigError(f"{where}: refused: it names the class {shown(value['class_path'])} where none belongs")
        for key, item in value.items():
            _without_classes(item, f"{where}.{key}", must_be_mapping=False)
    elif isinstance(value, list | tuple):
        for item in value:
            _without_classes(item, where, must_be_mapping=False)
    return value


def _sequence(kind: type, inner: Sequence[Any], value: Sequence[Any], where: str, trust: Collection[str]) -> Any:
    if kind is tuple and Ellipsis not in inner and inner:
        if len(inner) != len(value):
            raise ConfigError(f"{where}: refused: it has {len(value)} values, and must have {len(inner)}")
        hints = list(inner)
    else:
        hints = [inner[0] if inner else Any] * len(value)
    items = [_typed(hint, item, f"{where}.{i}", trust) for i, (hint, item) in enumerate(zip(hints, value, strict=True))]
    if kind in {set, frozenset, AbstractSet}:
        return frozenset(items) if kind is not set else set(items)
    return tuple(items) if kind is tuple else items


def _factory(inner: Sequence[Any], value: object, where: str, trust: Collection[str]) -> Any:
    base = get_origin(inner[-1]) or inner[-1]
    if not isinstance(base, type) or base in _VALUES:
        raise ConfigError(f"{where}: refused: a function cannot come from a checkpoint")
    given = len(inner[0]) if isinstance(inner[0], list) else 0
    kind, arguments = _class(base, value, where, trust, given)
    return partial(_call, kind, arguments, where)


def _described(base: type, value: Any, where: str, trust: Collection[str]) -> Any:
    if is_dataclass(base) and not (isinstance(value, dict) and "class_path" in value):
        return _Later(base, _arguments(base, value, where, trust))
    kind, arguments = _class(base, value, where, trust, 0)
    return _Later(kind, arguments)


def _class(base: type, value: Any, where: str, trust: Collection[str], positional: int) -> tuple[type, dict[str, Any]]:
    described = {"class_path": value} if isinstance(value, str) else value
    if unknown := sorted(set(described) - {"class_path", "init_args"}):
        raise ConfigError(f"{where}: refused: the key {shown(unknown[0])}; a class has class_path and init_args")
    kind = known_class(described.get("class_path"), base, f"{where}.class_path", trust)
    return kind, _arguments(kind, described.get("init_args") or {}, where, trust, positional)


# -- checkpoints -------------------------------------------------------------------------------------------------------


def build_stored(config: object, state: dict[str, Any], path: str, trust: Collection[str] = ()) -> AlignmentModule:
    """The module that a checkpoint was trained as, without its weights and evaluators.

    Args:
        config: what the checkpoint holds of the ``model:`` part of its recipe.
        state: its state dict; vocabulary and architecture of the towers are in there.
        path: of the file, for messages.
        trust: see :func:`known_class`.

    Raises:
        ConfigError: see :func:`build_module`.
    """
    from diptych.evaluation.base import Evaluator

    if not isinstance(config, dict):
        raise ConfigError(f"{path}: refused: its configuration is {shown(config)}, and must be a mapping")
    with _named(path), _nested():
        check_plain(config, "model")
        config = copy.deepcopy(config)
        for name, base in _towers().items():
            described = config.get(name)
            if not isinstance(described, dict) or not isinstance(described.get("init_args") or {}, dict):
                raise ConfigError(
                    f"model.{name}: refused: it is {shown(described)}, and must be a class with arguments"
                )
            tower: Any = known_class(described.get("class_path"), base, f"model.{name}.class_path", trust)
            extra = state.get(f"encoder.{name}._extra_state", {})
            if not isinstance(extra, dict) or any(not isinstance(value, str) for value in extra.values()):
                raise ConfigError(f"encoder.{name}._extra_state: refused: it is {shown(extra)}, and must map to texts")
            described["init_args"] = {**(described.get("init_args") or {}), **tower.rebuild_args(extra)}
        _typed(list[Evaluator] | None, config.get("evaluators"), "model.evaluators", trust)  # looked up, but not built
        config["evaluators"] = []
        return build_module(config, trust, Budget(*check_weights(state, path)))


def _towers() -> dict[str, type]:
    from diptych.towers.image import ImageTower
    from diptych.towers.text import TextTower

    return {"image": ImageTower, "text": TextTower}


def load_weights(module: AlignmentModule, state: dict[str, Any], path: str) -> None:
    """Give a module the weights of a checkpoint, vocabulary included.

    Raises:
        ConfigError: they cannot be taken.
    """
    try:
        module.load_state_dict(state)
    except DiptychError as error:
        raise ConfigError(f"{path}: {error}") from error
    except Exception as error:  # every module reads its own state
        raise ConfigError(
            f"{path}: refused: its weights cannot be taken ({type(error).__name__}: {shown(str(error))})"
        ) from error


@contextmanager
def _named(path: str) -> Iterator[None]:
    """Within it, errors name the file."""
    try:
        yield
    except DiptychError as error:
        told = str(error)
        raise ConfigError(told if path in told else f"{path}: {told}") from error


_depth: ContextVar[int] = ContextVar("_depth", default=0)


@contextmanager
def _nested() -> Iterator[None]:
    """Refuse checkpoints that name each other without end, by ``TrainedImage``."""
    token = _depth.set(_depth.get() + 1)
    try:
        if _depth.get() > 4:
            raise ConfigError("refused: checkpoints name each other more than four deep")
        yield
    finally:
        _depth.reset(token)


# -- what building may use ---------------------------------------------------------------------------------------------


class Budget(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types here
    """Within it, tensors are made only as far as the weights of a checkpoint of this size can need.

    A result is measured before it is made, so an absurd width allocates nothing.

    Args:
        values: numbers that the checkpoint holds in all.
        weights: tensors that it holds.
    """

    def __init__(self, values: int = 2**30, weights: int = MOST_WEIGHTS) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self._largest = 4 * values + 2**24
        self._values = 16 * values + 2**26
        self._steps = 40 * weights + 4_000  # 2 to 20 for each weight, as measured

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Measure what an operation would make, then let it."""
        kwargs = kwargs or {}
        self._steps -= 1
        if self._steps < 0:
            raise ConfigError("refused: more layers are asked for than the checkpoint has weights for")
        if not func._schema.is_mutable and not func.is_view:
            self._measure(func, args, kwargs)
        return func(*args, **kwargs)

    def _measure(self, func: Any, args: Any, kwargs: Any) -> None:
        on_meta = partial(torch.empty_like, device="meta")
        options = tree_map_only(Tensor, on_meta, kwargs)
        if "device" in options or not any(isinstance(leaf, Tensor) for leaf in tree_leaves((args, kwargs))):
            options["device"] = torch.device("meta")
        try:
            made = func(*tree_map_only(Tensor, on_meta, args), **options)
        except (RuntimeError, TypeError):  # of an operation that reads values, as item()
            return
        size = sum(leaf.numel() for leaf in tree_leaves(made) if isinstance(leaf, Tensor))
        self._values -= size
        if size > self._largest or self._values < 0:
            raise ConfigError(
                f"refused: a tensor of {size:,} numbers is asked for, more than the weights of this checkpoint need"
            )


def check_weights(state: object, where: str) -> tuple[int, int]:
    """How many numbers and tensors a state dict holds, if it is one of dense tensors.

    Raises:
        ConfigError: it is none.
    """
    if not isinstance(state, dict) or len(state) > MOST_WEIGHTS:
        raise ConfigError(f"{where}: refused: its state_dict is {shown(state)}, and must map names to tensors")
    tensors, storages = 0, dict[int, int]()
    for name, value in state.items():
        if not isinstance(name, str) or not name.isprintable():
            raise ConfigError(f"{where}: refused: its state_dict has the key {shown(name)}, which is no name")
        if name.rpartition(".")[2] == "_extra_state":
            continue
        if not isinstance(value, Tensor) or type(value) not in {Tensor, nn.Parameter}:
            raise ConfigError(f"{where}: refused: the weight '{name}' is {shown(value)}, and must be a tensor")
        if value.layout is not torch.strided or value.device.type != "cpu" or value.is_quantized:
            raise ConfigError(f"{where}: refused: the weight '{name}' is not a dense tensor")
        if value.is_complex():
            raise ConfigError(f"{where}: refused: the weight '{name}' is of complex numbers")
        storages[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()  # which weights may share
        tensors += 1
    return sum(storages.values()) // 2, tensors  # of two bytes or more
