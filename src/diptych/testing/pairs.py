"""Made-up pairs, and stand-ins for the towers, with which a head makes one training step."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from diptych import distributed
from diptych.head import AlignmentHead, HeadFactory, gather_pairs, tell_step
from diptych.types import Dims, Features, Pairs, _Tensors

__all__ = ["DIMS", "RawPairs", "Step", "gradients_of", "padded", "raw_pairs", "share"]

DIMS = Dims(image=24, text=20, image_tokens=16, text_tokens=12)
"""Widths of the stand-ins. No two are alike, so a head that confuses them fails."""

_STEPS = 100
"""The length of the run that a head is told of."""


@dataclass(frozen=True)
class RawPairs(_Tensors):
    """What the stand-in towers read. Rows are pairs."""

    image: Tensor
    """``[B,N,3]``"""
    pixels: Tensor
    """``[B,1,12,12]``"""
    text: Tensor
    """``[B,N,3]``"""
    mask: Tensor
    """``[B,N]`` bool"""
    sentences: Tensor
    """``[B,N]`` int64"""
    sentence_hash: Tensor
    """``[B,M]`` int64"""
    hash: Tensor
    """``[B]`` int64"""


def raw_pairs(dtype: torch.dtype = torch.float64) -> RawPairs:
    """Eight pairs with ragged reports of one to four sentences. Some reports are equal: rows 0, 1 and 7, and rows 3 and 6."""
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    known = [draw(words, 3) for words in (3, 4, 5, 3, 2, 4)]
    reports = [(0, 1), (0, 1), (1, 2, 0), (0, 4, 5), (3,), (2, 2, 1), (0, 4, 5), (0, 1)]
    words, pairs = 15, len(reports)
    text, mask = draw(pairs, words, 3), torch.zeros(pairs, words, dtype=torch.bool)
    sentences, sentence_hash = torch.full((pairs, words), -1), torch.full((pairs, 4), -1)
    for row, report in enumerate(reports):
        start = 0
        for place, sentence in enumerate(report):
            part = slice(start, start := start + len(known[sentence]))
            text[row, part], mask[row, part], sentences[row, part] = known[sentence], True, place
            sentence_hash[row, place] = 1000 + sentence
    return RawPairs(
        image=draw(pairs, 9, 3),
        pixels=draw(pairs, 1, 12, 12),
        text=text,
        mask=mask,
        sentences=sentences,
        sentence_hash=sentence_hash,
        hash=100 + torch.tensor([reports.index(report) for report in reports]),
    )


def padded(raw: RawPairs, words: int = 5, sentences: int = 2) -> RawPairs:
    """The same pairs with more padding, which holds anything."""
    rows, grow = len(raw.hash), nn.functional.pad
    noise = torch.randn(rows, words, 3, generator=torch.Generator().manual_seed(4), dtype=raw.text.dtype)
    return replace(
        raw,
        text=torch.cat([raw.text, 10 * noise], 1),
        mask=grow(raw.mask, (0, words)),
        sentences=grow(raw.sentences, (0, words), value=-1),
        sentence_hash=grow(raw.sentence_hash, (0, sentences), value=-1),
    )


def share(raw: RawPairs) -> RawPairs:
    """This process's pairs of a job's batch."""
    size = len(raw.hash) // distributed.world_size()
    return raw.select(torch.arange(size) + distributed.rank() * size)


class Step(nn.Module):
    """Stand-in towers, head, gather and losses: what a training step does, as one module for DDP. Dropout is off.

    Args:
        build: makes the head of the towers' widths.
        seed: of the initial weights.
        done: optimiser steps that the head is told of.
    """

    def __init__(self, build: HeadFactory, seed: int = 5, done: int = _STEPS // 2) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.image, self.regions = nn.Linear(3, DIMS.image), nn.Linear(3, DIMS.image_tokens)
        self.text, self.words = nn.Linear(3, DIMS.text), nn.Linear(3, DIMS.text_tokens)
        self.head: AlignmentHead[Any] = build(DIMS)
        for module in self.head.modules():
            if isinstance(module, nn.modules.dropout._DropoutNd):
                module.p = 0.0
            elif isinstance(getattr(module, "dropout", None), float):  # as of nn.MultiheadAttention
                vars(module)["dropout"] = 0.0
        self.tell(done)

    def tell(self, done: int) -> None:
        """Tell the head how many optimiser steps are done."""
        tell_step(self.head, 0, done, _STEPS)

    def features(self, raw: RawPairs) -> tuple[Features, Features]:
        """What towers give, all optional fields included."""
        side = math.isqrt(raw.image.shape[1])
        image = Features(
            self.image(raw.image).tanh().mean(1),
            self.regions(raw.image),
            torch.ones(raw.image.shape[:2], dtype=torch.bool, device=raw.image.device),
            grid=(side, side),
            pixels=raw.pixels,
            attention=raw.image[..., 0].sigmoid(),
        )
        parts = raw.mask.to(raw.text.dtype) / raw.mask.sum(1, keepdim=True).clamp_min(1)
        pooled = (self.text(raw.text).tanh() * parts.unsqueeze(-1)).sum(1)
        text = Features(
            pooled,
            self.words(raw.text),
            raw.mask,
            sentences=raw.sentences,
            attention=raw.text[..., 0].sigmoid(),  # not zero at padding: a head has the mask
            sentence_hash=raw.sentence_hash,
        )
        return image, text

    def embed(self, raw: RawPairs) -> tuple[Any, Any]:
        """Both panels of the pairs, embedded by the head."""
        image, text = self.features(raw)
        return self.head.embed_image(image), self.head.embed_text(text)

    def scores(self, raw: RawPairs) -> Tensor:
        """``[B,B]``."""
        return self.head.similarity(*self.embed(raw))

    def terms(self, raw: RawPairs) -> dict[str, Tensor]:
        """The loss terms of this process's pairs."""
        image, text = self.embed(raw)
        size = len(raw.hash)
        targets = torch.arange(size, device=raw.hash.device) + distributed.rank() * size
        here = Pairs(image, text, targets, raw.hash)
        return self.head.losses(here, gather_pairs(self.head, here))

    def forward(self, raw: RawPairs) -> Tensor:
        """The weighted sum of the terms, a scalar."""
        return torch.stack([self.head.weights[name] * term for name, term in self.terms(raw).items()]).sum()


def gradients_of(step: nn.Module, raw: Any) -> tuple[float, dict[str, Tensor]]:
    """The loss of a step, and the gradient of every parameter that has one."""
    loss = step(raw)
    loss.backward()
    return loss.item(), {n.removeprefix("module."): p.grad for n, p in step.named_parameters() if p.grad is not None}
