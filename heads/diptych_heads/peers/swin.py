"""The Swin of transformers under timm's names."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from diptych.peer import Weights
from diptych_heads.peers.parts import IMAGE, grey

__all__ = ["swin"]

_RENAMED = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}


def swin(weights: Weights, prefix: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Its shape as arguments of timm, and its weights.

    transformers keeps query, key and value apart, and reduces at the end of a stage. timm has one matrix for the three, and
    reduces at the beginning of the next stage.

    Args:
        weights: of the peer.
        prefix: what stands before the names, as a plain text.
    """
    own = re.escape(prefix)
    state = weights.move(
        rf"{own}embeddings\.patch_embeddings\.projection\.weight", f"{IMAGE}patch_embed.proj.weight", grey
    )
    state |= weights.move(rf"{own}embeddings\.patch_embeddings\.projection\.bias", f"{IMAGE}patch_embed.proj.bias")
    state |= weights.move(rf"{own}embeddings\.norm\.(.*)", rf"{IMAGE}patch_embed.norm.\1")
    state |= weights.move(rf"{own}layernorm\.(.*)", rf"{IMAGE}norm.\1")
    for match in weights.matching(rf"{own}encoder\.layers\.(\d+)\.downsample\.(.*)"):
        target = f"{IMAGE}layers.{int(match[1]) + 1}.downsample.{match[2]}"
        state[target] = weights.take(match[0], target)
    block = rf"{own}encoder\.layers\.(\d+)\.blocks\.(\d+)\."
    for theirs, ours in _RENAMED.items():
        state |= weights.move(rf"{block}{re.escape(theirs)}\.(.*)", rf"{IMAGE}layers.\1.blocks.\2.{ours}.\3")
    table = "relative_position_bias_table"
    state |= weights.move(rf"{block}attention\.self\.{table}", rf"{IMAGE}layers.\1.blocks.\2.attn.{table}")
    for match in weights.matching(rf"{block}attention\.self\.query\.(weight|bias)"):
        target = f"{IMAGE}layers.{match[1]}.blocks.{match[2]}.attn.qkv.{match[3]}"
        thirds = [match[0].replace(".query.", f".{third}.") for third in ("query", "key", "value")]
        state[target] = torch.cat([weights.take(third, target) for third in thirds])
    weights.leave(rf"{block}attention\.self\.relative_position_index", "numbers of places")
    depths: dict[int, set[str]] = {}
    for match in weights.matching(rf"{block}layernorm_before\.weight"):
        depths.setdefault(int(match[1]), set()).add(match[2])
    heads = [weights.shape(f"{prefix}encoder.layers.{i}.blocks.0.attention.self.{table}")[1] for i in sorted(depths)]
    args = {
        "embed_dim": weights.shape(f"{prefix}embeddings.patch_embeddings.projection.weight")[0],
        "depths": [len(depths[i]) for i in sorted(depths)],
        "num_heads": heads,
    }
    return args, state
