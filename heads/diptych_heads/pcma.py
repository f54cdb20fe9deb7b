"""``pcma``: observations of an image against sentences of a report, matched without disease labels."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from diptych.checks import check_number
from diptych.errors import ConfigError
from diptych.head import ScaledHead
from diptych.nn import functional as F
from diptych.nn.layers import Extractor
from diptych.types import Dims, Features, Pairs, TokenEmbedding
from diptych_heads.cce import Cce, CceEmbedding, Source, Target
from diptych_heads.equations.pcma import (
    MatchingKind,
    MatchingRule,
    intra_loss,
    match_weights,
    pair_scores,
    sentence_slots,
)
from diptych_heads.joining import Join, Joining

__all__ = ["Observations", "Pcma"]


@dataclass(frozen=True)
class Observations(TokenEmbedding):
    """A panel as its observations: ``K`` of an image (V-PORs), one a sentence of a report (T-PORs).

    ``tokens`` are ``[I,K,E]`` or ``[T,M,E]`` unit vectors, zero at padding. ``mask`` is ``[I,K]`` or ``[T,M]``, True at
    real ones, which come first.
    """

    attention: Tensor | None = None
    """``[I,K,R]``, image only: where each query looks, summing to 1 over the regions."""
    sentence_hash: Tensor | None = None
    """``[T,M]`` int64, text only: equal for equal sentences, -1 where there is none."""
    slots: Tensor | None = None
    """``[T,N]`` int64, text only: the T-POR that a word belongs to. -1 for words of dropped sentences and at padding."""
    real_words: Tensor | None = None
    """``[T,N]`` bool, text only."""
    weights: Tensor | None = None
    """``[T,M]``, text only: how much each sentence counts, from 0 to 1. None where all count alike."""
    cce: CceEmbedding | None = None
    """What the term ``cce`` reads. None outside training, and in a head without this term."""


class Pcma(ScaledHead[Observations]):
    """Pathology-level cross-modal alignment (PLACE, arXiv 2506.10573).

    Learned queries extract observations from the patches. Each sentence of the report is matched with the observations
    that fit it. The queries never see the text, and no disease labels are used. The equations are in
    ``diptych_heads.equations.pcma``.

    The terms are these. ``global``: InfoNCE of the pooled vectors. ``inter``: InfoNCE of ``S``, the mean over a report's
    sentences of their matchings (``pair_scores``), weighted by ``sentence_weights``. ``intra``: the same inside a report
    (``intra_loss``). Unless ``cce`` is 0, those of :class:`diptych_heads.cce.Cce` are added.

    **Inferred.** The publication's abstract names four things: the extractor with query tokens, the observations of both
    panels, their alignment, and the proxy task. The form of all four is a reconstruction. So is every argument except
    ``width``. Do not expect the publication's figures.

    Args:
        dims: widths of the towers.
        width: of the shared space.
        queries: inferred. ``K``, the observations of an image.
        layers: inferred. Decoder layers of the extractor.
        heads: inferred. Attention heads of the extractor. They must divide ``width``.
        text_queries: inferred. With 0 each sentence is an observation: the mean of its words, through two layers. Otherwise
            this many queries extract a report's observations from its words, without regard to sentences.
        least_words: inferred. Sentences of fewer words are dropped.
        sentence_weights: inferred. ``learned``: a sentence counts as much as two layers say that read its vector, from 0 to 1,
            and no image. At the start all count alike. ``even``: all count alike; the default of older releases.
        matching: inferred. ``soft``, ``hungarian``, ``sinkhorn`` or ``max``, as in ``match_weights``. ``hungarian`` solves
            each pair on the CPU. It is for small batches.
        softness: inferred. Temperature of ``soft``, above 0.
        epsilon: inferred. Entropy of ``sinkhorn``, above 0.
        rounds: inferred. Iterations of ``sinkhorn``.
        temperature: inferred. Of all contrasts at the start, at least 0.01.
        learn_temperature: inferred. False keeps it fixed.
        mask_sentences: inferred. Whether a sentence of the image's own report is no negative, whichever report holds it.
            A masked sentence counts in the right pair alone. On long reports of stock phrases the head then learned to rank by
            them (docs/heads/pcma.md has the figures).
        region_places: inferred. Whether the queries see the place of a patch: a sine code of row and column is added to the
            patches that they attend to, as in DETR.
        joining: inferred. How the cosine and ``S`` become one, as in :class:`diptych_heads.joining.Join`.
        local_score: inferred. Evaluation ranks by the whole score, as ``joining`` says; False by the cosine of the pooled
            vectors alone, which ``joint`` does not train by itself.
        global_weight: weight of ``global``. ``joint`` has none.
        inter_weight: weight of ``inter``. ``joint`` has none.
        intra_weight: weight of ``intra``.
        cce: weight of the term ``cce`` after its warm-up. 0 leaves the term out. Four of its settings are arguments here.
            For the others use ``composite`` of this head, with ``cce: 0``, and :class:`diptych_heads.cce.Cce`.
        cce_source: inferred. ``pixel``, ``ema`` or ``detached``.
        cce_target: inferred. ``correlation`` or ``covariance``.
        cce_layers: inferred. Layers of the predictor.
        cce_warmup: inferred. Share of all steps over which its weight rises.
        byte_budget: bytes of matchings kept for backward. What does not fit is recomputed.

    Raises:
        ConfigError: a value out of its range.
    """

    needs = Cce.needs | {"text.sentences", "text.sentence_hash"}
    gathers = frozenset({"text.pooled", "text.tokens", "text.mask", "text.sentence_hash"})
    paper: ClassVar[str] = "PLACE, arXiv 2506.10573"

    def __init__(
        self,
        dims: Dims,
        *,
        width: int = 512,
        queries: int = 16,
        layers: int = 2,
        heads: int = 4,
        text_queries: int = 0,
        least_words: int = 3,
        sentence_weights: Literal["even", "learned"] = "learned",
        matching: MatchingKind = "soft",
        softness: float = 0.1,
        epsilon: float = 0.05,
        rounds: int = 5,
        temperature: float = 0.07,
        learn_temperature: bool = True,
        mask_sentences: bool = False,
        region_places: bool = False,
        joining: Joining = "sum",
        local_score: bool = True,
        global_weight: float = 1.0,
        inter_weight: float = 1.0,
        intra_weight: float = 1.0,
        cce: float = 1.0,
        cce_source: Source = "pixel",
        cce_target: Target = "correlation",
        cce_layers: int = 2,
        cce_warmup: float = 0.1,
        byte_budget: int = 2**30,
    ) -> None:
        super().__init__()
        check_number("head pcma: queries", queries, least=1, whole=True)
        check_number("head pcma: layers", layers, least=1, whole=True)
        check_number("head pcma: text_queries", text_queries, least=0, whole=True)
        check_number("head pcma: least_words", least_words, least=1, whole=True)
        check_number("head pcma: rounds", rounds, least=1, whole=True)
        check_number("head pcma: softness", softness, least=0.01)
        check_number("head pcma: epsilon", epsilon, least=0.01)
        check_number("head pcma: temperature", temperature, least=0.01)
        check_number("head pcma: cce", cce, least=0, remedy="a weight above 0, or 0 for none")
        check_number("head pcma: byte_budget", byte_budget, least=0, whole=True)
        if joining == "joint" and not local_score:
            raise ConfigError(
                "head pcma: local_score is false, but joining joint trains the whole score alone, so the cosine by itself "
                "means nothing; set local_score: true, or joining: learned"
            )
        self.rule = MatchingRule(matching, softness, epsilon, rounds)
        self.least_words, self.mask_sentences, self.local_score = least_words, mask_sentences, local_score
        self.byte_budget = byte_budget
        self.region_places = region_places
        self.scale = F.LogitScale(temperature, learn=learn_temperature)
        self.join = Join(joining, temperature, head="pcma", local_term="inter")
        self.weights = self.join.terms({"global": global_weight, "inter": inter_weight}) | {"intra": intra_weight}
        self.image_projection = nn.Linear(dims.image, width)
        self.text_projection = nn.Linear(dims.text, width)
        self.extractor = Extractor(dims.image_tokens, width, queries=queries, layers=layers, attention_heads=heads)
        self.text_extractor = self.sentence_projection = None
        if text_queries:
            self.text_extractor = Extractor(
                dims.text_tokens, width, queries=text_queries, layers=layers, attention_heads=heads
            )
        else:
            self.sentence_projection = nn.Sequential(
                nn.Linear(dims.text_tokens, width), nn.GELU(), nn.Linear(width, width)
            )
        self.sentence_gate: nn.Module | None = None
        if sentence_weights == "learned":
            last = nn.Linear(width, 1)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            self.sentence_gate = nn.Sequential(nn.Linear(width, width), nn.GELU(), last)
            self.gathers = self.gathers | {"text.weights"}
        self.cce: Cce | None = None
        if cce:
            self.cce = Cce(dims, weight=cce, source=cce_source, target=cce_target, layers=cce_layers, warmup=cce_warmup)
            self.weights |= self.cce.weights

    @classmethod
    def former_arguments(cls, weights: Collection[str]) -> dict[str, Any]:
        """``sentence_weights: even``, the default before ``learned``, where no weight is of the layers that weigh."""
        return {} if any(".sentence_gate." in name for name in weights) else {"sentence_weights": "even"}

    def start_step(self, epoch: int, step: int, total_steps: int) -> None:
        """Copy the weights of ``cce``, which rise at the start."""
        if self.cce is not None:
            self.weights |= self.cce.weights

    def embed_image(self, image: Features) -> Observations:
        """``pooled`` ``[I,E]``, ``tokens`` ``[I,K,E]`` (V-PORs) and ``attention`` ``[I,K,R]``."""
        width = self.extractor.queries.shape[1]
        places = F.grid_code(image, width) if self.region_places else None
        observed, attention = self.extractor(image.tokens, image.mask, places)
        return Observations(
            F.unit(self.image_projection(image.pooled)),
            tokens=F.unit(observed),
            mask=torch.ones(observed.shape[:2], dtype=torch.bool, device=observed.device),
            attention=attention,
            cce=self.cce.embed_image(image) if self.cce is not None and self.training else None,
        )

    def embed_text(self, text: Features) -> Observations:
        """``pooled`` ``[T,E]`` and ``tokens`` ``[T,M,E]`` (T-PORs), zero at padding."""
        if self.text_extractor is not None:
            tokens, attention = self.text_extractor(text.tokens, text.mask)
            real = text.mask.any(1, keepdim=True).expand(tokens.shape[:2])
            hashes = torch.full(tokens.shape[:2], -1, dtype=torch.int64, device=tokens.device)
            slots = attention.argmax(1).masked_fill(~text.mask, -1)
        else:
            assert self.sentence_projection is not None  # one of the two
            slots, real, hashes = sentence_slots(text, self.least_words)
            with F.without_autocast(slots):
                words = F.full(text.tokens)
                members = (slots.unsqueeze(1) == torch.arange(real.shape[1], device=slots.device)[:, None]).to(words)
                means = members @ words / members.sum(2, keepdim=True).clamp_min(1)  # [T,M,D]
            tokens = self.sentence_projection(means)
        tokens = F.unit(tokens, real)
        weights = None
        if self.sentence_gate is not None:  # its input has the size of a layer's usual one
            weights = self.sentence_gate(tokens * math.sqrt(tokens.shape[-1])).squeeze(-1).sigmoid() * real
        return Observations(
            F.unit(self.text_projection(text.pooled)),
            tokens=tokens,
            mask=real,
            sentence_hash=hashes,
            slots=slots,
            real_words=text.mask,
            weights=weights,
            cce=self.cce.embed_text(text) if self.cce is not None and self.training else None,
        )

    def similarity(self, image: Observations, text: Observations) -> Tensor:
        """The whole score ``[I,T]``, as ``joining`` says, or without ``local_score`` the cosine of the pooled vectors."""
        pooled = F.dot_products(image.pooled, text.pooled)
        return self.join.score(pooled, self.local_scores(image, text), self.scale()) if self.local_score else pooled

    def local_scores(self, image: Observations, text: Observations) -> Tensor:
        """``S`` of every image with every report, ``[I,T]``."""
        return pair_scores(
            image.tokens, text.tokens, text.mask, weights=text.weights, rule=self.rule, byte_budget=self.byte_budget
        )[0]

    def losses(self, here: Pairs[Observations], world: Pairs[Observations]) -> dict[str, Tensor]:
        """``global`` and ``inter`` over all ``B * W`` pairs, each scored once over the job. ``intra`` and ``cce``."""
        scale = self.scale()
        text = world.text
        pooled = F.dot_products(here.image.pooled, text.pooled)  # [B,B*W]
        assert here.text.sentence_hash is not None  # embed_text gives it
        assert text.sentence_hash is not None
        scores, blank = pair_scores(
            here.image.tokens,
            text.tokens,
            text.mask,
            weights=text.weights,
            own=here.targets,
            hashes=(here.text.sentence_hash, text.sentence_hash) if self.mask_sentences else None,
            rule=self.rule,
            byte_budget=self.byte_budget,
        )
        terms = self.join.losses(pooled, scores, scale, world.hash, blank)
        terms["intra"] = self._intra(here.image, here.text, scale)
        if self.cce is None or here.image.cce is None or here.text.cce is None:
            return terms
        return terms | self.cce.terms(here.image.cce, here.text.cce, here.targets)

    def heatmap(self, image: Observations, text: Observations) -> Tensor:
        """Attention ``[B,N_words,N_regions]`` of the queries that match the word's sentence.

        All words of a sentence share one map. It is the weighted sum over the queries of their attention above the mean of
        all queries. A region that all queries attend to thus counts for none. The weights are those of ``soft``, whatever
        the matching in training. A word of a dropped sentence has the mean map of its report's sentences. A padded word's
        map is zero.
        """
        assert image.attention is not None  # embed_image gives it
        assert text.slots is not None  # embed_text gives these two
        assert text.real_words is not None
        with F.without_autocast(text.tokens):
            s = F.full(text.tokens) @ F.full(image.tokens).transpose(1, 2)  # [B,M,K]
            weights = match_weights(s, text.mask, self.rule._replace(kind="soft"))
            attention = image.attention.to(s.dtype)
            above_mean = (attention - attention.mean(1, keepdim=True)).clamp_min(0)
            maps = weights @ above_mean  # [B,M,R]
            total = maps.sum(-1, keepdim=True)
            flat = torch.full_like(maps, 1 / maps.shape[-1])  # a single query is never above the mean
            maps = torch.where(total > 0, maps / total.clamp_min(1e-30), flat)
            mean = (maps * text.mask.unsqueeze(-1)).sum(1) / text.mask.sum(1, keepdim=True).clamp_min(1)
            of_word = maps.gather(1, text.slots.clamp_min(0).unsqueeze(-1).expand(-1, -1, maps.shape[-1]))
            of_word = torch.where((text.slots < 0).unsqueeze(-1), mean.unsqueeze(1), of_word)
            return of_word.masked_fill(~text.real_words.unsqueeze(-1), 0.0)

    @property
    def weighs_words(self) -> bool:
        """Whether sentences have learned weights."""
        return self.sentence_gate is not None

    def importance(self, image: Observations, text: Observations) -> Tensor:
        """How much each word counts, ``[B,N_words]``: its sentence's weight, shared among the sentence's words.

        A row sums to 1. The weight of a padded word, and of a word of a dropped sentence, is zero.

        Raises:
            ConfigError: the sentences have no learned weights.
        """
        if text.weights is None or text.slots is None:
            raise ConfigError("head pcma: sentence_weights is even, which weighs no words; train with learned")
        index = text.slots.clamp_min(0)
        words = torch.zeros_like(text.weights).scatter_add_(1, index, (text.slots >= 0).to(text.weights.dtype))
        share = (text.weights / words.clamp_min(1)).gather(1, index).masked_fill(text.slots < 0, 0.0)
        return share / share.sum(1, keepdim=True).clamp_min(1e-12)

    def observations(self, image: Observations) -> Tensor:
        """Attention ``[I,K,N_regions]`` of each query over the image."""
        assert image.attention is not None  # embed_image gives it
        return image.attention

    def extracts(self, image: Observations) -> Tensor:
        """The V-PORs ``[I,K,E]``."""
        return image.tokens

    def _intra(self, image: Observations, text: Observations, scale: Tensor) -> Tensor:
        assert text.sentence_hash is not None
        with F.without_autocast(text.tokens):
            v, t = F.full(image.tokens), F.full(text.tokens)
            w = match_weights(t @ v.transpose(1, 2), text.mask, self.rule)
            return intra_loss(t, F.unit(w @ v), text.mask, text.sentence_hash, scale)
