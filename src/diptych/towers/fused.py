"""An image tower that reads a radiograph with the other images of its study, and with a prior one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from diptych.checks import check_choice, check_number
from diptych.errors import ConfigError
from diptych.towers.base import Tower
from diptych.towers.image import ImageTower
from diptych.types import Features

__all__ = ["FusedImage", "present_images"]


def present_images(image: Tensor) -> Tensor:
    """Which images ``[B,C]`` of studies ``[B,C,H,V]`` are there. One that is absent is black, as no radiograph is.

    The first is always there.

    >>> present_images(torch.tensor([[[[0, 7]], [[0, 0]], [[1, 0]]]])).tolist()
    [[True, False, True]]
    """
    present = (image != 0).flatten(2).any(dim=2)
    present[:, 0] = True
    return present


class FusedImage(ImageTower):
    """One tower for all images of a study, and a fusion of what it gives.

    The first image is the one that is reported and labelled. Others may be a second view or a prior study, as in BioViL-T
    (arXiv 2301.04558) and ALTA (arXiv 2506.08990). Each has its own place, in the order of ``data.columns.others``. A place may
    be empty: then it takes no part, and no gradient goes there. Both fusions add to what the tower gives for the first image,
    and begin with nothing. So an untrained fusion, and a study of one image, give the tower's own features.

    - ``concatenate``: the other images' pooled vectors, with zeros at empty places, through one linear layer to the pooled
      vector, and through another to each region.
    - ``attend``: the pooled vector and each region of the first image attend to the regions of the others. Learned vectors
      tell the places apart.

    The feature pyramid is that of the first image. This form of fusion is ours. The papers' own differ in detail.

    Args:
        image: the tower of each image.
        others: how many other images a study may have.
        fusion: ``concatenate`` or ``attend``.
        heads: attention heads of ``attend``.

    Raises:
        ConfigError: an argument is out of its range, or ``heads`` divides a width of the tower not evenly.
    """

    def __init__(
        self,
        image: ImageTower,
        *,
        others: int = 2,
        fusion: Literal["concatenate", "attend"] = "attend",
        heads: int = 8,
    ) -> None:
        super().__init__()
        check_number("FusedImage: others", others, least=1, whole=True)
        check_number("FusedImage: heads", heads, least=1, whole=True)
        check_choice("FusedImage: fusion", fusion, ("concatenate", "attend"))
        self.image = image
        self.images = 1 + others
        self.fusion = fusion
        self.width, self.token_width, self.num_layers = image.width, image.token_width, image.num_layers
        self.pyramid_widths, self.query_width = image.pyramid_widths, image.query_width
        self.layer_decay = image.layer_decay
        self.to_pooled: nn.Linear | nn.MultiheadAttention
        self.to_regions: nn.Linear | nn.MultiheadAttention
        if fusion == "concatenate":
            self.to_pooled = nn.Linear(others * self.width, self.width, bias=False)
            self.to_regions = nn.Linear(others * self.width, self.token_width, bias=False)
            last = (self.to_pooled, self.to_regions)
        else:
            for name, width in (("width", self.width), ("token width", self.token_width)):
                if width % heads:
                    raise ConfigError(
                        f"FusedImage: heads is {heads}, which does not divide the tower's {name} {width}; choose a divisor"
                    )
            inner: dict[str, Any] = {
                "kdim": self.token_width,
                "vdim": self.token_width,
                "batch_first": True,
                "bias": False,
            }
            self.to_pooled = nn.MultiheadAttention(self.width, heads, **inner)
            self.to_regions = nn.MultiheadAttention(self.token_width, heads, **inner)
            self.places = nn.Parameter(0.02 * torch.randn(others, self.token_width))
            last = (self.to_pooled.out_proj, self.to_regions.out_proj)
        for layer in last:
            nn.init.zeros_(layer.weight)

    @property
    def origin(self) -> dict[str, Any]:
        """The origin of the inner tower, and the fusion."""
        return {**self.image.origin, "fusion": self.fusion, "others": self.images - 1}

    @property
    def keeper(self) -> Tower:
        """That of the inner tower."""
        return self.image.keeper

    def layer_of(self, name: str) -> int:
        """The layer of a parameter of the inner tower. The fusion belongs to the top layer."""
        inner = name.removeprefix("image.")
        return self.num_layers if inner == name else self.image.layer_of(inner)

    def forward(self, image: Tensor) -> Features:
        """Features of studies ``[B,C,H,V]``, uint8 or float in [0,1]: the first image, and at most ``others`` more.

        Raises:
            ConfigError: there are more.
        """
        self.check_images(image.shape[1])
        padded = nn.functional.pad(image, (0, 0, 0, 0, 0, self.images - image.shape[1]))
        present = present_images(padded)[:, 1:]  # [B,S]
        first, pooled, tokens = self._each(padded, present)
        if isinstance(self.to_pooled, nn.Linear) and isinstance(self.to_regions, nn.Linear):
            joined = pooled.flatten(1)
            more = self.to_pooled(joined), self.to_regions(joined)[:, None]
        else:
            more = self._attend(first, tokens, present)
        return replace(first, pooled=first.pooled + more[0], tokens=first.tokens + more[1])

    def _each(self, image: Tensor, present: Tensor) -> tuple[Features, Tensor, Tensor]:
        """Features of first images, then pooled vectors ``[B,S,D]`` and regions ``[B,S,N,D]`` of the others.

        Those of absent images are 0. All that are present go through the tower in one pass, and no others. So black ones
        change no batch statistics, and processes that share statistics make equally many passes.
        """
        batch, places = present.shape
        rows = present.flatten().nonzero().squeeze(1)
        others = image[:, 1:].flatten(0, 1)[rows][:, None]
        every: Features = self.image(torch.cat([image[:, :1], others]))
        first = every.select(torch.arange(batch, device=image.device))
        pooled = first.pooled.new_zeros(batch * places, self.width).index_copy(0, rows, every.pooled[batch:])
        tokens = first.tokens.new_zeros(batch * places, *first.tokens.shape[1:])
        tokens = tokens.index_copy(0, rows, every.tokens[batch:])
        return first, pooled.view(batch, places, -1), tokens.view(batch, places, *first.tokens.shape[1:])

    def _attend(self, first: Features, tokens: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """What the pooled vector ``[B,D]`` and the regions ``[B,N,D]`` of the first image take from the others' regions."""
        batch, places, number, width = tokens.shape
        keys = (tokens + self.places[:, None]).reshape(batch, places * number, width)
        alone = ~present.any(dim=1)  # these attend to zeros, which keeps the soft-max finite, and take nothing
        ignored = ~(present | alone[:, None]).repeat_interleave(number, dim=1)
        taken = (~alone)[:, None, None]
        results = []
        for layer, queries in ((self.to_pooled, first.pooled[:, None]), (self.to_regions, first.tokens)):
            given, _ = layer(queries, keys, keys, key_padding_mask=ignored, need_weights=False)
            results.append(given * taken)
        return results[0][:, 0], results[1]

    def pyramid(self, image: Tensor) -> list[Tensor]:
        """The feature pyramid of the first image."""
        levels: list[Tensor] = self.image.pyramid(image[:, :1])
        return levels

    def queries(self, features: Features) -> Tensor:
        """What the inner tower's queries take from the features."""
        return self.image.queries(features)
