"""ChestX-Det10: radiologists' boxes of ten findings on 3,543 images of NIH ChestX-ray14."""

from __future__ import annotations

import fnmatch
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from diptych.data.loading import Loading
from diptych.data.splits import assign
from diptych.data.tables import find_file, read_table
from diptych.errors import DataError, shown
from diptych.reports.tokenizer import Tokenizer
from diptych_datamodules.releases.base import Record, Release, index_images
from diptych_datamodules.releases.facts import OBTAIN

__all__ = ["FINDINGS", "ChestxDet10"]

FINDINGS = (
    "Atelectasis", "Calcification", "Consolidation", "Effusion", "Emphysema", "Fibrosis", "Fracture", "Mass", "Nodule",
    "Pneumothorax",
)  # fmt: skip
_LISTS = {"train.json": "train", "test.json": "test"}
_VALIDATION = {"train": 0.9, "val": 0.1}


def _boxes(syms: Any, corners: Any, where: str) -> NDArray[np.float32]:
    """The boxes ``[K,5]`` of one image.

    Raises:
        DataError: names and boxes do not match, or a box is no four numbers from the upper left to the lower right.
    """
    if not isinstance(syms, list) or not isinstance(corners, list) or len(syms) != len(corners):
        raise DataError(f"{where} has syms {shown(syms)} and boxes {shown(corners)}; give two lists of one length")
    boxes = np.zeros((len(syms), 5), np.float32)
    for row, name, box in zip(boxes, syms, corners, strict=True):
        if name not in FINDINGS:
            raise DataError(f"{where} has the finding {shown(name)}; known are {', '.join(FINDINGS)}")
        numbers = isinstance(box, list) and len(box) == 4 and all(isinstance(v, int | float) for v in box)
        if not numbers or not (box[0] < box[2] and box[1] < box[3]):
            raise DataError(f"{where} has the box {shown(box)}; give x1, y1, x2, y2 from upper left to lower right")
        row[:] = [*box, FINDINGS.index(name)]
    return boxes


class ChestxDet10(Release):
    """``train.json`` and ``test.json`` with ``train_data/*.png`` and ``test_data/*.png``.

    The release's own split shares patients: its README names images as NIH does, by patient and follow-up. The protocol
    ``chestx_det10/official`` keeps its test, and leaves the training images of these patients out.

    Args:
        root: the folder that holds both tables and the images. Images of NIH ChestX-ray14 in its own folders will do, and so
            will copies of any size: boxes are scaled along.
        tokenizer: linked from the text tower by the command line. There are no reports.
        split: ``chestx_det10/official``, or ``chestx_det10/official-leaky`` to compare with figures published on it.
        percent: share of the training images. Those of 1 % are among those of 10 %.
        strict: refuse a release of which something must be left out.
        loading: how samples are loaded.
    """

    paper: ClassVar[str] = "Liu et al., ChestX-Det10, arXiv 2006.10550, 2020"
    needs: ClassVar[frozenset[str]] = frozenset({"train.json", "test.json", "train_data/", "test_data/"})
    holds: ClassVar[frozenset[str]] = frozenset({"image", "labels", "boxes"})
    overlaps: ClassVar[str] = "every image is from NIH ChestX-ray14: a model pre-trained there may have seen it"
    data_set: ClassVar[str] = "chestx_det10"

    def __init__(
        self,
        root: str,
        tokenizer: Tokenizer | None = None,
        *,
        split: str = "chestx_det10/official",
        percent: float = 100.0,
        strict: bool = False,
        loading: Loading = Loading(),  # noqa: B008  # frozen, and the command line shows its fields
    ) -> None:
        super().__init__(root, tokenizer, split=split, percent=percent, strict=strict, loading=loading)
        self.findings = FINDINGS

    def records(self) -> list[Record]:
        """The images of both tables."""
        numbered = fnmatch.filter(self.files.folders(self.root), "images_[0-9]*")
        folders = [self.root / name for name in ("train_data", "test_data", "images", *numbered)]
        tables = {name: find_file(self.root, [name], OBTAIN["chestx_det10"]) for name in _LISTS}
        images = index_images(folders, self.files)
        records: dict[str, Record] = {}
        for name, table in tables.items():
            for row in read_table(table, ["file_name", "syms", "boxes"]).rows():
                key = row.get("file_name").removesuffix(".png")
                where = f"{table}: '{key}'"
                if key in records:
                    raise DataError(f"{where} stands twice, here or in the other table; get both tables anew")
                boxes = _boxes(row.values["syms"], row.values["boxes"], where)
                labels = np.zeros(len(FINDINGS), np.float32)
                labels[boxes[:, 4].astype(int)] = 1
                patient = key.partition("_")[0]
                given = assign(patient, _VALIDATION, 0) if _LISTS[name] == "train" else "test"
                records[key] = Record(key, images.get(key), patient, labels=labels, boxes=boxes, given=given)
        self.counted = len(records)
        return self.apart(list(records.values()))
