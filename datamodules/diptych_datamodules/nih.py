"""NIH ChestX-ray14: fourteen labels, the boxes of its test images, and both test sets that are in use."""

from __future__ import annotations

import fnmatch
import json
from pathlib import Path
from typing import ClassVar

import numpy as np

from diptych.data.about import sex, years
from diptych.data.loading import Loading
from diptych.data.splits import assign
from diptych.data.tables import find_file, scan_table
from diptych.errors import DataError
from diptych.reports.tokenizer import Tokenizer
from diptych_datamodules.releases.base import Record, Release, index_images
from diptych_datamodules.releases.facts import OBTAIN

__all__ = ["FINDINGS", "Nih"]

FINDINGS = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema", "Fibrosis", "Hernia", "Infiltration",
    "Mass", "Nodule", "Pleural_Thickening", "Pneumonia", "Pneumothorax",
)  # fmt: skip
_BOX_NAMES = {"Infiltrate": "Infiltration"}  # as the table of boxes calls it
_ABOUT = ("Patient Age", "Patient Gender", "View Position")
_OBTAIN = OBTAIN["nih"]
# The split of each list. Both protocols have a test_list.txt, with other images.
_LISTS = {
    "nih/official": {"train_val_list.txt": "train", "test_list.txt": "test"},
    "nih/chexnet": {"train_list.txt": "train", "val_list.txt": "val", "test_list.txt": "test"},
}
_ORIGIN = {"nih/official": _OBTAIN, "nih/chexnet": OBTAIN["nih/chexnet"]}
_VALIDATION = {"train": 0.9, "val": 0.1}


class Nih(Release):
    """``Data_Entry_2017_v2020.csv``, ``images_001/images/*.png`` ... (or ``images/``), the lists, ``BBox_List_2017.csv``.

    Only 880 images have boxes. Findings in the others have none.

    Args:
        root: the folder that holds the table and the images. Copies of another size will do.
        tokenizer: linked from the text tower by the command line. There are no reports.
        split: ``nih/official`` (test: 25,596 images) or ``nih/chexnet`` (22,433).
        lists: the folder of the lists. The root, if not given. Those of ``nih/chexnet`` are not in the release.
        boxes: whether the boxes of ``BBox_List_2017.csv`` are read.
        exclude: a list of images that are neither trained nor validated on, so that the other set can be a test. It is a
            ``.csv`` with a column ``img_id`` or ``id``, or RSNA's ``pneumonia-challenge-dataset-mappings_2018.json``.
        percent: share of the training images. Those of 1 % are among those of 10 %.
        strict: refuse a release with missing images. Otherwise they are left out, and counted.
        loading: how samples are loaded.
    """

    paper: ClassVar[str] = "Wang et al., ChestX-ray8, CVPR 2017"
    needs: ClassVar[frozenset[str]] = frozenset({"Data_Entry_2017_v2020.csv", "images_001/images/", "test_list.txt"})
    holds: ClassVar[frozenset[str]] = frozenset({"image", "labels", "boxes"})
    overlaps: ClassVar[str] = (
        "RSNA pneumonia and SIIM-ACR are made of its images: a model pre-trained there may have seen them"
    )
    data_set: ClassVar[str] = "nih"

    def __init__(
        self,
        root: str,
        tokenizer: Tokenizer | None = None,
        *,
        split: str = "nih/official",
        lists: str | None = None,
        boxes: bool = False,
        exclude: str | None = None,
        percent: float = 100.0,
        strict: bool = False,
        loading: Loading = Loading(),  # noqa: B008  # frozen, and the command line shows its fields
    ) -> None:
        super().__init__(root, tokenizer, split=split, percent=percent, strict=strict, loading=loading)
        self.findings = FINDINGS
        self.lists, self.boxes = self.root if lists is None else Path(lists), boxes
        self.exclude = None if exclude is None else Path(exclude)

    @property
    def protocol(self) -> str:
        """The split, and the list that was excluded from training."""
        return super().protocol + ("" if self.exclude is None else f", {self.exclude.name} excluded")

    def records(self) -> list[Record]:
        """The table, with the split of every image."""
        table = find_file(self.root, ["Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv"], _OBTAIN)
        rows = list(scan_table(table, ["Image Index", "Finding Labels", "Patient ID"], _ABOUT))
        self.counted = len(rows)
        splits = self._splits({row[0]: row[2] for row in rows})
        boxes = self._boxes() if self.boxes else {}
        numbered = fnmatch.filter(self.files.folders(self.root), "images_[0-9]*")
        images = index_images([self.root / name for name in ("images", *numbered)], self.files)
        left_out = _excluded_stems(self.exclude) if self.exclude is not None else set()
        no_boxes = np.zeros((0, 5), np.float32)
        records = []
        for name, listed, patient, age, letter, view in rows:
            key = Path(name).stem
            if key in left_out and splits[name] != "test":
                self.dropped.add("in the excluded set", key)
                continue
            labels = np.zeros(len(FINDINGS), np.float32)
            for finding in listed.split("|"):
                if finding != "No Finding":
                    labels[_column(finding, f"{table}: '{name}'")] = 1
            box = np.array(boxes[name], np.float32) if name in boxes else no_boxes
            record = Record(key, images.get(key), patient, labels=labels, given=splits[name], view=view)
            record.sex, record.age = sex(letter), years(age)
            record.boxes = box if self.boxes else None
            records.append(record)
        return records

    def _splits(self, patients: dict[str, str]) -> dict[str, str]:
        """The split of each image, by the protocol's lists. A tenth of the official training patients validates."""
        splits: dict[str, str] = {}
        for name, which in _LISTS[self.split].items():
            path = find_file(self.lists, [name], f"it belongs to {self.split}; {_ORIGIN[self.split]}")
            for line in path.read_text().splitlines():
                image = line.split(" ")[0].strip()  # in CheXNet's lists, labels follow
                if image and splits.setdefault(image, which) != which:
                    raise DataError(f"{path}: '{image}' is in another list too; use the lists of {self.split}")
        unknown = sorted(set(patients) - set(splits))
        if unknown:
            raise DataError(
                f"{self.lists}: {len(unknown)} images of the table are in no list, as {unknown[0]}; use those of {self.split}"
            )
        if self.split == "nih/official":
            for image in patients:
                if splits[image] == "train":
                    splits[image] = assign(patients[image], _VALIDATION, 0)
        return splits

    def _boxes(self) -> dict[str, list[list[float]]]:
        table = find_file(self.root, ["BBox_List_2017.csv"], _OBTAIN)
        boxes: dict[str, list[list[float]]] = {}
        # The header's "Bbox [x,y,w,h]" is not quoted, so it is four columns.
        for name, finding, *corner in scan_table(table, ["Image Index", "Finding Label", "Bbox [x", "y", "w", "h]"]):
            try:
                x, y, width, height = map(float, corner)
            except ValueError:
                raise DataError(f"{table}: the box of '{name}' is '{','.join(corner)}'; give four numbers") from None
            column = _column(_BOX_NAMES.get(finding, finding), f"{table}: '{name}'")
            boxes.setdefault(name, []).append([x, y, x + width, y + height, float(column)])
        return boxes


def _column(finding: str, where: str) -> int:
    if finding not in FINDINGS:
        raise DataError(f"{where} has the finding '{finding}'; known are {', '.join(FINDINGS)} and No Finding")
    return FINDINGS.index(finding)


def _excluded_stems(path: Path) -> set[str]:
    """Stems of the images in a table or in RSNA's mapping."""
    if path.suffix == ".json":
        try:
            stems = {Path(entry["img_id"]).stem for entry in json.loads(path.read_text())}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}: not RSNA's mapping ({type(error).__name__}: {error}); give a list with img_id"
            ) from error
    else:
        rows = scan_table(path, [], ["img_id", "id", "Image Index"])
        stems = {Path(next(filter(None, row))).stem for row in rows if any(row)}
    if not stems:
        raise DataError(f"{path}: no image is named; give a column (or key) img_id")
    return stems
