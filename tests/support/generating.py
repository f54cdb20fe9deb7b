"""The smallest report generation, as objects, as a YAML, and as tasks for a pool of processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from mini import IMAGE, write_recipe
from torch import Tensor

from diptych import distributed
from diptych.evaluation.rows import gather_texts
from diptych.reports.tokenizer import Tokenizer
from diptych.tasks.generate import Generate
from diptych.towers.image import TimmImage
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
    options = {
        "width": 16,
        "layers": 2,
        "heads": 2,
        "vocabulary": 96,
        "max_tokens": 24,
        "dropout": 0.0,
        "least_patients": 1,
    } | options
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
    world = distributed.world_size()
    share = n // world
    rows = slice(distributed.rank() * share, (distributed.rank() + 1) * share)
    with patch.object(task, "log"):  # there is no trainer
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
    return gather_texts(parts[distributed.rank()], torch.device("cpu"))


def recipe(
    folder: Path,
    table: Path,
    name: str,
    *,
    image: dict[str, Any] | None = None,
    options: dict[str, Any] | None = None,
    columns: dict[str, Any] | None = None,
    **trainer: Any,
) -> str:
    """A YAML that trains the smallest decoder."""
    columns = columns or {"patient": "patient", "split": "split"}
    loading = {"image_size": 32, "eval_batch_size": 4, "batch_size": 6, "workers": 0, "augment": None}
    image = image or {"class_path": "TimmImage", "init_args": {**IMAGE, "stage": 3}}
    model = {"image": image, "width": 32, "layers": 1, "heads": 2, "vocabulary": 128, "max_tokens": 24, "lr": 1e-2}
    model |= {"resamples": 50, "dropout": 0.0, "beams": 2, **(options or {})}
    data = {"table": str(table), "columns": columns, "loading": loading}
    return write_recipe(folder / f"{name}.yaml", ("Generate", model), ("tabular", data), **trainer)
