"""Tables as users write them, and the datamodule that reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diptych.data.loading import Loading
from diptych.data.tables import Columns
from diptych_datamodules.tabular import Tabular

SMALL = Loading(image_size=32, batch_size=2, workers=0)


def draw(path: Path, seed: int = 0) -> None:
    """A small random picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (32, 32), np.uint8)).save(path, "PNG")


def table(folder: Path, rows: list[list[str]], name: str = "t.csv", separator: str = ",") -> Path:
    """A csv file of rows, the first of which has the names of columns."""
    (folder / name).write_text("".join(separator.join(row) + "\n" for row in rows), encoding="utf-8")
    return folder / name


def objects(folder: Path, records: list[Any], name: str = "t.jsonl") -> Path:
    """A file with an object of JSON a line."""
    (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return folder / name


def load(path: Path, strict: bool = False, root: str | None = None, **columns: Any) -> Tabular:
    """The datamodule of a table, set up."""
    module = Tabular(str(path), columns=Columns(**columns), strict=strict, root=root, loading=SMALL)
    module.setup("test")
    return module


def rows_of(module: Tabular) -> dict[str, Any]:
    """Its rows of all splits, by id."""
    return {row.id: row for dataset in module.datasets.values() for row in dataset.rows}
