"""The projections that heads of words and regions share."""

from __future__ import annotations

from torch import nn

from diptych.head import ScaledHead
from diptych.nn import functional as F
from diptych.types import Dims, Features, TokenEmbedding

__all__ = ["TokenHead"]


class TokenHead(ScaledHead[TokenEmbedding]):
    """Base of heads that score the pooled vectors and the tokens of both panels.

    Each of the four goes through a linear projection of its own. The projected vectors have length 1.

    Args:
        dims: widths of the towers.
        width: of the shared space.
        scale: factor on the scores.
    """

    gathers = frozenset({"text.pooled", "text.tokens", "text.mask"})

    def __init__(self, dims: Dims, width: int, scale: F.LogitScale) -> None:
        super().__init__()
        self.scale = scale
        self.image_projection = nn.Linear(dims.image, width)
        self.text_projection = nn.Linear(dims.text, width)
        self.region_projection = nn.Linear(dims.image_tokens, width, bias=False)
        self.word_projection = nn.Linear(dims.text_tokens, width, bias=False)

    def embed_image(self, image: Features) -> TokenEmbedding:
        """``pooled`` ``[I,E]`` and ``tokens`` ``[I,N,E]``: regions, all of which are real."""
        tokens = F.unit(self.region_projection(image.tokens))
        return TokenEmbedding(F.unit(self.image_projection(image.pooled)), tokens, image.mask)

    def embed_text(self, text: Features) -> TokenEmbedding:
        """``pooled`` ``[T,E]`` and ``tokens`` ``[T,N,E]``: words. A padded word is zero."""
        tokens = F.unit(self.word_projection(text.tokens), text.mask)
        return TokenEmbedding(F.unit(self.text_projection(text.pooled)), tokens, text.mask)
