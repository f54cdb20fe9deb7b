"""Which sample is read when: exact after a restart, the same for any number of workers, nothing twice in a test.

A sampler yields :class:`Draw` values that carry their epoch. So a data set in a worker process draws the same captions and
augmentations as an uninterrupted run, however long the worker lives.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Sampler

from diptych.data.workers import Loader
from diptych.errors import ConfigError

__all__ = ["Draw", "EvaluationSampler", "ResumableLoader", "TrainingSampler", "mix"]


@dataclass(frozen=True, slots=True)
class Draw:
    """One sample to be read."""

    index: int
    epoch: int
    valid: bool = True
    """False for a draw that only fills up the last evaluation batches of a process."""


def mix(*numbers: int) -> int:
    """A 63-bit seed (splitmix64). It depends on every number and on their order, but on no library's version.

    >>> mix(0, 1) == mix(0, 1), mix(0, 1) == mix(1, 0)
    (True, False)
    """
    state = 0
    for number in numbers:
        state = (state + int(number) + 0x9E3779B97F4A7C15) & (2**64 - 1)
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
        state ^= state >> 31
    return state >> 1


class TrainingSampler(Sampler[list[Draw]]):
    """Shuffled batches whose order is a function of (seed, epoch), and whose state is a count.

    A global batch has ``batch_size * processes`` samples, and process ``r`` takes its ``r``-th part. So the same samples make
    one step on 1 and on 8 processes, if the global batch is equal. The samples at the end of an epoch that fill no global
    batch are left out. They are others in each epoch.

    >>> [[draw.index for draw in batch] for batch in TrainingSampler(5, 2, seed=0, rank=0, processes=1)]
    [[2, 3], [1, 4]]

    Args:
        size: samples in the data set.
        batch_size: samples of one process in a step.
        seed: of the shuffle.
        rank: this process.
        processes: processes in the job.
    """

    def __init__(self, size: int, batch_size: int, *, seed: int, rank: int, processes: int) -> None:
        if size < batch_size * processes:
            raise ConfigError(
                f"{size} training samples do not fill one step of loading.batch_size {batch_size} on {processes} "
                f"process(es); lower loading.batch_size to at most {size // processes}"
            )
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.rank, self.processes = rank, processes
        self.epoch, self.start = 0, 0
        self.sampler = self  # Lightning calls set_epoch on batch_sampler.sampler

    def __len__(self) -> int:
        return self.size // (self.batch_size * self.processes)

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch, as Lightning does. In the epoch of a restored state, the start stays where the state put it."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def __iter__(self) -> Iterator[list[Draw]]:
        order = torch.randperm(self.size, generator=torch.Generator().manual_seed(mix(self.seed, self.epoch))).tolist()
        step = self.batch_size * self.processes
        for batch in range(self.start, len(self)):
            first = batch * step + self.rank * self.batch_size
            yield [Draw(index, self.epoch) for index in order[first : first + self.batch_size]]


class EvaluationSampler(Sampler[list[Draw]]):
    """Every sample exactly once over the whole job, in order.

    Of ``W`` processes, process ``r`` reads samples ``r, r + W, ...``. All processes make the same number of batches of the same
    size, since a collective must never wait for a process that is done. Missing samples are filled up with draws marked not
    ``valid``, which no evaluator counts.

    >>> sampler = EvaluationSampler(3, 8, rank=1, processes=2)
    >>> [[(draw.index, draw.valid) for draw in batch] for batch in sampler]
    [[(1, True), (0, False)]]
    """

    def __init__(self, size: int, batch_size: int, *, rank: int, processes: int) -> None:
        own = [Draw(index, 0) for index in range(rank, size, processes)]
        longest = -(-size // processes)
        own += [Draw(0, 0, valid=False)] * (longest - len(own))
        self.batches = [own[i : i + batch_size] for i in range(0, longest, batch_size)]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Draw]]:
        yield from self.batches


class ResumableLoader(Loader):
    """A DataLoader over a :class:`TrainingSampler` that Lightning saves with each checkpoint and restores exactly.

    Its state counts the batches *handed out*, not those that workers have read ahead. It is equal on every process. Lightning
    sets the epoch before each pass. In a loop of your own the loader goes on to the next epoch after each full pass.
    :meth:`set_epoch` chooses one, as after a restart::

        loader = datamodule.train_dataloader()
        for epoch in range(epochs):
            loader.set_epoch(epoch)
            for batch in loader: ...
    """

    batch_sampler: TrainingSampler
    advances: bool = False
    """Whether the next epoch follows each full pass. It does in loops outside a trainer."""
    position: int = 0
    """How many batches of the epoch were handed out."""

    def set_epoch(self, epoch: int) -> None:
        """Draw the order, captions and augmentation of this epoch from now on."""
        self.batch_sampler.set_epoch(epoch)

    def __iter__(self) -> Any:
        # A generator reads nothing ahead before its first batch is asked for. By then Lightning has set the epoch.
        sampler = self.batch_sampler
        epoch, self.position = sampler.epoch, sampler.start
        for batch in super().__iter__():
            self.position += 1
            yield batch
        sampler.start = 0
        if self.advances:
            sampler.epoch, self.position = epoch + 1, 0

    def state_dict(self) -> dict[str, int]:
        """The epoch, and how many of its samples were handed out over all processes."""
        sampler = self.batch_sampler
        return {"epoch": sampler.epoch, "samples": self.position * sampler.batch_size * sampler.processes}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where ``state`` was taken. The number of processes may differ if a step still ends there.

        Raises:
            ConfigError: the global batch has changed, so that the position falls inside a step.
        """
        sampler = self.batch_sampler
        step = sampler.batch_size * sampler.processes
        if state["samples"] % step:
            raise ConfigError(
                f"the checkpoint stands at sample {state['samples']} of its epoch, which is not a multiple of this "
                f"run's {step} samples a step; resume with the loading.batch_size and devices it was trained with"
            )
        self.position = batches = state["samples"] // step
        # A checkpoint of an epoch's last step goes on with the next epoch.
        ended = batches >= len(sampler)
        sampler.epoch, sampler.start = (state["epoch"] + 1, 0) if ended else (state["epoch"], batches)
