"""What the readers of original releases share: records, protocols, fractions, and the rules by which rows are left out."""

from __future__ import annotations

import gc
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from diptych.checks import check_number
from diptych.data.columns import Records
from diptych.data.datamodule import RadiographDataModule, RadiographDataset, Sample, Split
from diptych.data.loading import Loading
from diptych.data.splits import nested
from diptych.errors import DataError
from diptych.radiographs.kinds import stem
from diptych.radiographs.letterbox import scale_to
from diptych.radiographs.packed import Files, PackedImage, open_images, read_image
from diptych.reports.tokenizer import Tokenizer
from diptych_datamodules.releases.protocols import PROTOCOLS, choose, split

__all__ = ["Record", "Release", "ReleaseDataset", "image_file", "index_images", "label_vector"]

SPLITS: tuple[Split, ...] = ("train", "val", "test")
_VALUES = {"": float("nan"), "1.0": 1.0, "0.0": 0.0, "-1.0": -1.0, "1": 1.0, "0": 0.0, "-1": -1.0}


@dataclass(slots=True)
class Record:
    """One image of a release, as its tables describe it."""

    id: str
    path: Path | PackedImage | None
    """None where the release's folder lacks it."""
    patient: str
    """The image's own id, where no patient is known."""
    text: str | None = None
    labels: NDArray[np.float32] | None = None
    boxes: NDArray[np.float32] | None = None
    """``[K,5]``, in pixels of a picture :attr:`ReleaseDataset.side` wide."""
    runs: tuple[str, ...] = ()
    """Run-length codes of its mask."""
    given: str = ""
    """The split that the release names; empty where a protocol decides."""


class ReleaseDataset(RadiographDataset):
    """One split of a release."""

    side: ClassVar[int] = 1024
    """Width of the released pictures; boxes and masks are scaled where the user's copies are smaller."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = records if isinstance(records, Records) else Records(records)
        self.ids: Sequence[str] = self.records.column("id")
        self.patients: Sequence[str] = self.records.column("patient")

    def mask(self, record: Record) -> NDArray[np.bool_] | None:
        """The mask ``[side,side]``; None where the set has none."""
        return None

    def read(self, index: int, rng: np.random.Generator) -> Sample:
        """See :meth:`RadiographDataset.read`; nothing about it is random."""
        record = self.records[index]
        assert record.path is not None  # those without were left out
        image, native, notes, _ = read_image(record.path, self.intensity)
        boxes, mask = record.boxes, self.mask(record)
        if boxes is not None and native != (self.side, self.side):
            boxes = boxes.copy()
            boxes[:, :4] *= np.array([native[1], native[0]] * 2, np.float32) / self.side
        if mask is not None and native != mask.shape:
            import cv2

            size = (native[1], native[0])
            mask = np.asarray(cv2.resize(mask.astype(np.uint8) * 255, size, interpolation=cv2.INTER_AREA)) > 127
        if native != image.shape:  # packed: what is drawn on the picture shrinks as the picture did
            longer = max(image.shape)
            if boxes is not None:
                boxes = boxes.copy()
                boxes[:, :4] *= longer / max(native)
            if mask is not None:
                mask = scale_to(mask.astype(np.uint8) * np.uint8(255), longer) > 127
        return Sample(image, text=record.text, labels=record.labels, boxes=boxes, mask=mask, notes=notes)

    def texts(self) -> Iterable[str]:
        """See :meth:`RadiographDataset.texts`."""
        return [text for _, text in self.texts_by_patient()]

    def texts_by_patient(self) -> Iterable[tuple[str | None, str]]:
        """See :meth:`RadiographDataset.texts_by_patient`."""
        rows = zip(self.ids, self.patients, self.records.column("text"), strict=True)
        return [(None if patient == key else patient, text) for key, patient, text in rows if text is not None]


def label_vector(
    values: Sequence[str], known: dict[tuple[str, ...], NDArray[np.float32]], where: str
) -> NDArray[np.float32]:
    """Labels ``[L]`` as tables write them; equal rows share one vector, kept in ``known``.

    Raises:
        DataError: a value that is none of 1.0, 0.0, -1.0 and nothing.
    """
    key = tuple(values)
    if key not in known:
        try:
            known[key] = np.array([_VALUES[value] for value in key], np.float32)
        except KeyError as error:
            raise DataError(f"{where} has the label {error}; a label is 1.0, 0.0, -1.0 or empty") from None
    return known[key]


def image_file(path: str, files: Files) -> Path | PackedImage | None:
    """The image of this path without suffix, as released (``.jpg``) or as a PNG or DICOM copy; None if there is none."""
    for suffix in (".jpg", ".png", ".dcm"):
        if found := files.find(path + suffix):
            return found
    return None


def index_images(folders: Iterable[Path], files: Files) -> dict[str, Path | PackedImage]:
    """File stem to image of all below folders, walked once.

    Raises:
        DataError: no folder exists, none holds an image, or one stem stands for two files.
    """
    found: dict[str, Path | PackedImage] = {}
    looked = list(folders)
    for folder in looked:
        for name, image in files.below(folder):
            other = found.setdefault(stem(name), image)
            if other != image:
                raise DataError(f"{image} and {other}: two files for one image; keep one of them")
    if not found:
        raise DataError(f"{' or '.join(map(str, looked))}: no image in it; unpack the release's images there")
    return found


class Release(RadiographDataModule):
    """Base of the readers of original releases; a subclass gives :meth:`records` and :attr:`findings`.

    Args:
        root: the release's folder.
        tokenizer: linked from the text tower by the command line.
        split: a named protocol of the set, in :data:`~diptych_datamodules.releases.protocols.PROTOCOLS`.
        percent: share of the training images, 1 % within 10 % within 100 %, by whole patients.
        strict: refuse a release of which something must be left out.
        loading: how samples are loaded.
    """

    data_set: ClassVar[str]
    """The prefix of its protocols."""

    def __init__(
        self,
        root: str,
        tokenizer: Tokenizer | None,
        *,
        split: str,
        percent: float,
        strict: bool,
        loading: Loading,
    ) -> None:
        super().__init__(tokenizer, loading)
        check_number("data.percent", percent, above=0, most=100)
        self.root, self.split, self.percent, self.strict = Path(root), split, percent, strict
        self.leaky = choose(split, self.data_set).leaky
        self._name = split
        self.counted = 0
        """What the release is counted by (images, reports), as :meth:`records` found it in the tables."""

    @cached_property
    def files(self) -> Files:
        """Where its images are: below the root, or packed there."""
        return open_images(self.root, self.loading.image_size, self.loading.intensity)

    @classmethod
    def read_tables(cls, root: Path) -> None:
        """As the reader does in training."""
        reader: Any = cls  # every reader's other arguments have defaults
        reader(str(root)).records()

    @abstractmethod
    def records(self) -> list[Record]:
        """Every image of the release's tables, whether its file is there or not."""

    def assign(self, records: Sequence[Record]) -> tuple[str, list[tuple[Record, str]]]:
        """The protocol's full name and the split of each record; those whose split is given keep it."""
        if PROTOCOLS[self.split].rule == "given":
            assigned = split(self.split, [], [], [record.given for record in records])
            return assigned.name, [(record, record.given) for record in records]
        drawn = [record for record in records if not record.given]
        assigned = split(self.split, [record.id for record in drawn], [record.patient for record in drawn])
        given = [(record, record.given) for record in records if record.given]
        return assigned.name, given + list(zip(drawn, assigned.splits, strict=True))

    def data(self, records: Sequence[Record]) -> RadiographDataset:
        """The data set of one split."""
        return ReleaseDataset(records)

    @property
    def protocol(self) -> str:
        """The split, and the share of it that is trained on."""
        share = "" if self.percent == 100 else f", {self.percent:g} % of training"
        return f"{self._name}{share}"

    def build(self) -> dict[Split, RadiographDataset]:
        """Split the tables, take the share, then leave out what has no file."""
        collects = gc.isenabled()
        gc.disable()  # the collector would look at millions of new objects again and again
        try:
            return self._build_splits()
        finally:
            if collects:
                gc.enable()

    def _build_splits(self) -> dict[Split, RadiographDataset]:
        self._name, assigned = self.assign(self.records())
        members: dict[str, list[Record]] = {}
        for record, name in assigned:
            members.setdefault(name, []).append(record)
        if self.percent < 100 and "train" in members:
            chosen = nested([record.patient for record in members["train"]], self.percent)
            members["train"] = [members["train"][i] for i in chosen]
        splits: dict[Split, RadiographDataset] = {}
        for which in SPLITS:
            if which in members:
                splits[which] = self.data([record for record in members[which] if self._usable(record)])
        if self.strict:
            self.dropped.refuse(str(self.root))
        return splits

    def place(self, record: Record) -> str:
        """Where the image of a record was looked for; empty where it is found by its name alone."""
        return ""

    def _usable(self, record: Record) -> bool:
        if record.path is None:
            self.dropped.add("missing image", record.id, self.place(record))
        elif record.text == "":
            self.dropped.add("empty report", record.id)
        elif isinstance(record.path, PackedImage) and record.path.unusable:
            rule, why = record.path.unusable
            self.dropped.add(rule, record.id, why)
        else:
            return True
        return False
