"""The typed values that pass from files to metrics, and the legend of shapes.

Every docstring and comment of the project uses these letters:

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

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Self, TypeVar, cast

import torch
from torch import Tensor

__all__ = ["Batch", "Dims", "E", "Embedding", "Features", "Pairs", "TextBatch", "TokenEmbedding", "map_leaves"]

T = TypeVar("T")


class Dims(NamedTuple):
    """The widths of the towers' vectors. A head gets them from the towers, so no configuration repeats them."""

    image: int
    """Width of the pooled image vector."""
    text: int
    """Width of the pooled text vector."""
    image_tokens: int
    """Width of the region vectors. It differs from ``image`` where an inner ResNet stage is chosen."""
    text_tokens: int
    """Width of the word vectors."""


def map_leaves(function: Callable[..., Any], *values: T, path: str = "") -> T:
    """A copy of the first value in which each leaf is replaced by ``function(path, *leaves)``.

    Dataclasses, mappings and tuples are entered, however deep they are nested. Everything else is a leaf.

    >>> panel = TokenEmbedding(torch.zeros(1, 2), torch.zeros(1, 3, 2), torch.ones(1, 3))
    >>> shapes = map_leaves(lambda path, x: f"{path} {list(x.shape)}", {"text": panel})
    >>> shapes["text"].tokens
    'text.tokens [1, 3, 2]'

    Args:
        function: gets a path, as ``"text.members.global.pooled"``, and the leaf of each value at that path.
        values: one or more values of the same structure.
        path: the beginning of all paths.
    """
    first, others = cast(Any, values[0]), cast(Any, values)
    below = f"{path}." if path else ""
    result: Any
    if is_dataclass(first) and not isinstance(first, type):
        parts = {field.name: [getattr(value, field.name) for value in others] for field in fields(first)}
        result = replace(
            first, **{name: map_leaves(function, *part, path=below + name) for name, part in parts.items()}
        )
    elif isinstance(first, Mapping):
        result = {key: map_leaves(function, *(value[key] for value in others), path=f"{below}{key}") for key in first}
    elif type(first) is tuple:
        items = enumerate(zip(*others, strict=True))
        result = tuple(map_leaves(function, *part, path=f"{below}{i}") for i, part in items)
    else:
        result = function(path, *values)
    return cast(T, result)


class _Tensors:
    """Dataclass mix-in that moves, pins and selects all tensors, nested ones too. A list holds one item for each row."""

    def _map(self, function: Callable[..., Tensor]) -> Self:
        def map_leaf(_: str, leaf: Any) -> Any:
            if isinstance(leaf, list):
                return [map_leaf("", item) for item in leaf]
            return function(leaf) if isinstance(leaf, Tensor) else leaf

        return map_leaves(map_leaf, self)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """The same value with its tensors on ``device``."""
        return self._map(lambda x: x.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """The same value with its tensors in page-locked memory."""
        return self._map(lambda x: x.pin_memory())

    def select(self, rows: Tensor) -> Self:
        """The rows chosen by an index or boolean tensor ``[B]``. The first axis of every tensor is the batch.

        >>> Embedding(torch.eye(3)).select(torch.tensor([2])).pooled
        tensor([[0., 0., 1.]])
        """
        chosen = rows.nonzero().squeeze(1) if rows.dtype == torch.bool else rows

        def select_rows(_: str, leaf: Any) -> Any:
            if isinstance(leaf, list):
                return [leaf[i] for i in chosen.tolist()]
            return leaf[chosen.to(leaf.device)] if isinstance(leaf, Tensor) else leaf

        return map_leaves(select_rows, self)


@dataclass(frozen=True)
class TextBatch(_Tensors):
    """Reports as the text tower reads them. The loader's workers make them."""

    input_ids: Tensor
    """``[B,P]`` int64 word pieces, special tokens included."""
    attention_mask: Tensor
    """``[B,P]`` bool, True at real pieces (special tokens included)."""
    word_of_piece: Tensor
    """``[B,P]`` int64: the index of the word that a piece belongs to; -1 for special tokens, punctuation and padding."""
    mask: Tensor
    """``[B,N]`` bool, True at real words."""
    sentences: Tensor
    """``[B,N]`` int64: the index of the sentence that a word is in; -1 at padding."""
    hash: Tensor
    """``[B]`` int64: the same for equal reports, on every process. White space and case make no difference."""
    cut: Tensor
    """``[B]`` bool: True if the report was longer than the limit and lost its last sentences."""
    raw: list[str]
    """The reports as text."""
    sentence_hash: Tensor | None = None
    """``[B,M]`` int64: the same for equal sentences; -1 at padding. White space, case and a closing full stop do not count."""


@dataclass(frozen=True)
class Batch(_Tensors):
    """A batch of a datamodule. Fields that the data set lacks are None. They limit what can be trained and evaluated."""

    image: Tensor
    """``[B,C,H,V]`` uint8. ``C`` is 1, unless the data give other images of the study, each in its place after the first.

    One that is absent is black, as no radiograph is: a flat one is refused when it is read. Labels, report, boxes and mask
    are of the first.
    """
    text: TextBatch | None
    index: Tensor
    """``[B]`` int64: position in the data set."""
    valid: Tensor
    """``[B]`` bool: False for rows that only fill up an evaluation batch. Such rows are never counted."""
    labels: Tensor | None
    """``[B,L]`` float32: 1 present, 0 absent, -1 uncertain, NaN not mentioned."""
    group: Tensor
    """``[B]`` int64: the same for all images of a patient. The bootstrap draws patients."""
    boxes: list[Tensor] | None
    """For each image ``[K,5]`` float32: x0, y0, x1, y1 in pixels of the network's input, and the index of the finding."""
    ids: list[str]
    """A name for each image, for error messages and tables."""
    masks: Tensor | None = None
    """``[B,H,V]`` bool: True at the finding's pixels in the network's input. Padding is False."""
    notes: list[tuple[str, ...]] | None = None
    """Remarks on images that are odd but usable, a tuple for each image. None if the batch has no remarks. The datamodule
    counts them."""

    def __len__(self) -> int:
        return self.image.shape[0]


@dataclass(frozen=True)
class Features(_Tensors):
    """The output of a tower. A head embeds it."""

    pooled: Tensor
    """``[B,D]``"""
    tokens: Tensor
    """``[B,N,D]`` regions in row-major order, or whole words."""
    mask: Tensor
    """``[B,N]`` bool, True at real tokens. All regions are real."""
    grid: tuple[int, int] | None = None
    """Rows and columns of the region grid, ``rows * columns == N``; None for text."""
    sentences: Tensor | None = None
    """``[B,N]`` int64, text only: the index of each word's sentence; -1 at padding."""
    pixels: Tensor | None = None
    """``[B,1,H,V]`` float, image only: the normalised input, for heads that need it."""
    attention: Tensor | None = None
    """``[B,N]`` float, no gradient: attention of the class token in the last layer, before dropout.

    It is the mean over the attention heads. A word has the sum of its pieces. None if the head does not ask for it, or if
    the tower has no class token.
    """
    sentence_hash: Tensor | None = None
    """``[B,M]`` int64, text only: the same for equal sentences, on every process; -1 at padding."""


@dataclass(frozen=True)
class Embedding(_Tensors):
    """A panel in the shared space: ``pooled`` ``[B,E]``, L2-normalised.

    A field of a subclass is a tensor whose first axis is the batch, or None. It may also be another embedding, or a
    mapping or tuple of such values. All of them are moved, selected and gathered alike.
    """

    pooled: Tensor

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Say where the vectors are, to whoever takes the embedding for a tensor."""
            what = f"'{type(self).__name__}' has no '{name}'"
            if hasattr(Tensor, name):
                raise AttributeError(f"{what}: it is no tensor; its vectors [B,E] are .pooled, of length 1")
            raise AttributeError(what)

        def __matmul__(self, other: object) -> Any:
            raise TypeError(
                "an embedding is no tensor; write a.pooled @ b.pooled.T for cosines, or model.similarity(images, texts) for "
                "the head's whole score"
            )


@dataclass(frozen=True)
class TokenEmbedding(Embedding):
    """A panel with its tokens in the shared space: ``tokens`` ``[B,N,E]``, ``mask`` ``[B,N]``."""

    tokens: Tensor
    mask: Tensor


E = TypeVar("E", bound=Embedding)


@dataclass(frozen=True)
class Pairs(Generic[E]):
    """Embedded pairs, either of this process (``here``) or of the whole job (``world``)."""

    image: E
    text: E
    targets: Tensor
    """``[B]`` int64: the row of each of these pairs in the batch of the whole job."""
    hash: Tensor
    """``[B]`` int64: the same for pairs with the same report. Such pairs are not negatives of each other."""
    labels: Tensor | None = None
    """``[B,L]``, where the data have them."""
