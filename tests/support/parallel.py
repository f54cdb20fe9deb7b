"""Losses of downstream tasks on what each process has of one batch; called on real processes by test_parallel.py."""

from __future__ import annotations

import torch
from torch import Tensor

from diptych import distributed
from diptych.tasks.detect import Detector
from diptych.tasks.losses import known_bce
from diptych.tasks.segment import dice_loss
from diptych.towers.image import STRIDES

IMAGES = 4


def _labels(x: Tensor, rows: slice) -> Tensor:
    """Half of the labels are not known, all of the first image's among them."""
    labels = (torch.arange(IMAGES * 3).view(IMAGES, 3) % 4 - 1).to(x)
    labels[0] = torch.nan
    return distributed.mean_loss(*known_bce(x[rows, :3, 0], labels[rows]))


def _overlap(x: Tensor, rows: slice) -> Tensor:
    truth = torch.zeros(IMAGES, 8, 8, dtype=x.dtype)
    truth[1, 2:5, 1:7], truth[3, :6] = 1.0, 1.0
    return dice_loss(x[rows], truth[rows])


def _boxes(x: Tensor, rows: slice) -> Tensor:
    """A detector on maps made of ``x``; the second half of the images has all boxes but one."""
    torch.manual_seed(2)
    detector = Detector([4] * len(STRIDES), 2, 32).to(x.dtype)
    levels = [
        torch.nn.functional.interpolate(x[:, None], (64 // stride, 64 // stride)).expand(-1, 4, -1, -1)[rows]
        for stride in STRIDES
    ]
    truth = [torch.tensor(boxes, dtype=x.dtype).view(-1, 5) for boxes in (
        [], [[3, 4, 30, 40, 0]], [[0, 0, 60, 60, 1], [10, 10, 20, 30, 0]], [[30, 20, 64, 64, 1], [5, 40, 25, 64, 0]]
    )]  # fmt: skip
    return torch.stack(list(detector(levels, (64, 64), truth[rows]).losses.values())).sum()


LOSSES = {"labels": _labels, "overlap": _overlap, "boxes": _boxes}


def task_loss(kind: str) -> tuple[float, Tensor]:
    """Loss, and gradient of what all images share, each averaged over the processes as DDP does."""
    world, share = distributed.world_size(), IMAGES // distributed.world_size()
    rows = slice(distributed.rank() * share, (distributed.rank() + 1) * share)
    images = torch.randn(IMAGES, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    shared = torch.full((8, 8), 0.5, dtype=torch.float64, requires_grad=True)
    loss = LOSSES[kind](images * shared, rows)
    (gradient,) = torch.autograd.grad(loss, shared)
    total, of_inputs = (distributed.sum_over_processes(x) / world for x in (loss.detach(), gradient))
    return float(total), of_inputs


def synced_norm(kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """Output, gradient of the input's scale, and running variance of a tower's norm on what each process has of a batch."""
    from timm.layers.norm_act import BatchNormAct2d
    from torch import nn

    from diptych.nn.sync_norm import TowerNorms

    world, share = distributed.world_size(), IMAGES // distributed.world_size()
    rows = slice(distributed.rank() * share, (distributed.rank() + 1) * share)
    x = torch.randn(IMAGES, 3, 5, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64) + 1
    layer: nn.Module = BatchNormAct2d(3) if kind == "act" else nn.BatchNorm2d(3)
    layer = nn.Sequential(layer).double()
    if world > 1:
        layer = TowerNorms(on_cpu=True).apply(layer)
        if world == 2:  # DDP refuses torch's own layers on CPUs
            nn.parallel.DistributedDataParallel(layer)
    scale = torch.linspace(1, 2, 25, dtype=torch.float64).view(5, 5).requires_grad_()
    out = layer(x[rows] * scale)
    (gradient,) = torch.autograd.grad((out**3).sum(), scale)
    return distributed.gather(out.detach()), distributed.sum_over_processes(gradient), layer[0].running_var.detach()
