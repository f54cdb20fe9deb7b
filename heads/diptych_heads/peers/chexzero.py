"""``chexzero``: CheXzero, a CLIP ViT-B/32, with the head ``global``."""

from __future__ import annotations

from diptych.peer import Converted, Peer, Weights
from diptych_heads.peers.clip import clip_head, clip_text, clip_vit
from diptych_heads.peers.parts import grey

__all__ = ["Chexzero"]


class Chexzero(Peer):
    """CheXzero (Nature Biomedical Engineering 2022), which is CLIP (arXiv 2103.00020) trained on."""

    paper = "CheXzero, Nature Biomedical Engineering 2022; CLIP, arXiv 2103.00020"
    licence = "MIT is that of the project; the terms of MIMIC-CXR apply to the weights"
    inferred = (
        "mean 101.48761/255 and std 83.43944/255, as its code says; it scales after normalising, and here before",
        "QuickGELU, as OpenAI's weights have it; heads of attention: width over 64",
    )
    tokenizer = "openai/clip-vit-base-patch32"

    def convert(self, weights: Weights) -> Converted:
        """``visual.*``, ``transformer.*``, ``token_embedding``, both projections and ``logit_scale``."""
        args, state = clip_vit(weights, lambda filters: (grey(filters), None))
        text_config, text = clip_text(weights, "quick_gelu")
        state |= text | clip_head(weights)
        return Converted(
            image={
                "name": "vit_base_patch32_clip_quickgelu_224",
                "model_args": args,
                "stage": -1,
                "mean": 101.48761 / 255,
                "std": 83.43944 / 255,
            },
            text={"max_tokens": text_config["max_position_embeddings"], "pool": "last"},
            text_config=text_config,
            head="global",
            head_args={"width": len(state["head.image_projection.weight"])},
            image_size=args["img_size"],
            state=state,
        )
