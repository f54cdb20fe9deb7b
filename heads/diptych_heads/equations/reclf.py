"""The costly parts of ``reclf``. Their backward is written out, in few passes over the wide values.

The head's tests compare values and gradients with a twin that leaves them to autograd.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["compare", "compare_pooled", "pool", "reason", "unit_nodes"]


class _Compare(torch.autograd.Function):
    """``(x - t)^2`` or ``x * t`` with the context ``x = unit(sum_r exp(scale p_r) v_r)``, in few passes over its width.

    ``p`` ``[I,R,T*N]``, regions ``[I,R,E]`` and words ``[T*N,E]`` give ``[I,T*N,E]``. One such value is kept, beside ``p``.
    """

    @staticmethod
    def forward(ctx: Any, p: Tensor, scale: float, regions: Tensor, words: Tensor, product: bool) -> Tensor:
        x = (scale * p).exp_().transpose(1, 2) @ regions
        inverse = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(1e-8).reciprocal()
        x = x.mul_(inverse)
        compared = x if product else x.sub_(words)
        ctx.save_for_backward(p, regions, words, compared, inverse)
        ctx.scale, ctx.product = scale, product
        return compared * words if product else compared * compared

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        p, regions, words, compared, inverse = ctx.saved_tensors
        if ctx.product:
            x, grad_words = compared, (compared * grad).sum(0)
            grad_x = grad * words
        else:
            x, grad_x = compared + words, grad * compared
            grad_words = -2 * grad_x.sum(0)
            inverse = 2 * inverse
        along = torch.linalg.vecdot(x, grad_x).unsqueeze(-1)  # the part along x, whose length is fixed
        grad_x = grad_x.addcmul_(x, along, value=-1).mul_(inverse)
        u = (ctx.scale * p).exp_()
        grad_regions = u @ grad_x
        return (regions @ grad_x.transpose(1, 2)).mul_(u).mul_(ctx.scale), None, grad_regions, grad_words, None


class _Reason(torch.autograd.Function):
    """``relu(soft-max(q M q' + c q' + node_bias) (q G + b))`` over the nodes of each pair.

    ``q`` is ``[P,n,m]``, ``M`` and ``G`` are ``[m,m]``, ``c`` and ``b`` are ``[m]``, and ``node_bias`` is ``[P,1,n]`` without
    a gradient, or ``[P,n,n]``.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, fused: Tensor, c: Tensor, graph: Tensor, b: Tensor, node_bias: Tensor) -> Tensor:
        flat = q.flatten(0, 1)
        asked = torch.addmm(c, flat, fused).view_as(q)
        message = torch.addmm(b, flat, graph).view_as(q)  # b before the edges, whose rows sum to 1
        edges = torch.baddbmm(node_bias, asked, q.transpose(1, 2)).softmax(-1)
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
        return (
            grad_q,
            flat.T @ grad_asked,
            grad_asked.sum(0),
            flat.T @ grad_message,
            grad_message.sum(0),
            (grad_logits if ctx.needs_input_grad[5] else None),
        )


class _Unit(torch.autograd.Function):
    """L2-normalise over the last axis, in a third of the passes of ``torch.nn.functional.normalize``."""

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
    """The weighted mean ``[P,m]`` of the nodes ``[P,n,m]``, with weights ``[P,n]``. It has length 1, or 0 without weights.

    >>> pool(torch.tensor([[0.6, 0.8]]), torch.eye(2).unsqueeze(0))
    tensor([[0.6000, 0.8000]])
    """
    return unit_nodes((weights.unsqueeze(1) @ q).squeeze(1))


def compare(p: Tensor, scale: float, regions: Tensor, words: Tensor, product: bool) -> Tensor:
    """``(x - t)^2`` or ``x * t`` ``[I,T*N,E]`` of contexts ``x = unit(sum_r exp(scale p_r) v_r)`` and words ``t``.

    Args:
        p: ``[I,R,T*N]``, logits of the attention over the regions.
        scale: the sharpness that they are multiplied by.
        regions: ``[I,R,E]``
        words: ``[T*N,E]``
        product: whether to multiply instead.

    >>> compare(torch.zeros(1, 1, 1), 1.0, torch.tensor([[[3.0, 4.0]]]), torch.tensor([[1.0, 0.0]]), product=True)
    tensor([[[0.6000, 0.0000]]])
    """
    return cast(Tensor, _Compare.apply(p, scale, regions, words, product))


def compare_pooled(image: Tensor, text: Tensor, weight: Tensor, bias: Tensor, product: bool) -> Tensor:
    """``P (v - t)^2 + p`` or ``P (v * t) + p`` of the pooled vectors of every pair, ``[I,T,m]``.

    ``P (v - t)^2 = P v^2 - 2 P (v * t) + P t^2``. So no value is as wide as the vectors.

    Args:
        image: ``[I,E]``
        text: ``[T,E]``
        weight: ``P`` ``[m,E]``.
        bias: ``p`` ``[m]``.
        product: whether to multiply instead.

    >>> compare_pooled(torch.tensor([[3.0, 1.0]]), torch.tensor([[1.0, 1.0]]), torch.eye(2), torch.zeros(2), product=False)
    tensor([[[4., 0.]]])
    """
    products = ((image.unsqueeze(1) * weight) @ text.T).transpose(1, 2)  # [I,m,E] @ [E,T]
    if product:
        return products + bias
    return (image.square() @ weight.T).unsqueeze(1) - 2 * products + (text.square() @ weight.T) + bias


def reason(q: Tensor, fused: Tensor, c: Tensor, graph: Tensor, b: Tensor, node_bias: Tensor) -> Tensor:
    """One step of graph reasoning: ``relu(soft-max(q M q' + c q' + node_bias) (q G + b))``.

    Args:
        q: ``[P,n,m]``, the nodes of each pair.
        fused: ``M`` ``[m,m]``.
        c: ``[m]``
        graph: ``G`` ``[m,m]``.
        b: ``[m]``
        node_bias: ``[P,1,n]`` or ``[P,n,n]``, very low at nodes that no other may look at.
    """
    return cast(Tensor, _Reason.apply(q, fused, c, graph, b, node_bias))
