"""SIIM-ACR Pneumothorax Segmentation (Kaggle 2019): labels, and masks from relative run lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from diptych.checks import check_choice
from diptych.data.datamodule import RadiographDataset
from diptych.data.loading import Loading
from diptych.data.splits import uniform
from diptych.data.tables import find_file, scan_table
from diptych.errors import DataError
from diptych.reports.tokenizer import Tokenizer
from diptych_datamodules.releases.base import Record, Release, ReleaseDataset, index_images
from diptych_datamodules.releases.facts import OBTAIN
from diptych_datamodules.releases.protocols import PROTOCOLS, split

__all__ = ["Siim", "rle_decode"]

_OBTAIN = OBTAIN["siim"]
_FOLDERS = ("dicom-images-train", "stage_2_images")


def rle_decode(codes: Sequence[str], side: int = 1024, *, source: str = "the mask") -> NDArray[np.bool_]:
    """The union ``[side,side]`` of run-length codes as this challenge writes them: relative, column by column.

    Each run is two numbers. The first counts the pixels between the end of the run before and its start. The second is its
    length. ``-1`` is an empty mask. Most challenges have absolute starts, and decoders for these give garbage here.

    >>> rle_decode(["2 3"], side=3).astype(int).tolist()
    [[0, 1, 0], [0, 1, 0], [1, 0, 0]]

    Raises:
        DataError: a code that is no pairs of numbers, or runs beyond the picture.
    """
    flat = np.zeros(side * side, dtype=bool)
    for code in codes:
        if code in {"", "-1"}:
            continue
        try:
            numbers = np.array(code.split(), dtype=np.int64)
        except ValueError:
            numbers = np.zeros(1, np.int64)
        if len(numbers) % 2 or (numbers < 0).any() or numbers.sum() > flat.size:
            raise DataError(
                f"{source}: '{code[:40]}' is no run-length code of a {side}x{side} picture; get the table anew"
            )
        ends = np.cumsum(numbers)[1::2]
        for end, length in zip(ends.tolist(), numbers[1::2].tolist(), strict=True):
            flat[end - length : end] = True
    return flat.reshape(side, side).T


class _SiimDataset(ReleaseDataset):
    def mask(self, record: Record) -> NDArray[np.bool_]:
        return rle_decode(record.runs, self.side, source=record.id)


def _balanced(assigned: Sequence[tuple[Record, str]]) -> list[tuple[Record, str]]:
    """The same, but in ``train`` at most as many images without a mask as with one. Those first by hash stay."""
    train = [record for record, which in assigned if which == "train"]
    negative = sorted((record.id for record in train if record.runs == ("-1",)), key=lambda key: uniform(key, 0))
    kept = set(negative[: len(train) - len(negative)])
    return [(r, which) for r, which in assigned if which != "train" or r.runs != ("-1",) or r.id in kept]


class Siim(Release):
    """``train-rle.csv`` (or ``stage_2_train.csv``) and a tree of DICOM files named by image.

    Args:
        root: the folder that holds the table and ``dicom-images-train`` (or ``stage_2_images``). PNG or JPEG copies will do.
        tokenizer: linked from the text tower by the command line. There are no reports.
        split: ``siim/image-level``, or ``siim/gloria-rows-leaky`` to compare with figures published on it.
        negatives: how many training images without a mask stay. ``all`` keeps each. ``balanced`` keeps at most as many as there
            are images with one, drawn by hash, as GLoRIA and MGCA do before they train a segmentation. ``val`` and ``test``
            keep all.
        percent: share of the training images. Those of 1 % are among those of 10 %.
        strict: refuse a release in which a row lacks its file or a file its row. Otherwise they are left out, and counted.
        loading: how samples are loaded.
    """

    paper: ClassVar[str] = "Filice et al., Journal of Digital Imaging 33, 2020"
    needs: ClassVar[frozenset[str]] = frozenset({"train-rle.csv or stage_2_train.csv", "dicom-images-train/"})
    holds: ClassVar[frozenset[str]] = frozenset({"image", "labels", "masks"})
    overlaps: ClassVar[str] = "its images are from NIH ChestX-ray14: a model pre-trained there may have seen them"
    data_set: ClassVar[str] = "siim"

    def __init__(
        self,
        root: str,
        tokenizer: Tokenizer | None = None,
        *,
        split: str = "siim/image-level",
        negatives: Literal["all", "balanced"] = "all",
        percent: float = 100.0,
        strict: bool = False,
        loading: Loading = Loading(),  # noqa: B008  # frozen, and the command line shows its fields
    ) -> None:
        super().__init__(root, tokenizer, split=split, percent=percent, strict=strict, loading=loading)
        check_choice("data.negatives", negatives, ["all", "balanced"])
        self.negatives = negatives
        self.findings = ("Pneumothorax",)
        self._rows: list[str] = []

    def records(self) -> list[Record]:
        """The images of the table. The rows of an image are united."""
        table = find_file(self.root, ["train-rle.csv", "stage_2_train.csv"], _OBTAIN)
        codes: dict[str, list[str]] = {}
        self._rows = []
        for key, code in scan_table(table, ["ImageId", "EncodedPixels"]):
            codes.setdefault(key, []).append(code)
            self._rows.append(key)
        images = index_images([self.root / name for name in _FOLDERS], self.files)
        for key in sorted(set(images) - set(codes)):
            self.dropped.add("image without a row", key, str(images[key]))
        records = []
        for key, runs in codes.items():
            if "-1" in runs and len(runs) > 1:
                raise DataError(f"{table}: '{key}' has a mask and a row of -1; get the table anew")
            positive = np.array([float(runs != ["-1"])], np.float32)
            records.append(Record(key, images.get(key), key, labels=positive, runs=tuple(runs)))
        self.counted = len(records)
        return records

    def assign(self, records: Sequence[Record]) -> tuple[str, list[tuple[Record, str]]]:
        """Splits by image. The leaky protocol splits rows, and an image is in the split of each of its rows."""
        if not PROTOCOLS[self.split].rows:
            name, assigned = super().assign(records)
        else:
            rows = split(self.split, self._rows, self._rows)
            of_id = {record.id: record for record in records}
            places = dict.fromkeys(zip(self._rows, rows.splits, strict=True))
            name, assigned = rows.name, [(of_id[key], which) for key, which in places]
        return name, assigned if self.negatives == "all" else _balanced(assigned)

    @property
    def protocol(self) -> str:
        """The split, its share, and which images without a mask are trained on."""
        return super().protocol if self.negatives == "all" else f"{super().protocol}, negatives {self.negatives}"

    def data(self, records: Sequence[Record]) -> RadiographDataset:
        """A data set with masks."""
        return _SiimDataset(records)
