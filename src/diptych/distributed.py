"""Communication between the processes of a job. No other file imports ``torch.distributed``.

:func:`gather` is differentiable. Its backward sums the gradients of all processes, and DDP then averages over processes.
Together they give exactly the gradient of the whole batch's objective.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = [
    "alone",
    "backends",
    "barrier",
    "gather",
    "gather_objects",
    "gather_uneven",
    "join",
    "leave",
    "max_over_processes",
    "mean_loss",
    "rank",
    "sum_over_processes",
    "sum_with_gradient",
    "world_size",
]

_alone: ContextVar[bool] = ContextVar("alone", default=False)


def backends() -> list[str]:
    """What this build of torch lets processes talk by, of ``nccl`` and ``gloo``."""
    return [name for name in ("nccl", "gloo") if getattr(dist, f"is_{name}_available")()]


@contextmanager
def alone() -> Iterator[None]:
    """Within it, this process counts as the whole job. A validation loss, for one, is a value of a single process."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def _active() -> bool:
    return dist.is_available() and dist.is_initialized() and not _alone.get()


def world_size() -> int:
    """Number of processes in the job; 1 outside a distributed job."""
    return dist.get_world_size() if _active() else 1


def rank() -> int:
    """The number of this process; 0 outside a distributed job."""
    return dist.get_rank() if _active() else 0


def join(store: str, rank: int, world: int, *, seconds: float) -> None:
    """Begin a job of processes of this host over gloo, for tests. A run's job is begun by Lightning.

    Args:
        store: path of a file that does not exist yet, the same on every process.
        rank: of this process.
        world: number of processes.
        seconds: after which a collective that others do not enter fails.
    """
    limit = timedelta(seconds=seconds)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=limit)


def leave() -> None:
    """End the job that :func:`join` began."""
    dist.destroy_process_group()


def barrier() -> None:
    """Wait for every process."""
    if world_size() > 1:
        dist.barrier()


def _all_gather(x: Tensor) -> Tensor:
    """``[B,...]`` to ``[B*W,...]`` in rank order, without gradient. bool is sent as uint8, which every backend knows."""
    wire = x.to(torch.uint8) if x.dtype == torch.bool else x
    parts = [torch.empty_like(wire, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, wire.contiguous())
    return torch.cat(parts).to(x.dtype)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.rows = x.shape[0]
        return _all_gather(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0].contiguous().clone()  # all_reduce works in place
        dist.all_reduce(grad, op=dist.ReduceOp.SUM)
        start = dist.get_rank() * ctx.rows
        return grad[start : start + ctx.rows]


def gather(x: Tensor) -> Tensor:
    """Concatenate ``x`` ``[B,...]`` over processes to ``[B*W,...]``, in rank order, with exact gradients.

    Every process must give the same shape. Outside a distributed job ``x`` itself is returned.
    """
    if world_size() == 1:
        return x
    return cast(Tensor, _Gather.apply(x)) if x.requires_grad else _all_gather(x)


def gather_uneven(x: Tensor) -> Tensor:
    """Concatenate ``[n,...]`` in rank order, where each process may have its own ``n``. For evaluation, without gradient.

    Other axes may differ too. They are padded with zeros (False) to the longest.
    """
    if world_size() == 1:
        return x
    x = x.detach()
    shapes = _all_gather(torch.tensor([x.shape], device=x.device))  # [W, axes]
    longest = [int(n) for n in shapes.max(dim=0).values]
    padded = x.new_zeros(longest)
    padded[tuple(slice(n) for n in x.shape)] = x
    parts = torch.split(_all_gather(padded), longest[0])
    return torch.cat([part[: int(n)] for part, n in zip(parts, shapes[:, 0], strict=True)])


def gather_objects(value: Any) -> list[Any]:
    """One small value of each process, in rank order."""
    values: list[Any] = [None] * world_size()
    if len(values) == 1:
        return [value]
    dist.all_gather_object(values, value)
    return values


def sum_over_processes(x: Tensor) -> Tensor:
    """The sum over processes of a tensor of one shape, without gradient."""
    if world_size() == 1:
        return x
    x = x.detach().clone()
    dist.all_reduce(x, op=dist.ReduceOp.SUM)
    return x


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return sum_over_processes(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return sum_over_processes(grads[0].contiguous())


def sum_with_gradient(x: Tensor) -> Tensor:
    """The sum over processes of a tensor of one shape, with exact gradients: backward sums those of all processes.

    It serves statistics of the whole batch, as in batch normalisation. Outside a distributed job ``x`` itself is returned.
    """
    if world_size() == 1:
        return x
    return cast(Tensor, _Sum.apply(x)) if x.requires_grad else sum_over_processes(x)


def mean_loss(total: Tensor, count: Tensor) -> Tensor:
    """A loss of this process whose average over processes is the mean over all items of all processes.

    Processes may have different numbers of items, as of labelled findings. DDP averages over processes, and so gives the
    gradient of that mean.

    >>> mean_loss(torch.tensor(6.0), torch.tensor(3.0))  # on one process
    tensor(2.)

    Args:
        total: the sum of the loss over this process's items, a scalar with gradient.
        count: how many items this process has. If no process has any, the mean is 0.
    """
    return total * world_size() / sum_over_processes(count).clamp_min(1)


def max_over_processes(x: Tensor) -> Tensor:
    """The elementwise maximum over processes of a tensor of one shape, without gradient. It may hold no NaN."""
    if world_size() == 1:
        return x
    x = x.detach().clone()
    dist.all_reduce(x, op=dist.ReduceOp.MAX)
    return x
