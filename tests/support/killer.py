"""Callbacks for the tests: training ends in its midst."""

import os
import signal
import time
from typing import ClassVar

import lightning.pytorch as pl
from lightning.pytorch.callbacks import WeightAveraging


class At(pl.Callback):
    """Something happens at a moment of a run, once.

    Args:
        step: optimiser steps that are done by then.
        moment: ``trained`` (at the end of a batch, before anything is saved), ``begun`` (at the start of the next),
            ``validating`` (before the second batch of a validation), ``validated`` (at its end, before best.ckpt).
        rank: on which process of the job; on all if -1.
    """

    def __init__(self, step: int, moment: str = "trained", rank: int = -1) -> None:
        self.step, self.moment, self.rank = step, moment, rank

    def happen(self) -> None:
        raise NotImplementedError

    def _pass(self, trainer: pl.Trainer, moment: str) -> None:
        here = self.rank in (-1, trainer.global_rank) and not trainer.sanity_checking
        if here and moment == self.moment and trainer.global_step >= self.step:
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


class SignalAt(pl.Callback):
    """A signal to this very process in the midst of a step, on one rank of the job or on all (-1).

    Args:
        step: optimiser steps that are done by then.
        number: the signal's.
        rank: who is sent it.
        moment: ``batch`` (before a step), ``validation`` (in its first batch) or ``end`` (of the run).
        times: how often, ``apart`` seconds from each other.
    """

    def __init__(
        self, step: int, number: int, rank: int = -1, moment: str = "batch", times: int = 1, apart: float = 0.0
    ) -> None:
        self.step, self.number, self.rank, self.moment = step, number, rank, moment
        self.times, self.apart = times, apart

    def _send(self, trainer, moment) -> None:
        if moment == self.moment and trainer.global_step == self.step and self.rank in (-1, trainer.global_rank):
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)
                time.sleep(self.apart or 0.05)  # the thread that reads signals has come to it

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self._send(trainer, "batch")

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0) -> None:
        if not trainer.sanity_checking:
            self._send(trainer, "validation" if batch_idx == 0 else "")

    def on_train_end(self, trainer, pl_module) -> None:
        self._send(trainer, "end")
