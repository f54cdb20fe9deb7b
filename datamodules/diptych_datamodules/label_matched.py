"""Unpaired collections: labelled images and labelled reports, paired by their labels (MedCLIP, arXiv 2210.10163).

Each time an image is read in training, it gets a random report. The report is one of those whose set of findings is nearest
to the image's by Jaccard overlap. Reports are split like patients, so no test image gets a report of training.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from diptych.data.datamodule import RadiographDataModule, RadiographDataset, Sample, Split
from diptych.data.loading import Loading
from diptych.data.splits import Fractions
from diptych.data.tables import Columns, Table, label_vector, read_table
from diptych.errors import ConfigError, DataError
from diptych.radiographs.packed import read_image
from diptych.reports.tokenizer import Tokenizer
from diptych_datamodules.patients import Patients
from diptych_datamodules.tabular import ImageRow, image_rows

__all__ = ["LabelMatched", "nearest_by_jaccard"]


def nearest_by_jaccard(image: NDArray[np.bool_], reports: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The reports whose findings overlap most with an image's.

    Args:
        image: ``[L]`` findings present.
        reports: ``[T,L]`` findings present.

    Returns:
        Indices of all reports at the largest ``|a and b| / |a or b|``. Two empty sets overlap by 1.

    >>> reports = np.array([[1, 0, 0], [1, 1, 0], [1, 1, 0]], dtype=bool)
    >>> nearest_by_jaccard(np.array([1, 1, 1], dtype=bool), reports)
    array([1, 2])
    """
    both = (reports & image).sum(axis=1)
    either = (reports | image).sum(axis=1)
    overlap = np.where(either == 0, 1.0, both / np.maximum(either, 1))
    return np.flatnonzero(overlap == overlap.max())


class _LabelMatchedDataset(RadiographDataset):
    def __init__(self, rows: list[ImageRow], reports: Sequence[str], candidates: list[NDArray[np.int64]]) -> None:
        self.rows, self.reports, self.candidates = rows, reports, candidates
        self.ids = [row.id for row in rows]
        self.patients = [row.patient for row in rows]

    def read(self, index: int, rng: np.random.Generator) -> Sample:
        row, near = self.rows[index], self.candidates[index]
        image = read_image(row.path, self.intensity)
        text = self.reports[near[rng.integers(len(near))]]
        return Sample(image.pixels, text=text, labels=row.labels, notes=image.notes)

    def labels_of(self, index: int) -> NDArray[np.float32] | None:
        return self.rows[index].labels

    def texts(self) -> Iterable[str]:
        return self.reports


class LabelMatched(RadiographDataModule):
    """Images with labels from one table, reports with labels from another.

    Args:
        images: path of the image table.
        reports: path of the report table.
        tokenizer: linked from the text tower by the command line.
        findings: findings that pairs are matched on. Both tables label them, by the same names.
        root: folder that image paths start from. The image table's own, if not given.
        image_columns: the names of the image table's columns, by what they hold. ``text`` is not read.
        report_columns: the same of the report table. ``image`` is not read. ``id`` names a report. Reports of one ``patient``
            are in one split.
        pairing: ``jaccard``. Or ``shuffled``, which takes any report of the split. This control shows the use of labels.
        fractions: shares of the splits, if a table names no split. With ``fold``, one part of a cross-validation.
        split_seed: another seed assigns patients and reports otherwise.
        strict: refuse tables with missing images or empty reports. Otherwise such rows are left out, and counted.
        loading: how samples are loaded.
    """

    paper: ClassVar[str] = "MedCLIP, arXiv 2210.10163"
    needs: ClassVar[frozenset[str]] = frozenset({"a table of labelled images", "a table of labelled reports"})
    holds: ClassVar[frozenset[str]] = frozenset({"image", "text", "labels"})
    small_texts: ClassVar[str] = r"/[^/]+\.(?:txt|xml)$"

    def __init__(
        self,
        images: str,
        reports: str,
        findings: str | list[str],
        tokenizer: Tokenizer | None = None,
        *,
        root: str | None = None,
        image_columns: Columns = Columns(),  # noqa: B008  # frozen, and the command line shows its fields
        report_columns: Columns = Columns(),  # noqa: B008  # frozen
        pairing: Literal["jaccard", "shuffled"] = "jaccard",
        fractions: Fractions = Fractions(),  # noqa: B008  # frozen
        split_seed: int = 0,
        strict: bool = False,
        loading: Loading = Loading(),  # noqa: B008  # frozen
    ) -> None:
        super().__init__(tokenizer, loading)
        for name, columns in (("image_columns", image_columns), ("report_columns", report_columns)):
            if columns.mask:
                raise ConfigError(f"data.{name}.mask is '{columns.mask}': label_matched reads no masks; use tabular")
            if columns.others:
                raise ConfigError(f"data.{name}.others is {columns.others}: label_matched reads one image; use tabular")
        self.images, self.reports, self.root = images, reports, root
        self.image_columns, self.report_columns = image_columns, report_columns
        self.pairing, self.fractions, self.split_seed, self.strict = pairing, fractions, split_seed, strict
        self.findings = (findings,) if isinstance(findings, str) else tuple(findings)

    @property
    def protocol(self) -> str:
        """Both tables, and how they were paired."""
        fold = f", fold {self.fractions.fold}" if self.fractions.fold else ""
        return f"label_matched {Path(self.images).name} + {Path(self.reports).name}, {self.pairing}{fold}"

    def _report_rows(self) -> dict[str, list[tuple[str, NDArray[np.bool_]]]]:
        """Reports of each split, with their findings ``[L]``."""
        columns = self.report_columns
        table = self._table(self.reports, columns, images=False)
        patients = Patients(table, columns.patient)
        reports: dict[str, list[tuple[str, NDArray[np.bool_]]]] = {}
        for row in table.rows():
            key = (row.get(columns.id) if columns.id else "") or str(row.line)
            text, labels = row.text(columns.text_columns), label_vector(row, columns, self.findings)
            if labels is None:
                raise DataError(f"{self.reports}: no labels; name report_columns.labels or report_columns.label_list")
            if not text:
                self.dropped.add("empty report", key, f"{table.unit} {row.line}")
                continue
            patient = patients.of(row) if columns.patient else key
            if not patient:
                self.dropped.add("missing patient", key, f"{table.unit} {row.line}")
                continue
            split = row.split(columns.split) if columns.split else self.fractions.split(patient, self.split_seed)
            reports.setdefault(split, []).append((text, labels == 1))
        patients.tell()
        return reports

    def _table(self, path: str, columns: Columns, *, images: bool) -> Table:
        needed = columns.needed(images=images, text=not images)
        if columns.label_columns:
            needed += [name for name in self.findings if name not in needed]
        return read_table(path, needed)

    def build(self) -> dict[Split, RadiographDataset]:
        """Read both tables, and find the nearest reports of every image, once for each set of findings."""
        reports = self._report_rows()
        rows = image_rows(
            self._table(self.images, self.image_columns, images=True),
            root=self.root,
            columns=self.image_columns,
            findings=self.findings,
            fractions=self.fractions,
            seed=self.split_seed,
            with_text=False,
            dropped=self.dropped,
            image_size=self.loading.image_size,
            intensity=self.loading.intensity,
        )
        if self.strict:
            self.dropped.refuse(f"{self.images}, {self.reports}")
        splits: dict[Split, RadiographDataset] = {}
        for name in ("train", "val", "test"):
            members = [row for row in rows if row.split == name]
            if not members:
                continue
            if name not in reports:
                raise DataError(f"{self.reports}: no report in the split '{name}', which has {len(members)} images")
            texts = [text for text, _ in reports[name]]
            sets = np.stack([present for _, present in reports[name]])
            known: dict[bytes, NDArray[np.int64]] = {}
            candidates = []
            for row in members:
                if row.labels is None:
                    raise DataError(f"{self.images}: no labels; name image_columns.labels or image_columns.label_list")
                present = row.labels == 1
                if self.pairing == "shuffled":
                    candidates.append(np.arange(len(texts)))
                else:
                    near = known.setdefault(present.tobytes(), nearest_by_jaccard(present, sets))
                    candidates.append(near)
            splits[name] = _LabelMatchedDataset(members, texts, candidates)
        return splits
