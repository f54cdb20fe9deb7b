"""Image towers of the transformers library: DINOv2 (RAD-DINO), SigLIP (MedSigLIP), CLIP, ViT."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor
from transformers import MODEL_MAPPING, AutoConfig
from transformers.image_processing_utils import BaseImageProcessor

from diptych.errors import ConfigError, shown
from diptych.towers.architecture import check_no_weights, shape_fields, transformers_architecture
from diptych.towers.colour import ColourImage, side_of
from diptych.towers.text_model import from_pretrained, quiet_loading
from diptych.types import Features

__all__ = ["TransformersImage"]

_FILES = "preprocessor_config.json"
_BLOCK = re.compile(r"(?:^|\.)layers?\.(\d+)\.")


@dataclass(frozen=True)
class _Kind:
    """What differs between the models."""

    norm: str
    """Name of the norm after the last block."""
    pooled: Literal["first", "pooler_output"] = "first"
    """The picture's vector: the first token after the norm, or what the model's own pooling gives."""
    normed: bool = True
    """Whether the model gives its tokens after that norm."""
    first: Callable[[Any], int] = lambda config: 1
    """How many tokens stand before the regions."""
    options: tuple[tuple[str, bool], ...] = (("interpolate_pos_encoding", True),)
    """With which the model takes any size."""
    bare: tuple[tuple[str, bool], ...] = ()
    """With which it is built without layers that are not used."""


_KINDS = {
    "dinov2": _Kind("layernorm", options=()),
    "dinov2_with_registers": _Kind("layernorm", first=lambda config: 1 + config.num_register_tokens, options=()),
    "vit": _Kind("layernorm", bare=(("add_pooling_layer", False),)),
    "siglip_vision_model": _Kind("post_layernorm", "pooler_output", first=lambda config: 0),
    "clip_vision_model": _Kind("post_layernorm", "pooler_output", normed=False),
}


class TransformersImage(ColourImage):
    """A ViT of the transformers library, by its name on the hub or by the path of a local folder.

    It takes DINOv2 (arXiv 2304.07193), as RAD-DINO (arXiv 2401.10815), also with registers; SigLIP (arXiv 2303.15343), as
    MedSigLIP; CLIP (arXiv 2103.00020); and ViT (arXiv 2010.11929). Of a whole dual encoder the image tower is taken.

    The normalisation and the size of the input are those of the model's ``preprocessor_config.json``. Set
    ``data.loading.image_size`` to that size: 518 for RAD-DINO, 448 for MedSigLIP. With another multiple of the patch size,
    position codes are interpolated, and a message says so. Grey is given to all three channels.

    The pooled vector is the model's own: the class token of DINOv2 and ViT, the normed class token of CLIP, and the
    attention pooling of SigLIP. The regions are those of the last block, after its norm. The tower gives no attention, so
    heads that need it (``mgca``) do not fit.

    Args:
        name: as ``microsoft/rad-dino``, ``google/medsiglip-448``, ``facebook/dinov2-base``, or a folder with config.json,
            preprocessor_config.json and weights.
        pretrained: False starts from random weights of the same architecture.
        mean: what normalisation subtracts, where black is 0 and white is 1: one number, or a list of one for each colour.
            None takes the model's own.
        std: what normalisation then divides by, given in the same way.
        frozen: whether no parameter is trained.
        freeze_layers: how many of the lowest layers are not trained. The embeddings count as one.
        layer_decay: factor of the learning rate from each layer to the one below, above 0 to 1.
        gradient_checkpointing: recompute the blocks in backward, to save memory.
        architecture: JSON of the transformers configuration, from a checkpoint. Then nothing is fetched. Needs
            ``pretrained=False``.

    Raises:
        ConfigError: the model cannot be found or loaded, is of another kind, lacks weights or a normalisation, or an argument
            does not fit it.
    """

    def __init__(
        self,
        name: str = "microsoft/rad-dino",
        *,
        pretrained: bool = True,
        mean: float | list[float] | None = None,
        std: float | list[float] | None = None,
        frozen: bool = False,
        freeze_layers: int = 0,
        layer_decay: float = 1.0,
        gradient_checkpointing: bool = False,
        architecture: str | None = None,
    ) -> None:
        super().__init__()
        self.name, self._of = name, f"image tower '{name}'"
        preset: dict[str, Any] = {"image_mean": 0.5, "image_std": 0.5}  # a checkpoint has them as weights
        if architecture is None:
            with quiet_loading(self._of, _FILES):
                config = AutoConfig.from_pretrained(name, trust_remote_code=False)
                if mean is None or std is None:
                    preset = BaseImageProcessor.get_image_processor_dict(name)[0]
            config = getattr(config, "vision_config", config)
        else:
            check_no_weights(self._of, pretrained, None)
            config = transformers_architecture(architecture, "image")
        kind = _KINDS.get(config.model_type)
        if kind is None:
            raise ConfigError(
                f"{self._of}: a model of the kind {shown(config.model_type)} is no image tower; there are "
                f"{', '.join(_KINDS)}; for others see TimmImage"
            )
        _check_preset(preset, self._of)
        model_class: Any = MODEL_MAPPING[type(config)]
        if pretrained:
            self.model, self._origin = from_pretrained(
                model_class, name, config, of=self._of, files=_FILES, **dict(kind.bare)
            )
        else:
            self.model, self._origin = model_class(config, **dict(kind.bare)), {"name": name, "weights": "random"}
        if getattr(config, "vision_use_head", True) is not True:
            raise ConfigError(f"{self._of} has no pooling of its own; give a SigLIP with vision_use_head: true")
        model: Any = self.model
        self._kind, self._first = kind, int(kind.first(config))
        self.width = self.token_width = int(config.hidden_size)
        self.num_layers = int(config.num_hidden_layers)
        side, patch = side_of(config.image_size), side_of(config.patch_size)
        if side is None or patch is None:
            raise ConfigError(
                f"{self._of}: images of {config.image_size} in patches of {config.patch_size} are not square; choose another"
            )
        own = side_of(preset.get("crop_size")) or side_of(preset.get("size")) or side
        self._set_up_input(
            preset.get("image_mean") if mean is None else mean,
            preset.get("image_std") if std is None else std,
            input_size=own,
            patch=patch,
            positions=side // patch,
        )
        self._set_up_levels(self.num_layers)
        known = shape_fields(type(config))
        shape = {key: value for key, value in json.loads(config.to_json_string()).items() if key in known}
        self._architecture = json.dumps(shape, indent=2, sort_keys=True)
        if gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self._set_up_training(frozen=frozen, freeze_layers=freeze_layers, layer_decay=layer_decay)
        for part, parameter in self.named_parameters():
            if part.endswith("mask_token"):  # of their pre-training, which takes no part here
                parameter.requires_grad_(False)

    def layer_of(self, name: str) -> int:
        """0 for the embeddings, ``i + 1`` for the i-th block, ``num_layers`` for what comes after the blocks."""
        if match := _BLOCK.search(name):
            return int(match[1]) + 1
        return 0 if "embeddings." in name else self.num_layers

    def forward(self, image: Tensor) -> Features:
        """Features of radiographs ``[B,1,H,V]``, uint8 or float in [0,1]."""
        grid, pixels = self._grid(image), self._normalise(image)
        output = self.model(pixel_values=pixels, **dict(self._kind.options))
        tokens = output.last_hidden_state
        pooled = tokens[:, 0] if self._kind.pooled == "first" else output.pooler_output
        tokens = tokens if self._kind.normed else self._norm(tokens)
        return self._features(pooled, tokens[:, self._first :], grid, pixels)

    def pyramid(self, image: Tensor) -> list[Tensor]:
        """Four blocks at equal distances in depth (DPT, arXiv 2103.13413), after the final norm, resampled to the strides."""
        grid, pixels = self._grid(image), self._normalise(image)
        output = self.model(pixel_values=pixels, output_hidden_states=True, **dict(self._kind.options))
        maps = {}
        for index in set(self._levels):
            if index == self.num_layers - 1 and self._kind.normed:
                tokens = output.last_hidden_state
            else:
                tokens = self._norm(output.hidden_states[index + 1])
            maps[index] = tokens[:, self._first :].transpose(1, 2).unflatten(2, grid)
        return self._resampled(maps, image)

    def _norm(self, tokens: Tensor) -> Tensor:
        normed: Tensor = getattr(self.model, self._kind.norm)(tokens)
        return normed


def _check_preset(preset: dict[str, Any], of: str) -> None:
    """Refuse preprocessing that this tower does not do."""
    scale = preset.get("rescale_factor", 1 / 255)
    if preset.get("do_normalize", True) is not True or preset.get("do_rescale", True) is not True:
        raise ConfigError(f"{of}: its preprocessor_config.json does not normalise; give mean and std")
    if not isinstance(scale, float) or not math.isclose(scale, 1 / 255, rel_tol=1e-3):
        raise ConfigError(
            f"{of}: its preprocessor_config.json scales by {shown(scale)}, not by 1/255; give mean and std"
        )
    if "image_mean" not in preset or "image_std" not in preset:
        raise ConfigError(f"{of}: its preprocessor_config.json has no image_mean and image_std; give mean and std")
