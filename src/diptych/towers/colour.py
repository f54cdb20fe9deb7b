"""What image towers of other projects' models share: three equal channels, and an input size of their own."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.nn.functional import interpolate

from diptych.checks import check_number
from diptych.errors import ConfigError, shown
from diptych.towers.architecture import architecture_args
from diptych.towers.base import origin_of
from diptych.towers.image import STRIDES, ImageTower, pyramid_indices
from diptych.types import Features

__all__ = ["ColourImage", "side_of", "stored_size"]


def side_of(size: object) -> int | None:
    """The side in pixels of a size as preprocessing files write it, or None if it is no one length.

    >>> side_of(448), side_of({"shortest_edge": 518}), side_of({"height": 448, "width": 448}), side_of([224, 224])
    (448, 518, 448, 224)
    >>> side_of({"height": 448, "width": 224}) is None
    True
    """
    values = list(size.values()) if isinstance(size, Mapping) else size
    sides: list[Any] = list(values) if isinstance(values, Sequence) and not isinstance(values, str) else [values]
    if not sides or any(type(side) is not int or side < 1 for side in sides) or len(set(sides)) > 1:
        return None
    return int(sides[0])


def stored_size(extra_state: Mapping[str, object]) -> int | None:
    """The size of the input that a checkpoint holds.

    Raises:
        ConfigError: it is no number of pixels.
    """
    stored = extra_state.get("input_size", "null")
    if not isinstance(stored, str) or not re.fullmatch(r"null|[1-9]\d{0,4}", stored):
        raise ConfigError(
            f"the checkpoint's input_size is refused: it is {shown(stored)}, and must be a number of pixels"
        )
    return None if stored == "null" else int(stored)


class ColourImage(ImageTower):
    """Base of towers whose model sees three channels, with a mean and a deviation of its own for each.

    The radiograph is given to all three. So the weights stay as they were published. A picture of another size than the
    model's own is taken as it is. Its position codes are interpolated, and a message says so once.
    """

    mean: Tensor
    """``[3]``, where black is 0 and white is 1."""
    std: Tensor
    """``[3]``"""
    input_size: int | None
    """Side of the pictures that the model was made for, in pixels."""

    name: str
    _of: str
    _patch: int
    _positions: int
    _origin: dict[str, Any]
    _architecture: str

    def _set_up_input(
        self,
        mean: object,
        std: object,
        *,
        input_size: int | None,
        patch: int,
        positions: int,
    ) -> None:
        """Take the normalisation, the sizes of picture and patch, and the places along a side that have a code."""
        for name, levels in (("mean", mean), ("std", std)):
            values: list[Any] = (
                list(levels) if isinstance(levels, Sequence) and not isinstance(levels, str) else [levels]
            )
            if len(values) not in (1, 3):
                raise ConfigError(f"{self._of}: {name} is {shown(levels)}; give one number, or one for each colour")
            for value in values:
                remedy = "a number from 0 to 1 where black is 0 and white is 1 (divide by 255)"
                check_number(f"{self._of}: {name}", value, least=0 if name == "mean" else 1e-6, most=1, remedy=remedy)
            numbers = torch.tensor([float(value) for value in values], dtype=torch.float32)
            self.register_buffer(name, numbers.expand(3).clone())
        self.input_size, self._patch, self._positions = input_size, patch, positions
        self._told: set[tuple[int, int]] = set()

    @property
    def origin(self) -> dict[str, Any]:
        """Name, normalisation, own size, and the ``weights``: the hub's name, a file with hash, or ``random``."""
        levels = {name: [round(float(x), 6) for x in getattr(self, name)] for name in ("mean", "std")}
        return {**self._origin, **levels, "input_size": self.input_size}

    def _normalise(self, image: Tensor) -> Tensor:
        """Radiographs ``[B,1,H,V]`` as three channels ``[B,3,H,V]``."""
        scale = 1.0 if image.is_floating_point() else 255.0
        mean, std = self.mean[:, None, None], self.std[:, None, None]
        return (image.to(mean.dtype) - scale * mean) / (scale * std)

    def _grid(self, image: Tensor) -> tuple[int, int]:
        """The grid of regions of a picture. A size that is not the model's own is told once.

        Raises:
            ConfigError: a side is no multiple of the patches'.
        """
        height, width = image.shape[-2:]
        if height % self._patch or width % self._patch:
            near = max(self._patch, round(height / self._patch) * self._patch)
            raise ConfigError(
                f"{self._of} cannot take images of {height}x{width}: its patches have {self._patch} pixels; set "
                f"data.loading.image_size: {self.input_size or near}"
            )
        grid = (height // self._patch, width // self._patch)
        if grid not in self._told and self._positions and grid != (self._positions, self._positions):
            self._told.add(grid)
            own = f"; its own size is data.loading.image_size: {self.input_size}" if self.input_size else ""
            rank_zero_info(
                f"{self._of}: images of {height}x{width}, so the codes of {self._positions}x{self._positions} positions are "
                f"interpolated to {grid[0]}x{grid[1]}{own}"
            )
        return grid

    def _features(self, pooled: Tensor, tokens: Tensor, grid: tuple[int, int], pixels: Tensor) -> Features:
        return Features(
            pooled=pooled,
            tokens=tokens,
            mask=torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device),
            grid=grid,
            pixels=pixels.mean(1, keepdim=True),
        )

    def _set_up_levels(self, depth: int) -> None:
        """Choose the blocks that give the feature pyramid."""
        self._levels = pyramid_indices([self._patch] * depth)
        self.pyramid_widths = (self.token_width,) * len(STRIDES)

    def _resampled(self, maps: Mapping[int, Tensor], image: Tensor) -> list[Tensor]:
        """The maps ``[B,D,h,w]`` of the chosen blocks at the sizes of the pyramid's levels."""
        sizes = [tuple(-(-side // stride) for side in image.shape[-2:]) for stride in STRIDES]
        return [
            maps[index] if maps[index].shape[-2:] == size else interpolate(maps[index], size, mode="bilinear")
            for index, size in zip(self._levels, sizes, strict=True)
        ]

    def get_extra_state(self) -> dict[str, str]:
        """What a checkpoint holds besides weights, as JSON: ``architecture``, ``origin`` and ``input_size``."""
        state = {"architecture": self._architecture, "origin": json.dumps(self._origin)}
        return {**state, "input_size": json.dumps(self.input_size)}

    def set_extra_state(self, state: dict[str, str]) -> None:
        """Take the origin and the size. The architecture was read before the tower was built, by :meth:`rebuild_args`."""
        self._origin, self.input_size = origin_of(state, self.name), stored_size(state)

    @classmethod
    def rebuild_args(cls, extra_state: dict[str, str]) -> dict[str, Any]:
        """The stored architecture, instead of a published model.

        Raises:
            ConfigError: the checkpoint holds none.
        """
        args = architecture_args(extra_state, "image")
        return {"pretrained": False, "architecture": args["architecture"]}
