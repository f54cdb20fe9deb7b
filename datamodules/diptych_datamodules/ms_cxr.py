"""MS-CXR: phrases of MIMIC-CXR's reports with the boxes of what they speak of, read as COCO writes annotations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from diptych.data.datamodule import RadiographDataset
from diptych.data.loading import Loading
from diptych.data.tables import find_file
from diptych.errors import ConfigError, DataError
from diptych.reports.tokenizer import Tokenizer
from diptych_datamodules.releases.base import Record, Release, image_file
from diptych_datamodules.releases.facts import OBTAIN
from diptych_datamodules.releases.json_tables import field, read_object
from diptych_datamodules.releases.sized import SizedDataset, SizedRecord

__all__ = ["FINDINGS", "MsCxr", "patients_of"]

FINDINGS = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Lung Opacity", "Pleural Effusion", "Pneumonia", "Pneumothorax",
)  # fmt: skip
_NAMES = ("MS_CXR_Local_Alignment_v1.1.0.json", "MS_CXR_Local_Alignment_v1.0.0.json")
_SPLITS = ("train", "val", "test")


def patients_of(path: Path) -> set[str]:
    """The patients whose images the json file names, without the ``p``.

    Raises:
        DataError: it is another file.
    """
    images = field(read_object(path), "images", list, str(path))
    return {_place(row, f"{path}: an image").parts[2][1:] for row in images}


def _place(image: Any, where: str) -> Path:
    """Where an image lies below MIMIC-CXR-JPG."""
    place = Path(field(image, "path", str, where))
    if len(place.parts) != 5 or place.parts[0] != "files" or place.parts[2][:1] != "p":
        raise DataError(f"{where}: its image lies at '{place}'; a path is files/p10/p10000032/s50414267/ID.jpg")
    return place


class MsCxr(Release):
    """``MS_CXR_Local_Alignment_v1.1.0.json`` and the images of MIMIC-CXR-JPG that it names.

    A sample is an image with one phrase. Its text is the phrase, and its boxes are those of the phrase, numbered by the
    finding that it is of. So an image with two phrases is two samples.

    Args:
        root: the folder of MIMIC-CXR-JPG, with ``files``. PNG or DICOM files at the same places will do, of any size.
        tokenizer: linked from the text tower by the command line.
        split: ``ms_cxr/all`` (every pair is in the test) or ``ms_cxr/official`` (as release 1.1.0 splits them).
        annotations: the json file. If not given, it is looked for in the root.
        percent: share of the training samples. Those of 1 % are among those of 10 %.
        strict: refuse a release with missing images. Otherwise they are left out, and counted.
        loading: how samples are loaded.
    """

    paper: ClassVar[str] = "Boecking et al., Making the Most of Text Semantics, ECCV 2022"
    needs: ClassVar[frozenset[str]] = frozenset({_NAMES[0], "files/"})
    holds: ClassVar[frozenset[str]] = frozenset({"image", "text", "boxes"})
    overlaps: ClassVar[str] = (
        "every image is from MIMIC-CXR: a model pre-trained there may have seen it with its report"
    )
    data_set: ClassVar[str] = "ms_cxr"

    def __init__(
        self,
        root: str,
        tokenizer: Tokenizer | None = None,
        *,
        split: str = "ms_cxr/all",
        annotations: str | None = None,
        percent: float = 100.0,
        strict: bool = False,
        loading: Loading = Loading(),  # noqa: B008  # frozen, and the command line shows its fields
    ) -> None:
        super().__init__(root, tokenizer, split=split, percent=percent, strict=strict, loading=loading)
        self.findings = FINDINGS
        self.annotations = None if annotations is None else Path(annotations)
        self._places: dict[str, str] = {}

    def data(self, records: Sequence[Record]) -> RadiographDataset:
        """A data set whose boxes are in pixels of pictures of many sizes."""
        return SizedDataset(records)

    def records(self) -> list[Record]:
        """One for each image and phrase, in the order of the file."""
        path = self.annotations or find_file(self.root, _NAMES, OBTAIN["ms_cxr"])
        content = read_object(path)
        names = {
            field(row, "id", int, f"{path}: a category"): field(row, "name", str, f"{path}: a category")
            for row in field(content, "categories", list, str(path))
        }
        images = {field(row, "id", int, f"{path}: an image"): row for row in field(content, "images", list, str(path))}
        files = self.root / "files"
        if not self.files.folders(files):
            raise DataError(f"{files}: no image in it; unpack MIMIC-CXR-JPG's files/ there ({OBTAIN['mimic_cxr']})")
        found: dict[tuple[int, int, str], SizedRecord] = {}
        for row in field(content, "annotations", list, str(path)):
            where = f"{path}: annotation {row.get('id') if isinstance(row, dict) else row!r}"
            image, category = (field(row, name, int, where) for name in ("image_id", "category_id"))
            phrase = " ".join(field(row, "label_text", str, where).split())
            if image not in images or names.get(category) not in FINDINGS:
                raise DataError(f"{where}: no image {image} or no finding {category} in the file; get it anew")
            key = image, category, phrase
            if key not in found:
                found[key] = self._record(images[image], len(found), phrase, self._given(row, path, where), where)
            box = np.array([[*_corners(row, where), FINDINGS.index(names[category])]], np.float32)
            record = found[key]
            assert record.boxes is not None
            record.boxes = np.concatenate([record.boxes, box])
            if record.given != self._given(row, path, where):
                raise DataError(f"{where}: the boxes of '{phrase}' are in several splits; get the file anew")
        self.counted = len(found)
        return list(found.values())

    def _given(self, row: Any, path: Path, where: str) -> str:
        if self.split == "ms_cxr/all":
            return "test"
        if "split" not in row:
            raise ConfigError(
                f"data.split is {self.split}, and {path} names no split; use release 1.1.0, or ms_cxr/all"
            )
        if row["split"] not in _SPLITS:
            raise DataError(f"{where}: its split is {row['split']!r}; known are {', '.join(_SPLITS)}")
        return str(row["split"])

    def _record(self, image: Any, number: int, phrase: str, given: str, where: str) -> SizedRecord:
        """The record of a phrase, without boxes."""
        place = _place(image, where)
        size = field(image, "height", int, where), field(image, "width", int, where)
        if min(size) < 1:
            raise DataError(f"{where}: its image is {size[0]} x {size[1]}; get the file anew")
        key = f"{place.stem}/{number}"
        self._places[key] = f"{self.root / place}"
        file = image_file(f"{self.root / place.with_suffix('')}", self.files)
        record = SizedRecord(key, file, place.parts[2][1:], text=phrase, given=given)
        record.boxes, record.size = np.zeros((0, 5), np.float32), size
        return record

    def place(self, record: Record) -> str:
        """Where the image was looked for, as JPEG."""
        return self._places.get(record.id, "")


def _corners(row: Any, where: str) -> tuple[float, float, float, float]:
    """The box of an annotation, which COCO writes as corner, width and height."""
    box = field(row, "bbox", list, where)
    if len(box) != 4 or not all(isinstance(value, int | float) for value in box) or not (box[2] > 0 and box[3] > 0):
        raise DataError(f"{where}: its bbox is {box}; it is x, y, width and height")
    x, y, width, height = map(float, box)
    return x, y, x + width, y + height
