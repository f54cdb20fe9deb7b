"""Open-i, chest radiographs of Indiana University with reports: the original XML and PNG files, or the Kaggle copy."""

from __future__ import annotations

import json
import tarfile
import xml.etree.ElementTree as ET
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from diptych.data.loading import Loading
from diptych.data.tables import find_file, scan_table, scan_zip
from diptych.errors import ConfigError, DataError
from diptych.reports.tokenizer import Tokenizer
from diptych_datamodules.nih import FINDINGS
from diptych_datamodules.releases.base import Record, Release, index_images
from diptych_datamodules.releases.facts import OBTAIN

__all__ = ["Openi", "OpeniReport", "nih_names", "read_reports"]

Section = Literal["both", "findings", "impression"]
Views = Literal["all", "first", "pair", "frontal", "lateral"]

_OBTAIN = OBTAIN["openi"]
_LARGEST = 2**20  # bytes of one report; the largest has 20 thousand
# By the first part of a term. "Opacity/lung/base/left" is an opacity.
_NIH_NAMES = {
    "Pulmonary Atelectasis": ("Atelectasis",),
    "Cardiomegaly": ("Cardiomegaly",),
    "Consolidation": ("Consolidation",),
    "Pulmonary Edema": ("Edema",),
    "Pleural Effusion": ("Effusion",),
    "Hydropneumothorax": ("Effusion", "Pneumothorax"),
    "Hemothorax": ("Effusion",),
    "Hemopneumothorax": ("Effusion", "Pneumothorax"),
    "Emphysema": ("Emphysema",),
    "Pulmonary Emphysema": ("Emphysema",),
    "Bullous Emphysema": ("Emphysema",),
    "Pulmonary Fibrosis": ("Fibrosis",),
    "Fibrosis": ("Fibrosis",),
    "Hernia, Hiatal": ("Hernia",),
    "Hernia, Diaphragmatic": ("Hernia",),
    "Infiltrate": ("Infiltration",),
    "Airspace Disease": ("Infiltration",),
    "Mass": ("Mass",),
    "Nodule": ("Nodule",),
    "Pneumonia": ("Pneumonia",),
    "Pneumothorax": ("Pneumothorax",),
}


def nih_names(term: str) -> tuple[str, ...]:
    """The findings of ChestX-ray14 that a MeSH term of the indexers names.

    >>> nih_names("Opacity/lung/base/left"), nih_names("Hydropneumothorax"), nih_names("Scoliosis")
    (('Infiltration',), ('Effusion', 'Pneumothorax'), ())
    """
    head, *rest = (part.strip() for part in term.split("/"))
    if head == "Thickening" and "pleura" in rest:
        return ("Pleural_Thickening",)
    if head == "Cardiac Shadow" and "enlarged" in rest:
        return ("Cardiomegaly",)
    if head == "Opacity" and "lung" in rest:
        return ("Infiltration",)
    return _NIH_NAMES.get(head, ())


@dataclass(frozen=True, slots=True)
class OpeniReport:
    """One report."""

    id: str
    """As ``CXR1``. It stands for the patient, who is not known."""
    findings: str
    """The section's text, on one line. ``XXXX`` is a word that was removed to protect the patient."""
    impression: str
    terms: tuple[str, ...]
    """The indexers' MeSH terms. ``normal`` alone, if they found nothing. Empty, if nobody indexed the report."""
    images: tuple[str, ...]
    """Stems of its images, as ``CXR1_1_IM-0001-3001``."""

    def text(self, section: Section) -> str:
        """The text: the chosen sections without the empty ones."""
        parts = {"both": [self.findings, self.impression], "findings": [self.findings], "impression": [self.impression]}
        return "\n\n".join(part for part in parts[section] if part)

    def labels(self) -> NDArray[np.float32]:
        """``[14]`` in ChestX-ray14's order: 1 if a term names the finding, else 0. All NaN, if nobody indexed the report."""
        named = {name for term in self.terms for name in nih_names(term)}
        if not self.terms:
            return np.full(len(FINDINGS), np.nan, np.float32)
        return np.array([float(name in named) for name in FINDINGS], np.float32)


def read_reports(source: Path, packed: Path | None = None) -> list[OpeniReport]:
    """Every report of ``NLMCXR_reports.tgz``, or of a folder of XML files, in the order of their numbers.

    Args:
        source: the archive, or the folder.
        packed: the zip that `diptych prepare` made of the folder.

    Raises:
        DataError: it cannot be read, or a file in it is no report.
    """
    members = _read_files(source) if packed is None else _read_zip(packed)
    reports = [_parse_report(raw, name) for raw, name in members]
    if not reports:
        raise DataError(f"{source}: no report (.xml) in it; {_OBTAIN}")
    return sorted(reports, key=lambda report: int(report.id.removeprefix("CXR")))


def _read_files(source: Path) -> Iterator[tuple[bytes, str]]:
    if source.is_dir():
        for path in sorted(source.glob("*.xml")):
            if path.stat().st_size > _LARGEST:
                raise DataError(f"{path}: {path.stat().st_size} bytes, which is no report; remove it")
            yield path.read_bytes(), str(path)
        return
    try:
        with tarfile.open(source, "r:gz") as members:
            for member in members:
                file = members.extractfile(member) if member.isfile() and member.name.endswith(".xml") else None
                if file is not None and member.size > _LARGEST:
                    raise DataError(f"{source}: {member.name} has {member.size} bytes, which is no report; get it anew")
                if file is not None:
                    yield file.read(), f"{source}: {member.name}"
    except (OSError, EOFError, tarfile.TarError) as error:
        raise DataError(f"{source}: cannot be read ({error}); get it anew") from error


def _read_zip(archive: Path) -> Iterator[tuple[bytes, str]]:
    try:
        for name, raw in scan_zip(archive, lambda name: name.endswith(".xml"), _LARGEST + 1):
            if len(raw) > _LARGEST:
                raise DataError(f"{archive}: {name} has more than {_LARGEST} bytes, which is no report; remove it")
            yield raw, f"{archive}: {name}"
    except (OSError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile) as error:
        raise DataError(f"{archive}: cannot be read ({error}); run `diptych prepare` again") from error


def _parse_report(raw: bytes, source: str) -> OpeniReport:
    if b"<!ENTITY" in raw:  # no report has any, and a few lines of them can fill the memory
        raise DataError(f"{source}: declares entities; it is no Open-i report")
    try:
        root = ET.fromstring(raw)
    except ET.ParseError as error:
        raise DataError(f"{source}: not XML ({error}); get it anew") from error
    key = root.find("uId")
    name = "" if key is None else key.get("id", "")
    if not name.removeprefix("CXR").isdigit():
        raise DataError(f"{source}: no uId as CXR1 but '{name}'; it is no Open-i report")
    sections = {e.get("Label", ""): " ".join("".join(e.itertext()).split()) for e in root.iter("AbstractText")}
    return OpeniReport(
        name,
        sections.get("FINDINGS", ""),
        sections.get("IMPRESSION", ""),
        _index_terms((term.text or "").strip() for term in root.iter("major")),
        tuple(image.get("id", "") for image in root.iter("parentImage")),
    )


def _index_terms(terms: Iterator[str]) -> tuple[str, ...]:
    return tuple(term for term in terms if term and term != "No Indexing")


def _read_kaggle(reports: Path, projections: Path) -> list[OpeniReport]:
    """The Kaggle copy: one csv of reports, one of images."""
    images: dict[str, list[str]] = {}
    for uid, name in scan_table(projections, ["uid", "filename"]):
        images.setdefault(uid, []).append(f"CXR{uid}_{name.removesuffix('.png').removesuffix('.dcm')}")
    result = []
    for uid, terms, findings, impression in scan_table(reports, ["uid", "MeSH", "findings", "impression"]):
        sections = (" ".join(findings.split()), " ".join(impression.split()))
        split_terms = _index_terms(term.strip() for term in terms.split(";"))
        result.append(OpeniReport(f"CXR{uid}", *sections, split_terms, tuple(images.get(uid, ()))))
    return result


class Openi(Release):
    """Reports with their images. Each image is a sample with its whole report.

    The original is ``ecgen-radiology/*.xml`` (or ``NLMCXR_reports.tgz``) with PNG files of the images' names. The Kaggle copy
    is ``indiana_reports.csv``, ``indiana_projections.csv`` and ``images/images_normalized``. Labels are the indexers' terms
    under ChestX-ray14's names. They are NaN, if nobody indexed the report.

    Args:
        root: the folder that holds all this.
        tokenizer: linked from the text tower by the command line.
        section: the sections that are the text.
        views: ``frontal`` or ``lateral`` images alone need ``indiana_projections.csv``, which is not in the original. ``first``
            is the first image of each report, mostly the frontal one. ``pair`` reads the second one along, where there is one,
            for a tower of several images (``FusedImage``).
        split: ``openi/hash`` or ``openi/r2gen``.
        annotation: R2Gen's ``annotation.json``, for ``openi/r2gen``. Its reports are the findings, with two images each.
        percent: share of the training images. Those of 1 % are among those of 10 %.
        strict: refuse a release with missing images or empty reports. Otherwise they are left out, and counted.
        loading: how samples are loaded.
    """

    paper: ClassVar[str] = "Demner-Fushman et al., JAMIA 23, 2016"
    needs: ClassVar[frozenset[str]] = frozenset({"NLMCXR_reports.tgz or indiana_reports.csv", "the PNG images"})
    holds: ClassVar[frozenset[str]] = frozenset({"image", "text", "labels"})
    data_set: ClassVar[str] = "openi"
    small_texts: ClassVar[str] = r"^ecgen-radiology/[^/]+\.xml$"

    def __init__(
        self,
        root: str,
        tokenizer: Tokenizer | None = None,
        *,
        section: Section = "both",
        views: Views = "all",
        split: str = "openi/hash",
        annotation: str | None = None,
        percent: float = 100.0,
        strict: bool = False,
        loading: Loading = Loading(),  # noqa: B008  # frozen, and the command line shows its fields
    ) -> None:
        super().__init__(root, tokenizer, split=split, percent=percent, strict=strict, loading=loading)
        if (split == "openi/r2gen") != (annotation is not None):
            raise ConfigError(
                f"data.split is '{split}' and data.annotation is {annotation}; openi/r2gen, and no other split, reads R2Gen's "
                "annotation.json (github.com/zhjohnchan/R2Gen)"
            )
        if annotation is not None and section != "findings":
            raise ConfigError(
                f"data.section is '{section}', and R2Gen's reports are the findings; set data.section: findings"
            )
        self.section, self.views, self.annotation = section, views, annotation
        self.findings = FINDINGS
        self.others = int(views == "pair")

    @property
    def protocol(self) -> str:
        """The split, the section of the text, and the views."""
        return f"{super().protocol}, section {self.section}, views {self.views}"

    def records(self) -> list[Record]:
        """Every image of every report."""
        images = {_stem(stem): path for stem, path in index_images([self.root], self.files).items()}
        views = self._views()
        records = []
        reports = self.reports()
        self.counted = len(reports)
        listed = None if self.annotation is None else _read_annotation(Path(self.annotation))
        for report in reports:
            if not report.images:
                self.dropped.add("report without an image", report.id)
            text, labels, given, stems = report.text(self.section), report.labels(), "", report.images
            if listed is not None:
                if report.id not in listed:
                    self.dropped.add("not in R2Gen's list", report.id)
                    continue
                name, given = listed[report.id]
                stems = tuple(sorted(key for key in stems if key.startswith(f"{name}-")))[:2]
                if not stems:
                    self.dropped.add("report without an image", report.id, f"none is called {name}-")
            for number, key in enumerate(stems):
                short = key.removeprefix(f"{report.id}_")
                if self.views in ("first", "pair") and number:
                    if self.views == "first" or number > 1:
                        self.dropped.add("another view", key, f"not the first{' or second' if self.others else ''}")
                    continue
                if self.views in ("frontal", "lateral") and views.get(short) != self.views:
                    self.dropped.add("another view", key, views.get(short, "unknown"))
                    continue
                path = images.get(key) or images.get(short)
                second = stems[1] if self.others and len(stems) > 1 else ""
                other = images.get(second) or images.get(second.removeprefix(f"{report.id}_"))
                if second and other is None:
                    self.dropped.add("missing other image", key, second)
                    continue
                records.append(Record(key, path, report.id, text=text, labels=labels, given=given, other=other))
        return records

    def reports(self) -> Sequence[OpeniReport]:
        """The reports of the original or of the Kaggle copy."""
        if self.files.texts is not None:
            return read_reports(self.root, self.files.texts)
        for source in (self.root / "ecgen-radiology", self.root / "NLMCXR_reports.tgz"):
            if source.exists():
                return read_reports(source)
        names = ("indiana_reports.csv", "indiana_projections.csv")
        return _read_kaggle(*(find_file(self.root, [name], _OBTAIN) for name in names))

    def _views(self) -> dict[str, str]:
        """``frontal`` or ``lateral`` for each image. Empty, if they are not asked for."""
        if self.views in ("all", "first", "pair"):
            return {}
        try:
            table = find_file(self.root, ["indiana_projections.csv"], "it is part of the Kaggle copy")
        except DataError as error:
            raise ConfigError(
                f"data.views is '{self.views}', and the views are not known: {error}; or use 'all'"
            ) from error
        return {_stem(name): view.lower() for name, view in scan_table(table, ["filename", "projection"])}


def _read_annotation(path: Path) -> dict[str, tuple[str, str]]:
    """For each report of R2Gen's file its name there, with which its images begin, and its split.

    Raises:
        DataError: it cannot be read, or is another file.
    """
    try:
        lists = json.loads(path.read_text(encoding="utf-8"))
        names = {str(entry["id"]): str(split) for split, entries in lists.items() for entry in entries}
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: it is not R2Gen's annotation.json ({type(error).__name__}: {error}); give data.annotation the file that "
            "comes with its Open-i images"
        ) from error
    if odd := sorted(set(names.values()) - {"train", "val", "test"}):
        raise DataError(f"{path}: it has the split '{odd[0]}'; R2Gen's are train, val and test")
    listed = {name.partition("_")[0]: (name, split) for name, split in names.items()}
    if len(listed) < len(names) or not all(key.startswith("CXR") for key in listed):
        raise DataError(f"{path}: its ids are not Open-i's, as CXR2384_IM-0942; give R2Gen's file for IU X-Ray")
    return listed


def _stem(name: str) -> str:
    """An image's name in both copies: the Kaggle one has ``1_IM-0001-4001.dcm.png``."""
    return name.removesuffix(".png").removesuffix(".dcm")
