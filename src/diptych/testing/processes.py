"""A pool of real processes that talk over gloo. Started once, so each further task costs milliseconds.

A task is a function of an importable module, called on every process with the same arguments.
"""

from __future__ import annotations

import atexit
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

from diptych import distributed
from diptych.testing.contract import Found

__all__ = ["Pool", "ProcessesFailed", "run_on", "shared_pool"]

_SECONDS = 300.0
"""The longest time that a task may take."""
_START_SECONDS = 600.0
"""The longest time that a process may take to start, on a machine that has other work too."""


class ProcessesFailed(RuntimeError):
    """A process of the pool raised an error or gave no answer. The message has its traceback."""


def _serve(pipe: Connection) -> None:
    """Run tasks, each in a process group of the size that it asks for."""
    torch.set_num_threads(1)
    group = None
    pipe.send_bytes(b"ready")
    while True:
        message = pipe.recv_bytes()
        try:
            wanted, function, args = pickle.loads(message)
            if wanted != group:
                if group is not None:
                    distributed.leave()
                distributed.join(*wanted, seconds=_SECONDS)
                group = wanted
            answer = (True, function(*args))
        except Exception:  # whatever a task does
            answer = (False, traceback.format_exc())
        pipe.send_bytes(pickle.dumps(answer))


class Pool:
    """Some processes, started as they are asked for. ``run`` uses the first ``world`` of them as one job.

    Args:
        context: how they are started. Left out, they are spawned.
    """

    def __init__(self, context: BaseContext | None = None) -> None:
        self._context: Any = mp.get_context("spawn") if context is None else context
        self._processes: list[Any] = []
        self._pipes: list[Connection] = []
        self._folder = tempfile.TemporaryDirectory()
        self._groups = 0
        self._world = 0

    def _start(self, world: int) -> None:
        new = range(len(self._processes), world)
        for _ in new:
            ours, theirs = self._context.Pipe()
            process = self._context.Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(ours)
        for rank in new:
            try:
                if self._pipes[rank].poll(_START_SECONDS):
                    self._pipes[rank].recv_bytes()
                    continue
            except EOFError:
                pass
            self.stop()
            raise ProcessesFailed(
                f"process {rank} did not start: the process ended; a script that starts it needs "
                "`if __name__ == '__main__':` before its commands"
            )

    def run(self, world: int, function: Callable[..., Any], *args: Any) -> list[Any]:
        """Call ``function(*args)`` on ``world`` processes.

        Returns:
            The results in rank order.

        Raises:
            ProcessesFailed: a process raised an error, ended, or gave no answer within five minutes.
        """
        self._start(world)
        if world != self._world:
            self._world, self._groups = world, self._groups + 1
        store = str(Path(self._folder.name) / f"store{self._groups}")
        for rank, pipe in enumerate(self._pipes[:world]):
            pipe.send_bytes(pickle.dumps(((store, rank, world), function, args)))
        answers: dict[int, Any] = {}
        errors: dict[int, str] = {}
        until = time.monotonic() + _SECONDS
        while (waiting := set(range(world)) - set(answers) - set(errors)) and time.monotonic() < until:
            for rank in waiting:
                if self._pipes[rank].poll(0.02):
                    try:
                        done, answer = pickle.loads(self._pipes[rank].recv_bytes())
                    except EOFError:
                        done, answer = False, "the process ended"
                    (answers if done else errors)[rank] = answer
                    if not done:
                        until = min(until, time.monotonic() + 1)  # the others may wait for it in a collective
        if waiting or "the process ended" in errors.values():
            self.stop()
        if waiting or errors:
            texts = [f"rank {rank} of {world}:\n{text}" for rank, text in errors.items()]
            texts += [f"rank {rank} of {world} gave no answer" for rank in waiting]
            raise ProcessesFailed("\n".join(texts))
        return [answers[rank] for rank in range(world)]

    def stop(self) -> None:
        """End all processes. The next run starts new ones."""
        for process, pipe in zip(self._processes, self._pipes, strict=True):
            process.kill()
            process.join()
            pipe.close()
        self._processes, self._pipes, self._world = [], [], 0


_pools: list[Pool] = []


def shared_pool(context: BaseContext | None = None) -> Pool:
    """The pool of this process, which ends with it.

    Args:
        context: how its processes are started, where there is no pool yet.
    """
    if not _pools:
        _pools.append(Pool(context))
        atexit.register(_pools[0].stop)
    return _pools[0]


_ELSEWHERE = "move the class to a module of its package, which the other processes can import"


def run_on(world: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """As :meth:`Pool.run` of the shared pool, for a rule of a contract.

    Raises:
        Found: what is checked cannot be sent to a process or imported there, or a process gives no answer.
        ProcessesFailed: a process raised another error.
    """
    try:
        pickle.dumps(args)
    except Exception as error:  # pickle raises many kinds
        cause = "its class is defined in a function, or it keeps an open file or a lambda"
        raise Found(f"it cannot be sent to another process ({error})", cause, _ELSEWHERE) from error
    try:
        return shared_pool().run(world, function, *args)
    except ProcessesFailed as failed:
        text = str(failed)
        if any(sign in text for sign in ("Can't get attribute", "ModuleNotFoundError", "the process ended")):
            last = text.strip().rpartition("\n")[2]
            raise Found(last, "the other processes cannot import the class", _ELSEWHERE) from failed
        if "gave no answer" in text:
            cause = "a collective is called on one process and not on the other, or the machine is very busy"
            raise Found(text.strip().rpartition("\n")[2], cause, "call every collective on every process") from failed
        raise
