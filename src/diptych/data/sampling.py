"""Which sample is read when: exact after a restart, the same for any number of workers, nothing twice in a test.

A sampler yields :class:`Draw` values that carry their epoch, so that a data set in a worker process - however long it
lives - draws the same captions and augmentations as an uninterrupted run.
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
    """False where a process only fills up its last evaluation batches."""


def mix(*numbers: int) -> int:
    """A 63-bit seed that depends on every number and their order (splitmix64), not on any library's version."""
    state = 0
    for number in numbers:
        state = (state + int(number) + 0x9E3779B97F4A7C15) & (2**64 - 1)
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
        state ^= state >> 31
    return state >> 1


class TrainingSampler(Sampler[list[Draw]]):
    """Shuffled batches whose order is a function of (seed, epoch) and whose state is a count.

    A global batch is ``batch_size * processes`` samples; process ``r`` takes its ``r``-th part, so the same samples
    make one step on 1 and on 8 processes if the global batch is equal. The rest of an epoch that fills no global batch
    is left out, another one each epoch.

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
        """Called by Lightning before each epoch; the start stays where a restored state put it in the same epoch."""
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

    Process ``r`` reads samples ``r, r + W, ...``. All processes make the same number of batches of the same size
    (a collective must never wait for a process that is done): what is missing is filled up with draws marked not
    ``valid``, which no evaluator counts.
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

    Its state counts the batches *given out*, not those that workers have read ahead, and is equal on every process.
    Lightning sets the epoch before each. In a loop of your own the loader goes on to the next epoch by itself after each
    full pass; :meth:`set_epoch` chooses one, as after a restart::

        loader = datamodule.train_dataloader()
        for epoch in range(epochs):
            loader.set_epoch(epoch)
            for batch in loader: ...
    """

    batch_sampler: TrainingSampler
    advances: bool = False
    """Each full pass is followed by the next epoch: for loops outside a trainer."""

    def set_epoch(self, epoch: int) -> None:
        """Draw the order, captions and augmentation of this epoch from now on, as Lightning has them in it."""
        self.batch_sampler.set_epoch(epoch)

    def __iter__(self) -> Any:
        # A generator: nothing is read ahead before the first batch is asked for, when Lightning has set the epoch.
        sampler = self.batch_sampler
        epoch, self.given = sampler.epoch, sampler.start
        for batch in super().__iter__():
            self.given += 1
            yield batch
        sampler.start = 0
        if self.advances:
            sampler.epoch, self.given = epoch + 1, 0

    given: int = 0

    def state_dict(self) -> dict[str, int]:
        """The epoch, and how many of its batches were given out."""
        sampler = self.batch_sampler
        return {"epoch": sampler.epoch, "samples": self.given * sampler.batch_size * sampler.processes}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where ``state`` was taken; the number of processes may differ if it divides the samples seen.

        Raises:
            ConfigError: the global batch has changed so that the position falls inside a step.
        """
        sampler = self.batch_sampler
        step = sampler.batch_size * sampler.processes
        if state["samples"] % step:
            raise ConfigError(
                f"the checkpoint stands at sample {state['samples']} of its epoch, which is not a multiple of this "
                f"run's {step} samples a step; resume with the loading.batch_size and devices it was trained with"
            )
        self.given = batches = state["samples"] // step
        # A checkpoint of an epoch's last step goes on with the next epoch.
        ended = batches >= len(sampler)
        sampler.epoch, sampler.start = (state["epoch"] + 1, 0) if ended else (state["epoch"], batches)
