"""Commands of diptych as processes of their own, one or several at a time. Signals are passed on to all of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from diptych.cli.warm import FORKS, PATIENCE, Forked, Warm
from diptych.errors import ConfigError

__all__ = ["Child", "call", "cores", "run_all", "warm"]

_PAUSE = 0.1
"""Seconds between two looks at the processes."""
_Process: TypeAlias = "subprocess.Popen[bytes] | Forked"
_warm: Warm | None = None
"""What commands are forked from. Without it, each is started anew."""


@dataclass(frozen=True)
class Child:
    """A command that is to run in a process of its own."""

    name: str
    """Its name in messages."""
    command: Sequence[str]
    """The words after ``diptych``."""
    log: Path
    """File of its output, errors included."""

    def error(self, code: int) -> str:
        """What it says of its failure: its last message, and its file. Empty if the exit code is that of success."""
        if not code:
            return ""
        lines = [line.strip() for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines()]
        errors = [line.partition("diptych: error: ")[2] for line in lines if line.startswith("diptych: error: ")]
        last = (errors or [line for line in lines if line] or ["it said nothing"])[-1]
        if code < 0:
            last = f"ended by {signal.Signals(-code).name}"
        return f"{self.name} failed: {last} (log: {self.log})"


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def warm() -> Iterator[None]:
    """Within it, all commands are forked from one process that has imported everything, where the platform forks well.

    A context within another one uses the same process.
    """
    global _warm
    if not FORKS or _warm is not None:
        yield
        return
    _warm = Warm()
    try:
        yield
    finally:
        _warm.close()
        _warm = None


def run_all(
    children: Sequence[Child],
    jobs: int,
    ended: Callable[[Child, str], None],
    started: Callable[[Child], None] = lambda child: None,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Run commands, ``jobs`` at a time, in their order.

    A signal that asks for an end is passed on to all that run, so that a run in training saves itself. No further one is
    started. This command then ends with 128 + the signal's number.

    Args:
        children: the commands.
        jobs: how many run at a time.
        ended: is called with a command that has ended, and with its error, which is empty if it succeeded.
        started: is called with a command that has started.
        environment: variables that the commands have beside those of this process.
    """
    from diptych.training.interruption import ENDING

    received: list[int] = []
    waiting, running = list(children), list[tuple[Child, _Process]]()

    def pass_on(number: int, frame: object) -> None:
        received.append(number)
        for _, process in running:
            process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in ENDING if signal.getsignal(number) != signal.SIG_IGN}
    try:
        while running or (waiting and not received):
            while waiting and len(running) < jobs and not received:
                if _warm is not None and not _warm.ready(lambda: received):
                    break
                child = waiting.pop(0)
                running.append((child, _start(child, environment or {})))
                if received:  # it may have come before the process was known
                    running[-1][1].send_signal(received[-1])
                started(child)
            time.sleep(_PAUSE)
            done = [pair for pair in running if pair[1].poll() is not None]
            running = [pair for pair in running if pair not in done]
            for child, process in done:
                if not received:
                    ended(child, child.error(process.returncode or 0))
    finally:
        _end([process for _, process in running])  # an error here must leave no process behind
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        sys.exit(128 + received[0])


def _start(child: Child, environment: Mapping[str, str]) -> _Process:
    whole = {**os.environ, **environment}
    with child.log.open("wb") as file:
        if _warm is not None:
            return _warm.start(child.command, child.log, whole)
        command = [sys.executable, "-m", "diptych", *child.command]
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=whole)


def _end(processes: Sequence[_Process]) -> None:
    for process in processes:
        process.terminate()
    end = time.monotonic() + PATIENCE
    for process in processes:
        try:
            process.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()


def call(command: Sequence[str], log: Path, what: str) -> None:
    """Run one command, with its output in a file.

    Raises:
        ConfigError: it failed. The message has its own last message, and names the file.
    """
    errors: list[str] = []
    run_all([Child(what, tuple(command), log)], 1, lambda child, error: errors.append(error))
    if errors[0]:
        raise ConfigError(errors[0])
