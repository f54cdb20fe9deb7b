"""Image towers: a pooled vector of the radiograph, and one vector for every region of a grid."""

from __future__ import annotations

import json
import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from timm.models import group_parameters, load_model_config_from_hf
from timm.models.vision_transformer import Attention  # type: ignore[attr-defined]  # the place in every version
from torch import Tensor, nn
from torch.nn.functional import interpolate

from diptych.checks import check_number
from diptych.errors import ConfigError
from diptych.towers.architecture import architecture_args, check_model_args, check_no_weights, timm_architecture
from diptych.towers.backbone import make_backbone
from diptych.towers.base import Tower, class_attention, origin_of
from diptych.types import Features

__all__ = ["STRIDES", "ImageTower", "TimmImage"]

STRIDES = (4, 8, 16, 32)
"""Input pixels, along one side, for each pixel of a level of the feature pyramid. One number a level."""


class ImageTower(Tower):
    """Base of every image tower: a radiograph becomes a pooled vector, and one vector for each region of a grid."""

    pyramid_widths: tuple[int, ...] = ()
    """Widths of the feature pyramid's levels. Empty where the tower has none."""

    images: int = 1
    """How many images of a study it takes at once."""

    query_width: int = 0
    """Width of the vectors of :meth:`queries`; 0 where the tower has no queries."""

    def check_images(self, given: int) -> None:
        """Refuse data of more images of a study than it takes.

        Raises:
            ConfigError: they have more.
        """
        if given > self.images:
            raise ConfigError(
                f"the data give {given} images of a study (data.columns.others), and {type(self).__name__} takes "
                f"{self.images}; use FusedImage with others: {given - 1} around the tower, or give no others"
            )

    @abstractmethod
    def forward(self, image: Tensor) -> Features:
        """Features of radiographs ``[B,1,H,V]``, uint8 or float in [0,1].

        ``pooled`` ``[B,D]``, ``tokens`` ``[B,N,D]`` in row-major order, ``mask`` all True, ``grid``, ``pixels``.
        """

    def pyramid(self, image: Tensor) -> list[Tensor]:
        """Feature maps of radiographs ``[B,1,H,V]``, finest first, for decoders of masks and boxes.

        The level of stride ``s``, of :data:`STRIDES`, is ``[B,pyramid_widths[k],ceil(H/s),ceil(V/s)]``.

        Raises:
            ConfigError: the tower has none, or does not take this size.
        """
        raise ConfigError(f"{type(self).__name__} has no feature pyramid; choose another image tower, as TimmImage")

    def queries(self, features: Features) -> Tensor:
        """The vectors ``[B,K,query_width]`` that the queries of a trained head take from the features of images.

        Raises:
            ConfigError: the tower has none.
        """
        raise ConfigError(
            f"{type(self).__name__} has no queries; use TrainedImage with queries: true, of a run whose head has some, as pcma"
        )


def pyramid_indices(reductions: Sequence[int]) -> list[int]:
    """Which of a backbone's feature maps become the levels of a pyramid, one for each of :data:`STRIDES`.

    A level takes the deepest map of its stride, or of the nearest stride. In a plain ViT all maps have one stride. Then the
    levels take four maps at equal distances in depth, as in DPT (arXiv 2103.13413).

    >>> pyramid_indices([2, 4, 8, 16, 32])  # a ResNet
    [1, 2, 3, 4]
    >>> pyramid_indices([16] * 12)  # a ViT
    [2, 5, 8, 11]

    Args:
        reductions: stride of each feature map, from the lowest on.
    """
    number = len(reductions)
    if len(set(reductions)) == 1:
        return [max(0, number * (level + 1) // len(STRIDES) - 1) for level in range(len(STRIDES))]
    distances = [[abs(math.log2(reduction / stride)) for reduction in reductions] for stride in STRIDES]
    return [max(index for index in range(number) if row[index] == min(row)) for row in distances]


class TimmImage(ImageTower):
    """Any timm backbone with a map of features: ResNet (arXiv 1512.03385), ViT (arXiv 2010.11929), ConvNeXt, Swin ...

    Radiographs have one channel. So the first layer's weights are summed over colours, as in timm. Normalisation takes the
    mean of the backbone's three values. Weights are loaded whole: the run stops if one is missing, has another shape, or
    is left over from a deeper backbone. ViTs accept any image size that is a multiple of their patch size. Class and
    register tokens are no regions. They take part in the pooled vector as the backbone's own pooling defines.

    With gradient checkpointing, batch-norm statistics are updated twice in a step. The gradients stay the same.

    Args:
        name: a timm model, or ``hf-hub:owner/name``, or ``local-dir:/a/folder`` with config.json and weights.
        pretrained: False starts from random weights.
        weights: a local file of weights for this backbone (.safetensors, .pth), instead of the hub's. A prefix before
            their names, as ``img_encoder.model.``, is searched for. Weights of other models in the file are left out, and
            a message says so.
        weights_prefix: that prefix, for a file that has the backbone more than once; "" for none.
        mean: what normalisation subtracts, where black is 0 and white is 1. It is one number, or a list of one number for
            each colour, whose mean is taken. None takes the value of the pretrained weights, or the backbone's own.
        std: what normalisation then divides by, given in the same way.
        stage: which of the backbone's feature maps gives the regions. In a ResNet, 3 is 1/16 of the image's size (14x14 at
            224, 19x19 at 299), and 4 or -1 is the last, 1/32. In a ViT it is a block, and -1 is the last, after its norm.
            The pooled vector always comes from the last.
        model_args: arguments of timm's constructor, as ``{"img_size": 384}`` or smaller widths. Plain values only.
        frozen: whether no parameter is trained. Batch statistics do not move then.
        freeze_layers: how many of the lowest layers are not trained. Each block is one, and the stem is one.
        layer_decay: factor of the learning rate from each layer to the one below, above 0 to 1.
        gradient_checkpointing: recompute the blocks in backward, to save memory.
        architecture: JSON from a checkpoint, instead of ``name`` and ``model_args``. Needs ``pretrained=False``.

    Raises:
        ConfigError: no such model, weights out of reach, a backbone without feature maps, or an argument that does not
            fit it.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str = "resnet50",
        *,
        pretrained: bool = True,
        weights: str | None = None,
        weights_prefix: str | None = None,
        mean: float | list[float] | None = None,
        std: float | list[float] | None = None,
        stage: int = -1,
        model_args: dict[str, Any] | None = None,
        frozen: bool = False,
        freeze_layers: int = 0,
        layer_decay: float = 1.0,
        gradient_checkpointing: bool = False,
        architecture: str | None = None,
    ) -> None:
        super().__init__()
        args = dict(model_args or {})
        if architecture is not None:
            check_no_weights(f"image tower '{name}'", pretrained, weights)
            name, args = timm_architecture(architecture)
        check_model_args(name, args)
        self.backbone, origin = make_backbone(name, pretrained, weights, weights_prefix, args)
        backbone: Any = self.backbone
        if not hasattr(backbone, "forward_intermediates") or not hasattr(backbone, "group_matcher"):
            raise ConfigError(
                f"image tower '{name}' gives no feature maps; choose another, as resnet50 or vit_base_patch16_224"
            )
        info = backbone.feature_info
        entries = list(getattr(info, "info", info))
        widths = [entry["num_chs"] for entry in entries]
        last = len(widths) - 1
        remedy = f"a whole number from 0 to {last}, as it has {len(widths)} feature maps"
        check_number(f"image tower '{name}': stage", stage, least=-len(widths), most=last, whole=True, remedy=remedy)
        self.name = name
        self._origin = {"name": name, **origin}
        self.stage = stage % len(widths)
        self.token_width = int(widths[self.stage])
        self._levels = pyramid_indices([entry["reduction"] for entry in entries])
        self.pyramid_widths = tuple(int(widths[index]) for index in self._levels)
        self.width = int(getattr(backbone, "head_hidden_size", None) or backbone.num_features)
        preset = backbone.pretrained_cfg
        self.register_buffer("mean", _level("mean", preset["mean"] if mean is None else mean))
        self.register_buffer("std", _level("std", preset["std"] if std is None else std))
        self._layers: dict[str, int] = group_parameters(
            self.backbone, backbone.group_matcher(coarse=False), reverse=True
        )
        self.num_layers = max(self._layers.values())
        tag = preset.get("tag") or ""
        if ":" in name:  # a folder or repository that may not be there when a checkpoint is read
            source, _, place = name.partition(":")
            if source == "local-dir":
                saved_args = json.loads(Path(place, "config.json").read_text()).get("model_args")
            else:
                saved_args = load_model_config_from_hf(place)[2]
            args = {**(saved_args or {}), **args}
            check_model_args(name, args)
        resolved = preset["architecture"] + (f".{tag}" if tag else "")
        try:
            self._architecture = json.dumps({"name": resolved if ":" in name else name, "model_args": args})
        except TypeError as error:
            raise ConfigError(
                f"image tower '{name}': model_args must be plain values, for the checkpoint: {error}"
            ) from error
        blocks = getattr(backbone, "blocks", None)
        last_attention = (
            getattr(blocks[-1], "attn", None) if isinstance(blocks, nn.Sequential | nn.ModuleList) else None
        )
        has_class_token = getattr(backbone, "cls_token", None) is not None
        self.gives_attention = has_class_token and type(last_attention) is Attention
        if gradient_checkpointing:
            try:
                backbone.set_grad_checkpointing(True)
            except (AssertionError, AttributeError, NotImplementedError) as error:
                raise ConfigError(
                    f"image tower '{name}' has no gradient checkpointing; set gradient_checkpointing: false"
                ) from error
        self._set_up_training(frozen=frozen, freeze_layers=freeze_layers, layer_decay=layer_decay)

    @property
    def origin(self) -> dict[str, Any]:
        """Timm's name, the normalisation, and the ``weights``: a tag, a file with hash and prefix, or ``random``."""
        return {**self._origin, "mean": round(float(self.mean), 6), "std": round(float(self.std), 6)}

    def layer_of(self, name: str) -> int:
        """0 for the stem, then one number for each block, as timm groups them."""
        return self._layers[name.removeprefix("backbone.")]

    def forward(self, image: Tensor) -> Features:
        """Features of radiographs ``[B,1,H,V]``, uint8 or float in [0,1]."""
        pixels = self._normalise(image)
        backbone: Any = self.backbone
        rows: list[Tensor] = []
        with self._refusing(image), self._recording(rows) if self.attention else nullcontext():
            final, maps = backbone.forward_intermediates(pixels, indices=[self.stage], norm=True)
        regions: Tensor = maps[0]  # [B,D,h,w]
        pooled: Tensor = backbone.forward_head(final, pre_logits=True)
        if pooled.shape[1:] != (self.width,) or regions.shape[1] != self.token_width:
            raise ConfigError(
                f"image tower '{self.name}' gives vectors {tuple(pooled.shape[1:])} and {regions.shape[1]} wide where "
                f"{self.width} and {self.token_width} were announced; choose another backbone"
            )
        tokens = regions.flatten(2).transpose(1, 2)
        return Features(
            pooled=pooled,
            tokens=tokens,
            mask=torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device),
            grid=(regions.shape[2], regions.shape[3]),
            pixels=pixels,
            attention=rows[0][:, backbone.num_prefix_tokens :] if rows else None,
        )

    def pyramid(self, image: Tensor) -> list[Tensor]:
        """The backbone's maps, from fine to coarse. A map of another size than its level's is resampled.

        The backbone's final norm is applied where it is for the regions: to all maps of a plain ViT, else to the last map.
        """
        backbone: Any = self.backbone
        chosen = sorted(set(self._levels))
        with self._refusing(image):
            outputs = backbone.forward_intermediates(
                self._normalise(image), indices=chosen, norm=True, intermediates_only=True
            )
        maps = dict(zip(chosen, outputs, strict=True))
        sizes = [tuple(-(-side // stride) for side in image.shape[-2:]) for stride in STRIDES]
        return [
            maps[index] if maps[index].shape[-2:] == size else interpolate(maps[index], size, mode="bilinear")
            for index, size in zip(self._levels, sizes, strict=True)
        ]

    def _normalise(self, image: Tensor) -> Tensor:
        scale = 1.0 if image.is_floating_point() else 255.0
        return (image.to(self.mean.dtype) - scale * self.mean) / (scale * self.std)

    @contextmanager
    def _refusing(self, image: Tensor) -> Iterator[None]:
        """Within it, an error of timm about the image size, or of batch norm about a single value, names our options."""
        try:
            yield
        except (AssertionError, ValueError) as error:
            size = f"{image.shape[-2]}x{image.shape[-1]}, {len(image)} at a time"
            raise ConfigError(
                f"image tower '{self.name}' cannot take images of {size}: {error}; change loading.image_size or batch_size"
            ) from error

    @contextmanager
    def _recording(self, rows: list[Tensor]) -> Iterator[None]:
        """Within it, the list receives what the class token attends to in the last block, ``[B,tokens]``."""
        attention: Any = self.backbone.blocks[-1].attn  # type: ignore[index, union-attr]  # gives_attention is True only where it is there

        @torch.no_grad()
        def hook(_module: nn.Module, _inputs: Any, qkv: Tensor) -> None:
            batch, tokens, _ = qkv.shape
            query, key, _ = qkv.view(batch, tokens, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
            rows.append(class_attention(attention.q_norm(query), attention.k_norm(key), attention.scale))

        handle = attention.qkv.register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    def get_extra_state(self) -> dict[str, str]:
        """What a checkpoint holds besides weights, as JSON: ``architecture`` (timm's name and arguments) and ``origin``."""
        return {"architecture": self._architecture, "origin": json.dumps(self._origin)}

    def set_extra_state(self, state: dict[str, str]) -> None:
        """Take the origin. The architecture was read before the tower was built, by :meth:`rebuild_args`."""
        self._origin = origin_of(state, self.name)

    @classmethod
    def rebuild_args(cls, extra_state: dict[str, str]) -> dict[str, Any]:
        """The stored architecture, instead of a pretrained model.

        Raises:
            ConfigError: the checkpoint holds none.
        """
        return architecture_args(extra_state, "image")


def _level(name: str, levels: float | Sequence[float]) -> Tensor:
    """The mean or the deviation of grey: one number, from one number or from one for each colour."""
    values = list(levels) if isinstance(levels, Sequence) else [levels]
    numbers: Sequence[object] = values or [levels]  # an empty list is refused as a whole
    for value in numbers:
        remedy = "a number from 0 to 1 where black is 0 and white is 1 (divide by 255)"
        check_number(name, value, least=0 if name == "mean" else 1e-6, most=1, remedy=remedy)
    return torch.tensor(values, dtype=torch.float32).mean()
