"""Signals: all processes of a run save at the next step, and end with 128 + the signal's number."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_info

from diptych import distributed
from diptych.training.recovery import Recovery

__all__ = ["ENDING", "Interruption", "SignalExit", "Signals"]

ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
"""Signals that ask for an end."""
_TOGETHER = 1.0
"""Seconds in which further signals count as the same one: ``timeout``, torchrun and terminals send it twice."""
_PATIENCE = 50.0
"""Seconds that a run waits for its next step, once a signal has come. Then it ends without."""
_BLOCKED = 10.0
"""The same outside training, where nothing is to save, but a call of a library may block."""
_LEAVE = b"\0"
"""The byte that ends the thread that reads signals. No signal has the number 0."""

_current: Signals | None = None


class SignalExit(SystemExit):
    """The end of the command by a signal. ``code`` is 128 + its number."""


class Signals:
    """The signals that this process has received: a context, entered once for a command.

    Outside training a signal ends the command where it is. In training it is stored, and :class:`Interruption` acts on it.
    A second signal ends the process at once. So does a next step that does not come. A thread reads the signals, because
    Python's own handlers wait while a call of a library blocks.
    """

    def __init__(self) -> None:
        self.received = 0
        """Number of the first signal; 0 before it comes."""
        self.training = False
        self.saving = False
        self.children: Sequence[subprocess.Popen[Any]] = ()
        """Processes of this job that this one has started."""
        self.requeues = 0
        """Number of the signal on which SLURM is to start the job again."""
        self._before: dict[signal.Signals, Any] = {}
        self._process = os.getpid()
        self._since = 0.0

    def __enter__(self) -> Signals:
        global _current
        if threading.current_thread() is not threading.main_thread():
            return self  # Python lets no other thread set handlers
        for number in ENDING:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                self._before[number] = signal.signal(number, self._handle)
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._watcher = threading.Thread(target=self._watch, daemon=True, name="signals")
        self._watcher.start()
        _current = self
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        global _current
        if _current is not self:
            return
        _current = None
        signal.set_wakeup_fd(-1)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.set_blocking(self._writer, True)
        os.write(self._writer, _LEAVE)  # closing would not end the thread: forked processes may hold the pipe too
        self._watcher.join(5)
        os.close(self._writer)
        os.close(self._reader)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked process ends as without handlers
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif not self.training:
            raise SignalExit(128 + number)

    def _watch(self) -> None:
        while True:
            patience = _PATIENCE if self.training else _BLOCKED
            left = None if not self.received else max(0.0, self._since + patience - time.monotonic())
            ready, _, _ = select.select([self._reader], [], [], 1.0 if self.saving else left)
            if not ready:
                if not self.saving:
                    self._end(
                        self.received, f"no step has ended within {patience:.0f} s: ends without saving", late=True
                    )
                continue
            numbers = os.read(self._reader, 64)
            for number in numbers:
                if number == _LEAVE[0]:
                    return
                if number in self._before:
                    self._note(number)

    def _note(self, number: int) -> None:
        if not self.received:
            self.received, self._since = number, time.monotonic()
            if self.training:
                self._say(number, "saves at the next step, then ends; another signal ends it at once")
        elif time.monotonic() - self._since > _TOGETHER:
            self._end(number, "ends at once")

    def _say(self, number: int, what: str) -> None:
        os.write(2, f"diptych: {signal.Signals(number).name}: {what}\n".encode())  # sys.stderr may be locked

    def _end(self, number: int, what: str, late: bool = False) -> None:
        self._say(number, what)
        if late and number == self.requeues:
            if os.environ.get("SLURM_PROCID", "0") == "0":
                requeue()
            else:
                time.sleep(5)  # SLURM may end a job's other processes when one has left
        for child in self.children:
            child.kill()
        os._exit(128 + number)


def _forget() -> None:
    """In a forked process, no longer report signals to this command's thread."""
    if _current is not None:
        signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_forget)


class Interruption(Checkpoint):
    """Acts on signals between two steps of training. Lightning calls it last, as it does with all checkpoint callbacks.

    Args:
        signals: those of this process. All processes of the job agree on them at each step.
    """

    def __init__(self, signals: Signals) -> None:
        self.signals = signals
        self._step = -1

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let signals wait for the end of a step from here on."""
        self._step = trainer.global_step
        self.signals.children = getattr(trainer.strategy.launcher, "procs", ())
        self.signals.requeues = _requeue_signal(trainer)
        self.signals.training = True

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End here if a signal has come. Within an accumulated step the run goes on, as part of the step would be lost."""
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        loop, fetcher = trainer.fit_loop.epoch_loop, trainer.fit_loop._data_fetcher
        validates = fetcher is not None and loop._should_check_val_fx(fetcher)
        ends = trainer.global_step >= trainer.max_steps != -1
        if not ends and (validates or not loop._num_ready_batches_reached()):
            self._heed(trainer)

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """End here if a signal has come. A resumed run begins with this validation."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._heed(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """End here if a signal has come. A run that stops anyway comes to its normal end."""
        if not trainer.should_stop:
            self._heed(trainer)

    def _heed(self, trainer: pl.Trainer) -> None:
        """Save and end, if any process of the job has received a signal."""
        flag = torch.tensor(self.signals.received, device=trainer.strategy.root_device)
        number = int(distributed.max_over_processes(flag))
        if not number:
            return
        self.signals.saving = True
        recovery = next(callback for callback in trainer.callbacks if isinstance(callback, Recovery))  # type: ignore[attr-defined]  # Lightning sets it late
        recovery.save(trainer)
        rank_zero_info(
            f"saved: step {trainer.global_step}, in {recovery.dirpath}/last.ckpt; go on with --ckpt_path last"
        )
        if _requeue_signal(trainer):
            if number == self.signals.requeues and trainer.is_global_zero:
                requeue()
            distributed.barrier()  # SLURM may end a job's other processes when one has left
        environment = getattr(trainer.strategy, "cluster_environment", None)
        started_here = environment is not None and not environment.creates_processes_externally
        # The process that has started this one returns the code. It would report another code here as a failure.
        raise SignalExit(0 if started_here and trainer.local_rank else 128 + number)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let a signal wait while the last checkpoint is written."""
        self.signals.saving = True

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Let signals end the command where it is: no step will come."""
        self.signals.training = False

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Let signals end the command where it is, as before training."""
        self.signals.training = self.signals.saving = False


def _requeue_signal(trainer: pl.Trainer) -> int:
    """The signal on which SLURM is to start this job again; 0 if SLURM is not to."""
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
        return int(environment.requeue_signal or 0)
    return 0


def requeue() -> None:
    """Ask SLURM to start this job again."""
    job = os.environ["SLURM_JOB_ID"]
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
        failed = done.stderr.strip() if done.returncode else None
    except OSError as error:
        failed = str(error)
    message = (
        f"job {job} is started again by SLURM"
        if failed is None
        else f"job {job} was not requeued ({failed}); submit it"
    )
    print(f"diptych: {message}", file=sys.stderr, flush=True)
