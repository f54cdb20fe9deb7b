"""The module that a checkpoint was trained as, built again from what the checkpoint holds.

A checkpoint may come from anybody. So its names are looked up among known classes (:mod:`diptych.model.arguments`), and
building makes nothing that is much larger than the weights it brings (:mod:`diptych.model.budget`).
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

import torch
from torch import Tensor, nn

from diptych.errors import ConfigError, DiptychError, shown
from diptych.head import AlignmentHead
from diptych.model.arguments import build, known_class, read_arguments, read_value
from diptych.model.budget import Budget, check_weights
from diptych.plain import check_plain

if TYPE_CHECKING:
    from diptych.model.module import AlignmentModule

__all__ = ["build_module", "build_stored", "completed_head", "load_weights", "weights_hash", "within_checkpoint"]


def build_module(config: dict[str, Any], trust: Collection[str] = (), budget: Budget | None = None) -> AlignmentModule:
    """The AlignmentModule that a plain configuration (the ``model:`` part of a YAML) describes.

    Args:
        config: plain values.
        trust: import paths of classes that may be named besides those of diptych and of installed heads.
        budget: what building it may use.

    Raises:
        ConfigError: a key, type or name in it is wrong, or more is built than the budget allows.
    """
    from diptych.model.module import AlignmentModule

    check_plain(config, "model")
    arguments = read_arguments(AlignmentModule, config, "model", trust)
    with budget or Budget():
        module: AlignmentModule = build(AlignmentModule, arguments, "model")
    module.config = config
    return module


def build_stored(config: object, state: dict[str, Any], path: str, trust: Collection[str] = ()) -> AlignmentModule:
    """The module that a checkpoint was trained as, without its weights and evaluators.

    Args:
        config: what the checkpoint holds of the ``model:`` part of its recipe.
        state: its state dict, which also holds vocabulary and architecture of the towers.
        path: of the file, for messages.
        trust: as for :func:`build_module`.

    Raises:
        ConfigError: the configuration is refused. The message names the file.
    """
    from diptych.evaluation.base import Evaluator

    if not isinstance(config, dict):
        raise ConfigError(f"{path}: refused: its configuration is {shown(config)}, and must be a mapping")
    with _name_file(path), _limit_nesting():
        check_plain(config, "model")
        config = copy.deepcopy(config)
        for name, base in _towers().items():
            config[name] = _rebuilt(config.get(name), base, f"model.{name}", f"encoder.{name}", state, trust)
        names = {name for name in state if name.startswith("head.")}
        config["head"] = completed_head(config.get("head"), names, trust)
        evaluators = config.get("evaluators")
        read_value(list[Evaluator] | None, evaluators, "model.evaluators", trust)  # looked up, but not built
        config["evaluators"] = []
        return build_module(config, trust, Budget(*check_weights(state, path)))


def _rebuilt(
    description: object, base: type, where: str, prefix: str, state: dict[str, Any], trust: Collection[str]
) -> dict[str, Any]:
    """The description of a tower, and of a tower inside it, with the stored architecture in place of what would be fetched.

    Args:
        description: a class with arguments.
        base: what it must be.
        where: its place in the configuration, for messages.
        prefix: what stands before the names of its weights.
        state: the state dict of the checkpoint.
        trust: as for :func:`build_module`.
    """
    if not isinstance(description, dict) or not isinstance(description.get("init_args") or {}, dict):
        raise ConfigError(f"{where}: refused: it is {shown(description)}, and must be a class with arguments")
    tower: Any = known_class(description.get("class_path"), base, f"{where}.class_path", trust)
    extra = state.get(f"{prefix}._extra_state", {})
    if not isinstance(extra, dict) or any(not isinstance(value, str) for value in extra.values()):
        raise ConfigError(f"{prefix}._extra_state: refused: it is {shown(extra)}, and must map to texts")
    arguments = {**(description.get("init_args") or {}), **tower.rebuild_args(extra)}
    for name, hint in get_type_hints(tower.__init__).items():
        inside = any(isinstance(kind, type) and issubclass(kind, base) for kind in get_args(hint) or (hint,))
        if inside and arguments.get(name) is not None:  # as LoraImage holds another
            arguments[name] = _rebuilt(arguments[name], base, f"{where}.{name}", f"{prefix}.{name}", state, trust)
    return {**description, "init_args": arguments}


def completed_head(description: object, weights: Collection[str] = (), trust: Collection[str] = ()) -> object:
    """The description of a head, and of heads inside it, with arguments that an older release did not store.

    What describes no head stays as it is. It is read, and perhaps refused, later.

    Args:
        description: a class with arguments.
        weights: the names of the weights of the checkpoint's head. None, where only the description is known.
        trust: as for :func:`build_module`.
    """
    named = {"class_path": description} if isinstance(description, str) else description
    if not isinstance(named, dict) or not isinstance(named.get("init_args") or {}, dict):
        return description
    try:
        kind: Any = known_class(named.get("class_path"), AlignmentHead, "model.head.class_path", trust)
    except ConfigError:
        return description
    arguments = {**kind.former_arguments(weights), **(named.get("init_args") or {})}
    for name, value in arguments.items():
        if isinstance(value, list):
            arguments[name] = [
                completed_head(item, weights, trust) if isinstance(item, dict) else item for item in value
            ]
    return {**named, "init_args": arguments}


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
def _name_file(path: str) -> Iterator[None]:
    """Within it, errors name the file."""
    try:
        yield
    except DiptychError as error:
        message = str(error)
        raise ConfigError(message if path in message else f"{path}: {message}") from error


_depth: ContextVar[int] = ContextVar("_depth", default=0)


def within_checkpoint() -> bool:
    """Whether a checkpoint is being built, rather than a recipe."""
    return _depth.get() > 0


@contextmanager
def _limit_nesting() -> Iterator[None]:
    """Refuse checkpoints that name each other without end, by ``TrainedImage``."""
    token = _depth.set(_depth.get() + 1)
    try:
        if _depth.get() > 4:
            raise ConfigError("refused: checkpoints name each other more than four deep")
        yield
    finally:
        _depth.reset(token)


def weights_hash(module: nn.Module) -> str:
    """Sixteen hexadecimal digits that change with any weight, buffer, or stored text (as a vocabulary) of a module."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} ".encode())
        if isinstance(value, Tensor):
            digest.update(f"{value.dtype} {list(value.shape)} ".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        else:
            digest.update(repr(value).encode())
    return digest.hexdigest()[:16]
