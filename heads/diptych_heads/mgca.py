"""``mgca``: reports, words and prototypes - one alignment at each of three granularities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from diptych import distributed
from diptych.errors import ConfigError
from diptych.head import ScaledHead
from diptych.nn import functional as F
from diptych.nn.norm import GlobalBatchNorm
from diptych.types import Dims, Features, Pairs, TokenEmbedding

__all__ = ["MGCA", "AttendedEmbedding", "assign", "clipped_shares", "swapped_prediction", "token_loss"]


# Equations -----------------------------------------------------------------------------------------------------------


def clipped_shares(attention: Tensor, mask: Tensor, low: float, high: float) -> Tensor:
    """Weights of tokens: attention clipped to two quantiles of its own real tokens, then made to sum to 1.

    Args:
        attention: ``[B,N]``, 0 or more.
        mask: ``[B,N]``, True at real tokens.
        low: the lower quantile, 0 to 1; 0.1 in MGCA. Between two values it is interpolated.
        high: the upper quantile; 0.9 in MGCA.

    Returns:
        ``[B,N]``, zero at padding, and everywhere where nothing is real.
    """
    ordered = attention.masked_fill(~mask, torch.inf).sort(dim=1).values
    last = (mask.sum(1, keepdim=True) - 1).clamp_min(0)  # [B,1]

    def quantile(share: float) -> Tensor:
        place = share * last.to(ordered.dtype)
        below = place.floor().long()
        under, over = ordered.gather(1, below), ordered.gather(1, torch.minimum(below + 1, last))
        return under + (place - below) * (over - under)

    shares = attention.clamp(quantile(low), quantile(high)).masked_fill(~mask, 0.0)
    return shares / shares.sum(1, keepdim=True).clamp_min(torch.finfo(shares.dtype).tiny)


def attend(queries: Tensor, keys: Tensor, key_mask: Tensor, temperature: float) -> Tensor:
    """Attention ``[B,N,M]`` of each query over the real keys of its own pair: ``softmax_m(q_n . k_m / temperature)``."""
    scores = queries @ keys.transpose(1, 2) / temperature
    return scores.masked_fill(~key_mask.unsqueeze(1), torch.finfo(scores.dtype).min).softmax(-1)


def token_loss(
    queries: Tensor, query_mask: Tensor, keys: Tensor, key_mask: Tensor, weights: Tensor, temperature: float
) -> Tensor:
    """Each token finds what it attended to among the other tokens of its own panel (MGCA, eq. 4-7).

    With ``x_n = unit(sum_m attend(q, k)_nm k_m)`` and logits ``l_nn' = q_n . x_n' / temperature``:
    ``mean_b sum_n w_n (CE(l_n., n) + CE(l_.n, n)) / 2``. Padding is in no soft-max, on neither axis.

    Args:
        queries: ``[B,N,E]`` unit vectors, zero at padding: words, or regions in the mirrored term.
        query_mask: ``[B,N]``, True at real tokens.
        keys: ``[B,M,E]`` unit vectors, zero at padding: of the other panel of the same pairs.
        key_mask: ``[B,M]``
        weights: ``[B,N]``, zero at padding.
        temperature: of the attention and of the logits; 0.1 in MGCA.
    """
    contexts = F.unit(attend(queries, keys, key_mask, temperature) @ keys)
    logits = queries @ contexts.transpose(1, 2) / temperature  # [B,N,N]
    lowest = torch.finfo(logits.dtype).min  # finite: a row without any real token is no NaN, and weighs nothing
    over_contexts = logits.masked_fill(~query_mask.unsqueeze(1), lowest).logsumexp(2)
    over_queries = logits.masked_fill(~query_mask.unsqueeze(2), lowest).logsumexp(1)
    losses = (over_contexts + over_queries) / 2 - logits.diagonal(dim1=1, dim2=2)  # [B,N]
    return (losses.masked_fill(~query_mask, 0.0) * weights).sum() / len(weights)


@torch.no_grad()
def assign(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Codes of the whole batch that use all prototypes alike (Sinkhorn-Knopp; SwAV, arXiv 2006.09882, sec. 3.1).

    From ``exp(scores / epsilon)``, by turns each prototype's sum over all pairs of all processes and each pair's sum over
    the prototypes are made equal; constant factors cancel.

    Args:
        scores: ``[...,B,K]`` cosines of this process's pairs and the prototypes.
        epsilon: the smaller, the harder the codes; 0.05 in MGCA.
        iterations: 3 in MGCA.

    Returns:
        ``[...,B,K]`` without gradient, each pair's code summing to 1.
    """
    codes = ((scores - 1) / epsilon).exp()  # at most 1
    for _ in range(iterations):
        codes = codes / distributed.sum_over_processes(codes.sum(-2, keepdim=True))
        codes = codes / codes.sum(-1, keepdim=True)
    return codes


def swapped_prediction(scores: Tensor, codes: Tensor, temperature: float) -> Tensor:
    """Each panel predicts the other's code (MGCA, eq. 8-10; SwAV).

    Args:
        scores: ``[2,B,K]`` cosines of images and of texts with the prototypes.
        codes: ``[2,B,K]`` of images and of texts.
        temperature: of the prediction; 0.2 in MGCA.
    """
    return -(codes.flip(0) * (scores / temperature).log_softmax(-1)).sum(-1).mean()


# The head ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AttendedEmbedding(TokenEmbedding):
    """A panel with its tokens and ``attention`` ``[B,N]``, by which the token term weighs them."""

    attention: Tensor


class MGCA(ScaledHead[AttendedEmbedding]):
    """Multi-granularity cross-modal alignment (MGCA, arXiv 2210.06044, NeurIPS 2022).

    Three terms. ``instance``: InfoNCE of whole images and whole reports, the two directions summed. ``token``: inside a
    pair, each word finds the regions that it attended to among those of the report's other words, and the mirrored term
    for regions; see :func:`token_loss`. Tokens weigh as much as their tower's class token attends to them, regions of a
    tower without one (a CNN) all alike. ``prototype``: clusters shared by both panels, where the image's predicts the
    report's and the reverse; see :func:`assign` and :func:`swapped_prediction`.

    Three things differ from the published code on purpose: padded words are in no denominator and in no batch statistics;
    the contexts of regions are L2-normalised whatever the image tower (there, only a CNN's); statistics, negatives and
    codes are the whole job's. Prototypes are normalised where they are used rather than rewritten after each step:
    the same function, of which the optimiser sees the gradient along the sphere. In the first epochs they stand still
    by a gradient of zero.

    Evaluation ranks by the cosine of the pooled vectors, as published.

    Args:
        dims: widths of the towers.
        width: of the shared space; 128 in MGCA.
        hidden: width of the projections' hidden layer; 2048 in MGCA.
        temperature: of the instance term, from 0.01; 0.07 in MGCA.
        learn_temperature: True learns it from there; MGCA keeps it fixed.
        token_temperature: of the token term's attention and logits, from 0.01; 0.1 in MGCA.
        low_quantile: attention below this quantile of a report's words (an image's regions) is raised to it; 0.1.
        high_quantile: attention above this quantile is lowered to it; 0.9.
        prototypes: how many there are; 500 in MGCA.
        prototype_temperature: of the predicted codes, from 0.01; 0.2 in MGCA.
        epsilon: of the Sinkhorn iterations, from 0.02; 0.05 in MGCA.
        sinkhorn_iterations: at least 1; 3 in MGCA.
        frozen_epochs: for how many epochs the prototypes stand still; 1 in MGCA.
        instance_weight: weight of the ``instance`` term.
        token_weight: weight of the ``token`` term.
        prototype_weight: weight of the ``prototype`` term.

    Raises:
        ConfigError: a value out of its range.
    """

    needs = frozenset({"text.attention"})
    wants = frozenset({"image.attention"})
    gathers = frozenset({"text.pooled"})
    paper: ClassVar[str] = "MGCA, arXiv 2210.06044"

    def __init__(
        self,
        dims: Dims,
        *,
        width: int = 128,
        hidden: int = 2048,
        temperature: float = 0.07,
        learn_temperature: bool = False,
        token_temperature: float = 0.1,
        low_quantile: float = 0.1,
        high_quantile: float = 0.9,
        prototypes: int = 500,
        prototype_temperature: float = 0.2,
        epsilon: float = 0.05,
        sinkhorn_iterations: int = 3,
        frozen_epochs: int = 1,
        instance_weight: float = 1.0,
        token_weight: float = 1.0,
        prototype_weight: float = 1.0,
    ) -> None:
        super().__init__()
        least = {
            "temperature": (temperature, 0.01),
            "token_temperature": (token_temperature, 0.01),
            "prototype_temperature": (prototype_temperature, 0.01),
            "epsilon": (epsilon, 0.02),  # exp(-2 / epsilon) must be above the smallest float32
            "prototypes": (prototypes, 2),
            "sinkhorn_iterations": (sinkhorn_iterations, 1),
            "frozen_epochs": (frozen_epochs, 0),
        }
        for name, (value, limit) in least.items():
            if value < limit:
                raise ConfigError(f"head mgca: {name} is {value}; give at least {limit}")
        if not 0 <= low_quantile <= high_quantile <= 1:
            raise ConfigError(
                f"head mgca: low_quantile is {low_quantile} and high_quantile {high_quantile}; give 0 to 1, in this order"
            )
        self.weights = {"instance": instance_weight, "token": token_weight, "prototype": prototype_weight}
        self.token_temperature = token_temperature
        self.quantiles = low_quantile, high_quantile
        self.prototype_temperature = prototype_temperature
        self.epsilon = epsilon
        self.sinkhorn_iterations = sinkhorn_iterations
        self.frozen_epochs = frozen_epochs
        self.epoch = 0
        self.scale = F.LogitScale(temperature, learn=learn_temperature)
        self.image_projection = _Projection(dims.image, hidden, width)
        self.text_projection = _Projection(dims.text, hidden, width)
        self.region_projection = _Projection(dims.image_tokens, hidden, width)
        self.word_projection = _Projection(dims.text_tokens, hidden, width)
        self.prototypes = nn.Parameter(F.unit(torch.randn(prototypes, width)))

    def start_step(self, epoch: int, step: int, total_steps: int) -> None:
        """Take the present epoch, which decides whether the prototypes move."""
        self.epoch = epoch

    def embed_image(self, image: Features) -> AttendedEmbedding:
        """``pooled`` ``[I,E]`` and ``tokens`` ``[I,N,E]``: regions, which all are real."""
        tokens = F.unit(self.region_projection(image.tokens))
        attention = image.attention
        if attention is None:
            attention = torch.ones_like(image.mask, dtype=tokens.dtype)
        return AttendedEmbedding(F.unit(self.image_projection(image.pooled)), tokens, image.mask, attention)

    def embed_text(self, text: Features) -> AttendedEmbedding:
        """``pooled`` ``[T,E]`` and ``tokens`` ``[T,N,E]``: words, zero at padding.

        Raises:
            ConfigError: the text tower was not asked for its attention.
        """
        if text.attention is None:
            raise ConfigError("head mgca: the text tower gives no attention; set its `attention` to True")
        tokens = F.unit(self.word_projection(text.tokens, text.mask), text.mask)
        return AttendedEmbedding(F.unit(self.text_projection(text.pooled)), tokens, text.mask, text.attention)

    def similarity(self, image: AttendedEmbedding, text: AttendedEmbedding) -> Tensor:
        """Cosines of the pooled vectors ``[I,T]``, -1 to 1."""
        return F.dot_products(image.pooled, text.pooled)

    def losses(self, here: Pairs[AttendedEmbedding], world: Pairs[AttendedEmbedding]) -> dict[str, Tensor]:
        """``instance`` over all ``B * W`` pairs, each scored once over the job; ``token`` and ``prototype`` over one's own."""
        logits = self.scale() * self.similarity(here.image, world.text)  # [B,B*W]
        prototypes = F.unit(self.prototypes)
        if self.epoch < self.frozen_epochs:
            prototypes = prototypes.detach() + 0 * prototypes  # no gradient at all would make DDP wait for one
        scores = torch.stack([F.dot_products(panel.pooled, prototypes) for panel in (here.image, here.text)])  # [2,B,K]
        codes = assign(scores, self.epsilon, self.sinkhorn_iterations)
        return {
            "instance": 2 * F.info_nce(distributed.gather(logits), world.hash),
            "token": self._token_term(here.image, here.text),
            "prototype": swapped_prediction(scores, codes, self.prototype_temperature),
        }

    def _token_term(self, image: AttendedEmbedding, text: AttendedEmbedding) -> Tensor:
        with torch.autocast(image.tokens.device.type, enabled=False):
            words = text.tokens, text.mask
            regions = image.tokens, image.mask
            word_weights = clipped_shares(text.attention, text.mask, *self.quantiles)
            region_weights = clipped_shares(image.attention, image.mask, *self.quantiles)
            region_weights = region_weights * text.mask.any(1, keepdim=True)  # an empty report tells no regions apart
            return token_loss(*words, *regions, word_weights, self.token_temperature) + token_loss(
                *regions, *words, region_weights, self.token_temperature
            )

    def heatmap(self, image: AttendedEmbedding, text: AttendedEmbedding) -> Tensor:
        """Attention ``[B,N_words,N_regions]`` of each word over its own image; a padded word's is zero."""
        with torch.autocast(image.tokens.device.type, enabled=False):
            attention = attend(text.tokens, image.tokens, image.mask, self.token_temperature)
        return attention.masked_fill(~text.mask.unsqueeze(-1), 0.0)


class _Projection(nn.Module):
    """Two layers, each with batch normalisation of the real rows over the whole job; the last one has no scale and shift.

    The linear layers have no bias: batch normalisation takes any constant off.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.inner = nn.Linear(inputs, hidden, bias=False)
        self.inner_norm = GlobalBatchNorm(hidden)
        self.outer = nn.Linear(hidden, outputs, bias=False)
        self.outer_norm = GlobalBatchNorm(outputs, affine=False)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """``[...,inputs]`` to ``[...,outputs]``; rows outside ``mask`` ``[...]`` enter no statistics."""
        y: Tensor = self.inner_norm(self.inner(x), mask).relu()
        normalised: Tensor = self.outer_norm(self.outer(y), mask)
        return normalised
