"""Scores of whole sets, block by block over embeddings kept on the CPU, and the retrieval ranks they give."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from diptych import distributed
from diptych.errors import DataError
from diptych.head import AlignmentHead
from diptych.types import Embedding

__all__ = [
    "IMAGES",
    "TEXTS",
    "TIE",
    "blocks",
    "gather_embedding",
    "gather_order",
    "gather_rows",
    "gather_texts",
    "ranks",
    "stack",
]

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


def stack(parts: Sequence[Emb]) -> Emb:
    """Embeddings one after the other; axes after the first are padded with zeros (False) to the longest."""
    changed = {}
    for field in fields(parts[0]):
        tensors = [getattr(part, field.name) for part in parts]
        if isinstance(tensors[0], Tensor):
            shape = [max(sizes) for sizes in zip(*(x.shape[1:] for x in tensors), strict=True)]
            joined = tensors[0].new_zeros(sum(map(len, tensors)), *shape)
            start = 0
            for x in tensors:
                joined[(slice(start, start + len(x)), *(slice(size) for size in x.shape[1:]))] = x
                start += len(x)
            changed[field.name] = joined
    return replace(parts[0], **changed)


def gather_order(index: Tensor, device: torch.device, name: str) -> Tensor:
    """The order by index of the rows of all processes, as they are gathered. Collective.

    Args:
        index: ``[n]`` of this process's samples in the data set.
        device: where the processes can exchange them.
        name: of what counts them, for the message.

    Raises:
        DataError: a sample was counted twice.
    """
    index, order = gather_rows(index, device).sort(stable=True)
    if twice := index[1:][index[1:] == index[:-1]].tolist():
        raise DataError(
            f"{name}: {len(set(twice))} samples were counted more than once (the first has index {twice[0]}); "
            "evaluate with a sampler that repeats none, or mark the rows that fill up a batch as not valid"
        )
    return order


def gather_rows(x: Tensor, device: torch.device) -> Tensor:
    """The rows of all processes, on the CPU; ``device`` is where the processes can exchange them."""
    return distributed.gather_uneven(x.to(device)).cpu()


def gather_texts(texts: Sequence[str], device: torch.device) -> list[str]:
    """The texts of all processes; ``device`` is where the processes can exchange them. Collective."""
    raw = [text.encode() for text in texts]
    rows = torch.zeros(len(raw), max(map(len, raw), default=0), dtype=torch.uint8)
    for row, text in zip(rows, raw, strict=True):
        row[: len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8) if text else row[:0]
    sizes = gather_rows(torch.tensor([len(text) for text in raw], dtype=torch.int64), device).tolist()
    return [bytes(row[:n].tolist()).decode() for row, n in zip(gather_rows(rows, device), sizes, strict=True)]


def gather_embedding(embedding: Emb, device: torch.device) -> Emb:
    """The embeddings of all processes, on the CPU, padded to the longest."""
    tensors = {f.name: getattr(embedding, f.name) for f in fields(embedding)}
    return replace(embedding, **{name: gather_rows(x, device) for name, x in tensors.items() if isinstance(x, Tensor)})
