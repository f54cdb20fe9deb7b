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

from diptych.errors import ConfigError
from diptych.towers.architecture import check_model_args, timm_architecture
from diptych.towers.backbone import make_backbone
from diptych.towers.base import Tower, class_attention, origin_of
from diptych.types import Features

__all__ = ["STRIDES", "ImageTower", "TimmImage"]

STRIDES = (4, 8, 16, 32)
"""Input pixels for each pixel of the levels of a feature pyramid."""


class ImageTower(Tower):
    """Base of every image tower: a radiograph becomes a pooled vector, and one vector for each region of a grid."""

    pyramid_widths: tuple[int, ...] = ()
    """Widths of the feature pyramid's levels; empty where the tower has none."""

    query_width: int = 0
    """Width of what :meth:`queries` gives; 0 where there are none."""

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
        """What the queries of a trained head find in an image of these features, ``[B,K,query_width]``.

        Raises:
            ConfigError: the tower has none.
        """
        raise ConfigError(
            f"{type(self).__name__} has no queries; use TrainedImage with queries: true, of a run whose head has some, as pcma"
        )


def pyramid_indices(reductions: Sequence[int]) -> list[int]:
    """Which of a backbone's feature maps make the levels of a pyramid.

    For each stride the deepest map of it, or of the nearest there is; where all maps have one stride (plain ViTs), four of
    equal distance in depth, as DPT takes them (arXiv 2103.13413).

    Args:
        reductions: stride of each feature map, from the lowest on.
    """
    number = len(reductions)
    if len(set(reductions)) == 1:
        return [max(0, number * (level + 1) // len(STRIDES) - 1) for level in range(len(STRIDES))]
    away = [[abs(math.log2(reduction / stride)) for reduction in reductions] for stride in STRIDES]
    return [max(index for index in range(number) if of[index] == min(of)) for of in away]


class TimmImage(ImageTower):
    """Any timm backbone with a map of features: ResNet (arXiv 1512.03385), ViT (arXiv 2010.11929), ConvNeXt, Swin ...

    Radiographs have one channel. So the first layer's weights are summed over colours, as timm does, and the normalisation
    is the mean of the backbone's three. Weights load whole: one that is missing, left over from a deeper backbone or of
    another shape stops the run. ViTs accept any image size that is a multiple of their patch size. Their class and
    register tokens take part in the pooled vector only, as the backbone's own pooling has it.

    With gradient checkpointing, batch-norm statistics are updated twice in a step (the gradients are the same).

    Args:
        name: of a timm model, or ``hf-hub:owner/name``, or ``local-dir:/a/folder`` with config.json and weights.
        pretrained: False starts from random weights.
        weights: a local file of weights for this backbone (.safetensors, .pth), instead of the hub's. The prefix before
            their names, as ``img_encoder.model.``, is found; what is not of the backbone is left out and told.
        weights_prefix: that prefix, where a file has the backbone more than once; "" for none.
        mean: what normalisation subtracts, where black is 0 and white is 1: one number, or a list of colours, of which
            the mean counts. None takes that of the pretrained weights, or the backbone's own.
        std: what it then divides by, likewise.
        stage: which of the backbone's feature maps gives the regions: for a ResNet 3 is 1/16 of the image's size (14x14
            at 224, 19x19 at 299) and 4 or -1 the last, 1/32. For a ViT, which block; -1 is the last, after its norm.
            The pooled vector is always made from the last.
        model_args: passed on to timm's constructor, as ``{"img_size": 384}`` or smaller widths; plain values only.
        frozen: no parameter is trained, and batch statistics do not move.
        freeze_layers: how many of the lowest layers (blocks; the stem counts as one) are not trained.
        layer_decay: factor of the learning rate from each layer to the one below, above 0 to 1.
        gradient_checkpointing: recompute the blocks in backward, to save memory.
        architecture: JSON from a checkpoint, instead of ``name`` and ``model_args``; needs ``pretrained=False``.

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
            if pretrained or weights:
                raise ConfigError(
                    f"image tower '{name}': `architecture` is for checkpoints; set pretrained: false, weights: null"
                )
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
        if not -len(widths) <= stage < len(widths):
            raise ConfigError(
                f"stage={stage}: image tower '{name}' has {len(widths)} feature maps; give 0 to {len(widths) - 1}"
            )
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
        """Timm's name; the tag, the file or ``random`` as ``weights``; a file's hash and prefix; the normalisation."""
        return {**self._origin, "mean": round(float(self.mean), 6), "std": round(float(self.std), 6)}

    def layer_of(self, name: str) -> int:
        """0 for the stem, then one for each block as timm groups them."""
        return self._layers[name.removeprefix("backbone.")]

    def forward(self, image: Tensor) -> Features:
        """Features of radiographs ``[B,1,H,V]``, uint8 or float in [0,1]."""
        pixels = self._normalised(image)
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

        The final norm is applied as to the regions: to all of a plain ViT's maps, to the last of others.
        """
        backbone: Any = self.backbone
        chosen = sorted(set(self._levels))
        with self._refusing(image):
            found = backbone.forward_intermediates(
                self._normalised(image), indices=chosen, norm=True, intermediates_only=True
            )
        maps = dict(zip(chosen, found, strict=True))
        sizes = [tuple(-(-side // stride) for side in image.shape[-2:]) for stride in STRIDES]
        return [
            maps[index] if maps[index].shape[-2:] == size else interpolate(maps[index], size, mode="bilinear")
            for index, size in zip(self._levels, sizes, strict=True)
        ]

    def _normalised(self, image: Tensor) -> Tensor:
        scale = 1.0 if image.is_floating_point() else 255.0
        return (image.to(self.mean.dtype) - scale * self.mean) / (scale * self.std)

    @contextmanager
    def _refusing(self, image: Tensor) -> Iterator[None]:
        """Within it, timm's checks of the image size, and batch norm of a single value, speak of our options."""
        try:
            yield
        except (AssertionError, ValueError) as error:
            size = f"{image.shape[-2]}x{image.shape[-1]}, {len(image)} at a time"
            raise ConfigError(
                f"image tower '{self.name}' cannot take images of {size}: {error}; change loading.image_size or batch_size"
            ) from error

    @contextmanager
    def _recording(self, rows: list[Tensor]) -> Iterator[None]:
        """Within it, the list receives what the class token attends to in the last block: ``[B,tokens]``."""
        attention: Any = self.backbone.blocks[-1].attn  # type: ignore[index, union-attr]  # gives_attention has looked

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
        """What a checkpoint carries besides weights: ``architecture``, timm's name and arguments, and ``origin``; JSON."""
        return {"architecture": self._architecture, "origin": json.dumps(self._origin)}

    def set_extra_state(self, state: dict[str, str]) -> None:
        """Take the origin; the architecture is read before the tower is built, see :meth:`rebuild_args`."""
        self._origin = origin_of(state, self.name)

    @classmethod
    def rebuild_args(cls, extra_state: dict[str, str]) -> dict[str, Any]:
        """The architecture instead of the pretrained model.

        Raises:
            ConfigError: the checkpoint has none, so that its weights would have to be fetched.
        """
        if "architecture" not in extra_state:
            raise ConfigError("the image tower's architecture is not in the checkpoint; no run of diptych wrote it")
        return {
            "pretrained": False,
            "weights": None,
            "weights_prefix": None,
            "architecture": extra_state["architecture"],
        }


def _level(name: str, given: float | Sequence[float]) -> Tensor:
    """A mean or a deviation as one number of grey, from one or from one a colour."""
    values = torch.tensor(given, dtype=torch.float32).reshape(-1)
    low = 0 if name == "mean" else 1e-6
    if not len(values) or not bool(((values >= low) & (values <= 1)).all()):
        raise ConfigError(f"{name}={given}: give numbers from 0 to 1 where black is 0 and white is 1 (divide by 255)")
    return values.mean()
