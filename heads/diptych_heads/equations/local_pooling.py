"""Words attend to regions, and their matchings are pooled to a score."""

from __future__ import annotations

import math
from typing import Any, Literal, cast

import torch
import torch.nn.functional as nnf
from torch import Tensor
from torch.autograd.function import once_differentiable

from diptych.nn.blockwise import block_bytes, column_blocks
from diptych.nn.functional import full, without_autocast
from diptych_heads.equations.attention import Attention, attention_logits

__all__ = ["Pooling", "local_scores"]

Pooling = Literal["logsumexp", "mean", "max", "logmeanexp", "best_word"]
"""How the matchings of a pair become one score, as :func:`local_scores` defines it."""


def local_scores(
    regions: Tensor,
    words: Tensor,
    mask: Tensor,
    *,
    pooling: Pooling = "logsumexp",
    attention: Attention = "unit",
    region_scale: float = 4.0,
    word_scale: float = 5.0,
    byte_budget: int = 2**30,
) -> Tensor:
    """Score every image with every report by the matchings of words and regions (GLoRIA, ICCV 2021, eq. 3-8).

    The matching ``m_w`` of a word with an image comes of five equations:

    1. ``s_rw = v_r . t_w``.
    2. ``p_rw`` are the logits that the form of attention makes of ``s_rw``. For ``unit``: the soft-max over the real words.
    3. ``a_wr`` is the soft-max of ``region_scale * p_rw`` over the regions.
    4. ``x_w = sum_r a_wr v_r`` is the word's context.
    5. ``m_w = cos(x_w, t_w)``.

    The real words' matchings are pooled in one of five ways:

    * ``logsumexp`` (GLoRIA): ``1/k log sum_w exp(k m_w)`` with ``k = word_scale``. The published logit is ``10 k`` times it.
    * ``logmeanexp``: the same less ``1/k log N``, so that the number ``N`` of words does not count.
    * ``mean``: ``mean_w m_w``.
    * ``best_word`` (GLoRIA's zero-shot score): ``max_w m_w``.
    * ``max`` (FILIP, arXiv 2111.07783, eq. 4-5): half ``mean_w max_r s_rw``, half ``mean_r max_w s_rw``. It needs no context.

    The context ``x_w`` is never formed, whatever the attention. The Gram matrix ``G = V V'`` gives
    ``x_w . t_w = sum_r a_wr s_rw`` and ``|x_w|^2 = a_w' G a_w``. The denominator of ``a`` cancels in the cosine.

    Reports are taken in blocks, the longest first. On a CPU a block is cut to its longest report. On a GPU the padding is
    computed, for reading the lengths would stop it in every step. Blocks are kept for backward while ``byte_budget`` lasts.
    All others are recomputed in backward. Without gradients nothing is kept, and the grid is worked through in tiles.

    Args:
        regions: ``[I,R,E]``, unit vectors except for ``raw``.
        words: ``[T,N,E]``, unit vectors except for ``raw``. Where the attention has a temperature, they are divided by it.
        mask: ``[T,N]``, True at real words.
        pooling: how matchings become a score, as above.
        attention: the form of the attention.
        region_scale: factor on the logits of the attention, in (0, 20]; 4 in GLoRIA. 1 for ``softmax``.
        word_scale: sharpness of ``logsumexp``; 5 in GLoRIA.
        byte_budget: bytes of grids that may be kept for backward. 0 keeps none. Working memory is about six blocks more. A
            block has 2 to 8 MiB on a CPU, and up to 128 MiB on a GPU.

    Returns:
        ``[I,T]``, at least float32. A report without words has 0.

    >>> region = torch.tensor([[[1.0, 0.0]]])
    >>> local_scores(region, torch.tensor([[[0.6, 0.8]]]), torch.tensor([[True]]), pooling="mean")
    tensor([[0.6000]])
    """

    def scores(regions: Tensor, words: Tensor, mask: Tensor) -> Tensor:
        if pooling == "max":
            return _max_scores(regions, words, mask, byte_budget)
        m = _matchings(regions, words, mask, attention, region_scale, byte_budget)
        return _pool(m, mask, pooling, word_scale)

    with without_autocast(regions):
        regions, words = full(regions), full(words)
        if torch.compiler.is_exporting():  # the number of blocks would be fixed in the program
            return _whole_grid(regions, words, mask, pooling, attention, region_scale, word_scale)
        if torch.is_grad_enabled():
            return scores(regions, words, mask)
        tiles = list(zip(torch.split(words, 256), torch.split(mask, 256), strict=True))
        return torch.cat([torch.cat([scores(v, t, real) for t, real in tiles], 1) for v in torch.split(regions, 256)])


def _whole_grid(
    regions: Tensor,
    words: Tensor,
    mask: Tensor,
    pooling: Pooling,
    attention: Attention,
    region_scale: float,
    word_scale: float,
) -> Tensor:
    """:func:`local_scores` as it is written there, without blocks: for programs that are exported."""
    s = torch.einsum("ire,tne->irtn", regions, words)
    if pooling == "max":
        best_region = s.amax(1).mul(mask).sum(-1) / mask.sum(-1).clamp_min(1)
        best_word = s.masked_fill(~mask, -2.0).amax(-1).mean(1)  # below any cosine, and finite
        return ((best_region + best_word) / 2).masked_fill(~mask.any(-1), 0.0)
    a = (region_scale * attention_logits(s, mask, attention)).softmax(1)
    context = torch.einsum("irtn,ire->itne", a, regions)
    length = torch.linalg.vector_norm(context, dim=-1) * torch.linalg.vector_norm(words, dim=-1)
    return _pool((a * s).sum(1) / length.clamp_min(1e-8), mask, pooling, word_scale)


def _pool(m: Tensor, mask: Tensor, pooling: Pooling, word_scale: float) -> Tensor:
    """Pool matchings ``[I,T,N]`` to ``[I,T]``. An empty report has 0."""
    number = mask.sum(-1).clamp_min(1)
    if pooling == "mean":
        return (m * mask).sum(-1) / number
    empty = ~mask.any(-1)
    unread = ~(mask | empty.unsqueeze(-1))  # an empty report is read as a whole, or its gradient would be NaN
    m = m.masked_fill(unread, -math.inf)
    if pooling == "best_word":
        return m.amax(-1).masked_fill(empty, 0.0)
    scores = (word_scale * m).logsumexp(-1) / word_scale
    if pooling == "logmeanexp":
        scores = scores - number.to(m.dtype).log() / word_scale
    return scores.masked_fill(empty, 0.0)


def _products(regions: Tensor, words: Tensor) -> Tensor:
    """``s`` ``[I,R,T,N]`` from ``[I,R,E]`` and ``[T,N,E]``."""
    return (regions.flatten(0, 1) @ words.flatten(0, 1).T).view(*regions.shape[:2], *words.shape[:2])


def _matchings(
    regions: Tensor, words: Tensor, mask: Tensor, form: Attention, region_scale: float, byte_budget: int
) -> Tensor:
    """``m`` ``[I,T,N]`` of :func:`local_scores`. Values at padded words mean nothing: the pooling leaves them out."""
    keep = torch.is_grad_enabled() and (regions.requires_grad or words.requires_grad)
    dot_over_length = cast(Tensor, _Matchings.apply(regions, words, mask, form, region_scale, byte_budget, keep))
    length: Tensor = torch.linalg.vector_norm(words, dim=-1)
    return dot_over_length / length.clamp_min(1e-8)


class _Matchings(torch.autograd.Function):
    """``dot(x_w, t_w) / |x_w|`` by tiles of images and reports, with its backward written out.

    ``u = exp(region_scale * p)`` is the attention before its denominator, of whatever form. The value is
    ``u . s / sqrt(u' G u)``. A tile keeps ``s`` and ``G u``, which take matrix products, or nothing.
    """

    @staticmethod
    def forward(
        ctx: Any,
        regions: Tensor,
        words: Tensor,
        mask: Tensor,
        form: Attention,
        region_scale: float,
        byte_budget: int,
        keep: bool,
    ) -> Tensor:
        images, n_regions, _ = regions.shape
        texts, longest = mask.shape
        block = block_bytes(regions, byte_budget)
        item = n_regions * regions.element_size()
        # Images in a tile: neither one column of it nor its Gram matrices exceed a block.
        step = max(1, block // (item * max(1, longest, n_regions)))
        blocks = list(column_blocks(mask, min(step, images) * item, block))
        m = regions.new_zeros(images, texts, longest)
        squares = torch.ones_like(m)  # u' G u
        # For regions that cancel or are zero: a context of length 1e-4, given the smallest sum of u.
        smallest = {"unit": n_regions, "raw": n_regions, "softmax": 1.0, "scan": n_regions * math.exp(-region_scale)}
        floor = 1e-8 * smallest[form] ** 2
        grids: list[Tensor | None] = []
        for start in range(0, images, step):
            rows = slice(start, start + step)
            gram = regions[rows] @ regions[rows].transpose(1, 2)
            for columns, width in blocks:
                s = _products(regions[rows], words[columns, :width])
                _, u = _attend(s, mask[columns, :width], form, region_scale)
                gram_u = gram @ u
                square = (u * gram_u).sum(1).clamp_min_(floor)  # [I,c*w]
                dot = (u * s.flatten(2)).sum(1)
                m[rows, columns, :width] = (dot * square.rsqrt()).view(len(s), -1, width)
                squares[rows, columns, :width] = square.view(len(s), -1, width)
                byte_budget -= 2 * s.nbytes
                grids += [s, gram_u] if keep and byte_budget >= 0 else [None, None]
        ctx.save_for_backward(regions, words, mask, m, squares, *grids)
        ctx.plan = form, region_scale, step, blocks, floor
        return m

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_m: Tensor) -> tuple[Tensor | None, ...]:
        regions, words, mask, m, squares, *grids = ctx.saved_tensors
        form, scale, step, blocks, floor = ctx.plan
        stored = iter(grids)
        grad_regions, grad_words = regions.new_zeros(regions.shape), words.new_zeros(words.shape)  # contiguous
        with without_autocast(regions):
            grad_dots = grad_m * squares.rsqrt()
            grad_squares = -0.5 * grad_m * m / squares * (squares > floor)
            for start in range(0, len(regions), step):
                rows = slice(start, start + step)
                v = regions[rows]
                gram = v @ v.transpose(1, 2)
                grad_gram = torch.zeros_like(gram)
                for columns, width in blocks:
                    t = words[columns, :width]
                    s, gram_u = next(stored), next(stored)
                    s = _products(v, t) if s is None else s
                    q, u = _attend(s, mask[columns, :width], form, scale)
                    gram_u = gram @ u if gram_u is None else gram_u
                    grad_dot = grad_dots[rows, columns, :width].flatten(1).unsqueeze(1)  # [I,1,c*w]
                    grad_square = grad_squares[rows, columns, :width].flatten(1).unsqueeze(1)
                    grad_gram.baddbmm_(u * grad_square, u.transpose(1, 2))
                    grad_u = (gram_u * (2 * grad_square)).addcmul_(s.flatten(2), grad_dot)
                    grad_q = grad_u.mul_(u).view_as(s)
                    grad_s = u.mul_(grad_dot).view_as(s)
                    _add_through_logits(grad_s, grad_q, s, q, mask[columns, :width], form, scale)
                    flat = grad_s.flatten(2).flatten(0, 1)  # [I*R,c*w]
                    grad_regions[rows].flatten(0, 1).addmm_(flat, t.flatten(0, 1))
                    grad_words[columns, :width] += (flat.T @ v.flatten(0, 1)).view_as(t)
                grad_regions[rows].baddbmm_(grad_gram, v, alpha=2)  # grad_gram is symmetric
        return grad_regions, grad_words, None, None, None, None, None


def _attend(s: Tensor, mask: Tensor, form: Attention, region_scale: float) -> tuple[Tensor, Tensor]:
    """From ``s`` ``[I,R,c,w]``: ``q = region_scale * p`` ``[I,R,c,w]`` and ``u = exp(q)`` ``[I,R,c*w]``."""
    if form == "softmax":
        u = (s - s.amax(1, keepdim=True)).mul_(region_scale).exp_()
        return s, u.flatten(2)  # the backward needs no q
    if form == "scan":
        q = nnf.leaky_relu(s, 0.1).mul_(mask)
        q *= region_scale / torch.linalg.vector_norm(q, dim=-1, keepdim=True).clamp_min_(1e-12)
        return q, q.exp().flatten(2)
    if form == "raw":
        q = s.masked_fill(~mask, torch.finfo(s.dtype).min)
        q = q.sub_(q.amax(-1, keepdim=True)).exp_()
    else:
        q = s.exp().mul_(mask)  # |s| <= 1: nothing to subtract
    q /= q.sum(-1, keepdim=True).div_(region_scale).clamp_min_(1e-30)
    return q, q.exp().flatten(2)


def _add_through_logits(
    grad_s: Tensor, grad_q: Tensor, s: Tensor, q: Tensor, mask: Tensor, form: Attention, region_scale: float
) -> None:
    """Add to ``grad_s`` the gradient that reaches ``s`` through ``q`` of :func:`_attend`. It overwrites ``grad_q``."""
    if form == "softmax":  # what is subtracted changes no score
        grad_s.add_(grad_q, alpha=region_scale)
    elif form == "scan":
        activated = nnf.leaky_relu(s, 0.1).mul_(mask)
        length = torch.linalg.vector_norm(activated, dim=-1, keepdim=True).clamp_min_(1e-12)
        along = (grad_q * q).sum(-1, keepdim=True).div_(-(region_scale**2))
        grad_q.addcmul_(q, along).mul_(region_scale / length).mul_(mask)
        grad_s.add_(torch.where(s > 0, grad_q, 0.1 * grad_q))
    else:  # the soft-max q / region_scale, whose backward takes sum_w q grad_q off
        through = grad_q.mul_(q)
        grad_s.add_(through).addcmul_(q, through.sum(-1, keepdim=True).div_(-region_scale))


def _max_scores(regions: Tensor, words: Tensor, mask: Tensor, byte_budget: int) -> Tensor:
    """FILIP's score by blocks of reports. For backward it keeps the places of the maxima, not the grid."""
    bytes_a_word = regions.shape[0] * regions.shape[1] * regions.element_size()
    blocks = list(column_blocks(mask, bytes_a_word, block_bytes(regions, byte_budget)))
    scores = regions.new_zeros(len(regions), len(words))
    for columns, width in blocks:
        real = mask[columns, :width]
        s = _products(regions, words[columns, :width])
        best_region = s.max(1).values.mul(real).sum(-1) / real.sum(-1).clamp_min(1)
        best_word = s.masked_fill(~real, -2.0).max(-1).values.mean(1)  # below any cosine, and finite
        block = ((best_region + best_word) / 2).masked_fill(~real.any(-1), 0.0)
        scores = scores.index_copy(1, _index(columns, scores), block)
    return scores


def _index(columns: Tensor | slice, scores: Tensor) -> Tensor:
    if isinstance(columns, Tensor):
        return columns
    return torch.arange(*columns.indices(scores.shape[1]), device=scores.device)
