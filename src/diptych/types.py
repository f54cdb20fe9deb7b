"""The typed values that flow from files to metrics, and the one legend of shapes.

Legend, used in every docstring and comment of the project:

======  =====================================================================
``B``   image-report pairs on this process
``W``   processes in the job; ``B * W`` is the global batch
``I``   images, ``T`` texts, where their numbers differ (``I = T = B`` in training)
``N``   tokens: image regions (row-major) or words of a report, padded
``P``   word pieces of a report, padded
``D``   width of a tower, ``E`` width shared by both panels
``H``   height and ``V`` width of the network's input in pixels
``L``   findings (labels)
``M``   sentences of a report, padded; ``K`` observations (queries) of an image
======  =====================================================================
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Generic, NamedTuple, Self, TypeVar

import torch
from torch import Tensor

__all__ = ["Batch", "Dims", "E", "Embedding", "Features", "Pairs", "TextBatch", "TokenEmbedding"]


class Dims(NamedTuple):
    """Widths that the towers give a head, so that no configuration repeats a number."""

    image: int
    """Width of the pooled image vector."""
    text: int
    """Width of the pooled text vector."""
    image_tokens: int
    """Width of the region vectors (differs from ``image`` where an inner ResNet stage is chosen)."""
    text_tokens: int
    """Width of the word vectors."""


class _Tensors:
    """Dataclass mix-in: moves, pins and selects every tensor field, leaving other fields alone."""

    def _map(self, function: Any) -> Self:
        changed = {}
        for field in fields(self):  # type: ignore[arg-type]  # every subclass is a dataclass
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                changed[field.name] = function(value)
            elif isinstance(value, _Tensors):
                changed[field.name] = value._map(function)
            elif isinstance(value, list) and value and isinstance(value[0], Tensor):
                changed[field.name] = [function(item) for item in value]
        return replace(self, **changed)  # type: ignore[type-var]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """The same value with its tensors on ``device``."""
        return self._map(lambda x: x.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """The same value with its tensors in page-locked memory."""
        return self._map(lambda x: x.pin_memory())

    def select(self, rows: Tensor) -> Self:
        """The rows chosen by an index or boolean tensor ``[B]``; every tensor's first axis is the batch."""
        changed: dict[str, Any] = {}
        chosen = rows.nonzero().squeeze(1) if rows.dtype == torch.bool else rows
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                changed[field.name] = value[chosen.to(value.device)]
            elif isinstance(value, _Tensors):
                changed[field.name] = value.select(chosen)
            elif isinstance(value, list):
                changed[field.name] = [value[i] for i in chosen.tolist()]
        return replace(self, **changed)  # type: ignore[type-var]


@dataclass(frozen=True)
class TextBatch(_Tensors):
    """Reports as the text tower reads them; made by the collate, in the loader's workers."""

    input_ids: Tensor
    """``[B,P]`` int64 word pieces, special tokens included."""
    attention_mask: Tensor
    """``[B,P]`` bool, True at real pieces (special tokens included)."""
    word_of_piece: Tensor
    """``[B,P]`` int64: which whole word a piece belongs to; -1 for special tokens, punctuation and padding."""
    mask: Tensor
    """``[B,N]`` bool, True at real words."""
    sentences: Tensor
    """``[B,N]`` int64: index of the sentence a word stands in; -1 at padding."""
    hash: Tensor
    """``[B]`` int64: the same for equal reports (white space and case folded), whatever the process."""
    cut: Tensor
    """``[B]`` bool: the report was longer than the limit and lost its last sentences."""
    raw: list[str]
    """The reports as text."""
    sentence_hash: Tensor | None = None
    """``[B,M]`` int64: the same for equal sentences (white space, case and closing full stop aside); -1 at padding."""


@dataclass(frozen=True)
class Batch(_Tensors):
    """What a datamodule yields. What is absent is None, and decides what can be trained and evaluated."""

    image: Tensor
    """``[B,1,H,V]`` uint8."""
    text: TextBatch | None
    index: Tensor
    """``[B]`` int64: position in the data set."""
    valid: Tensor
    """``[B]`` bool: False for rows that only fill up an evaluation batch; they are never counted."""
    labels: Tensor | None
    """``[B,L]`` float32: 1 present, 0 absent, -1 uncertain, NaN not mentioned."""
    group: Tensor
    """``[B]`` int64: the same for images of one patient; the unit of the bootstrap."""
    boxes: list[Tensor] | None
    """One ``[K,5]`` float32 an image: x0, y0, x1, y1 in pixels of the network's input, and the index of the finding."""
    ids: list[str]
    """A name for each image, for error messages and tables."""
    masks: Tensor | None = None
    """``[B,H,V]`` bool: where the finding is, in the network's input; what of it lies in the padding is cut off."""
    notes: list[tuple[str, ...]] | None = None
    """What is told of each image that is odd and usable; None where nothing is. The datamodule counts it."""

    def __len__(self) -> int:
        return self.image.shape[0]


@dataclass(frozen=True)
class Features(_Tensors):
    """What a tower gives a head."""

    pooled: Tensor
    """``[B,D]``"""
    tokens: Tensor
    """``[B,N,D]`` regions in row-major order, or whole words."""
    mask: Tensor
    """``[B,N]`` bool, True at real tokens (always, for regions)."""
    grid: tuple[int, int] | None = None
    """Rows and columns of the region grid, ``rows * columns == N``; None for text."""
    sentences: Tensor | None = None
    """``[B,N]`` int64, text only: sentence of each word, -1 at padding."""
    pixels: Tensor | None = None
    """``[B,1,H,V]`` float, image only: the normalised input, for heads that need it."""
    attention: Tensor | None = None
    """``[B,N]`` float, no gradient: what the class token attends to in the last layer, mean over the attention heads,
    before dropout; a word has the sum of its pieces. None where no head asks or the tower has no class token."""
    sentence_hash: Tensor | None = None
    """``[B,M]`` int64, text only: equal for equal sentences, whatever the process; -1 at padding."""


@dataclass(frozen=True)
class Embedding(_Tensors):
    """A panel in the shared space: ``pooled`` ``[B,E]``, L2-normalised."""

    pooled: Tensor


@dataclass(frozen=True)
class TokenEmbedding(Embedding):
    """A panel with its tokens in the shared space: ``tokens`` ``[B,N,E]``, ``mask`` ``[B,N]``."""

    tokens: Tensor
    mask: Tensor


E = TypeVar("E", bound=Embedding)


@dataclass(frozen=True)
class Pairs(Generic[E]):
    """Embedded pairs: of this process (``here``) or of the whole job (``world``)."""

    image: E
    text: E
    targets: Tensor
    """``[B]`` int64: the row of each of *these* pairs in the whole job's batch."""
    hash: Tensor
    """``[B]`` int64: equal for pairs with the same report, which are not negatives of each other."""
    labels: Tensor | None = None
    """``[B,L]``, where the data have them."""
