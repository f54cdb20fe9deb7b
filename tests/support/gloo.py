"""A session-wide pool of real processes that talk over gloo. Started once and warm, so a distributed test costs milliseconds.

A task is a module-level function of an importable module (``twins``), called on every process with the same arguments::

    results = gloo2(twins.some_task, argument)  # one result a process, in rank order
"""

from __future__ import annotations

import pickle
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import warm

_SECONDS = 240.0  # on a busy machine, too


def _serve(pipe: Connection) -> None:
    """Run tasks, each in a process group of the size that it asks for."""
    torch.set_num_threads(1)
    group = None
    while True:
        message = pipe.recv_bytes()
        try:
            wanted, function, args = pickle.loads(message)
            if wanted != group:
                if group is not None:
                    dist.destroy_process_group()
                store, rank, world = wanted
                dist.init_process_group(
                    "gloo",
                    init_method=f"file://{store}",
                    rank=rank,
                    world_size=world,
                    timeout=timedelta(seconds=_SECONDS),
                )
                group = wanted
            answer = (True, function(*args))
        except Exception:
            answer = (False, traceback.format_exc())
        pipe.send_bytes(pickle.dumps(answer))


class Pool:
    """Up to four processes; ``run`` uses the first ``world`` of them as one job."""

    def __init__(self) -> None:
        self._context = warm.ready()
        self._processes: list[Any] = []
        self._pipes: list[Connection] = []
        self._folder = tempfile.TemporaryDirectory()
        self._groups = 0
        self._world = 0

    def _start(self, world: int) -> None:
        while len(self._processes) < world:
            ours, theirs = self._context.Pipe()
            process = self._context.Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(ours)

    def run(self, world: int, function: Callable[..., Any], *args: Any) -> list[Any]:
        """Call ``function(*args)`` on ``world`` processes; its results in rank order."""
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
                    done, answer = pickle.loads(self._pipes[rank].recv_bytes())
                    (answers if done else errors)[rank] = answer
                    if not done:
                        until = min(until, time.monotonic() + 1)  # the others may wait for it in a collective
        if waiting:
            self.stop()
        if waiting or errors:
            texts = [f"rank {rank} of {world}:\n{text}" for rank, text in errors.items()]
            texts += [f"rank {rank} of {world} gave no answer" for rank in waiting]
            pytest.fail("\n".join(texts), pytrace=False)
        return [answers[rank] for rank in range(world)]

    def stop(self) -> None:
        """End all processes; the next run starts new ones."""
        for process, pipe in zip(self._processes, self._pipes, strict=True):
            process.kill()
            process.join()
            pipe.close()
        self._processes, self._pipes, self._world = [], [], 0


@pytest.fixture(scope="session")
def processes() -> Iterator[Pool]:
    pool = Pool()
    yield pool
    pool.stop()


Run = Callable[..., list[Any]]


@pytest.fixture(scope="session")
def gloo2(processes: Pool) -> Run:
    return lambda function, *args: processes.run(2, function, *args)


@pytest.fixture(scope="session")
def gloo4(processes: Pool) -> Run:
    return lambda function, *args: processes.run(4, function, *args)
