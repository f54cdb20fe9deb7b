"""Values of samples that several processes have read, gathered in the order of the data set, each sample once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diptych import distributed
from diptych.errors import DataError
from diptych.evaluation.scoring import Emb
from diptych.types import Batch, map_leaves

__all__ = ["Rows", "SampleOrder", "gather_embedding", "gather_rows", "gather_texts", "stack"]


class SampleOrder:
    """The samples that this process has counted, and the order of those of all processes by their index.

    Args:
        device: where the processes can exchange tensors.
        name: name of the evaluator or task that counts, for messages.
    """

    index: Tensor
    """Numbers ``[n]`` in the data set of the samples of all processes, rising. Known after ``gather``."""
    own: Tensor
    """Puts this process's samples in the order of their index. Known after ``gather``."""
    order: Tensor
    """Puts the samples of all processes in the order of their index, when each process has ordered its own. Known after
    ``gather``.
    """

    def __init__(self, device: torch.device, name: str) -> None:
        self.device, self.name = device, name
        self._index = [torch.zeros(0, dtype=torch.int64)]
        self._group = [torch.zeros(0, dtype=torch.int64)]

    def add(self, batch: Batch) -> Tensor:
        """Count the valid samples of a batch, and return their rows ``[n]``."""
        rows = batch.valid.nonzero().squeeze(1)
        self._index.append(batch.index[rows].cpu())
        self._group.append(batch.group[rows].cpu())
        return rows

    def gather(self) -> Tensor:
        """The patients ``[n]`` of the samples of all processes, in order. Collective.

        Raises:
            DataError: a sample was counted twice.
        """
        index, self.own = torch.cat(self._index).sort(stable=True)
        self.index, self.order = gather_rows(index, self.device).sort(stable=True)
        if twice := self.index[1:][self.index[1:] == self.index[:-1]].tolist():
            raise DataError(
                f"{self.name}: {len(set(twice))} samples were counted more than once (the first has index {twice[0]}); "
                "evaluate with a sampler that repeats none, or mark the rows that fill up a batch as not valid"
            )
        return self.values(torch.cat(self._group))

    def values(self, x: Tensor) -> Tensor:
        """The rows ``[n,...]`` of the samples of all processes, in order. Collective.

        Args:
            x: one row for each sample of this process, as they were added.
        """
        return gather_rows(x[self.own], self.device)[self.order]

    def lists(self, x: Tensor, lengths: Tensor) -> Tensor:
        """As ``values``, where a sample has any number of rows of ``x``, given by ``lengths`` ``[n]``. Collective."""
        own = gather_rows(_reordered(x, lengths, self.own), self.device)
        return _reordered(own, gather_rows(lengths[self.own], self.device), self.order)

    def texts(self, texts: Sequence[str]) -> list[str]:
        """As ``values``, for one text of each sample. Collective."""
        everyone = gather_texts([texts[i] for i in self.own.tolist()], self.device)
        return [everyone[i] for i in self.order.tolist()]


class Rows:
    """Values of the samples of a split, gathered on every process in the order of the data set, each sample once.

    Args:
        device: where the processes can exchange tensors.
        widths: width of each value. A value is kept as float32 ``[n,width]``.
    """

    def __init__(self, device: torch.device, *widths: int) -> None:
        self.samples = SampleOrder(device, "task")
        """The samples that the rows belong to."""
        self._values = [[torch.zeros(0, width)] for width in widths]
        self._lengths = [[torch.zeros(0, dtype=torch.int64)] for _ in widths]

    def add(self, batch: Batch, *values: Tensor | Sequence[Tensor]) -> None:
        """Add the values of the valid samples of a batch.

        Args:
            batch: the batch.
            values: for each width, a tensor ``[B,width]``, or a list of ``B`` tensors ``[k,width]`` with any ``k``.
        """
        rows = self.samples.add(batch)
        for parts, lengths, value in zip(self._values, self._lengths, values, strict=True):
            if isinstance(value, Tensor):
                part, length = value[rows.to(value.device)], torch.ones(len(rows), dtype=torch.int64)
            else:
                part = torch.cat([value[row] for row in rows.tolist()] or [parts[0]])
                length = torch.tensor([len(value[row]) for row in rows.tolist()], dtype=torch.int64)
            parts.append(part.detach().float().cpu())
            lengths.append(length)

    def gather(self) -> tuple[Tensor, list[Tensor]]:
        """The patients ``[n]`` and the values of the samples of all processes, in order. Collective.

        Raises:
            DataError: a sample was counted twice.
        """
        group = self.samples.gather()
        columns = zip(self._values, self._lengths, strict=True)
        return group, [self.samples.lists(torch.cat(parts), torch.cat(lengths)) for parts, lengths in columns]


def _reordered(rows: Tensor, lengths: Tensor, order: Tensor) -> Tensor:
    """The rows of samples, put in another order of samples. Sample ``i`` has ``lengths[i]`` rows."""
    moved = lengths[order]
    shift = (lengths.cumsum(0) - lengths)[order] - (moved.cumsum(0) - moved)  # how far each sample's rows move
    return rows[torch.arange(int(lengths.sum())) + shift.repeat_interleave(moved)]


def stack(parts: Sequence[Emb]) -> Emb:
    """Concatenate embeddings along the first axis. The other axes are padded with zeros (False) to the longest.

    >>> from diptych.types import Embedding
    >>> stack([Embedding(torch.ones(1, 2)), Embedding(torch.zeros(1, 2))]).pooled
    tensor([[1., 1.],
            [0., 0.]])
    """

    def joined(_: str, *leaves: Any) -> Any:
        if not isinstance(leaves[0], Tensor):
            return leaves[0]
        shape = [max(sizes) for sizes in zip(*(x.shape[1:] for x in leaves), strict=True)]
        whole = leaves[0].new_zeros(sum(map(len, leaves)), *shape)
        start = 0
        for x in leaves:
            whole[(slice(start, start + len(x)), *(slice(size) for size in x.shape[1:]))] = x
            start += len(x)
        return whole

    return map_leaves(joined, *parts)


def gather_rows(x: Tensor, device: torch.device) -> Tensor:
    """The rows of all processes, on the CPU. ``device`` is where the processes can exchange them. Collective."""
    return distributed.gather_uneven(x.to(device)).cpu()


def gather_texts(texts: Sequence[str], device: torch.device) -> list[str]:
    """The texts of all processes. ``device`` is where the processes can exchange them. Collective."""
    raw = [text.encode() for text in texts]
    rows = torch.zeros(len(raw), max(map(len, raw), default=0), dtype=torch.uint8)
    for row, text in zip(rows, raw, strict=True):
        row[: len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8) if text else row[:0]
    sizes = gather_rows(torch.tensor([len(text) for text in raw], dtype=torch.int64), device).tolist()
    return [bytes(row[:n].tolist()).decode() for row, n in zip(gather_rows(rows, device), sizes, strict=True)]


def gather_embedding(embedding: Emb, device: torch.device) -> Emb:
    """The embeddings of all processes, on the CPU, padded to the longest. Collective."""
    return map_leaves(lambda _, x: gather_rows(x, device) if isinstance(x, Tensor) else x, embedding)
