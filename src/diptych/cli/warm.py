"""A process that has imported what commands need. Each command is forked from it, and begins without its seconds of imports.

The process starts no thread and touches no device. So a fork of it is safe, also where commands use CUDA.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import NoReturn

from diptych.errors import DiptychError

__all__ = ["FORKS", "Forked", "Warm", "main"]

FORKS = sys.platform == "linux"
"""Whether commands are forked here. macOS has ``fork``, but its libraries do not bear it."""
PATIENCE = 60.0
"""Seconds that processes have to end, before they are killed."""
_PAUSE = 0.05
"""Seconds between two looks at the processes."""
_MODULES = (
    "diptych.cli.run",
    "diptych.cli.convert",
    "diptych.model.converting",
    "albumentations",
    "timm",
    "torch.utils.tensorboard",
    "transformers.models.bert.modeling_bert",
)
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1"}
"""Without it, numpy starts threads when it is imported. NumPy keeps to one thread in all commands, torch does not."""
_OF_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""The process of all commands has none of these, so that torch knows the number it takes by itself."""


@dataclass(frozen=True)
class _Order:
    """A command that is to run."""

    words: tuple[str, ...]
    """The words after ``diptych``."""
    log: str
    """File of its output."""
    environment: dict[str, str]
    """All variables that it has."""
    folder: str
    """Where it runs."""


class Forked:
    """A command in a forked process. Its methods are those of ``subprocess.Popen``."""

    def __init__(self, pid: int, look: Callable[[], None]) -> None:
        self.pid = pid
        self.returncode: int | None = None
        """Its exit code, or minus the signal that ended it. None while it runs."""
        self._look = look

    def poll(self) -> int | None:
        """Its exit code, or None while it runs.

        Raises:
            DiptychError: the process that it was forked from has ended.
        """
        if self.returncode is None:
            self._look()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it runs."""
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it."""
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float) -> None:
        """Wait until it is gone.

        Raises:
            TimeoutExpired: it was still there after ``timeout`` seconds.
        """
        end = time.monotonic() + timeout
        while self.returncode is None and _alive(self.pid):
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            time.sleep(_PAUSE)


class Warm:
    """The process that commands are forked from. It is started by :meth:`ready`, and ended by :meth:`close`.

    If this process is killed, the other one ends all commands that it has forked.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection
        self._running: dict[int, Forked] = {}

    def ready(self, stop: Callable[[], object]) -> bool:
        """Wait until it has imported everything. False if ``stop`` asked not to wait for that.

        Raises:
            DiptychError: it has ended.
        """
        if self._process is None:
            self._connection, theirs = Pipe()
            command = [sys.executable, "-m", __name__, str(theirs.fileno())]
            kept = {name: value for name, value in os.environ.items() if name not in _OF_THREADS}
            environment = {**kept, **_ONE_THREAD}
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment)
            theirs.close()
            while not self._connection.poll(_PAUSE):
                if stop():
                    self._process.kill()
                    return False
            self._receive()
        return True

    def start(self, words: Sequence[str], log: Path, environment: Mapping[str, str]) -> Forked:
        """Run a command.

        Args:
            words: those after ``diptych``.
            log: file of its output.
            environment: all variables that it has. ``OMP_NUM_THREADS`` is the number of torch's threads.

        Raises:
            DiptychError: the process that it is forked from has ended.
        """
        order = _Order(tuple(words), str(log.resolve()), dict(environment), str(Path.cwd()))
        try:
            self._connection.send(order)
        except OSError:
            self._lost()
        while True:
            pid, code = self._receive()
            if code is None:
                self._running[pid] = Forked(pid, self._look)
                return self._running[pid]
            self._running.pop(pid).returncode = code

    def close(self) -> None:
        """End it. It ends the commands that still run."""
        if self._process is not None:
            self._connection.close()
            self._process.wait()

    def _look(self) -> None:
        """Take note of the commands that have ended."""
        try:
            while self._connection.poll():
                pid, code = self._receive()
                self._running.pop(pid).returncode = code
        except OSError:
            self._lost()

    def _receive(self) -> tuple[int, int | None]:
        """A process, and its exit code. None if it has just begun."""
        try:
            said: tuple[int, int | None] = self._connection.recv()
        except (EOFError, OSError):
            self._lost()
        return said

    def _lost(self) -> NoReturn:
        assert self._process is not None  # it was asked
        code = self._process.wait()
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        raise DiptychError(f"the process that commands are forked from has ended {how}; start again, it goes on")


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"  # it has ended, and nobody has asked for its exit code


def _serve(connection: Connection) -> _Order | None:
    """Fork a process for each order. It returns the order in that process, and None here, once nobody orders any more."""
    running: list[int] = []
    try:
        connection.send((os.getpid(), None))
        while True:
            while connection.poll(_PAUSE):
                order: _Order = connection.recv()
                pid = os.fork()
                if not pid:
                    connection.close()
                    return order
                running.append(pid)
                connection.send((pid, None))
            for pid in tuple(running):
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    running.remove(pid)
                    connection.send((pid, os.waitstatus_to_exitcode(status)))
    except (EOFError, ConnectionError):
        _end(running)
    return None


def _end(running: list[int]) -> None:
    """Ask processes to end, and kill those that do not."""
    end, number = time.monotonic() + PATIENCE, signal.SIGTERM
    while running:
        for pid in running:
            os.kill(pid, number)  # it has not been waited for, so it is still this process
        while running and (number == signal.SIGKILL or time.monotonic() < end):
            running[:] = [pid for pid in running if not os.waitpid(pid, os.WNOHANG)[0]]
            time.sleep(_PAUSE)
        number = signal.SIGKILL


def _run(order: _Order, mask: set[int | signal.Signals], most: int) -> None:
    """Run a command in this process, as ``python -m diptych`` does. Torch takes ``most`` threads, if no variable says less."""
    log = os.open(order.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    os.environ.clear()
    os.environ.update(order.environment)
    os.chdir(order.folder)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)  # a signal that came since the fork is heeded now
    _threads(most)
    sys.argv = ["diptych", *order.words]
    runpy.run_module("diptych", run_name="__main__", alter_sys=True)


def _threads(most: int) -> None:
    """Give torch as many threads as it takes by itself, had it been imported with these variables."""
    import numpy as np
    import torch

    given = os.environ.get("MKL_NUM_THREADS") or os.environ.get("OMP_NUM_THREADS") or ""
    number = given.partition(",")[0]
    torch.set_num_threads(min(int(number), most) if number.isdigit() and int(number) else most)
    np.random.seed()  # noqa: NPY002  # libraries draw from it, and unseeded commands would all draw the same


def main() -> None:
    """Import everything, and wait for orders on the connection whose number is the only argument."""
    # A terminal sends its signals to this process too. They are for the commands.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    connection = Connection(int(sys.argv[1]))
    os.set_inheritable(connection.fileno(), False)
    for module in _MODULES:
        importlib.import_module(module)
    import torch

    most = torch.get_num_threads()
    gc.freeze()  # no collection writes to what the forked processes share
    order = _serve(connection)
    if order is not None:
        _run(order, mask, most)


if __name__ == "__main__":
    main()
