"""``convirt``: re-implementations of ConVIRT, with the head ``global``. Its authors have published no weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diptych.errors import ConfigError
from diptych.peer import Converted, Peer, Weights
from diptych_heads.peers.mgca import image_tower
from diptych_heads.peers.parts import CLINICAL_BERT, bert, fold_norm, projected, resnet

__all__ = ["Convirt"]

_CHILDREN = {0: "conv1", 1: "bn1", 4: "layer1", 5: "layer2", 6: "layer3", 7: "layer4"}
"""The children of torchvision's ResNet by their number. ConVIRT-pytorch numbers them."""


_Parts = tuple[dict[str, Any], int, dict[str, Any], dict[str, Any], dict[str, Tensor]]
"""Image tower, side of its input, text tower, its configuration, and the weights."""


class Convirt(Peer):
    """ConVIRT (arXiv 2010.00747), as two public re-implementations store it.

    ``ConVIRT-pytorch`` has ``res_features.*``, ``res_l1``, ``bert_model.*``, ``bert_l1``. MGCA's baseline has
    ``img_encoder.*`` and ``text_encoder.*``. Its batch norms are folded into the layers before them. That is exact in
    evaluation.
    """

    paper = "ConVIRT, arXiv 2010.00747"
    licence = "the authors published no weights; those of re-implementations have the terms of who trained them"
    inferred = (
        "mean and std 0.5; 224 px for ConVIRT-pytorch, 299 px for the ResNet of MGCA's baseline",
        "temperature 0.1 (ConVIRT), which is no weight",
        "heads of attention: width over 64",
    )
    tokenizer = CLINICAL_BERT
    lower_case = True

    def convert(self, weights: Weights) -> Converted:
        """Whichever of the two the keys belong to.

        Raises:
            ConfigError: neither.
        """
        if weights.has(r"res_features\..*"):
            image, size, text, text_config, state = self._pytorch(weights)
        elif weights.has(r"img_encoder\.global_embed\..*"):
            image, size, text, text_config, state = self._baseline(weights)
        else:
            raise ConfigError(
                f"{weights.source}: neither ConVIRT-pytorch (res_features.*) nor MGCA's baseline (img_encoder.*, "
                "text_encoder.*); other re-implementations are not read"
            )
        state |= weights.fill("head.scale.log_scale", -torch.tensor(0.1).log(), "a temperature of 0.1")
        hidden = [len(state[f"head.{panel}_projection.0.bias"]) for panel in ("image", "text")]
        width = len(state["head.image_projection.2.bias"])
        return Converted(
            image=image,
            text=text,
            text_config=text_config,
            head="global",
            head_args={"width": width, "projection": "mlp", "hidden": hidden, "temperature": 0.1, "image_weight": 0.75},
            image_size=size,
            state=state,
        )

    def _pytorch(self, weights: Weights) -> _Parts:
        ours = {
            f"{_CHILDREN[int(match[1])]}.{match[2]}": match[0]
            for match in weights.matching(r"res_features\.(\d+)\.(.*)")
            if int(match[1]) in _CHILDREN
        }
        renamed = {name: weights.take(old, f"encoder.image.backbone.{name}") for name, old in ours.items()}
        name, state = resnet(Weights(renamed, weights.source), "")
        text_config, text = bert(weights, "bert_model.")
        state |= text
        for panel, theirs in (("image", "res"), ("text", "bert")):
            state |= projected(weights, f"{theirs}_l1", f"head.{panel}_projection.0")
            state |= projected(weights, f"{theirs}_l2", f"head.{panel}_projection.2")
        image: dict[str, Any] = {"name": name, "stage": -1, "mean": 0.5, "std": 0.5}
        return image, 224, {"max_tokens": 112, "pool": "mean"}, text_config, state

    def _baseline(self, weights: Weights) -> _Parts:
        image, size, state = image_tower(weights, "img_encoder.model.")
        text_config, text = bert(weights, "text_encoder.model.")
        state |= text
        for panel, theirs in (("image", "img_encoder"), ("text", "text_encoder")):
            state |= self._folded(weights, f"{theirs}.global_embed.head", f"head.{panel}_projection")
            weights.leave(rf"{theirs}\.local_embed\..*", "projections of tokens, which ConVIRT does not use")
        return image, size, {"max_tokens": 112, "pool": "cls"}, text_config, state

    def _folded(self, weights: Weights, name: str, target: str) -> dict[str, Tensor]:
        state = {}
        for layer, norm, ours, affine in (("0", "1", "0", True), ("3", "4", "2", False)):
            targets = (f"{target}.{ours}.weight", f"{target}.{ours}.bias")
            parts = ["running_mean", "running_var"] + (["weight", "bias"] if affine else [])
            scale, shift = fold_norm({part: weights.take(f"{name}.{norm}.{part}", *targets) for part in parts}, "")
            weights.leave(
                rf"{name}.{norm}.num_batches_tracked".replace(".", r"\."), "a counter of the norm that was folded"
            )
            state[targets[0]] = scale[:, None] * weights.take(f"{name}.{layer}.weight", targets[0])
            state[targets[1]] = scale * weights.take(f"{name}.{layer}.bias", targets[1]) + shift
        return state
