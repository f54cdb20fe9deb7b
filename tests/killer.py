"""Callbacks for the tests: training ends in its midst."""

import os
import signal
from typing import ClassVar

import lightning.pytorch as pl
from lightning.pytorch.callbacks import WeightAveraging


class At(pl.Callback):
    """Something happens at a moment of a run, once.

    Args:
        step: optimiser steps that are done by then.
        moment: ``trained`` (at the end of a batch, before anything is saved), ``begun`` (at the start of the next),
            ``validating`` (before the second batch of a validation), ``validated`` (at its end, before best.ckpt).
    """

    def __init__(self, step: int, moment: str = "trained") -> None:
        self.step, self.moment = step, moment

    def happen(self) -> None:
        raise NotImplementedError

    def _pass(self, trainer: pl.Trainer, moment: str) -> None:
        if moment == self.moment and trainer.global_step >= self.step and not trainer.sanity_checking:
            self.happen()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self._pass(trainer, "trained")

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self._pass(trainer, "begun")

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0) -> None:
        if batch_idx:
            self._pass(trainer, "validating")

    def on_validation_end(self, trainer, pl_module) -> None:
        self._pass(trainer, "validated")


class KillAt(At):
    """SIGKILL to this very process, without a chance to clean up."""

    def happen(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class RaiseAt(At):
    """The same within a process that goes on: an error."""

    def happen(self) -> None:
        raise InterruptedError(f"{self.moment} after step {self.step}")


class Averaged(pl.Callback):
    """Whether buffers that are no weights are the same in averaged and trained weights, at each validation."""

    seen: ClassVar[set[str]] = set()
    apart: ClassVar[set[str]] = set()

    def on_validation_start(self, trainer, pl_module) -> None:
        (average,) = [each for each in trainer.callbacks if isinstance(each, WeightAveraging)]
        trained = dict(pl_module.named_buffers())
        for name, buffer in average._average_model.module.named_buffers():
            if not buffer.is_floating_point():
                self.seen.add(name)
                if not (buffer == trained[name]).all():
                    self.apart.add(name)


class Spoil(pl.Callback):
    """Something that is no number, after ``step`` optimiser steps: in ``loss``, ``gradient`` or ``weights``.

    ``infinite``: the same in a loss. ``odd``: in a loss, of batches of odd number. ``always``: in every loss from there.
    ``rank``: on this process alone.
    """

    def __init__(self, step: int, where: str, rank: int | None = None) -> None:
        self.step, self.where, self.rank = step, where, rank

    def _now(self, trainer) -> bool:
        at = trainer.global_step >= self.step if self.where == "always" else trainer.global_step == self.step
        return at and self.rank in (None, trainer.global_rank)

    def setup(self, trainer, pl_module, stage) -> None:
        step = pl_module.training_step

        def spoiled(*given):
            loss = step(*given)
            value = {
                "odd": float("nan") if given[1] % 2 else 0.0,
                "loss": float("nan"),
                "always": float("nan"),
                "infinite": float("inf"),
            }.get(self.where)
            return loss + value if value is not None and self._now(trainer) else loss

        pl_module.training_step = spoiled

    def on_after_backward(self, trainer, pl_module) -> None:
        if self.where == "gradient" and self._now(trainer):
            next(pl_module.head.parameters()).grad.fill_(float("nan"))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if self.where == "weights" and trainer.global_step == self.step + 1:
            next(pl_module.parameters()).data.view(-1)[0] = float("inf")
