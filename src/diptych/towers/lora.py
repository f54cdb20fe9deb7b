"""Adapters of low rank (LoRA, arXiv 2106.09685) around any tower, by peft."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from diptych.checks import check_number
from diptych.errors import ConfigError
from diptych.towers.base import Tower, origin_of
from diptych.towers.image import ImageTower
from diptych.towers.text import TextTower
from diptych.towers.weights import some
from diptych.types import Features, TextBatch

__all__ = ["LoraImage", "LoraText"]

_USUAL = (["qkv"], ["q_proj", "v_proj"], ["query", "value"], ["q_lin", "v_lin"], ["c_fc", "c_proj"])
"""Layers that are adapted where none are named: those of queries and values, as in the paper.

open_clip's attention is one layer of torch, which has none. There it is those of the perceptrons.
"""


def _linear(module: nn.Module) -> dict[str, str]:
    """The path of every layer that can be adapted, and the last part of its name."""
    inside = {name for name, part in module.named_modules() if isinstance(part, nn.MultiheadAttention)}
    return {
        name: name.rpartition(".")[2]
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear | nn.Conv2d) and name.rpartition(".")[0] not in inside
    }


def _inject(tower: Tower, rank: int, alpha: float, targets: list[str] | None, of: str) -> dict[str, Any]:
    """Put adapters into a tower, freeze all else, and say what was done in plain values."""
    check_number(f"{of}: rank", rank, least=1, whole=True)
    check_number(f"{of}: alpha", alpha, above=0)
    layers = Counter(_linear(tower).values())
    if targets is None:
        targets = next((names for names in _USUAL if all(name in layers for name in names)), [])
    missing = [name for name in targets if name not in layers]
    if missing or not targets:
        which = f"targets: it has no layer '{missing[0]}'" if missing else "targets: it has none of the usual layers"
        raise ConfigError(f"{of}: {which}; there are {some(sorted(layers), 12)}")
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ConfigError(f"{of} needs peft; pip install 'diptych[peft]'") from error
    paths = [path for path, name in _linear(tower).items() if name in targets]
    options: dict[str, Any] = {"r": rank, "lora_alpha": alpha, "target_modules": paths}  # alpha need not be whole
    inject_adapter_in_model(LoraConfig(**options), tower)
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in tower.parameters()]
    trained, total = sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes)
    rank_zero_info(
        f"{of}: {trained:,} of {total:,} parameters are trained: rank {rank} and alpha {alpha:g} in {len(paths)} layers "
        f"({', '.join(targets)})"
    )
    return {"rank": rank, "alpha": alpha, "targets": targets, "layers": len(paths), "trained": trained, "of": total}


def _merge(tower: nn.Module) -> None:
    """Add the adapters to the weights that they adapt, and take them out."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for path, layer in list(tower.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge(safe_merge=True)
            parent, _, name = path.rpartition(".")
            setattr(tower.get_submodule(parent), name, layer.get_base_layer())


def _own_name(name: str) -> str:
    """The name that a parameter has, or adapts, in the tower without adapters.

    >>> _own_name("model.layer.0.query.lora_A.default.weight"), _own_name("model.layer.0.query.base_layer.bias")
    ('model.layer.0.query.weight', 'model.layer.0.query.bias')
    """
    return re.sub(r"\.lora_[AB]\.default\.", ".", name).replace(".base_layer.", ".")


class LoraImage(ImageTower):
    """Any image tower with adapters of low rank, which alone are trained.

    A layer's weight ``W`` acts as ``W + alpha / rank * B A``, where ``A`` is ``[rank,in]``, and ``B`` is ``[out,rank]`` and
    begins at 0. So before training the tower gives what it gave without adapters. How many parameters are trained is
    printed, and stands in the origin. A checkpoint holds the tower and its adapters.

    Args:
        image: the tower. Its options of freezing have no effect.
        rank: of the adapters.
        alpha: their scale is ``alpha / rank``.
        targets: names of the layers that are adapted, as ``[qkv, proj]``. None takes the layers of queries and values.

    Raises:
        ConfigError: peft is not installed, or the tower has no such layer.
    """

    def __init__(
        self, image: ImageTower, *, rank: int = 8, alpha: float = 16.0, targets: list[str] | None = None
    ) -> None:
        super().__init__()
        self.lora = _inject(image, rank, alpha, targets, "LoRA of the image tower")
        self.image = image
        self._stored: dict[str, Any] = {}
        self.width, self.token_width, self.num_layers = image.width, image.token_width, image.num_layers
        self.layer_decay, self.gives_attention = image.layer_decay, image.gives_attention
        self.pyramid_widths, self.query_width = image.pyramid_widths, image.query_width
        self.train()

    @property
    def origin(self) -> dict[str, Any]:
        """That of the tower, and what its adapters are."""
        return {**(self._stored or self.image.origin), "lora": self.lora}

    def layer_of(self, name: str) -> int:
        """The layer of the parameter that is adapted."""
        return self.image.layer_of(_own_name(name.removeprefix("image.")))

    def forward(self, image: Tensor) -> Features:
        """The features that the adapted tower computes."""
        self.image.attention = self.attention
        features: Features = self.image(image)
        return features

    def pyramid(self, image: Tensor) -> list[Tensor]:
        """The feature pyramid of the adapted tower."""
        return self.image.pyramid(image)

    def queries(self, features: Features) -> Tensor:
        """The queries of the adapted tower."""
        return self.image.queries(features)

    def merge(self) -> ImageTower:
        """The tower itself, with the adapters added to its weights. This one is not to be used afterwards."""
        _merge(self.image)
        return self.image

    def get_extra_state(self) -> dict[str, str]:
        """``origin``, as JSON."""
        return {"origin": json.dumps(self.origin)}

    def set_extra_state(self, state: dict[str, str]) -> None:
        """Take the origin. The tower inside takes its own state."""
        self._stored = {key: value for key, value in origin_of(state, "LoRA").items() if key != "lora"}


class LoraText(TextTower):
    """Any text tower with adapters of low rank, which alone are trained. :class:`LoraImage` tells how.

    Args:
        text: the tower. Its options of freezing have no effect.
        rank: of the adapters.
        alpha: their scale is ``alpha / rank``.
        targets: names of the layers that are adapted, as ``[query, value]``. None takes the layers of queries and values.

    Raises:
        ConfigError: peft is not installed, or the tower has no such layer.
    """

    def __init__(
        self, text: TextTower, *, rank: int = 8, alpha: float = 16.0, targets: list[str] | None = None
    ) -> None:
        super().__init__()
        self.lora = _inject(text, rank, alpha, targets, "LoRA of the text tower")
        self.text = text
        self._stored: dict[str, Any] = {}
        self.tokenizer = text.tokenizer
        self.width, self.token_width, self.num_layers = text.width, text.token_width, text.num_layers
        self.layer_decay, self.gives_attention = text.layer_decay, text.gives_attention
        self.train()

    @property
    def origin(self) -> dict[str, Any]:
        """That of the tower, and what its adapters are."""
        return {**(self._stored or self.text.origin), "lora": self.lora}

    def layer_of(self, name: str) -> int:
        """The layer of the parameter that is adapted."""
        return self.text.layer_of(_own_name(name.removeprefix("text.")))

    def forward(self, text: TextBatch) -> Features:
        """The features that the adapted tower computes."""
        self.text.attention = self.attention
        features: Features = self.text(text)
        return features

    def merge(self) -> TextTower:
        """The tower itself, with the adapters added to its weights. This one is not to be used afterwards."""
        _merge(self.text)
        return self.text

    def get_extra_state(self) -> dict[str, str]:
        """``origin``, as JSON."""
        return {"origin": json.dumps(self.origin)}

    def set_extra_state(self, state: dict[str, str]) -> None:
        """Take the origin. The tower inside takes its own state."""
        self._stored = {key: value for key, value in origin_of(state, "LoRA").items() if key != "lora"}
