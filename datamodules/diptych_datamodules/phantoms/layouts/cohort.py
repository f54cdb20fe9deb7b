"""Patients with their studies and splits, and the tables that every layout writes."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diptych_datamodules.phantoms.plan import PhantomPlan, PhantomRadiograph, plan_phantom

__all__ = [
    "BOX_COLUMNS", "Options", "Study", "box_rows", "release_labels", "sample_cohort", "stream", "truth_row", "write_csv",
]  # fmt: skip

BOX_COLUMNS = ("image", "finding", "side", "zone", "severity", "x0", "y0", "x1", "y1")
"""Columns of the boxes table. The corners are pixels of the written image. x1 and y1 are outside the box."""

_TABLES = 20  # stream number that no part of a phantom uses
_RELEASE_NAME = {"Nodule": "Lung Lesion"}


@dataclass(frozen=True)
class Options:
    """What a collection is made of: the size of its pictures, arguments of :func:`.plan_phantom`, and the split."""

    seed: int = 0
    size: int = 512
    mix: Mapping[str, float] | None = None
    normal: float = 0.3
    max_findings: int = 3
    filler: float = 0.3
    uncertain: float = 0.3
    held_out: float = 0.2
    """Share of patients that are not for training."""

    def plan(self, index: int, patient: int | None = None, mix: Mapping[str, float] | None = None) -> PhantomPlan:
        """The plan with this index. ``mix`` is used where the user gave none."""
        return plan_phantom(
            index,
            seed=self.seed,
            mix=self.mix or mix,
            normal=self.normal,
            max_findings=self.max_findings,
            filler=self.filler,
            uncertain=self.uncertain,
            patient=patient,
        )


@dataclass(frozen=True)
class Study:
    """One study of one patient."""

    plan: PhantomPlan
    patient: int
    number: int
    """1 for the patient's first study."""
    split: str


def stream(options: Options, *keys: int) -> np.random.Generator:
    """Random numbers for identifiers, dates and the like. The phantoms use others."""
    return np.random.default_rng([options.seed, 0, _TABLES, *keys])


def sample_cohort(n: int, options: Options, splits: Sequence[str] = ("train", "val", "test")) -> list[Study]:
    """Spread ``n`` studies over patients, one to three on each, and the patients over splits.

    The first split gets eight of ten patients, or what ``held_out`` leaves. The others share the rest. Each gets at least
    one, if there are enough patients.
    """
    rng = stream(options, 0)
    sizes: list[int] = []
    while sum(sizes) < n:
        sizes.append(min(int(rng.choice(3, p=(0.6, 0.27, 0.13))) + 1, n - sum(sizes)))
    count, rest = len(sizes), splits[1:]
    each = max(1, round(options.held_out * count / len(rest)))
    of_patient = [splits[0]] * count
    for i, patient in enumerate(rng.permutation(count)[: min(each * len(rest), count - 1)]):
        of_patient[patient] = rest[i % len(rest)]
    pairs = [(patient, number + 1) for patient, size in enumerate(sizes) for number in range(size)]
    return [
        Study(options.plan(i, patient), patient, number, of_patient[patient])
        for i, (patient, number) in enumerate(pairs)
    ]


def release_labels(plan: PhantomPlan) -> dict[str, float]:
    """What the report says, under the names of CheXpert and MIMIC-CXR. Findings that it does not mention are missing."""
    labels = {_RELEASE_NAME.get(name, name): value for name, value in plan.labels.items()}
    if all(spec.name == "Support Devices" for spec in plan.specs):
        labels["No Finding"] = 1.0
    return labels


def box_rows(image: str, radiograph: PhantomRadiograph, scale: float = 1.0) -> Iterator[list[object]]:
    """Rows of the boxes table for one picture, its corners multiplied by ``scale``."""
    for f in radiograph.findings:
        yield [image, f.name, f.side or "", f.zone or "", f.severity or f.device or "", *(v * scale for v in f.box)]


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table, gzipped if its name ends in ``.gz``. The same rows give the same bytes."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    data = text.getvalue().encode()
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


def truth_row(plan: PhantomPlan) -> list[int]:
    """1 or 0 for each finding, in order."""
    return [int(value) for value in plan.truth]
