"""VinDr-CXR: 28 labels and the boxes of three readers an image, merged by a named rule, and a test by consensus of five."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from diptych.checks import check_choice
from diptych.data.datamodule import RadiographDataset
from diptych.data.loading import Loading
from diptych.data.splits import assign
from diptych.data.tables import find_file, scan_table
from diptych.errors import DataError
from diptych.metrics.detection import iou
from diptych.radiographs.packed import PackedImage
from diptych.reports.tokenizer import Tokenizer
from diptych_datamodules.releases.base import LabelVectors, Record, Release, index_images
from diptych_datamodules.releases.facts import OBTAIN
from diptych_datamodules.releases.sized import SizedDataset, SizedRecord

__all__ = ["FINDINGS", "KAGGLE", "Readers", "VindrCxr", "fuse_boxes", "merge_readers"]

LOCAL = (
    "Aortic enlargement", "Atelectasis", "Calcification", "Cardiomegaly", "Clavicle fracture", "Consolidation", "Edema",
    "Emphysema", "Enlarged PA", "ILD", "Infiltration", "Lung Opacity", "Lung cavity", "Lung cyst", "Mediastinal shift",
    "Nodule/Mass", "Pleural effusion", "Pleural thickening", "Pneumothorax", "Pulmonary fibrosis", "Rib fracture",
    "Other lesion",
)  # fmt: skip
FINDINGS = (*LOCAL, "COPD", "Lung tumor", "Pneumonia", "Tuberculosis", "Other diseases", "No finding")
"""The labels of the release. The first 22 have boxes."""
KAGGLE = (
    "Aortic enlargement", "Atelectasis", "Calcification", "Cardiomegaly", "Consolidation", "ILD", "Infiltration",
    "Lung Opacity", "Nodule/Mass", "Other lesion", "Pleural effusion", "Pleural thickening", "Pneumothorax",
    "Pulmonary fibrosis", "No finding",
)  # fmt: skip
"""The classes of the VinBigData challenge, in the order of their numbers."""

Readers = Literal["any", "majority", "all"]
_OBTAIN = {"vindr_cxr/official": OBTAIN["vindr_cxr"], "vindr_cxr/kaggle": OBTAIN["vindr_cxr/kaggle"]}
_NONE = "No finding"
_VALIDATION = {"train": 0.9, "val": 0.1}
_OTHER = ("Other diseases", "Other disease")  # as the two tables may call it
_COLUMNS = ("image_id", "class_name", "x_min", "y_min", "x_max", "y_max")
_CORNERS = NDArray[np.float32]


def merge_readers(votes: NDArray[np.bool_], rule: Readers) -> NDArray[np.bool_]:
    """The findings ``[L]`` that stand, of what each reader saw ``[R,L]``.

    >>> merge_readers(np.array([[1, 1, 0], [1, 0, 0], [1, 1, 1]], bool), "majority").tolist()
    [True, True, False]

    Args:
        votes: one row a reader.
        rule: ``any`` needs one reader, ``majority`` more than half of them, ``all`` each of them.
    """
    needed = {"any": 1, "majority": len(votes) // 2 + 1, "all": len(votes)}[rule]
    return np.asarray(votes.sum(axis=0) >= needed)


def fuse_boxes(boxes: _CORNERS, overlap: float = 0.5) -> _CORNERS:
    """Boxes of several readers for one finding ``[K,4]``, those of one lesion made one ``[M,4]``.

    This is weighted boxes fusion with equal weights (Solovyev et al., Image and Vision Computing 107, 2021). A box joins the
    fused box with which its intersection over union is largest, if that is more than ``overlap``. A fused box is the mean of
    its members. Else the box begins a fused box. The last is taken first, as in the authors' package where scores are equal.

    >>> fuse_boxes(np.array([[0, 0, 10, 10], [30, 30, 40, 40], [2, 0, 12, 10]], np.float32)).tolist()
    [[1.0, 0.0, 11.0, 10.0], [30.0, 30.0, 40.0, 40.0]]
    """
    members: list[list[_CORNERS]] = []
    fused = np.zeros((0, 4), np.float32)
    for box in boxes[::-1]:
        ratios = iou(box[None], fused)[0]
        if len(ratios) and ratios.max() > overlap:
            best = int(ratios.argmax())
            members[best].append(box)
            fused[best] = np.mean(members[best], axis=0)
        else:
            members.append([box])
            fused = np.concatenate([fused, box[None]])
    return fused


class VindrCxr(Release):
    """``train/ID.dicom``, ``test/ID.dicom`` and ``annotations/*.csv``, or ``train.csv`` and ``train`` of the Kaggle challenge.

    Patients are not known, so each image counts as one. Three of seventeen readers read each training image. The test is the
    consensus of five, and is read as it is.

    Args:
        root: the folder that holds ``annotations`` and the images.
        tokenizer: linked from the text tower by the command line. There are no reports.
        split: ``vindr_cxr/official`` (a tenth of the training images validates), or ``vindr_cxr/kaggle``, whose own test has
            no labels.
        readers: which readers must see a finding in a training image: ``any``, the ``majority`` or ``all``. ``No finding``
            stands where no other finding does.
        boxes: ``fused`` makes one of the boxes of several readers for one lesion (:func:`fuse_boxes`). ``every`` keeps each
            reader's. ``none`` reads no boxes. A finding that does not stand has no boxes.
        sizes: for copies that are no DICOM files: a csv with ``image_id``, ``dim0`` (height) and ``dim1`` (width) of the
            originals, as resized copies on Kaggle have it. Boxes are in pixels of the originals.
        percent: share of the training images. Those of 1 % are among those of 10 %.
        strict: refuse a release with missing images. Otherwise they are left out, and counted.
        loading: how samples are loaded.
    """

    paper: ClassVar[str] = "Nguyen et al., VinDr-CXR, Scientific Data 9, 2022"
    needs: ClassVar[frozenset[str]] = frozenset({"annotations/*.csv", "train/*.dicom", "test/*.dicom"})
    holds: ClassVar[frozenset[str]] = frozenset({"image", "labels", "boxes"})
    data_set: ClassVar[str] = "vindr_cxr"

    def __init__(
        self,
        root: str,
        tokenizer: Tokenizer | None = None,
        *,
        split: str = "vindr_cxr/official",
        readers: Readers = "majority",
        boxes: Literal["fused", "every", "none"] = "fused",
        sizes: str | None = None,
        percent: float = 100.0,
        strict: bool = False,
        loading: Loading = Loading(),  # noqa: B008  # frozen, and the command line shows its fields
    ) -> None:
        super().__init__(root, tokenizer, split=split, percent=percent, strict=strict, loading=loading)
        check_choice("data.readers", readers, ("any", "majority", "all"))
        check_choice("data.boxes", boxes, ("fused", "every", "none"))
        self.findings = FINDINGS if split == "vindr_cxr/official" else KAGGLE
        self.readers: Readers = readers
        self.boxes, self.sizes = boxes, None if sizes is None else Path(sizes)

    @property
    def protocol(self) -> str:
        """The split, and how readers were merged."""
        return f"{super().protocol}, readers {self.readers}, boxes {self.boxes}"

    def data(self, records: Sequence[Record]) -> RadiographDataset:
        """A data set whose boxes are in pixels of the files."""
        return SizedDataset(records)

    def records(self) -> list[Record]:
        """The images of the tables, those of training first."""
        official = self.split == "vindr_cxr/official"
        self._originals = self._sizes()
        train = self._labels("train") if official else {}
        drawn = self._drawn(self._table("annotations_train.csv") if official else self._table("train.csv"), True)
        if not official:
            train = {image: self._seen(by_reader) for image, by_reader in drawn.items()}
        records = self._records("train", train, drawn)
        if official:
            for record in records:
                record.given = assign(record.id, _VALIDATION, 0)
            test = self._records("test", self._labels("test"), self._drawn(self._table("annotations_test.csv"), False))
            for record in test:
                record.given = "test"
            records += test
        self.counted = len(records)
        return records

    def _table(self, name: str) -> Path:
        return find_file(self.root, [f"annotations/{name}", name], _OBTAIN[self.split])

    def _sizes(self) -> dict[str, tuple[int, int]]:
        if self.sizes is None:
            return {}
        sizes = {}
        for image, height, width in scan_table(self.sizes, ["image_id", "dim0", "dim1"]):
            if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
                raise DataError(f"{self.sizes}: '{image}' is {height} x {width}; give two whole numbers of pixels")
            sizes[image] = int(height), int(width)
        return sizes

    def _labels(self, part: str) -> dict[str, NDArray[np.bool_]]:
        """What each reader says of each image ``[R,28]``. The test has one row, the consensus."""
        table = self._table(f"image_labels_{part}.csv")
        vectors: dict[str, list[NDArray[np.bool_]]] = {}
        names = [name for name in FINDINGS if name not in _OTHER]
        at = FINDINGS.index(_OTHER[0])
        reader = LabelVectors(table)
        for image, *values in scan_table(table, ["image_id", *names], _OTHER):
            other = "".join(values[-2:])  # one of them is no column of the table, so it is empty
            labels = reader.of([*values[:at], other, *values[at:-2]], f"'{image}'")
            if not np.isin(labels, (0, 1)).all():
                raise DataError(f"{table}: '{image}' has a label that is neither 0 nor 1; get the table anew")
            vectors.setdefault(image, []).append(labels == 1)
        return {image: np.stack(rows) for image, rows in vectors.items()}

    def _drawn(self, table: Path, by_reader: bool) -> dict[str, dict[str, list[list[float]]]]:
        """Boxes of each image and reader, as corners and the finding's number. Readers who drew nothing are there too."""
        drawn: dict[str, dict[str, list[list[float]]]] = {}
        columns = [*_COLUMNS, "rad_id"] if by_reader else list(_COLUMNS)
        for image, finding, *rest in scan_table(table, columns):
            corner, reader = rest[:4], rest[4] if by_reader else ""
            boxes = drawn.setdefault(image, {}).setdefault(reader, [])
            if finding == _NONE and not any(corner):
                continue
            if finding not in self.findings or finding == _NONE:
                raise DataError(f"{table}: '{image}' has a box of '{finding}'; known are {', '.join(self.findings)}")
            try:
                x0, y0, x1, y1 = map(float, corner)
            except ValueError:
                raise DataError(f"{table}: the box of '{image}' is '{','.join(corner)}'; give four numbers") from None
            if not (x0 < x1 and y0 < y1):
                raise DataError(
                    f"{table}: the box of '{image}' is '{','.join(corner)}'; give x_min < x_max and y_min < y_max"
                )
            boxes.append([x0, y0, x1, y1, float(self.findings.index(finding))])
        return drawn

    def _seen(self, by_reader: Mapping[str, list[list[float]]]) -> NDArray[np.bool_]:
        """What each reader drew ``[R,L]``."""
        votes = np.zeros((len(by_reader), len(self.findings)), bool)
        for row, boxes in zip(votes, by_reader.values(), strict=True):
            row[[int(box[4]) for box in boxes]] = True
        return votes

    def _records(
        self,
        part: str,
        votes: Mapping[str, NDArray[np.bool_]],
        drawn: Mapping[str, Mapping[str, list[list[float]]]],
    ) -> list[Record]:
        unlabelled = sorted(set(drawn) - set(votes))
        if unlabelled:
            raise DataError(f"{self.root}: '{unlabelled[0]}' has boxes and no labels; get all tables of one release")
        images = index_images([self.root / part], self.files)
        records: list[Record] = []
        for key in sorted(votes):
            stands = merge_readers(votes[key], self.readers if part == "train" else "all")
            if part == "train":
                stands[-1] = not stands[:-1].any()
            record = SizedRecord(key, images.get(key), key, labels=stands.astype(np.float32))
            record.size = self._originals.get(key)
            if self.boxes != "none":
                record.boxes = self._boxes(
                    [box for boxes in drawn.get(key, {}).values() for box in boxes], stands, part
                )
                if len(record.boxes) and record.path is not None and record.size is None:
                    _check_original(record.path)
            records.append(record)
        return records

    def _boxes(self, drawn: list[list[float]], stands: NDArray[np.bool_], part: str) -> _CORNERS:
        """The boxes ``[K,5]`` of the findings that stand."""
        table: _CORNERS = np.array(drawn, np.float32).reshape(-1, 5)
        table = table[stands[table[:, 4].astype(int)]]
        if self.boxes == "every" or part == "test":
            return table
        parts = [np.zeros((0, 5), np.float32)]
        for finding in np.unique(table[:, 4]):
            fused = fuse_boxes(table[table[:, 4] == finding, :4])
            parts.append(np.column_stack([fused, np.full(len(fused), finding, np.float32)]))
        return np.concatenate(parts)


def _check_original(image: Path | PackedImage) -> None:
    """Refuse a copy whose original size is not known.

    Raises:
        DataError: it is no DICOM file.
    """
    name = str(image)
    if not name.lower().endswith((".dicom", ".dcm")):
        raise DataError(
            f"{name}: boxes are in pixels of the DICOM file, whose size this copy does not tell; give data.sizes (a csv with "
            "image_id, dim0, dim1), or data.boxes none"
        )
