"""The processes of a job: when one dies, the others name it and end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from diptych import distributed

__all__ = ["Peer", "Peers"]

_LOOK = 0.5
"""Seconds between two checks of the others."""
_PATIENCE = 10.0
"""Seconds that this process has to end by itself, once another has died."""


@dataclass(frozen=True)
class Peer:
    """One process of the job."""

    rank: int
    host: str
    place: str
    """The host and its table of processes. Two containers may share a host name, but each has its own table."""
    process: int
    started: str
    """When the process has started, as the system counts it. A later process of the same number differs in it."""

    @staticmethod
    def here() -> Peer:
        """This process."""
        host = socket.gethostname()
        try:
            table = os.readlink("/proc/self/ns/pid")
        except OSError:  # not Linux
            table = ""
        return Peer(distributed.rank(), host, f"{host} {table}", os.getpid(), _start_time(os.getpid()) or "")

    def alive(self) -> bool:
        """Whether it still runs. Only a process of the same ``place`` can ask."""
        return _start_time(self.process) == self.started

    def __str__(self) -> str:
        return f"rank {self.rank} (host {self.host}, process {self.process})"


def _start_time(process: int) -> str | None:
    """When a process has started, or None if it has ended."""
    if Path("/proc/self/stat").exists():
        try:
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] in "ZX" else fields[19]
    try:
        os.kill(process, 0)
    except OSError:
        return None
    return ""


class Peers(pl.Callback):
    """Watches the other processes of this host. When one dies, this one says so and ends, even in a collective that hangs.

    gloo notices a closed connection. NCCL would wait for its timeout.
    """

    def __init__(self) -> None:
        self._others: list[Peer] = []
        self._here = Peer.here()
        self._children: Sequence[subprocess.Popen[Any]] = ()
        self._done = threading.Event()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Exchange what identifies each process, and begin to watch."""
        if distributed.world_size() == 1:
            return
        self._here = Peer.here()
        self._others = [peer for peer in distributed.gather_objects(self._here) if peer.rank != self._here.rank]
        self._children = getattr(trainer.strategy.launcher, "procs", ())
        for thread in threading.enumerate():
            if thread.name == "child-process-observer":  # Lightning's: it would kill this process before it can speak
                thread._child_processes = []  # type: ignore[attr-defined]  # of that class, which is private
        threading.Thread(target=self._watch, daemon=True, name="peers").start()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Wait for all to come to the end, then stop watching."""
        if self._others:
            distributed.barrier()
        self._done.set()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """When the first process of a job fails, end those that it has started. NCCL would let them wait."""
        if isinstance(exception, SystemExit):
            self._done.set()  # all have agreed to end
        elif trainer.is_global_zero and trainer.strategy.root_device.type != "cpu":
            for child in self._children:
                child.kill()

    def gone(self, seconds: float = 0.0) -> str | None:
        """Which processes have ended, in words. None if no end becomes known within so many seconds."""
        until = time.monotonic() + seconds
        while not (dead := [p for p in self._others if p.place == self._here.place and not p.alive()]):
            if time.monotonic() >= until:
                break
            time.sleep(0.05)
        if dead:
            return "; ".join(self._describe_end(peer) for peer in dead)
        if seconds and (far := [peer for peer in self._others if peer.place != self._here.place]):
            return f"one of these has ended or cannot be reached: {', '.join(map(str, far))}"
        return None

    def _describe_end(self, peer: Peer) -> str:
        code = next((child.poll() for child in self._children if child.pid == peer.process), None)
        if code is None:
            return f"{peer} has ended"
        return (
            f"{peer} was ended by {signal.Signals(-code).name}"
            if code < 0
            else f"{peer} has ended with exit code {code}"
        )

    def _watch(self) -> None:
        while not self._done.wait(_LOOK):
            if (message := self.gone()) is None:
                continue
            if self._done.wait(_PATIENCE):
                return
            os.write(2, f"diptych: error: {message}; this process, rank {self._here.rank}, ends too\n".encode())
            for child in self._children:
                child.kill()
            os._exit(2)
