"""Large grids of image-report pairs, by blocks. A byte budget decides which blocks are kept for backward."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from diptych.types import TokenEmbedding

__all__ = ["block_bytes", "blockwise", "bytes_kept", "column_blocks", "on_cpu"]


def on_cpu(x: Tensor) -> bool:
    """Whether to read numbers from a tensor. A GPU would have to be waited for."""
    return x.device.type == "cpu"


def block_bytes(x: Tensor, byte_budget: int) -> int:
    """Bytes of a block. It fits a CPU's cache, or fills a GPU. It is within the budget, but not below 2 MiB, for speed."""
    largest = 2**23 if on_cpu(x) else 2**27
    return min(max(byte_budget, 2**21), largest)


def bytes_kept(function: Callable[[], object], besides: Sequence[Tensor] = ()) -> int:
    """Bytes of distinct storages that autograd keeps for the backward of a function's value.

    >>> x = torch.ones(3, requires_grad=True)
    >>> bytes_kept(lambda: x.exp())  # keeps its result: three numbers of four bytes
    12

    Args:
        function: to be measured. It is called once.
        besides: tensors that do not count, as the function's arguments.
    """
    alive: list[Tensor] = []  # else a storage could be freed, and its address counted for another

    def pack(x: Tensor) -> Tensor:
        alive.append(x.detach())
        return x.detach()  # x itself would hold the graph, which holds x

    with saved_tensors_hooks(pack, lambda x: x):
        function()
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in alive}
    for x in besides:
        storages.pop(x.untyped_storage().data_ptr(), None)
    return sum(storages.values())


def column_blocks(mask: Tensor, bytes_a_word: int, block_bytes: int) -> Iterator[tuple[Tensor | slice, int]]:
    """Columns and their width for each block of reports.

    On a CPU the longest reports come first, and a block is cut to its longest report. Reports without words are in no
    block. On a GPU the padding is computed, for reading the lengths would stop it in every step.

    >>> mask = torch.tensor([[True, False, False], [True, True, False]])
    >>> [(columns.tolist(), width) for columns, width in column_blocks(mask, bytes_a_word=1, block_bytes=2)]
    [([1], 2), ([0], 1)]

    Args:
        mask: ``[T,N]``, True at real words.
        bytes_a_word: bytes of one word in a block, for all of the block's images.
        block_bytes: bytes of a block. A block has at least one column.
    """
    texts, longest = mask.shape
    if not on_cpu(mask):
        step = max(1, block_bytes // (bytes_a_word * max(1, longest)))
        for start in range(0, texts, step):
            yield slice(start, start + step), longest
        return
    lengths, order = (mask * torch.arange(1, longest + 1)).amax(1).sort(descending=True, stable=True)
    start = 0
    while start < texts and (width := int(lengths[start])) > 0:
        stop = start + max(1, block_bytes // (bytes_a_word * width))
        yield order[start:stop], width
        start = stop


def blockwise(
    attend: Callable[[TokenEmbedding, TokenEmbedding], Tensor],
    match: Callable[[TokenEmbedding, TokenEmbedding, Tensor], Tensor],
    score: Callable[[TokenEmbedding, TokenEmbedding, Tensor], Tensor],
    image: TokenEmbedding,
    text: TokenEmbedding,
    *,
    working_bytes: int,
    attention_bytes: int,
    matching_bytes: int,
    kept_bytes: int,
    byte_budget: int,
) -> Tensor:
    """``score`` of ``match`` of ``attend`` on the grid of all images with all reports, by blocks.

    For backward, a block keeps everything, or its matchings and its attention, or its matchings alone, or nothing. The
    rest is computed again. The budget goes to the matchings of all blocks first, then to their attention, then to the
    rest. Parameters that the functions read besides their arguments get exact gradients too.

    Each pair must be scored by itself. The functions get reports in another order. These are cut to the longest report of
    the block, but not below one word.

    Args:
        attend: from ``I`` images and ``T`` reports to their attention.
        match: from these and their attention to their matchings. If it ends in a linear map, that is not done again.
        score: from these and their matchings to ``[I,T]``.
        image: all images, ``I`` of them.
        text: all reports, ``T`` of them. The second axis of every field but ``pooled`` must be that of the words.
        working_bytes: bytes of the widest intermediate value, for a word of one pair.
        attention_bytes: bytes of the attention, for a word of one pair.
        matching_bytes: bytes of the matchings, for a word of one pair.
        kept_bytes: bytes that backward needs in all, for a word of one pair.
        byte_budget: bytes that may be kept for backward. 0 keeps nothing.

    Returns:
        ``[I,T]``. A program that is exported computes the grid as one block.
    """
    if torch.compiler.is_exporting():  # the number of blocks would be fixed in the program
        return score(image, text, match(image, text, attend(image, text)))
    if min(len(image.pooled), len(text.pooled)) == 0:
        return image.pooled.new_zeros(len(image.pooled), len(text.pooled))
    read = text.mask.clone()
    read[:, 0] = True  # so that reports without words are in a block
    block = block_bytes(text.mask, 2**22 if on_cpu(text.mask) else 2**27)
    # Four times as many images as reports. Speed is the same, and fewer reports in a block differ less in length.
    side = min(2 * math.isqrt(max(1, block // (working_bytes * text.mask.shape[1]))), len(image.pooled))
    columns, widths = zip(*column_blocks(read, side * working_bytes, block), strict=True)
    sizes = [len(range(len(read))[c]) if isinstance(c, slice) else len(c) for c in columns]
    order = None if isinstance(columns[0], slice) else torch.cat(columns)
    # Sorted once and split once. So backward concatenates the blocks' gradients, instead of adding up whole ones.
    ordered = text if order is None else text.select(order)
    text_blocks, image_blocks = _split(ordered, sizes), _split(image, side)

    def matched(rows: TokenEmbedding, part: TokenEmbedding) -> Tensor:
        return match(rows, part, attend(rows, part))

    words = [
        len(rows.pooled) * size * width for size, width in zip(sizes, widths, strict=True) for rows in image_blocks
    ]
    costs = matching_bytes, attention_bytes, kept_bytes - matching_bytes - attention_bytes
    levels = iter(kept_levels(words, costs, byte_budget if torch.is_grad_enabled() else math.inf))
    grid = []
    for whole, width in zip(text_blocks, widths, strict=True):
        part = _cut(whole, width)
        column = []
        for rows in image_blocks:
            level = next(levels)
            if level == 3:
                column.append(score(rows, part, matched(rows, part)))
            elif level == 2:
                column.append(_again(score, rows, part, _again(match, rows, part, attend(rows, part))))
            elif level == 1:
                column.append(_again(score, rows, part, _again(matched, rows, part)))
            else:
                column.append(_again(lambda rows, part: score(rows, part, matched(rows, part)), rows, part))
        grid.append(torch.cat(column))
    scores = torch.cat(grid, 1)
    return scores if order is None else scores[:, order.argsort()]


def kept_levels(sizes: Sequence[int], costs: Sequence[int], budget: float) -> list[int]:
    """How many values each block keeps. The budget pays for the first value of all blocks, then for the second, and so on.

    >>> kept_levels([1, 1], costs=[2, 3], budget=7)
    [2, 1]

    Args:
        sizes: of the blocks.
        costs: of each value, for a block of size 1.
        budget: for all values of all blocks.
    """
    levels = [0] * len(sizes)
    for level, cost in enumerate(costs):
        for index, size in enumerate(sizes):
            if levels[index] == level and cost * size <= budget:
                budget -= cost * size
                levels[index] += 1
    return levels


def _again(function: Callable[..., Tensor], *arguments: TokenEmbedding | Tensor) -> Tensor:
    """The function's value, computed again in backward."""
    value: Tensor = checkpoint(
        function, *arguments, use_reentrant=False, preserve_rng_state=False, determinism_check="none"
    )
    return value


def _split(panel: TokenEmbedding, sizes: int | list[int]) -> list[TokenEmbedding]:
    parts = {field.name: torch.split(getattr(panel, field.name), sizes) for field in fields(panel)}
    return [replace(panel, **dict(zip(parts, values, strict=True))) for values in zip(*parts.values(), strict=True)]


def _cut(panel: TokenEmbedding, width: int) -> TokenEmbedding:
    """The panel with its first ``width`` tokens. The second axis of every field but ``pooled`` is that of the tokens."""
    return replace(
        panel,
        **{field.name: getattr(panel, field.name)[:, :width] for field in fields(panel) if field.name != "pooled"},
    )
