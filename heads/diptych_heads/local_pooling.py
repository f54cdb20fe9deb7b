"""``local_pooling``: words against regions, pooled to one score a pair, beside the global score."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from diptych import distributed
from diptych.checks import check_number
from diptych.nn import functional as F
from diptych.types import Dims, Pairs, TokenEmbedding
from diptych_heads.equations import local_pooling as equations
from diptych_heads.token_head import TokenHead

__all__ = ["LocalPooling"]


class LocalPooling(TokenHead):
    """Attention-pooled matchings of words and regions (GLoRIA, ICCV 2021).

    Each word attends to the regions of an image. Its matching is the cosine of the word and what it attends to. The
    matchings of a report are pooled to the local score of the pair. The equations are those of
    ``diptych_heads.equations.local_pooling.local_scores``.

    There are two terms. Both are InfoNCE over the whole batch. ``global`` contrasts ``scale`` times the cosine of the
    pooled vectors. ``local`` contrasts ``scale * word_scale`` times the local score. For ``logsumexp`` that is the
    published ``10 log sum_w exp(5 m_w)``.

    Evaluation ranks by the mean of the cosine and the local score, without these factors. The publication takes the mean of
    z-scores over the test set instead. A score then depends on the other rows, so this head does not do it.

    ``logsumexp`` favours long reports: ``N`` words add ``1/5 log N``, in the loss and in evaluation. That is the same for
    every image, so a ranking of images for one text is not affected.

    Args:
        dims: widths of the towers.
        width: of the shared space; 768 in GLoRIA.
        pooling: ``logsumexp`` (GLoRIA), ``mean``, or ``max`` (FILIP, arXiv 2111.07783, which uses no attention).
        scale: factor on the scores of both terms, above 0 and up to 100; 10 in GLoRIA.
        learn_scale: True learns ``scale``, up to 100. GLoRIA keeps it fixed.
        region_scale: sharpness of a word's attention over the regions, in (0, 20]; 4 in GLoRIA.
        word_scale: sharpness of ``logsumexp`` and further factor of the local term, above 0; 5 in GLoRIA.
        global_weight: weight of the ``global`` term.
        local_weight: weight of the ``local`` term.
        byte_budget: bytes of grids kept for backward. What does not fit is recomputed, and the term then takes about 1.4
            times as long. In float32 a grid takes 8 bytes for each image, region, report and word. That is 0.7 GiB for
            64 pairs of 60 words with 19x19 regions.

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
        check_number("head local_pooling: scale", scale, above=0, most=100)
        check_number("head local_pooling: region_scale", region_scale, above=0, most=20)
        check_number("head local_pooling: word_scale", word_scale, above=0, most=100)
        check_number("head local_pooling: byte_budget", byte_budget, least=0, whole=True)
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
        """Attention ``[B,N_words,N_regions]`` of each word over its own image. A padded word's is zero."""
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
