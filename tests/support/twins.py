"""Slow, plain twins of the equations, and the tasks that the process pool runs. Written from the papers, as loops."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from diptych import distributed
from diptych.head import gather_pairs
from diptych.nn import functional
from diptych.nn.norm import GlobalBatchNorm
from diptych.types import Dims, Features, Pairs
from diptych_heads.equations import local_pooling
from diptych_heads.global_ import Global
from diptych_heads.local_pooling import LocalPooling
from diptych_heads.mgca import MGCA
from diptych_heads.pcma import Pcma
from diptych_heads.reclf import Reclf

HEADS = {"global": Global, "local_pooling": LocalPooling, "reclf": Reclf, "mgca": MGCA, "pcma": Pcma}
DIMS = Dims(image=7, text=6, image_tokens=5, text_tokens=4)


# Equations -----------------------------------------------------------------------------------------------------------


def attend(s: Tensor, form: str, region_scale: float) -> Tensor:
    """Attention over the regions from the products ``[N,R]`` of one report's real words and one image's regions."""
    if form in ("unit", "raw"):
        s = s.softmax(0)
    elif form == "scan":
        s = torch.where(s > 0, s, 0.1 * s)
        s = s / (s * s).sum(0, keepdim=True).sqrt()
    return (region_scale * s).softmax(1)


def matchings(regions: Tensor, words: Tensor, form: str = "unit", region_scale: float = 4.0) -> Tensor:
    """GLoRIA for one image ``[R,E]`` and one report's real words ``[N,E]``: ``m`` ``[N]``."""
    contexts = attend(words @ regions.T, form, region_scale) @ regions  # [N,E]
    return torch.stack([torch.dot(x, t) / (x.norm() * t.norm()) for x, t in zip(contexts, words, strict=True)])


def local_score(regions: Tensor, words: Tensor, pooling: str, form: str = "unit", region_scale: float = 4.0) -> Tensor:
    """One image ``[R,E]``, one report's real words ``[N,E]``."""
    if len(words) == 0:
        return regions.new_zeros(())
    if pooling != "max":
        m = matchings(regions, words, form, region_scale)
        total = (5.0 * m).exp().sum()
        return {
            "logsumexp": total.log() / 5.0,
            "logmeanexp": (total / len(m)).log() / 5.0,
            "mean": m.mean(),
            "best_word": max(m),
        }[pooling]
    word_side = [max(torch.dot(v, t) for v in regions) for t in words]
    region_side = [max(torch.dot(v, t) for t in words) for v in regions]
    return (torch.stack(word_side).mean() + torch.stack(region_side).mean()) / 2


def local_scores(
    regions: Tensor, words: Tensor, mask: Tensor, pooling: str, form: str = "unit", region_scale: float = 4.0
) -> Tensor:
    """``[I,T]``, pair by pair."""
    rows = [
        torch.stack([local_score(v, t[real], pooling, form, region_scale) for t, real in zip(words, mask, strict=True)])
        for v in regions
    ]
    return torch.stack(rows)


def info_nce(logits: Tensor, hash: Tensor, image_weight: float) -> Tensor:
    total = logits.new_zeros(())
    for i in range(len(logits)):
        others = [j for j in range(len(logits)) if j == i or hash[j] != hash[i]]
        image_to_text = logits[i, i] - torch.stack([logits[i, j] for j in others]).exp().sum().log()
        text_to_image = logits[i, i] - torch.stack([logits[j, i] for j in others]).exp().sum().log()
        total = total - image_weight * image_to_text - (1 - image_weight) * text_to_image
    return total / len(logits)


def sigmoid_loss(logits: Tensor, hash: Tensor) -> Tensor:
    total = logits.new_zeros(())
    for i in range(len(logits)):
        for j in range(len(logits)):
            if i == j:
                total = total + (1 + (-logits[i, j]).exp()).log()
            elif hash[i] != hash[j]:
                total = total + (1 + logits[i, j].exp()).log()
    return total / len(logits)


# A stand-in for the towers, and a batch ------------------------------------------------------------------------------


@dataclass
class Raw:
    """What the stand-in towers read; rows are pairs."""

    image: Tensor  # [B,R,3]
    text: Tensor  # [B,N,3]
    mask: Tensor  # [B,N]
    hash: Tensor  # [B]

    def rows(self, part: slice) -> Raw:
        return Raw(self.image[part], self.text[part], self.mask[part], self.hash[part])


def raw_batch(pairs: int = 8, words: int = 6, regions: int = 9, dtype: torch.dtype = torch.float64) -> Raw:
    """Ragged reports, of which some are equal: within a quarter of the batch and across its ends."""
    generator = torch.Generator().manual_seed(3)
    image = torch.randn(pairs, regions, 3, generator=generator, dtype=dtype)
    text = torch.randn(pairs, words, 3, generator=generator, dtype=dtype)
    lengths = 1 + torch.arange(pairs) * 5 % words
    mask = torch.arange(words) < lengths.unsqueeze(1)
    hash = 100 + torch.arange(pairs)
    for copy, original in ((1, 0), (pairs - 1, 0), (pairs - 2, pairs // 2 - 1)):
        text[copy], mask[copy], hash[copy] = text[original], mask[original], hash[original]
    return Raw(image, text, mask, hash)


class Step(nn.Module):
    """Towers, head, gather and losses: what a training step does, as one module for DDP."""

    def __init__(self, head: str, options: dict[str, Any]) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.image, self.regions = nn.Linear(3, DIMS.image), nn.Linear(3, DIMS.image_tokens)
        self.text, self.words = nn.Linear(3, DIMS.text), nn.Linear(3, DIMS.text_tokens)
        self.head = HEADS[head](DIMS, width=16, **options)
        if head == "global":  # the stand-in has no use for its tokens
            self.regions.requires_grad_(False)
            self.words.requires_grad_(False)

    def features(self, raw: Raw) -> tuple[Features, Features]:
        everywhere, side = torch.ones(raw.image.shape[:2], dtype=torch.bool), math.isqrt(raw.image.shape[1])
        attention = raw.image[..., 0].sigmoid(), raw.text[..., 0].sigmoid()  # not zero at padding: heads have the mask
        image = Features(
            self.image(raw.image).tanh().mean(1),
            self.regions(raw.image),
            everywhere,
            grid=(side, side),
            attention=attention[0],
        )
        share = raw.mask.to(raw.text.dtype) / raw.mask.sum(1, keepdim=True).clamp_min(1)
        pooled = (self.text(raw.text).tanh() * share.unsqueeze(-1)).sum(1)
        sentences = (torch.arange(raw.mask.shape[1]) // 2).expand(raw.mask.shape).masked_fill(~raw.mask, -1)
        words = self.words(raw.text)
        return image, Features(pooled, words, raw.mask, sentences=sentences, attention=attention[1])

    def embed(self, raw: Raw) -> tuple[Any, Any]:
        image, text = self.features(raw)
        return self.head.embed_image(image), self.head.embed_text(text)

    def forward(self, raw: Raw) -> Tensor:
        image, text = self.embed(raw)
        size = len(raw.hash)
        targets = torch.arange(size) + distributed.rank() * size
        here = Pairs(image, text, targets, raw.hash)
        terms = self.head.losses(here, gather_pairs(self.head, here))
        return torch.stack([self.head.weights[name] * term for name, term in terms.items()]).sum()


def gradients(step: nn.Module, raw: Raw) -> tuple[float, dict[str, Tensor]]:
    """The loss and every parameter's gradient."""
    loss = step(raw)
    loss.backward()
    return loss.item(), {n.removeprefix("module."): p.grad for n, p in step.named_parameters() if p.grad is not None}


# Tasks of the process pool -------------------------------------------------------------------------------------------


def _part(raw: Raw) -> Raw:
    size = len(raw.hash) // distributed.world_size()
    return raw.rows(slice(distributed.rank() * size, (distributed.rank() + 1) * size))


def task_gradients(head: str, options: dict[str, Any], raw: Raw) -> tuple[float, dict[str, Tensor]]:
    """One step under DDP on this process's share of the batch."""
    return gradients(DistributedDataParallel(Step(head, options).double()), _part(raw))


def task_gradients_broken(what: str, head: str, options: dict[str, Any], raw: Raw) -> tuple[float, dict[str, Tensor]]:
    """The same with one of the gathers wrong, as in public code: others' rows without gradient, one's own put back."""
    exact = distributed.gather

    def own_slot_only(x: Tensor) -> Tensor:
        everyone, start = exact(x.detach()).clone(), distributed.rank() * len(x)
        everyone[start : start + len(x)] = x
        return everyone

    scores = HEADS[head].losses.__module__ if head in ("global", "mgca") else "diptych_heads.joining"
    module = {"embeddings": "diptych.head", "scores": scores, "statistics": "diptych.nn.norm"}[what]
    wrong = {"gather": own_slot_only, "sum_with_gradient": distributed.sum_over_processes}
    broken = SimpleNamespace(**{**vars(distributed), **wrong})
    with mock.patch(f"{module}.distributed", broken):
        return task_gradients(head, options, raw)


def task_pairs_scored(head: str, options: dict[str, Any], raw: Raw) -> int:
    """How many image-report pairs this process scores in one step, each kind of score counted by itself."""
    step = DistributedDataParallel(Step(head, options).double())
    with counting() as counted:
        step(_part(raw)).backward()
    return max(counted.values())


@contextmanager
def counting() -> Iterator[dict[str, int]]:
    """Counts pairs by the function that scores them: the pooled dot products and the grids of word-region products."""
    counted = {"dot_products": 0, "_products": 0}

    def counter(module: ModuleType, name: str) -> Any:
        function = getattr(module, name)

        def counts(image: Tensor, text: Tensor) -> Tensor:
            counted[name] += len(image) * len(text)
            return function(image, text)

        return mock.patch.object(module, name, counts)

    with counter(functional, "dot_products"), counter(local_pooling, "_products"):
        yield counted


def task_sum(x: Tensor) -> tuple[Tensor, Tensor]:
    """A sum with gradient of this process's row, and the gradient where process ``r`` weighs the sum by ``r + 1``."""
    own = x[distributed.rank()].clone().requires_grad_()
    total = distributed.sum_with_gradient(own)
    (total.square() * (distributed.rank() + 1)).sum().backward()
    assert own.grad is not None
    return total.detach(), own.grad


def task_norm(x: Tensor, mask: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Batch normalisation of this process's share of ``x``, the gradient of ``sum(weight * y)``, and its values."""
    share = slice(*(len(x) // distributed.world_size() * (distributed.rank() + end) for end in (0, 1)))
    own = x[share].clone().requires_grad_()
    norm = GlobalBatchNorm(x.shape[-1]).double()
    y = norm(own, mask[share])
    (y * weight[share]).sum().backward()
    assert own.grad is not None
    values = {name: p.grad for name, p in norm.named_parameters() if p.grad is not None} | dict(norm.named_buffers())
    return y.detach(), own.grad, values


def task_gather(size: int) -> tuple[Tensor, Tensor, Tensor]:
    """What is gathered, its gradient, and an uneven gather."""
    rank = distributed.rank()
    x = torch.full((size, 2), float(rank + 1), requires_grad=True)
    everyone = distributed.gather(x)
    (everyone * torch.arange(len(everyone)).unsqueeze(1) * (rank + 1)).sum().backward()
    uneven = distributed.gather_uneven(torch.full((rank + 1, rank + 2), rank + 1))
    assert x.grad is not None
    return everyone.detach(), x.grad, uneven


def task_simple(value: int) -> tuple[int, int, int, Tensor, bool]:
    """Rank, size, the size alone, a sum over processes and a gather of booleans."""
    total = distributed.sum_over_processes(torch.tensor([float(value + distributed.rank())]))
    flags = distributed.gather(torch.tensor([distributed.rank() == 0]))
    with distributed.alone():
        size_alone = distributed.world_size()
        assert distributed.gather(total) is total
    distributed.barrier()
    return distributed.rank(), distributed.world_size(), size_alone, total, bool(flags[0]) and not bool(flags[1:].any())


def task_fail_on_last() -> None:
    """One process raises."""
    if distributed.rank() == distributed.world_size() - 1:
        raise ValueError("on purpose")
