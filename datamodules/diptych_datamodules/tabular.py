"""Any collection that a table describes: csv, json, jsonl or parquet, with the names of its columns."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from numpy.typing import NDArray

from diptych.data.about import ABOUT, described, sex, years
from diptych.data.columns import Records
from diptych.data.datamodule import DroppedRows, RadiographDataModule, RadiographDataset, Sample, Split
from diptych.data.loading import Loading
from diptych.data.splits import Fractions
from diptych.data.tables import Columns, Row, Table, label_vector, read_table
from diptych.errors import ConfigError, DataError
from diptych.radiographs.intensity import Intensity
from diptych.radiographs.packed import Files, Folder, PackedImage, Store, open_images, read_image
from diptych.radiographs.read import read_mask
from diptych.reports.tokenizer import Tokenizer
from diptych_datamodules.patients import Patients

__all__ = ["ImageRow", "Tabular", "image_rows"]


@dataclass(frozen=True)
class ImageRow:
    """One usable row of an image table."""

    id: str
    path: Path | PackedImage
    patient: str
    split: str
    text: str | None
    labels: NDArray[np.float32] | None
    mask: str | None = None
    """Path of its mask."""
    sex: str = ""
    age: str = ""
    view: str = ""
    site: str = ""
    others: tuple[Path | PackedImage | None, ...] = ()
    """Other images of the study."""


class _Finder:
    """Finds files below a folder. It notes those whose name in the table differs a little."""

    def __init__(self, files: Files, folder: Path) -> None:
        self.files, self.folder = files, folder
        self.spelled: list[tuple[str, str]] = []
        """Path in the table, and path of the file."""

    def find(self, name: str) -> tuple[Path | PackedImage | None, str]:
        """The file, and its path below the folder. Or None, and where it was looked for."""
        image = self.files.find(self.folder / name)
        if image is not None:
            return image, os.path.normpath(name)
        near = self.files.candidates(self.folder, name)
        if len(near) != 1:
            several = f"; it may be {' or '.join(map(str, near[:3]))}, so write which" if near else ""
            return None, f"{self.folder / name}{several}"
        place = os.path.relpath(str(near[0]), self.folder)
        self.spelled.append((name, place))
        return near[0], place

    def tell(self, source: Path, what: str) -> None:
        """Say how many names differ."""
        if self.spelled:
            name, place = self.spelled[0]
            rank_zero_info(
                f"{source}: {len(self.spelled)} {what} paths are not quite the names of files, as '{name}' for '{place}'; "
                "these files are read"
            )


def image_rows(
    table: Table,
    *,
    root: str | None,
    columns: Columns,
    findings: tuple[str, ...],
    fractions: Fractions,
    seed: int,
    with_text: bool,
    dropped: DroppedRows,
    image_size: int,
    intensity: Intensity,
) -> list[ImageRow]:
    """The usable images of a table.

    Others go to ``dropped``, as *empty report*, *missing image*, *missing patient*, *missing mask* or *missing other image*.

    Raises:
        ConfigError: masks are asked for, and the folder is packed.
        DataError: a label, split, list or object cannot be used. Or two rows have one id, or no row has a report or a patient.
    """
    folder = table.path.parent if root is None else Path(root)
    files = open_images(folder, image_size, intensity)
    if columns.mask and isinstance(files, Store):
        raise ConfigError(
            f"columns.mask is '{columns.mask}', and {folder} is packed, without masks; give the original root"
        )
    images, masks = _Finder(files, folder), _Finder(Folder(), folder)
    patients = Patients(table, columns.patient)
    rows: list[ImageRow] = []
    seen: dict[str, int] = {}
    names_of_files: dict[str, str] = {}
    reports = 0
    for row in table.rows():
        text = row.text(columns.text_columns) if with_text else None
        reports += bool(text)
        named = [row.get(column) for column in columns.other_columns]
        found = [images.find(name) if name else (None, "") for name in named]
        others = tuple(other for other, _ in found)
        lost = [at for name, (other, at) in zip(named, found, strict=True) if name and not _can_be_read(other)]
        for key, name, mask in _images_of_row(row, columns):
            if key in seen:
                raise DataError(
                    f"{table.path}, {table.unit}s {seen[key]} and {row.line}: both are '{key}'; give each row its own "
                    f"'{columns.id or columns.image}', or name an id column (columns.id)"
                )
            seen[key] = row.line
            image, place = images.find(name) if name else (None, f"{table.unit} {row.line}")
            if image is not None and columns.id is None and names_of_files.setdefault(place, name) != name:
                raise DataError(
                    f"{table.path}: '{names_of_files[place]}' and '{name}' are one image, {place}; keep one row"
                )
            patient = patients.of(row) if columns.patient else place
            mask_file, where = masks.find(mask) if mask else (None, f"{table.unit} {row.line}")
            if text == "":
                dropped.add("empty report", key, f"{table.unit} {row.line}")
            elif image is None:
                dropped.add("missing image", key, place)
            elif isinstance(image, PackedImage) and image.unusable:
                dropped.add(image.unusable[0], key, image.unusable[1])
            elif not patient:
                dropped.add("missing patient", key, f"{table.unit} {row.line}")
            elif mask is not None and mask_file is None:
                dropped.add("missing mask", key, where)
            elif lost:
                dropped.add("missing other image", key, lost[0])
            else:
                split = row.split(columns.split) if columns.split else fractions.split(patient, seed)
                labels = label_vector(row, columns, findings)
                mask_path = str(mask_file) if mask_file else None
                rows.append(
                    ImageRow(key, image, patient, split, text, labels, mask_path, others=others, **_about(row, columns))
                )
    if with_text and table.records and not reports:
        raise DataError(
            f"{table.path}: column(s) {', '.join(columns.text_columns)}: all {len(table.records)} reports are empty or NaN"
        )
    patients.tell()
    images.tell(table.path, "image")
    masks.tell(table.path, "mask")
    _warn_of_images_in_two_splits(table.path, rows)
    return rows


def _about(row: Row, columns: Columns) -> dict[str, str]:
    """What the row says of its patient and of how its image was taken."""
    read: dict[str, Callable[[str], str]] = {"sex": sex, "age": years, "view": str.upper, "site": str}
    named = {name: getattr(columns, name) for name in ABOUT}
    return {name: read[name](row.get(column)) for name, column in named.items() if column is not None}


def _can_be_read(image: Path | PackedImage | None) -> bool:
    return image is not None and not (isinstance(image, PackedImage) and image.unusable)


def _images_of_row(row: Row, columns: Columns) -> list[tuple[str, str, str | None]]:
    """Id, path and mask of each image of a row. A row with a list has several. A row without an image has one, empty."""
    names = row.several(columns.image) or [""]
    masks: list[str | None] = [None] * len(names)
    if columns.mask:
        masks = [*row.several(columns.mask)] or [""] * len(names)
        if len(masks) != len(names):
            raise DataError(
                f"{row.where(columns.mask)}: {len(masks)} masks, and {len(names)} images; give a mask for each image"
            )
    key = (row.get(columns.id) if columns.id else "") or names[0] or f"{row.table.unit} {row.line}"
    masks_by_name = dict(zip(names, masks, strict=True))
    return [(f"{key}:{name}" if at else key, name, mask) for at, (name, mask) in enumerate(masks_by_name.items())]


def _warn_of_images_in_two_splits(source: Path, rows: Sequence[ImageRow]) -> None:
    """Warn of images that are in two splits, since the table gives them several patients."""
    first: dict[Path | tuple[str, int], ImageRow] = {}
    messages = {}
    for row in rows:
        key = row.path if isinstance(row.path, Path) else (str(row.path.store.root), row.path.at)
        other = first.setdefault(key, row)
        if other.split != row.split:
            messages[key] = f"{row.path} in '{other.split}' and '{row.split}'"
    if messages:
        rank_zero_warn(
            f"{source}: {len(messages)} images are in two splits under other patients, as {next(iter(messages.values()))}; "
            "give every image one patient"
        )


class _TabularDataset(RadiographDataset):
    def __init__(self, rows: list[ImageRow]) -> None:
        self.rows = Records(rows)
        self.ids, self.patients = self.rows.column("id"), self.rows.column("patient")
        self.about = described(**{name: self.rows.column(name) for name in ABOUT})

    def read(self, index: int, rng: np.random.Generator) -> Sample:
        row = self.rows[index]
        image, _, notes, aspect = read_image(row.path, self.intensity)
        mask = None if row.mask is None else read_mask(row.mask)
        if mask is not None and mask.shape != image.shape:
            tall = mask.shape[0] * image.shape[1] / (mask.shape[1] * image.shape[0])
            # A mask drawn on stored pixels that are not square is resampled with them.
            if min(abs(tall - 1), abs(tall * aspect - 1)) > 0.02:
                raise DataError(
                    f"{row.mask} is {mask.shape[0]}x{mask.shape[1]}, of other proportions than its image's "
                    f"{image.shape[0]}x{image.shape[1]}{'; '.join(['', *notes])}; give the mask of this image, upright"
                )
            grey = cv2.resize(mask.astype(np.uint8) * 255, image.shape[::-1], interpolation=cv2.INTER_AREA)
            mask = np.asarray(grey) > 127
        others = [None if path is None else read_image(path, self.intensity) for path in row.others]
        notes = tuple(dict.fromkeys((*notes, *(note for other in others if other for note in other.notes))))
        pictures = tuple(None if other is None else other.pixels for other in others)
        return Sample(image, text=row.text, labels=row.labels, mask=mask, notes=notes, others=pictures)

    def labels_of(self, index: int) -> NDArray[np.float32] | None:
        return self.rows[index].labels

    def texts(self) -> Iterable[str]:
        return [text for _, text in self.texts_by_patient()]

    def texts_by_patient(self) -> Iterable[tuple[str | None, str]]:
        rows = zip(self.ids, self.patients, self.rows.column("text"), strict=True)
        # Without a column of patients, each image counts as one. Two images of one report do not make two patients.
        return [(None if patient == key else patient, text) for key, patient, text in rows if text is not None]


class Tabular(RadiographDataModule):
    """Images from one table, with their reports, labels and masks.

    Args:
        table: path of the table: ``.csv``, ``.tsv`` (also ``.gz``), ``.jsonl``, ``.json`` or ``.parquet``.
        tokenizer: linked from the text tower by the command line.
        root: folder that image paths start from. The table's own folder, if not given.
        columns: the names of the columns, by what they hold.
        findings: findings to read, in this order. All of the table, if not given.
        fractions: shares of the patients in each split, if no column names the split.
        split_seed: another seed assigns patients otherwise.
        strict: refuse a table with missing images or masks, or empty reports. Otherwise such rows are left out, and counted.
        loading: how samples are loaded.
    """

    paper: ClassVar[str] = "your own table"
    needs: ClassVar[frozenset[str]] = frozenset({"a table (csv, json, jsonl, parquet)", "the images it names"})
    holds: ClassVar[frozenset[str]] = frozenset({"image", "text", "labels", "masks"})
    small_texts: ClassVar[str] = r"/[^/]+\.(?:txt|xml)$"

    def __init__(
        self,
        table: str,
        tokenizer: Tokenizer | None = None,
        *,
        root: str | None = None,
        columns: Columns = Columns(),  # noqa: B008  # frozen, and the command line shows its fields
        findings: str | list[str] | None = None,
        fractions: Fractions = Fractions(),  # noqa: B008  # frozen
        split_seed: int = 0,
        strict: bool = False,
        loading: Loading = Loading(),  # noqa: B008  # frozen
    ) -> None:
        super().__init__(tokenizer, loading)
        self.table, self.root, self.columns = table, root, columns
        self.fractions, self.split_seed, self.strict = fractions, split_seed, strict
        self.findings = (findings,) if isinstance(findings, str) else tuple(findings or ())
        self._all_findings = findings is None
        self.others = len(columns.other_columns)

    @property
    def protocol(self) -> str:
        """The table's name, and how it was split."""
        fold = f", fold {self.fractions.fold}" if self.fractions.fold else ""
        how = f"column {self.columns.split}" if self.columns.split else f"by patient hash, seed {self.split_seed}{fold}"
        return f"tabular {Path(self.table).name} ({how})"

    def build(self) -> dict[Split, RadiographDataset]:
        """Read the table once."""
        with_text = bool(self.columns.text)
        needed = self.columns.needed(images=True, text=with_text)
        if self.columns.label_columns:
            needed += [name for name in self.findings if name not in needed]
        table = read_table(self.table, needed)
        if self._all_findings:
            self.findings = table.finding_names(self.columns)
        rows = image_rows(
            table,
            root=self.root,
            columns=self.columns,
            findings=self.findings,
            fractions=self.fractions,
            seed=self.split_seed,
            with_text=with_text,
            dropped=self.dropped,
            image_size=self.loading.image_size,
            intensity=self.loading.intensity,
        )
        if self.strict:
            self.dropped.refuse(self.table)
        splits: dict[Split, RadiographDataset] = {}
        for name in ("train", "val", "test"):
            members = [row for row in rows if row.split == name]
            if members or (name == "train" and not rows):  # a table of a test set has no other split
                splits[name] = _TabularDataset(members)
        return splits
