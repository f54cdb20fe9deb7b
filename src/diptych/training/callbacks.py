"""Callbacks of every run: throughput, the progress bar, the number of parameters and the result file."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelSummary, RichProgressBar
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from lightning.pytorch.utilities.model_summary.model_summary import get_human_readable_count
from rich.progress import BarColumn, ProgressColumn
from rich.table import Column
from torch import nn

from diptych.data.datamodule import RadiographDataModule
from diptych.files import sha256
from diptych.model.encoder import DualEncoder
from diptych.model.module import AlignmentModule
from diptych.predictions.table import ENDINGS, Format, need_format, write_table
from diptych.radiographs.intensity import Intensity
from diptych.results.class_curves import write_curves
from diptych.results.record import print_table, write_results
from diptych.tasks.base import Task
from diptych.training.loggers import log_figures

__all__ = ["Bar", "Results", "Summary", "Throughput"]


class Bar(RichProgressBar):
    """Lightning's rich progress bar, within 80 columns. Epochs count from one, and only losses stand beside it."""

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """The losses. Other metrics are in the line after each validation, and in the logs."""
        metrics = super().get_metrics(trainer, pl_module)
        return {
            short: f"{metrics[name]:.4g}"
            for name, short in (("train/loss", "loss"), ("val/loss", "val"))
            if isinstance(metrics.get(name), float)
        }

    def _init_progress(self, trainer: pl.Trainer) -> None:
        super()._init_progress(trainer)
        for column in () if self.progress is None else self.progress.columns:
            if isinstance(column, BarColumn):
                column.bar_width = None  # it shrinks to make room for the text beside it
            elif isinstance(column, ProgressColumn):
                column._table_column = Column(no_wrap=True)

    def _get_train_description(self, current_epoch: int) -> str:
        return f"Epoch {_epoch_number(self.trainer, current_epoch)}"


def _epoch_number(trainer: pl.Trainer, epoch: int) -> str:
    """An epoch, counted from one, and the number of all epochs where it is known."""
    known = trainer.max_epochs is not None and trainer.max_epochs > 0
    return f"{epoch + 1}/{trainer.max_epochs}" if known else f"{epoch + 1}"


class Summary(ModelSummary):
    """Says in one line how many parameters each part of the model has, and how many of all are trained."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count the parameters and print the line."""
        parts: dict[str, nn.Module] = {}
        for name, child in pl_module.named_children():
            parts |= dict(child.named_children()) if isinstance(child, DualEncoder) else {name: child}
        counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
        by_part = ", ".join(f"{name} {_count(number)}" for name, number in counts.items() if number)
        trained = sum(p.numel() for p in pl_module.parameters() if p.requires_grad)
        rank_zero_info(f"parameters: {by_part}; {_count(trained)} of {_count(sum(counts.values()))} are trained")


def _count(number: int) -> str:
    """A number of parameters, as ``1.2 M``."""
    return get_human_readable_count(number).replace("  ", " ").strip()


class Throughput(pl.Callback):
    """Logs images a second over the whole job, seconds a step, and the share of time that this process waits for data.

    With a share near 0 the accelerator sets the pace. With a share near 1, more loader workers would help.
    """

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self.begin = self.ended = time.perf_counter()
        self.waited, self.images, self.steps = 0.0, 0, 0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._reset()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restart the clock, without the time of validation, and print the main metrics in one line."""
        self._reset()
        if not trainer.sanity_checking:
            logged = trainer.callback_metrics
            shown: list[str] = [name for name in ("train/loss", "val/loss") if name in logged]
            shown += [
                name
                for name in logged
                if name.startswith("val/")
                and (
                    name == "val/retrieval/r@5"
                    or name.endswith(("/auroc/macro", "macro_auroc"))
                    or name == getattr(pl_module, "monitor", None)
                )
            ]
            values = ", ".join(f"{name} {float(logged[name]):.3f}" for name in shown)
            rank_zero_info(
                f"epoch {_epoch_number(trainer, trainer.current_epoch)}, step {trainer.global_step}: {values}"
            )

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Add the wait for this batch."""
        self.waited += time.perf_counter() - self.ended

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the images, and log the pace at the trainer's interval."""
        self.ended = time.perf_counter()
        self.images += len(batch) * trainer.world_size
        self.steps += 1
        interval: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # Lightning sets it late
        if (batch_idx + 1) % interval == 0:
            elapsed = self.ended - self.begin
            rates = {
                "train/images_per_second": self.images / elapsed,
                "train/seconds_per_step": elapsed / self.steps,
                "train/data_wait": self.waited / elapsed,
            }
            pl_module.log_dict(rates, rank_zero_only=True, batch_size=len(batch))
            self._reset()


class Results(pl.Callback):
    """Prints the figures at the end of a test, then writes them to ``results.json``, and lists dropped rows.

    A test also writes what the model said of each sample (:mod:`diptych.predictions`). This callback runs before others, and
    prints before it writes. So the figures of a long test are seen even if something cannot be written.

    Args:
        predictions: how predictions are written: ``csv``, ``parquet`` or ``none``. A private run writes none.
    """

    def __init__(self, predictions: Format = "csv") -> None:
        self._printed = False
        self._form: Format = predictions

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Begin a pass, whose figures are not printed yet.

        Raises:
            ConfigError: the library that writes parquet is not installed.
        """
        self._printed = False
        if stage == "test":
            need_format(self._form)

    @rank_zero_only
    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Print the figures if an error, such as a logger's full disk, came between them and the end of the test."""
        if trainer.state.fn in {"test", "validate"} and isinstance(pl_module, AlignmentModule | Task):
            self._print(pl_module)

    @rank_zero_only
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the rows that the datamodule left out to ``dropped.csv``."""
        self._write_dropped(trainer)

    @rank_zero_only
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say how many rows were left out, and by which rule."""
        datamodule = getattr(trainer, "datamodule", None)
        if isinstance(datamodule, RadiographDataModule) and datamodule.dropped.rows:
            counted = ", ".join(f"{n} {rule}" for rule, n in datamodule.dropped.counts().items())
            path = Path(trainer.default_root_dir) / "dropped.csv"
            rank_zero_info(
                f"left out: {counted}; {'counted' if datamodule.loading.private else 'every one is'} in {path}"
            )

    @rank_zero_only
    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the figures of a test, and write them."""
        self._finish(trainer, pl_module, "results.json")

    @rank_zero_only
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print and write the figures of ``diptych validate``, not those of validations within training."""
        if trainer.state.fn == "validate":
            self._finish(trainer, pl_module, "results-val.json")

    def _finish(self, trainer: pl.Trainer, pl_module: pl.LightningModule, name: str) -> None:
        if isinstance(pl_module, AlignmentModule | Task):
            try:
                self._print(pl_module)
            finally:  # if printing fails, as into a closed pipe, the figures are still written
                self._write_results(trainer, pl_module, name)
        self._write_dropped(trainer)
        if isinstance(pl_module, AlignmentModule | Task):
            log_figures(trainer, pl_module.results, name.removesuffix(".json"))

    def _print(self, pl_module: AlignmentModule | Task) -> None:
        if pl_module.results and not self._printed:
            self._printed = True
            print_table(pl_module.results)

    @staticmethod
    def _write_dropped(trainer: pl.Trainer) -> None:
        datamodule = getattr(trainer, "datamodule", None)
        if isinstance(datamodule, RadiographDataModule) and datamodule.dropped.rows:
            datamodule.dropped.write(Path(trainer.default_root_dir) / "dropped.csv", datamodule.loading.private)

    def _write_results(self, trainer: pl.Trainer, pl_module: AlignmentModule | Task, name: str) -> None:
        datamodule = getattr(trainer, "datamodule", None)
        if not isinstance(datamodule, RadiographDataModule):
            return
        checkpoint = str(trainer.ckpt_path) if trainer.ckpt_path else None
        protocol: dict[str, Any] = {"data": datamodule.protocol}
        if datamodule.dropped.rows:
            protocol["left_out"] = datamodule.dropped.counts()
        if (intensity := datamodule.loading.intensity) != Intensity():
            protocol["intensity"] = intensity.plain()
        if datamodule.overlaps:
            protocol["overlaps"] = datamodule.overlaps
        predictions = self._write_predictions(trainer, pl_module, datamodule) if name == "results.json" else None
        if name == "results.json":
            for path in Path(trainer.default_root_dir).glob("curves-*.*"):  # of an earlier test
                path.unlink()
            write_curves(Path(trainer.default_root_dir), pl_module.predictions)
        write_results(
            Path(trainer.default_root_dir) / name,
            metrics=pl_module.results,
            protocol=protocol | pl_module.protocol,
            split_hash=datamodule.split_hash,
            seed=datamodule.loading.seed,
            checkpoint=checkpoint,
            checkpoint_sha256=None if checkpoint is None else sha256(checkpoint),
            head=pl_module.title,
            data=type(datamodule).__name__,
            predictions=predictions,
        )
        rank_zero_info(f"written: {Path(trainer.default_root_dir) / name}")

    def _write_predictions(
        self, trainer: pl.Trainer, pl_module: AlignmentModule | Task, datamodule: RadiographDataModule
    ) -> dict[str, Any] | None:
        """Write what the model said of each sample, and return what ``results.json`` says of it. None if nothing is written."""
        folder = Path(trainer.default_root_dir)
        for ending in ENDINGS:  # of an earlier test, whose figures are replaced
            (folder / f"predictions.{ending}").unlink(missing_ok=True)
        kept = pl_module.predictions
        if self._form == "none" or datamodule.loading.private or not kept:
            return None
        path, dataset = folder / f"predictions.{self._form}", datamodule.datasets["test"]
        write_table(path, dataset.ids, dataset.patients, pl_module.index.tolist(), kept, dataset.about)
        rank_zero_info(f"written: {path}, a row a test image; keep it where the data may be")
        of = {name: {"kind": one.kind, **one.settings} for name, one in kept.items()}
        return {"file": path.name, "of": of}
