"""Callbacks for the tests: training ends in its midst."""

import os
import signal

import lightning.pytorch as pl


class KillAt(pl.Callback):
    """SIGKILL to this very process, without a chance to clean up, once ``step`` optimiser steps are done."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.global_step >= self.step:
            os.kill(os.getpid(), signal.SIGKILL)


class RaiseAt(pl.Callback):
    """The same within a process that goes on: an error once ``step`` optimiser steps are done."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.global_step >= self.step:
            raise InterruptedError(f"after step {self.step}")
