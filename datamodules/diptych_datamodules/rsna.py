"""RSNA Pneumonia Detection Challenge (Kaggle 2018, stage 2): labels, three classes, boxes, box masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from diptych.data.datamodule import RadiographDataset
from diptych.data.loading import Loading
from diptych.data.tables import find_file, scan_table
from diptych.errors import ConfigError, DataError
from diptych.reports.tokenizer import Tokenizer
from diptych_datamodules.releases.base import Record, Release, ReleaseDataset, index_images
from diptych_datamodules.releases.facts import OBTAIN

__all__ = ["CLASSES", "Rsna", "box_mask"]

CLASSES = ("Normal", "No Lung Opacity / Not Normal", "Lung Opacity")
_OBTAIN = OBTAIN["rsna"]


def box_mask(boxes: NDArray[np.float32], side: int) -> NDArray[np.bool_]:
    """The union ``[side,side]`` of filled boxes ``[K,5]``, which the literature uses as a mask.

    >>> box_mask(np.array([[0, 0, 2, 1, 0]], np.float32), side=3).astype(int).tolist()
    [[1, 1, 0], [0, 0, 0], [0, 0, 0]]
    """
    mask = np.zeros((side, side), dtype=bool)
    for x0, y0, x1, y1 in np.rint(boxes[:, :4]).astype(int).tolist():
        mask[max(y0, 0) : y1, max(x0, 0) : x1] = True
    return mask


class _RsnaDataset(ReleaseDataset):
    def mask(self, record: Record) -> NDArray[np.bool_] | None:
        return None if record.boxes is None else box_mask(record.boxes, self.side)


class Rsna(Release):
    """``stage_2_train_labels.csv``, ``stage_2_detailed_class_info.csv`` and ``stage_2_train_images/ID.dcm``.

    Patients are not known, so each image counts as one. Boxes are in native pixels.

    Args:
        root: the folder that holds both tables and ``stage_2_train_images``. PNG or JPEG copies of any size will do.
        tokenizer: linked from the text tower by the command line. There are no reports.
        split: ``rsna/gloria-cls``, ``rsna/mgca-det`` or ``rsna/mrm``.
        labels: ``pneumonia`` (the target alone) or ``classes`` (one of three).
        masks: whether the union of the boxes is read as a mask.
        test_list: for ``rsna/mrm``: its ``test_list.txt``, lines of ``stage_2_test_images/ID.dcm 0|1``.
        percent: share of the training images. Those of 1 % are among those of 10 %.
        strict: refuse a release with missing images. Otherwise they are left out, and counted.
        loading: how samples are loaded.
    """

    paper: ClassVar[str] = "Shih et al., Radiology: Artificial Intelligence 1, 2019"
    needs: ClassVar[frozenset[str]] = frozenset({"stage_2_train_labels.csv", "stage_2_train_images/"})
    holds: ClassVar[frozenset[str]] = frozenset({"image", "labels", "boxes", "masks"})
    overlaps: ClassVar[str] = "every image is from NIH ChestX-ray14: a model pre-trained there may have seen it"
    data_set: ClassVar[str] = "rsna"

    def __init__(
        self,
        root: str,
        tokenizer: Tokenizer | None = None,
        *,
        split: str = "rsna/gloria-cls",
        labels: Literal["pneumonia", "classes"] = "pneumonia",
        masks: bool = False,
        test_list: str | None = None,
        percent: float = 100.0,
        strict: bool = False,
        loading: Loading = Loading(),  # noqa: B008  # frozen, and the command line shows its fields
    ) -> None:
        super().__init__(root, tokenizer, split=split, percent=percent, strict=strict, loading=loading)
        if (split == "rsna/mrm") != (test_list is not None):
            raise ConfigError(
                "data.test_list belongs to data.split rsna/mrm and to no other: its test images have no label in the "
                "Kaggle release; give both or neither"
            )
        if test_list is not None and labels == "classes":
            raise ConfigError("data.labels is 'classes', which rsna/mrm's test images do not have; use 'pneumonia'")
        self.labels, self.test_list = labels, None if test_list is None else Path(test_list)
        self.findings = ("Pneumonia",) if labels == "pneumonia" else CLASSES
        self.masks = masks

    def data(self, records: Sequence[Record]) -> RadiographDataset:
        """A data set with masks, if they are asked for."""
        return _RsnaDataset(records) if self.masks else ReleaseDataset(records)

    def records(self) -> list[Record]:
        """The images of both tables, and the test images of ``rsna/mrm``."""
        table = find_file(self.root, ["stage_2_train_labels.csv"], _OBTAIN)
        boxes: dict[str, list[list[float]]] = {}
        of_finding = float(len(self.findings) - 1)
        for key, *corner, target in scan_table(table, ["patientId", "x", "y", "width", "height", "Target"]):
            boxes_of_image = boxes.setdefault(key, [])
            if target not in {"0", "1"} or (target == "1") != all(corner):
                raise DataError(
                    f"{table}: '{key}' has Target '{target}' and the box '{','.join(corner)}'; 1 has one, 0 none"
                )
            if target == "1":
                try:
                    x, y, width, height = map(float, corner)
                except ValueError:
                    raise DataError(f"{table}: the box of '{key}' is '{','.join(corner)}'; give four numbers") from None
                boxes_of_image.append([x, y, x + width, y + height, of_finding])
        classes = self._classes() if self.labels == "classes" else {}
        images = index_images([self.root / "stage_2_train_images"], self.files)
        records = []
        for key in sorted(boxes):
            if self.labels == "classes" and key not in classes:
                raise DataError(
                    f"{self.root}: '{key}' has no class in stage_2_detailed_class_info.csv; get the whole table"
                )
            present = [classes[key] == name for name in CLASSES] if classes else [bool(boxes[key])]
            corners = np.array(boxes[key], np.float32).reshape(-1, 5)
            records.append(Record(key, images.get(key), key, labels=np.array(present, np.float32), boxes=corners))
        self.counted = len(records)
        return records + self._test_records()

    def _classes(self) -> dict[str, str]:
        table = find_file(self.root, ["stage_2_detailed_class_info.csv"], _OBTAIN)
        classes: dict[str, str] = {}
        for key, name in scan_table(table, ["patientId", "class"]):  # a row for each box
            if name not in CLASSES or classes.setdefault(key, name) != name:
                raise DataError(
                    f"{table}: the class of '{key}' is '{name}'; give one of {', '.join(CLASSES)}, always the same"
                )
        return classes

    def _test_records(self) -> list[Record]:
        """The test images of ``rsna/mrm``."""
        if self.test_list is None:
            return []
        if not self.test_list.is_file():
            raise DataError(f"{self.test_list}: no such list; get RSNA_Pneumonia/test_list.txt of RL4M/MRM-pytorch")
        images = index_images([self.root / "stage_2_test_images"], self.files)
        records = []
        for number, line in enumerate(self.test_list.read_text().splitlines(), start=1):
            name, _, label = line.strip().partition(" ")
            if not name:
                continue
            if label not in {"0", "1"}:
                raise DataError(f"{self.test_list}, line {number}: the label is '{label}'; write an image and 0 or 1")
            key = Path(name).stem
            records.append(Record(key, images.get(key), key, labels=np.array([float(label)], np.float32), given="test"))
        return records
