"""A job whose other processes are not there: for code that runs on torch's ``meta`` device, whose tensors hold no data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore


@contextmanager
def group_of(processes: int) -> Iterator[None]:
    """This process as the first of a job whose others are not there: collectives return at once. One process: no job."""
    if processes == 1:
        yield
        return
    dist.init_process_group("fake", rank=0, world_size=processes, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()
