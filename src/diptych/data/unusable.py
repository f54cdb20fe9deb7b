"""What a split holds, and which of its images cannot be used.

An unusable image is left out before the run, not replaced while it goes on: so the split, its hash, the length of an
epoch and every draw are those of the images there are, on every process and after every restart; nothing is read in
another's place; and an evaluation counts what it says. The price is one more reading of all files, paid once a run.
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

Unusable = tuple[Split, int, str, str]
"""Split, index, rule, message."""
Noted = tuple[Split, int, tuple[str, ...]]
"""Split, index, notes of a usable image."""


class Notes:
    """What readers tell of images that are odd and usable, counted by image and not by reading."""

    def __init__(self) -> None:
        self._images: dict[str, set[str]] = {}

    def add(self, note: str, key: str) -> bool:
        """Count an image; whether it is the first of this note."""
        first = note not in self._images
        self._images.setdefault(note, set()).add(key)
        return first

    def counts(self) -> dict[str, int]:
        """Note to number of images."""
        return {note: len(keys) for note, keys in self._images.items()}


class _Probe(Dataset[tuple[int, str, str, tuple[str, ...]]]):
    """Reads each image, and keeps only what was wrong or odd with it."""

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
) -> tuple[list[Unusable], list[Noted]]:
    """Read every image once, in parallel, and say which cannot be used, and what is told of the others.

    Args:
        datasets: the splits.
        workers: processes; 0 reads here.
        start_method: how they start.
        folder: where the answer is kept, and taken from if it is about these very samples; None for nowhere.
        private: leave out the messages, which name the files.

    Raises:
        DataError: the answer cannot be written, or the file of an older one is damaged.
    """
    key = split_hash({str(name): dataset.ids for name, dataset in datasets.items()})
    key += f", pictures {PICTURES}, {sorted({str(dataset.intensity) for dataset in datasets.values()})}"
    kept = None if folder is None else folder / "images.json"
    if kept is not None and kept.is_file():
        try:
            known = json.loads(kept.read_text())
            if known["samples"] == key:
                unusable: list[Unusable] = [(split, index, rule, why) for split, index, rule, why in known["unusable"]]
                return unusable, [(split, index, tuple(notes)) for split, index, notes in known["notes"]]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{kept}: damaged ({type(error).__name__}); remove it, and the images are read again"
            ) from error
    total = sum(len(dataset) for dataset in datasets.values())
    rank_zero_info(f"checking {total} images with {workers or 1} process(es)")
    found: list[Unusable] = []
    noted: list[Noted] = []
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
                found.append((split, index, rule, "" if private else text))
            elif notes:
                noted.append((split, index, notes))
    if kept is not None:
        replace_text(kept, json.dumps({"samples": key, "unusable": found, "notes": noted}, indent=1) + "\n")
    return found, noted
