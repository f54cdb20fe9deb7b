"""Modules of ``reclf`` that relate the matchings of a pair to each other, and weigh them."""

from __future__ import annotations

from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from diptych_heads.equations.reclf import reason

__all__ = ["FusedStep", "Importance", "Step", "glorot_linear"]


def glorot_linear(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    """Started as in SGRAF: Glorot's uniform weights, no bias."""
    linear = nn.Linear(inputs, outputs, bias=bias)
    nn.init.xavier_uniform_(linear.weight)
    if bias:
        nn.init.zeros_(linear.bias)
    return linear


class FusedStep(NamedTuple):
    """The weights of one step as :func:`~diptych_heads.equations.reclf.reason` takes them."""

    fused: Tensor
    c: Tensor
    graph: Tensor
    b: Tensor


class Step(nn.Module):
    """One step of graph reasoning (SGRAF, AAAI 2021, eq. 7-8): ``E = soft-max((Q q)(K q)')``, ``q <- relu(G (E q))``.

    What adds the same to a whole row of the soft-max cancels: ``(Q q)(K q)' = q (Q'K) q' + (K' b_Q) q' + ...`` needs one
    product instead of two, and the bias of the keys has no effect; there is none.
    """

    def __init__(self, width: int, residual: bool) -> None:
        super().__init__()
        self.query = glorot_linear(width, width)
        self.key = glorot_linear(width, width, bias=False)
        self.graph = glorot_linear(width, width)
        self.norm = nn.LayerNorm(width) if residual else None

    def fuse(self) -> FusedStep:
        """The weights as they are used, computed once for all pairs."""
        key = self.key.weight
        return FusedStep(self.query.weight.T @ key, self.query.bias @ key, self.graph.weight.T, self.graph.bias)

    def forward(self, q: Tensor, weights: FusedStep, shut: Tensor) -> Tensor:
        """Nodes ``[P,n,m]`` after the step; ``shut`` ``[P,1,n]`` is added to the logits of each node as a target."""
        out = reason(q, *weights, shut)
        return out if self.norm is None else cast(Tensor, self.norm(q + out))


class Importance(nn.Module):
    """How much each node counts: ``b_w = sigmoid(norm(u . q_w))``, divided by its sum over the real nodes.

    ``layer`` standardises over the real nodes of the pair, then scales and shifts. SGRAF's batch statistics would make a
    pair's score depend on the batch and on its padding.
    """

    def __init__(self, width: int, norm: Literal["layer", "none"]) -> None:
        super().__init__()
        self.gate = glorot_linear(width, 1, bias=False)
        self.gain = nn.Parameter(torch.ones(())) if norm == "layer" else None
        self.shift = nn.Parameter(torch.zeros(()))

    def forward(self, q: Tensor, real: Tensor) -> Tensor:
        """Nodes ``[P,n,m]`` and which are real ``[P,n]`` to weights ``[P,n]``, 0 where not real."""
        z = self.gate(q).squeeze(-1)
        if self.gain is not None:
            count = real.sum(-1, keepdim=True).clamp_min(1)
            centred = (z - (z * real).sum(-1, keepdim=True) / count) * real
            z = self.gain * centred * (centred.square().sum(-1, keepdim=True) / count + 1e-5).rsqrt()
        b: Tensor = (z + self.shift).sigmoid() * real
        return b / b.sum(-1, keepdim=True).clamp_min(1e-12)
