"""CheXpert v1.0 (or -small), with the reports of CheXpert Plus where the user has them, and its 5x200 and 8x200 subsets."""

from __future__ import annotations

import csv
import fnmatch
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from diptych.data import Loading
from diptych.errors import ConfigError, DataError
from diptych.packed import Files, open_images
from diptych.splits import filled, split_hash, uniform
from diptych.tables import find_file, scan_table
from diptych.tokenizer import Tokenizer
from diptych_datamodules.protocols import PROTOCOLS, split
from diptych_datamodules.release import Record, Release, image_file, label_vector

__all__ = ["COMPETITION", "FINDINGS", "SUBSETS", "Chexpert", "exclusive", "settle"]

FINDINGS = (
    "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation",
    "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture", "Support Devices",
)  # fmt: skip
COMPETITION = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
SUBSETS = {
    "chexpert/5x200": COMPETITION,
    "chexpert/8x200": (
        "Atelectasis", "Cardiomegaly", "Edema", "Fracture", "Pleural Effusion", "Pneumonia", "Pneumothorax", "No Finding",
    ),
}  # fmt: skip
"""The classes of each subset."""
PER_CLASS = 200

Uncertain = Literal["ignore", "zeros", "ones", "mixed", "self"]
Section = Literal["impression", "findings", "both", "report"]

_OBTAIN = "get CheXpert-v1.0 or CheXpert-v1.0-small from stanfordaimi.azurewebsites.net"
_OBTAIN_PLUS = "get df_chexpert_plus_240401.csv of CheXpert Plus from stanfordaimi.azurewebsites.net"
_MIXED_ONES = np.array([name in {"Atelectasis", "Edema", "Pleural Effusion"} for name in FINDINGS])
_SECTIONS = {
    "impression": ("section_impression",),
    "findings": ("section_findings",),
    "both": ("section_findings", "section_impression"),
    "report": ("report",),
}
# What each table is for; those of the subsets need train.csv alone.
_TABLES = {
    "chexpert/linear": {"train": "", "valid": "test"},
    "chexpert/official": {"train": "train", "valid": "val"},
}


@dataclass(slots=True)
class _Image(Record):
    frontal: bool = True
    raw: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    """``[14]`` as the table has them."""


def settle(labels: NDArray[np.float32], uncertain: Uncertain) -> NDArray[np.float32]:
    """Labels ``[14]`` with the uncertain ones (-1) as a policy wants them.

    ``ignore`` keeps them: no evaluator counts them. ``zeros`` and ``ones`` are the paper's U-Zeros and U-Ones. ``mixed``, the
    usual choice since, takes ones for atelectasis, edema and pleural effusion and zeros for all others.
    """
    if uncertain in {"ignore", "self"}:
        return labels
    ones = _MIXED_ONES if uncertain == "mixed" else np.full(len(FINDINGS), uncertain == "ones")
    return np.where(labels == -1, ones, labels).astype(np.float32)


def exclusive(labels: NDArray[np.float32], classes: Sequence[str]) -> str:
    """The one class that is present while every other finding is absent or not mentioned; empty where there is none.

    ``No Finding`` says nothing against another class, so it is not looked at unless it is the class.
    """
    present = [name for name, value in zip(FINDINGS, labels.tolist(), strict=True) if value in (1.0, -1.0)]
    findings = [name for name in present if name != "No Finding"]
    if len(findings) == 1:
        name = findings[0]
    elif findings or not present:
        return ""
    else:
        name = "No Finding"
    return name if name in classes and labels[FINDINGS.index(name)] == 1 else ""


class Chexpert(Release):
    """``train.csv``, ``valid.csv`` and the JPEG tree; optionally the report table of CheXpert Plus.

    The tables lie in the root or in its one folder ``CheXpert-v1.0*``; what stands before ``patient00001/`` in their paths does
    not matter, so either release fits either table, and the numbered batches of the full release are found too.

    Args:
        root: the folder that holds ``train.csv`` or ``CheXpert-v1.0-small/train.csv``.
        tokenizer: linked from the text tower by the command line.
        split: ``chexpert/linear``, ``chexpert/official``, ``chexpert/5x200`` or ``chexpert/8x200``.
        images: the folder of ``train/patient00001/...`` where it is not beside the tables, as the PNG copies of CheXpert Plus.
        frontal: frontal images alone; false for ``chexpert/official`` only, the others being defined on frontal images.
        labels: all 14 findings, or the five of the competition.
        uncertain: what becomes of -1, see :func:`settle`; ``self`` takes a model's word, from ``predictions``.
        predictions: a csv with ``Path`` and a probability for each finding; from 0.5 on, an uncertain one is present.
        missing: findings that a report does not mention: ``keep`` (NaN), or ``zeros``, as most work takes them.
        reports: the report table of CheXpert Plus, a name below the root or a path; none, if not given.
        section: what of a report is the text.
        subset: for 5x200 and 8x200: a csv with a column ``Path`` that lists the test images instead of drawing them.
        subset_seed: of the drawing.
        percent: share of the training images, 1 % within 10 % within 100 %.
        strict: refuse a release with missing images or empty reports instead of leaving them out, counted.
        loading: how samples are loaded.
    """

    paper: ClassVar[str] = "Irvin et al., AAAI 2019; reports: Chambon et al., CheXpert Plus, 2024"
    needs: ClassVar[frozenset[str]] = frozenset({"train.csv", "valid.csv", "train/", "valid/"})
    holds: ClassVar[frozenset[str]] = frozenset({"image", "text", "labels"})
    data_set: ClassVar[str] = "chexpert"

    def __init__(
        self,
        root: str,
        tokenizer: Tokenizer | None = None,
        *,
        split: str = "chexpert/linear",
        images: str | None = None,
        frontal: bool = True,
        labels: Literal["all", "competition"] = "all",
        uncertain: Uncertain = "ignore",
        predictions: str | None = None,
        missing: Literal["keep", "zeros"] = "keep",
        reports: str | None = None,
        section: Section = "impression",
        subset: str | None = None,
        subset_seed: int = 0,
        percent: float = 100.0,
        strict: bool = False,
        loading: Loading = Loading(),  # noqa: B008  # frozen, and the command line shows its fields
    ) -> None:
        super().__init__(root, tokenizer, split=split, percent=percent, strict=strict, loading=loading)
        if not frontal and split != "chexpert/official":
            raise ConfigError(f"data.frontal is false, and {split} is defined on frontal images; use chexpert/official")
        if subset is not None and split not in SUBSETS:
            raise ConfigError(
                f"data.subset lists the test of {' or '.join(SUBSETS)}, not of {split}; choose one of them"
            )
        if (uncertain == "self") != (predictions is not None):
            raise ConfigError(
                "data.predictions belongs to data.uncertain 'self' and to nothing else; give both or neither"
            )
        self.images = None if images is None else Path(images)
        self.frontal, self.uncertain, self.missing, self.section = frontal, uncertain, missing, section
        self.predictions = None if predictions is None else Path(predictions)
        self.reports = None if reports is None else self._table(reports)
        self.subset, self.subset_seed = None if subset is None else self._table(subset), subset_seed
        self.findings = FINDINGS if labels == "all" else COMPETITION
        self._columns = [FINDINGS.index(name) for name in self.findings]
        self.chosen: dict[str, str] = {}
        """The images of the subset and their classes."""

    def _table(self, name: str) -> Path:
        return Path(name) if Path(name).is_file() and not (self.root / name).is_file() else self.root / name

    @property
    def protocol(self) -> str:
        """The split, the views, what became of labels that say neither yes nor no, and what is the text."""
        text = "" if self.reports is None else f", section {self.section}"
        views = "frontal" if self.frontal else "all views"
        return f"{super().protocol}, {views}, uncertain {self.uncertain}, missing {self.missing}{text}"

    def records(self) -> list[Record]:
        """Every row of the tables; paths and labels are settled for those that are used."""
        folder, texts = self._folder(), self._texts()
        found: dict[str, _Image] = {}
        vectors: dict[tuple[str, ...], NDArray[np.float32]] = {}
        for name, given in _TABLES.get(self.split, {"train": ""}).items():
            table = find_file(folder, [f"{name}.csv"], _OBTAIN)
            for path, view, *values in scan_table(table, ["Path", "Frontal/Lateral", *FINDINGS]):
                key = _key(path, table)
                raw = label_vector(values, vectors, f"{table}: '{path}'")
                if view not in {"Frontal", "Lateral"}:
                    raise DataError(f"{table}: '{path}' is '{view}'; Frontal/Lateral is one of these two words")
                if key in found:
                    if not np.array_equal(found[key].raw, raw, equal_nan=True):
                        raise DataError(f"{table}: '{path}' stands there twice with other labels; keep one row")
                    self.dropped.add("duplicate row", key)
                    continue
                text = None if self.reports is None else texts.get(key, "")
                found[key] = _Image(
                    key, None, key.split("/")[0], text=text, given=given, frontal=view == "Frontal", raw=raw
                )
        return list(found.values())

    def assign(self, records: Sequence[Record]) -> tuple[str, list[tuple[Record, str]]]:
        """By the protocol, of which all but ``chexpert/official`` know frontal images alone."""
        images = [record for record in records if isinstance(record, _Image)]
        if self.split == "chexpert/official":
            name, assigned = super().assign(images)
        else:
            images = [image for image in images if image.frontal]
            name, assigned = self._around(images) if self.split in SUBSETS else super().assign(images)
        kept = [(image, which) for image, which in assigned if isinstance(image, _Image)]
        kept = [(image, which) for image, which in kept if image.frontal or not self.frontal]
        self._settle([image for image, _ in kept])
        return name, [*kept]

    def _settle(self, images: Iterable[_Image]) -> None:
        """Labels by the policies, and where the file is."""
        said = {} if self.predictions is None else self._predicted(self.predictions)
        folders = self._patients()
        for image in images:
            labels = settle(image.raw, self.uncertain)
            if self.uncertain == "self" and (labels == -1).any():
                if image.id not in said:
                    raise DataError(f"{self.predictions}: no row for '{image.id}', which has uncertain labels; add it")
                labels = np.where(labels == -1, said[image.id], labels).astype(np.float32)
            if self.missing == "zeros":
                labels = np.nan_to_num(labels, nan=0.0)
            image.labels = labels[self._columns]
            if image.patient in folders:
                image.path = image_file(f"{folders[image.patient]}/{image.id.removesuffix('.jpg')}", self._images)

    def _around(self, images: list[_Image]) -> tuple[str, list[tuple[Record, str]]]:
        """A subset tests; its patients are left out of training, of whose images 5,000 validate."""
        classes, protocol = SUBSETS[self.split], PROTOCOLS[self.split]
        self.chosen = self._drawn(images, classes) if self.subset is None else self._listed(images, classes)
        tested = [image for image in images if image.id in self.chosen]
        patients = {image.patient for image in tested}
        rest = [image for image in images if image.patient not in patients]
        whole = PROTOCOLS["chexpert/linear"].sizes
        val = min(whole["val"], round(whole["val"] * len(images) / sum(whole.values())) or 1)
        where = filled([image.patient for image in rest], {"val": val}, "train", seed=0)
        assigned = split(self.split, [], [], ["test"] * len(tested) + where)
        name, counted = assigned.name, Counter(self.chosen.values())
        if self.subset is not None or min(counted[k] for k in classes) < PER_CLASS:
            name = f"{self.split} ({', '.join(f'{counted[k]} {k}' for k in classes)})"
        if self.subset is not None:
            name += f", listed by {self.subset.name}"
        elif self.subset_seed:
            name += f", subset seed {self.subset_seed}"
        elif len(images) == sum(whole.values()) and split_hash({"test": sorted(self.chosen)}) != protocol.hash:
            raise DataError(f"{self.root}: train.csv has the release's size, but other labels; get the table anew")
        return name, [*zip([*tested, *rest], assigned.splits, strict=True)]

    def _drawn(self, images: Iterable[_Image], classes: Sequence[str]) -> dict[str, str]:
        """200 images of each class that show nothing else, drawn by hash; all there are, on a part of the release."""
        pools: dict[str, list[str]] = {name: [] for name in classes}
        for image in images:
            if name := exclusive(image.raw, classes):
                pools[name].append(image.id)
        if sum(map(bool, pools.values())) < 2:
            raise DataError(
                f"{self.root}: fewer than two of {', '.join(classes)} ever stand alone; get the whole train.csv"
            )
        for pool in pools.values():
            pool.sort(key=lambda key: (uniform(key, self.subset_seed), key))
        return {key: name for name, pool in pools.items() for key in pool[:PER_CLASS]}

    def _listed(self, images: Iterable[_Image], classes: Sequence[str]) -> dict[str, str]:
        """The images of the user's table."""
        assert self.subset is not None
        of_id, found = {image.id: image for image in images}, {}
        for row in scan_table(self.subset, [], ["Path", "path_to_image", "imgpath"]):
            if not any(row):
                raise DataError(f"{self.subset}: no column Path with an image; give one")
            key = _key(next(filter(None, row)), self.subset)
            if key not in of_id:
                raise DataError(f"{self.subset}: '{key}' is no frontal image of train.csv; list such images alone")
            found[key] = exclusive(of_id[key].raw, classes)
            if not found[key]:
                message = f"not one of {', '.join(classes)} alone, as {self.split} needs; remove it"
                raise DataError(f"{self.subset}: '{key}' shows {message}")
        return found

    def setup(self, stage: str) -> None:
        """As the base does; what was drawn is written to the run's folder, where ``subset`` can read it again."""
        super().setup(stage)
        if self.chosen and self.trainer is not None and self.trainer.is_global_zero:
            path = Path(self.trainer.default_root_dir) / f"{self.split.replace('/', '_')}.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(["Path", "class"])
                writer.writerows((f"train/{key}", name) for key, name in sorted(self.chosen.items()))

    def _folder(self) -> Path:
        """The folder that holds the tables."""
        inside = sorted(path.parent for path in self.root.glob("CheXpert*/train.csv*"))
        here = [self.root] if any(self.root.glob("train.csv*")) else inside
        if len(here) > 1:
            raise DataError(
                f"{self.root}: {here[0].name} and {here[1].name} hold a train.csv each; name one as data.root"
            )
        return here[0] if here else self.root  # whose train.csv is then missed by name

    @cached_property
    def _images(self) -> Files:
        if self.images is None or self.images.is_relative_to(self.root):
            return self.files
        return open_images(self.images, self.loading.image_size)  # packed apart

    def _patients(self) -> dict[str, Path]:
        """Patient to the folder that holds the patient's, each folder of patients listed once."""
        if self.images is not None:
            above = [self.images]
        else:
            batches = fnmatch.filter(self.files.folders(self.root), "CheXpert*batch*")
            above = [self._folder(), *(self.root / name for name in batches)]
        below = [base for folder in above for base in (folder / "train", folder / "valid")]
        below += [folder for folder in above if "(train" in folder.name]  # a numbered batch holds patients directly
        found = {name: base for base in reversed(below) for name in self._images.folders(base)}
        if not found:
            raise DataError(
                f"{' or '.join(map(str, above))}: no image in it; unpack the release's train/ and valid/ there"
            )
        return found

    def _texts(self) -> dict[str, str]:
        """The report of each image, from CheXpert Plus."""
        if self.reports is None:
            return {}
        table = find_file(self.reports.parent, [self.reports.name], _OBTAIN_PLUS)
        found = {}
        for path, *parts in scan_table(table, ["path_to_image", *_SECTIONS[self.section]]):
            found[_key(path, table)] = "\n\n".join(part for part in parts if part)
        return found

    def _predicted(self, table: Path) -> dict[str, NDArray[np.float32]]:
        """1 or 0 for every finding of every image."""
        found = {}
        for path, *values in scan_table(table, ["Path", *FINDINGS]):
            try:
                probability = np.array(values, np.float32)
            except ValueError:
                probability = np.full(len(FINDINGS), np.nan, np.float32)
            if not ((probability >= 0) & (probability <= 1)).all():
                raise DataError(f"{table}: '{path}' has what is no probability; write numbers from 0 to 1")
            found[_key(path, table)] = (probability >= 0.5).astype(np.float32)
        return found


def _key(path: str, where: Path) -> str:
    """``patient00001/study1/view1_frontal.jpg`` of a path, whatever release or batch it begins with."""
    parts = path.replace("\\", "/").split("/")[-3:]
    if len(parts) < 3 or not parts[0].startswith("patient"):
        raise DataError(
            f"{where}: '{path}' is no path of the release; it ends in patient00001/study1/view1_frontal.jpg"
        )
    return f"{'/'.join(parts).rpartition('.')[0]}.jpg"
