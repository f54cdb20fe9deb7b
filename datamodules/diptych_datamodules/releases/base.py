"""What the readers of original releases share: records, splits, shares of training, and rules by which rows are left out."""

from __future__ import annotations

import gc
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from diptych.checks import check_number
from diptych.data.about import described
from diptych.data.columns import Records
from diptych.data.datamodule import RadiographDataModule, RadiographDataset, Sample, Split
from diptych.data.loading import Loading
from diptych.data.splits import nested_share
from diptych.errors import DataError
from diptych.radiographs.kinds import stem
from diptych.radiographs.letterbox import scale_to
from diptych.radiographs.packed import Files, PackedImage, open_images, read_image
from diptych.reports.tokenizer import Tokenizer
from diptych_datamodules.releases.protocols import PROTOCOLS, choose, split

__all__ = ["LabelVectors", "Record", "Release", "ReleaseDataset", "image_file", "index_images"]

SPLITS: tuple[Split, ...] = ("train", "val", "test")
_RANK = {str(split): rank for rank, split in enumerate(SPLITS)}
_VALUES = {"": float("nan"), "1.0": 1.0, "0.0": 0.0, "-1.0": -1.0, "1": 1.0, "0": 0.0, "-1": -1.0}


@dataclass(slots=True)
class Record:
    """One image of a release, as its tables describe it."""

    id: str
    path: Path | PackedImage | None
    """None, if the release's folder lacks it."""
    patient: str
    """The image's own id, if no patient is known."""
    text: str | None = None
    labels: NDArray[np.float32] | None = None
    boxes: NDArray[np.float32] | None = None
    """``[K,5]``, in pixels of a picture that is :attr:`ReleaseDataset.side` wide."""
    runs: tuple[str, ...] = ()
    """Codes of its mask, as the release writes them."""
    given: str = ""
    """The split that the release names. Empty, if a protocol decides."""
    sex: str = ""
    """F, M, or empty."""
    age: str = ""
    """In whole years, or empty."""
    view: str = ""
    """As PA, AP or LATERAL, or empty."""
    other: Path | PackedImage | None = None
    """Another image of the study, which is read along. None, if there is none, or it is not asked for."""


class ReleaseDataset(RadiographDataset):
    """One split of a release."""

    side: ClassVar[int] = 1024
    """Width of the released pictures. If the user's copies are smaller, boxes and masks are scaled."""

    def __init__(self, records: Sequence[Record], others: int = 0) -> None:
        self.others = others
        self.records = records if isinstance(records, Records) else Records(records)
        self.ids: Sequence[str] = self.records.column("id")
        self.patients: Sequence[str] = self.records.column("patient")
        self.about = described(**{name: self.records.column(name) for name in ("sex", "age", "view")})

    def mask(self, record: Record) -> NDArray[np.bool_] | None:
        """The mask ``[side,side]``. None, if the set has no masks."""
        return None

    def regions(
        self, record: Record, native: tuple[int, int]
    ) -> tuple[NDArray[np.float32] | None, NDArray[np.bool_] | None]:
        """Boxes ``[K,5]`` and mask in pixels of the user's file. ``native`` is its height and width.

        Here the release's pictures are all :attr:`side` wide. A release of other pictures overrides this.
        """
        boxes, mask = record.boxes, self.mask(record)
        if boxes is not None and native != (self.side, self.side):
            boxes = boxes.copy()
            boxes[:, :4] *= np.array([native[1], native[0]] * 2, np.float32) / self.side
        if mask is not None and native != mask.shape:
            import cv2

            size = (native[1], native[0])
            mask = np.asarray(cv2.resize(mask.astype(np.uint8) * 255, size, interpolation=cv2.INTER_AREA)) > 127
        return boxes, mask

    def read(self, index: int, rng: np.random.Generator) -> Sample:
        """The image with its boxes and mask, in pixels of the user's file. Nothing is random."""
        record = self.records[index]
        assert record.path is not None  # those without were left out
        image, native, notes, _ = read_image(record.path, self.intensity)
        boxes, mask = self.regions(record, native)
        if native != image.shape:  # packed: boxes and masks shrink as the picture did
            longer = max(image.shape)
            if boxes is not None:
                boxes = boxes.copy()
                boxes[:, :4] *= longer / max(native)
            if mask is not None:
                mask = scale_to(mask.astype(np.uint8) * np.uint8(255), longer) > 127
        found = Sample(image, text=record.text, labels=record.labels, boxes=boxes, mask=mask, notes=notes)
        if not self.others:
            return found
        other = None if record.other is None else read_image(record.other, self.intensity)
        notes = tuple(dict.fromkeys((*notes, *(other.notes if other else ()))))
        return replace(found, others=(None if other is None else other.pixels,), notes=notes)

    def labels_of(self, index: int) -> NDArray[np.float32] | None:
        """The labels of one image, which is not read."""
        return self.records[index].labels

    def texts(self) -> Iterable[str]:
        """Every report."""
        return [text for _, text in self.texts_by_patient()]

    def texts_by_patient(self) -> Iterable[tuple[str | None, str]]:
        """Every report with its patient, or None if no patient is known."""
        rows = zip(self.ids, self.patients, self.records.column("text"), strict=True)
        return [(None if patient == key else patient, text) for key, patient, text in rows if text is not None]


class LabelVectors:
    """The labels of a release's table. Equal rows share one vector.

    A release writes labels in one way, unlike a user's table (:func:`diptych.data.tables.label_vector`). Any other value
    means that the table is damaged.
    """

    def __init__(self, table: Path) -> None:
        self.table = table
        self._vectors: dict[tuple[str, ...], NDArray[np.float32]] = {}

    def of(self, values: Sequence[str], where: str) -> NDArray[np.float32]:
        """Labels ``[L]`` of the row ``where``.

        Raises:
            DataError: a value that is none of 1.0, 0.0, -1.0 and nothing.
        """
        key = tuple(values)
        if key not in self._vectors:
            try:
                self._vectors[key] = np.array([_VALUES[value] for value in key], np.float32)
            except KeyError as error:
                raise DataError(
                    f"{self.table}: {where} has the label {error}; a label is 1.0, 0.0, -1.0 or empty"
                ) from None
        return self._vectors[key]


def image_file(path: str, files: Files) -> Path | PackedImage | None:
    """The image of this path without suffix, as released (``.jpg``) or as a PNG or DICOM copy. None, if there is none."""
    for suffix in (".jpg", ".png", ".dcm"):
        if image := files.find(path + suffix):
            return image
    return None


def index_images(folders: Iterable[Path], files: Files) -> dict[str, Path | PackedImage]:
    """All images below folders, by their file stems.

    Raises:
        DataError: no folder exists, none holds an image, or one stem stands for two files.
    """
    images: dict[str, Path | PackedImage] = {}
    places = list(folders)
    for folder in places:
        for name, image in files.below(folder):
            other = images.setdefault(stem(name), image)
            if other != image:
                raise DataError(f"{image} and {other}: two files for one image; keep one of them")
    if not images:
        raise DataError(f"{' or '.join(map(str, places))}: no image in it; unpack the release's images there")
    return images


class Release(RadiographDataModule):
    """Base of the readers of original releases. A subclass has :meth:`records` and :attr:`findings`.

    Args:
        root: the release's folder.
        tokenizer: linked from the text tower by the command line.
        split: a named protocol of the set, in :data:`~diptych_datamodules.releases.protocols.PROTOCOLS`.
        percent: share of the training images, by whole patients. Those of 1 % are among those of 10 %.
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
        """How many images (or reports) the tables hold. :meth:`records` counts them."""

    @cached_property
    def files(self) -> Files:
        """The images below the root, or packed there."""
        return open_images(self.root, self.loading.image_size, self.loading.intensity)

    @classmethod
    def read_tables(cls, root: Path) -> None:
        """Read all tables with the default arguments."""
        reader: Any = cls  # every reader's other arguments have defaults
        reader(str(root)).records()

    @abstractmethod
    def records(self) -> list[Record]:
        """Every image of the release's tables, whether its file exists or not."""

    def assign(self, records: Sequence[Record]) -> tuple[str, list[tuple[Record, str]]]:
        """The protocol's full name, and the split of each record. A split that the release names stays."""
        if PROTOCOLS[self.split].rule == "given":
            assigned = split(self.split, [], [], [record.given for record in records])
            return assigned.name, [(record, record.given) for record in records]
        unassigned = [record for record in records if not record.given]
        assigned = split(self.split, [record.id for record in unassigned], [record.patient for record in unassigned])
        named = [(record, record.given) for record in records if record.given]
        return assigned.name, named + list(zip(unassigned, assigned.splits, strict=True))

    def apart(self, records: Sequence[Record]) -> list[Record]:
        """The records without patients in several splits, where lists share them: the test keeps its own, then validation.

        What leaves the other splits is counted. A leaky protocol keeps everything.
        """
        if self.leaky:
            return list(records)
        last: dict[str, int] = {}
        for record in records:
            last[record.patient] = max(last.get(record.patient, 0), _RANK[record.given])
        kept = []
        for record in records:
            if _RANK[record.given] == last[record.patient]:
                kept.append(record)
            else:
                self.dropped.add(f"patient of the {SPLITS[last[record.patient]]} split", record.id)
        return kept

    def data(self, records: Sequence[Record]) -> RadiographDataset:
        """The data set of one split."""
        return ReleaseDataset(records, self.others)

    @property
    def protocol(self) -> str:
        """The split, and the share of it that is trained on."""
        share = "" if self.percent == 100 else f", {self.percent:g} % of training"
        return f"{self._name}{share}"

    def build(self) -> dict[Split, RadiographDataset]:
        """Split the tables, take the share of training, then leave out what has no file."""
        collects = gc.isenabled()
        gc.disable()  # the collector would visit millions of new objects many times
        try:
            return self._splits_of_records()
        finally:
            if collects:
                gc.enable()

    def _splits_of_records(self) -> dict[Split, RadiographDataset]:
        self._name, assigned = self.assign(self.records())
        members: dict[str, list[Record]] = {}
        for record, name in assigned:
            members.setdefault(name, []).append(record)
        if self.percent < 100 and "train" in members:
            chosen = nested_share([record.patient for record in members["train"]], self.percent)
            members["train"] = [members["train"][i] for i in chosen]
        splits: dict[Split, RadiographDataset] = {}
        for which in SPLITS:
            if which in members:
                splits[which] = self.data([record for record in members[which] if self._usable(record)])
        if self.strict:
            self.dropped.refuse(str(self.root))
        return splits

    def place(self, record: Record) -> str:
        """Where the image of a record was looked for. Empty, if it is looked for by its name in all folders."""
        return ""

    def _usable(self, record: Record) -> bool:
        if record.path is None:
            self.dropped.add("missing image", record.id, self.place(record))
        elif record.text == "":
            self.dropped.add("empty report", record.id)
        elif isinstance(record.path, PackedImage) and record.path.unusable:
            rule, why = record.path.unusable
            self.dropped.add(rule, record.id, why)
        elif isinstance(record.other, PackedImage) and record.other.unusable:
            self.dropped.add("missing other image", record.id, record.other.unusable[1])
        else:
            return True
        return False
