"""object-CXR (MIDL 2020): foreign objects on radiographs as rectangles, ellipses and polygons."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from diptych.data.datamodule import RadiographDataset
from diptych.data.loading import Loading
from diptych.data.splits import assign
from diptych.data.tables import find_file, scan_table
from diptych.errors import DataError
from diptych.radiographs.kinds import stem
from diptych.reports.tokenizer import Tokenizer
from diptych_datamodules.releases.base import Record, Release, ReleaseDataset, index_images
from diptych_datamodules.releases.facts import OBTAIN

__all__ = ["ObjectCxr", "Shape", "read_shapes", "shapes_mask"]

Shape = tuple[str, NDArray[np.float32]]
"""``rectangle``, ``ellipse`` or ``polygon``, and its points ``[P,2]`` as x and y. The first two have two corners."""

_KINDS = {"0": "rectangle", "1": "ellipse", "2": "polygon"}
# The split of each table, by protocol.
_TABLES = {
    "object_cxr/dev": {"train": "train", "dev": "test"},
    "object_cxr/official": {"train": "train", "dev": "val", "test": "test"},
}
_VALIDATION = {"train": 0.9, "val": 0.1}


def read_shapes(annotation: str, where: str) -> list[Shape]:
    """The shapes of one image: ``KIND x1 y1 x2 y2 ...;KIND ...``, where 0 is a rectangle, 1 an ellipse, 2 a polygon.

    >>> read_shapes("1 10 20 14 30;2 0 0 4 0 4 3", "here")[0]
    ('ellipse', array([[10., 20.],
           [14., 30.]], dtype=float32))

    Raises:
        DataError: another kind, or no pairs of numbers. The message begins with ``where``.
    """
    shapes = []
    for text in filter(None, (part.strip() for part in annotation.split(";"))):
        kind, *words = text.split()
        try:
            points = np.array([float(word) for word in words], np.float32).reshape(-1, 2)
        except ValueError:
            points = np.zeros((0, 2), np.float32)
        least = 3 if kind == "2" else 2
        if kind not in _KINDS or len(points) < least or (kind != "2" and len(points) > least):
            raise DataError(f"{where} has the shape '{text[:60]}'; write 0, 1 or 2, then x and y of each point")
        shapes.append((_KINDS[kind], points))
    return shapes


def shapes_mask(shapes: Sequence[Shape], size: tuple[int, int]) -> NDArray[np.bool_]:
    """The union ``[h,v]`` of filled shapes, drawn by Pillow as the challenge's own code does. ``size`` is h and v."""
    image = Image.new("1", (size[1], size[0]))
    draw = ImageDraw.Draw(image)
    for kind, points in shapes:
        if kind == "polygon":
            draw.polygon([(x, y) for x, y in points.tolist()], fill=1)
        else:
            corners = (*points.min(axis=0).tolist(), *points.max(axis=0).tolist())
            (draw.rectangle if kind == "rectangle" else draw.ellipse)(corners, fill=1)
    return np.asarray(image, dtype=bool)


class _ObjectDataset(ReleaseDataset):
    """Shapes are in pixels of the released picture, whose size no table has. So they are taken as those of the file."""

    def __init__(self, records: Sequence[Record], masks: bool) -> None:
        super().__init__(records)
        self._masks = masks

    def regions(
        self, record: Record, native: tuple[int, int]
    ) -> tuple[NDArray[np.float32] | None, NDArray[np.bool_] | None]:
        assert record.boxes is not None
        centres = (record.boxes[:, :2] + record.boxes[:, 2:4]) / 2
        if (centres > (native[1], native[0])).any():
            raise DataError(
                f"{record.id}: an object lies outside of the picture, which is {native[1]}x{native[0]}; "
                "give the images at their released size"
            )
        boxes = record.boxes.copy()
        boxes[:, 0:4:2] = boxes[:, 0:4:2].clip(0, native[1])
        boxes[:, 1:4:2] = boxes[:, 1:4:2].clip(0, native[0])
        shapes = [shape for text in record.runs for shape in read_shapes(text, record.id)]
        return boxes, shapes_mask(shapes, native) if self._masks else None


class ObjectCxr(Release):
    """``train.csv``, ``dev.csv``, ``train/*.jpg`` and ``dev/*.jpg``.

    Patients are not known, so each image counts as one. The finding is ``Foreign Object``.

    Args:
        root: the folder that holds tables and images. The images must have their released size, for which the shapes are.
        tokenizer: linked from the text tower by the command line. There are no reports.
        split: ``object_cxr/dev`` (the 1,000 images of ``dev.csv`` are the test), or ``object_cxr/official``, which also needs
            ``test.csv`` and ``test/``. These are not part of the public download.
        masks: whether the union of the filled shapes is read as a mask.
        percent: share of the training images. Those of 1 % are among those of 10 %.
        strict: refuse a release with missing images. Otherwise they are left out, and counted.
        loading: how samples are loaded.
    """

    paper: ClassVar[str] = "JF Healthcare, object-CXR, MIDL 2020 challenge"
    needs: ClassVar[frozenset[str]] = frozenset({"train.csv", "dev.csv", "train/", "dev/"})
    holds: ClassVar[frozenset[str]] = frozenset({"image", "labels", "boxes", "masks"})
    data_set: ClassVar[str] = "object_cxr"

    def __init__(
        self,
        root: str,
        tokenizer: Tokenizer | None = None,
        *,
        split: str = "object_cxr/dev",
        masks: bool = False,
        percent: float = 100.0,
        strict: bool = False,
        loading: Loading = Loading(),  # noqa: B008  # frozen, and the command line shows its fields
    ) -> None:
        super().__init__(root, tokenizer, split=split, percent=percent, strict=strict, loading=loading)
        self.findings, self.masks = ("Foreign Object",), masks

    def data(self, records: Sequence[Record]) -> RadiographDataset:
        """A data set with masks, if they are asked for."""
        return _ObjectDataset(records, self.masks)

    def records(self) -> list[Record]:
        """The images of all tables."""
        records: dict[str, Record] = {}
        tables = _TABLES[self.split]
        found = {name: find_file(self.root, [f"{name}.csv"], OBTAIN["object_cxr"]) for name in tables}
        for name, split in tables.items():
            images = index_images([self.root / name], self.files)
            for annotation, *paths in scan_table(found[name], ["annotation"], ["image_name", "image_path"]):
                image = stem(Path(next(filter(None, paths), "")).name)
                key = f"{name}/{image}"
                if not image or key in records:
                    what = f"'{key}' stands twice" if image else "a row has no image_name"
                    raise DataError(f"{found[name]}: {what}; give each image one row")
                shapes = read_shapes(annotation, f"{found[name]}: '{image}'")
                corners = [[*points.min(axis=0), *points.max(axis=0), 0] for _, points in shapes]
                boxes = np.array(corners, np.float32).reshape(-1, 5)
                boxes[:, 2:4] = np.maximum(boxes[:, 2:4], boxes[:, :2] + 1)  # a line is one pixel wide
                held = split == "train" and self.split == "object_cxr/dev"
                given = assign(key, _VALIDATION, 0) if held else split
                label = np.array([float(bool(shapes))], np.float32)
                record = Record(key, images.get(image), key, labels=label, boxes=boxes, given=given)
                record.runs = (annotation,)
                records[key] = record
        self.counted = sum(not key.startswith("test/") for key in records)
        return list(records.values())
