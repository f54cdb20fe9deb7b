"""How much a checkpoint may make its reader allocate: no more than its own weights can need."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from diptych.errors import ConfigError, shown

__all__ = ["Budget", "check_weights"]

MOST_WEIGHTS = 100_000
"""Tensors of a checkpoint."""


class Budget(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types here
    """A context that lets tensors be made only as far as the weights of one checkpoint can need.

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
        """Measure what an operation would make, then let it run."""
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
