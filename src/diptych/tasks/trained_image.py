"""The image tower of a trained run, for downstream tasks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diptych.errors import ConfigError
from diptych.files import sha256
from diptych.head import Extracts
from diptych.model.inference import load
from diptych.model.stored import within_checkpoint
from diptych.towers.base import Tower
from diptych.towers.image import ImageTower
from diptych.types import Features

__all__ = ["TrainedImage"]


class TrainedImage(ImageTower):
    """The image tower of a checkpoint that ``diptych fit`` wrote, with its architecture and weights.

    The checkpoint's text tower is not loaded. Its head is kept only where ``queries`` is true.

    Args:
        checkpoint: a ``.ckpt`` of a pre-training run, or the run's folder. Of a folder the best checkpoint is taken, or else
            the last. It may also be a shared model (docs/sharing.md).
        queries: whether to keep the head, for tasks that use its queries (``Generate``).
        frozen: whether no parameter is trained. Batch statistics do not move then.
        freeze_layers: number of the lowest layers that are not trained. The stem counts as one.
        layer_decay: factor of the learning rate from each layer to the one below, above 0 to 1.

    Raises:
        ConfigError: the checkpoint cannot be read, is of no pre-training run, its head has no queries, or the tower has fewer
            layers than are to be frozen.
    """

    def __init__(
        self,
        checkpoint: str,
        *,
        queries: bool = False,
        frozen: bool = False,
        freeze_layers: int = 0,
        layer_decay: float = 1.0,
    ) -> None:
        super().__init__()
        if within_checkpoint() and checkpoint.startswith("hf-hub:"):
            raise ConfigError("refused: it names another model, of the hub; fetch that one yourself, by name")
        model = load(checkpoint)
        assert model.file is not None  # load has set it
        file = model.file
        tower, head = model.module.encoder.image, type(model.module.head)
        self.head = None
        if queries:
            if not isinstance(model.module.head, Extracts):
                raise ConfigError(
                    f"{checkpoint}: queries is true, and its head {head.__name__} has none that extract anything; use a run "
                    "with one that has, as pcma, or set queries: false"
                )
            self.head = model.module.head
            with torch.inference_mode():
                size = model.image_size
                self.query_width = self.head.extracts(model.module.embed_image(torch.zeros(1, 1, size, size))).shape[-1]
        for parameter in tower.parameters():  # what the run froze may be trained here
            parameter.requires_grad_(True)
        self.tower = tower
        self.width, self.token_width, self.num_layers = tower.width, tower.token_width, tower.num_layers
        self.images = tower.images
        self.gives_attention, self.pyramid_widths = tower.gives_attention, tower.pyramid_widths
        self._origin = {
            "checkpoint": str(file),
            "sha256": sha256(file),
            "head": f"{head.__module__}.{head.__qualname__}",
            "trained_at": model.image_size,
        }
        self._set_up_training(frozen=frozen, freeze_layers=freeze_layers, layer_decay=layer_decay)

    @property
    def origin(self) -> dict[str, Any]:
        """The checkpoint, its head, the size of its images, and the origin of its tower's first weights."""
        return {**self._origin, "tower": self.tower.origin}

    @property
    def keeper(self) -> Tower:
        """That of the run's tower."""
        return self.tower.keeper

    def layer_of(self, name: str) -> int:
        """The layer of a parameter in the run's tower. Parameters of the head belong to the top layer."""
        return self.num_layers if name.startswith("head.") else self.tower.layer_of(name.removeprefix("tower."))

    def forward(self, image: Tensor) -> Features:
        """The features that the run's tower computes."""
        features: Features = self.tower(image)
        return features

    def pyramid(self, image: Tensor) -> list[Tensor]:
        """The feature pyramid of the run's tower."""
        levels: list[Tensor] = self.tower.pyramid(image)
        return levels

    def queries(self, features: Features) -> Tensor:
        """What the head's queries extract from the features of images, ``[B,K,query_width]``."""
        if self.head is None:
            return super().queries(features)
        assert isinstance(self.head, Extracts)  # the constructor has checked
        vectors: Tensor = self.head.extracts(self.head.embed_image(features))
        return vectors
