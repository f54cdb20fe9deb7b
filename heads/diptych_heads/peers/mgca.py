"""``mgca``: MGCA, with its own head. Its image tower is a ViT or a ResNet."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diptych.peer import Converted, Peer, Weights
from diptych_heads.peers.parts import CLINICAL_BERT, bert, resnet, vit

__all__ = ["Mgca", "image_tower", "projector"]


def projector(weights: Weights, name: str, target: str) -> dict[str, Tensor]:
    """MGCA's projection as diptych's, which has no bias before a norm. The biases go into the norms' running means.

    The outputs are the same in evaluation, and in training too: a batch norm removes a bias.
    """
    state: dict[str, Tensor] = {}
    for layer, norm, ours in (("0", "1", "inner"), ("3", "4", "outer")):
        mean = f"{target}.{ours}_norm.running_mean"
        kernel = weights.take(f"{name}.{layer}.weight", f"{target}.{ours}.weight")
        bias = weights.take(f"{name}.{layer}.bias", mean)
        state[f"{target}.{ours}.weight"] = kernel.flatten(1)
        state[mean] = weights.take(f"{name}.{norm}.running_mean", mean) - bias
        parts = ["running_var"] + (["weight", "bias"] if ours == "inner" else [])
        for part in parts:
            key = f"{target}.{ours}_norm.{part}"
            state[key] = weights.take(f"{name}.{norm}.{part}", key)
        weights.leave(
            rf"{name}.{norm}.num_batches_tracked".replace(".", r"\."), "a counter, which diptych's norm lacks"
        )
    return state


def image_tower(weights: Weights, prefix: str) -> tuple[dict[str, Any], int, dict[str, Tensor]]:
    """The tower of MGCA's code: arguments of ``TimmImage``, the side of its input, and its weights."""
    settings: dict[str, Any] = {"mean": 0.5, "std": 0.5}
    if weights.has(rf"{prefix}patch_embed\..*"):
        args, state = vit(weights, prefix)
        return {"name": "vit_base_patch16_224", "model_args": args, "stage": -1, **settings}, args["img_size"], state
    name, state = resnet(weights, prefix.replace(".", r"\."))
    weights.leave(rf"{prefix}fc\..*", "a classifier")
    return {"name": name, "stage": 3, **settings}, 299, state


class Mgca(Peer):
    """MGCA (arXiv 2210.06044). Its projections and prototypes are those of the head ``mgca``."""

    paper = "MGCA, arXiv 2210.06044"
    licence = "none is stated with the weights; the terms of MIMIC-CXR, on which they were trained, apply"
    inferred = (
        "mean and std 0.5, as its transforms say",
        "a ResNet gets 299 px: its tower enlarges 224 px to that. Here the picture itself is scaled to it",
        "temperature 0.07, which is no weight of it",
        "heads of attention: width over 64",
    )
    tokenizer = CLINICAL_BERT
    lower_case = True

    def convert(self, weights: Weights) -> Converted:
        """``img_encoder_q.*``, ``text_encoder_q.*`` and ``prototype_layer.weight``."""
        image, size, state = image_tower(weights, "img_encoder_q.model.")
        text_config, text = bert(weights, "text_encoder_q.model.")
        state |= text
        for name, target in (
            ("img_encoder_q.global_embed", "image"),
            ("img_encoder_q.local_embed", "region"),
            ("text_encoder_q.global_embed", "text"),
            ("text_encoder_q.local_embed", "word"),
        ):
            state |= projector(weights, f"{name}.head", f"head.{target}_projection")
        state["head.prototypes"] = weights.take("prototype_layer.weight", "head.prototypes")
        weights.leave(r"(patch|word)_local_atten_layer\..*", "attention that its published settings do not use")
        state |= weights.fill("head.scale.log_scale", -torch.tensor(0.07).log(), "a temperature of 0.07")
        prototypes, width = state["head.prototypes"].shape
        hidden = len(state["head.image_projection.inner.weight"])
        return Converted(
            image=image,
            text={"max_tokens": 112, "pool": "cls"},
            text_config=text_config,
            head="mgca",
            head_args={"width": width, "hidden": hidden, "prototypes": prototypes},
            image_size=size,
            state=state,
        )
