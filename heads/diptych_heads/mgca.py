"""``mgca``: reports, words and prototypes - one alignment at each of three granularities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from diptych import distributed
from diptych.checks import check_number
from diptych.errors import ConfigError
from diptych.head import ScaledHead
from diptych.nn import functional as F
from diptych.nn.norm import GlobalBatchNorm
from diptych.types import Dims, Features, Pairs, TokenEmbedding
from diptych_heads.equations.attention import word_cosines

__all__ = ["MGCA", "AttendedEmbedding", "assign", "clipped_shares", "swapped_prediction", "token_loss"]


# Equations -----------------------------------------------------------------------------------------------------------


def clipped_shares(attention: Tensor, mask: Tensor, low: float, high: float) -> Tensor:
    """Weights of tokens: attention clipped to two of its quantiles, and made to sum to 1.

    The quantiles are over the real tokens of one report, or of one image.

    >>> clipped_shares(torch.tensor([[0.0, 1.0, 3.0]]), torch.ones(1, 3, dtype=torch.bool), 0.0, 0.5)
    tensor([[0.0000, 0.5000, 0.5000]])

    Args:
        attention: ``[B,N]``, 0 or more.
        mask: ``[B,N]``, True at real tokens.
        low: the lower quantile, 0 to 1; 0.1 in MGCA. It is interpolated between two values.
        high: the upper quantile; 0.9 in MGCA.

    Returns:
        ``[B,N]``, zero at padding. A row without real tokens is all zeros.
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
    """InfoNCE inside each pair: between the tokens of one panel and their contexts in the other (MGCA, eq. 4-7).

    The context of token ``n`` is the mean of the keys that it attends to, ``x_n = unit(sum_m attend(q, k)_nm k_m)``. The
    token and its own context are a positive. The contexts of the pair's other tokens are its negatives. With logits
    ``l_nn' = q_n . x_n' / temperature`` the loss is ``mean_b sum_n w_n (CE(l_n., n) + CE(l_.n, n)) / 2``. Padding is in no
    soft-max.

    Args:
        queries: ``[B,N,E]`` unit vectors, zero at padding. They are words, or regions in the mirrored term.
        query_mask: ``[B,N]``, True at real tokens.
        keys: ``[B,M,E]`` unit vectors of the pairs' other panel, zero at padding.
        key_mask: ``[B,M]``
        weights: ``[B,N]``, zero at padding.
        temperature: of the attention and of the logits; 0.1 in MGCA.
    """
    contexts = F.unit(attend(queries, keys, key_mask, temperature) @ keys)
    logits = queries @ contexts.transpose(1, 2) / temperature  # [B,N,N]
    lowest = torch.finfo(logits.dtype).min  # finite, so that a row without real tokens is no NaN
    over_contexts = logits.masked_fill(~query_mask.unsqueeze(1), lowest).logsumexp(2)
    over_queries = logits.masked_fill(~query_mask.unsqueeze(2), lowest).logsumexp(1)
    losses = (over_contexts + over_queries) / 2 - logits.diagonal(dim1=1, dim2=2)  # [B,N]
    return (losses.masked_fill(~query_mask, 0.0) * weights).sum() / len(weights)


@torch.no_grad()
def assign(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Soft assignments of pairs to prototypes, called codes (Sinkhorn-Knopp; SwAV, arXiv 2006.09882, sec. 3.1).

    Over the whole batch, all prototypes are used equally. The codes start as ``exp(scores / epsilon)``. Each iteration
    normalises twice. First each prototype's sum over the pairs of all processes is made equal. Then each pair's sum over
    the prototypes is made 1.

    >>> assign(torch.tensor([[0.9, 0.1], [0.8, 0.1]]), epsilon=0.5, iterations=50)  # both pairs prefer the first prototype
    tensor([[0.5250, 0.4750],
            [0.4750, 0.5250]])

    Args:
        scores: ``[...,B,K]`` cosines of this process's pairs and the prototypes.
        epsilon: the smaller it is, the harder the codes; 0.05 in MGCA.
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
    """Cross-entropy of each panel's prediction with the other panel's code (MGCA, eq. 8-10; SwAV).

    Args:
        scores: ``[2,B,K]`` cosines of images and of texts with the prototypes.
        codes: ``[2,B,K]`` of images and of texts.
        temperature: of the prediction; 0.2 in MGCA.
    """
    return -(codes.flip(0) * (scores / temperature).log_softmax(-1)).sum(-1).mean()


# The head ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AttendedEmbedding(TokenEmbedding):
    """A panel with its tokens, and with ``attention`` ``[B,N]``: the token term's weights come from it."""

    attention: Tensor


class MGCA(ScaledHead[AttendedEmbedding]):
    """Multi-granularity cross-modal alignment (MGCA, arXiv 2210.06044, NeurIPS 2022).

    The head has three terms:

    * ``instance`` is InfoNCE of whole images and whole reports. Both directions are summed.
    * ``token`` is InfoNCE inside a pair (:func:`token_loss`). Each word is contrasted with the contexts of its report's
      words. A context is what a word attends to in the image. The mirrored term does the same for regions. A token's weight
      is the attention that its tower's class token pays to it. Regions of a tower without class token (a CNN) weigh alike.
    * ``prototype`` clusters both panels by the same prototypes. Each image predicts the cluster of its report, and each
      report that of its image (:func:`assign`, :func:`swapped_prediction`).

    Evaluation ranks by the cosine of the pooled vectors, as published.

    Three things differ from the published code on purpose. Padded words are in no denominator and in no batch statistics.
    The contexts of regions are always L2-normalised; there, only those of a CNN are. Statistics, negatives and codes are
    those of the whole job, not of one GPU.

    Prototypes are normalised where they are used. The published code rewrites them after each step instead. The function
    is the same, and the optimiser sees the gradient along the sphere. In the first epochs their gradient is zero.

    Args:
        dims: widths of the towers.
        width: of the shared space; 128 in MGCA.
        hidden: width of the projections' hidden layer; 2048 in MGCA.
        temperature: of the instance term, from 0.01; 0.07 in MGCA.
        learn_temperature: True learns it from there; MGCA keeps it fixed.
        token_temperature: of the token term's attention and logits, from 0.01; 0.1 in MGCA.
        low_quantile: attention below this quantile of the report's words, or of the image's regions, is raised to it; 0.1
            in MGCA.
        high_quantile: attention above this quantile is lowered to it; 0.9 in MGCA.
        prototypes: how many there are; 500 in MGCA.
        prototype_temperature: of the predicted codes, from 0.01; 0.2 in MGCA.
        epsilon: of the Sinkhorn iterations, from 0.02; 0.05 in MGCA.
        sinkhorn_iterations: at least 1; 3 in MGCA.
        frozen_epochs: number of first epochs in which the prototypes do not change; 1 in MGCA.
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
        check_number("head mgca: temperature", temperature, least=0.01)
        check_number("head mgca: token_temperature", token_temperature, least=0.01)
        check_number("head mgca: prototype_temperature", prototype_temperature, least=0.01)
        check_number("head mgca: epsilon", epsilon, least=0.02)  # exp(-2 / epsilon) must be above the smallest float32
        check_number("head mgca: prototypes", prototypes, least=2, whole=True)
        check_number("head mgca: sinkhorn_iterations", sinkhorn_iterations, least=1, whole=True)
        check_number("head mgca: frozen_epochs", frozen_epochs, least=0, whole=True)
        check_number("head mgca: low_quantile", low_quantile, least=0, most=1)
        check_number("head mgca: high_quantile", high_quantile, least=low_quantile, most=1)
        self.weights = {"instance": instance_weight, "token": token_weight, "prototype": prototype_weight}
        self.token_temperature = token_temperature
        self.quantiles = low_quantile, high_quantile
        self.prototype_temperature = prototype_temperature
        self.epsilon = epsilon
        self.sinkhorn_iterations = sinkhorn_iterations
        self.frozen_epochs = frozen_epochs
        self.epoch = 0
        self.frozen = frozen_epochs > 0
        self.scale = F.LogitScale(temperature, learn=learn_temperature)
        self.image_projection = _Projection(dims.image, hidden, width)
        self.text_projection = _Projection(dims.text, hidden, width)
        self.region_projection = _Projection(dims.image_tokens, hidden, width)
        self.word_projection = _Projection(dims.text_tokens, hidden, width)
        self.prototypes = nn.Parameter(F.unit(torch.randn(prototypes, width)))

    def start_step(self, epoch: int, step: int, total_steps: int) -> None:
        """Take the present epoch, which decides whether the prototypes move."""
        self.epoch = epoch
        self.frozen = epoch < self.frozen_epochs  # compiled code is made anew when this changes, not in every epoch

    def embed_image(self, image: Features) -> AttendedEmbedding:
        """``pooled`` ``[I,E]`` and ``tokens`` ``[I,N,E]``: regions, all of which are real."""
        tokens = F.unit(self.region_projection(image.tokens))
        attention = image.attention
        if attention is None:
            attention = torch.ones_like(image.mask, dtype=tokens.dtype)
        return AttendedEmbedding(F.unit(self.image_projection(image.pooled)), tokens, image.mask, attention)

    def embed_text(self, text: Features) -> AttendedEmbedding:
        """``pooled`` ``[T,E]`` and ``tokens`` ``[T,N,E]``: words. A padded word is zero.

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
        """``instance`` over all ``B * W`` pairs, each scored once over the job. The others are over this process's pairs."""
        logits = self.scale() * self.similarity(here.image, world.text)  # [B,B*W]
        prototypes = F.unit(self.prototypes)
        if self.frozen:
            prototypes = prototypes.detach() + 0 * prototypes  # no gradient at all would make DDP wait for one
        scores = torch.stack([F.dot_products(panel.pooled, prototypes) for panel in (here.image, here.text)])  # [2,B,K]
        codes = assign(scores, self.epsilon, self.sinkhorn_iterations)
        return {
            "instance": 2 * F.info_nce(distributed.gather(logits), world.hash),
            "token": self._token_term(here.image, here.text),
            "prototype": swapped_prediction(scores, codes, self.prototype_temperature),
        }

    def _token_term(self, image: AttendedEmbedding, text: AttendedEmbedding) -> Tensor:
        with F.without_autocast(image.tokens):
            words = text.tokens, text.mask
            regions = image.tokens, image.mask
            word_weights = clipped_shares(text.attention, text.mask, *self.quantiles)
            region_weights = clipped_shares(image.attention, image.mask, *self.quantiles)
            region_weights = region_weights * text.mask.any(1, keepdim=True)  # an empty report tells no regions apart
            return token_loss(*words, *regions, word_weights, self.token_temperature) + token_loss(
                *regions, *words, region_weights, self.token_temperature
            )

    def heatmap(self, image: AttendedEmbedding, text: AttendedEmbedding) -> Tensor:
        """Attention ``[B,N_words,N_regions]`` of each word over its own image. A padded word's is zero."""
        with F.without_autocast(image.tokens):
            attention = attend(text.tokens, image.tokens, image.mask, self.token_temperature)
        return attention.masked_fill(~text.mask.unsqueeze(-1), 0.0)

    def cosines(self, image: AttendedEmbedding, text: AttendedEmbedding) -> Tensor:
        """Cosine ``[B,N_words,N_regions]`` of each word with the regions of its own image. A padded word's is zero."""
        return word_cosines(image.tokens, text.tokens, text.mask)


class _Projection(nn.Module):
    """Two linear layers, each with batch normalisation over the real rows of the whole job.

    The last normalisation has no scale and no shift. The linear layers have no bias, for the normalisation would remove it.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.inner = nn.Linear(inputs, hidden, bias=False)
        self.inner_norm = GlobalBatchNorm(hidden)
        self.outer = nn.Linear(hidden, outputs, bias=False)
        self.outer_norm = GlobalBatchNorm(outputs, affine=False)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """``[...,inputs]`` to ``[...,outputs]``. Rows outside ``mask`` ``[...]`` enter no statistics."""
        y: Tensor = self.inner_norm(self.inner(x), mask).relu()
        normalised: Tensor = self.outer_norm(self.outer(y), mask)
        return normalised
