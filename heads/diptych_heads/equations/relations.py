"""Modules of ``reclf`` that relate the matchings of a pair to each other, and weigh them."""

from __future__ import annotations

from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from diptych_heads.equations.reclf import reason

__all__ = ["FusedStep", "Importance", "Step", "glorot_linear", "word_relations"]

DISTANCES = (1, 2, 3, 5, 9)
"""Where the classes of the distance between two words start. A distance of 0 is a class of its own."""


def glorot_linear(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    """A linear layer that starts as in SGRAF: with Glorot's uniform weights, and a bias of zero."""
    linear = nn.Linear(inputs, outputs, bias=bias)
    nn.init.xavier_uniform_(linear.weight)
    if bias:
        nn.init.zeros_(linear.bias)
    return linear


def word_relations(sentences: Tensor) -> Tensor:
    """How two words stand to each other: the class of each ordered pair of words, ``[T,N,N]`` int64.

    A class says how far the second word is from the first (0, 1, 2, 3-4, 5-8, or more words), whether it comes before or
    after, and whether both are in one sentence. There are 22.

    >>> word_relations(torch.tensor([[0, 0, 1]]))
    tensor([[[ 5,  6, 18],
             [ 4,  5, 17],
             [14, 15,  5]]])

    Args:
        sentences: ``[T,N]`` the index of each word's sentence. Values at padding mean nothing.
    """
    place = torch.arange(sentences.shape[1], device=sentences.device)
    offset = place - place.unsqueeze(1)  # [N,N]
    near = torch.stack([offset.abs() >= start for start in DISTANCES]).sum(0)  # no copy from the host
    classes = near * offset.sign() + len(DISTANCES)
    same = sentences.unsqueeze(2) == sentences.unsqueeze(1)
    return torch.where(same, classes, classes + 2 * len(DISTANCES) + 1)


class FusedStep(NamedTuple):
    """The weights of one step as :func:`~diptych_heads.equations.reclf.reason` takes them."""

    fused: Tensor
    c: Tensor
    graph: Tensor
    b: Tensor


class Step(nn.Module):
    """One step of graph reasoning (SGRAF, AAAI 2021, eq. 7-8): ``E = soft-max((Q q)(K q)')``, ``q <- relu(G (E q))``.

    ``(Q q)(K q)' = q (Q'K) q' + (K' b_Q) q' + ...``. The rest is the same for a whole row, so it cancels in the soft-max.
    One product with ``Q'K`` thus replaces two. A bias of the keys would have no effect, so there is none.
    """

    def __init__(self, width: int, residual: bool, word_relations: bool = False) -> None:
        super().__init__()
        self.relations = nn.Parameter(torch.zeros(4 * len(DISTANCES) + 2)) if word_relations else None
        self.query = glorot_linear(width, width)
        self.key = glorot_linear(width, width, bias=False)
        self.graph = glorot_linear(width, width)
        self.norm = nn.LayerNorm(width) if residual else None

    def fuse(self) -> FusedStep:
        """The weights as they are used, computed once for all pairs."""
        key = self.key.weight
        return FusedStep(self.query.weight.T @ key, self.query.bias @ key, self.graph.weight.T, self.graph.bias)

    def forward(self, q: Tensor, weights: FusedStep, node_bias: Tensor, relations: Tensor | None = None) -> Tensor:
        """Nodes ``[P,n,m]`` after the step. ``node_bias`` ``[P,1,n]`` is added to the logits of the node looked at.

        ``relations`` ``[T,n,n]`` are the classes of pairs of words. Each has a learned addition to the logits. ``P`` is a
        multiple of ``T``.
        """
        if self.relations is not None and relations is not None:
            added = self.relations[relations]  # [T,n,n]
            node_bias = (node_bias.view(-1, added.shape[0], *node_bias.shape[1:]) + added).flatten(0, 1)
        out = reason(q, *weights, node_bias)
        return out if self.norm is None else cast(Tensor, self.norm(q + out))


class Importance(nn.Module):
    """How much each node counts: ``b_w = sigmoid(norm(u . q_w))``, divided by its sum over the real nodes.

    The norm ``layer`` standardises over the real nodes of the pair, then scales and shifts. SGRAF uses batch statistics.
    With them a pair's score would depend on the rest of the batch and on padding.
    """

    def __init__(self, width: int, norm: Literal["layer", "none"]) -> None:
        super().__init__()
        self.gate = glorot_linear(width, 1, bias=False)
        self.gain = nn.Parameter(torch.ones(())) if norm == "layer" else None
        self.shift = nn.Parameter(torch.zeros(()))

    def forward(self, q: Tensor, real: Tensor) -> Tensor:
        """Nodes ``[P,n,m]`` and which are real ``[P,n]`` to weights ``[P,n]``. Other nodes have 0."""
        z = self.gate(q).squeeze(-1)
        if self.gain is not None:
            count = real.sum(-1, keepdim=True).clamp_min(1)
            centred = (z - (z * real).sum(-1, keepdim=True) / count) * real
            z = self.gain * centred * (centred.square().sum(-1, keepdim=True) / count + 1e-5).rsqrt()
        b: Tensor = (z + self.shift).sigmoid() * real
        return b / b.sum(-1, keepdim=True).clamp_min(1e-12)
