"""The costly parts of ``reclf`` with their backward written out, in few passes over the wide values.

That their values and gradients are right is tested with the head, against a twin that leaves them to autograd.
"""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

__all__ = ["Attention", "attention_logits", "compare", "pool", "reason", "unit_nodes"]

Attention = Literal["gloria", "scan"]
"""How words attend to regions; see :func:`attention_logits`."""


def attention_logits(s: Tensor, mask: Tensor, form: Attention) -> Tensor:
    """Logits of a word's attention over the regions, to be multiplied by its sharpness.

    ``gloria`` (ICCV 2021, eq. 3-4): the soft-max of ``s`` over the real words. ``scan`` (SCAN, ECCV 2018, eq. 1-2):
    ``leaky_relu(s, 0.1)``, of length 1 over the real words.

    Args:
        s: ``[I,R,T,N]`` cosines of regions and words.
        mask: True at real words, ``[T,N]`` or what else broadcasts with ``s``.
        form: as above.
    """
    if form == "gloria":  # a finite mask: a report without words gives finite numbers, which nobody reads
        return s.masked_fill(~mask, torch.finfo(s.dtype).min).softmax(-1)
    s = nn.functional.leaky_relu(s, 0.1).masked_fill(~mask, 0.0)
    return nn.functional.normalize(s, dim=-1)


class _Compare(torch.autograd.Function):
    """``(x - t)^2`` or ``x * t`` with the context ``x = unit(sum_r exp(scale p_r) v_r)``, in few passes over its width.

    ``p`` ``[I,R,T*N]``, regions ``[I,R,E]`` and words ``[T*N,E]`` give ``[I,T*N,E]``. One such value is kept, beside ``p``.
    """

    @staticmethod
    def forward(ctx: Any, p: Tensor, scale: float, regions: Tensor, words: Tensor, product: bool) -> Tensor:
        x = (scale * p).exp_().transpose(1, 2) @ regions
        inverse = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(1e-8).reciprocal()
        x = x.mul_(inverse)
        held = x if product else x.sub_(words)
        ctx.save_for_backward(p, regions, words, held, inverse)
        ctx.scale, ctx.product = scale, product
        return held * words if product else held * held

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        p, regions, words, held, inverse = ctx.saved_tensors
        if ctx.product:
            x, grad_words = held, (held * grad).sum(0)
            grad_x = grad * words
        else:
            x, grad_x = held + words, grad * held
            grad_words = -2 * grad_x.sum(0)
            inverse = 2 * inverse
        along = torch.linalg.vecdot(x, grad_x).unsqueeze(-1)  # what would change the length of x, which is fixed
        grad_x = grad_x.addcmul_(x, along, value=-1).mul_(inverse)
        u = (ctx.scale * p).exp_()
        grad_regions = u @ grad_x
        return (regions @ grad_x.transpose(1, 2)).mul_(u).mul_(ctx.scale), None, grad_regions, grad_words, None


class _Reason(torch.autograd.Function):
    """``relu(soft-max(q M q' + c q') (q G + b))`` over the nodes of each pair; see the steps of ``reclf``.

    Nodes ``[P,n,m]``, ``M`` and ``G`` ``[m,m]``, ``c`` and ``b`` ``[m]``, and what is added to the soft-max's argument for
    each node that is looked at, ``[P,1,n]``.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, fused: Tensor, c: Tensor, graph: Tensor, b: Tensor, shut: Tensor) -> Tensor:
        flat = q.flatten(0, 1)
        asked = torch.addmm(c, flat, fused).view_as(q)
        message = torch.addmm(b, flat, graph).view_as(q)  # b before the edges, whose rows sum to 1
        edges = torch.baddbmm(shut, asked, q.transpose(1, 2)).softmax(-1)
        out = torch.bmm(edges, message).relu_()
        ctx.save_for_backward(q, fused, graph, asked, message, edges, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, fused, graph, asked, message, edges, out = ctx.saved_tensors
        flat = q.flatten(0, 1)
        grad = torch.ops.aten.threshold_backward(grad, out, 0)
        grad_edges = torch.bmm(grad, message.transpose(1, 2))
        grad_logits = torch.ops.aten._softmax_backward_data(grad_edges, edges, -1, edges.dtype)
        grad_message = torch.bmm(edges.transpose(1, 2), grad).flatten(0, 1)
        grad_asked = torch.bmm(grad_logits, q).flatten(0, 1)
        grad_q = torch.bmm(grad_logits.transpose(1, 2), asked).flatten(0, 1)
        grad_q = grad_q.addmm_(grad_message, graph.T).addmm_(grad_asked, fused.T).view_as(q)
        return grad_q, flat.T @ grad_asked, grad_asked.sum(0), flat.T @ grad_message, grad_message.sum(0), None


class _Unit(torch.autograd.Function):
    """L2-normalise over the last axis; a third of the passes of ``torch.nn.functional.normalize``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        inverse: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(1e-12).reciprocal()
        y = x * inverse
        ctx.save_for_backward(y, inverse)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        y, inverse = ctx.saved_tensors
        along: Tensor = torch.linalg.vecdot(y, grad).unsqueeze(-1)
        return torch.addcmul(grad, y, along, value=-1).mul_(inverse)


def unit_nodes(x: Tensor) -> Tensor:
    """Vectors ``[...,m]`` of length 1."""
    return cast(Tensor, _Unit.apply(x))


def pool(weights: Tensor, q: Tensor) -> Tensor:
    """``[P,n]`` weights and nodes ``[P,n,m]`` to the pair's vector ``[P,m]`` of length 1, or 0 where no weight is."""
    return unit_nodes((weights.unsqueeze(1) @ q).squeeze(1))


def compare(p: Tensor, scale: float, regions: Tensor, words: Tensor, product: bool) -> Tensor:
    """``(x - t)^2`` or ``x * t`` of contexts and words, ``[I,T*N,E]``; see :class:`_Compare`."""
    return cast(Tensor, _Compare.apply(p, scale, regions, words, product))


def reason(q: Tensor, fused: Tensor, c: Tensor, graph: Tensor, b: Tensor, shut: Tensor) -> Tensor:
    """One step of graph reasoning over the nodes ``[P,n,m]`` of each pair; see :class:`_Reason`."""
    return cast(Tensor, _Reason.apply(q, fused, c, graph, b, shut))
