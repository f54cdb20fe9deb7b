"""Processes that have imported everything. They are forked from one that did so once, and that does nothing else.

A command in one of them begins at once, without its seconds of imports. All else is as a user has it: a process of its own,
its signals, its exit code, its output.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import forkserver
from pathlib import Path
from unittest.mock import patch

SCRIPT = Path(sys.executable).with_name("diptych")
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["diptych.cli.run", "albumentations", "torch.utils.tensorboard"])


def ready() -> multiprocessing.context.ForkServerContext:
    """The context whose processes are warm. The process that they are forked from starts with the first call."""
    with patch.dict(os.environ, {"OMP_NUM_THREADS": "1"}):  # torch reads it when it is imported
        forkserver.ensure_running()
    return CONTEXT


class Command:
    """``diptych`` in a warm process, in a session of its own.

    Args:
        arguments: its words.
        folder: where it runs.
        environment: all variables that it has.
    """

    def __init__(self, arguments: Sequence[str], folder: Path, environment: Mapping[str, str]) -> None:
        self._arguments = arguments
        self._outputs = tempfile.TemporaryDirectory()
        self._files = [Path(self._outputs.name) / name for name in ("out", "err")]
        self._process = ready().Process(target=_run, args=(self._files, [*arguments], str(folder), dict(environment)))
        self._process.start()
        self.pid: int = self._process.pid or 0

    def poll(self) -> int | None:
        """Its exit code as of ``subprocess``, or None while it runs."""
        return self._process.exitcode

    def kill(self) -> None:
        """End it, if it runs."""
        self._process.kill()

    def finish(self, timeout: float, settle: Callable[[], None] = lambda: None) -> subprocess.CompletedProcess[str]:
        """What it left, once it has ended. ``settle`` waits for processes that it started, and that may still say something."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            self.kill()
            raise subprocess.TimeoutExpired([*self._arguments], timeout, *(file.read_bytes() for file in self._files))
        settle()
        out, err = (file.read_text() for file in self._files)
        self._outputs.cleanup()
        return subprocess.CompletedProcess(self._arguments, self._process.exitcode, out, err)


def _run(files: Sequence[Path], arguments: list[str], folder: str, environment: dict[str, str]) -> None:
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)  # whoever started the tests may ignore some
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, file in enumerate(files, start=1):
        target = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(target, number)
        os.close(target)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = [str(SCRIPT), *arguments]  # what Lightning starts for a second process

    from diptych.cli.main import main

    main()
