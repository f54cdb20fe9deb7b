"""Checkpoints of a run, and how it goes on from one as if it had never been interrupted."""

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

from diptych.checks import check_number
from diptych.errors import ConfigError

__all__ = ["Best", "Recovery"]


class Best(ModelCheckpoint):
    """Lightning's ``ModelCheckpoint``. It also goes on exactly, and works in a run folder that was moved."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse ``save_last``, which would write ``last.ckpt`` a second time."""
        if self.save_last:
            raise ConfigError(
                "checkpoint.save_last is set, but `recovery` writes last.ckpt; leave it out, and set "
                "recovery.every_n_train_steps"
            )
        super().setup(trainer, pl_module, stage)

    def state_dict(self) -> dict[str, Any]:
        """Lightning's state, and the step that was saved last. So no step is saved twice."""
        return {**super().state_dict(), "last_global_step_saved": self._last_global_step_saved}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint's state. In a folder that was moved, files are recognised by their names."""
        self._last_global_step_saved = state_dict.get("last_global_step_saved", 0)
        self.current_score = state_dict["current_score"]
        if self.dirpath and state_dict.get("dirpath") != self.dirpath:
            folder = Path(self.dirpath)
            scores = {str(folder / Path(path).name): score for path, score in state_dict["best_k_models"].items()}
            if scores and all(Path(path).is_file() for path in scores):
                paths = {
                    name: str(folder / Path(state_dict[name]).name)
                    for name in ("best_model_path", "kth_best_model_path")
                    if state_dict[name]
                }
                state_dict = {**state_dict, **paths, "best_k_models": scores, "dirpath": self.dirpath}
        super().load_state_dict(state_dict)


class Recovery(Checkpoint):
    """Keeps ``last.ckpt`` fresh, so that an interrupted run goes on exactly where it was saved.

    A checkpoint describes the boundary between two optimiser steps. A validation that follows a step comes after the
    boundary. So a run that is killed in a validation begins with this validation when it goes on. The last checkpoint of a
    run is written after its last validation.

    Args:
        dirpath: the folder of ``last.ckpt``. The default is the run's ``checkpoints``.
        every_n_train_steps: optimiser steps between two saves. A killed run repeats at most so many.
    """

    requested = False
    """Whether to save at the next boundary, whatever the interval. It is set on every process of a job."""

    def __init__(self, dirpath: str | None = None, every_n_train_steps: int = 500) -> None:
        check_number("recovery.every_n_train_steps", every_n_train_steps, least=1, whole=True)
        self.dirpath, self.every_n_train_steps = dirpath, every_n_train_steps
        self.saved_step = 0
        """The optimiser steps that ``last.ckpt`` holds."""
        self._restored: dict[str, Any] | None = None
        self._validating = False
        self._last_step = False

    # -- saving -----------------------------------------------------------------------------------------------------

    def save(self, trainer: pl.Trainer) -> None:
        """Write ``last.ckpt`` between two steps, or before a batch of a validation within training. Collective."""
        if self.dirpath is None or trainer.fast_dev_run:  # type: ignore[attr-defined]  # Lightning sets it late
            return
        # During a validation the averaged weights are in place of the trained ones.
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
        """Save if it is time. Within the accumulation of a gradient and at the end of the run nothing is saved here."""
        loop = trainer.fit_loop.epoch_loop
        _keep_constants(trainer)
        if loop._should_accumulate():
            return
        if trainer.global_step >= trainer.max_steps != -1:
            # Lightning validates a run that ends within an epoch only if it should stop.
            self._last_step = not loop._num_ready_batches_reached() and not trainer.should_stop
            trainer.should_stop |= self._last_step
        elif self._due(trainer) and (not loop._num_ready_batches_reached() or _validation_follows(trainer)):
            self.save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save at the end of a run, and at the end of an epoch if it is time. All other callbacks have run by now."""
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
        """Note that the validation is still to come for a checkpoint that is written from now on."""
        self._validating = not trainer.sanity_checking

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note that the validation is over for a checkpoint that is written from now on, as best.ckpt."""
        self._validating = False

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Correct the counters of every checkpoint to those of its boundary, whichever hook writes it."""
        fit, saved = trainer.fit_loop, checkpoint["loops"]["fit_loop"]
        loop, epochs, batches = fit.epoch_loop, saved["epoch_progress"], saved["epoch_loop.batch_progress"]
        whole, validate = loop._num_ready_batches_reached(), False
        if (
            batches["current"]["completed"] < batches["current"]["processed"]
        ):  # Lightning counts a batch after its hooks
            validate = _validation_follows(trainer)
            _add(batches, "completed", 1)
            saved["epoch_loop.state_dict"]["_batches_that_stepped"] += not loop._should_accumulate()
        elif epochs["current"]["processed"] < epochs["current"]["started"]:  # in a validation, or at its end
            validate = self._validating
            saved["epoch_loop.state_dict"]["_batches_that_stepped"] += not loop._should_accumulate()
            if validate:  # from its first batch
                validation = saved["epoch_loop.val_loop.batch_progress"]
                for name, number in validation["current"].items():
                    _add(validation, name, -number)
        elif not whole and epochs["current"]["completed"] < epochs["current"]["processed"]:
            _add(epochs, "processed", -1)  # the run ends in an epoch, which a longer run would go on with
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
        """Read where the run stands. A run that had stopped early stays so, unless its patience is now larger."""
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
                state["patience"] = callback.patience  # of the recipe, not of the checkpoint
        if self._restored["stopped"] and not patient:
            trainer.should_stop = True
            rank_zero_info("the run had stopped early; give a larger early_stopping.patience to go on")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Set Lightning's loops to the checkpoint's boundary. By themselves they mistake some boundaries for others."""
        if self._restored is None:
            return
        restored, self._restored = self._restored, None
        fit, loop = trainer.fit_loop, trainer.fit_loop.epoch_loop
        epochs, _ = _epochs(fit)
        if epochs.processed == epochs.started:
            _begin_next_epoch(fit)
            return
        if _validation_follows(trainer):
            loop._batches_that_stepped -= 1  # Lightning counts it again at the validation
        if restored["validate"]:
            loop.val_loop.batch_progress.reset_on_run()
            loop.val_loop._restart_stage = RestartStage.RESTARTED_MID_EVALUATION


def _averages(trainer: pl.Trainer) -> list[WeightAveraging]:
    return [each for each in trainer.callbacks if isinstance(each, WeightAveraging)]  # type: ignore[attr-defined]  # Lightning sets it late


def _keep_constants(trainer: pl.Trainer) -> None:
    """Copy the constants of the trained model into the averaged one: integer buffers, and buffers that are not stored.

    Lightning averages them too. But averages of integers are rounded down, so positions would change from step to step.
    """
    for average in _averages(trainer):
        assert average._average_model is not None
        pairs = zip(average._average_model.module.modules(), trainer.lightning_module.modules(), strict=True)
        for averaged, trained in pairs:
            for name, buffer in trained._buffers.items():
                average_buffer = averaged._buffers[name]
                if buffer is None or average_buffer is None:
                    continue
                if name in trained._non_persistent_buffers_set or not buffer.is_floating_point():
                    average_buffer.copy_(buffer)


def _validation_follows(trainer: pl.Trainer) -> bool:
    """Whether Lightning validates after the batch where its loops stand."""
    fit = trainer.fit_loop
    assert fit._data_fetcher is not None
    return fit.epoch_loop._should_check_val_fx(fit._data_fetcher)


def _epochs(fit: _FitLoop) -> tuple[_ProcessedTracker, _ProcessedTracker]:
    """The counters of epochs: of this run, and of all runs."""
    current, total = fit.epoch_progress.current, fit.epoch_progress.total
    assert isinstance(current, _ProcessedTracker)
    assert isinstance(total, _ProcessedTracker)
    return current, total


def _add(progress: dict[str, Any], name: str, number: int) -> None:
    """Add a number to a counter of the epoch, and to the same counter of the run."""
    for scope in ("current", "total"):
        progress[scope][name] += number


def _begin_next_epoch(fit: _FitLoop) -> None:
    """Begin the epoch after the one that is over. With ``max_steps``, Lightning would end that one a second time."""
    for progress in _epochs(fit):
        progress.completed = progress.processed
    fit._restarting = False
    fit.epoch_loop.restarting = False
    fit.reset_restart_stage()
    fit.epoch_loop.reset_restart_stage()
