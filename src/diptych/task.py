"""Downstream tasks: what they share, whatever is built on the image tower."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from diptych import scoring
from diptych.data import RadiographDataModule, Split
from diptych.errors import ConfigError, DataError
from diptych.image import ImageTower
from diptych.loading import check_fit
from diptych.metrics import Metric
from diptych.types import Batch

__all__ = ["Rows", "Task"]


class Rows:
    """What is collected over a split, sample by sample: each once, in the order of their index, on every process.

    Args:
        device: where the processes can exchange tensors.
        widths: of each value that is collected, ``[n,width]`` float32.
    """

    def __init__(self, device: torch.device, *widths: int) -> None:
        self.device = device
        self._values = [[torch.zeros(0, width)] for width in widths]
        self._index = [torch.zeros(0, dtype=torch.int64)]
        self._group = [torch.zeros(0, dtype=torch.int64)]

    def add(self, batch: Batch, *values: Tensor) -> None:
        """Take the valid rows of a batch."""
        rows = batch.valid.nonzero().squeeze(1)
        self._index.append(batch.index[rows].cpu())
        self._group.append(batch.group[rows].cpu())
        for kept, value in zip(self._values, values, strict=True):
            kept.append(value.detach()[rows].float().cpu())

    def gather(self) -> tuple[Tensor, list[Tensor]]:
        """Group ``[n]`` and values of all processes. Collective.

        Raises:
            DataError: a sample was counted twice.
        """
        index = scoring.gather_rows(torch.cat(self._index), self.device)
        index, order = index.sort(stable=True)
        if len(twice := index[1:][index[1:] == index[:-1]]):
            raise DataError(
                f"sample {int(twice[0])} was counted more than once; mark rows that fill up a batch as not valid"
            )
        group = scoring.gather_rows(torch.cat(self._group), self.device)[order]
        values = [scoring.gather_rows(torch.cat(kept), self.device)[order] for kept in self._values]
        return group, values


class Task(pl.LightningModule):
    """Base of every downstream task.

    Args:
        image: the tower it is built on: of a run (``TrainedImage``), of timm (``TimmImage``), with weights or without.
    """

    trains = True
    """Whether ``diptych fit`` has anything to do; otherwise ``diptych test`` does all of it, without a checkpoint."""
    monitor = "val/auroc/macro"
    """The metric of validation that chooses the checkpoint."""
    config: dict[str, Any] | None = None
    """What the command line built this task from."""

    def __init__(self, image: ImageTower) -> None:
        super().__init__()
        self.image = image
        self.results: dict[str, Metric] = {}
        """Metrics of the last validation or test pass, with intervals."""
        self.protocol: dict[str, Any] = {}
        """How they were made, for ``results.json``."""

    @property
    def title(self) -> str:
        """What was evaluated, for ``results.json``: the head that the tower was trained with, or the tower."""
        source = getattr(self.image, "source", None)
        return str(source["head"]) if source else str(getattr(self.image, "name", type(self.image).__name__))

    @property
    def data(self) -> RadiographDataModule:
        """The run's data.

        Raises:
            ConfigError: they are none of ours.
        """
        datamodule = getattr(self.trainer, "datamodule", None)
        if not isinstance(datamodule, RadiographDataModule):
            raise ConfigError(f"{type(self).__name__} reads a diptych datamodule; give one as --data")
        return datamodule

    def labelled(self) -> tuple[str, ...]:
        """The findings that the data label.

        Raises:
            ConfigError: they label none.
        """
        findings = tuple(self.data.findings)
        if not findings:
            raise ConfigError(f"{type(self).__name__}: {self.data.protocol} has no labels; choose data that have some")
        return findings

    def setup(self, stage: str) -> None:
        """Describe the tower."""
        size = getattr(self.image, "image_size", None)
        trained = getattr(self.image, "source", None) or {
            "name": getattr(self.image, "name", type(self.image).__name__)
        }
        self.protocol = {"tower": {**trained, "trained_at": size, "image_size": self.data.loading.image_size}}

    def passed(self, split: Split) -> Iterator[Batch]:
        """This process's share of a split, each sample once, in order, not augmented, on the module's device."""
        for batch in self.data.evaluation_loader(split):
            yield batch.to(self.device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store what it is of: plain values only."""
        from diptych import __version__

        task = f"{type(self).__module__}.{type(self).__qualname__}"
        checkpoint["diptych"] = {"version": __version__, "task": task, "config": self.config}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint that does not fit, saying what is missing and what is unexpected."""
        check_fit(checkpoint, self, source="the checkpoint")
