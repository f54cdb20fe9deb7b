"""``biovil``: BioViL, with the head ``global``. Two files: its image model, and CXR-BERT."""

from __future__ import annotations

import torch

from diptych.errors import ConfigError
from diptych.peer import Converted, Peer, Weights
from diptych_heads.peers.parts import bert, fold_norm, projected, resnet

__all__ = ["Biovil"]


class Biovil(Peer):
    """BioViL (arXiv 2204.09817). Each region is projected, and the mean of the projections is the picture's vector.

    The batch norm within the projection is folded into its first layer. That is exact in evaluation.
    """

    paper = "BioViL, arXiv 2204.09817"
    licence = "MIT, as microsoft/BiomedVLP-CXR-BERT-specialized states; the card asks for research use alone"
    inferred = (
        "mean 0 and std 1: its transform scales grey to 0 to 1 and does no more",
        "480 px: its transform resizes the shorter side to 512 and crops 480 from the middle. Here the whole picture is scaled",
        "temperature 0.07: the files hold none, and no score depends on it",
        "256 word pieces at most; heads of attention: width over 64",
    )
    tokenizer = "microsoft/BiomedVLP-CXR-BERT-specialized"

    def convert(self, weights: Weights) -> Converted:
        """``encoder.encoder.*`` and ``projector.*`` of the image file; ``bert.*`` and ``cls_projection_head.*`` of the text.

        Raises:
            ConfigError: one of the two files is missing, or it is BioViL-T.
        """
        if weights.has(r".*(vit_pooler|backbone_to_vit).*"):
            raise ConfigError(
                f"{weights.source}: BioViL-T, whose tower of two pictures is not here; give BioViL's files"
            )
        name, state = resnet(weights, r"encoder\.encoder\.")
        weights.leave(r"encoder\.encoder\.fc\..*", "a classifier")
        start = "bert." if weights.has(r"bert\..*") else "model.bert."
        text_config, text = bert(weights, start)
        state |= text
        state |= self._image_projection(weights)
        for layer, target in (("dense_to_hidden", 0), ("LayerNorm", 2), ("dense_to_output", 3)):
            state |= projected(weights, f"cls_projection_head.{layer}", f"head.text_projection.{target}")
        weights.leave(r"cls\..*", "the prediction of hidden words")
        weights.leave(r"classifier\..*", "a classifier")
        state |= weights.fill("head.scale.log_scale", -torch.tensor(0.07).log(), "a temperature of 0.07")
        width = len(state["head.image_projection.2.bias"])
        return Converted(
            image={"name": name, "stage": -1, "mean": 0.0, "std": 1.0},
            text={"max_tokens": 256, "pool": "cls"},
            text_config=text_config,
            head="global",
            head_args={
                "width": width,
                "image_pooling": "regions",
                "projection": "mlp",
                "text_projection": "gelu_norm",
                "hidden": [
                    len(state["head.image_projection.0.bias"]),
                    len(state["head.text_projection.0.bias"]),
                ],
            },
            image_size=480,
            state=state,
        )

    def _image_projection(self, weights: Weights) -> dict[str, torch.Tensor]:
        targets = ("head.image_projection.0.weight", "head.image_projection.0.bias")
        parts = ("weight", "bias", "running_mean", "running_var")
        norm = {part: weights.take(f"projector.model.1.{part}", *targets) for part in parts}
        weights.leave(r"projector\.model\.1\.num_batches_tracked", "a counter of the norm that was folded")
        scale, shift = fold_norm(norm, "")
        first = weights.take("projector.model.0.weight", targets[0]).flatten(1)
        state = {targets[0]: scale[:, None] * first, targets[1]: shift}
        return state | projected(weights, "projector.model.3", "head.image_projection.2")
