"""Each sample once, in order, whatever number of processes has read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace

import torch
from torch import Tensor

from diptych import distributed
from diptych.errors import DataError
from diptych.evaluation.scoring import Emb
from diptych.types import Batch

__all__ = ["Rows", "gather_embedding", "gather_order", "gather_rows", "gather_texts", "stack"]


class Rows:
    """What is collected over a split, sample by sample: each once, in the order of their index, on every process.

    Args:
        device: where the processes can exchange tensors.
        widths: of each value that is collected, ``[n,width]`` float32.
    """

    def __init__(self, device: torch.device, *widths: int) -> None:
        self.device = device
        self._values = [[torch.zeros(0, width)] for width in widths]
        self._lengths = [[torch.zeros(0, dtype=torch.int64)] for _ in widths]
        self._index = [torch.zeros(0, dtype=torch.int64)]
        self._group = [torch.zeros(0, dtype=torch.int64)]
        self.order = torch.zeros(0, dtype=torch.int64)
        """The rows of all processes, as they come one after the other, in the order of :meth:`gather`."""

    def add(self, batch: Batch, *values: Tensor | Sequence[Tensor]) -> None:
        """Take the valid samples of a batch: a row of each value ``[B,width]``, or what of a list ``[k,width]`` is theirs."""
        rows = batch.valid.nonzero().squeeze(1)
        self._index.append(batch.index[rows].cpu())
        self._group.append(batch.group[rows].cpu())
        for kept, lengths, value in zip(self._values, self._lengths, values, strict=True):
            if isinstance(value, Tensor):
                part, length = value[rows.to(value.device)], torch.ones(len(rows), dtype=torch.int64)
            else:
                part = torch.cat([value[row] for row in rows.tolist()] or [kept[0]])
                length = torch.tensor([len(value[row]) for row in rows.tolist()], dtype=torch.int64)
            kept.append(part.detach().float().cpu())
            lengths.append(length)

    def gather(self) -> tuple[Tensor, list[Tensor]]:
        """Group ``[n]`` and values of all processes, sample after sample. Collective.

        Raises:
            DataError: a sample was counted twice.
        """
        self.order = order = gather_order(torch.cat(self._index), self.device, "task")
        group = gather_rows(torch.cat(self._group), self.device)[order]
        values = []
        for kept, lengths in zip(self._values, self._lengths, strict=True):
            number = gather_rows(torch.cat(lengths), self.device)
            wanted = number[order]
            shift = (number.cumsum(0) - number)[order] - (wanted.cumsum(0) - wanted)  # of each sample's rows
            rows = torch.arange(int(number.sum())) + shift.repeat_interleave(wanted)
            values.append(gather_rows(torch.cat(kept), self.device)[rows])
        return group, values


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
