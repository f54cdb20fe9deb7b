"""Which images of a split cannot be used, and what is odd about the others.

An unusable image is left out before the run, not replaced while it goes on. So the split, its hash, the length of an epoch and
every draw are those of the images there are, on every process and after every restart. No image is read in another's place.
An evaluation counts what it says. The price is one more reading of all files, once a run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import chain
from pathlib import Path

import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import Dataset

from diptych.data.dataset import RadiographDataset, Split
from diptych.data.splits import split_hash
from diptych.data.workers import Loader, leave_to_parent
from diptych.errors import DataError
from diptych.files import replace_text
from diptych.radiographs.limits import ImageError
from diptych.radiographs.manifest import PICTURES

__all__ = ["Notes", "unusable_images"]

UnusableImage = tuple[Split, int, str, str]
"""Split, index, rule, message."""
ImageNotes = tuple[Split, int, tuple[str, ...]]
"""Split, index, and notes of a usable image."""


class Notes:
    """Notes of readers on images that are odd and usable. An image that is read twice counts once."""

    def __init__(self) -> None:
        self._images: dict[str, set[str]] = {}

    def add(self, note: str, key: str) -> bool:
        """Count an image. The result says whether it is the first with this note."""
        first = note not in self._images
        self._images.setdefault(note, set()).add(key)
        return first

    def counts(self) -> dict[str, int]:
        """The number of images with each note."""
        return {note: len(keys) for note, keys in self._images.items()}


class _Probe(Dataset[tuple[int, str, str, tuple[str, ...]]]):
    """Reads each image, and returns only what is wrong or odd about it."""

    def __init__(self, dataset: RadiographDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[int, str, str, tuple[str, ...]]:
        try:
            sample = self.dataset.read(index, np.random.default_rng(0))
        except ImageError as error:
            return index, error.rule, str(error), ()
        return index, "", "", sample.notes


def unusable_images(
    datasets: Mapping[Split, RadiographDataset],
    workers: int,
    start_method: str,
    folder: Path | None,
    private: bool = False,
) -> tuple[list[UnusableImage], list[ImageNotes]]:
    """Read every image once, in parallel. List those that cannot be used, and the notes on the others.

    Args:
        datasets: the splits.
        workers: processes that read. With 0 this process reads.
        start_method: how they start.
        folder: where the lists are stored. If it has those of the same samples, they are read instead. None stores nothing.
        private: leave out the messages, which name the files.

    Raises:
        DataError: the lists cannot be written, or those in the folder are damaged.
    """
    key = split_hash({str(name): dataset.ids for name, dataset in datasets.items()})
    key += f", pictures {PICTURES}, {sorted({str(dataset.intensity) for dataset in datasets.values()})}"
    file = None if folder is None else folder / "images.json"
    if file is not None and file.is_file():
        try:
            known = json.loads(file.read_text())
            if known["samples"] == key:
                notes = [(split, index, tuple(of_image)) for split, index, of_image in known["notes"]]
                return [(split, index, rule, why) for split, index, rule, why in known["unusable"]], notes
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{file}: damaged ({type(error).__name__}); remove it, and the images are read again"
            ) from error
    total = sum(len(dataset) for dataset in datasets.values())
    rank_zero_info(f"checking {total} images with {workers or 1} process(es)")
    unusable: list[UnusableImage] = []
    noted: list[ImageNotes] = []
    for split, dataset in datasets.items():
        loader = Loader(
            _Probe(dataset),
            batch_size=32,
            collate_fn=list,
            num_workers=workers,
            worker_init_fn=leave_to_parent,
            multiprocessing_context=start_method if workers else None,
        )
        for index, rule, text, notes in chain.from_iterable(loader):
            if rule:
                unusable.append((split, index, rule, "" if private else text))
            elif notes:
                noted.append((split, index, notes))
    if file is not None:
        replace_text(file, json.dumps({"samples": key, "unusable": unusable, "notes": noted}, indent=1) + "\n")
    return unusable, noted
