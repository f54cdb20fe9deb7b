"""Subsets of images that show one finding alone, as 5x200. They are drawn by hash, or listed by a user's table."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from lightning.pytorch import Trainer
from numpy.typing import NDArray

from diptych.data.splits import split_hash, uniform
from diptych.data.tables import scan_table
from diptych.errors import ConfigError, DataError
from diptych_datamodules.releases.protocols import PROTOCOLS

__all__ = ["COMPETITION", "PER_CLASS", "SUBSETS", "Subset", "exclusive"]

COMPETITION = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
SUBSETS = {
    "chexpert/5x200": COMPETITION,
    "chexpert/8x200": (
        "Atelectasis", "Cardiomegaly", "Edema", "Fracture", "Pleural Effusion", "Pneumonia", "Pneumothorax", "No Finding",
    ),
    "mimic_cxr/5x200": COMPETITION,
}  # fmt: skip
"""The classes of each subset."""
PER_CLASS = 200


def exclusive(labels: NDArray[np.float32], findings: Sequence[str], classes: Sequence[str]) -> str:
    """The one class that is present while every other finding is absent or not mentioned. Empty, if there is none.

    ``No Finding`` counts only where no finding is present.

    >>> exclusive(np.array([1, 0, np.nan], np.float32), ("Edema", "Fracture", "Atelectasis"), COMPETITION)
    'Edema'

    Args:
        labels: ``[L]``. An uncertain finding counts as present.
        findings: their names.
        classes: the classes in question.
    """
    present = [name for name, value in zip(findings, labels.tolist(), strict=True) if value in (1.0, -1.0)]
    named = [name for name in present if name != "No Finding"]
    if len(named) == 1:
        name = named[0]
    elif named or not present:
        return ""
    else:
        name = "No Finding"
    return name if name in classes and labels[findings.index(name)] == 1 else ""


@dataclass(frozen=True)
class Subset:
    """The subset of a protocol in :data:`SUBSETS`.

    Args:
        protocol: its name.
        findings: names of the labels it is chosen by.
        source: where these are from, for messages.
        table: a csv that lists the images. They are drawn by hash, if it is not given.
        seed: of the hash.
    """

    protocol: str
    findings: Sequence[str]
    source: str
    table: Path | None = None
    seed: int = 0

    @staticmethod
    def check(protocol: str, table: str | None) -> None:
        """Refuse a table where the protocol has no subset.

        Raises:
            ConfigError: it has none.
        """
        own = [name for name in SUBSETS if name.split("/")[0] == protocol.split("/")[0]]
        if table is not None and protocol not in own:
            raise ConfigError(
                f"data.subset lists the test of {' or '.join(own)}, not of {protocol}; choose one of them"
            )

    def choose(
        self, labels: Mapping[str, NDArray[np.float32]], columns: Sequence[str], key: Callable[[str, Path], str]
    ) -> dict[str, str]:
        """The class of each image of the subset.

        Args:
            labels: of each image that may be in it.
            columns: names that the column of a user's table may have.
            key: the image that an entry there names.

        Raises:
            DataError: too few images show one class alone, or the user's table has others.
        """
        return self._draw(labels) if self.table is None else self._read(self.table, labels, columns, key)

    def _draw(self, labels: Mapping[str, NDArray[np.float32]]) -> dict[str, str]:
        """200 images of each class that show nothing else, drawn by hash. Fewer, if a part of the release has fewer."""
        pools: dict[str, list[str]] = {name: [] for name in SUBSETS[self.protocol]}
        for image, vector in labels.items():
            if name := exclusive(vector, self.findings, SUBSETS[self.protocol]):
                pools[name].append(image)
        if sum(map(bool, pools.values())) < 2:
            raise DataError(
                f"{self.source}: fewer than two of {', '.join(pools)} ever stand alone; get the whole of it"
            )
        for pool in pools.values():
            pool.sort(key=lambda image: (uniform(image, self.seed), image))
        return {image: name for name, pool in pools.items() for image in pool[:PER_CLASS]}

    def _read(
        self,
        table: Path,
        labels: Mapping[str, NDArray[np.float32]],
        columns: Sequence[str],
        key: Callable[[str, Path], str],
    ) -> dict[str, str]:
        """The images of the user's table."""
        classes, chosen = SUBSETS[self.protocol], {}
        for row in scan_table(table, [], columns):
            if not any(row):
                raise DataError(f"{table}: no column {columns[0]} with an image; give one")
            image = key(next(filter(None, row)), table)
            if image not in labels:
                raise DataError(f"{table}: '{image}' is no frontal image of {self.source}; list such images alone")
            chosen[image] = exclusive(labels[image], self.findings, classes)
            if not chosen[image]:
                message = f"not one of {', '.join(classes)} alone, as {self.protocol} needs; remove it"
                raise DataError(f"{table}: '{image}' shows {message}")
        return chosen

    def name(self, assigned: str, chosen: Mapping[str, str], whole: bool) -> str:
        """The protocol's name, and whatever makes these images others than those of the published subset.

        Args:
            assigned: what :func:`~diptych_datamodules.releases.protocols.split` calls it.
            chosen: as :meth:`choose` gives it.
            whole: whether the images are drawn from the release's whole table.

        Raises:
            DataError: the whole table has other labels.
        """
        counts, name = Counter(chosen.values()), assigned
        classes, expected = SUBSETS[self.protocol], PROTOCOLS[self.protocol].hash
        if self.table is not None or min(counts[c] for c in classes) < PER_CLASS:
            name = f"{self.protocol} ({', '.join(f'{counts[c]} {c}' for c in classes)})"
        if self.table is not None:
            name += f", listed by {self.table.name}"
        elif self.seed:
            name += f", subset seed {self.seed}"
        elif whole and expected and split_hash({"test": sorted(chosen)}) != expected:
            raise DataError(f"{self.source}: it has the release's size, but other labels; get it anew")
        return name

    def write(self, trainer: Trainer | None, column: str, rows: Collection[tuple[str, str]]) -> None:
        """List images and their classes in the run's folder, as a csv that ``table`` can be. Nothing, if there are none."""
        if not rows or trainer is None or not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{self.protocol.replace('/', '_')}.csv").open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow([column, "class"])
            writer.writerows(sorted(rows))
