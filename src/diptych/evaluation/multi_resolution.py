"""Zero-shot classification from the whole image and crops of it (arXiv 2503.10731), with any head."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as nn_functional

from diptych.checks import check_number
from diptych.errors import ConfigError
from diptych.evaluation.base import EmbedText, Head
from diptych.evaluation.zero_shot import ZeroShot
from diptych.metrics.classification import ScoreThreshold
from diptych.types import Batch, Embedding

__all__ = ["MultiResolution", "combine_scores", "crops"]


def crops(images: Tensor, scale: float) -> list[Tensor]:
    """Square crops of images, each enlarged to the images' size. They are evenly spread, and as few as cover the image.

    >>> len(crops(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), scale=0.5))
    4

    Args:
        images: ``[B,1,S,S]`` uint8.
        scale: side of a crop as a share of the image's, in (0, 1).

    Returns:
        The square of ``ceil(1 / scale)`` tensors ``[B,1,S,S]`` uint8, row by row.
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
    """Scores ``[n,P]`` of images with prompts, from the scores of the whole image and of its crops.

    The crops are weighed by a softmax of their best scores with any prompt.

    >>> combine_scores(torch.tensor([[0.0, 1.0]]), torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]]]))
    tensor([[0.5000, 0.5000]])

    Args:
        whole: scores ``[n,P]`` of the whole images.
        parts: scores ``[K,n,P]`` of their ``K`` crops.
        share: weight of the crops beside the whole image, 0 to 1.
    """
    weights = parts.amax(dim=2, keepdim=True).softmax(dim=0)  # [K,n,1]
    return (1 - share) * whole + share * (weights * parts).sum(dim=0)


class MultiResolution(ZeroShot):
    """Zero-shot classification from the whole image and crops of it (arXiv 2503.10731), with any head.

    The scales, the weights of crops and the equal halves are the publication's. It does not say where its crops lie. Here
    they are the fewest of each scale that cover the input: 16 + 4 + 4 at the scales 0.25, 0.5 and 0.75. Each crop is
    embedded, so a test costs 25 times the image encoder's work at these scales. It is seldom worth that within training. The
    metrics are those of :class:`~diptych.evaluation.zero_shot.ZeroShot`.

    Args:
        prompts: name of a shipped prompt set, or path of a YAML file.
        scales: sides of the crops as shares of the image's, each in (0, 1).
        share: weight of the crops beside the whole image, 0 to 1.
        threshold: as in ``ZeroShot``.
        name: first part of the metrics' names.
        resamples: number of bootstrap resamples for the intervals. 0 gives none.
        seed: seed of the bootstrap.
    """

    def __init__(
        self,
        prompts: str,
        scales: Sequence[float] = (0.25, 0.5, 0.75),
        share: float = 0.5,
        threshold: ScoreThreshold = "zero",
        name: str = "multi_resolution",
        resamples: int = 1000,
        seed: int = 0,
    ) -> None:
        super().__init__(prompts, threshold, name, resamples, seed)
        if not scales or not all(0 < scale < 1 for scale in scales):
            raise ConfigError(f"{name}: scales is {list(scales)}; give at least one number above 0 and below 1")
        check_number(f"{name}: share", share, least=0, most=1, remedy="a number from 0 (the whole image alone) to 1")
        self._scales, self._share = tuple(scales), share

    def start(self, embed_text: EmbedText, findings: Sequence[str], intervals: bool = True) -> None:
        """Begin a pass as ``ZeroShot`` does, and note the crops in the protocol."""
        super().start(embed_text, findings, intervals)
        self._facts |= {
            "scales": list(self._scales),
            "crops": [math.ceil(1 / scale - 1e-9) ** 2 for scale in self._scales],
            "share_of_crops": self._share,
        }

    def _prompt_scores(self, batch: Batch, rows: Tensor, image: Embedding, head: Head) -> Tensor:
        assert self.embed_image is not None  # the module has set it
        whole = super()._prompt_scores(batch, rows, image, head)
        inputs = batch.image[rows]
        every = torch.arange(len(rows))
        parts = [
            super(MultiResolution, self)._prompt_scores(batch, every, self.embed_image(part), head)
            for scale in self._scales
            for part in crops(inputs, scale)
        ]
        return combine_scores(whole, torch.stack(parts), self._share)
