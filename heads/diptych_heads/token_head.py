"""What heads of words and regions share: projections, the attention of words, and the two contrasts."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from diptych.checks import check_number
from diptych.errors import ConfigError
from diptych.head import ScaledHead
from diptych.nn import functional as F
from diptych.types import Dims, Features, Pairs, TokenEmbedding
from diptych_heads.equations.attention import SHARPNESS, Attention, attention_entropy, region_attention, word_cosines
from diptych_heads.joining import Join, Joining

__all__ = ["TokenHead"]

PLACE_WIDTH = 64
"""Width of the code of a region's place."""
TEMPERATURES: dict[Attention, float] = {"raw": 1.0, "softmax": 0.1}
"""Where the learned temperature of the attention starts. The other forms have none."""


class TokenHead(ScaledHead[TokenEmbedding]):
    """Base of heads that score the pooled vectors and the tokens of both panels.

    Each of the four goes through a linear projection of its own. The projected vectors have length 1, but for the tokens of
    ``attention: raw``. A subclass scores the tokens (``trained_local_scores``).

    Args:
        dims: widths of the towers.
        width: of the shared space.
        scale: factor on the scores of both terms.
        joining: how the global and the local score become one.
        local_factor: further factor on the local scores in the contrast.
        region_places: whether a region's vector knows its place.
        attention: form of the attention of words over regions.
        region_scale: factor on its logits. Left out, the published one.
        attention_temperature: start of its learned temperature. Left out, 0.1 for ``softmax`` and 1 for ``raw``.
        name: of the head, for messages.
    """

    gathers = frozenset({"text.pooled", "text.tokens", "text.mask"})

    def __init__(
        self,
        dims: Dims,
        width: int,
        scale: F.LogitScale,
        joining: Joining,
        local_factor: float,
        region_places: bool,
        attention: Attention,
        region_scale: float | None,
        attention_temperature: float | None,
        name: str,
    ) -> None:
        super().__init__()
        if region_scale is None:
            region_scale = SHARPNESS[attention]
        elif attention == "softmax":
            raise ConfigError(
                f"head {name}: region_scale is {region_scale}, which attention softmax has not; set "
                "attention_temperature, or attention: unit (the default of older releases)"
            )
        check_number(f"head {name}: region_scale", region_scale, above=0, most=20)
        temperature = TEMPERATURES.get(attention) if attention_temperature is None else attention_temperature
        if attention not in TEMPERATURES and temperature is not None:
            raise ConfigError(
                f"head {name}: attention_temperature is {temperature}, which attention {attention} has not; "
                "set region_scale, or attention: softmax"
            )
        self.attention = attention
        self.region_scale = region_scale
        self.attention_scale: F.LogitScale | None = None
        if temperature is not None:
            check_number(f"head {name}: attention_temperature", temperature, least=0.01)
            self.attention_scale = F.LogitScale(temperature)
        self.scale = scale
        self.join = Join(joining, scale.start, local_factor, head=name)
        self.place_projection = nn.Linear(PLACE_WIDTH, width, bias=False) if region_places else None
        self.image_projection = nn.Linear(dims.image, width)
        self.text_projection = nn.Linear(dims.text, width)
        self.region_projection = nn.Linear(dims.image_tokens, width, bias=False)
        self.word_projection = nn.Linear(dims.text_tokens, width, bias=False)

    def embed_image(self, image: Features) -> TokenEmbedding:
        """``pooled`` ``[I,E]`` and ``tokens`` ``[I,N,E]``: regions, all of which are real."""
        tokens = self.region_projection(image.tokens)
        if self.place_projection is not None:
            tokens = tokens + self.place_projection(F.grid_code(image, PLACE_WIDTH))
        tokens = self._scaled(tokens)
        return TokenEmbedding(F.unit(self.image_projection(image.pooled)), tokens, image.mask)

    def embed_text(self, text: Features) -> TokenEmbedding:
        """``pooled`` ``[T,E]`` and ``tokens`` ``[T,N,E]``: words. A padded word is zero."""
        tokens = self._scaled(self.word_projection(text.tokens)).masked_fill(~text.mask.unsqueeze(-1), 0.0)
        return TokenEmbedding(F.unit(self.text_projection(text.pooled)), tokens, text.mask)

    def _scaled(self, tokens: Tensor) -> Tensor:
        return F.full(tokens) if self.attention == "raw" else F.unit(tokens)

    def words_over_temperature(self, text: TokenEmbedding) -> TokenEmbedding:
        """The text with its words divided by the temperature of the attention, if it has one."""
        if self.attention_scale is None:
            return text
        return replace(text, tokens=self.attention_scale() * text.tokens)

    @classmethod
    def former_arguments(cls, weights: Collection[str]) -> dict[str, Any]:
        """``attention: unit``, the default before ``softmax``, where no weight is a temperature of the attention."""
        return {} if any(name.endswith("attention_scale.log_scale") for name in weights) else {"attention": "unit"}

    @abstractmethod
    def local_scores(self, image: TokenEmbedding, text: TokenEmbedding) -> Tensor:
        """The scores of the tokens by which evaluation ranks, ``[I,T]``. They read no pooled vector."""

    @abstractmethod
    def trained_local_scores(self, image: TokenEmbedding, text: TokenEmbedding) -> Tensor:
        """The scores of the tokens that training contrasts, ``[I,T]``."""

    def global_scores(self, image: TokenEmbedding, text: TokenEmbedding) -> Tensor:
        """The global part of the score ``[I,T]``: the cosine of the pooled vectors."""
        return F.dot_products(image.pooled, text.pooled)

    def similarity(self, image: TokenEmbedding, text: TokenEmbedding) -> Tensor:
        """The whole score ``[I,T]``, as ``joining`` says."""
        return self.join.score(self.global_scores(image, text), self.local_scores(image, text), self.scale())

    def losses(self, here: Pairs[TokenEmbedding], world: Pairs[TokenEmbedding]) -> dict[str, Tensor]:
        """``global`` and ``local``, or ``whole``: InfoNCE over all ``B * W`` pairs, each pair scored once over the job.

        ``attention_entropy`` is not trained. It says how flat the attention is: from 0, a single region, to 1, all alike.
        """
        local = self.trained_local_scores(here.image, world.text)
        with torch.no_grad():
            entropy = attention_entropy(self.heatmap(here.image, here.text), here.text.mask)
        terms = self.join.losses(self.global_scores(here.image, world.text), local, self.scale(), world.hash)
        return terms | {"attention_entropy": entropy}

    def heatmap(self, image: TokenEmbedding, text: TokenEmbedding) -> Tensor:
        """Attention ``[B,N_words,N_regions]`` of each word over its own image. A padded word's is zero."""
        words = self.words_over_temperature(text).tokens
        return region_attention(image.tokens, words, text.mask, self.region_scale, self.attention)

    def cosines(self, image: TokenEmbedding, text: TokenEmbedding) -> Tensor:
        """Cosine ``[B,N_words,N_regions]`` of each word with the regions of its own image. A padded word's is zero."""
        return word_cosines(image.tokens, text.tokens, text.mask)
