"""Any collection that a table describes: csv, jsonl or parquet with a column map."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
from numpy.typing import NDArray

from diptych.data import Dropped, Loading, RadiographDataModule, RadiographDataset, Sample, Split
from diptych.errors import ConfigError, DataError
from diptych.intensity import Intensity
from diptych.packed import Packed, Store, open_images, read_image
from diptych.radiograph import read_mask
from diptych.tables import Columns, Fractions, label_vector, read_table
from diptych.tokenizer import Tokenizer
from diptych_datamodules.records import Records

__all__ = ["ImageRow", "Tabular", "image_rows"]


@dataclass(frozen=True)
class ImageRow:
    """One usable row of an image table."""

    id: str
    path: Path | Packed
    patient: str
    split: str
    text: str | None
    labels: NDArray[np.float32] | None
    mask: str | None = None
    """Path of its mask."""


def image_rows(
    path: str,
    *,
    root: str | None,
    columns: Columns,
    findings: tuple[str, ...],
    fractions: Fractions,
    seed: int,
    with_text: bool,
    dropped: Dropped,
    image_size: int,
    intensity: Intensity,
) -> list[ImageRow]:
    """The usable rows of an image table; others go to ``dropped`` as *missing image*, *missing mask* or *empty report*.

    Raises:
        ConfigError: masks are asked for, and the folder is packed.
        DataError: a column is missing, a label or split cannot be read, an id stands twice, or no row has a report.
    """
    table = read_table(path)
    text_columns = columns.text if with_text else []
    single = [columns.image, columns.label_list, columns.patient, columns.split, columns.id, columns.mask]
    table.require([*(name for name in single if name is not None), *text_columns, *(columns.labels or [])])
    folder = Path(path).parent if root is None else Path(root)
    files = open_images(folder, image_size, intensity)
    if columns.mask and isinstance(files, Store):
        raise ConfigError(
            f"columns.mask is '{columns.mask}', and {folder} is packed, without masks; give the original root"
        )
    rows: list[ImageRow] = []
    seen: dict[str, int] = {}
    for row in table.rows():
        name = row.get(columns.image)
        key = row.get(columns.id) if columns.id else name
        if key in seen:
            raise DataError(
                f"{path}, lines {seen[key]} and {row.line}: both are '{key}'; give each row its own "
                f"'{columns.id or columns.image}', or name an id column (columns.id)"
            )
        seen[key] = row.line
        text = row.text(text_columns) if with_text else None
        image = files.find(folder / name) if name else None
        mask = row.get(columns.mask) if columns.mask else None
        if text == "":
            dropped.add("empty report", key, f"line {row.line}")
        elif image is None:
            dropped.add("missing image", key, str(folder / name))
        elif isinstance(image, Packed) and image.unusable:
            dropped.add(image.unusable[0], key, image.unusable[1])
        elif mask is not None and not (mask and (folder / mask).is_file()):
            dropped.add("missing mask", key, str(folder / mask) if mask else f"line {row.line}")
        else:
            patient = (row.get(columns.patient) if columns.patient else "") or key
            split = row.split(columns.split) if columns.split else fractions.split(patient, seed)
            labels = label_vector(row, columns, findings)
            rows.append(ImageRow(key, image, patient, split, text, labels, str(folder / mask) if mask else None))
    if with_text and table.records and dropped.counts().get("empty report", 0) == len(table.records):
        raise DataError(
            f"{path}: column(s) {', '.join(text_columns)}: all {len(table.records)} reports are empty or NaN"
        )
    return rows


class _Rows(RadiographDataset):
    def __init__(self, rows: list[ImageRow]) -> None:
        self.rows = Records(rows)
        self.ids, self.patients = self.rows.column("id"), self.rows.column("patient")

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
        return Sample(image, text=row.text, labels=row.labels, mask=mask, notes=notes)

    def texts(self) -> Iterable[str]:
        return [text for text in self.rows.column("text") if text is not None]


class Tabular(RadiographDataModule):
    """Images with reports, and labels and masks where there are some, from one table.

    Args:
        table: path of the table: ``.csv``, ``.csv.gz``, ``.tsv``, ``.jsonl`` or ``.parquet``.
        tokenizer: linked from the text tower by the command line.
        root: folder that image paths start from; the table's own folder, if not given.
        columns: which column holds what.
        findings: findings to read, in this order; all the table labels, if not given.
        fractions: shares of the patients where no column names the split.
        split_seed: another seed assigns patients otherwise.
        strict: refuse a table with missing images or masks, or empty reports, instead of leaving those rows out, counted.
        loading: how samples are loaded.
    """

    paper: ClassVar[str] = "your own table"
    needs: ClassVar[frozenset[str]] = frozenset({"a table (csv, jsonl, parquet)", "the images it names"})
    holds: ClassVar[frozenset[str]] = frozenset({"image", "text", "labels", "masks"})

    def __init__(
        self,
        table: str,
        tokenizer: Tokenizer | None = None,
        *,
        root: str | None = None,
        columns: Columns = Columns(),  # noqa: B008  # frozen, and the command line shows its fields
        findings: list[str] | None = None,
        fractions: Fractions = Fractions(),  # noqa: B008  # frozen
        split_seed: int = 0,
        strict: bool = False,
        loading: Loading = Loading(),  # noqa: B008  # frozen
    ) -> None:
        super().__init__(tokenizer, loading)
        self.table, self.root, self.columns = table, root, columns
        self.fractions, self.split_seed, self.strict = fractions, split_seed, strict
        self.findings = tuple(findings) if findings is not None else ()
        self._all_findings = findings is None

    @property
    def protocol(self) -> str:
        """The table's name and how it was split."""
        how = f"column {self.columns.split}" if self.columns.split else f"by patient hash, seed {self.split_seed}"
        return f"tabular {Path(self.table).name} ({how})"

    def build(self) -> dict[Split, RadiographDataset]:
        """Read the table once."""
        if self._all_findings:
            self.findings = read_table(self.table).finding_names(self.columns)
        rows = image_rows(
            self.table,
            root=self.root,
            columns=self.columns,
            findings=self.findings,
            fractions=self.fractions,
            seed=self.split_seed,
            with_text=bool(self.columns.text),
            dropped=self.dropped,
            image_size=self.loading.image_size,
            intensity=self.loading.intensity,
        )
        if self.strict:
            self.dropped.refuse(self.table)
        splits: dict[Split, RadiographDataset] = {}
        for name in ("train", "val", "test"):
            members = [row for row in rows if row.split == name]
            if members or (name == "train" and not rows):  # a table may hold a test set alone; never nothing at all
                splits[name] = _Rows(members)
        return splits
