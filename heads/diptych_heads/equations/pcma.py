"""Equations of the head ``pcma``: observations of an image are matched with sentences of a report."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as nnf
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from diptych.errors import ConfigError
from diptych.nn.blockwise import block_bytes, on_cpu
from diptych.nn.functional import full, without_autocast
from diptych.types import Features

__all__ = [
    "MatchingKind",
    "MatchingRule",
    "block_scores",
    "intra_loss",
    "match_weights",
    "pair_scores",
    "sentence_slots",
]

MatchingKind = Literal["soft", "hungarian", "sinkhorn", "max"]
"""How a sentence finds its observations, as :func:`match_weights` defines it."""


GRIDS = 5
"""Grids as large as the cosines that a block keeps for backward, at most."""


class MatchingRule(NamedTuple):
    """How sentences find their observations: the arguments of :func:`match_weights`."""

    kind: MatchingKind = "soft"
    softness: float = 0.1
    """Temperature of ``soft``."""
    epsilon: float = 0.05
    """Entropy of ``sinkhorn``."""
    rounds: int = 5
    """Iterations of ``sinkhorn``."""


def sentence_slots(text: Features, least: int) -> tuple[Tensor, Tensor, Tensor]:
    """Which sentences of a report become T-PORs, its textual observations: those of at least ``least`` words.

    They are moved to the front. A report without such a sentence counts as one sentence. So "Pneumothorax." can be asked
    for.

    Args:
        text: features of ``B`` reports.
        least: fewest words of a sentence, at least 1.

    Returns:
        Three tensors. ``[B,N]`` is the slot of each word, -1 for none. ``[B,M]`` bool is True where a slot holds a sentence;
        ``M`` is the largest number possible. ``[B,M]`` int64 has the hashes of these sentences, -1 for none. A report
        that counts as one sentence has the sum of its hashes.
    """
    mask, words = text.mask, text.mask.shape[1]
    sentences = torch.zeros_like(mask, dtype=torch.int64) if text.sentences is None else text.sentences
    hashes = torch.full_like(sentences, -1) if text.sentence_hash is None else text.sentence_hash
    index = sentences.clamp(0, hashes.shape[1] - 1)
    counts = torch.zeros_like(hashes).scatter_add_(1, index, mask.long())
    long = counts >= least  # [B,sentences]
    short_only = ~long.any(1, keepdim=True)
    rank = long.cumsum(1) - 1
    slots = torch.where(long.gather(1, index) & mask, rank.gather(1, index), -1)
    slots = torch.where(short_only & mask, 0, slots)
    most = max(1, words // least)
    spare = torch.full(
        (mask.shape[0], most + 1), -1, dtype=torch.int64, device=mask.device
    )  # one column more, for dropped sentences
    slot_hashes = spare.scatter(1, torch.where(long, rank, most), hashes)[:, :most]
    whole = torch.where(hashes == -1, 0, hashes).mul(counts > 0).sum(1)  # wraps around
    whole = torch.where((hashes == -1).all(1), -1, whole)
    slot_hashes[:, 0] = torch.where(short_only.squeeze(1), whole, slot_hashes[:, 0])
    number = torch.where(short_only, mask.any(1, keepdim=True).long(), long.sum(1, keepdim=True))
    real = torch.arange(most, device=mask.device) < number
    return slots, real, slot_hashes.masked_fill(~real, -1)


def match_weights(s: Tensor, mask: Tensor, rule: MatchingRule) -> Tensor:
    """How much each sentence takes of each observation, from their cosines.

    * ``soft`` is ``softmax_k(s / softness)``.
    * ``max`` takes the best observation alone.
    * ``sinkhorn`` is optimal transport with entropy ``epsilon`` (Cuturi, NeurIPS 2013). All sentences give equal shares, and
      all observations get equal shares. Then each sentence's row is made to sum to 1.
    * ``hungarian`` gives one observation to one sentence, so that the total is largest. A sentence left over takes nothing.

    Gradients flow through ``soft`` only. The others are constants.

    >>> match_weights(torch.tensor([[0.1, 0.7]]), torch.tensor([True]), MatchingRule("max"))
    tensor([[0., 1.]])

    Args:
        s: ``[...,M,K]`` cosines.
        mask: ``[...,M]``, True at real sentences.
        rule: as above.

    Returns:
        ``[...,M,K]``. A real sentence's row sums to 1, or to 0 where it is left over. Values at padding mean nothing.
    """
    if rule.kind == "soft":
        return (s / rule.softness).softmax(-1)
    s = s.detach()
    if rule.kind == "max":
        return nnf.one_hot(s.argmax(-1), s.shape[-1]).to(s.dtype)
    if rule.kind == "hungarian":
        return _hungarian(s, mask)
    padded = ~mask.unsqueeze(-1)
    number = mask.sum(-1)[..., None, None].clamp_min(1)
    log_p = (s / rule.epsilon).masked_fill(padded, torch.finfo(s.dtype).min)  # finite: a report may have none
    for _ in range(rule.rounds):
        log_p = log_p - log_p.logsumexp(-2, keepdim=True) + (number / s.shape[-1]).log()
        log_p = (log_p - log_p.logsumexp(-1, keepdim=True)).masked_fill(padded, torch.finfo(s.dtype).min)
    return log_p.exp()


def _hungarian(s: Tensor, mask: Tensor) -> Tensor:
    if torch.compiler.is_exporting():
        raise ConfigError(
            "matching hungarian is solved by scipy, which a program cannot hold; train with soft, max or sinkhorn"
        )
    from scipy.optimize import linear_sum_assignment

    w = torch.zeros(s.shape, dtype=s.dtype)
    reals = mask.expand(s.shape[:-1]).reshape(-1, s.shape[-2]).cpu().numpy()
    for scores, real, chosen in zip(
        s.reshape(-1, *s.shape[-2:]).cpu().numpy(), reals, w.view(-1, *s.shape[-2:]), strict=True
    ):
        rows, columns = linear_sum_assignment(scores[real], maximize=True)
        chosen[torch.from_numpy(real.nonzero()[0][rows]), torch.from_numpy(columns)] = 1.0
    return w.to(s.device)


def block_scores(
    observations: Tensor,
    sentences: Tensor,
    mask: Tensor,
    counts: Tensor,
    rule: MatchingRule,
) -> Tensor:
    """``S`` of :func:`pair_scores` for one block. ``counts`` ``[I,c,M]`` is how much each sentence counts, 0 for not at all.

    A sentence's matching is ``t_m . z_m`` with ``z_m = unit(sum_k w_mk v_k)``. The vector ``z_m`` is never formed. With
    ``s_mk = t_m . v_k`` and the Gram matrix ``G = V V'`` the matching is ``w_m . s_m / sqrt(w_m' G w_m)``.
    """
    s = (observations.flatten(0, 1) @ sentences.flatten(0, 1).T).view(*observations.shape[:2], *sentences.shape[:2])
    s = s.permute(0, 2, 3, 1)  # [I,c,M,K]
    w = match_weights(s, mask, rule)
    gram = observations @ observations.transpose(1, 2)  # [I,K,K]
    square = ((w.flatten(1, 2) @ gram).view_as(w) * w).sum(-1)
    matched = (w * s).sum(-1) * square.clamp_min(1e-12).rsqrt()  # [I,c,M]
    return (matched * counts).sum(-1) / counts.sum(-1).clamp_min(1e-12)


def pair_scores(
    observations: Tensor,
    sentences: Tensor,
    mask: Tensor,
    *,
    weights: Tensor | None = None,
    own: Tensor | None = None,
    hashes: tuple[Tensor, Tensor] | None = None,
    rule: MatchingRule = MatchingRule(),  # noqa: B008  # it cannot change
    byte_budget: int = 2**30,
) -> tuple[Tensor, Tensor]:
    """Score every image with every report: the mean over the report's sentences of their matchings (PLACE, inferred).

    With ``weights`` the mean is weighted, ``S = sum_m g_m match_m / sum_m g_m`` over the sentences that count.

    A sentence of an image's own report is true of that image, whichever report it is read from. With ``hashes``, such a
    sentence does not count when the image is scored with another report. A pair without any sentence left should not be
    contrasted.

    Reports are taken in blocks. Blocks are kept for backward while ``byte_budget`` lasts. All others are recomputed.

    Args:
        observations: ``[I,K,E]`` unit vectors.
        sentences: ``[T,M,E]`` unit vectors, real ones first.
        mask: ``[T,M]``, True at real sentences.
        weights: ``[T,M]``, ``g``: how much each sentence counts, above 0 at real ones. Left out, all count alike.
        own: ``[I]``, the column of each image's own report. It is needed with ``hashes``.
        hashes: of the sentences of the images' own reports ``[I,M]``, and of those of all reports ``[T,M]``. -1 equals none.
        rule: how sentences find their observations.
        byte_budget: bytes of grids that may be kept for backward; 0 keeps none but a block.

    Returns:
        ``[I,T]`` scores from -1 to 1, and ``[I,T]`` bool, True where no sentence counts. A report without words scores 0.
    """
    with without_autocast(observations):
        v, t = full(observations), full(sentences)
        weights = torch.ones_like(t[..., 0]) if weights is None else full(weights)
        if torch.compiler.is_exporting() and hashes is None:  # the number of blocks would be fixed in the program
            real = mask.expand(v.shape[0], -1, -1)
            return block_scores(v, t, mask, real * weights, rule), torch.zeros_like(real[..., 0])
        if on_cpu(v):
            longest = max(1, int(mask.sum(1).max())) if len(mask) else 1
            t, mask, weights = t[:, :longest], mask[:, :longest], weights[:, :longest]
            hashes = None if hashes is None else (hashes[0], hashes[1][:, :longest])
        column = v.shape[0] * v.shape[1] * t.shape[1] * v.element_size()  # bytes of one report's cosines
        step = max(1, block_bytes(v, byte_budget) // column)
        scores, blank = [], []
        for start in range(0, len(t), step):
            part = slice(start, start + step)
            real = mask[part]
            counted = real.expand(len(v), -1, -1)
            if hashes is not None and own is not None:
                shared = hashes[0][:, None, :, None] == hashes[1][None, part, None, :]
                shared = (shared & (hashes[0] != -1)[:, None, :, None]).any(2)  # [I,c,M]
                mine = own.unsqueeze(1) == torch.arange(start, start + len(real), device=own.device)
                counted = real & (~shared | mine.unsqueeze(-1))
            blank.append(~counted.any(-1) & real.any(-1))
            byte_budget -= GRIDS * column * len(real)
            arguments = v, t[part], real, counted * weights[part], rule
            if byte_budget >= 0 or not torch.is_grad_enabled():
                scores.append(block_scores(*arguments))
            else:
                scores.append(checkpoint(block_scores, *arguments, use_reentrant=False, preserve_rng_state=False))
        return torch.cat(scores, 1), torch.cat(blank, 1)


def intra_loss(sentences: Tensor, contexts: Tensor, mask: Tensor, hash: Tensor, scale: Tensor) -> Tensor:
    """InfoNCE inside each report, between its sentences and what they matched (inferred).

    The loss is ``mean_b mean_m -log(exp l_mm / sum_n exp l_mn)`` with ``l_mn = scale * t_m . z_n``. Equal sentences are not
    negatives of each other. All reports have the same weight, so the mean over processes is that of the whole batch.

    Args:
        sentences: ``[B,M,E]``, ``t``.
        contexts: ``[B,M,E]``, ``z``: unit vectors of the report's own image.
        mask: ``[B,M]``, True at real sentences.
        hash: ``[B,M]``; -1 equals none.
        scale: scalar.
    """
    logits = scale * (sentences @ contexts.transpose(1, 2))
    own = torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
    same = (hash.unsqueeze(2) == hash.unsqueeze(1)) & (hash != -1).unsqueeze(1)
    logits = logits.masked_fill((same | ~mask.unsqueeze(1)) & ~own, -math.inf)
    loss = logits.logsumexp(2) - logits.diagonal(dim1=1, dim2=2)
    return ((loss * mask).sum(1) / mask.sum(1).clamp_min(1)).mean()
