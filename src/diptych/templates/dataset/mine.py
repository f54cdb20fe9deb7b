"""A data set: a folder with pictures and a table of their reports, patients and splits."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from diptych import Loading, RadiographDataModule, RadiographDataset, Sample, Tokenizer
from diptych.data.dataset import Split
from diptych.errors import DataError
from diptych.radiographs.packed import read_image

__all__ = ["Mine", "MineData"]

Row = dict[str, str]
"""A line of the table: ``image``, ``report``, ``patient``, ``split``."""


class Mine(RadiographDataset):
    """The samples of one split."""

    def __init__(self, root: Path, rows: Sequence[Row]) -> None:
        self.root, self.rows = root, rows
        self.ids = [row["image"] for row in rows]
        self.patients = [row["patient"] for row in rows]

    def read(self, index: int, rng: np.random.Generator) -> Sample:
        """One picture ``[h,v]`` with its report. Whatever is random is drawn from ``rng``."""
        row = self.rows[index]
        picture, _, notes, _ = read_image(self.root / row["image"], self.intensity)
        return Sample(picture, text=row["report"], notes=notes)

    def texts(self) -> Iterable[str]:
        """The reports, without the pictures."""
        return (row["report"] for row in self.rows)


class MineData(RadiographDataModule):
    """All splits of the folder.

    Args:
        root: the folder with ``table.csv``.
        tokenizer: of the text tower, which the command line passes on.
        loading: how samples are loaded.
    """

    paper: ClassVar[str] = "where the data set is described"
    needs: ClassVar[frozenset[str]] = frozenset({"table.csv"})
    holds: ClassVar[frozenset[str]] = frozenset({"image", "text"})

    def __init__(self, root: str, tokenizer: Tokenizer | None = None, loading: Loading = Loading()) -> None:  # noqa: B008  # frozen
        super().__init__(tokenizer, loading)
        self.root = Path(root)

    @property
    def protocol(self) -> str:
        """The name that results carry."""
        return "mine, its own split"

    def build(self) -> dict[Split, RadiographDataset]:
        """One data set a split. A row whose file is missing is left out by a named rule."""
        table = self.root / "table.csv"
        if not table.is_file():
            raise DataError(f"mine: {table} is not there; give the folder that has it as --data.root")
        rows: dict[Split, list[Row]] = {"train": [], "val": [], "test": []}
        with table.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if not (self.root / row["image"]).is_file():
                    self.dropped.add("missing image", row["image"])
                    continue
                for split in rows:
                    if row["split"] == split:
                        rows[split].append(row)
        return {split: Mine(self.root, some) for split, some in rows.items()}
