"""MIMIC-CXR: the images and tables of MIMIC-CXR-JPG with the reports of MIMIC-CXR."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray

from diptych.checks import check_number
from diptych.data.datamodule import RadiographDataset, Sample, Split
from diptych.data.loading import Loading
from diptych.data.tables import find_file, scan_table
from diptych.errors import ConfigError, DataError
from diptych.reports.text import sentence_spans
from diptych.reports.tokenizer import Tokenizer
from diptych_datamodules.mimic_reports import Fallback, ReportTexts, Section, choose_text, find_sections
from diptych_datamodules.mimic_views import StudyImage, ViewChoice, view_rank
from diptych_datamodules.ms_cxr import patients_of
from diptych_datamodules.releases.base import LabelVectors, Record, Release, ReleaseDataset, image_file
from diptych_datamodules.releases.facts import OBTAIN
from diptych_datamodules.releases.protocols import split as assign_splits
from diptych_datamodules.releases.subsets import SUBSETS, Subset

__all__ = ["FINDINGS", "MimicCxr", "choose_text", "find_sections"]

FINDINGS = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Enlarged Cardiomediastinum", "Fracture", "Lung Lesion",
    "Lung Opacity", "No Finding", "Pleural Effusion", "Pleural Other", "Pneumonia", "Pneumothorax", "Support Devices",
)  # fmt: skip

_OBTAIN = OBTAIN["mimic_cxr"]
_SPLITS = {"train": "train", "validate": "val", "test": "test"}


class _SentenceSample(ReleaseDataset):
    """Each report as some of its sentences, in their order. Each epoch draws others."""

    def __init__(self, records: Sequence[Record], sentences: int) -> None:
        super().__init__(records)
        self.sentences = sentences

    def read(self, index: int, rng: np.random.Generator) -> Sample:
        """An image with sentences that ``rng`` draws."""
        sample = super().read(index, rng)
        assert sample.text is not None  # else the datamodule refuses the option
        spans = sentence_spans(sample.text)
        if len(spans) <= self.sentences:
            return sample
        numbers = sorted(rng.choice(len(spans), self.sentences, replace=False).tolist())
        return replace(sample, text=" ".join(sample.text[slice(*spans[i])] for i in numbers))


class MimicCxr(Release):
    """The tables ``mimic-cxr-2.0.0-*.csv.gz``, ``files/p10/p10000032/s50414267/*.jpg``, and ``mimic-cxr-reports.zip``.

    Args:
        root: the folder of MIMIC-CXR-JPG, with the tables and ``files``. PNG or DICOM files at the same places will do.
        tokenizer: linked from the text tower by the command line.
        split: ``mimic_cxr/official`` or ``mimic_cxr/5x200``.
        reports: ``mimic-cxr-reports.zip`` or the folder that it was unpacked to. If not given, it is looked for in the root.
        sectioned: the official ``mimic_cxr_sectioned.csv``, which is used instead of the reports.
        section: the section that is the text. ``none`` reads no report.
        fallback: sections that are the text where that one is empty, the first that is not. The official script takes
            ``impression`` with ``[findings, last_paragraph, comparison]``, since some reports have no other section.
        views: ``frontal`` (PA, AP), ``lateral`` (LATERAL, LL), or ``all``. Images of other views, or of an unnamed one, are
            in ``all`` alone.
        per_study: ``all`` reads every image of a study with its report. ``one`` reads a PA before an AP before another view.
        sentences: train on so many sentences of a report, drawn anew each epoch. None reads whole reports.
        labels: the labeller whose labels are read.
        test_labels: those of the labeller, or of the radiologist that release 2.1.0 adds for the test.
        subset: for 5x200: a csv with a column ``dicom_id`` that lists the test images. They are drawn, if it is not given.
        subset_seed: another seed draws other test images.
        exclude: MS-CXR's json file. Its patients are neither trained nor validated on, so that it can be a test.
        percent: share of the training images. Those of 1 % are among those of 10 %.
        strict: refuse a release with missing images or empty reports. Otherwise they are left out, and counted.
        loading: how samples are loaded.
    """

    paper: ClassVar[str] = "Johnson et al., MIMIC-CXR, Scientific Data 6, 2019; MIMIC-CXR-JPG, arXiv:1901.07042"
    needs: ClassVar[frozenset[str]] = frozenset({"mimic-cxr-2.0.0-*.csv.gz", "files/", "mimic-cxr-reports.zip"})
    holds: ClassVar[frozenset[str]] = frozenset({"image", "text", "labels"})
    data_set: ClassVar[str] = "mimic_cxr"
    small_texts: ClassVar[str] = r"(?:^|/)p\d\d/p\d{8}/s\d{8}\.txt$"

    def __init__(
        self,
        root: str,
        tokenizer: Tokenizer | None = None,
        *,
        split: str = "mimic_cxr/official",
        reports: str | None = None,
        sectioned: str | None = None,
        section: Section = "both",
        fallback: Fallback | Sequence[Fallback] = ("last_paragraph",),
        views: Literal["frontal", "lateral", "all"] = "frontal",
        per_study: Literal["all", "one"] = "all",
        sentences: int | None = None,
        labels: Literal["chexpert", "negbio"] = "chexpert",
        test_labels: Literal["labeller", "radiologist"] = "labeller",
        subset: str | None = None,
        subset_seed: int = 0,
        exclude: str | None = None,
        percent: float = 100.0,
        strict: bool = False,
        loading: Loading = Loading(),  # noqa: B008  # frozen, and the command line shows its fields
    ) -> None:
        super().__init__(root, tokenizer, split=split, percent=percent, strict=strict, loading=loading)
        if sentences is not None:
            check_number("data.sentences", sentences, least=1, whole=True)
            if section == "none":
                raise ConfigError(f"data.sentences is {sentences} with data.section 'none'; choose a section")
        Subset.check(split, subset)
        if split in SUBSETS and (views != "frontal" or test_labels == "radiologist"):
            raise ConfigError(
                f"{split} is of frontal images with the labeller's labels, not data.views '{views}' with data.test_labels "
                f"'{test_labels}'; leave both at their defaults"
            )
        listed = None if subset is None else Path(subset)
        self.subset = Subset(split, FINDINGS, f"{root}: the training images", listed, subset_seed)
        self.exclude = None if exclude is None else Path(exclude)
        self.chosen: dict[str, str] = {}
        """The images of the subset and their classes."""
        self.reports = ReportTexts(
            self.root,
            None if reports is None else Path(reports),
            None if sectioned is None else Path(sectioned),
            section,
            (fallback,) if isinstance(fallback, str) else tuple(fallback),
        )
        self.views, self.sentences = ViewChoice(views, per_study), sentences
        self.labels, self.test_labels = labels, test_labels
        self.findings = FINDINGS

    @property
    def protocol(self) -> str:
        """The split, and which images, what text and whose labels were read."""
        sentences = "" if self.sentences is None else f", {self.sentences} sentences a time"
        labels = self.labels if self.test_labels == "labeller" else f"{self.labels}, test by radiologist"
        excluded = "" if self.exclude is None else f", patients of {self.exclude.name} excluded"
        return f"{super().protocol}, {self.views}, {self.reports}{sentences}, labels {labels}{excluded}"

    def records(self) -> list[Record]:
        """Every image of the split table. Texts, labels and files are looked for once the views are chosen."""
        tables = [self._table(name) for name in ("split", "metadata")]
        views = {row[0]: row[1].upper() for row in scan_table(tables[1], ["dicom_id", "ViewPosition"])}
        images: dict[str, Record] = {}
        for key, study, patient, name in scan_table(tables[0], ["dicom_id", "study_id", "subject_id", "split"]):
            if name not in _SPLITS:
                raise DataError(f"{tables[0]}: '{key}' is in '{name}'; a split is train, validate or test")
            if key not in views:
                raise DataError(f"{tables[1]}: no row for '{key}' of {tables[0].name}; get both of one release")
            image = StudyImage(key, None, patient, given=_SPLITS[name], study=study, view=views[key])
            if key not in images:
                images[key] = image
            elif images[key] == image:
                self.dropped.add("duplicate row", key)
            else:
                raise DataError(f"{tables[0]}: '{key}' stands there twice, and not the same; get it anew")
        self.counted = len(images)
        left_out = set() if self.exclude is None else patients_of(self.exclude)
        excluded = {key for key, record in images.items() if record.patient in left_out and record.given != "test"}
        for key in sorted(excluded):
            self.dropped.add("in the excluded set", key)
        return [record for key, record in images.items() if key not in excluded]

    def assign(self, records: Sequence[Record]) -> tuple[str, list[tuple[Record, str]]]:
        """The splits of the release or of the subset, for the images that are read. These get text, labels and file."""
        labels = self._labels(self.labels)
        images = [image for image in records if isinstance(image, StudyImage)]
        name, assigned = self._assign_subset(images, labels) if self.split in SUBSETS else super().assign(records)
        chosen = self.views.images(images)
        self._complete(list(chosen.values()), labels)
        return name, [(record, split) for record, split in assigned if record.id in chosen]

    def _assign_subset(
        self, images: list[StudyImage], labels: Mapping[str, NDArray[np.float32]]
    ) -> tuple[str, list[tuple[Record, str]]]:
        """A subset of the training images is the test. Its patients leave training, and the official test is not used."""
        pool = labels if self.labels == "chexpert" else self._labels("chexpert")
        ranked = sorted(filter(self.views.takes, images), key=lambda image: (view_rank(image.view), image.id))
        first = {image.study: image.id for image in reversed(ranked) if image.given == "train"}
        vectors = {image: pool[study] for study, image in first.items() if study in pool}
        self.chosen = self.subset.choose(vectors, ["dicom_id"], lambda name, table: Path(name).stem)
        patients = {image.patient for image in images if image.id in self.chosen}
        splits = []
        for image in images:
            if image.id in self.chosen:
                image.given = "test"
            elif image.given == "test" or image.patient in patients:
                image.given = ""
            splits.append(image.given)
        assigned = assign_splits(self.split, [], [], splits)
        return self.subset.name(assigned.name, self.chosen, False), [*zip(images, assigned.splits, strict=True)]

    def setup(self, stage: str) -> None:
        """Build the splits, and list the subset in the run's folder. The option ``subset`` can read that list."""
        super().setup(stage)
        self.subset.write(self.trainer, "dicom_id", self.chosen.items())

    def _complete(self, images: list[StudyImage], labels: Mapping[str, NDArray[np.float32]]) -> None:
        """Text, labels and file of each image."""
        files = self.root / "files"
        if not self.files.folders(files):
            raise DataError(f"{files}: no image in it; unpack MIMIC-CXR-JPG's files/ there ({_OBTAIN})")
        texts = self.reports.read({image.study: image.patient for image in images}, self.files)
        test_labels = self._radiologist() if self.test_labels == "radiologist" else labels
        unknown, unlabelled = np.full(len(FINDINGS), np.nan, np.float32), set()
        for image in images:
            image.text = texts.get(image.study)
            image.labels = (test_labels if image.given == "test" else labels).get(image.study)
            if image.labels is None:
                image.labels = unknown
                unlabelled.add(image.study)
            image.path = image_file(self._stem(image), self.files)
        if unlabelled:
            rank_zero_info(
                f"{self.data_set}: {len(unlabelled)} studies have no row of labels; none is mentioned in them"
            )

    def _stem(self, image: StudyImage) -> str:
        patient = f"p{image.patient}"
        return f"{self.root}/files/{patient[:3]}/{patient}/s{image.study}/{image.id}"

    def place(self, record: Record) -> str:
        """Where the image was looked for, as JPEG."""
        return f"{self._stem(record)}.jpg" if isinstance(record, StudyImage) else ""

    def _usable(self, record: Record) -> bool:
        if self.reports.section != "none" and record.text is None:
            self.dropped.add("no report", record.id)
            return False
        return super()._usable(record)

    def build(self) -> dict[Split, RadiographDataset]:
        """The splits of the release. In training, reports may be some of their sentences."""
        splits = super().build()
        train = splits.get("train")
        if self.sentences is not None and isinstance(train, ReleaseDataset):
            splits["train"] = _SentenceSample(train.records, self.sentences)
        return splits

    def _table(self, name: str) -> Path:
        return find_file(self.root, [f"mimic-cxr-{version}-{name}.csv" for version in ("2.0.0", "2.1.0")], _OBTAIN)

    def _labels(self, labeller: str) -> dict[str, NDArray[np.float32]]:
        """The labels of each study."""
        table = self._table(labeller)
        vectors = LabelVectors(table)
        return {
            study: vectors.of(labels, f"study {study}") for study, *labels in scan_table(table, ["study_id", *FINDINGS])
        }

    def _radiologist(self) -> dict[str, NDArray[np.float32]]:
        """The radiologist's labels of each study of the test. Lung Opacity is called Airspace Opacity there."""
        table = find_file(self.root, ["mimic-cxr-2.1.0-test-set-labeled.csv"], OBTAIN["mimic_cxr/2.1.0"])
        at = FINDINGS.index("Lung Opacity")
        others = [name for name in FINDINGS if name != "Lung Opacity"]
        vectors, labels = LabelVectors(table), {}
        for study, *values, opacity in scan_table(table, ["study_id", *others, "Airspace Opacity"]):
            values.insert(at, opacity)
            labels[study] = vectors.of(values, f"study {study}")
        return labels
