"""The image tower of a trained run, for downstream tasks."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from diptych.image import ImageTower
from diptych.loading import load
from diptych.results import sha256
from diptych.types import Features

__all__ = ["TrainedImage"]


class TrainedImage(ImageTower):
    """The image tower of a checkpoint that ``diptych fit`` wrote, architecture and weights.

    Its head and text tower are left behind.

    Args:
        checkpoint: a ``.ckpt`` of a pre-training run.
        frozen: no parameter is trained, and batch statistics do not move.
        freeze_layers: how many of the lowest layers (the stem counts as one) are not trained.
        layer_decay: factor of the learning rate from each layer to the one below, above 0 to 1.

    Raises:
        ConfigError: the checkpoint cannot be read or is of no pre-training run, or the tower has fewer layers.
    """

    def __init__(
        self, checkpoint: str, *, frozen: bool = False, freeze_layers: int = 0, layer_decay: float = 1.0
    ) -> None:
        super().__init__()
        model = load(checkpoint)
        tower, head = model.module.encoder.image, type(model.module.head)
        for parameter in tower.parameters():  # what was frozen there need not be here
            parameter.requires_grad_(True)
        self.tower = tower
        self.width, self.token_width, self.num_layers = tower.width, tower.token_width, tower.num_layers
        self.gives_attention, self.pyramid_widths = tower.gives_attention, tower.pyramid_widths
        self._origin = {
            "checkpoint": str(checkpoint),
            "sha256": sha256(checkpoint),
            "head": f"{head.__module__}.{head.__qualname__}",
            "trained_at": model.image_size,
        }
        self._set_up_training(frozen=frozen, freeze_layers=freeze_layers, layer_decay=layer_decay)

    @property
    def origin(self) -> dict[str, Any]:
        """The checkpoint, its head, and the size of its images."""
        return self._origin

    def layer_of(self, name: str) -> int:
        """As the tower within counts."""
        return self.tower.layer_of(name.removeprefix("tower."))

    def forward(self, image: Tensor) -> Features:
        """As the tower within."""
        features: Features = self.tower(image)
        return features

    def pyramid(self, image: Tensor) -> list[Tensor]:
        """As the tower within."""
        levels: list[Tensor] = self.tower.pyramid(image)
        return levels
