"""MIMIC-CXR: the images and tables of MIMIC-CXR-JPG with the reports of MIMIC-CXR, whose sections are found here."""

from __future__ import annotations

import os
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
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
from diptych_datamodules.mimic_reports import Fallback, Section, choose_text, find_sections, read_reports
from diptych_datamodules.releases.base import Record, Release, ReleaseDataset, image_file, label_vector
from diptych_datamodules.releases.facts import OBTAIN
from diptych_datamodules.releases.protocols import split as assign_splits
from diptych_datamodules.releases.subsets import SUBSETS, Subset

__all__ = ["FINDINGS", "MimicCxr", "choose_text", "find_sections"]

FINDINGS = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Enlarged Cardiomediastinum", "Fracture", "Lung Lesion",
    "Lung Opacity", "No Finding", "Pleural Effusion", "Pleural Other", "Pneumonia", "Pneumothorax", "Support Devices",
)  # fmt: skip
VIEWS = {"frontal": ("PA", "AP"), "lateral": ("LATERAL", "LL")}

_OBTAIN, _OBTAIN_REPORTS = OBTAIN["mimic_cxr"], OBTAIN["mimic_cxr/reports"]
_GIVEN = {"train": "train", "validate": "val", "test": "test"}


@dataclass(slots=True)
class _Image(Record):
    study: str = ""
    view: str = ""


class _Sampled(ReleaseDataset):
    """Some sentences of each report, others in each epoch, in their order."""

    def __init__(self, records: Sequence[Record], sentences: int) -> None:
        super().__init__(records)
        self.sentences = sentences

    def read(self, index: int, rng: np.random.Generator) -> Sample:
        """See :meth:`RadiographDataset.read`."""
        sample = super().read(index, rng)
        assert sample.text is not None  # else the datamodule refuses the option
        spans = sentence_spans(sample.text)
        if len(spans) <= self.sentences:
            return sample
        drawn = sorted(rng.choice(len(spans), self.sentences, replace=False).tolist())
        return replace(sample, text=" ".join(sample.text[slice(*spans[i])] for i in drawn))


class MimicCxr(Release):
    """The tables ``mimic-cxr-2.0.0-*.csv.gz``, ``files/p10/p10000032/s50414267/*.jpg``, and ``mimic-cxr-reports.zip``.

    Args:
        root: the folder of MIMIC-CXR-JPG, with the tables and ``files``; PNG or DICOM files at the same places will do.
        tokenizer: linked from the text tower by the command line.
        split: ``mimic_cxr/official`` or ``mimic_cxr/5x200``.
        reports: ``mimic-cxr-reports.zip`` or the folder that it was unpacked to; if not given, looked for in the root.
        sectioned: the official ``mimic_cxr_sectioned.csv``, to be used instead of the reports.
        section: what of a report is the text; ``none`` reads no report.
        fallback: sections to take where that is empty, the first that is not. The text of the official script is
            ``impression`` with ``[findings, last_paragraph, comparison]``: some reports have no other section.
        views: ``frontal`` (PA, AP), ``lateral`` (LATERAL, LL), or ``all``, also those that are not named.
        per_study: every image of a study with its report, or ``one``: a PA before an AP before another view.
        sentences: train on so many sentences of a report, drawn anew each epoch; None for whole reports.
        labels: of which labeller.
        test_labels: those of the labeller, or of the radiologist that release 2.1.0 adds for the test.
        subset: for 5x200: a csv with a column ``dicom_id`` that lists the test images instead of drawing them.
        subset_seed: of the drawing.
        percent: share of the training images, 1 % within 10 % within 100 %.
        strict: refuse a release with missing images or empty reports instead of leaving them out, counted.
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
        percent: float = 100.0,
        strict: bool = False,
        loading: Loading = Loading(),  # noqa: B008  # frozen, and the command line shows its fields
    ) -> None:
        super().__init__(root, tokenizer, split=split, percent=percent, strict=strict, loading=loading)
        if sentences is not None:
            check_number("data.sentences", sentences, least=1, whole=True)
            if section == "none":
                raise ConfigError(f"data.sentences is {sentences} with data.section 'none'; choose a section")
        if reports is not None and sectioned is not None:
            raise ConfigError("data.reports and data.sectioned are both given; the text is from one or the other")
        Subset.check(split, subset)
        if split in SUBSETS and (views != "frontal" or test_labels == "radiologist"):
            raise ConfigError(
                f"{split} is of frontal images with the labeller's labels, not data.views '{views}' with data.test_labels "
                f"'{test_labels}'; leave both at their defaults"
            )
        listed = None if subset is None else Path(subset)
        self.subset = Subset(split, FINDINGS, f"{root}: the training images", listed, subset_seed)
        self.chosen: dict[str, str] = {}
        """The images of the subset and their classes."""
        self.reports = None if reports is None else Path(reports)
        self.sectioned = None if sectioned is None else Path(sectioned)
        self.section: Section = section
        self.fallback: tuple[Fallback, ...] = (fallback,) if isinstance(fallback, str) else tuple(fallback)
        self.views, self.per_study, self.sentences = views, per_study, sentences
        self.labels, self.test_labels = labels, test_labels
        self.findings = FINDINGS

    @property
    def protocol(self) -> str:
        """The split, and which images, what text and whose labels were read."""
        text = f"section {self.section}" + "".join(f", else {name}" for name in self.fallback)
        if self.sectioned is not None:
            text += f" of {self.sectioned.name}"
        if self.sentences is not None:
            text += f", {self.sentences} sentences a time"
        if self.section == "none":
            text = "no text"
        labels = self.labels if self.test_labels == "labeller" else f"{self.labels}, test by radiologist"
        images = f"views {self.views}, {self.per_study} of a study"
        return f"{super().protocol}, {images}, {text}, labels {labels}"

    def records(self) -> list[Record]:
        """Every image of the split table; texts, labels and files are looked for once the views are chosen."""
        tables = [self._table(name) for name in ("split", "metadata")]
        views = {row[0]: row[1].upper() for row in scan_table(tables[1], ["dicom_id", "ViewPosition"])}
        found: dict[str, Record] = {}
        for key, study, patient, name in scan_table(tables[0], ["dicom_id", "study_id", "subject_id", "split"]):
            if name not in _GIVEN:
                raise DataError(f"{tables[0]}: '{key}' is in '{name}'; a split is train, validate or test")
            if key not in views:
                raise DataError(f"{tables[1]}: no row for '{key}' of {tables[0].name}; get both of one release")
            image = _Image(key, None, patient, given=_GIVEN[name], study=study, view=views[key])
            if key not in found:
                found[key] = image
            elif found[key] == image:
                self.dropped.add("duplicate row", key)
            else:
                raise DataError(f"{tables[0]}: '{key}' stands there twice, and not the same; get it anew")
        self.counted = len(found)
        return list(found.values())

    def assign(self, records: Sequence[Record]) -> tuple[str, list[tuple[Record, str]]]:
        """As the release says; then the images that are wanted, with all that is known of them."""
        labels = self._labels(self.labels)
        if self.split in SUBSETS:
            name, assigned = self._around([image for image in records if isinstance(image, _Image)], labels)
        else:
            name, assigned = super().assign(records)
        images = {image.id: image for image in records if isinstance(image, _Image) and self._wanted(image)}
        if self.per_study == "one":
            best: dict[str, _Image] = {}
            for image in images.values():
                other = best.setdefault(image.study, image)
                if _rank(image.view) < _rank(other.view):
                    best[image.study] = image
            images = {image.id: image for image in best.values()}
        self._complete(list(images.values()), labels)
        return name, [(record, which) for record, which in assigned if record.id in images]

    def _around(
        self, images: list[_Image], labels: Mapping[str, NDArray[np.float32]]
    ) -> tuple[str, list[tuple[Record, str]]]:
        """A subset of the training images tests; its patients leave training, and the official test is not used."""
        pool = labels if self.labels == "chexpert" else self._labels("chexpert")
        ranked = sorted((image for image in images if self._wanted(image)), key=lambda i: (_rank(i.view), i.id))
        first = {image.study: image.id for image in reversed(ranked) if image.given == "train"}
        vectors = {image: pool[study] for study, image in first.items() if study in pool}
        self.chosen = self.subset.choose(vectors, ["dicom_id"], lambda name, table: Path(name).stem)
        patients = {image.patient for image in images if image.id in self.chosen}
        given = []
        for image in images:
            if image.id in self.chosen:
                image.given = "test"
            elif image.given == "test" or image.patient in patients:
                image.given = ""
            given.append(image.given)
        assigned = assign_splits(self.split, [], [], given)
        return self.subset.name(assigned.name, self.chosen, False), [*zip(images, assigned.splits, strict=True)]

    def setup(self, stage: str) -> None:
        """As the base does; what was drawn is written to the run's folder, where ``subset`` can read it again."""
        super().setup(stage)
        if self.chosen and self.trainer is not None and self.trainer.is_global_zero:
            self.subset.write(Path(self.trainer.default_root_dir), "dicom_id", self.chosen.items())

    def _wanted(self, image: _Image) -> bool:
        return self.views == "all" or image.view in VIEWS[self.views]

    def _complete(self, images: list[_Image], labels: Mapping[str, NDArray[np.float32]]) -> None:
        """Text, labels and file of each image."""
        files = self.root / "files"
        if not self.files.folders(files):
            raise DataError(f"{files}: no image in it; unpack MIMIC-CXR-JPG's files/ there ({_OBTAIN})")
        texts = {} if self.section == "none" else self._texts({image.study: image.patient for image in images})
        read = self._radiologist() if self.test_labels == "radiologist" else labels
        unknown, unlabelled = np.full(len(FINDINGS), np.nan, np.float32), set()
        for image in images:
            image.text = texts.get(image.study)
            image.labels = (read if image.given == "test" else labels).get(image.study)
            if image.labels is None:
                image.labels = unknown
                unlabelled.add(image.study)
            image.path = image_file(self._stem(image), self.files)
        if unlabelled:
            rank_zero_info(
                f"{self.data_set}: {len(unlabelled)} studies have no row of labels; none is mentioned in them"
            )

    def _stem(self, image: _Image) -> str:
        patient = f"p{image.patient}"
        return f"{self.root}/files/{patient[:3]}/{patient}/s{image.study}/{image.id}"

    def place(self, record: Record) -> str:
        """See :meth:`Release.place`."""
        return f"{self._stem(record)}.jpg" if isinstance(record, _Image) else ""

    def _usable(self, record: Record) -> bool:
        if self.section != "none" and record.text is None:
            self.dropped.add("no report", record.id)
            return False
        return super()._usable(record)

    def build(self) -> dict[Split, RadiographDataset]:
        """As the base does; training may see some sentences alone."""
        splits = super().build()
        train = splits.get("train")
        if self.sentences is not None and isinstance(train, ReleaseDataset):
            splits["train"] = _Sampled(train.records, self.sentences)
        return splits

    def _table(self, name: str) -> Path:
        return find_file(self.root, [f"mimic-cxr-{version}-{name}.csv" for version in ("2.0.0", "2.1.0")], _OBTAIN)

    def _labels(self, labeller: str) -> dict[str, NDArray[np.float32]]:
        """The labels of each study."""
        table = self._table(labeller)
        vectors: dict[tuple[str, ...], NDArray[np.float32]] = {}
        rows = scan_table(table, ["study_id", *FINDINGS])
        return {study: label_vector(values, vectors, f"{table}: study {study}") for study, *values in rows}

    def _radiologist(self) -> dict[str, NDArray[np.float32]]:
        """The same for the test, where Lung Opacity is called Airspace Opacity."""
        table = find_file(self.root, ["mimic-cxr-2.1.0-test-set-labeled.csv"], OBTAIN["mimic_cxr/2.1.0"])
        at = FINDINGS.index("Lung Opacity")
        others = [name for name in FINDINGS if name != "Lung Opacity"]
        vectors: dict[tuple[str, ...], NDArray[np.float32]] = {}
        found = {}
        for study, *values, opacity in scan_table(table, ["study_id", *others, "Airspace Opacity"]):
            values.insert(at, opacity)
            found[study] = label_vector(values, vectors, f"{table}: study {study}")
        return found

    def _texts(self, wanted: Mapping[str, str]) -> dict[str, str]:
        """The text of each study that has a report."""
        if self.sectioned is not None:
            return self._sectioned(self.sectioned, wanted)
        source = self.reports or self.root / "mimic-cxr-reports.zip"
        if not source.exists():
            source = self.reports or self.root
        found = {
            study: choose_text(find_sections(report), self.section, self.fallback)
            for study, report in read_reports(source, wanted, self._packed(source))
        }
        if not found:
            raise DataError(f"{source}: no report of any study in it; {_OBTAIN_REPORTS}")
        return found

    def _packed(self, source: Path) -> Path | None:
        """The zip that `diptych prepare` has made of the reports that were below a folder."""
        inside = os.path.abspath(source).startswith(os.path.abspath(self.root))
        return self.files.texts if inside and not source.is_file() else None

    def _sectioned(self, path: Path, wanted: Container[str]) -> dict[str, str]:
        table, found = find_file(path.parent, [path.name], "make it with create_section_files.py of MIMIC-CXR"), {}
        names = ("findings", "impression", "last_paragraph", "comparison")
        for study, *texts in scan_table(table, ["study", *names[:2]], names[2:]):
            key = study.removeprefix("s")
            if key in wanted:
                found[key] = choose_text(dict(zip(names, texts, strict=True)), self.section, self.fallback)
        if not found:
            raise DataError(f"{table}: none of the studies is in it; it must be mimic_cxr_sectioned.csv")
        return found


def _rank(view: str) -> int:
    return VIEWS["frontal"].index(view) if view in VIEWS["frontal"] else len(VIEWS["frontal"])
