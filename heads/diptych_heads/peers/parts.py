"""The towers that peers share: ResNets of torchvision, ViTs of timm's names, and BERTs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diptych.errors import ConfigError
from diptych.peer import Weights

__all__ = [
    "CLINICAL_BERT", "IMAGE", "TEXT", "bert", "fold_norm", "grey", "one_level", "projected", "resnet", "vit", "vit_shape",
]  # fmt: skip

IMAGE = "encoder.image.backbone."
TEXT = "encoder.text.model."
CLINICAL_BERT = "emilyalsentzer/Bio_ClinicalBERT"
"""The text model of most peers, by its name on the hub."""

_RESNETS: dict[tuple[bool, tuple[int, ...]], str] = {
    (False, (2, 2, 2, 2)): "resnet18",
    (False, (3, 4, 6, 3)): "resnet34",
    (True, (3, 4, 6, 3)): "resnet50",
    (True, (3, 4, 23, 3)): "resnet101",
    (True, (3, 8, 36, 3)): "resnet152",
}
"""By whether the blocks have three convolutions, and how many blocks each layer has."""


def grey(filters: Tensor) -> Tensor:
    """The filters ``[D,1,h,v]`` that see a grey picture as those of colours ``[D,3,h,v]`` see three equal channels.

    >>> grey(torch.ones(1, 3, 1, 1)).flatten().tolist()
    [3.0]
    """
    return filters.sum(1, keepdim=True)


def one_level(filters: Tensor, mean: Sequence[float], std: Sequence[float]) -> tuple[float, float, Tensor, Tensor]:
    """One mean and one deviation for grey, where a peer has one for each colour, and filters that make up for it.

    With ``z = (x - m) / s`` a colour's input is ``(x - m_c) / s_c = (s / s_c) z + (m - m_c) / s_c``. The first factor goes
    into the filters. The rest is a constant for each filter, wherever the filter sees no padding.

    Args:
        filters: ``[D,3,h,v]``
        mean: of each colour, where white is 1.
        std: of each colour.

    Returns:
        ``m``, ``s``, the filters ``[D,1,h,v]``, and the constants ``[D]``.
    """
    m, s = sum(mean) / 3, sum(std) / 3
    means, stds = filters.new_tensor(mean), filters.new_tensor(std)
    mixed = torch.einsum("dchv,c->dhv", filters, s / stds).unsqueeze(1)
    return m, s, mixed, torch.einsum("dchv,c->d", filters, (m - means) / stds)


def fold_norm(state: dict[str, Tensor], norm: str, eps: float = 1e-5) -> tuple[Tensor, Tensor]:
    """The scale and the shift ``[D]`` of a batch norm in evaluation: ``y = scale * x + shift``.

    >>> state = {"n.running_mean": torch.tensor([1.0]), "n.running_var": torch.tensor([4.0])}
    >>> [round(float(x), 3) for x in fold_norm(state, "n.", eps=0)]
    [0.5, -0.5]

    Args:
        state: with the norm's ``running_mean`` and ``running_var``, and its ``weight`` and ``bias`` if it has some.
        norm: what stands before their names.
        eps: of the norm.
    """
    scale = (state[f"{norm}running_var"] + eps).rsqrt()
    if f"{norm}weight" in state:
        scale = scale * state[f"{norm}weight"]
    shift = -state[f"{norm}running_mean"] * scale
    return scale, shift + state[f"{norm}bias"] if f"{norm}bias" in state else shift


def resnet(weights: Weights, prefix: str) -> tuple[str, dict[str, Tensor]]:
    """A ResNet under torchvision's names: its name in timm, and its weights. The classifier is left out.

    Args:
        weights: of the peer.
        prefix: what stands before the names, as a regular expression with no group.

    Raises:
        ConfigError: it is no ResNet that is known.
    """
    counts = tuple(
        len({match[1] for match in weights.matching(rf"{prefix}layer{layer}\.(\d+)\.conv1\.weight")})
        for layer in (1, 2, 3, 4)
    )
    name = _RESNETS.get((weights.has(rf"{prefix}layer1\.0\.conv3\.weight"), counts))
    if name is None:
        raise ConfigError(
            f"{weights.source}: no ResNet of torchvision below '{prefix}' (blocks of its layers: {list(counts)}); give a "
            "checkpoint whose image tower is one"
        )
    state = weights.move(rf"{prefix}(conv1\.weight)", rf"{IMAGE}\1", grey)
    state |= weights.move(rf"{prefix}(bn1\..*|layer\d\..*)", rf"{IMAGE}\1")
    return name, state


def vit_shape(width: int, patch: int, tokens: int, depth: int) -> dict[str, Any]:
    """A ViT's shape as arguments of timm. It has one head of attention for 64 of its width, and one class token.

    >>> vit_shape(768, 16, 197, 12)["img_size"]
    224
    """
    return {
        "img_size": patch * round((tokens - 1) ** 0.5),
        "patch_size": patch,
        "embed_dim": width,
        "depth": depth,
        "num_heads": width // 64,
    }


def vit(weights: Weights, prefix: str, **more: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A ViT under timm's names: its shape as arguments of timm, and its weights. The classifier is left out.

    Args:
        weights: of the peer.
        prefix: what stands before the names, as a plain text.
        more: further arguments of timm.
    """
    width, _, patch, _ = weights.shape(f"{prefix}patch_embed.proj.weight")
    tokens = weights.shape(f"{prefix}pos_embed")[1]
    own = re.escape(prefix)
    blocks = {match[1] for match in weights.matching(rf"{own}blocks\.(\d+)\.norm1\.weight")}
    args = vit_shape(width, patch, tokens, len(blocks)) | more
    state = weights.move(rf"{own}(patch_embed\.proj\.weight)", rf"{IMAGE}\1", grey)
    state |= weights.move(rf"{own}(cls_token|pos_embed|patch_embed\.proj\.bias|norm\..*|blocks\..*)", rf"{IMAGE}\1")
    weights.leave(rf"{own}(head|pre_logits)\..*", "a classifier")
    return args, state


def bert(weights: Weights, prefix: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A BERT under transformers' names: its shape as a configuration, and its weights. The pooler is left out.

    The number of attention heads is no weight. It is the width over 64, as in every BERT that is published.

    Args:
        weights: of the peer.
        prefix: what stands before the names, as a plain text.
    """
    vocabulary, width = weights.shape(f"{prefix}embeddings.word_embeddings.weight")
    own = re.escape(prefix)
    layers = {match[1] for match in weights.matching(rf"{own}encoder\.layer\.(\d+)\.output\.dense\.weight")}
    types = f"{prefix}embeddings.token_type_embeddings.weight"
    config = {
        "model_type": "bert",
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_hidden_layers": len(layers),
        "num_attention_heads": width // 64,
        "intermediate_size": weights.shape(f"{prefix}encoder.layer.0.intermediate.dense.weight")[0],
        "max_position_embeddings": weights.shape(f"{prefix}embeddings.position_embeddings.weight")[0],
        "type_vocab_size": weights.shape(types)[0] if types in weights else 2,
    }
    state: dict[str, Tensor] = {}
    if types not in weights:
        target = f"{TEXT}embeddings.token_type_embeddings.weight"
        state |= weights.fill(target, torch.zeros(2, width), "zeros: this peer's BERT has no types of tokens")
    weights.leave(rf"{own}pooler\..*", "the pooler, which this peer does not use")
    weights.leave(rf"{own}embeddings\.(position_ids|token_type_ids)", "numbers of places")
    weights.leave(
        rf"{own}encoder\.layer\.\d+\.crossattention\..*", "attention to pictures, which texts alone do not use"
    )
    return config, state | weights.move(rf"{own}(embeddings\..*|encoder\.layer\..*)", rf"{TEXT}\1")


def projected(weights: Weights, name: str, target: str) -> dict[str, Tensor]:
    """A linear layer, a convolution of one pixel as a linear layer, or a layer norm. A bias is taken if there is one.

    Args:
        weights: of the peer.
        name: of the layer.
        target: its new name.
    """
    kernel = weights.take(f"{name}.weight", f"{target}.weight")
    state = {f"{target}.weight": kernel.flatten(1) if kernel.ndim > 1 else kernel}
    if f"{name}.bias" in weights:
        state[f"{target}.bias"] = weights.take(f"{name}.bias", f"{target}.bias")
    return state
