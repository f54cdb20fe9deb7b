"""``reclf``: matchings of words with regions are vectors, which are related to each other before they give a score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from diptych.checks import check_number
from diptych.errors import ConfigError
from diptych.nn import functional as F
from diptych.nn.blockwise import blockwise
from diptych.types import Dims, Features, TokenEmbedding
from diptych_heads.equations.attention import Attention, attention_logits
from diptych_heads.equations.reclf import compare, compare_pooled, pool, unit_nodes
from diptych_heads.equations.relations import FusedStep, Importance, Step, glorot_linear, word_relations
from diptych_heads.joining import Joining
from diptych_heads.token_head import TokenHead

__all__ = ["Reclf"]

Comparison = Literal["sqdiff", "product"]
Mode = Literal["cascade", "parallel", "srm", "irm", "none"]


@dataclass(frozen=True)
class SentenceEmbedding(TokenEmbedding):
    """A report with its words, and with ``sentences`` ``[T,N]``: the index of each word's sentence, -1 at padding."""

    sentences: Tensor


class Reclf(TokenHead):
    """Relation-enhanced local matchings (RECLF, IEEE TMI 2025, arXiv 2401.10501), reconstructed: no code is public.

    A word's matching with an image is a vector, not a number: ``q_w = unit(P (x_w - t_w)^2)``. Here ``x_w`` is the context,
    what the word attends to. The semantic relation module (SRM) reasons over these nodes. So the matching of a disease word
    and that of its place see each other. The importance relation module (IRM) weighs the nodes. Their weighted mean ``q``,
    of length 1, gives the local score ``S = w . q``. It reads words and regions alone, and no pooled vector.

    There are two terms. Both are InfoNCE over the whole batch. ``global`` contrasts ``scale`` times the cosine of the
    pooled vectors, ``local`` contrasts ``scale * S``. Evaluation ranks by the sum of the cosine and ``S``, or as ``joining``
    says.

    The paper names SRM and IRM, and says what each is for. The equations are those of its nearest published relatives:
    SGRAF (AAAI 2021) for nodes, graph reasoning and gates, and LIMITR (ICCV 2023) for ``product``.

    Args:
        dims: widths of the towers.
        width: inferred. Of the shared space.
        matching: inferred. How a context and its word become a vector: ``sqdiff`` is ``(x - t)^2`` (SGRAF), ``product`` is
            ``x * t`` (LIMITR).
        matching_width: inferred. Of the nodes; 256 in SGRAF.
        global_node: inferred. Whether the pooled vectors are compared as a vector too: ``q_0 = unit(P_0 (vg - tg)^2)``. Then
            ``w_0 . q_0`` is added to the cosine. It counts to the global score alone. In SGRAF the node joins the graph, and
            a score that reads it is mostly that of the pooled vectors.
        attention: inferred. Form of the attention of words over regions. ``softmax``: of cosines over a learned temperature.
            ``unit``: GLoRIA's two soft-maxes, of unit vectors, which are nearly flat; the default of older releases.
            ``gloria`` is an older name of it. ``raw``: the same of vectors as they are projected, with a learned
            temperature. ``scan``: cosines normalised over the words, as in SGRAF.
        region_scale: factor on the logits of that attention, in (0, 20]. Left out, it is 4 as in GLoRIA, and 9 for ``scan``.
            ``softmax`` has none.
        attention_temperature: start of the learned temperature of the attention, 0.01 or more. Left out, it is 0.1 for
            ``softmax`` and 1 for ``raw``. The other forms have none.
        region_places: inferred. Whether a region's vector knows its place, as in
            :class:`diptych_heads.local_pooling.LocalPooling`.
        joining: inferred. How the global and the local score become one, as in :class:`diptych_heads.joining.Join`.
        mode: inferred. ``cascade``: SRM, then IRM over its nodes. ``parallel``: a score of SRM plus a score of IRM over the
            plain matchings. ``srm``, ``irm``: one of these alone. ``none``: the mean of the plain matchings. SRM alone is
            read as the mean of its nodes.
        steps: inferred. Of graph reasoning, each with its own parameters; 3 in SGRAF.
        residual: inferred. Each step is ``q <- LayerNorm(q + relu(...))``. SGRAF has no residual. Without it the nodes of a
            pair are alike after two steps: their relative spread is below 1e-4 at the start, against 0.9. Then ``cascade``
            has nothing left to weigh.
        word_identity: inferred. Whether a node also knows which word it is of: ``unit(P (x - t)^2 + B t)``. Where a word has
            found its region, ``x - t`` holds what else is there, and no longer the word. Then a disease word's node says where
            the disease is, but not which place a place word asks for.
        word_relations: inferred. Whether the SRM's edges know how two words stand to each other: a learned number for each
            class of distance, side, and same or other sentence (``equations.relations.word_relations``) is added to their
            logits. Nodes have no place of their own. Without it the SRM cannot tell which side belongs to which finding.
        readout_norm: inferred. Whether the mean of nodes after the SRM is made of length 1 before it is read. SGRAF
            normalises there only without graph reasoning.
        importance_norm: inferred. ``layer`` standardises the gates over the real nodes of a pair, ``none`` does not.
        score: inferred. ``linear`` is ``w . q``, ``sigmoid`` is ``sigmoid(w . q + bias)`` as in SGRAF.
        cosine_scale: inferred. Start of a learned factor. It multiplies the mean of ``cos(x_w, t_w)``, which is added to
            ``S``. The IRM's weights weigh this mean, where the mode has an IRM. 5, as for the matchings in GLoRIA's loss. 0
            leaves the part out, as in SGRAF. Then nothing makes a word attend to regions that are like it.
        temperature: inferred. Start of the learned temperature of both terms, 0.01 or more; 0.07 in CLIP.
        learn_temperature: False keeps it fixed.
        global_weight: weight of the ``global`` term. ``joint`` has none.
        local_weight: inferred. Weight of the ``local`` term. ``joint`` has none.
        byte_budget: bytes kept for backward. What does not fit is recomputed, for up to a third more time. 1 GiB holds a
            batch of 27 pairs of 60 words with 49 regions. 64 MiB hold the matchings of 32 pairs, which saves the costliest
            product. 72 MiB hold their attention too.

    Raises:
        ConfigError: a value out of its range.
    """

    paper: ClassVar[str] = "RECLF, arXiv 2401.10501"

    def __init__(
        self,
        dims: Dims,
        *,
        width: int = 512,
        matching: Comparison = "sqdiff",
        matching_width: int = 256,
        global_node: bool = False,
        attention: Literal[Attention, "gloria"] = "softmax",
        region_places: bool = False,
        joining: Joining = "sum",
        region_scale: float | None = None,
        attention_temperature: float | None = None,
        mode: Mode = "cascade",
        steps: int = 3,
        residual: bool = True,
        word_identity: bool = False,
        word_relations: bool = False,
        readout_norm: bool = True,
        importance_norm: Literal["layer", "none"] = "layer",
        score: Literal["linear", "sigmoid"] = "linear",
        cosine_scale: float = 5.0,
        temperature: float = 0.07,
        learn_temperature: bool = True,
        global_weight: float = 1.0,
        local_weight: float = 1.0,
        byte_budget: int = 2**30,
    ) -> None:
        check_number("head reclf: temperature", temperature, least=0.01)
        check_number(
            "head reclf: steps",
            steps,
            least=1,
            whole=True,
            remedy="1 or more, or mode irm or none, which take no steps",
        )
        check_number("head reclf: cosine_scale", cosine_scale, least=0, remedy="a number above 0, or 0 for none")
        check_number("head reclf: byte_budget", byte_budget, least=0, whole=True)
        form: Attention = "unit" if attention == "gloria" else attention
        scale = F.LogitScale(temperature, learn=learn_temperature)
        super().__init__(
            dims,
            width,
            scale,
            joining,
            1.0,
            region_places,
            form,
            region_scale,
            attention_temperature,
            "reclf",
        )
        self.weights = self.join.terms({"global": global_weight, "local": local_weight}) | {"attention_entropy": 0.0}
        if word_relations:
            self.needs = frozenset({"text.sentences"})
            self.gathers = self.gathers | {"text.sentences"}
        self.word_relations = word_relations
        self.readout_norm = readout_norm
        self.matching = matching
        self.mode = mode
        self.residual = residual
        self.sigmoid = score == "sigmoid"
        self.byte_budget = byte_budget
        m = matching_width
        self.local_matching = glorot_linear(width, m)
        self.word_identity = glorot_linear(width, m, bias=False) if word_identity else None
        self.global_matching = glorot_linear(width, m) if global_node else None
        self.global_score = glorot_linear(m, 1, bias=False) if global_node else None
        reasons, weighs = mode in ("cascade", "parallel", "srm"), mode in ("cascade", "parallel", "irm")
        self.semantic = nn.ModuleList([Step(m, residual, word_relations) for _ in range(steps if reasons else 0)])
        self.importance_gate = Importance(m, importance_norm) if weighs else None
        self.score = glorot_linear(m, 1, bias=self.sigmoid)
        self.cosine_scale = nn.Parameter(torch.tensor(float(cosine_scale))) if cosine_scale else None
        self.srm_score = glorot_linear(m, 1, bias=self.sigmoid) if mode == "parallel" else None

    def embed_text(self, text: Features) -> TokenEmbedding:
        """``pooled`` ``[T,E]`` and ``tokens`` ``[T,N,E]``: words, with their sentences where relations are read."""
        embedded = super().embed_text(text)
        if not self.word_relations:
            return embedded
        if text.sentences is None:
            raise ConfigError("head reclf: word_relations needs sentences, which the text tower does not give")
        return SentenceEmbedding(embedded.pooled, embedded.tokens, embedded.mask, text.sentences)

    def global_scores(self, image: TokenEmbedding, text: TokenEmbedding) -> Tensor:
        """The global part of the score ``[I,T]``: the cosine of the pooled vectors, and what the global node reads."""
        cosine = super().global_scores(image, text)
        if self.global_matching is None or self.global_score is None:
            return cosine
        with F.without_autocast(image.pooled):
            node = compare_pooled(
                image.pooled,
                text.pooled,
                self.global_matching.weight,
                self.global_matching.bias,
                self.matching == "product",
            )
            return cosine + self._read(self.global_score, unit_nodes(node))

    @property
    def weighs_words(self) -> bool:
        """Whether the mode has an IRM."""
        return self.importance_gate is not None

    def importance(self, image: TokenEmbedding, text: TokenEmbedding) -> Tensor:
        """How much each word counts in the score of its own image, ``[B,N_words]``: the weights of the IRM.

        A row sums to 1. A padded word's weight is zero.

        Raises:
            ConfigError: the mode has no IRM.
        """
        if self.importance_gate is None:
            raise ConfigError(f"head reclf: mode {self.mode} weighs no words; train with mode cascade, parallel or irm")
        fused = self.fuse()
        rows = []
        with F.without_autocast(image.tokens):
            for v, t in ((image.select(i), text.select(i)) for i in torch.arange(len(image.pooled)).view(-1, 1)):
                q, real = self._nodes(t, self.match(v, t, self.attend(v, self.words_over_temperature(t))))
                q = self._reason(q, real, t, fused) if self.mode == "cascade" else q
                rows.append(self.importance_gate(q, real))
        return torch.cat(rows)

    def fuse(self) -> list[FusedStep]:
        """The weights of the SRM's steps in the form that scores pairs. They are computed once for all pairs."""
        with F.without_autocast(self.score.weight):
            return [cast(Step, step).fuse() for step in self.semantic]

    def local_scores(self, image: TokenEmbedding, text: TokenEmbedding) -> Tensor:
        """``S`` of every image with every report, ``[I,T]``, by blocks within the byte budget."""
        fused = self.fuse()
        with F.without_autocast(image.tokens):
            return blockwise(
                lambda v, t: self.attend(v, self.words_over_temperature(t)),
                self.match,
                lambda v, t, matched: self.pair_scores(v, t, matched, fused),
                image,
                text,
                **self._bytes(image, text),
                byte_budget=self.byte_budget,
            )

    def trained_local_scores(self, image: TokenEmbedding, text: TokenEmbedding) -> Tensor:
        """``S``: training and evaluation use the same score."""
        return self.local_scores(image, text)

    def _bytes(self, image: TokenEmbedding, text: TokenEmbedding) -> dict[str, int]:
        """The byte arguments of :func:`~diptych.nn.blockwise.blockwise`: each is for a word of one pair."""
        words, (regions, width), m = text.mask.shape[1], image.tokens.shape[1:], self.local_matching.out_features
        steps = len(self.semantic)
        # Numbers that the equations hold for backward, for each node and for each word.
        node = m * (5 if self.residual else 3) * steps + words * steps
        attention = (3 if self.attention == "scan" else 1) * regions
        numbers = {
            "working_bytes": max(width, regions, 3 * m),
            "attention_bytes": attention,
            "matching_bytes": m + int(self.cosine_scale is not None),
            "kept_bytes": attention + 2 * width + m + node,
        }
        return {name: number * image.tokens.element_size() for name, number in numbers.items()}

    def attend(self, image: TokenEmbedding, text: TokenEmbedding) -> Tensor:
        """:func:`attention_logits` of one block of pairs, ``[I,R,T*N]``. The words are divided by the temperature."""
        v, t, mask = image.tokens, text.tokens, text.mask
        s = (v.flatten(0, 1) @ t.flatten(0, 1).T).view(*v.shape[:2], *mask.shape)  # [I,R,T,N]
        return attention_logits(s, mask, self.attention).flatten(2)

    def match(self, image: TokenEmbedding, text: TokenEmbedding, attention: Tensor) -> Tensor:
        """``P (x_w - t_w)^2`` ``[I,T,N,m]`` of one block of pairs, and with ``cosine_scale`` the plain sum, ``[I,T,N,m+1]``."""
        # The context is normalised, so the attention needs no denominator.
        words, product = text.tokens.flatten(0, 1), self.matching == "product"
        if self.attention == "raw":  # only the attention reads their length
            words = F.unit(words)
        compared = compare(attention, self.region_scale, image.tokens, words, product)
        weight: Tensor = self.local_matching.weight
        bias: Tensor = self.local_matching.bias
        if self.cosine_scale is not None:  # a row of ones sums up: (x - t)^2 to 2 - 2 x.t, x * t to x.t
            weight, bias = torch.cat([weight, torch.ones_like(weight[:1])]), nn.functional.pad(bias, (0, 1))
        matched = nn.functional.linear(compared, weight, bias)
        if self.word_identity is not None:  # the same for all images
            added = self.word_identity(words)
            matched = matched + nn.functional.pad(added, (0, matched.shape[-1] - added.shape[-1]))
        return matched.view(image.tokens.shape[0], *text.mask.shape, -1)

    def pair_scores(
        self, image: TokenEmbedding, text: TokenEmbedding, matched: Tensor, fused: list[FusedStep]
    ) -> Tensor:
        """``S`` ``[I,T]`` of one block of pairs, from what :meth:`match` and :meth:`fuse` give."""
        q, real = self._nodes(text, matched)
        weights = real.to(q.dtype) / real.sum(-1, keepdim=True).clamp_min(1)
        related = self._reason(q, real, text, fused)
        if self.mode in ("srm", "parallel"):
            read = self.srm_score if self.srm_score is not None else self.score
            s = self._read(read, self._pool(weights, related))
        if self.mode != "srm":
            nodes = related if self.mode == "cascade" else q
            if self.importance_gate is not None:
                weights = self.importance_gate(nodes, real)
            pooled = self._pool(weights, nodes) if self.mode == "cascade" else pool(weights, nodes)
            s = s + self._read(self.score, pooled) if self.mode == "parallel" else self._read(self.score, pooled)
        if self.cosine_scale is not None:
            s = s + self.cosine_scale * self._cosine(matched, weights)
        return s.view(matched.shape[:2])

    def _pool(self, weights: Tensor, nodes: Tensor) -> Tensor:
        """The weighted mean of nodes after the SRM."""
        return pool(weights, nodes) if self.readout_norm else (weights.unsqueeze(1) @ nodes).squeeze(1)

    def _cosine(self, matched: Tensor, weights: Tensor) -> Tensor:
        """The weighted mean ``[I*T]`` of the cosines of contexts and words."""
        total = matched[..., -1].flatten(0, 1)
        cosines = total if self.matching == "product" else 1 - total / 2
        return (weights * cosines).sum(-1) / weights.sum(-1).clamp_min(1e-12)

    def _nodes(self, text: TokenEmbedding, matched: Tensor) -> tuple[Tensor, Tensor]:
        """The nodes of each pair ``[I*T,n,m]``, and which are real ``[I*T,n]``."""
        q = unit_nodes(matched[..., : self.local_matching.out_features])
        real = text.mask.unsqueeze(0).expand(q.shape[0], -1, -1)
        return q.flatten(0, 1), real.flatten(0, 1)

    def _reason(self, q: Tensor, real: Tensor, text: TokenEmbedding, fused: list[FusedStep]) -> Tensor:
        node_bias = torch.zeros(real.shape, dtype=q.dtype, device=q.device).unsqueeze(1)
        node_bias = node_bias.masked_fill_(
            ~real.unsqueeze(1), torch.finfo(q.dtype).min / 2
        )  # finite: all may be padding
        relations = word_relations(text.sentences) if isinstance(text, SentenceEmbedding) else None
        for step, weights in zip(self.semantic, fused, strict=True):
            q = step(q, weights, node_bias, relations)
        return q

    def _read(self, linear: nn.Module, q: Tensor) -> Tensor:
        s: Tensor = linear(q).squeeze(-1)
        return s.sigmoid() if self.sigmoid else s
