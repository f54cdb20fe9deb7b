"""``openclip``: models of open_clip, a ViT with CLIP's texts or with a BERT (BiomedCLIP), and the head ``global``."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from diptych.errors import ConfigError
from diptych.peer import Converted, Peer, Weights
from diptych_heads.peers.clip import clip_head, clip_text, clip_vit
from diptych_heads.peers.parts import IMAGE, bert, one_level, projected, vit

__all__ = ["Openclip"]

_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)


class Openclip(Peer):
    """Models that open_clip has trained: BiomedCLIP (arXiv 2303.00915), and CLIPs such as WhyXrayCLIP (2405.14839).

    CLIP's mean and deviation of each colour become one number each. The first layer makes up for it. That is exact, as a
    ViT pads nothing.
    """

    paper = "open_clip; BiomedCLIP, arXiv 2303.00915"
    licence = "MIT for BiomedCLIP; otherwise as the card of the model says"
    inferred = (
        "CLIP's mean and std of each colour, which are open_clip's own unless a model says otherwise",
        "GELU; a model named `quickgelu` in open_clip would be converted wrongly",
        "for a BERT: 256 word pieces, and the first piece as the vector; heads of attention: width over 64",
    )

    def convert(self, weights: Weights) -> Converted:
        """``visual.trunk.*`` with ``text.transformer.*``, or the keys of CLIP.

        Raises:
            ConfigError: another pair of towers.
        """
        trunk, text = weights.has(r"visual\.trunk\..*"), weights.has(r"text\.transformer\.embeddings\..*")
        if trunk != text:
            raise ConfigError(
                f"{weights.source}: only two pairs are converted, of timm's ViT with a BERT (BiomedCLIP), and CLIP's own; "
                "UniMed-CLIP is neither"
            )
        return self._biomed(weights) if trunk else self._clip(weights)

    def _clip(self, weights: Weights) -> Converted:
        level: dict[str, Any] = {}

        def first(filters: Tensor) -> tuple[Tensor, Tensor | None]:
            level["mean"], level["std"], mixed, added = one_level(filters, _MEAN, _STD)
            return mixed, added

        args, state = clip_vit(weights, first)
        text_config, text = clip_text(weights, "gelu")
        return Converted(
            image={"name": "vit_base_patch32_clip_224", "model_args": args, "stage": -1, **level},
            text={"max_tokens": text_config["max_position_embeddings"], "pool": "last"},
            text_config=text_config,
            head="global",
            head_args={"width": weights.shape("visual.proj")[1]},
            image_size=args["img_size"],
            state=state | text | clip_head(weights),
        )

    def _biomed(self, weights: Weights) -> Converted:
        filters = weights.take("visual.trunk.patch_embed.proj.weight")
        args, state = vit(weights, "visual.trunk.")
        mean, std, mixed, added = one_level(filters, _MEAN, _STD)
        state[f"{IMAGE}patch_embed.proj.weight"] = mixed
        state[f"{IMAGE}patch_embed.proj.bias"] = state[f"{IMAGE}patch_embed.proj.bias"] + added
        text_config, text = bert(weights, "text.transformer.")
        state |= text | projected(weights, "visual.head.proj", "head.image_projection")
        if "text.proj.weight" in weights:
            state |= projected(weights, "text.proj", "head.text_projection")
        else:
            for layer in (0, 2):
                state |= projected(weights, f"text.proj.{layer}", f"head.text_projection.{layer}")
        state["head.scale.log_scale"] = weights.take("logit_scale", "head.scale.log_scale")
        layers = "head.text_projection.0.weight"
        two = {"text_projection": "gelu", "hidden": len(state[layers])} if layers in state else {}
        return Converted(
            image={"name": "vit_base_patch16_224", "model_args": args, "stage": -1, "mean": mean, "std": std},
            text={"max_tokens": 256, "pool": "cls"},
            text_config=text_config,
            head="global",
            head_args={"width": len(state["head.image_projection.weight"]), **two},
            image_size=args["img_size"],
            state=state,
        )
