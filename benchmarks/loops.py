"""Loops over reports, in the order of operations of public implementations. The benchmarks compare the heads with them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from diptych.nn.functional import unit
from diptych.types import TokenEmbedding
from diptych_heads.equations.attention import SHARPNESS, Attention
from diptych_heads.reclf import Reclf

__all__ = ["caption_loop", "published_loop", "token_lengths"]


def token_lengths(tokens: Tensor, form: Attention, *, words: bool) -> Tensor:
    """Tokens as a head gives them to this attention: of length 1, of length 3 for ``raw``, over 0.1 for ``softmax``."""
    if form == "raw":
        return 3.0 * unit(tokens)
    return unit(tokens) / 0.1 if form == "softmax" and words else unit(tokens)


def _attention(s: Tensor, form: Attention) -> Tensor:
    """From products ``[I,R,N]`` of one report's real words to the attention over the regions ``[I,N,R]``."""
    if form == "softmax":
        return s.transpose(1, 2).contiguous().softmax(dim=2)
    if form == "scan":
        s = nn.functional.leaky_relu(s, 0.1)
        logits = s / s.pow(2).sum(dim=2, keepdim=True).sqrt()
    else:
        logits = s.softmax(dim=2)
    return (SHARPNESS[form] * logits.transpose(1, 2).contiguous()).softmax(dim=2)


def published_loop(regions: Tensor, words: Tensor, mask: Tensor, form: Attention = "unit") -> Tensor:
    """GLoRIA's ``log sum_w exp(5 m_w)``, report by report, in the order of operations of the public implementation.

    Channels come first. Each report's real words are repeated for every image. The attention, the context of every word
    and its cosine with the word are formed at full width. ``[I,R,E]``, ``[T,N,E]``, ``[T,N]`` to ``[I,T]``.
    """
    images = regions.transpose(1, 2).contiguous()  # [I,E,R]
    columns = []
    for report, real in zip(words, mask, strict=True):
        word = report[real].T.contiguous().repeat(len(images), 1, 1)  # [I,E,N]
        s = torch.bmm(images.transpose(1, 2).contiguous(), word)  # [I,R,N]
        attention = _attention(s, form)
        context = torch.bmm(images, attention.transpose(1, 2).contiguous())  # [I,E,N]
        word, context = word.transpose(1, 2).contiguous(), context.transpose(1, 2).contiguous()  # [I,N,E]
        lengths = word.norm(dim=2) * context.norm(dim=2)
        m = (word * context).sum(dim=2) / lengths.clamp(min=1e-8)  # [I,N]
        columns.append((5.0 * m).exp().sum(dim=1).log())
    return torch.stack(columns, dim=1)


def caption_loop(head: Reclf) -> Callable[[TokenEmbedding, TokenEmbedding], Tensor]:
    """Report by report against all images, as the public code of SGRAF does it, with the head's parameters.

    Each report's real words are repeated for every image. Queries, keys and messages are separate linear maps.
    """
    normalize = nn.functional.normalize

    def scores(image: TokenEmbedding, text: TokenEmbedding) -> Tensor:
        assert head.global_matching is not None
        assert head.importance_gate is not None
        assert head.cosine_scale is not None
        assert head.importance_gate.gain is not None
        factor = 1.0 if head.attention_scale is None else head.attention_scale()
        columns = []
        for report, pooled, real in zip(text.tokens, text.pooled, text.mask, strict=True):
            word = report[real].unsqueeze(0).repeat(len(image.tokens), 1, 1)  # [I,N,E]
            a = _attention(torch.bmm(image.tokens, factor * word.transpose(1, 2)), head.attention)  # [I,N,R]
            word = normalize(word, dim=-1) if head.attention == "raw" else word
            context = normalize(torch.bmm(a, image.tokens), dim=-1)
            local = normalize(head.local_matching((context - word).pow(2)), dim=-1)
            whole = pooled.unsqueeze(0).repeat(len(image.pooled), 1)
            first = normalize(head.global_matching((image.pooled - whole).pow(2)), dim=-1)
            q = torch.cat([first.unsqueeze(1), local], dim=1)  # [I,1+N,m]
            for step in head.semantic:
                edges = torch.bmm(step.query(q), step.key(q).transpose(1, 2)).softmax(dim=-1)
                new = step.graph(torch.bmm(edges, q)).relu()
                q = new if step.norm is None else step.norm(q + new)
            gate = head.importance_gate.gate(q).squeeze(-1)
            gate = nn.functional.layer_norm(gate, gate.shape[1:]) * head.importance_gate.gain
            b = (gate + head.importance_gate.shift).sigmoid()
            b = b / b.sum(dim=1, keepdim=True)
            score = head.score(normalize((b.unsqueeze(-1) * q).sum(dim=1), dim=-1)).squeeze(-1)
            cosines = (b[:, 1:] * (context * word).sum(dim=2)).sum(dim=1) / b[:, 1:].sum(dim=1)
            columns.append(score + head.cosine_scale * cosines)
        return torch.stack(columns, dim=1)

    return scores
