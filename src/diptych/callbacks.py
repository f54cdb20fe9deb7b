"""What every run has beside training: throughput, the progress bar and the result file."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from diptych.data import RadiographDataModule
from diptych.files import sha256
from diptych.intensity import Intensity
from diptych.module import AlignmentModule
from diptych.results import print_table, write_results
from diptych.task import Task

__all__ = ["Bar", "Results", "Throughput"]


class Bar(RichProgressBar):
    """Lightning's rich progress bar without the version number of a run that has none."""

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """The metrics beside the bar."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics


class Throughput(pl.Callback):
    """Logs images a second over the whole job, seconds a step, and the share of time this process waited for data.

    A share near 0 means the accelerator sets the pace; near 1, more or faster loader workers would help.
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
        """Leave validation out of the clock, and say in one line where training stands."""
        self._reset()
        if not trainer.sanity_checking:
            logged = trainer.callback_metrics
            shown: list[str] = [name for name in ("train/loss", "val/loss") if name in logged]
            shown += [
                name
                for name in logged
                if name.startswith("val/")
                and (
                    name.endswith(("/r@5", "/auroc/macro", "macro_auroc"))
                    or name == getattr(pl_module, "monitor", None)
                )
            ]
            values = ", ".join(f"{name} {float(logged[name]):.3f}" for name in shown)
            rank_zero_info(f"epoch {trainer.current_epoch}, step {trainer.global_step}: {values}")

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """The wait for this batch is over."""
        self.waited += time.perf_counter() - self.ended

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count, and log at the trainer's interval."""
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
            pl_module.log_dict(rates, prog_bar=True, rank_zero_only=True, batch_size=len(batch))
            self._reset()


class Results(pl.Callback):
    """Prints the figures at the end of a test, then writes them to ``results.json``, and lists dropped rows.

    It stands before other callbacks, and figures are printed before anything is written: nothing that cannot be written
    takes hours of a test with it.
    """

    def __init__(self) -> None:
        self._printed = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Nothing is printed yet."""
        self._printed = False

    @rank_zero_only
    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Print figures that a logger on a full disk, or another callback, has kept from the end of the test."""
        if trainer.state.fn in {"test", "validate"} and isinstance(pl_module, AlignmentModule | Task):
            self._print(pl_module)

    @rank_zero_only
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """List what the datamodule left out."""
        self._dropped(trainer)

    @rank_zero_only
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say once more what was left out."""
        datamodule = getattr(trainer, "datamodule", None)
        if isinstance(datamodule, RadiographDataModule) and datamodule.dropped.rows:
            counted = ", ".join(f"{n} {rule}" for rule, n in datamodule.dropped.counts().items())
            path = Path(trainer.default_root_dir) / "dropped.csv"
            rank_zero_info(
                f"left out: {counted}; {'counted' if datamodule.loading.private else 'every one is'} in {path}"
            )

    @rank_zero_only
    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print and write."""
        self._finish(trainer, pl_module, "results.json")

    @rank_zero_only
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print and write after ``diptych validate``, not within training."""
        if trainer.state.fn == "validate":
            self._finish(trainer, pl_module, "results-val.json")

    def _finish(self, trainer: pl.Trainer, pl_module: pl.LightningModule, name: str) -> None:
        if isinstance(pl_module, AlignmentModule | Task):
            try:
                self._print(pl_module)
            finally:  # a reader that has gone, as of `| head`, costs no figures either
                self._write(trainer, pl_module, name)
        self._dropped(trainer)

    def _print(self, pl_module: AlignmentModule | Task) -> None:
        if pl_module.results and not self._printed:
            self._printed = True
            print_table(pl_module.results)

    @staticmethod
    def _dropped(trainer: pl.Trainer) -> None:
        datamodule = getattr(trainer, "datamodule", None)
        if isinstance(datamodule, RadiographDataModule) and datamodule.dropped.rows:
            datamodule.dropped.write(Path(trainer.default_root_dir) / "dropped.csv", datamodule.loading.private)

    @staticmethod
    def _write(trainer: pl.Trainer, pl_module: AlignmentModule | Task, name: str) -> None:
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
        )
        rank_zero_info(f"written: {Path(trainer.default_root_dir) / name}")
