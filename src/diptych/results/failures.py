"""Where a model was most wrong, from the predictions of its test: findings, and reports that were not found."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from diptych.predictions.base import Predictions
from diptych.predictions.kinds import names_of
from diptych.predictions.reading import Tested
from diptych.predictions.table import read_table

__all__ = ["retrieval_failures", "wrong_findings"]

_WORST = 5


def wrong_findings(tested: Tested) -> Iterator[tuple[str, list[list[str]]]]:
    """For each evaluator with scores of findings: the images without a finding that score highest, and with it lowest.

    A row is ``[finding, label, image, patient, score, place]``. The place says how many images of the other label lie on
    the wrong side of it.
    """
    for name, kept in tested.predictions.items():
        if kept.kind in ("binary", "classes"):
            rows = [row for finding in _findings(kept) for row in _wrong(tested, kept, finding)]
            if rows:
                yield name, rows


def _findings(kept: Predictions) -> list[str]:
    return names_of(kept.columns, _start(kept))


def _start(kept: Predictions) -> str:
    return "score" if names_of(kept.columns, "score") else "probability"


def _wrong(tested: Tested, kept: Predictions, finding: str) -> Iterator[list[str]]:
    scores = np.asarray(kept.columns[f"{_start(kept)}/{finding}"], np.float64)
    labels = np.asarray(kept.columns[f"label/{finding}"], np.float64)
    for label, sign in ((1, 1), (0, -1)):
        mine, others = np.flatnonzero(labels == label), np.flatnonzero(labels == 1 - label)
        order = mine[np.argsort(sign * scores[mine], kind="stable")]
        for i in order[:_WORST]:
            beaten = int((sign * scores[others] > sign * scores[i]).sum())
            if not beaten:
                break  # it and all that follow are on the right side of every other image
            place = f"{beaten} of {len(others)}"
            yield [
                finding,
                "present" if label else "absent",
                tested.ids[i],
                tested.patients[i],
                f"{scores[i]:.4g}",
                place,
            ]


def retrieval_failures(tested: Tested, file: Path) -> Iterator[tuple[str, list[list[str]]]]:
    """For each retrieval: the images whose own report came last, ``[image, rank of its report, the first three reports]``.

    Args:
        tested: the predictions.
        file: that they were read from. It has the ids of the reports that came first.
    """
    cells = read_table(file).cells
    for name, kept in tested.predictions.items():
        if kept.kind == "retrieval":
            ranks = np.asarray(kept.columns["image_rank"], np.float64)
            order = np.argsort(-ranks, kind="stable")[:_WORST]
            chosen = cells.get(f"{name}/top10", ["[]"] * len(ranks))
            yield (
                name,
                [[tested.ids[i], f"{ranks[i]:.0f}", ", ".join(map(str, json.loads(chosen[i])[:3]))] for i in order],
            )
