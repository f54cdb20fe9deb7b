"""``xrv``: the DenseNets of torchxrayvision, which are image towers alone."""

from __future__ import annotations

from diptych.errors import ConfigError
from diptych.peer import Converted, Peer, Weights

__all__ = ["Xrv"]

_DEPTHS = {(6, 12, 24, 16): "densenet121", (6, 12, 32, 32): "densenet169", (6, 12, 48, 32): "densenet201"}


class Xrv(Peer):
    """DenseNets of torchxrayvision (arXiv 2111.00595). Their classifiers are left out.

    There is no text tower. So the checkpoint is for downstream tasks (``TrainedImage``). It refuses texts.
    """

    paper = "TorchXRayVision, arXiv 2111.00595"
    licence = "Apache-2.0 is that of the package; the weights have the terms of the data sets they were trained on"
    inferred = ("mean 0.5 and std 1/2048: torchxrayvision scales grey to -1,024 to 1,024", "224 px, as it resizes to")

    def convert(self, weights: Weights) -> Converted:
        """``features.*`` of a state dict, or of the whole pickled model, which is how torchxrayvision's files are.

        Raises:
            ConfigError: it is no DenseNet that timm has.
        """
        start = "model." if weights.has(r"model\.features\..*") else ""
        depths = tuple(
            len(
                {m[1] for m in weights.matching(rf"{start}features\.denseblock{block}\.denselayer(\d+)\.conv1\.weight")}
            )
            for block in (1, 2, 3, 4)
        )
        if depths not in _DEPTHS:
            raise ConfigError(f"{weights.source}: no DenseNet of timm (layers of its blocks: {list(depths)})")
        state = weights.move(rf"{start}(features\..*)", r"encoder.image.backbone.\1")
        weights.leave(rf"{start}classifier\..*", "a classifier of findings")
        weights.leave(rf"({start})?op_threshs", "thresholds of the classifier")
        why = "random: torchxrayvision has no text tower"
        return Converted(
            image={"name": _DEPTHS[depths], "stage": -1, "mean": 0.5, "std": 1 / 2048},
            head="global",
            head_args={"width": 32},
            image_size=224,
            state=state,
            untrained={"encoder.text.": why, "head.": why},
        )
