"""Zero-shot classification at several resolutions, with any head: the whole image and crops of it (arXiv 2503.10731)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as nn_functional

from diptych.errors import ConfigError
from diptych.evaluation.base import EmbedText
from diptych.evaluation.zero_shot import ZeroShot
from diptych.head import AlignmentHead
from diptych.types import Batch, Embedding

__all__ = ["MultiResolution", "combine_scores", "crops"]


def crops(images: Tensor, scale: float) -> list[Tensor]:
    """Square parts of the images, each enlarged to their size; the fewest of this scale that cover them, evenly spread.

    Args:
        images: ``[B,1,S,S]`` uint8.
        scale: side of a part as a share of the image's, in (0, 1).

    Returns:
        ``ceil(1 / scale)`` squared tensors ``[B,1,S,S]`` uint8, row by row.
    """
    size = images.shape[-1]
    side = max(1, round(scale * size))
    number = math.ceil(1 / scale - 1e-9)
    starts = [round(i * (size - side) / (number - 1)) for i in range(number)]
    parts = []
    for top in starts:
        for left in starts:
            part = images[..., top : top + side, left : left + side].float()
            large = nn_functional.interpolate(part, (size, size), mode="bilinear", align_corners=False)
            parts.append(large.round().to(torch.uint8))
    return parts


def combine_scores(whole: Tensor, parts: Tensor, share: float = 0.5) -> Tensor:
    """Scores ``[n,P]`` of images with prompts from those of the whole ``[n,P]`` and of its parts ``[K,n,P]``.

    A part has the weight ``exp`` of its best score with any prompt, the weights summing to 1; ``share`` is the parts'.
    """
    weights = parts.amax(dim=2, keepdim=True).softmax(dim=0)  # [K,n,1]
    return (1 - share) * whole + share * (weights * parts).sum(dim=0)


class MultiResolution(ZeroShot):
    """Zero-shot classification from the whole image and crops of it (arXiv 2503.10731), with any head.

    The scales, the weight and the equal halves are the publication's. Where its crops lie is not known to us: here they are the
    fewest of each scale that cover the input, 16 + 4 + 4 at the scales 0.25, 0.5 and 0.75. Every one is embedded, so at these
    scales a test takes 25 times the image encoder's work; within training's validation it is seldom worth that. Metrics and
    all else as :class:`~diptych.evaluation.zero_shot.ZeroShot`.

    Args:
        prompts: name of a shipped prompt set, or path of a YAML file.
        scales: sides of the crops as shares of the image's, each in (0, 1).
        share: of the crops in the score, 0 to 1.
        threshold: as in ZeroShot.
        name: first part of the metrics' names.
        resamples: bootstrap resamples for the intervals; 0 for none.
        seed: of the bootstrap.
    """

    def __init__(
        self,
        prompts: str,
        scales: Sequence[float] = (0.25, 0.5, 0.75),
        share: float = 0.5,
        threshold: Literal["zero", "best_f1"] = "zero",
        name: str = "multi_resolution",
        resamples: int = 1000,
        seed: int = 0,
    ) -> None:
        super().__init__(prompts, threshold, name, resamples, seed)
        if not scales or not all(0 < scale < 1 for scale in scales):
            raise ConfigError(f"{name}: scales is {list(scales)}; give at least one number above 0 and below 1")
        if not 0 <= share <= 1:
            raise ConfigError(f"{name}: share is {share}; give a number from 0 (the whole image alone) to 1")
        self._scales, self._share = tuple(scales), share

    def start(self, embed_text: EmbedText, findings: Sequence[str], intervals: bool = True) -> None:
        """Begin a pass as ``ZeroShot`` does, and say in the protocol which crops are scored."""
        super().start(embed_text, findings, intervals)
        self._facts |= {
            "scales": list(self._scales),
            "crops": [math.ceil(1 / scale - 1e-9) ** 2 for scale in self._scales],
            "share_of_crops": self._share,
        }

    def _with_prompts(self, batch: Batch, rows: Tensor, image: Embedding, head: AlignmentHead[Any]) -> Tensor:
        assert self.embed_image is not None  # the module has given it
        whole = super()._with_prompts(batch, rows, image, head)
        inputs = batch.image[rows]
        every = torch.arange(len(rows))
        parts = [
            super(MultiResolution, self)._with_prompts(batch, every, self.embed_image(part), head)
            for scale in self._scales
            for part in crops(inputs, scale)
        ]
        return combine_scores(whole, torch.stack(parts), self._share)
