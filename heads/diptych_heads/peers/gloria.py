"""``gloria``: GLoRIA, with its head ``local_pooling``."""

from __future__ import annotations

import torch

from diptych.peer import Converted, Peer, Weights
from diptych_heads.peers.parts import CLINICAL_BERT, bert, projected, resnet

__all__ = ["Gloria"]


class Gloria(Peer):
    """GLoRIA (ICCV 2021). The texts have no projection, so theirs is the identity."""

    paper = "GLoRIA, ICCV 2021"
    licence = "none is stated with the weights; the terms of CheXpert, on which they were trained, apply"
    inferred = (
        "mean and std 0.5, as its configuration says `norm: half`",
        "299 px: its tower enlarges 224 px to that. Here the picture itself is scaled to it",
        "the regions are those of layer 3; words are the sum of the last four layers, as its released configuration says",
        "heads of attention: width over 64",
    )
    tokenizer = CLINICAL_BERT
    lower_case = True

    def convert(self, weights: Weights) -> Converted:
        """Keys below ``gloria.``, or without it."""
        start = "gloria." if weights.has(r"gloria\..*") else ""
        image = f"{start}img_encoder."
        name, state = resnet(weights, rf"{image}model\.".replace("gloria.", r"gloria\."))
        text_config, text = bert(weights, f"{start}text_encoder.model.")
        state |= text
        state |= projected(weights, f"{image}global_embedder", "head.image_projection")
        state |= projected(weights, f"{image}local_embedder", "head.region_projection")
        weights.leave(rf"{image}model\.fc\..*", "a classifier")
        width = text_config["hidden_size"]
        why = "the identity: GLoRIA does not project texts"
        state |= weights.fill("head.text_projection.weight", torch.eye(width), why)
        state |= weights.fill("head.text_projection.bias", torch.zeros(width), why)
        state |= weights.fill("head.word_projection.weight", torch.eye(width), why)
        state |= weights.fill("head.scale.log_scale", torch.tensor(10.0).log(), "10, as published")
        state |= weights.fill("head.attention_scale.log_scale", torch.tensor(0.0), "1, as published")
        return Converted(
            image={"name": name, "stage": 3, "mean": 0.5, "std": 0.5},
            text={"max_tokens": 97, "last_layers": 4, "pool": "mean", "pool_layers": [-4, -3, -2, -1]},
            text_config=text_config,
            head="local_pooling",
            head_args={"width": width, "attention": "raw", "score_pooling": "best_word"},
            image_size=299,
            state=state,
        )
