"""A callback for the tests: the process dies in mid-training, without a chance to clean up."""

import os
import signal

import lightning.pytorch as pl


class KillAt(pl.Callback):
    """SIGKILL to this very process once ``step`` optimiser steps are done."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.global_step >= self.step:
            os.kill(os.getpid(), signal.SIGKILL)
