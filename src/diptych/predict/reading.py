"""Batches of a data set for prediction. An image that cannot be used is skipped and told, and stops nothing."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from diptych.data.datamodule import RadiographDataModule
from diptych.data.dataset import Split
from diptych.data.loading import _Collate, _NetworkInputs
from diptych.data.sampling import Draw
from diptych.data.workers import Loader
from diptych.radiographs.limits import ImageError
from diptych.types import Batch

__all__ = ["Skipped", "batches_of"]


class Skipped(NamedTuple):
    """An image that cannot be used."""

    rule: str
    """Which rule it breaks, as ``truncated image``."""
    id: str
    detail: str
    """The reader's message. Empty in a private run."""


_PASSING = {errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOTCONN, errno.ETIMEDOUT}


def _passes(error: BaseException) -> bool:
    """Whether the machine has failed, and not the image: the same command may read it later."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError) or (isinstance(cause, OSError) and cause.errno in _PASSING):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


class _Inputs(_NetworkInputs):
    """A data set as a loader reads it, in which an error of an image is a value."""

    def __getitem__(self, draw: Draw) -> Any:
        try:
            return super().__getitem__(draw)
        except ImageError as error:
            if _passes(error):
                raise
            private = self.loading.private
            key = str(draw.index) if private else self.dataset.ids[draw.index]
            # The cause is the reader's own error, which advises no option of training.
            return Skipped(error.rule, key, "" if private else str(error.__cause__ or error))


class _Collated:
    """Makes a batch of what was read, and a list of what was skipped."""

    def __init__(self) -> None:
        self.collate = _Collate(None, to_max=False)

    def __call__(self, samples: list[Any]) -> tuple[Batch | None, list[Skipped]]:
        read = [sample for sample in samples if not isinstance(sample, Skipped)]
        skipped = [sample for sample in samples if isinstance(sample, Skipped)]
        return self.collate(read) if read else None, skipped


def batches_of(
    datamodule: RadiographDataModule, split: Split, batches: Sequence[Sequence[int]]
) -> Iterator[tuple[Batch | None, list[Skipped]]]:
    """These samples of a split in these batches, not augmented, and what of each batch was skipped.

    Args:
        datamodule: set up.
        split: whose samples.
        batches: numbers of samples in the split. No process reads the samples of another.
    """
    loading = datamodule.loading
    draws = [[Draw(index, 0) for index in batch] for batch in batches]
    options = datamodule._options(training=False) | {"collate_fn": _Collated()}
    yield from Loader(_Inputs(datamodule.datasets[split], loading, None), batch_sampler=draws, **options)
