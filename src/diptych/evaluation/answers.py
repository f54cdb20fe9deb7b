"""What a trained model answers: probabilities of findings in a small table, and reports in the order of their scores."""

from __future__ import annotations

import html
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diptych.errors import ConfigError
from diptych.escaping import csv_rows, one_line
from diptych.evaluation import scoring
from diptych.evaluation.calibration import Calibration
from diptych.evaluation.protocols import PROTOCOLS, ProtocolName
from diptych.files import replace_text
from diptych.head import AlignmentHead
from diptych.types import Embedding

__all__ = ["Retrieved", "ZeroShotTable", "best_texts", "explain"]

_SHOWN = 20
"""Rows that a table shows of itself."""


def explain(protocol: ProtocolName, classes: bool, calibration: Calibration | None) -> str:
    """What the probabilities are, in words.

    >>> explain("chexzero", False, None).partition(";")[0]
    'soft-max of the positive against the negative prompts of each finding'
    """
    what = (
        "soft-max over the classes"
        if classes
        else "soft-max of the positive against the negative prompts of each finding"
    )
    how = f"{what}; protocol {protocol}: {PROTOCOLS[protocol].rule}"
    if calibration is None:
        return f"{how}; uncalibrated"
    return f"{how}; temperature {calibration.temperature:.4g}, fitted on {calibration.images} labelled images"


@dataclass(frozen=True, repr=False)
class ZeroShotTable:
    """Probabilities of findings: a row for each image, a column for each finding or class.

    ``table["Edema"]`` is a column ``[n]``, and ``table[0]`` a row as a dictionary. ``for row in table`` gives such rows, so
    ``pandas.DataFrame(table)`` takes it. ``numpy.asarray(table)`` is ``[n,L]``.
    """

    images: tuple[str, ...]
    """The path of each image, or its place where it has none."""
    findings: tuple[str, ...]
    """The findings or classes, ``L`` of them."""
    probabilities: NDArray[np.float64]
    """``[n,L]`` from 0 to 1. Of classes, a row sums to 1."""
    scores: NDArray[np.float32]
    """``[n,L]``: the protocol's scores, which a test ranks by."""
    how: str
    """What the probability is, and whether it was calibrated."""
    calibrated: bool
    """Whether a temperature was fitted on labelled images."""

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: int | str) -> Any:
        if isinstance(key, str):
            if key not in self.findings:
                raise KeyError(f"'{key}'; the table has {', '.join(self.findings)}")
            return self.probabilities[:, self.findings.index(key)]
        row = self.probabilities[key].tolist()
        return {"image": self.images[key], **dict(zip(self.findings, row, strict=True))}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[i] for i in range(len(self)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.probabilities, dtype=dtype)

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the table, whole or not at all. Its columns are ``image`` and the findings.

        Raises:
            DataError: it cannot be written.
        """
        rows = [[name, *row] for name, row in zip(self.images, self.probabilities.tolist(), strict=True)]
        replace_text(path, csv_rows([["image", *self.findings], *rows]))

    def _cells(self) -> list[list[str]]:
        rows = zip(self.images[:_SHOWN], self.probabilities[:_SHOWN].tolist(), strict=True)
        return [[one_line(name), *(f"{value:.3f}" for value in row)] for name, row in rows]

    def _rest(self) -> str:
        more = f"{len(self) - _SHOWN} more rows; " if len(self) > _SHOWN else ""
        return f"{more}{self.how}"

    def __repr__(self) -> str:
        table = [["image", *map(one_line, self.findings)], *self._cells()]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join(cell.rjust(width) if at else cell.ljust(width) for at, (cell, width) in enumerate(pairs))
            for pairs in (list(zip(row, widths, strict=True)) for row in table)
        ]
        return "\n".join([*lines, f"({self._rest()})"])

    def _repr_html_(self) -> str:
        """The table by which a notebook shows it."""
        head = "".join(f"<th>{html.escape(name)}</th>" for name in ("image", *self.findings))
        rows = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in self._cells())
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table><p>{html.escape(self._rest())}</p>"


class Retrieved(NamedTuple):
    """A report that was found for an image."""

    rank: int
    """1 for the best."""
    report: str
    score: float
    """The head's whole score with the image."""
    place: int
    """Its place in the list that was searched, from 0 on."""


def best_texts(
    head: AlignmentHead[Any], images: Embedding, texts: Embedding, k: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Columns and scores ``[n,k]`` of the texts that the head scores highest with each image, the best first.

    Of equal scores the text that comes first is taken.

    Raises:
        ConfigError: a score is not a number.
    """
    columns, values = [], []
    for _, scores in scoring.blocks(head, images, texts, device):
        if scores.isnan().any():
            raise ConfigError("a score of the head is not a number, so nothing can be ranked; train the model again")
        ordered = scores.sort(dim=1, descending=True, stable=True)
        columns.append(ordered.indices[:, :k])
        values.append(ordered.values[:, :k])
    return torch.cat(columns), torch.cat(values)


def name_of(picture: Any, place: int) -> str:
    """The path of a picture, or its place where it has none.

    >>> name_of("a/b.png", 0), name_of(b"...", 3)
    ('a/b.png', 'pictures[3]')
    """
    path = picture if isinstance(picture, str | os.PathLike) else getattr(picture, "filename", "")
    return os.fspath(path) if path and isinstance(path, str | os.PathLike) else f"pictures[{place}]"


def names_of(pictures: Sequence[Any]) -> tuple[str, ...]:
    """:func:`name_of` for each."""
    return tuple(name_of(picture, place) for place, picture in enumerate(pictures))
