"""Base classes of the downstream tasks, which are built on an image tower."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diptych.checks import check_number
from diptych.data.datamodule import RadiographDataModule, Split
from diptych.data.sampling import mix
from diptych.errors import ConfigError
from diptych.evaluation.rows import Rows
from diptych.metrics.bootstrap import Draws, Metric
from diptych.model.checkpoint import check_fit
from diptych.model.optim import OptimizerFactory, ScheduleFactory, adamw_and_schedule, rates_of, total_steps
from diptych.predictions.base import Predictions
from diptych.predictions.kinds import with_draws
from diptych.towers.image import ImageTower
from diptych.types import Batch

__all__ = ["PyramidTask", "Task", "TrainedTask"]


class Task(pl.LightningModule):
    """Base of every downstream task.

    Args:
        image: the tower that the task reads. ``TrainedImage`` is a run's tower. ``TimmImage`` is one of timm.
    """

    trains = True
    """Whether ``diptych fit`` trains the task. If not, ``diptych test`` does all of it, without a checkpoint."""
    monitor = "val/loss"
    """The metric of validation by which the best checkpoint is chosen."""
    pictures = 0
    """How many of the first test images are drawn."""
    config: dict[str, Any] | None = None
    """The configuration from which the command line built this task."""

    def __init__(self, image: ImageTower) -> None:
        super().__init__()
        self.image = image
        self.results: dict[str, Metric] = {}
        """The metrics of the last validation or test pass, with intervals."""
        self.protocol: dict[str, Any] = {}
        """All that the metrics depend on, for ``results.json``."""
        self.index: NDArray[np.int64] = np.zeros(0, np.int64)
        """Numbers ``[n]`` in the data set of the samples of the last pass, in order."""
        self.predictions: dict[str, Predictions] = {}
        """What the last pass kept of each of these samples, for ``predictions.csv``, by the first part of metrics' names."""

    @property
    def title(self) -> str:
        """The name in ``results.json``: the head that the tower was trained with, or else the tower's own name."""
        origin = self.image.origin
        return str(origin.get("head") or origin["name"])

    @property
    def data(self) -> RadiographDataModule:
        """The run's datamodule.

        Raises:
            ConfigError: it is no ``RadiographDataModule``.
        """
        datamodule = getattr(self.trainer, "datamodule", None)
        if not isinstance(datamodule, RadiographDataModule):
            raise ConfigError(f"{type(self).__name__} reads a diptych datamodule; give one as --data")
        return datamodule

    def label_names(self) -> tuple[str, ...]:
        """The findings that the data set labels.

        Raises:
            ConfigError: the data set labels none.
        """
        findings = tuple(self.data.findings)
        if not findings:
            raise ConfigError(f"{type(self).__name__}: {self.data.protocol} has no labels; choose data that have some")
        return findings

    def setup(self, stage: str) -> None:
        """Note the tower and the size of its images in the protocol.

        Raises:
            ConfigError: the data give more images of a study than the tower takes.
        """
        self.image.check_images(1 + self.data.others)
        self.protocol = {"tower": {**self.image.origin, "image_size": self.data.loading.image_size}}

    def picture_files(self, batch: Batch, stem: str) -> Iterator[tuple[int, Path]]:
        """The rows of a test batch that are drawn, each with the file of its picture. None outside a test."""
        if not self.trainer.testing:
            return
        folder = Path(self.trainer.default_root_dir) / "figures"
        for row in ((batch.index < self.pictures) & batch.valid).nonzero().squeeze(1).tolist():
            yield row, folder / f"{stem}{int(batch.index[row]):03d}.png"

    def log_results(self) -> None:
        """Log the values of ``results``. They are the same on every process."""
        self.log_dict({name: value.value for name, value in self.results.items()}, rank_zero_only=False)

    def keep_predictions(self, rows: Rows, predictions: dict[str, Predictions]) -> None:
        """Keep columns with a value for each sample of ``rows``, which has been gathered."""
        self.index, self.predictions = rows.samples.index.numpy(), predictions

    def figures(
        self, rows: Rows, group: NDArray[Any], name: str, kept: Predictions
    ) -> tuple[dict[str, Draws], dict[str, Any]]:
        """Keep predictions as the only ones, and compute their figures.

        Args:
            rows: the samples, gathered.
            group: their patients ``[n]``.
            name: first part of the metrics' names.
            kept: what was found of each sample.

        Returns:
            Figures by name, and facts for the protocol.
        """
        self.keep_predictions(rows, {name: kept})
        return with_draws(kept, group)

    def masks_of(self, batch: Batch) -> Tensor:
        """The masks ``[B,H,V]`` of a batch.

        Raises:
            ConfigError: the data set has no masks.
        """
        if batch.masks is None:
            raise ConfigError(
                f"{type(self).__name__}: {self.data.protocol} gives no masks; choose data that have some (siim; rsna and "
                "phantom with data.masks; tabular with data.columns.mask)"
            )
        return batch.masks

    def batches_of(self, split: Split) -> Iterator[Batch]:
        """The batches of a split that fall to this process: each sample once, in order, not augmented, on the device."""
        for batch in self.data.evaluation_loader(split):
            yield batch.to(self.device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the version, the task's class and its configuration, as plain values."""
        from diptych.version import __version__

        task = f"{type(self).__module__}.{type(self).__qualname__}"
        checkpoint["diptych"] = {"version": __version__, "task": task, "config": self.config}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint whose weights do not fit. The message names the missing and the unexpected ones."""
        check_fit(checkpoint, self, source="the checkpoint")


class TrainedTask(Task):
    """Base of the tasks that ``diptych fit`` trains by gradient. They are evaluated over whole sets.

    Args:
        image: the tower. Its ``layer_decay``, ``frozen`` and ``freeze_layers`` hold here.
        lr: peak learning rate of the task's own layers and of the tower's top layer.
        weight_decay: weight decay of AdamW on weight matrices.
        warmup: number of steps of linear warm-up. Below 1, their share of all steps.
        lr_floor: learning rate at the end of the cosine, as a share of ``lr``.
        resamples: number of bootstrap resamples of the test. 0 gives no intervals.
        optimizer: another optimiser than AdamW, as :class:`~diptych.model.module.AlignmentModule` has it. ``lr`` and
            ``weight_decay`` are then its own.
        schedule: another schedule than warm-up and cosine.
    """

    def __init__(
        self,
        image: ImageTower,
        *,
        lr: float,
        weight_decay: float,
        warmup: float,
        lr_floor: float,
        resamples: int,
        optimizer: OptimizerFactory | None = None,
        schedule: ScheduleFactory | None = None,
    ) -> None:
        super().__init__(image)
        check_number(f"{type(self).__name__}: resamples", resamples, least=0, remedy="0 (no intervals) or more")
        if optimizer is not None:
            lr, weight_decay = rates_of(optimizer, {"lr": lr, "weight_decay": weight_decay}, type(self))
        self.optimizer, self.schedule = optimizer, schedule
        self.lr, self.weight_decay, self.warmup, self.lr_floor = lr, weight_decay, warmup, lr_floor
        self.resamples = resamples

    def how_trained(self) -> str:
        """Whether the tower is trained or frozen, in words for the protocol."""
        trains = any(parameter.requires_grad for parameter in self.image.parameters())
        return "trained along" if trains else "frozen and in evaluation mode"

    def train_what_is_used(self, outputs: Callable[[Tensor], Sequence[Tensor]]) -> None:
        """Freeze the parameters of the tower that the task does not use, such as the norm of a pooled vector.

        They would get no gradient, and DDP would wait for one.

        Args:
            outputs: function from images ``[1,1,H,V]`` to the tensors that the task uses.
        """
        parameters = [parameter for parameter in self.image.parameters() if parameter.requires_grad]
        if not parameters:
            return
        training, size = self.training, self.data.loading.image_size
        self.eval()
        with torch.inference_mode(False), torch.enable_grad():
            tensors = outputs(torch.zeros(1, 1, size, size, device=self.device))
            total = torch.stack([tensor.float().sum() for tensor in tensors]).sum()
            gradients: tuple[Tensor | None, ...] = (None,) * len(parameters)
            if total.requires_grad:
                gradients = torch.autograd.grad(total, parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.requires_grad_(gradient is not None)
        self.train(training)

    @abstractmethod
    def begin(self) -> None:
        """Begin a pass over a validation or test set."""

    @abstractmethod
    def collect(self, batch: Batch) -> None:
        """Keep what ``finish`` needs of a batch. Rows where ``batch.valid`` is False are left out."""

    @abstractmethod
    def finish(self, stage: str, resamples: int) -> None:
        """Compute ``results`` and ``protocol`` over the whole set. Every process must call it.

        Args:
            stage: ``val`` or ``test``, the first part of the results' names.
            resamples: number of bootstrap resamples. 0 gives no intervals.
        """

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed dropout by epoch and batch. So a resumed run draws the same numbers as an uninterrupted one."""
        torch.manual_seed(mix(self.data.loading.seed, self.current_epoch, batch_idx, self.global_rank))

    def configure_optimizers(self) -> Any:
        """The optimiser, and the schedule by optimiser steps."""
        return adamw_and_schedule(
            self,
            lr=self.lr,
            weight_decay=self.weight_decay,
            warmup=self.warmup,
            lr_floor=self.lr_floor,
            steps=total_steps(self.trainer, self.data.steps_per_epoch()),
            optimizer=self.optimizer,
            schedule=self.schedule,
        )

    def on_validation_epoch_start(self) -> None:
        """Begin a pass over the validation set."""
        self.begin()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Keep what the task measures on a validation batch."""
        self.collect(batch)

    def on_validation_epoch_end(self) -> None:
        """Compute the results over the whole validation set, and log them."""
        self.finish("val", 0 if self.trainer.state.fn == "fit" else self.resamples)
        self.log_results()

    def on_test_epoch_start(self) -> None:
        """Begin a pass over the test set."""
        self.begin()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Keep what the task measures on a test batch."""
        self.collect(batch)

    def on_test_epoch_end(self) -> None:
        """Compute the results over the whole test set, and log them."""
        self.finish("test", self.resamples)
        self.log_results()


class PyramidTask(TrainedTask):
    """Base of the tasks that predict boxes or masks from the tower's feature pyramid, and draw their predictions.

    Args:
        image: the tower. Its ``layer_decay``, ``frozen`` and ``freeze_layers`` hold here.
        pictures: number of the first test images that are drawn into the run's ``figures``.
        lr: peak learning rate of the task's own layers and of the tower's top layer.
        weight_decay: weight decay of AdamW on filters and weight matrices.
        warmup: number of steps of linear warm-up. Below 1, their share of all steps.
        lr_floor: learning rate at the end of the cosine, as a share of ``lr``.
        resamples: number of bootstrap resamples of the test. 0 gives no intervals.
        optimizer: another optimiser than AdamW, as :class:`~diptych.model.module.AlignmentModule` has it. ``lr`` and
            ``weight_decay`` are then its own.
        schedule: another schedule than warm-up and cosine.

    Raises:
        ConfigError: the tower has no feature pyramid, or ``pictures`` is below 0.
    """

    def __init__(
        self,
        image: ImageTower,
        *,
        pictures: int,
        lr: float,
        weight_decay: float,
        warmup: float,
        lr_floor: float,
        resamples: int,
        optimizer: OptimizerFactory | None = None,
        schedule: ScheduleFactory | None = None,
    ) -> None:
        super().__init__(
            image,
            lr=lr,
            weight_decay=weight_decay,
            warmup=warmup,
            lr_floor=lr_floor,
            resamples=resamples,
            optimizer=optimizer,
            schedule=schedule,
        )
        name = type(self).__name__
        if not image.pyramid_widths:
            raise ConfigError(f"{name}: {type(image).__name__} has no feature pyramid; choose another image tower")
        check_number(f"{name}: pictures", pictures, least=0, whole=True)
        self.pictures = pictures

    def configure_model(self) -> None:
        """Freeze the parameters of the tower that its pyramid does not use."""
        self.train_what_is_used(self.image.pyramid)
