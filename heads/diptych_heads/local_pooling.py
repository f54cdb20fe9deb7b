"""``local_pooling``: words against regions, pooled to one score a pair, beside the global score."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from diptych.checks import check_number
from diptych.errors import ConfigError
from diptych.nn import functional as F
from diptych.types import Dims, TokenEmbedding
from diptych_heads.equations import local_pooling as equations
from diptych_heads.equations.attention import Attention
from diptych_heads.joining import Joining
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

    Evaluation ranks by the sum of the cosine and the local score, without these factors, or as ``joining`` says. The
    publication takes the mean of z-scores over the test set instead. A score then depends on the other rows, so this head
    does not do it.

    ``logsumexp`` favours long reports: ``N`` words add ``1/5 log N``, in the loss and in evaluation. That is the same for
    every image, so a ranking of images for one text is not affected. ``logmeanexp`` has no such term.

    The attention of ``unit``, as published, is nearly flat: the soft-max over ``N`` words of cosines is nearly even. So the
    default is ``softmax``, which can be sharp, as ``raw`` can.
    ``train/loss/attention_entropy`` tells: 1 is flat, 0 is a single region.

    Args:
        dims: widths of the towers.
        width: of the shared space; 768 in GLoRIA.
        pooling: how the matchings of a pair become its local score: ``logsumexp`` (GLoRIA), ``logmeanexp``, ``mean``,
            ``best_word``, or ``max`` (FILIP, arXiv 2111.07783, which uses no attention).
        score_pooling: the same for evaluation. Left out, it is ``pooling``. ``best_word`` is GLoRIA's zero-shot score.
        attention: form of the attention of words over regions. ``softmax``: of cosines over a learned temperature (MGCA).
            ``unit``: GLoRIA's two soft-maxes, of unit vectors; the default of older releases. ``raw``: the same of vectors
            as they are projected, with a learned temperature (GLoRIA's released configuration). ``scan``: cosines
            normalised over the words (SCAN).
        region_places: whether a region's vector knows its place in the image: a learned projection of a sine code of row and
            column is added to it. GLoRIA has none. Without it, only what the tower's padding leaks tells left from right.
        joining: how the cosine and the local score become one, as in :class:`diptych_heads.joining.Join`. ``sum`` is
            GLoRIA's without z-scores.
        scale: factor on the scores of both terms, above 0 and up to 100; 10 in GLoRIA.
        learn_scale: True learns ``scale``, up to 100. GLoRIA keeps it fixed.
        region_scale: factor on the logits of the attention, in (0, 20]. Left out, it is 4 as in GLoRIA, and 9 for ``scan``.
            ``softmax`` has none.
        attention_temperature: start of the learned temperature of the attention, 0.01 or more. Left out, it is 0.1 for
            ``softmax`` and 1 for ``raw``. The other forms have none.
        word_scale: sharpness of ``logsumexp`` and further factor of the local term, above 0; 5 in GLoRIA.
        global_weight: weight of the ``global`` term. ``joint`` has none.
        local_weight: weight of the ``local`` term. ``joint`` has none.
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
        score_pooling: equations.Pooling | None = None,
        attention: Attention = "softmax",
        region_places: bool = False,
        joining: Joining = "sum",
        scale: float = 10.0,
        learn_scale: bool = False,
        region_scale: float | None = None,
        attention_temperature: float | None = None,
        word_scale: float = 5.0,
        global_weight: float = 1.0,
        local_weight: float = 1.0,
        byte_budget: int = 2**30,
    ) -> None:
        check_number("head local_pooling: scale", scale, above=0, most=100)
        check_number("head local_pooling: word_scale", word_scale, above=0, most=100)
        check_number("head local_pooling: byte_budget", byte_budget, least=0, whole=True)
        score_pooling = pooling if score_pooling is None else score_pooling
        if (pooling == "max") != (score_pooling == "max"):
            raise ConfigError(
                f"head local_pooling: score_pooling is {score_pooling} and pooling {pooling}; max goes with max alone"
            )
        if pooling == "max":
            if attention not in {"softmax", "unit"}:  # the defaults of this and of older releases
                raise ConfigError(
                    f"head local_pooling: attention is {attention}, but pooling max has none; leave it out"
                )
            attention = "unit"
        scaled = F.LogitScale(1 / scale, learn=learn_scale)
        super().__init__(
            dims,
            width,
            scaled,
            joining,
            word_scale,
            region_places,
            attention,
            region_scale,
            attention_temperature,
            "local_pooling",
        )
        self.weights = self.join.terms({"global": global_weight, "local": local_weight}) | {"attention_entropy": 0.0}
        self.pooling = pooling
        self.score_pooling = score_pooling
        self.word_scale = word_scale
        self.byte_budget = byte_budget

    def local_scores(self, image: TokenEmbedding, text: TokenEmbedding) -> Tensor:
        """The pooled matchings of every image with every report, ``[I,T]``, as evaluation ranks by them."""
        return self._pooled(image, text, self.score_pooling)

    def trained_local_scores(self, image: TokenEmbedding, text: TokenEmbedding) -> Tensor:
        """The pooled matchings of every image with every report, ``[I,T]``, as training contrasts them."""
        return self._pooled(image, text, self.pooling)

    def _pooled(self, image: TokenEmbedding, text: TokenEmbedding, pooling: equations.Pooling) -> Tensor:
        return equations.local_scores(
            image.tokens,
            self.words_over_temperature(text).tokens,
            text.mask,
            pooling=pooling,
            attention=self.attention,
            region_scale=self.region_scale,
            word_scale=self.word_scale,
            byte_budget=self.byte_budget,
        )
