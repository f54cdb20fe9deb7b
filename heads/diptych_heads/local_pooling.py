"""``local_pooling``: words against regions, pooled to one score a pair, beside the global score."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from diptych import distributed
from diptych.errors import ConfigError
from diptych.nn import functional as F
from diptych.types import Dims, Pairs, TokenEmbedding
from diptych_heads.equations import local_pooling as equations
from diptych_heads.token_head import TokenHead

__all__ = ["LocalPooling"]


class LocalPooling(TokenHead):
    """Attention-pooled matchings of words and regions (GLoRIA, ICCV 2021); the equations are at ``local_scores``.

    Two terms, ``global`` and ``local``, are InfoNCE over the whole batch: of ``scale`` times the cosine of the pooled
    vectors, and of ``scale * word_scale`` times the local score, for ``logsumexp`` the published
    ``10 log sum_w exp(5 m_w)``.

    Evaluation ranks by the plain mean of the two scores that are trained, without those factors: the cosine and
    ``1/5 log sum_w exp(5 m_w)``, whose spread is that of a cosine. The sum over words favours longer reports by
    ``1/5 log N``, in the loss as in evaluation; it is the same for every image, so a ranking of images for one text never
    sees it. The publication takes the mean of z-scores over the test set instead, which makes a score depend on the other
    rows; that is left out.

    Args:
        dims: widths of the towers.
        width: of the shared space; 768 in GLoRIA.
        pooling: ``logsumexp`` (GLoRIA), ``mean``, or ``max`` (FILIP, arXiv 2111.07783, which uses no attention).
        scale: factor on the scores of both terms, above 0 and up to 100; 10 in GLoRIA.
        learn_scale: True learns it from there, clamped at 100; GLoRIA keeps it fixed.
        region_scale: sharpness of a word's attention over the regions, in (0, 20]; 4 in GLoRIA.
        word_scale: sharpness of ``logsumexp`` and further factor of the local term, above 0; 5 in GLoRIA.
        global_weight: weight of the ``global`` term.
        local_weight: weight of the ``local`` term.
        byte_budget: bytes of grids kept for backward, the rest being recomputed, which takes the term about 1.4 times as
            long. A grid takes 8 bytes for each image, region, report and word in float32: 0.7 GiB for 64 pairs of 60
            words with 19x19 regions.

    Raises:
        ConfigError: a value out of its range.
    """

    paper: ClassVar[str] = "GLoRIA, ICCV 2021"

    def __init__(
        self,
        dims: Dims,
        *,
        width: int = 512,
        pooling: equations.Pooling = "logsumexp",
        scale: float = 10.0,
        learn_scale: bool = False,
        region_scale: float = 4.0,
        word_scale: float = 5.0,
        global_weight: float = 1.0,
        local_weight: float = 1.0,
        byte_budget: int = 2**30,
    ) -> None:
        limits = {"scale": (scale, 100), "region_scale": (region_scale, 20), "word_scale": (word_scale, 100)}
        for name, (value, limit) in limits.items():
            if not 0 < value <= limit:
                raise ConfigError(f"head local_pooling: {name} is {value}; give a number above 0 and up to {limit}")
        if byte_budget < 0:
            raise ConfigError(f"head local_pooling: byte_budget is {byte_budget}; give a number of bytes, 0 or more")
        super().__init__(dims, width, F.LogitScale(1 / scale, learn=learn_scale))
        self.weights = {"global": global_weight, "local": local_weight}
        self.pooling = pooling
        self.region_scale = region_scale
        self.word_scale = word_scale
        self.byte_budget = byte_budget

    def similarity(self, image: TokenEmbedding, text: TokenEmbedding) -> Tensor:
        """The mean of the global and the local score, ``[I,T]``."""
        return (F.dot_products(image.pooled, text.pooled) + self.local_scores(image, text)) / 2

    def losses(self, here: Pairs[TokenEmbedding], world: Pairs[TokenEmbedding]) -> dict[str, Tensor]:
        """``global`` and ``local``, each InfoNCE over all ``B * W`` pairs, each pair scored once over the job."""
        scale = self.scale()
        pooled = scale * F.dot_products(here.image.pooled, world.text.pooled)  # [B,B*W]
        local = scale * self.word_scale * self.local_scores(here.image, world.text)
        return {
            "global": F.info_nce(distributed.gather(pooled), world.hash),
            "local": F.info_nce(distributed.gather(local), world.hash),
        }

    def heatmap(self, image: TokenEmbedding, text: TokenEmbedding) -> Tensor:
        """Attention ``[B,N_words,N_regions]`` of each word over its own image; a padded word's is zero."""
        return equations.region_attention(image.tokens, text.tokens, text.mask, self.region_scale)

    def local_scores(self, image: TokenEmbedding, text: TokenEmbedding) -> Tensor:
        """The pooled matchings of every image with every report, ``[I,T]``."""
        return equations.local_scores(
            image.tokens,
            text.tokens,
            text.mask,
            pooling=self.pooling,
            region_scale=self.region_scale,
            word_scale=self.word_scale,
            byte_budget=self.byte_budget,
        )
