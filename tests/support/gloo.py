"""The shared pool of real processes as fixtures. Started once and warm, so a distributed test costs milliseconds.

A task is a module-level function of an importable module (``twins``), called on every process with the same arguments::

    results = gloo2(twins.some_task, argument)  # one result a process, in rank order
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import warm

from diptych.testing.processes import Pool, ProcessesFailed, shared_pool


class _Pool:
    """The shared pool, whose failures are those of the test."""

    def __init__(self, pool: Pool) -> None:
        self.stop = pool.stop
        self._run = pool.run

    def run(self, world: int, function: Callable[..., Any], *args: Any) -> list[Any]:
        """Call ``function(*args)`` on ``world`` processes; its results in rank order."""
        try:
            return self._run(world, function, *args)
        except ProcessesFailed as failed:
            pytest.fail(str(failed), pytrace=False)


@pytest.fixture(scope="session")
def processes() -> Iterator[_Pool]:
    pool = _Pool(shared_pool(warm.ready()))
    yield pool
    pool.stop()


Run = Callable[..., list[Any]]


@pytest.fixture(scope="session")
def gloo2(processes: _Pool) -> Run:
    return lambda function, *args: processes.run(2, function, *args)


@pytest.fixture(scope="session")
def gloo4(processes: _Pool) -> Run:
    return lambda function, *args: processes.run(4, function, *args)
