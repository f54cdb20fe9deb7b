"""OpenAI's CLIP under timm's and transformers' names: its ViT, and its text transformer."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from diptych.errors import ConfigError
from diptych.peer import Weights
from diptych_heads.peers.parts import IMAGE, TEXT, vit_shape

__all__ = ["clip_head", "clip_text", "clip_vit"]

_OURS = {"ln_1": "norm1", "ln_2": "norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2", "attn.out_proj": "attn.proj"}
_TEXT = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}


def clip_vit(
    weights: Weights, first: Callable[[Tensor], tuple[Tensor, Tensor | None]]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The image tower below ``visual.``: its shape as arguments of timm, and its weights without the projection.

    Args:
        weights: of the peer.
        first: makes the first layer's filters ``[D,1,h,v]`` of those of three colours, and what is to be added to each
            place ``[D]``, or None.

    Raises:
        ConfigError: the tower is a ResNet, as CLIP has too.
    """
    if "visual.class_embedding" not in weights:
        raise ConfigError(f"{weights.source}: no ViT of CLIP below 'visual.'; its ResNets are not converted")
    tokens, width = weights.shape("visual.positional_embedding")
    patch = weights.shape("visual.conv1.weight")[-1]
    blocks = weights.matching(r"visual\.transformer\.resblocks\.(\d+)\.ln_1\.weight")
    target = f"{IMAGE}patch_embed.proj.weight"
    filters, added = first(weights.take("visual.conv1.weight", target))
    place = weights.take("visual.positional_embedding", f"{IMAGE}pos_embed")
    if added is not None:
        place = torch.cat([place[:1], place[1:] + added])
    token = weights.take("visual.class_embedding", f"{IMAGE}cls_token").reshape(1, 1, width)
    state = {target: filters, f"{IMAGE}pos_embed": place.unsqueeze(0), f"{IMAGE}cls_token": token}
    state |= weights.move(r"visual\.ln_pre\.(.*)", rf"{IMAGE}norm_pre.\1")
    state |= weights.move(r"visual\.ln_post\.(.*)", rf"{IMAGE}norm.\1")
    for theirs, ours in _OURS.items():
        own = rf"visual\.transformer\.resblocks\.(\d+)\.{re.escape(theirs)}\.(.*)"
        state |= weights.move(own, rf"{IMAGE}blocks.\1.{ours}.\2")
    state |= weights.move(
        r"visual\.transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)", rf"{IMAGE}blocks.\1.attn.qkv.\2"
    )
    return vit_shape(width, patch, tokens, len(blocks)), state


def clip_text(weights: Weights, activation: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The text tower: its shape as a configuration of transformers, and its weights without the projection.

    Args:
        weights: of the peer.
        activation: ``quick_gelu`` or ``gelu``, which no weight tells.
    """
    vocabulary, width = weights.shape("token_embedding.weight")
    blocks = weights.matching(r"transformer\.resblocks\.(\d+)\.ln_1\.weight")
    config = {
        "model_type": "clip_text_model",
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_hidden_layers": len(blocks),
        "num_attention_heads": width // 64,
        "intermediate_size": weights.shape("transformer.resblocks.0.mlp.c_fc.weight")[0],
        "max_position_embeddings": weights.shape("positional_embedding")[0],
        "hidden_act": activation,
    }
    state = weights.move(r"token_embedding\.weight", f"{TEXT}embeddings.token_embedding.weight")
    state |= weights.move(r"positional_embedding", f"{TEXT}embeddings.position_embedding.weight")
    state |= weights.move(r"ln_final\.(.*)", rf"{TEXT}final_layer_norm.\1")
    for theirs, ours in _TEXT.items():
        own = rf"transformer\.resblocks\.(\d+)\.{re.escape(theirs)}\.(.*)"
        state |= weights.move(own, rf"{TEXT}encoder.layers.\1.{ours}.\2")
    for match in weights.matching(r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)"):
        targets = [f"{TEXT}encoder.layers.{match[1]}.self_attn.{part}_proj.{match[2]}" for part in "qkv"]
        state |= dict(zip(targets, weights.take(match[0], *targets).chunk(3), strict=True))
    weights.leave(r"attn_mask", "the mask of a causal model")
    weights.leave(r"input_resolution|context_length|vocab_size", "sizes, as numbers")
    return config, state


def clip_head(weights: Weights) -> dict[str, Tensor]:
    """Both projections and the temperature, under the names of the head ``global``."""
    return {
        "head.image_projection.weight": weights.take("visual.proj", "head.image_projection.weight").T.contiguous(),
        "head.text_projection.weight": weights.take("text_projection", "head.text_projection.weight").T.contiguous(),
        "head.scale.log_scale": weights.take("logit_scale", "head.scale.log_scale"),
    }
