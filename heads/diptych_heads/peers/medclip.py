"""``medclip``: MedCLIP with a Swin or a ResNet, and the head ``global``."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from diptych.peer import Converted, Peer, Weights
from diptych_heads.peers.parts import CLINICAL_BERT, bert, projected, resnet
from diptych_heads.peers.swin import swin

__all__ = ["Medclip"]


class Medclip(Peer):
    """MedCLIP (arXiv 2210.10163). A report's vector is the mean over all pieces of three layers: 1, 2 and the last.

    The published code also takes padding into that mean, so its vector of a text depends on the texts beside it. Here
    padding does not count.
    """

    paper = "MedCLIP, arXiv 2210.10163"
    licence = "none is stated with the weights; the terms of CheXpert and MIMIC-CXR, on which they were trained, apply"
    inferred = (
        "mean 0.58628 and std 0.27950 (its constants), 224 px",
        "77 word pieces at most, as its processor cuts; heads of attention: width over 64",
    )
    tokenizer = CLINICAL_BERT
    lower_case = True

    def convert(self, weights: Weights) -> Converted:
        """``vision_model.*``, ``text_model.*`` and ``logit_scale``."""
        image, state = self._image(weights)
        text_config, text = bert(weights, "text_model.model.")
        state |= text | projected(weights, "text_model.projection_head", "head.text_projection")
        state["head.scale.log_scale"] = weights.take("logit_scale", "head.scale.log_scale")
        return Converted(
            image={**image, "stage": -1, "mean": 0.5862785803043838, "std": 0.27950088968644304},
            text={"max_tokens": 77, "pool": "mean", "pool_layers": [1, 2, -1]},
            text_config=text_config,
            head="global",
            head_args={"width": len(state["head.image_projection.weight"])},
            image_size=224,
            state=state,
        )

    def _image(self, weights: Weights) -> tuple[dict[str, Any], dict[str, Tensor]]:
        if weights.has(r"vision_model\.model\.embeddings\..*"):
            args, state = swin(weights, "vision_model.model.")
            image = {"name": "swin_tiny_patch4_window7_224", "model_args": args}
            return image, state | projected(weights, "vision_model.projection_head", "head.image_projection")
        name, state = resnet(weights, r"vision_model\.model\.")
        return {"name": name}, state | projected(weights, "vision_model.model.fc", "head.image_projection")
