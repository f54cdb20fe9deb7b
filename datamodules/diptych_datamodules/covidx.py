"""COVIDx CXR: COVID-19 on radiographs of many sources, by the lists of its versions."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np

from diptych.data.loading import Loading
from diptych.data.splits import assign
from diptych.data.tables import find_file
from diptych.errors import DataError
from diptych.reports.tokenizer import Tokenizer
from diptych_datamodules.releases.base import Record, Release
from diptych_datamodules.releases.facts import OBTAIN

__all__ = ["CLASSES", "Covidx"]

CLASSES = ("Normal", "Pneumonia", "COVID-19")
_BINARY: dict[str, tuple[int, ...]] = {"negative": (0,), "positive": (1,)}
_EXCLUSIVE: dict[str, tuple[int, ...]] = {"normal": (1, 0, 0), "pneumonia": (0, 1, 0), "COVID-19": (0, 0, 1)}
# The lists of each version. A split without a list is cut from training.
_LISTS = {
    "covidx/cxr-4": {split: [f"{split}.txt"] for split in ("train", "val", "test")},
    "covidx/cxr-3": {split: [f"{split}_COVIDx_CXR-3B.txt", f"{split}.txt"] for split in ("train", "test")},
    "covidx/cxr-3a": {split: [f"{split}_COVIDx_CXR-3A.txt"] for split in ("train", "test")},
    "covidx/cxr-2": {split: [f"{split}_COVIDx9B.txt", f"{split}.txt"] for split in ("train", "test")},
}
_VALIDATION = {"train": 0.9, "val": 0.1}


class Covidx(Release):
    """``train.txt``, ``val.txt``, ``test.txt`` and the folders of their names.

    Patients are told apart by source and id, since sources number theirs alike. Images in training and validation of a patient
    who is tested are left out.

    Args:
        root: the folder that holds lists and images.
        tokenizer: linked from the text tower by the command line. There are no reports.
        split: the version: ``covidx/cxr-4``, ``covidx/cxr-3``, ``covidx/cxr-2`` (the finding is ``COVID-19``), or
            ``covidx/cxr-3a`` (one of three classes).
        percent: share of the training images. Those of 1 % are among those of 10 %.
        strict: refuse a release of which something must be left out.
        loading: how samples are loaded.
    """

    paper: ClassVar[str] = "Wang et al., COVID-Net, Scientific Reports 10, 2020"
    needs: ClassVar[frozenset[str]] = frozenset({"train.txt", "test.txt", "train/", "test/"})
    holds: ClassVar[frozenset[str]] = frozenset({"image", "labels"})
    overlaps: ClassVar[str] = (
        "many of its images without COVID-19 are RSNA pneumonia's, and so NIH ChestX-ray14's: a model pre-trained there may "
        "have seen them"
    )
    data_set: ClassVar[str] = "covidx"

    def __init__(
        self,
        root: str,
        tokenizer: Tokenizer | None = None,
        *,
        split: str = "covidx/cxr-4",
        percent: float = 100.0,
        strict: bool = False,
        loading: Loading = Loading(),  # noqa: B008  # frozen, and the command line shows its fields
    ) -> None:
        super().__init__(root, tokenizer, split=split, percent=percent, strict=strict, loading=loading)
        self._labels = _EXCLUSIVE if split == "covidx/cxr-3a" else _BINARY
        self.findings = CLASSES if split == "covidx/cxr-3a" else ("COVID-19",)

    def records(self) -> list[Record]:
        """The images of all lists."""
        lists = _LISTS[self.split]
        found = {split: find_file(self.root, names, OBTAIN["covidx"]) for split, names in lists.items()}
        records: dict[str, Record] = {}
        for split, path in found.items():
            for number, line in enumerate(path.read_text().splitlines(), start=1):
                if line.strip():
                    self._add(records, line.strip(), split, f"{path}, line {number}")
        self.counted = len(records)
        return self.apart(list(records.values()))

    def _add(self, records: dict[str, Record], line: str, split: str, where: str) -> None:
        """Add the image of a line: patient, file, label and source. A file's name may hold spaces."""
        patient, _, rest = line.partition(" ")
        name, label, source = ["", "", *rest.rsplit(" ", 2)][-3:]
        if not name or label not in self._labels:
            known = " or ".join(self._labels)
            raise DataError(
                f"{where}: '{line[:80]}' is not patient, file, {known}, source; use the lists of {self.split}"
            )
        key, patient = f"{split}/{name}", f"{source}:{patient}"
        labels = np.array(self._labels[label], np.float32)
        if key in records:
            if (labels != records[key].labels).any():
                raise DataError(f"{where}: '{name}' stands above with another label; get the list anew")
            self.dropped.add("duplicate row", key)
            return
        given = assign(patient, _VALIDATION, 0) if split == "train" and "val" not in _LISTS[self.split] else split
        image = self.files.find(self.root / key)
        records[key] = Record(key, image, patient, labels=labels, given=given)

    def place(self, record: Record) -> str:
        """The path of the list."""
        return str(Path(self.root, record.id))
