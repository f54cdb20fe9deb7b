"""What both towers have in common: widths, depth, freezing, and rebuilding without a download."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from diptych.errors import ConfigError
from diptych.nn.functional import full
from diptych.types import Features

__all__ = ["Tower", "class_attention", "origin_of", "unused_parameters"]


def unused_parameters(tower: nn.Module, features: Callable[[], Features]) -> list[str]:
    """Names of trained parameters on which neither the pooled vector nor the tokens depend; no gradient reaches them.

    Args:
        tower: of which; it is in evaluation mode meanwhile.
        features: what it gives for some input.
    """
    trained = [(name, parameter) for name, parameter in tower.named_parameters() if parameter.requires_grad]
    if not trained:
        return []
    training = tower.training
    tower.eval()
    with torch.inference_mode(False), torch.enable_grad():
        found = features()
        total = found.pooled.float().sum() + found.tokens.float().sum()
        gradients = torch.autograd.grad(total, [parameter for _, parameter in trained], allow_unused=True)
    tower.train(training)
    return [name for (name, _), gradient in zip(trained, gradients, strict=True) if gradient is None]


def origin_of(extra_state: dict[str, Any], name: str) -> dict[str, Any]:
    """Where the weights of a checkpoint were from at first, as its tower had written it.

    Args:
        extra_state: what ``get_extra_state`` had put in the checkpoint; ``origin`` is JSON.
        name: of the tower, where a checkpoint does not say.

    Raises:
        ConfigError: it is damaged.
    """
    stored = extra_state.get("origin")
    if stored is None:
        return {"name": name, "weights": "not stored by the version that wrote the checkpoint"}
    try:
        origin = json.loads(stored)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"the checkpoint's origin of '{name}' is not JSON: {str(error)[:80]}") from error
    if not isinstance(origin, dict):
        raise ConfigError(f"the checkpoint's origin of '{name}' is a {type(origin).__name__}, no mapping")
    return origin


def class_attention(query: Tensor, key: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
    """What the first token attends to, mean over the heads: ``[B,P]``, at least float32, no gradient.

    Fused attention never forms its probabilities; this one row of them costs ``1/P`` of a layer's.

    Args:
        query: ``[B,heads,P,d]``; its first token is the class token.
        key: ``[B,heads,P,d]``
        scale: of the products, as ``d ** -0.5``.
        mask: ``[B,1,Q,P]`` as the layer has it: bool, True where attended, or to be added; its first row counts.
    """
    with torch.no_grad(), torch.autocast(query.device.type, enabled=False):
        query, key = full(query[:, :, :1]), full(key)
        scores = scale * query @ key.transpose(2, 3)  # [B,heads,1,P]
        if mask is not None:
            row = mask[:, :, :1]
            scores = scores.masked_fill(~row, -torch.inf) if row.dtype == torch.bool else scores + row
        return scores.softmax(-1).mean(1).squeeze(1)


class Tower(nn.Module, ABC):
    """Base of both towers.

    A tower is a stack of layers, the stem or the embeddings being layer 0. Freezing and layer-wise learning-rate decay
    (ELECTRA, arXiv 2003.10555; BEiT, arXiv 2106.08254) both speak of these layers: a parameter's learning rate is
    scaled by ``layer_decay ** (num_layers - layer_of(name))``.

    Modules without a trainable parameter stay in evaluation mode, so that neither batch statistics nor dropout move in
    a frozen part, whatever :meth:`train` is told.
    """

    width: int
    """Width of the pooled vector."""
    token_width: int
    """Width of the region or word vectors."""
    num_layers: int
    """Index of the top layer."""
    layer_decay: float
    """Factor of the learning rate from each layer to the one below it; 1 is no decay."""

    gives_attention: bool = False
    """Whether the tower can fill ``Features.attention``."""
    attention: bool = False
    """Whether it does; the module sets it where a head asks for it."""

    @property
    def origin(self) -> dict[str, Any]:
        """Where its weights are from, in plain values with a ``name`` or a ``head``, for ``results.json``."""
        return {"name": type(self).__name__}

    @abstractmethod
    def layer_of(self, name: str) -> int:
        """Depth of a parameter, by its name in this tower: 0 (stem, embeddings) to ``num_layers``."""

    @classmethod
    def rebuild_args(cls, extra_state: dict[str, str]) -> dict[str, Any]:
        """Constructor arguments that replace the configured ones when a checkpoint is read, so that nothing is fetched.

        Args:
            extra_state: what :meth:`get_extra_state` had put in the checkpoint.
        """
        return {}

    def train(self, mode: bool = True) -> Self:
        """Training mode, but for the modules that have parameters and none that is trained."""
        super().train(mode)
        for module in self.modules():
            parameters = list(module.parameters())
            if mode and parameters and not any(p.requires_grad for p in parameters):
                for inner in module.modules():
                    inner.training = False
        return self

    def freeze(self) -> None:
        """Train no parameter of it, and stay in evaluation mode."""
        for parameter in self.parameters():
            parameter.requires_grad_(False)
        self.train()

    def _set_up_training(self, *, frozen: bool, freeze_layers: int, layer_decay: float) -> None:
        """Freeze the lowest layers (all of them if ``frozen``); called at the end of a subclass's constructor."""
        if not 0 <= freeze_layers <= self.num_layers + 1:
            raise ConfigError(
                f"freeze_layers={freeze_layers}: {type(self).__name__} has {self.num_layers + 1} layers, stem or "
                f"embeddings included; give a number from 0 to {self.num_layers + 1}"
            )
        if not 0 < layer_decay <= 1:
            raise ConfigError(f"layer_decay={layer_decay}: give a factor above 0 and at most 1 (1: no decay)")
        self.layer_decay = layer_decay
        for name, parameter in self.named_parameters():
            if frozen or self.layer_of(name) < freeze_layers:
                parameter.requires_grad_(False)
        self.train()
