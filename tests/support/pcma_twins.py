"""Slow, plain twins of ``pcma`` and ``cce``, a stand-in for the towers, and the tasks that the process pool runs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from diptych import distributed
from diptych.head import gather_pairs, tell_step
from diptych.types import Dims, Features, Pairs, _Tensors
from diptych_heads.cce import Cce
from diptych_heads.composite import Composite
from diptych_heads.global_ import Global
from diptych_heads.pcma import Pcma

DIMS = Dims(image=7, text=6, image_tokens=5, text_tokens=4)
SMALL = {"width": 16, "queries": 5, "heads": 2, "cce_warmup": 0.0}


# Equations -----------------------------------------------------------------------------------------------------------


def unit(x: Tensor) -> Tensor:
    return x / x.norm().clamp_min(1e-12)


def weights(s: Tensor, kind: str) -> Tensor:
    """One image, one report: ``s`` ``[M,K]`` of its real sentences."""
    if kind == "soft":
        return torch.stack([(row / 0.1).exp() / (row / 0.1).exp().sum() for row in s])
    s = s.detach()
    w = torch.zeros_like(s)
    if kind == "max":
        for m, row in enumerate(s):
            w[m, row.argmax()] = 1
    elif kind == "hungarian":
        for m, k in zip(*linear_sum_assignment(-s.numpy()), strict=True):
            w[m, k] = 1
    else:
        w = (s / 0.05).exp()
        for _ in range(5):
            w = w / w.sum(0, keepdim=True) * len(s) / s.shape[1]
            w = w / w.sum(1, keepdim=True)
    return w


def contexts(observations: Tensor, sentences: Tensor, kind: str) -> Tensor:
    """``z`` ``[M,E]`` of one image ``[K,E]`` and one report's real sentences ``[M,E]``."""
    w = weights(sentences @ observations.T, kind)
    return torch.stack([unit(sum(w[m, k] * observations[k] for k in range(len(observations)))) for m in range(len(w))])


def pair_score(
    observations: Tensor, sentences: Tensor, counted: Tensor, kind: str, weights: Tensor | None = None
) -> Tensor | None:
    """One image, one report; None if no sentence counts."""
    if len(sentences) == 0:
        return observations.new_zeros(())
    if not counted.any():
        return None
    z = contexts(observations, sentences, kind)
    g = torch.ones(len(z), dtype=z.dtype) if weights is None else weights
    total = sum(w * torch.dot(t, x) for t, x, c, w in zip(sentences, z, counted, g, strict=True) if c)
    return total / sum(w for c, w in zip(counted, g, strict=True) if c)


def scores(image: Any, text: Any, kind: str, mask_sentences: bool) -> list[list[Tensor | None]]:
    """``[B][B]``, pair by pair."""
    sets = [
        {int(h) for h, real in zip(*row, strict=True) if real}
        for row in zip(text.sentence_hash, text.mask, strict=True)
    ]
    grid = []
    for b in range(len(image.tokens)):
        row = []
        for c in range(len(text.tokens)):
            real = text.mask[c]
            counted = [b == c or not mask_sentences or int(h) not in sets[b] for h in text.sentence_hash[c][real]]
            weights = None if text.weights is None else text.weights[c][real]
            row.append(pair_score(image.tokens[b], text.tokens[c][real], torch.tensor(counted), kind, weights))
        grid.append(row)
    return grid


def info_nce(grid: list[list[Tensor | None]], hash: Tensor, scale: float) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    n = len(grid)
    for i in range(n):
        for cells in ([(i, j) for j in range(n)], [(j, i) for j in range(n)]):
            others = [c for c in cells if c == (i, i) or hash[c[0]] != hash[c[1]]]
            logits = torch.stack([scale * grid[a][b] for a, b in others if grid[a][b] is not None])
            total = total - (scale * grid[i][i] - logits.exp().sum().log()) / 2
    return total / n


def intra(image: Any, text: Any, kind: str, scale: float) -> Tensor:
    reports = []
    for v, t, real, hashes in zip(image.tokens, text.tokens, text.mask, text.sentence_hash, strict=True):
        t, hashes = t[real], hashes[real]
        if len(t) == 0:
            reports.append(v.new_zeros(()))
            continue
        z = contexts(v, t, kind)
        terms = []
        for m in range(len(t)):
            others = [n for n in range(len(t)) if n == m or hashes[n] != hashes[m]]
            logits = torch.stack([scale * torch.dot(t[m], z[n]) for n in others])
            terms.append(logits.exp().sum().log() - scale * torch.dot(t[m], z[m]))
        reports.append(torch.stack(terms).mean())
    return torch.stack(reports).mean()


def correlation_loss(predicted: Tensor, vectors: Tensor, masked: Tensor, beta: float) -> Tensor:
    """From predicted ``[B,R,E]`` and raw patch vectors ``[B,R,Q]``."""
    total, count = predicted.new_zeros(()), 0
    for z, x, hidden in zip(predicted, vectors, masked, strict=True):
        centred = x - x.mean(0)
        for p in range(len(z)):
            for q in range(len(z)):
                if p != q and (hidden[p] or hidden[q]):
                    d = (torch.dot(unit(z[p]), unit(z[q])) - torch.dot(unit(centred[p]), unit(centred[q]))).abs()
                    total = total + (d**2 / (2 * beta) if d < beta else d - beta / 2)
                    count += 1
    return total / count


# A stand-in for the towers, and a batch ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Raw(_Tensors):
    """What the stand-in towers read; rows are pairs."""

    image: Tensor  # [B,R,3]
    pixels: Tensor  # [B,1,12,12]
    text: Tensor  # [B,N,3]
    mask: Tensor  # [B,N]
    sentences: Tensor  # [B,N]
    sentence_hash: Tensor  # [B,M]
    hash: Tensor  # [B]

    def rows(self, part: slice) -> Raw:
        return self.select(torch.arange(len(self.hash))[part])


def raw_batch(pairs: int = 8, dtype: torch.dtype = torch.float64) -> Raw:
    """Reports of one to four sentences, of which some are equal, within and across reports; some reports are equal."""
    g = torch.Generator().manual_seed(3)
    known = [torch.randn(n, 3, generator=g, dtype=dtype) for n in (3, 4, 5, 3, 2, 4)]  # the fifth is too short
    reports = [(0, 1), (1, 2, 0), (3,), (0, 4, 5), (2, 2, 1), (5, 3, 0), (4,), (1, 0, 3), (5,), (2, 0)]
    reports = [reports[i % len(reports)] for i in range(pairs)]
    if pairs > 2:
        reports[pairs - 1] = reports[0]
    words = 16
    text = torch.zeros(pairs, words, 3, dtype=dtype)
    mask = torch.zeros(pairs, words, dtype=torch.bool)
    sentences = torch.full((pairs, words), -1)
    sentence_hash = torch.full((pairs, 4), -1)
    for row, report in enumerate(reports):
        at = 0
        for m, i in enumerate(report):
            n = len(known[i])
            text[row, at : at + n], mask[row, at : at + n], sentences[row, at : at + n] = known[i], True, m
            sentence_hash[row, m] = 1000 + i
            at += n
    return Raw(
        image=torch.randn(pairs, 9, 3, generator=g, dtype=dtype),
        pixels=torch.randn(pairs, 1, 12, 12, generator=g, dtype=dtype),
        text=text,
        mask=mask,
        sentences=sentences,
        sentence_hash=sentence_hash,
        hash=torch.tensor([hash(report) for report in reports]),
    )


def padded(raw: Raw, words: int = 5, sentences: int = 3) -> Raw:
    """The same with more padding, which holds anything."""
    n = len(raw.hash)
    grow = nn.functional.pad
    return replace(
        raw,
        text=torch.cat([raw.text, torch.randn(n, words, 3, dtype=raw.text.dtype)], 1),
        mask=grow(raw.mask, (0, words)),
        sentences=grow(raw.sentences, (0, words), value=-1),
        sentence_hash=grow(raw.sentence_hash, (0, sentences), value=-1),
    )


class Step(nn.Module):
    """Towers, head, gather and losses: what a training step does, as one module for DDP."""

    def __init__(self, options: dict[str, Any], kind: str = "pcma") -> None:
        super().__init__()
        torch.manual_seed(5)
        self.image, self.regions = nn.Linear(3, DIMS.image), nn.Linear(3, DIMS.image_tokens)
        self.text, self.words = nn.Linear(3, DIMS.text), nn.Linear(3, DIMS.text_tokens)
        self.head: Any
        if kind == "pcma":
            self.head = Pcma(DIMS, **{**SMALL, **options})
            if self.head.sentence_gate is not None:
                last = self.head.sentence_gate[2]  # it starts at zero
                nn.init.normal_(last.weight, std=8.0)
                nn.init.constant_(last.bias, 5.0)  # so that the weights spread over 0 to 1
        else:
            members = [lambda dims: Global(dims, width=16), lambda dims: Cce(dims, width=16, heads=2, **options)]
            self.head = Composite(DIMS, heads=members, shares=[1.0, 0.5])
        self.seen: dict[str, Tensor] = {}

    def features(self, raw: Raw) -> tuple[Features, Features]:
        everywhere = torch.ones(raw.image.shape[:2], dtype=torch.bool)
        image = Features(
            self.image(raw.image).tanh().mean(1), self.regions(raw.image), everywhere, grid=(3, 3), pixels=raw.pixels
        )
        share = raw.mask.to(raw.text.dtype) / raw.mask.sum(1, keepdim=True).clamp_min(1)
        pooled = (self.text(raw.text).tanh() * share.unsqueeze(-1)).sum(1)
        words = self.words(raw.text)
        return image, Features(pooled, words, raw.mask, sentences=raw.sentences, sentence_hash=raw.sentence_hash)

    def embed(self, raw: Raw) -> tuple[Any, Any]:
        image, text = self.features(raw)
        return self.head.embed_image(image), self.head.embed_text(text)

    def terms(self, raw: Raw) -> dict[str, Tensor]:
        image, text = self.embed(raw)
        size = len(raw.hash)
        here = Pairs(image, text, torch.arange(size) + distributed.rank() * size, raw.hash)
        return self.head.losses(here, gather_pairs(self.head, here))

    def forward(self, raw: Raw) -> Tensor:
        self.seen = self.terms(raw)
        return torch.stack([self.head.weights[n] * t for n, t in self.seen.items()]).sum()


def gradients(step: Any, raw: Raw) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Every term, and every parameter's gradient of the weighted sum."""
    module = step.module if isinstance(step, DistributedDataParallel) else step
    step(raw).backward()
    terms = {name: term.item() for name, term in module.seen.items()}
    return terms, {n.removeprefix("module."): p.grad for n, p in step.named_parameters() if p.grad is not None}


# Tasks of the process pool -------------------------------------------------------------------------------------------


def task_gradients(options: dict[str, Any], kind: str, raw: Raw, done: int, total: int) -> Any:
    """One step under DDP on this process's share of the batch, after ``done`` of ``total`` steps."""
    module = Step(options, kind).double()
    tell_step(module.head, 0, done, total)
    size = len(raw.hash) // distributed.world_size()
    part = raw.rows(slice(distributed.rank() * size, (distributed.rank() + 1) * size))
    return gradients(DistributedDataParallel(module), part)


def equal_on_processes(processes: Any, world: int, options: dict[str, Any], kind: str, raw: Raw, total: int) -> None:
    """Every term's mean over processes, and every gradient, are those of one process."""
    one = Step(options, kind).double()
    tell_step(one.head, 0, 3, total)
    terms, expected = gradients(one, raw)
    results = processes.run(world, task_gradients, options, kind, raw, 3, total)
    for name, value in terms.items():
        mean = sum(values[name] for values, _ in results) / world
        assert abs(mean - value) < 1e-10 * abs(value), name
    for _, actual in results:
        assert actual.keys() == expected.keys()
        for name, gradient in expected.items():
            assert gradient.norm() > 1e-9, f"{name} is not exercised"
            assert (actual[name] - gradient).norm() < 1e-9 * gradient.norm(), name
