"""``cxr-clip``: CXR-CLIP with a ResNet, and the head ``global``."""

from __future__ import annotations

from diptych.errors import ConfigError
from diptych.peer import Converted, Peer, Weights
from diptych_heads.peers.parts import CLINICAL_BERT, IMAGE, bert, one_level, projected, resnet

__all__ = ["CxrClip"]


class CxrClip(Peer):
    """CXR-CLIP (arXiv 2310.13292). A report's vector is that of its last piece."""

    paper = "CXR-CLIP, arXiv 2310.13292"
    licence = "CC-BY-NC-4.0 is that of the project; the terms of MIMIC-CXR and CheXpert apply to the weights"
    inferred = (
        "ImageNet's mean and std of each colour, as its trainer sets for a ResNet. They become one number each, and the "
        "first layer makes up for it. That is exact but where the first layer sees the padding of the border",
        "224 px, linear projections, and the last piece of a text: its released configuration",
        "256 word pieces at most; heads of attention: width over 64",
    )
    tokenizer = CLINICAL_BERT
    lower_case = True

    def convert(self, weights: Weights) -> Converted:
        """``image_encoder.resnet.*``, ``text_encoder.text_encoder.*`` and two projections, below ``model.`` or without it.

        Raises:
            ConfigError: its image tower is a Swin or a ViT, or its projections have two layers.
        """
        start = "model." if weights.has(r"model\.image_encoder\..*") else ""
        if not weights.has(rf"{start}image_encoder\.resnet\..*"):
            raise ConfigError(
                f"{weights.source}: its image tower is no ResNet; CXR-CLIP takes the first region of a Swin as the picture's "
                "vector, which no tower of diptych does; give the checkpoint of a ResNet-50"
            )
        image = f"{start}image_encoder.resnet."
        filters = weights.take(f"{image}conv1.weight")
        name, state = resnet(weights, image.replace(".", r"\."))
        mean, std, first, constant = one_level(filters, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        state[f"{IMAGE}conv1.weight"] = first
        state[f"{IMAGE}bn1.running_mean"] = state[f"{IMAGE}bn1.running_mean"] - constant
        text_config, text = bert(weights, f"{start}text_encoder.text_encoder.")
        state |= text
        for panel in ("image", "text"):
            if weights.has(rf"{start}{panel}_projection\.fc\..*"):
                raise ConfigError(f"{weights.source}: its projections have two layers; only linear ones are converted")
            state |= projected(weights, f"{start}{panel}_projection.projection", f"head.{panel}_projection")
        state["head.scale.log_scale"] = weights.take(f"{start}logit_scale", "head.scale.log_scale")
        weights.leave(r"(optimizer|scheduler|scaler)\..*", "the state of training")
        return Converted(
            image={"name": name, "stage": -1, "mean": mean, "std": std},
            text={"max_tokens": 256, "pool": "last"},
            text_config=text_config,
            head="global",
            head_args={"width": len(state["head.image_projection.bias"]), "projection": "affine"},
            image_size=224,
            state=state,
        )
