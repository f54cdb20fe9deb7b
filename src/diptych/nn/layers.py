"""Attention layers that heads share. They have no dropout, so that a head's output depends on its input alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from diptych.errors import ConfigError
from diptych.nn.functional import full, without_autocast

__all__ = ["Attention", "DecoderLayer", "Extractor"]


class Attention(nn.Module):
    """Multi-head attention (arXiv 1706.03762) that also returns its map. The keys have no bias, for it would cancel.

    Args:
        width: of the vectors, a multiple of ``attention_heads``.
        attention_heads: how many.

    Raises:
        ConfigError: ``width`` is no multiple of ``attention_heads``.
    """

    def __init__(self, width: int, attention_heads: int) -> None:
        super().__init__()
        if attention_heads < 1 or width % attention_heads:
            raise ConfigError(f"width={width}: not a multiple of heads={attention_heads}; change one of them")
        self.attention_heads = attention_heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Attend from ``x`` ``[B,n,E]`` to ``memory`` ``[B,N,E]``.

        Args:
            x: the queries' input.
            memory: the input of keys and values.
            mask: ``[B,N]``, True at real memory. A row without real memory gets a map of zeros.

        Returns:
            ``[B,n,E]`` and the map ``[B,n,N]``, the mean over the attention heads, at least float32. A row sums to 1.
        """
        q, k, v = self._split(self.query(x)), self._split(self.key(memory)), self._split(self.value(memory))
        with without_autocast(x):
            logits = full(q) @ full(k).transpose(2, 3) / math.sqrt(q.shape[-1])  # [B,heads,n,N]
            if mask is None:
                share = logits.softmax(-1)
            else:
                unread = ~mask[:, None, None, :]
                share = logits.masked_fill(unread, torch.finfo(logits.dtype).min).softmax(-1).masked_fill(unread, 0.0)
            mixed = share @ full(v)
        return self.output(mixed.transpose(1, 2).flatten(2).to(x.dtype)), share.mean(1)

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.attention_heads, -1).transpose(1, 2)  # [B,heads,n,E/heads]


class DecoderLayer(nn.Module):
    """A pre-norm layer of a transformer's decoder: self-attention, cross-attention, feed-forward. Each is a residual.

    Args:
        width: of the vectors.
        attention_heads: how many.
        self_attention: False leaves the self-attention out.
    """

    def __init__(self, width: int, attention_heads: int, *, self_attention: bool = True) -> None:
        super().__init__()
        self.self_norm = nn.LayerNorm(width) if self_attention else None
        self.self_attention = Attention(width, attention_heads) if self_attention else None
        self.cross_norm = nn.LayerNorm(width)
        self.cross_attention = Attention(width, attention_heads)
        self.forward_norm = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``x`` ``[B,n,E]`` after attention to ``memory`` ``[B,N,E]``, and the cross-attention's map ``[B,n,N]``."""
        if self.self_attention is not None and self.self_norm is not None:
            own = self.self_norm(x)
            x = x + self.self_attention(own, own)[0]
        message, attention = self.cross_attention(self.cross_norm(x), memory, mask)
        x = x + message
        return x + self.feed_forward(self.forward_norm(x)), attention


class Extractor(nn.Module):
    """Learned queries that attend to a set of tokens (as in DETR, arXiv 2005.12872, and Q-Former).

    Args:
        tokens: width of the tokens.
        width: of the queries and of their output.
        queries: their number ``K``.
        layers: decoder layers.
        attention_heads: how many.
    """

    def __init__(self, tokens: int, width: int, *, queries: int, layers: int, attention_heads: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(queries, width))
        self.memory = nn.Sequential(nn.Linear(tokens, width), nn.LayerNorm(width))
        self.layers = nn.ModuleList(DecoderLayer(width, attention_heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.projection = nn.Linear(width, width, bias=False)

    def forward(self, tokens: Tensor, mask: Tensor, places: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The output of each query ``[B,K,width]``, and the map of the last cross-attention ``[B,K,N]``.

        Args:
            tokens: ``[B,N,D]``
            mask: ``[B,N]``, True at real tokens.
            places: ``[N,width]``, a code of each token's place, which is added to what the queries attend to.
        """
        memory = self.memory(tokens)
        if places is not None:
            memory = memory + places
        x = self.queries.expand(tokens.shape[0], -1, -1)
        attention = x
        for layer in self.layers:
            x, attention = layer(x, memory, mask)
        return self.projection(self.norm(x)), attention
