"""One sample, and the data set that reads samples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from diptych.radiographs.intensity import Intensity

__all__ = ["RadiographDataset", "Sample", "Split", "Subset"]


Split = Literal["train", "val", "test"]


@dataclass(frozen=True)
class Sample:
    """One image at its native size, with its report, labels, boxes and mask. What is not known is None."""

    image: NDArray[np.uint8]
    """``[h,v]``"""
    text: str | None = None
    labels: NDArray[np.float32] | None = None
    """``[L]``: 1 present, 0 absent, -1 uncertain, NaN not mentioned."""
    boxes: NDArray[np.float32] | None = None
    """``[K,5]``: x0, y0, x1, y1 in native pixels, finding's index."""
    mask: NDArray[np.bool_] | None = None
    """``[h,v]``: True where the finding is."""
    others: tuple[NDArray[np.uint8] | None, ...] = ()
    """Other images ``[h,v]`` of the study or of a prior one, at their own sizes. None where there is none."""
    notes: tuple[str, ...] = ()
    """What is odd about the file, in the words of ``docs/radiographs.md``. A run counts each image once."""


class RadiographDataset(ABC):
    """The samples of one split. A subclass lists them with their patients, and reads one at a time."""

    ids: Sequence[str]
    """The name of each sample."""
    patients: Sequence[str]
    """The patient of each sample. No patient is in two splits."""
    about: Mapping[str, Sequence[str]] = MappingProxyType({})
    """Sex, age in years, view and site of each sample, as far as tables have them (:mod:`diptych.data.about`). An empty text is
    not known.
    """
    intensity: Intensity = Intensity()
    """How its files become grey. The datamodule sets it from ``loading.intensity`` before anything is read."""

    def __len__(self) -> int:
        return len(self.ids)

    @abstractmethod
    def read(self, index: int, rng: np.random.Generator) -> Sample:
        """Read one sample.

        Args:
            index: its number in the split.
            rng: the only source of chance, as for one caption of several. It depends on seed, epoch and index.
        """

    def labels_of(self, index: int) -> NDArray[np.float32] | None:
        """The labels ``[L]`` of one sample. A subclass that knows them without reading the image says so here."""
        return self.read(index, np.random.default_rng(0)).labels

    @abstractmethod
    def texts(self) -> Iterable[str]:
        """Every report of the split, from which a scratch tower learns its vocabulary. No image is read."""

    def texts_by_patient(self) -> Iterable[tuple[str | None, str]]:
        """The reports of :meth:`texts`, each with its patient, or None where the patient is not known.

        The vocabulary leaves out words that few patients share, so a data set that knows the patients names them.
        """
        return ((None, text) for text in self.texts())


class Subset(RadiographDataset):
    """A data set without some of its samples. Its vocabulary is still learned from all reports.

    Args:
        dataset: the whole data set.
        left_out: indices of the samples that are not in the subset. ``kept`` lists the others.
    """

    def __init__(self, dataset: RadiographDataset, left_out: set[int]) -> None:
        self.dataset = dataset
        self.kept = [index for index in range(len(dataset)) if index not in left_out]
        self.ids = [dataset.ids[index] for index in self.kept]
        self.patients = [dataset.patients[index] for index in self.kept]
        self.about = {name: [values[index] for index in self.kept] for name, values in dataset.about.items()}

    def read(self, index: int, rng: np.random.Generator) -> Sample:
        """Read one sample of the whole data set, by its number in the subset."""
        return self.dataset.read(self.kept[index], rng)

    def labels_of(self, index: int) -> NDArray[np.float32] | None:
        """The labels of one sample of the whole data set."""
        return self.dataset.labels_of(self.kept[index])

    def texts(self) -> Iterable[str]:
        """Every report of the whole data set."""
        return self.dataset.texts()

    def texts_by_patient(self) -> Iterable[tuple[str | None, str]]:
        """Every report of the whole data set, with its patient."""
        return self.dataset.texts_by_patient()
