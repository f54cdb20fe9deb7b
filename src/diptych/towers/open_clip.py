"""Dual encoders of open_clip as towers: BiomedCLIP, CLIPs and SigLIPs, with their own projections."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace
from typing import Any

from lightning.pytorch.utilities import rank_zero_info
from timm.models import group_parameters
from torch import Tensor
from torch.nn.functional import pad

from diptych.checks import check_number
from diptych.errors import ConfigError, shown
from diptych.reports.tokenizer import Tokenizer
from diptych.towers.architecture import architecture_args, check_no_weights
from diptych.towers.base import origin_of
from diptych.towers.colour import ColourImage, side_of, stored_size
from diptych.towers.open_clip_model import (
    Panel,
    library,
    load_panel,
    read_model,
    read_panel,
    stored_panel,
    tokenizer_of,
)
from diptych.towers.text import TextTower, sum_pieces
from diptych.types import Features, TextBatch

__all__ = ["OpenClipImage", "OpenClipText"]

_BLOCK = re.compile(r"\.(?:resblocks|layers?)\.(\d+)\.")


class OpenClipImage(ColourImage):
    """The image tower of a dual encoder of open_clip, by its name on the hub or by a folder, with its projection.

    The pooled vector lies in the space that the model shares with its texts. So with :class:`OpenClipText` of the same
    model, and a head that projects nothing (``global`` with ``projection: none``), it ranks as published. The regions are
    those of the last block after its norm, before any projection.

    The normalisation and the size of the input are the model's own. Set ``data.loading.image_size`` to that size. Grey is
    given to all three channels.

    Args:
        name: as ``microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224``, or a folder with ``open_clip_config.json`` and
            weights.
        pretrained: False starts from random weights of the same architecture.
        image_size: side of the input, instead of the model's own. Position codes are interpolated once, as open_clip does,
            and a message says so.
        mean: what normalisation subtracts, where black is 0 and white is 1: one number, or a list of one for each colour.
            None takes the model's own.
        std: what normalisation then divides by, given in the same way.
        frozen: whether no parameter is trained.
        freeze_layers: how many of the lowest layers are not trained. The stem counts as one.
        layer_decay: factor of the learning rate from each layer to the one below, above 0 to 1.
        architecture: JSON from a checkpoint. Then nothing is fetched. Needs ``pretrained=False``.

    Raises:
        ConfigError: open_clip is not installed; the model cannot be had whole, has an image tower of another kind than a ViT
            or one of timm; or an argument does not fit it.
    """

    def __init__(
        self,
        name: str,
        *,
        pretrained: bool = True,
        image_size: int | None = None,
        mean: float | list[float] | None = None,
        std: float | list[float] | None = None,
        frozen: bool = False,
        freeze_layers: int = 0,
        layer_decay: float = 1.0,
        architecture: str | None = None,
    ) -> None:
        super().__init__()
        self.name, self._of = name, f"image tower '{name}'"
        library(self._of)
        preset: dict[str, Any] = {"mean": 0.5, "std": 0.5}  # a checkpoint has them as weights
        if architecture is None:
            model, preset = read_model(name, self._of)
            panel = read_panel(model, "image", self._of)
        else:
            check_no_weights(self._of, pretrained, None)
            panel = stored_panel(architecture, "image", self._of)
        own = side_of(panel.shape.get("image_size", 224))
        if own is None:
            raise ConfigError(
                f"{self._of}: images of {shown(panel.shape['image_size'])} are not square; choose another"
            )
        side = own if image_size is None else image_size
        check_number(f"{self._of}: image_size", side, least=8, whole=True)
        of_timm = bool(panel.shape.get("timm_model_name"))
        built = (
            panel if of_timm else Panel("image", panel.embed_dim, {**panel.shape, "image_size": side}, panel.quick_gelu)
        )
        self.model = built.build(self._of)
        inner: Any = self.model
        if not of_timm and not hasattr(inner, "ln_post"):
            raise ConfigError(f"{self._of} is a ResNet of CLIP, which gives no regions; choose one with a ViT")
        if getattr(inner, "attn_pool", None) is not None:
            raise ConfigError(f"{self._of} pools by attention (CoCa), which is not supported; choose another")
        self._origin: dict[str, Any] = {"name": name, "weights": "random"}
        if pretrained:
            resize = None if of_timm or side == own else lambda state: _resize_positions(state, inner)
            self._origin = load_panel(self.model, name, "image", self._of, resize)
        if side != own:
            if of_timm:
                _resize_timm(inner, side, self._of)
            if architecture is None:
                rank_zero_info(f"{self._of}: position codes for {own} px are interpolated to {side} px")
        levels = {key: preset.get(key) if given is None else given for key, given in (("mean", mean), ("std", std))}
        default = {key: list(getattr(library(self._of), f"OPENAI_DATASET_{key.upper()}")) for key in levels}
        self._set_up_input(
            default["mean"] if levels["mean"] is None else levels["mean"],
            default["std"] if levels["std"] is None else levels["std"],
            input_size=side,
            patch=1,
            positions=0,
        )
        self.width = panel.embed_dim
        self.token_width = int(inner.trunk.num_features if of_timm else inner.class_embedding.shape[0])
        self._layers: dict[str, int] = {}
        if of_timm:
            matcher = inner.trunk.group_matcher(coarse=False)
            self._layers = {
                f"model.trunk.{k}": v for k, v in group_parameters(inner.trunk, matcher, reverse=True).items()
            }
            self.num_layers = max(self._layers.values())
        else:
            self.num_layers = len(inner.transformer.resblocks)
        self._architecture = Panel(
            "image", panel.embed_dim, {**panel.shape, "image_size": own}, panel.quick_gelu
        ).to_json()
        self._set_up_training(frozen=frozen, freeze_layers=freeze_layers, layer_decay=layer_decay)

    def layer_of(self, name: str) -> int:
        """0 for the stem, then one number for each block. The projection belongs to the top layer."""
        if name in self._layers:
            return self._layers[name]
        if match := _BLOCK.search(name):
            return int(match[1]) + 1
        stem = ("class_embedding", "positional_embedding", "conv1.", "ln_pre.")
        return 0 if name.removeprefix("model.").startswith(stem) else self.num_layers

    def forward(self, image: Tensor) -> Features:
        """Features of radiographs ``[B,1,H,V]``, uint8 or float in [0,1].

        Raises:
            ConfigError: they have another size than the tower.
        """
        if tuple(image.shape[-2:]) != (self.input_size, self.input_size):
            height, width = image.shape[-2:]
            raise ConfigError(
                f"{self._of} cannot take images of {height}x{width}; set data.loading.image_size: {self.input_size}, or give "
                f"this tower image_size: {height}"
            )
        pixels = self._normalise(image)
        model: Any = self.model
        output = model.forward_intermediates(pixels, indices=1, normalize_intermediates=True)
        regions: Tensor = output["image_intermediates"][-1]  # [B,D,h,w]
        grid = (int(regions.shape[2]), int(regions.shape[3]))
        return self._features(output["image_features"], regions.flatten(2).transpose(1, 2), grid, pixels)

    @classmethod
    def rebuild_args(cls, extra_state: dict[str, str]) -> dict[str, Any]:
        """The stored architecture and size, instead of a published model.

        Raises:
            ConfigError: the checkpoint holds none.
        """
        return {**super().rebuild_args(extra_state), "image_size": stored_size(extra_state)}


def _resize_positions(state: dict[str, Tensor], visual: Any) -> None:
    """Interpolate a ViT's position codes to the tower's grid, by open_clip's own function."""
    from open_clip.model import resize_pos_embed

    resize_pos_embed(state, SimpleNamespace(visual=visual))


def _resize_timm(visual: Any, side: int, of: str) -> None:
    try:
        visual.set_input_size(side)
    except Exception as error:  # each backbone refuses sizes in its own way
        raise ConfigError(f"{of}: image_size: {side} does not fit it ({shown(str(error))})") from error


class OpenClipText(TextTower):
    """The text tower of a dual encoder of open_clip, with its tokenizer and its projection.

    The pooled vector lies in the space that the model shares with its pictures (:class:`OpenClipImage`). Word vectors are
    those of the last layer, before the projection.

    Args:
        name: as for :class:`OpenClipImage`. In a folder, tokenizer files lie beside the weights, unless it is CLIP's.
        pretrained: False starts from random weights of the same architecture.
        max_tokens: most word pieces of a report, special tokens included. None takes the model's own limit: 77 for CLIP, 256
            for BiomedCLIP. Longer reports lose their last sentences.
        frozen: whether no parameter is trained. Dropout is off then.
        freeze_layers: how many of the lowest layers are not trained. The embeddings count as one.
        layer_decay: factor of the learning rate from each layer to the one below, above 0 to 1.
        architecture: JSON from a checkpoint. Then nothing is fetched. Needs ``pretrained=False``.

    Raises:
        ConfigError: open_clip is not installed; the model or its tokenizer cannot be had; or an argument does not fit it.
    """

    def __init__(
        self,
        name: str,
        *,
        pretrained: bool = True,
        max_tokens: int | None = None,
        frozen: bool = False,
        freeze_layers: int = 0,
        layer_decay: float = 1.0,
        architecture: str | None = None,
    ) -> None:
        super().__init__()
        of = f"text tower '{name}'"
        library(of)
        if architecture is None:
            model, _ = read_model(name, of)
            panel = read_panel(model, "text", of)
        else:
            check_no_weights(of, pretrained, None)
            panel = stored_panel(architecture, "text", of)
        self.name, self._panel = name, panel
        self.model = panel.build(of)
        inner: Any = self.model
        if panel.text_config is None:
            self._room, self.token_width, self.num_layers = inner.context_length, inner.width, inner.transformer.layers
        else:
            self._room = int(panel.shape.get("context_length", 77))
            self.token_width = int(inner.config.hidden_size)
            self.num_layers = int(inner.config.num_hidden_layers)
        room = int(self._room)
        most = room if max_tokens is None else max_tokens
        remedy = f"{room} or less, as this text tower reads no more word pieces"
        check_number(f"{of}: max_tokens", most, least=8, most=room, whole=True, remedy=remedy)
        self.tokenizer = Tokenizer(None, most) if architecture else tokenizer_of(model, name, most, of)
        self.width = panel.embed_dim if getattr(inner, "output_dim", None) else self.token_width
        self._origin: dict[str, Any] = {"name": name, "weights": "random"}
        if pretrained:
            self._origin = load_panel(self.model, name, "text", of)
        self._set_up_training(frozen=frozen, freeze_layers=freeze_layers, layer_decay=layer_decay)

    @property
    def origin(self) -> dict[str, Any]:
        """The tower's ``name``, and its ``weights``: a file with hash, or ``random``."""
        return dict(self._origin)

    def layer_of(self, name: str) -> int:
        """0 for the embeddings, ``i + 1`` for the i-th block, ``num_layers`` for what comes after the blocks."""
        if match := _BLOCK.search(name):
            return int(match[1]) + 1
        return 0 if "emb" in name else self.num_layers

    def forward(self, text: TextBatch) -> Features:
        """Features of tokenised reports. It never waits for the device."""
        model: Any = self.model
        pieces = text.input_ids.shape[1]
        if self._panel.text_config is None:
            # to the whole context: its mask has that size, and a SigLIP has learned with padding
            ids = pad(text.input_ids, (0, self._room - pieces), value=self.tokenizer.pad_id)
            output = model.forward_intermediates(ids, indices=1, normalize_intermediates=True, output_fmt="NLC")
            pooled, tokens = output["text_features"], output["text_intermediates"][-1][:, :pieces]
        else:
            mask = text.attention_mask.long()
            output = model.transformer(input_ids=text.input_ids, attention_mask=mask)
            pooled, tokens = model.proj(model.pooler(output, mask)), output.last_hidden_state
        words = text.mask.shape[1]
        return Features(
            pooled=pooled,
            tokens=sum_pieces(tokens, text.word_of_piece, words),
            mask=text.mask,
            sentences=text.sentences,
            sentence_hash=text.sentence_hash,
        )

    def get_extra_state(self) -> dict[str, str]:
        """What a checkpoint carries besides weights: ``tokenizer``, ``architecture`` and ``origin``, all JSON."""
        origin = json.dumps(self._origin)
        return {"tokenizer": self.tokenizer.state(), "architecture": self._panel.to_json(), "origin": origin}

    def set_extra_state(self, state: dict[str, str]) -> None:
        """Take the tokenizer and the origin of a checkpoint.

        Raises:
            ConfigError: the tokenizer is damaged, or has more pieces than the tower.
        """
        if not isinstance(state, dict):
            raise ConfigError(f"the text tower's state is refused: it is {shown(state)}, and must be a mapping")
        model: Any = self.model
        self.tokenizer.load(state.get("tokenizer", ""), most=int(model.vocab_size))
        self._origin = origin_of(state, self.name)

    @classmethod
    def rebuild_args(cls, extra_state: dict[str, str]) -> dict[str, Any]:
        """The stored architecture, instead of a published model.

        Raises:
            ConfigError: the checkpoint holds none.
        """
        return {"pretrained": False, "architecture": architecture_args(extra_state, "text")["architecture"]}
