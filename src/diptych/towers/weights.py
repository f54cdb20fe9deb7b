"""Files of weights: read without running anything in them, and loaded whole or not at all."""

from __future__ import annotations

import json
import pickle
import re
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from safetensors.torch import load_file
from torch import Tensor, nn

from diptych.errors import ConfigError

__all__ = ["check_loaded", "files_of", "load_whole", "read_weights", "record_loading", "some"]

State = dict[str, Tensor]
Convert = Callable[[State], State]

_FILES = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth", "*.safetensors", "*.pth", "*.bin")
"""Names of files of weights, the most common first. timm and transformers write the first two."""
_DEEPEST = 8
"""How deep mappings may lie within each other where weights are searched for."""


def some(names: Sequence[str], most: int = 8) -> str:
    """How many names there are, and the first of them.

    >>> some(["a", "b", "c"], most=2)
    '3 (a, b, ...)'
    """
    return "none" if not names else f"{len(names)} ({_list(names, most)})"


def files_of(folder: str | Path, *, of: str) -> list[Path]:
    """The files of weights in a folder: one, or those that an index names.

    Raises:
        ConfigError: there is none, or the index is damaged.
    """
    folder = Path(folder)
    for index in sorted(folder.glob("*.index.json")):
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            if not all(isinstance(name, str) and Path(name).name == name for name in names):
                raise ValueError("it names files elsewhere")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{of}: '{index}' is no index of weights ({error}); copy the folder again") from error
        return [folder / name for name in sorted(names)]
    for pattern in _FILES:
        if files := sorted(folder.glob(pattern)):
            return files[:1]
    raise ConfigError(f"{of}: '{folder}' holds no weights; it should have model.safetensors or pytorch_model.bin")


def read_weights(path: str | Path, *, of: str) -> State:
    """Every tensor of a file by its full name. The keys of nested dictionaries are joined by dots.

    Args:
        path: a .safetensors file, or one that ``torch.save`` wrote.
        of: what the weights are for, for the message.

    Raises:
        ConfigError: the file is missing or damaged, holds more than tensors and plain values, or no tensor.
    """
    path = Path(path)
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "does not exist"
        raise ConfigError(
            f"{of}: its weights could not be loaded: '{path}' {kind}; give a .safetensors or .pth file as `weights`"
        )
    content: Any
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        foreign_class = re.search(r"GLOBAL (\S+)", str(error))
        raise ConfigError(
            f"{of}: weights '{path}' hold objects other than tensors and plain values"
            f"{f' ({foreign_class[1]})' if foreign_class else ''}, or are no weights; "
            "save the state_dict alone into a file of its own"
        ) from error
    except Exception as error:  # both readers fail in many ways
        raise ConfigError(
            f"{of}: weights '{path}' are cut off or damaged, or are none "
            f"({type(error).__name__}: {' '.join(str(error).split())[:120]}); give a .safetensors or .pth file"
        ) from error
    state = dict(_tensors(content))
    if not state:
        raise ConfigError(f"{of}: weights '{path}' hold no tensor; give a file with a state_dict")
    return state


def _tensors(content: Any, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    if isinstance(content, Tensor):
        yield prefix.removesuffix("."), content
    elif isinstance(content, Mapping) and depth < _DEEPEST:
        for key, value in content.items():
            yield from _tensors(value, f"{prefix}{key}.", depth + 1)


def _needed(module: nn.Module) -> State:
    """What a file must hold: all parameters and running statistics. Integers, which constructors compute, are left out."""
    return {
        name: value
        for name, value in module.state_dict().items()
        if isinstance(value, Tensor) and value.is_floating_point()
    }


def _shape_of_name(name: str) -> str:
    """The name with ``#`` for each number. It is the same for the same weight of other blocks."""
    return re.sub(r"\d+", "#", name)


@dataclass
class _Fit:
    """How the weights below one prefix fit a module."""

    prefix: str
    state: State
    needed: State
    known: Container[str]
    missing: list[str] = field(init=False)
    misshapen: list[str] = field(init=False)
    left: list[str] = field(init=False)

    def __post_init__(self) -> None:
        state, needed = self.state, self.needed
        self.missing = [name for name in needed if name not in state]
        self.misshapen = [
            f"{name} {list(state[name].shape)} for {list(value.shape)}"
            for name, value in needed.items()
            if name in state and state[name].shape != value.shape
        ]
        self.left = [name for name in state if name not in self.known]

    @property
    def whole(self) -> bool:
        return not self.missing and not self.misshapen


def _cuts(name: str) -> list[tuple[str, str]]:
    """The name as prefix and rest, in every way: ``a.b`` is (``""``, ``a.b``) and (``a.``, ``b``)."""
    parts = name.split(".")
    return [("".join(f"{part}." for part in parts[:cut]), ".".join(parts[cut:])) for cut in range(len(parts))]


def _prefixes(needed: State, state: State) -> Counter[str]:
    """How many of the needed names the state has behind each prefix."""
    return Counter(prefix for name in state for prefix, rest in _cuts(name) if rest in needed)


def _groups(state: State, least: int) -> list[str]:
    """Every prefix with at least so many tensors below it."""
    numbers = Counter(prefix for name in state for prefix, _ in _cuts(name))
    return [prefix for prefix, number in numbers.items() if number >= least]


def _below(prefix: str, needed: State, known: Container[str], state: State, convert: Convert) -> _Fit:
    plain = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    return _Fit(prefix, convert(plain), needed, known)


def load_whole(
    module: nn.Module,
    state: State,
    *,
    of: str,
    file: str,
    prefix: str | None = None,
    convert: Convert = lambda state: state,
) -> str:
    """Load a file's weights into a module: all that it needs, or none.

    Names in a file may have a prefix. It is the one below which the file has every name of the module, in its shape.

    Args:
        module: what they are loaded into.
        state: all tensors of the file, from :func:`read_weights`.
        of: what the module is, for messages.
        file: the file's name, for messages.
        prefix: what stands before the names. None searches for it.
        convert: turns known foreign formats into the module's names and shapes, and leaves others as they are.

    Returns:
        The prefix.

    Raises:
        ConfigError: weights are missing, there twice, of another shape or type, not finite, or of blocks that the module
            lacks.
    """
    needed, own = _needed(module), module.state_dict()
    if prefix is not None:
        prefix = f"{prefix.removesuffix('.')}." if prefix else ""
        fits = [_below(prefix, needed, own, state, convert)]
    else:
        counted = _prefixes(needed, state)
        complete = [name for name, number in counted.items() if number == len(needed)]
        groups = complete or [
            *dict.fromkeys([*_groups(state, max(1, len(needed) // 2)), "", *dict(counted.most_common(1))])
        ]
        fits = [_below(name, needed, own, state, convert) for name in groups]
        if not complete:  # a converter may have removed the prefix itself
            whole = [fit.prefix for fit in fits if fit.whole]
            fits = [
                fit
                for fit in fits
                if not any(p != fit.prefix and p.startswith(fit.prefix) for p in whole) or not fit.whole
            ]
    whole_fits = [fit for fit in fits if fit.whole]
    if len(whole_fits) > 1:
        names = " and ".join(f"'{fit.prefix}'" for fit in whole_fits)
        raise ConfigError(
            f"{of}: {file} holds its weights more than once, below {names}; choose one with weights_prefix"
        )
    best = min(fits, key=lambda fit: (len(fit.missing) + len(fit.misshapen), len(fit.prefix)))
    if not best.whole:
        have = len(needed) - len(best.missing) - len(best.misshapen)
        if not have:
            raise ConfigError(
                f"{of}: {file} holds none of its {len(needed)} weights{_behind(best)}; the file has {some(list(state), 4)}, "
                f"needed: {some(list(needed), 4)}{_shapes(best)}; give a file of this architecture"
            )
        raise ConfigError(
            f"{of}: {file} holds {have} of its {len(needed)} weights{_behind(best)}{_lack(best.missing)}{_shapes(best)}; left "
            f"over: {some(best.left, 4)}; give a file of this architecture"
        )
    chosen = {name: best.state[name] for name in needed}
    _refuse_deeper(needed, best.left, of, file)
    if odd := [f"{name} {value.dtype}" for name, value in chosen.items() if not value.is_floating_point()]:
        raise ConfigError(
            f"{of}: {file} holds weights that are no floating-point numbers: {some(odd)}; give plain weights"
        )
    _refuse_not_finite(chosen, of, file)
    counters = {
        name: best.state[name]
        for name, value in own.items()
        if name not in needed and name in best.state and best.state[name].shape == value.shape
    }
    module.load_state_dict(chosen | counters, strict=False)
    outside = [name for name in state if not name.startswith(best.prefix)]
    left = best.left + outside
    below = f", below the prefix '{best.prefix}'" if best.prefix else ""
    rank_zero_info(
        f"{of}: loaded {len(needed)} of {len(needed)} weights from {file}{below}; left over: {some(left, 4)}"
    )
    return best.prefix


def _behind(fit: _Fit) -> str:
    return f" below the prefix '{fit.prefix}'" if fit.prefix else ""


def _lack(missing: Sequence[str]) -> str:
    return f"; {len(missing)} weights are missing ({_list(missing, 8)})" if missing else ""


def _list(names: Sequence[str], most: int) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def _shapes(fit: _Fit) -> str:
    return f"; other shape: {some(fit.misshapen, 4)}" if fit.misshapen else ""


def _refuse_deeper(needed: State, left: Sequence[str], of: str, file: str) -> None:
    """Refuse a file of a deeper model: blocks that are left over would not be used."""
    shapes = {_shape_of_name(name) for name in needed}
    if blocks := [name for name in left if _shape_of_name(name) in shapes]:
        raise ConfigError(
            f"{of}: {file} is of a deeper model; it holds {len(blocks)} weights of blocks that are not here: "
            f"{some(blocks, 4)}; give a file of this architecture"
        )


def _refuse_not_finite(state: State, of: str, file: str) -> None:
    if broken := [name for name, value in state.items() if not torch.isfinite(value).all()]:
        raise ConfigError(f"{of}: {file} holds NaN or infinite weights: {some(broken)}; the run that wrote it diverged")


@contextmanager
def record_loading() -> Iterator[list[Any]]:
    """Within it, the list receives the result of each ``load_state_dict``: the missing and the unexpected names.

    Some libraries load with ``strict=False`` and do not say which weights stay random.
    """
    results: list[Any] = []
    load = nn.Module.load_state_dict

    def recorder(self: nn.Module, *args: Any, **options: Any) -> Any:
        results.append(load(self, *args, **options))
        return results[-1]

    nn.Module.load_state_dict = recorder  # type: ignore[method-assign]  # torch has no hook for modules not yet made
    try:
        yield results
    finally:
        nn.Module.load_state_dict = load  # type: ignore[method-assign]  # as above


def check_loaded(module: nn.Module, missing: Sequence[str], unexpected: Sequence[str], *, of: str, file: str) -> None:
    """Refuse a module that a library has loaded only in part.

    Args:
        module: what it has loaded into.
        missing: names of the module that the file lacks.
        unexpected: names of the file that the module lacks.
        of: what the module is, for messages.
        file: where the weights come from, for messages.

    Raises:
        ConfigError: weights are missing, of blocks that the module lacks, or not finite.
    """
    needed = _needed(module)
    if lacking := [name for name in missing if name in needed]:
        raise ConfigError(
            f"{of}: {file} holds {len(needed) - len(lacking)} of its {len(needed)} weights{_lack(lacking)}; left over: "
            f"{some(list(unexpected), 4)}; give weights of this architecture"
        )
    _refuse_deeper(needed, unexpected, of, file)
    _refuse_not_finite(needed, of, file)
    rank_zero_info(
        f"{of}: loaded {len(needed)} of {len(needed)} weights from {file}; left over: {some(list(unexpected), 4)}"
    )
