"""The columns that a test keeps of its samples."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Array", "Boxes", "Chosen", "Column", "Columns", "Predictions", "named"]

Array = NDArray[Any]


@dataclass(frozen=True)
class Boxes:
    """Boxes of each sample: x0, y0, x1, y1 in pixels, the finding's number, and the confidence if they are predicted."""

    rows: Sequence[Array | None]
    """One array ``[k,5]`` or ``[k,6]`` a sample. None stands for an output that is not finite."""
    findings: Sequence[str]
    """The findings that the numbers stand for."""

    def __len__(self) -> int:
        return len(self.rows)

    def cells(self) -> list[str]:
        """Each sample's boxes as JSON, with the finding's name in place of its number.

        >>> Boxes([np.array([[0.0, 1.0, 2.5, 3.0, 0.0, 0.75]]), None], ["Nodule"]).cells()
        ['[[0.0, 1.0, 2.5, 3.0, "Nodule", 0.75]]', 'null']
        """
        boxes = [
            None if row is None else [[*box[:4], self.findings[int(box[4])], *box[5:]] for box in row.tolist()]
            for row in self.rows
        ]
        return [json.dumps(one, ensure_ascii=False) for one in boxes]


@dataclass(frozen=True)
class Chosen:
    """Other samples that the model chose for each sample, best first: their numbers in the data set ``[n,k]``."""

    rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def cells(self, ids: Sequence[str]) -> list[str]:
        """Each row as a JSON list of ids.

        >>> Chosen(np.array([[1, 0]])).cells(["a", "b"])
        ['["b", "a"]']
        """
        return [json.dumps([ids[i] for i in row], ensure_ascii=False) for row in self.rows.tolist()]


Column = Array | Sequence[str] | Boxes | Chosen
"""Numbers ``[n]`` (NaN is an empty cell), or texts, or boxes, or other samples."""
Columns = Mapping[str, Column]


@dataclass(frozen=True)
class Predictions:
    """What an evaluator or a task keeps of the samples of a test, in the order of the data set."""

    kind: str
    """A name of :data:`diptych.predictions.kinds.KINDS`, which says how figures follow."""
    columns: Columns
    """By name, as ``score/Edema``."""
    settings: dict[str, Any] = field(default_factory=dict)
    """What the figures depend on besides the columns, in plain values. ``resamples`` and ``seed`` are of the bootstrap."""

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))


def named(start: str, names: Sequence[str], values: Array) -> dict[str, Array]:
    """A column for each column of ``values`` ``[n,L]``, named ``start/<name>``.

    >>> named("score", ["Edema"], np.array([[0.5], [0.25]]))
    {'score/Edema': array([0.5 , 0.25])}
    """
    return {f"{start}/{name}": values[:, i] for i, name in enumerate(names)}
