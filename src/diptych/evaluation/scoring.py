"""Scores of whole sets, block by block over embeddings kept on the CPU, and the retrieval ranks they give."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

from diptych import distributed
from diptych.head import AlignmentHead
from diptych.types import Embedding

__all__ = ["IMAGES", "TEXTS", "TIE", "blocks", "ranks"]

Emb = TypeVar("Emb", bound=Embedding)

IMAGES, TEXTS = 32, 1024
"""Images and texts scored at a time, at most."""
TIE = 1e-6
"""Scores closer than this share of the largest score are a tie: float32 cannot tell them apart in a matrix product."""


def ranks(
    first: Iterable[tuple[Tensor, Tensor]], second: Iterable[tuple[Tensor, Tensor]], texts: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Rank of the right text for each image of this process ``[n]``, and of the best right image for each text ``[T]``.

    Both arguments are this process's blocks: the column of each image's own text ``[b]``, and scores ``[b,T]``. Ties
    and NaN count against the right one; a rank is one more than the number of wrong ones not surely below it.
    """
    best, largest = torch.full((texts,), -torch.inf), torch.zeros(1)
    for column, scores in first:
        best.scatter_reduce_(0, column, _right(column, scores), "amax")
        largest = torch.cat([largest, scores[scores.isfinite()].abs()]).amax(dim=0, keepdim=True)
    best = distributed.max_over_processes(best.to(device)).cpu()
    slack = TIE * distributed.max_over_processes(largest.to(device)).cpu()
    image_ranks, beaten = [torch.zeros(0, dtype=torch.int64)], torch.zeros(texts, dtype=torch.int64)
    for column, scores in second:
        own = torch.arange(len(column)), column
        above = ~(scores < _right(column, scores)[:, None] - slack)
        above[own] = False
        image_ranks.append(1 + above.sum(dim=1))
        above = ~(scores < best - slack)
        above[own] = False
        beaten += above.sum(dim=0)
    return torch.cat(image_ranks), 1 + distributed.sum_over_processes(beaten.to(device)).cpu()


def _right(column: Tensor, scores: Tensor) -> Tensor:
    """Score of each image with its own text ``[b]``; NaN is the lowest."""
    return scores.gather(1, column[:, None]).squeeze(1).nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)


def blocks(
    head: AlignmentHead[Any], images: Emb, texts: Embedding, device: torch.device, size: int = IMAGES
) -> Iterator[tuple[Tensor, Tensor]]:
    """Scores of all images with all texts, ``size`` images at a time: rows ``[b]`` and scores ``[b,T]`` on the CPU.

    The last block is filled up with the first images: matrix products of one shape round alike, so that a score does
    not depend on how many images there are.
    """
    n, t = len(images.pooled), len(texts.pooled)
    columns = [texts._map(lambda x, start=start: x[start : start + TEXTS]) for start in range(0, t, TEXTS)]  # views
    for start in range(0, n, size):
        image = images.select(torch.arange(start, start + size) % n).to(device)
        scores = torch.cat([head.similarity(image, text.to(device)).float() for text in columns], dim=1).cpu()
        rows = torch.arange(start, min(start + size, n))
        yield rows, scores[: len(rows)]
