"""What a split holds, and which of its images cannot be used.

An unusable image is left out before the run, not replaced while it goes on: so the split, its hash, the length of an
epoch and every draw are those of the images there are, on every process and after every restart; nothing is read in
another's place; and an evaluation counts what it says. The price is one more reading of all files, paid once a run.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from diptych.errors import DataError
from diptych.files import replace_text
from diptych.radiograph import ImageError
from diptych.splits import split_hash

__all__ = ["Kept", "RadiographDataset", "Sample", "Split", "unusable_images"]

Split = Literal["train", "val", "test"]
Unusable = tuple[Split, int, str, str]
"""Split, index, rule, message."""


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


class RadiographDataset(ABC):
    """What one split holds. ``ids`` and ``patients`` have one entry a sample."""

    ids: Sequence[str]
    patients: Sequence[str]

    def __len__(self) -> int:
        return len(self.ids)

    @abstractmethod
    def read(self, index: int, rng: np.random.Generator) -> Sample:
        """Sample ``index``; whatever is random about it (a caption drawn from several) is drawn from ``rng``."""

    @abstractmethod
    def texts(self) -> Iterable[str]:
        """Every report of the split, without reading images; a scratch tower learns its vocabulary from them."""


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


class _Probe(Dataset[tuple[int, str, str]]):
    """Reads each image, and keeps only what was wrong with it."""

    def __init__(self, dataset: RadiographDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[int, str, str]:
        try:
            self.dataset.read(index, np.random.default_rng(0))
        except ImageError as error:
            return index, error.rule, str(error)
        return index, "", ""


def unusable_images(
    datasets: Mapping[Split, RadiographDataset], workers: int, start_method: str, folder: Path | None
) -> list[Unusable]:
    """Read every image once, in parallel, and say which cannot be used.

    Args:
        datasets: the splits.
        workers: processes; 0 reads here.
        start_method: how they start.
        folder: where the answer is kept, and taken from if it is about these very samples; None for nowhere.

    Raises:
        DataError: the answer cannot be written, or the file of an older one is damaged.
    """
    key = split_hash({str(name): dataset.ids for name, dataset in datasets.items()})
    kept = None if folder is None else folder / "images.json"
    if kept is not None and kept.is_file():
        try:
            known = json.loads(kept.read_text())
            if known["samples"] == key:
                return [(split, index, rule, detail) for split, index, rule, detail in known["unusable"]]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{kept}: damaged ({type(error).__name__}); remove it, and the images are read again"
            ) from error
    total = sum(len(dataset) for dataset in datasets.values())
    rank_zero_info(f"checking {total} images with {workers or 1} process(es)")
    found: list[Unusable] = []
    for split, dataset in datasets.items():
        loader = DataLoader(
            _Probe(dataset),
            batch_size=32,
            collate_fn=list,
            num_workers=workers,
            multiprocessing_context=start_method if workers else None,
        )
        found += [(split, index, rule, text) for batch in loader for index, rule, text in batch if rule]
    if kept is not None:
        replace_text(kept, json.dumps({"samples": key, "unusable": found}, indent=1) + "\n")
    return found
