"""CheXpert v1.0 or v1.0-small, with its test set, two subsets, and the reports of CheXpert Plus if the user has them."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from diptych.data.about import sex, years
from diptych.data.loading import Loading
from diptych.data.splits import fill_splits
from diptych.data.tables import find_file, scan_table
from diptych.errors import ConfigError, DataError
from diptych.radiographs.packed import Files, open_images
from diptych.reports.tokenizer import Tokenizer
from diptych_datamodules.releases.base import LabelVectors, Record, Release, image_file
from diptych_datamodules.releases.facts import OBTAIN
from diptych_datamodules.releases.protocols import PROTOCOLS, split
from diptych_datamodules.releases.subsets import COMPETITION, SUBSETS, Subset

__all__ = ["FINDINGS", "Chexpert", "settle"]

FINDINGS = (
    "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation",
    "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture", "Support Devices",
)  # fmt: skip

Uncertain = Literal["ignore", "zeros", "ones", "mixed", "self"]
Section = Literal["impression", "findings", "both", "report"]

_OBTAIN, _OBTAIN_PLUS = OBTAIN["chexpert"], OBTAIN["chexpert/plus"]
_MIXED_ONES = np.array([name in {"Atelectasis", "Edema", "Pleural Effusion"} for name in FINDINGS])
_SECTIONS = {
    "impression": ("section_impression",),
    "findings": ("section_findings",),
    "both": ("section_findings", "section_impression"),
    "report": ("report",),
}
_ALL_VIEWS = ("chexpert/official", "chexpert/test500")
# The split of each table. The subsets are of train.csv alone.
_ABOUT = ("Sex", "Age", "AP/PA")
_TABLES = {
    "chexpert/linear": {"train": "", "valid": "test"},
    "chexpert/official": {"train": "train", "valid": "val"},
    "chexpert/test500": {"train": "train", "valid": "val"},
}


@dataclass(slots=True)
class ChexpertImage(Record):
    frontal: bool = True
    raw: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    """Labels ``[14]`` as in the table."""


def settle(labels: NDArray[np.float32], uncertain: Uncertain) -> NDArray[np.float32]:
    """Labels ``[14]`` by a policy for the uncertain ones (-1).

    - ``ignore`` and ``self`` leave them as they are. No evaluator counts them.
    - ``zeros`` and ``ones`` are the paper's U-Zeros and U-Ones.
    - ``mixed`` is the usual choice since. Atelectasis, edema and pleural effusion become 1, and all others 0.

    >>> labels = np.where(np.array(FINDINGS) == "Edema", -1, 0).astype(np.float32)
    >>> float(settle(labels, "zeros").sum()), float(settle(labels, "mixed").sum())
    (0.0, 1.0)
    """
    if uncertain in {"ignore", "self"}:
        return labels
    ones = _MIXED_ONES if uncertain == "mixed" else np.full(len(FINDINGS), uncertain == "ones")
    return np.where(labels == -1, ones, labels).astype(np.float32)


class Chexpert(Release):
    """``train.csv``, ``valid.csv`` and the JPEG tree. The report table of CheXpert Plus is optional.

    The tables are in the root, or in its one folder ``CheXpert-v1.0*``. Of their paths only the part from ``patient00001/`` on
    is read. So the tables of either release fit the images of the other. The numbered batches of the full release are found
    too.

    Args:
        root: the folder that holds ``train.csv`` or ``CheXpert-v1.0-small/train.csv``.
        tokenizer: linked from the text tower by the command line.
        split: ``chexpert/linear``, ``chexpert/official``, ``chexpert/test500``, ``chexpert/5x200`` or ``chexpert/8x200``.
        images: the folder of ``train/patient00001/...``, if it is not beside the tables. An example is that of the PNG copies
            of CheXpert Plus.
        frontal: read frontal images alone. False is possible for ``chexpert/official`` and ``chexpert/test500``. The other
            splits are defined on frontal images.
        labels: all 14 findings, or the five of the competition.
        uncertain: the policy for uncertain labels, as in :func:`settle`. ``self`` replaces them by a model's
            ``predictions``.
        predictions: a csv with ``Path`` and a probability for each finding. From 0.5 on, an uncertain finding is present.
        missing: the label of findings that a report does not mention. ``keep`` is NaN. ``zeros`` is 0, as in most work.
        reports: the report table of CheXpert Plus, as a name below the root or a path. If not given, no reports are read.
        section: the section that is the text.
        subset: for 5x200 and 8x200: a csv with a column ``Path`` that lists the test images. They are drawn, if not given.
        subset_seed: another seed draws other test images.
        percent: share of the training images. Those of 1 % are among those of 10 %.
        strict: refuse a release with missing images or empty reports. Otherwise they are left out, and counted.
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
        if not frontal and split not in _ALL_VIEWS:
            raise ConfigError(f"data.frontal is false, and {split} is defined on frontal images; use chexpert/official")
        Subset.check(split, subset)
        if (uncertain == "self") != (predictions is not None):
            raise ConfigError(
                "data.predictions belongs to data.uncertain 'self' and to nothing else; give both or neither"
            )
        self.images = None if images is None else Path(images)
        self.frontal, self.uncertain, self.missing, self.section = frontal, uncertain, missing, section
        self.predictions = None if predictions is None else Path(predictions)
        self.reports = None if reports is None else self._table(reports)
        listed = None if subset is None else self._table(subset)
        self.subset = Subset(split, FINDINGS, f"{root}: train.csv", listed, subset_seed)
        self.findings = FINDINGS if labels == "all" else COMPETITION
        self._columns = [FINDINGS.index(name) for name in self.findings]
        self.chosen: dict[str, str] = {}
        """The images of the subset and their classes."""

    def _table(self, name: str) -> Path:
        return Path(name) if Path(name).is_file() and not (self.root / name).is_file() else self.root / name

    @property
    def protocol(self) -> str:
        """The split, the views, the policies for labels that are neither 1 nor 0, and the section of the text."""
        text = "" if self.reports is None else f", section {self.section}"
        views = "frontal" if self.frontal else "all views"
        return f"{super().protocol}, {views}, uncertain {self.uncertain}, missing {self.missing}{text}"

    def records(self) -> list[Record]:
        """Every row of the tables. Those that are used get their paths and final labels later."""
        folder, texts = self._folder(), self._texts()
        images: dict[str, ChexpertImage] = {}
        for name, split_name in _TABLES.get(self.split, {"train": ""}).items():
            table = find_file(folder, [f"{name}.csv"], _OBTAIN)
            vectors = LabelVectors(table)
            for path, view, *values, letter, age, way in scan_table(
                table, ["Path", "Frontal/Lateral", *FINDINGS], _ABOUT
            ):
                key = _key(path, table)
                raw = vectors.of(values, f"'{path}'")
                if view not in {"Frontal", "Lateral"}:
                    raise DataError(f"{table}: '{path}' is '{view}'; Frontal/Lateral is one of these two words")
                if key in images:
                    if not np.array_equal(images[key].raw, raw, equal_nan=True):
                        raise DataError(f"{table}: '{path}' stands there twice with other labels; keep one row")
                    self.dropped.add("duplicate row", key)
                    continue
                text = None if self.reports is None else texts.get(key, "")
                images[key] = ChexpertImage(
                    key,
                    None,
                    key.split("/")[0],
                    text=text,
                    given=split_name,
                    sex=sex(letter),
                    age=years(age) if age.strip("0.") else "",  # 0 is written where it is not known
                    view=way.upper() if view == "Frontal" and way else view.upper(),
                    frontal=view == "Frontal",
                    raw=raw,
                )
        self.counted = sum(image.given in {"", "train"} for image in images.values())
        return [*images.values(), *(self._test_records(folder, texts) if self.split == "chexpert/test500" else ())]

    def _test_records(self, folder: Path, texts: dict[str, str]) -> Iterator[ChexpertImage]:
        """The images of the 500 test studies. CheXlocalize lists images. The other table lists studies."""
        table = self._test_table(folder)
        others = [name for name in FINDINGS if name != "Lung Opacity"]
        vectors = LabelVectors(table)
        folders = self._patient_folders()
        opacity = ("Lung Opacity", "Airspace Opacity")  # CheXlocalize has both names
        for *values, path, study, first, second in scan_table(table, others, ["Path", "Study", *opacity]):
            values.insert(FINDINGS.index("Lung Opacity"), first or second)
            raw = vectors.of(values, f"'{path or study}'")
            if "" in values:
                raise DataError(
                    f"{table}: '{path or study}' lacks a label; the radiologists gave all, get the table anew"
                )
            keys = [_key(path, table)] if path else _study_images(study, folders, self._images, table)
            for key in keys:
                text = None if self.reports is None else texts.get(key, "")
                frontal = "lateral" not in key.rpartition("/")[2]
                yield ChexpertImage(key, None, key.split("/")[0], text=text, given="test", frontal=frontal, raw=raw)

    def _test_table(self, folder: Path) -> Path:
        for name in ("test_labels.csv", "groundtruth.csv"):
            for place in (folder, self.root, *sorted(self.root.glob("CheXpert*/"))):
                if (place / name).is_file():
                    return place / name
        return find_file(folder, ["test_labels.csv", "groundtruth.csv"], OBTAIN["chexpert/test"])

    def assign(self, records: Sequence[Record]) -> tuple[str, list[tuple[Record, str]]]:
        """The splits of the protocol. Most protocols have frontal images alone."""
        images = [record for record in records if isinstance(record, ChexpertImage)]
        if self.split in _ALL_VIEWS:
            name, assigned = super().assign(images)
        else:
            images = [image for image in images if image.frontal]
            name, assigned = self._assign_subset(images) if self.split in SUBSETS else super().assign(images)
        chosen = [(image, which) for image, which in assigned if isinstance(image, ChexpertImage)]
        chosen = [(image, which) for image, which in chosen if image.frontal or not self.frontal]
        self._complete([image for image, _ in chosen])
        return name, [*chosen]

    def _complete(self, images: Iterable[ChexpertImage]) -> None:
        """Give each image its labels, by the policies, and its file."""
        predictions = {} if self.predictions is None else self._predictions(self.predictions)
        folders = self._patient_folders()
        for image in images:
            labels = settle(image.raw, self.uncertain)
            if self.uncertain == "self" and (labels == -1).any():
                if image.id not in predictions:
                    raise DataError(f"{self.predictions}: no row for '{image.id}', which has uncertain labels; add it")
                labels = np.where(labels == -1, predictions[image.id], labels).astype(np.float32)
            if self.missing == "zeros":
                labels = np.nan_to_num(labels, nan=0.0)
            image.labels = labels[self._columns]
            if image.patient in folders:
                image.path = image_file(f"{folders[image.patient]}/{image.id.removesuffix('.jpg')}", self._images)

    def _assign_subset(self, images: list[ChexpertImage]) -> tuple[str, list[tuple[Record, str]]]:
        """A subset is the test. Its patients leave training. Of the other images 5,000 validate."""
        labels = {image.id: image.raw for image in images}
        self.chosen = self.subset.choose(labels, ["Path", "path_to_image", "imgpath"], _key)
        tested = [image for image in images if image.id in self.chosen]
        patients = {image.patient for image in tested}
        rest = [image for image in images if image.patient not in patients]
        whole = PROTOCOLS["chexpert/linear"].sizes
        val = min(whole["val"], round(whole["val"] * len(images) / sum(whole.values())) or 1)
        splits = fill_splits([image.patient for image in rest], {"val": val}, "train", seed=0)
        assigned = split(self.split, [], [], ["test"] * len(tested) + splits)
        name = self.subset.name(assigned.name, self.chosen, len(images) == sum(whole.values()))
        return name, [*zip([*tested, *rest], assigned.splits, strict=True)]

    def setup(self, stage: str) -> None:
        """Build the splits, and list the subset in the run's folder. The option ``subset`` can read that list."""
        super().setup(stage)
        self.subset.write(self.trainer, "Path", [(f"train/{key}", name) for key, name in self.chosen.items()])

    def _folder(self) -> Path:
        """The folder that holds the tables."""
        inside = sorted(path.parent for path in self.root.glob("CheXpert*/train.csv*"))
        here = [self.root] if any(self.root.glob("train.csv*")) else inside
        if len(here) > 1:
            raise DataError(
                f"{self.root}: {here[0].name} and {here[1].name} hold a train.csv each; name one as data.root"
            )
        return here[0] if here else self.root  # the missing train.csv is reported later

    @cached_property
    def _images(self) -> Files:
        if self.images is None or self.images.is_relative_to(self.root):
            return self.files
        # Another folder may have a packed store of its own.
        return open_images(self.images, self.loading.image_size, self.loading.intensity)

    def _patient_folders(self) -> dict[str, Path]:
        """The folder above each patient's own. Each folder of patients is listed once."""
        if self.images is not None:
            above = [self.images]
        else:
            batches = fnmatch.filter(self.files.folders(self.root), "CheXpert*batch*")
            above = [self._folder(), *(self.root / name for name in batches)]
            above += [place for place in (self.root, self.root / "CheXpert") if self.split == "chexpert/test500"]
        below = [place / name for place in above for name in ("train", "valid", "test")]
        below += [folder for folder in above if "(train" in folder.name]  # a numbered batch holds patients directly
        folders = {name: base for base in reversed(below) for name in self._images.folders(base)}
        if not folders:
            raise DataError(
                f"{' or '.join(map(str, above))}: no image in it; unpack the release's train/ and valid/ there"
            )
        return folders

    def _texts(self) -> dict[str, str]:
        """The report of each image, from CheXpert Plus."""
        if self.reports is None:
            return {}
        table = find_file(self.reports.parent, [self.reports.name], _OBTAIN_PLUS)
        texts = {}
        for path, *parts in scan_table(table, ["path_to_image", *_SECTIONS[self.section]]):
            texts[_key(path, table)] = "\n\n".join(part for part in parts if part)
        return texts

    def _predictions(self, table: Path) -> dict[str, NDArray[np.float32]]:
        """A model's labels of each image: 1 or 0 for every finding."""
        predictions = {}
        for path, *values in scan_table(table, ["Path", *FINDINGS]):
            try:
                probability = np.array(values, np.float32)
            except ValueError:
                probability = np.full(len(FINDINGS), np.nan, np.float32)
            if not ((probability >= 0) & (probability <= 1)).all():
                raise DataError(f"{table}: '{path}' has what is no probability; write numbers from 0 to 1")
            predictions[_key(path, table)] = (probability >= 0.5).astype(np.float32)
        return predictions


def _study_images(study: str, folders: Mapping[str, Path], files: Files, where: Path) -> list[str]:
    """The images of a study that exist. If there are none, its first image, which is then reported as missing."""
    patient, _, name = study.replace("\\", "/").rpartition("/")
    patient = patient.rpartition("/")[2]
    if not (patient.startswith("patient") and name.startswith("study")):
        raise DataError(f"{where}: '{study}' is no study of the release; it ends in patient64741/study1")
    there = files.below(folders[patient] / patient / name) if patient in folders else ()
    images = sorted(image.rpartition(".")[0] for image, _ in there if image.startswith("view"))
    return [f"{patient}/{name}/{image}.jpg" for image in images] or [f"{patient}/{name}/view1_frontal.jpg"]


def _key(path: str, where: Path) -> str:
    """The part ``patient00001/study1/view1_frontal.jpg`` of a path, without the release or batch that it begins with."""
    parts = path.replace("\\", "/").split("/")[-3:]
    if len(parts) < 3 or not parts[0].startswith("patient"):
        raise DataError(
            f"{where}: '{path}' is no path of the release; it ends in patient00001/study1/view1_frontal.jpg"
        )
    return f"{'/'.join(parts).rpartition('.')[0]}.jpg"
