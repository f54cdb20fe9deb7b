"""The base of both towers: widths, depth, freezing, and rebuilding without a download."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from diptych.checks import check_number
from diptych.errors import ConfigError
from diptych.nn.functional import full, without_autocast
from diptych.types import Features

__all__ = ["Tower", "class_attention", "origin_of", "unused_parameters"]


def unused_parameters(tower: nn.Module, features: Callable[[], Features]) -> list[str]:
    """Names of the trained parameters that no gradient reaches: neither the pooled vector nor the tokens depend on them.

    Args:
        tower: the tower, which is in evaluation mode meanwhile.
        features: computes its features of some input.
    """
    trained = [(name, parameter) for name, parameter in tower.named_parameters() if parameter.requires_grad]
    if not trained:
        return []
    training = tower.training
    tower.eval()
    with torch.inference_mode(False), torch.enable_grad():
        outputs = features()
        total = outputs.pooled.float().sum() + outputs.tokens.float().sum()
        gradients = torch.autograd.grad(total, [parameter for _, parameter in trained], allow_unused=True)
    tower.train(training)
    return [name for (name, _), gradient in zip(trained, gradients, strict=True) if gradient is None]


def origin_of(extra_state: dict[str, Any], name: str) -> dict[str, Any]:
    """Where the weights of a tower came from before training, as its checkpoint says.

    >>> origin_of({"origin": '{"name": "resnet50", "weights": "random"}'}, "resnet50")
    {'name': 'resnet50', 'weights': 'random'}

    Args:
        extra_state: what the tower's ``get_extra_state`` had put in the checkpoint, with ``origin`` as JSON.
        name: of the tower, for a checkpoint without ``origin``.

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
    """What the first token attends to, as the mean over the attention heads: ``[B,P]``, at least float32, no gradient.

    Fused attention never computes these probabilities. One row of them costs ``1/P`` of a layer's attention.

    Args:
        query: ``[B,heads,P,d]``. Its first token is the class token.
        key: ``[B,heads,P,d]``
        scale: of the products, as ``d ** -0.5``.
        mask: ``[B,1,Q,P]`` as the layer has it: bool, True at what may be attended to, or numbers to add. Its first row is
            used.
    """
    with torch.no_grad(), without_autocast(query):
        query, key = full(query[:, :, :1]), full(key)
        scores = scale * query @ key.transpose(2, 3)  # [B,heads,1,P]
        if mask is not None:
            row = mask[:, :, :1]
            scores = scores.masked_fill(~row, -torch.inf) if row.dtype == torch.bool else scores + row
        return scores.softmax(-1).mean(1).squeeze(1)


class Tower(nn.Module, ABC):
    """Base of both towers.

    A tower is a stack of layers. The stem or the embeddings are layer 0. Freezing and layer-wise learning-rate decay
    (ELECTRA, arXiv 2003.10555; BEiT, arXiv 2106.08254) use these numbers. The learning rate of a parameter is scaled by
    ``layer_decay ** (num_layers - layer_of(name))``.

    A frozen module, whose parameters are all untrained, stays in evaluation mode. So its batch statistics do not move and
    its dropout is off, also after ``train()``.
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
    """Whether the tower does fill it. ``AlignmentModule`` sets this where the head asks for attention."""

    @property
    def origin(self) -> dict[str, Any]:
        """Where its weights came from: plain values with a ``name`` or a ``head``, for ``results.json``."""
        return {"name": type(self).__name__}

    @property
    def keeper(self) -> Tower:
        """The tower that keeps the origin in a checkpoint: itself, or one inside."""
        return self

    @abstractmethod
    def layer_of(self, name: str) -> int:
        """Depth of a parameter, by its name in this tower: 0 (stem, embeddings) to ``num_layers``."""

    @classmethod
    def rebuild_args(cls, extra_state: dict[str, str]) -> dict[str, Any]:
        """The constructor arguments that replace configured ones when a checkpoint is read. With them nothing is fetched.

        Args:
            extra_state: what :meth:`get_extra_state` had put in the checkpoint.
        """
        return {}

    def train(self, mode: bool = True) -> Self:
        """Training mode, except for frozen modules, which stay in evaluation mode."""
        super().train(mode)
        for module in self.modules():
            parameters = list(module.parameters())
            if mode and parameters and not any(p.requires_grad for p in parameters):
                for inner in module.modules():
                    inner.training = False
        return self

    def freeze(self) -> None:
        """Train no parameter of the tower, and keep it in evaluation mode."""
        for parameter in self.parameters():
            parameter.requires_grad_(False)
        self.train()

    def _set_up_training(self, *, frozen: bool, freeze_layers: int, layer_decay: float) -> None:
        """Freeze the lowest layers, or all if ``frozen``. A subclass calls it at the end of its constructor."""
        layers = self.num_layers + 1
        remedy = f"a whole number from 0 to {layers}: it has {layers} layers, stem or embeddings included"
        check_number(
            f"{type(self).__name__}: freeze_layers", freeze_layers, least=0, most=layers, whole=True, remedy=remedy
        )
        check_number("layer_decay", layer_decay, above=0, most=1)
        self.layer_decay = layer_decay
        for name, parameter in self.named_parameters():
            if frozen or self.layer_of(name) < freeze_layers:
                parameter.requires_grad_(False)
        self.train()
