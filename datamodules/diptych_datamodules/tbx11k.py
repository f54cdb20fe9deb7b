"""TBX11K: tuberculosis with boxes, among healthy people and people with other diseases."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from diptych.data.datamodule import RadiographDataset
from diptych.data.loading import Loading
from diptych.data.splits import assign
from diptych.data.tables import find_file
from diptych.errors import DataError
from diptych.reports.tokenizer import Tokenizer
from diptych_datamodules.releases.base import Record, Release, ReleaseDataset, index_images
from diptych_datamodules.releases.facts import OBTAIN

__all__ = ["ACTIVITY", "CLASSES", "Tbx11k"]

ACTIVITY = ("ActiveTuberculosis", "ObsoletePulmonaryTuberculosis")
CLASSES = ("Healthy", "Sick", "Tuberculosis")
_FOLDERS = {"health": "Healthy", "sick": "Sick", "tb": "Tuberculosis"}
_UNSURE = "PulmonaryTuberculosis"  # of which nobody could say whether it is active
_SPLITS = {"train": "train", "val": "test"}
_VALIDATION = {"train": 0.9, "val": 0.1}

Box = tuple[str, list[float]]
"""A category's name, and the corners x0, y0, x1, y1."""


def _coco_boxes(path: Path) -> dict[str, list[Box]]:
    """The boxes of each image of a COCO file, by the image's name.

    Raises:
        DataError: it is no such file.
    """
    try:
        content = json.loads(path.read_text())
        names = {row["id"]: row["name"] for row in content["categories"]}
        images = {row["id"]: str(row["file_name"]) for row in content["images"]}
        boxes: dict[str, list[Box]] = {name: [] for name in images.values()}
        for row in content["annotations"]:
            x, y, width, height = map(float, row["bbox"])
            boxes[images[row["image_id"]]].append((names[row["category_id"]], [x, y, x + width, y + height]))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: no COCO annotations ({type(error).__name__}: {error}); get it anew") from error
    return boxes


class _TbxDataset(ReleaseDataset):
    side: ClassVar[int] = 512


class Tbx11k(Release):
    """``lists/TBX11K_train.txt``, ``annotations/json/TBX11K_train.json``, both for ``val`` too, and ``imgs/tb/*.png`` ...

    Patients are not known, so each image counts as one. Boxes are in pixels of 512x512 pictures.

    Args:
        root: the folder ``TBX11K``. Copies of another size will do: boxes are scaled along.
        tokenizer: linked from the text tower by the command line. There are no reports.
        split: ``tbx11k/val``.
        labels: ``tuberculosis`` (is it there), ``activity`` (active, obsolete) or ``classes`` (one of three). Boxes are of
            the same findings.
        percent: share of the training images. Those of 1 % are among those of 10 %.
        strict: refuse a release with missing images. Otherwise they are left out, and counted.
        loading: how samples are loaded.
    """

    paper: ClassVar[str] = "Liu et al., Rethinking Computer-Aided Tuberculosis Diagnosis, CVPR 2020"
    needs: ClassVar[frozenset[str]] = frozenset(
        {"lists/TBX11K_train.txt", "annotations/json/TBX11K_train.json", "imgs/"}
    )
    holds: ClassVar[frozenset[str]] = frozenset({"image", "labels", "boxes"})
    data_set: ClassVar[str] = "tbx11k"

    def __init__(
        self,
        root: str,
        tokenizer: Tokenizer | None = None,
        *,
        split: str = "tbx11k/val",
        labels: Literal["tuberculosis", "activity", "classes"] = "tuberculosis",
        percent: float = 100.0,
        strict: bool = False,
        loading: Loading = Loading(),  # noqa: B008  # frozen, and the command line shows its fields
    ) -> None:
        super().__init__(root, tokenizer, split=split, percent=percent, strict=strict, loading=loading)
        self.labels = labels
        self.findings = {"tuberculosis": ("Tuberculosis",), "activity": ACTIVITY, "classes": CLASSES}[labels]

    def data(self, records: Sequence[Record]) -> RadiographDataset:
        """A data set of pictures 512 wide."""
        return _TbxDataset(records)

    def records(self) -> list[Record]:
        """The images of both lists."""
        obtain = OBTAIN["tbx11k"]
        lists = {name: find_file(self.root / "lists", [f"TBX11K_{name}.txt"], obtain) for name in _SPLITS}
        tables = {
            name: find_file(self.root / "annotations" / "json", [f"TBX11K_{name}.json"], obtain) for name in _SPLITS
        }
        images = index_images([self.root / "imgs" / name for name in _FOLDERS], self.files)
        records: dict[str, Record] = {}
        for name, split in _SPLITS.items():
            boxes = _coco_boxes(tables[name])
            for line in filter(None, map(str.strip, lists[name].read_text().splitlines())):
                key, folder = Path(line).stem, Path(line).parent.name
                if line not in boxes or folder not in _FOLDERS or key in records:
                    raise DataError(
                        f"{lists[name]}: '{line}' is not in {tables[name].name}, stands twice, or is not below "
                        f"{', '.join(_FOLDERS)}; get both files anew"
                    )
                given = assign(key, _VALIDATION, 0) if split == "train" else split
                records[key] = self._record(key, _FOLDERS[folder], boxes[line], f"{tables[name]}: '{line}'")
                records[key].path, records[key].given = images.get(key), given
        self.counted = len(records)
        return list(records.values())

    def _record(self, key: str, of_class: str, boxes: Sequence[Box], where: str) -> Record:
        """An image with the labels and boxes that are asked for."""
        for name, _ in boxes:
            if name not in (*ACTIVITY, _UNSURE):
                raise DataError(f"{where} has the category '{name}'; known are {', '.join((*ACTIVITY, _UNSURE))}")
        activity = self.labels == "activity"
        names = [name if activity else "Tuberculosis" for name, _ in boxes]
        rows = [
            [*corners, self.findings.index(name)]
            for name, (_, corners) in zip(names, boxes, strict=True)
            if name in self.findings
        ]
        found = [float(name in names if activity else name == of_class) for name in self.findings]
        if activity and of_class == "Tuberculosis" and not rows:
            found = [float("nan")] * len(found)  # it is there, and nobody says which
        return Record(
            key, None, key, labels=np.array(found, np.float32), boxes=np.array(rows, np.float32).reshape(-1, 5)
        )
