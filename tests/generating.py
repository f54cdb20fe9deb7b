"""Tasks for a pool of processes: a step of report generation, and texts that are exchanged."""

from __future__ import annotations

from typing import Any

import torch
from mini import IMAGE
from torch import Tensor

from diptych import distributed, scoring
from diptych.generate import Generate
from diptych.image import TimmImage
from diptych.tokenizer import Tokenizer
from diptych.types import Batch, TextBatch

REPORTS = [
    "Small left effusion.",
    "No effusion. The heart is enlarged.",
    "Clear lungs.",
    "",
    "There is a nodule in the left lung, and no effusion.",
    "The heart is enlarged.",
]


def tiny(**options: Any) -> Generate:
    """A task whose tower and decoder are as small as can be, and that knows the words of ``REPORTS``."""
    torch.manual_seed(0)
    image = options.pop("image", None) or TimmImage(**IMAGE)
    options = {"width": 16, "layers": 2, "heads": 2, "vocabulary": 96, "max_tokens": 24, "dropout": 0.0} | options
    task = Generate(image, **options)
    task.tokenizer.learn(REPORTS)
    return task.eval()


def batch_of(tokenizer: Tokenizer, rows: slice = slice(None), to_max: bool = True) -> Batch:
    """Pictures of noise with ``REPORTS``."""
    pictures = torch.randint(0, 256, (len(REPORTS), 1, 32, 32), generator=torch.Generator().manual_seed(1))
    texts = REPORTS[rows]
    n = len(texts)
    index, group = torch.arange(len(REPORTS))[rows], torch.arange(len(REPORTS))[rows]
    text: TextBatch = tokenizer(texts, to_max=to_max)
    valid, names = torch.ones(n, dtype=torch.bool), [f"r{i}" for i in index]
    return Batch(pictures[rows].to(torch.uint8), text, index, valid, None, group, None, names)


def task_step(n: int) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of a step on the first ``n`` reports, dealt to the processes; averaged over them as DDP does."""
    task = tiny()
    task.log = lambda *_, **__: None  # type: ignore[method-assign]  # there is no trainer
    world = distributed.world_size()
    share = n // world
    rows = slice(distributed.rank() * share, (distributed.rank() + 1) * share)
    loss = task.training_step(batch_of(task.tokenizer, rows), 0)
    loss.backward()
    mean = {
        name: distributed.sum_over_processes(parameter.grad) / world
        for name, parameter in task.named_parameters()
        if parameter.grad is not None
    }
    return float(distributed.sum_over_processes(loss.detach()) / world), mean


def task_texts(parts: list[list[str]]) -> list[str]:
    """What every process gathers of texts of which each has its own."""
    return scoring.gather_texts(parts[distributed.rank()], torch.device("cpu"))
