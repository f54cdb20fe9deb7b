"""One sample, and the data set that reads samples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from diptych.radiographs.intensity import Intensity

__all__ = ["Kept", "RadiographDataset", "Sample", "Split"]


Split = Literal["train", "val", "test"]


@dataclass(frozen=True)
class Sample:
    """One image with what is known of it, at its native size."""

    image: NDArray[np.uint8]
    """``[h,v]``"""
    text: str | None = None
    labels: NDArray[np.float32] | None = None
    """``[L]``: 1 present, 0 absent, -1 uncertain, NaN not mentioned."""
    boxes: NDArray[np.float32] | None = None
    """``[K,5]``: x0, y0, x1, y1 in native pixels, finding's index."""
    mask: NDArray[np.bool_] | None = None
    """``[h,v]``: where the finding is."""
    notes: tuple[str, ...] = ()
    """What the reader tells of the image."""


class RadiographDataset(ABC):
    """What one split holds. ``ids`` and ``patients`` have one entry a sample."""

    ids: Sequence[str]
    patients: Sequence[str]
    intensity: Intensity = Intensity()
    """How its files become grey; the datamodule sets it from ``loading.intensity``, before anything is read."""

    def __len__(self) -> int:
        return len(self.ids)

    @abstractmethod
    def read(self, index: int, rng: np.random.Generator) -> Sample:
        """Sample ``index``; whatever is random about it (a caption drawn from several) is drawn from ``rng``."""

    @abstractmethod
    def texts(self) -> Iterable[str]:
        """Every report of the split, without reading images; a scratch tower learns its vocabulary from them."""

    def texts_by_patient(self) -> Iterable[tuple[str | None, str]]:
        """The same, each with its patient, or None where that is not known.

        A data set whose reports are those of its samples gives the patients, so that words that few of them share are
        not learned.
        """
        return ((None, text) for text in self.texts())


class Kept(RadiographDataset):
    """A data set without some of its samples; its vocabulary stays."""

    def __init__(self, dataset: RadiographDataset, left_out: set[int]) -> None:
        self.dataset = dataset
        self.kept = [index for index in range(len(dataset)) if index not in left_out]
        self.ids = [dataset.ids[index] for index in self.kept]
        self.patients = [dataset.patients[index] for index in self.kept]

    def read(self, index: int, rng: np.random.Generator) -> Sample:
        """See :meth:`RadiographDataset.read`."""
        return self.dataset.read(self.kept[index], rng)

    def texts(self) -> Iterable[str]:
        """See :meth:`RadiographDataset.texts`."""
        return self.dataset.texts()

    def texts_by_patient(self) -> Iterable[tuple[str | None, str]]:
        """See :meth:`RadiographDataset.texts_by_patient`."""
        return self.dataset.texts_by_patient()
