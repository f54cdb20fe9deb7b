"""Where a run is saved, and how it goes on from there: as if it had never been interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, ModelCheckpoint, WeightAveraging
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.loops.evaluation_loop import RestartStage
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.progress import _ProcessedTracker
from lightning.pytorch.utilities import rank_zero_info

from diptych.errors import ConfigError

__all__ = ["Best", "Recovery"]


class Best(ModelCheckpoint):
    """Lightning's ``ModelCheckpoint``, which also goes on exactly, and in a run folder that was moved."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse what would write ``last.ckpt`` a second time."""
        if self.save_last:
            raise ConfigError(
                "checkpoint.save_last is set, but `recovery` writes last.ckpt; leave it out, and set "
                "recovery.every_n_train_steps"
            )
        super().setup(trainer, pl_module, stage)

    def state_dict(self) -> dict[str, Any]:
        """Lightning's state, and the step that was saved last: one step is never saved twice."""
        return {**super().state_dict(), "last_global_step_saved": self._last_global_step_saved}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on. Of a folder that was moved, the files are known by their names."""
        self._last_global_step_saved = state_dict.get("last_global_step_saved", 0)
        self.current_score = state_dict["current_score"]
        if self.dirpath and state_dict.get("dirpath") != self.dirpath:
            folder = Path(self.dirpath)
            kept = {str(folder / Path(path).name): score for path, score in state_dict["best_k_models"].items()}
            if kept and all(Path(path).is_file() for path in kept):
                named = {
                    name: str(folder / Path(state_dict[name]).name)
                    for name in ("best_model_path", "kth_best_model_path")
                    if state_dict[name]
                }
                state_dict = {**state_dict, **named, "best_k_models": kept, "dirpath": self.dirpath}
        super().load_state_dict(state_dict)


class Recovery(Checkpoint):
    """Keeps ``last.ckpt`` fresh, so that an interrupted run goes on exactly where it was saved.

    A checkpoint is of the boundary between two optimiser steps. A validation that follows a step belongs after the
    boundary: a run that is killed in it validates first when it goes on. The last checkpoint of a run is written when
    its last validation is over.

    Args:
        dirpath: folder; the run's ``checkpoints`` if not given.
        every_n_train_steps: optimiser steps between two saves; a killed run repeats at most so many.
    """

    requested = False
    """Set on every process of a job: save at the next boundary, whatever the interval."""

    def __init__(self, dirpath: str | None = None, every_n_train_steps: int = 500) -> None:
        if every_n_train_steps < 1:
            raise ConfigError(f"recovery.every_n_train_steps is {every_n_train_steps}; give at least 1")
        self.dirpath, self.every_n_train_steps = dirpath, every_n_train_steps
        self.saved_step = 0
        """The optimiser steps that ``last.ckpt`` holds."""
        self._restored: dict[str, Any] | None = None
        self._validating = False
        self._last_step = False

    # -- saving -----------------------------------------------------------------------------------------------------

    def save(self, trainer: pl.Trainer) -> None:
        """Write ``last.ckpt``: between two steps, or before a batch of a validation within training. Collective."""
        if self.dirpath is None or trainer.fast_dev_run:  # type: ignore[attr-defined]  # Lightning sets it late
            return
        # A validation is of the averaged weights, which are exchanged with the trained ones as long as it lasts.
        averages = _averages(trainer) if self._validating else []
        for average in averages:
            average._swap_models(trainer.lightning_module)
        trainer.save_checkpoint(Path(self.dirpath) / "last.ckpt", weights_only=False)
        for average in averages:
            average._swap_models(trainer.lightning_module)
        self.saved_step, self.requested = trainer.global_step, False

    def _due(self, trainer: pl.Trainer) -> bool:
        every = self.every_n_train_steps
        return self.requested or trainer.global_step // every != self.saved_step // every

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save between two steps; not within the accumulation of a gradient, and not at the end of the run."""
        loop = trainer.fit_loop.epoch_loop
        _keep_constants(trainer)
        if loop._should_accumulate():
            return
        if trainer.global_step >= trainer.max_steps != -1:
            # A run that ends within an epoch is validated too: Lightning does so if it is told to stop.
            self._last_step = not loop._num_ready_batches_reached() and not trainer.should_stop
            trainer.should_stop |= self._last_step
        elif self._due(trainer) and (not loop._num_ready_batches_reached() or _validation_follows(trainer)):
            self.save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the end of a run, and of an epoch without validation. All other callbacks have seen the epoch."""
        fit = trainer.fit_loop
        _keep_constants(trainer)
        ends = (
            (trainer.should_stop and fit._can_stop_early)
            or trainer.global_step >= trainer.max_steps != -1
            or _epochs(fit)[0].processed >= (trainer.max_epochs or -1) != -1
        )
        if ends or self._due(trainer):
            self.save(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say so if no validation has chosen a best checkpoint."""
        best = [each for each in trainer.checkpoint_callbacks if isinstance(each, Best)]
        if best and not any(each.best_model_path for each in best) and not trainer.fast_dev_run:  # type: ignore[attr-defined]  # Lightning sets it late
            rank_zero_info("nothing was validated, so there is no best.ckpt; test with --ckpt_path last")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A checkpoint written from now on has the validation before it."""
        self._validating = not trainer.sanity_checking

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A checkpoint written from now on, as best.ckpt, has the validation behind it."""
        self._validating = False

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Count in every checkpoint what was done at its boundary, whichever hook writes it."""
        fit, saved = trainer.fit_loop, checkpoint["loops"]["fit_loop"]
        loop, epochs, batches = fit.epoch_loop, saved["epoch_progress"], saved["epoch_loop.batch_progress"]
        whole, validate = loop._num_ready_batches_reached(), False
        if (
            batches["current"]["completed"] < batches["current"]["processed"]
        ):  # Lightning counts a batch after its hooks
            validate = _validation_follows(trainer)
            _count(batches, "completed", 1)
            saved["epoch_loop.state_dict"]["_batches_that_stepped"] += not loop._should_accumulate()
        elif epochs["current"]["processed"] < epochs["current"]["started"]:  # in a validation, or at its end
            validate = self._validating
            saved["epoch_loop.state_dict"]["_batches_that_stepped"] += not loop._should_accumulate()
            if validate:  # from its first batch
                validation = saved["epoch_loop.val_loop.batch_progress"]
                for name, number in validation["current"].items():
                    _count(validation, name, -number)
        elif not whole and epochs["current"]["completed"] < epochs["current"]["processed"]:
            _count(epochs, "processed", -1)  # the run ends in an epoch, which a longer run would go on with
        stopped = trainer.should_stop and not self._last_step
        over = epochs["current"]["processed"] == epochs["current"]["started"]
        checkpoint["recovery"] = {
            "validate": validate,
            "stopped": stopped and (over or not validate or not fit._can_stop_early),
        }

    # -- going on ---------------------------------------------------------------------------------------------------

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Read where the run stands; one that had stopped early stays so, unless it is given more patience."""
        if trainer.state.fn != "fit":
            return
        self.saved_step = checkpoint["global_step"]
        self._restored = checkpoint.get("recovery", {"validate": False, "stopped": False})
        patient = False
        for callback in trainer.early_stopping_callbacks:
            state = checkpoint.get("callbacks", {}).get(callback.state_key)
            if isinstance(callback, EarlyStopping) and state is not None:
                exhausted = state["stopping_reason"] == EarlyStoppingReason.PATIENCE_EXHAUSTED.value
                patient |= exhausted and callback.patience > state["wait_count"]
                state["patience"] = callback.patience  # the recipe's, not that of the time
        if self._restored["stopped"] and not patient:
            trainer.should_stop = True
            rank_zero_info("the run had stopped early; give a larger early_stopping.patience to go on")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put Lightning's loops where the checkpoint says. By themselves they take some boundaries for others."""
        if self._restored is None:
            return
        restored, self._restored = self._restored, None
        fit, loop = trainer.fit_loop, trainer.fit_loop.epoch_loop
        epochs, _ = _epochs(fit)
        if epochs.processed == epochs.started:
            _begin_next_epoch(fit)
            return
        if _validation_follows(trainer):
            loop._batches_that_stepped -= 1  # it is counted when Lightning comes back to the validation
        if restored["validate"]:
            loop.val_loop.batch_progress.reset_on_run()
            loop.val_loop._restart_stage = RestartStage.RESTARTED_MID_EVALUATION


def _averages(trainer: pl.Trainer) -> list[WeightAveraging]:
    return [each for each in trainer.callbacks if isinstance(each, WeightAveraging)]  # type: ignore[attr-defined]  # Lightning sets it late


def _keep_constants(trainer: pl.Trainer) -> None:
    """Give averaged weights the buffers that are no weights: numbers of positions, and what no checkpoint holds.

    Lightning averages them too. An average of integers is cut, so that positions would move from step to step.
    """
    for average in _averages(trainer):
        assert average._average_model is not None
        pairs = zip(average._average_model.module.modules(), trainer.lightning_module.modules(), strict=True)
        for averaged, trained in pairs:
            for name, buffer in trained._buffers.items():
                kept = averaged._buffers[name]
                if buffer is None or kept is None:
                    continue
                if name in trained._non_persistent_buffers_set or not buffer.is_floating_point():
                    kept.copy_(buffer)


def _validation_follows(trainer: pl.Trainer) -> bool:
    """Whether Lightning validates after the batch where its loops stand."""
    fit = trainer.fit_loop
    assert fit._data_fetcher is not None
    return fit.epoch_loop._should_check_val_fx(fit._data_fetcher)


def _epochs(fit: _FitLoop) -> tuple[_ProcessedTracker, _ProcessedTracker]:
    """Epochs of this run that began and ended, and of all."""
    current, total = fit.epoch_progress.current, fit.epoch_progress.total
    assert isinstance(current, _ProcessedTracker)
    assert isinstance(total, _ProcessedTracker)
    return current, total


def _count(progress: dict[str, Any], name: str, number: int) -> None:
    """Add to a counter of the epoch and to that of the run."""
    for scope in ("current", "total"):
        progress[scope][name] += number


def _begin_next_epoch(fit: _FitLoop) -> None:
    """An epoch is over: with ``max_steps``, Lightning would end it a second time."""
    for progress in _epochs(fit):
        progress.completed = progress.processed
    fit._restarting = False
    fit.epoch_loop.restarting = False
    fit.reset_restart_stage()
    fit.epoch_loop.reset_restart_stage()
