"""Scores of whole sets, computed block by block from embeddings on the CPU, and the ranks of retrieval."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from diptych import distributed
from diptych.head import AlignmentHead
from diptych.metrics.measures import TIE
from diptych.types import Embedding

__all__ = ["IMAGES", "TEXTS", "TIE", "TOP", "Ranks", "blocks", "ranks"]

Emb = TypeVar("Emb", bound=Embedding)

TOP = 10
"""How many of the best texts of each image are kept."""
IMAGES, TEXTS = 32, 1024
"""Most images and texts that are scored at a time."""


class Ranks(NamedTuple):
    """Ranks of retrieval, and what came first."""

    of_images: Tensor
    """``[n]``: of the right text, for each image of this process."""
    of_texts: Tensor
    """``[T]``: of the best right image, for each text."""
    best: Tensor
    """``[n,10]``, or as many as there are texts: the columns of the best texts of each image of this process."""


def ranks(
    first: Iterable[tuple[Tensor, Tensor]], second: Iterable[tuple[Tensor, Tensor]], texts: int, device: torch.device
) -> Ranks:
    """Ranks of retrieval, in both directions.

    A rank is one more than the number of wrong candidates that are not surely below the right one. So ties and NaN count
    against the right one. Collective.

    Args:
        first: this process's blocks: the column of each image's own text ``[b]``, and its scores ``[b,T]``.
        second: the same blocks again.
        texts: number of texts, ``T``.
        device: where the processes can exchange tensors.
    """
    best, largest = torch.full((texts,), -torch.inf), torch.zeros(1)
    for column, scores in first:
        best.scatter_reduce_(0, column, _right(column, scores), "amax")
        largest = torch.cat([largest, scores[scores.isfinite()].abs()]).amax(dim=0, keepdim=True)
    best = distributed.max_over_processes(best.to(device)).cpu()
    slack = TIE * distributed.max_over_processes(largest.to(device)).cpu()
    best_texts = [torch.zeros(0, min(TOP, texts), dtype=torch.int64)]
    image_ranks, beaten = [torch.zeros(0, dtype=torch.int64)], torch.zeros(texts, dtype=torch.int64)
    for column, scores in second:
        own = torch.arange(len(column)), column
        best_texts.append(
            scores.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf).topk(min(TOP, texts)).indices
        )
        above = ~(scores < _right(column, scores)[:, None] - slack)
        above[own] = False
        image_ranks.append(1 + above.sum(dim=1))
        above = ~(scores < best - slack)
        above[own] = False
        beaten += above.sum(dim=0)
    of_texts = 1 + distributed.sum_over_processes(beaten.to(device)).cpu()
    return Ranks(torch.cat(image_ranks), of_texts, torch.cat(best_texts))


def _right(column: Tensor, scores: Tensor) -> Tensor:
    """The score ``[b]`` of each image with its own text. NaN becomes the lowest score."""
    return scores.gather(1, column[:, None]).squeeze(1).nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)


def blocks(
    head: AlignmentHead[Any], images: Emb, texts: Embedding, device: torch.device, size: int = IMAGES
) -> Iterator[tuple[Tensor, Tensor]]:
    """Score all images with all texts, ``size`` images at a time: rows ``[b]`` and scores ``[b,T]`` on the CPU.

    The last block is filled up with the first images. Matrix products of one shape round alike, so a score does not depend
    on the number of images.
    """
    n, t = len(images.pooled), len(texts.pooled)
    columns = [texts._map(lambda x, start=start: x[start : start + TEXTS]) for start in range(0, t, TEXTS)]  # views
    for start in range(0, n, size):
        image = images.select(torch.arange(start, start + size) % n).to(device)
        scores = torch.cat([head.similarity(image, text.to(device)).float() for text in columns], dim=1).cpu()
        rows = torch.arange(start, min(start + size, n))
        yield rows, scores[: len(rows)]
