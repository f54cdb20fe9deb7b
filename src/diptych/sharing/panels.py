"""What exported programs compute: each panel from its input to its embedding, and the head's score of two embeddings.

Programs take and give tensors alone, without the classes of :mod:`diptych.types`. So each embedding is taken apart into
named tensors, and put together again.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from diptych.head import AlignmentHead
from diptych.towers.image import ImageTower
from diptych.towers.text import TextTower
from diptych.types import Embedding, TextBatch, map_leaves

__all__ = ["TEXT_INPUTS", "ImagePanel", "ScorePanel", "TextPanel", "leaves", "text_inputs"]

TEXT_INPUTS = ("input_ids", "attention_mask", "word_of_piece", "mask", "sentences", "sentence_hash")
"""What towers and heads read of a :class:`diptych.TextBatch`."""


def leaves(embedding: Embedding) -> dict[str, Tensor]:
    """The tensors of an embedding by their paths.

    >>> import torch
    >>> from diptych.types import TokenEmbedding
    >>> list(leaves(TokenEmbedding(torch.zeros(1, 2), torch.zeros(1, 3, 2), torch.ones(1, 3))))
    ['pooled', 'tokens', 'mask']
    """
    found: dict[str, Tensor] = {}

    def take(path: str, leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            found[path] = leaf
        return leaf

    map_leaves(take, embedding)
    return found


def text_inputs(text: TextBatch) -> dict[str, Tensor]:
    """The tensors of tokenised reports that a text program takes, by name."""
    return {name: value for name in TEXT_INPUTS if isinstance(value := getattr(text, name), Tensor)}


def _outputs(features: dict[str, Tensor], embedding: Embedding) -> dict[str, Tensor]:
    """Features and embedding. Each is a tensor of its own: an output with two names, or an input, would lose one name."""
    return features | {f"embedding.{path}": leaf.clone() for path, leaf in leaves(embedding).items()}


class ImagePanel(nn.Module):
    """A picture to its features and its embedding, all as named tensors.

    ``picture`` ``[B,1,H,V]`` uint8 gives ``features`` ``[B,D]`` and ``regions`` ``[B,N,D]`` of the tower, and what the
    head makes of them: ``embedding.pooled`` ``[B,E]`` and what else the head's score reads.
    """

    def __init__(self, tower: ImageTower, head: AlignmentHead[Any]) -> None:
        super().__init__()
        self.tower, self.head = tower, head

    def forward(self, picture: Tensor) -> dict[str, Tensor]:
        """As the class says."""
        features = self.tower(picture)
        return _outputs({"features": features.pooled, "regions": features.tokens}, self.head.embed_image(features))


class TextPanel(nn.Module):
    """Tokenised reports to their features and their embedding, all as named tensors.

    The inputs are fields of :class:`diptych.TextBatch`. ``features`` is ``[T,D]``, and ``words`` is ``[T,N,D]``.
    """

    def __init__(self, tower: TextTower, head: AlignmentHead[Any]) -> None:
        super().__init__()
        self.tower, self.head = tower, head

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        word_of_piece: Tensor,
        mask: Tensor,
        sentences: Tensor,
        sentence_hash: Tensor,
    ) -> dict[str, Tensor]:
        """As the class says."""
        unread = input_ids[:, 0]  # two fields that neither towers nor heads read
        text = TextBatch(
            input_ids, attention_mask, word_of_piece, mask, sentences, unread, unread > 0, [], sentence_hash
        )
        features = self.tower(text)
        return _outputs({"features": features.pooled, "words": features.tokens}, self.head.embed_text(features))


class ScorePanel(nn.Module):
    """The head's whole score ``[I,T]`` of ``I`` embedded pictures with ``T`` embedded reports.

    Args:
        head: whose score it is.
        image: an embedding of any pictures, whose structure the program has.
        text: an embedding of any reports.
    """

    def __init__(self, head: AlignmentHead[Any], image: Embedding, text: Embedding) -> None:
        super().__init__()
        self.head = head
        self._image, self._text = image, text

    def forward(self, image: dict[str, Tensor], text: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors by path, as :func:`leaves` gives them, to ``score``."""
        pictures = map_leaves(lambda path, leaf: image.get(path, leaf), self._image)
        reports = map_leaves(lambda path, leaf: text.get(path, leaf), self._text)
        return {"score": self.head.similarity(pictures, reports)}
