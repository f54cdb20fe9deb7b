"""Reports of MIMIC-CXR: how they are read from a zip or files, cut into sections, and which sections are the text."""

from __future__ import annotations

import os
import re
import zipfile
import zlib
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from diptych.data.cells import is_empty
from diptych.data.table_files import find_file, scan_table, scan_zip
from diptych.errors import ConfigError, DataError
from diptych.radiographs.packed import Files
from diptych_datamodules.releases.facts import OBTAIN

__all__ = ["Fallback", "ReportTexts", "Section", "choose_text", "find_sections", "read_reports"]

Section = Literal["findings", "impression", "both", "none"]
Fallback = Literal["findings", "impression", "last_paragraph", "comparison"]

_LARGEST = 2**20  # bytes of one report; the largest has some ten thousand
_HEADER = re.compile(r"\n ([A-Z ()/,-]+):\s")
_MAIN_SECTIONS = ("impression", "findings", "history", "comparison", "addendum")
_VIEW_WORDS = re.compile(
    r"chest|portable|ribs|bone window|(?:pa|ap) and lat|lateral and (?:pa|ap)|frontal (?:and|view|upright|semi-upright)"
    r"|(?:pa|ap|one|lateral) view|two views"
)
# Headers that the rules below do not recognise. Most are misspelt. The official script has the same list.
_SECTION_NAMES = {
    "conclusion": "impression", "findings and impression": "impression", "findings/impression": "impression",
    "findings/ impression": "impression", "impresson": "impression", "imprression": "impression",
    "imoression": "impression", "impressoin": "impression", "imprssion": "impression", "impresion": "impression",
    "imperssion": "impression", "mpression": "impression", "impession": "impression", "ndication": "impression",
    "finding": "findings", "findins": "findings", "findindgs": "findings", "findgings": "findings",
    "findngs": "findings", "findnings": "findings", "finidngs": "findings",
}  # fmt: skip


def _section_name(header: str) -> str:
    header = header.lower().strip()
    if header in _SECTION_NAMES:
        return _SECTION_NAMES[header]
    for main in _MAIN_SECTIONS:
        if main in header:
            return main
    return "findings" if _VIEW_WORDS.search(header) else header


def find_sections(report: str) -> dict[str, str]:
    r"""The sections of a report by name, as the official ``section_parser.py`` of MIMIC-CXR finds them.

    A header is text in capitals, after a new line and a space, up to a colon. A line has one header at most. If a name
    occurs several times, the last section of that name counts. An empty impression or findings never counts. If a report
    has neither, ``last_paragraph`` is what follows the first blank line of its last section. The script's authors treated
    54 reports by hand. Here they are parsed like the others.

    >>> find_sections(" FINAL REPORT\n FINDINGS:  Clear.\n \n CONCLUSION:  Normal.\n")["impression"]
    'Normal.'
    """
    parts: list[tuple[str, str]] = []
    name, begin, header = "preamble", 0, _HEADER.search(report)
    while header:
        parts.append((name, report[begin : header.start()]))
        name, begin = _section_name(header.group(1)), header.end()
        line = report.find("\n", begin)
        header = _HEADER.search(report, begin if line < 0 else line)
    parts.append((name, report[begin:]))
    parts = [(name, text) for name, text in parts if text.strip() or name not in {"impression", "findings"}]
    sections = {name: text.strip() for name, text in parts}
    if not sections.keys() & {"impression", "findings"} and "\n \n" in parts[-1][1]:
        sections["last_paragraph"] = parts[-1][1].partition("\n \n")[2].strip()
    return sections


def choose_text(sections: Mapping[str, str], section: Section, fallback: Sequence[Fallback]) -> str:
    """The text of a report: its section, or the first fallback that is not empty. White space around lines is removed.

    >>> choose_text({"impression": "Normal.", "last_paragraph": "Tail."}, "findings", ["impression", "last_paragraph"])
    'Normal.'
    """
    names = ("findings", "impression") if section == "both" else (section,)
    parts = [part for part in (sections.get(name, "") for name in names) if not is_empty(part)]
    parts = parts or [part for part in (sections.get(name, "") for name in fallback) if not is_empty(part)][:1]
    return "\n".join(line.strip() for line in "\n\n".join(parts).splitlines())


def read_reports(source: Path, wanted: Mapping[str, str], packed: Path | None = None) -> Iterator[tuple[str, str]]:
    """Study and report of each wanted study that has one.

    Args:
        source: the zip, or the folder of an unpacked tree. If it does not exist, nothing is read.
        wanted: study to patient.
        packed: the zip that `diptych prepare` made of the tree.

    Raises:
        DataError: a file is damaged, or no text.
    """
    if packed is None and not source.exists():
        return
    if packed is None and source.is_dir():
        yield from _read_tree(source, wanted)
        return
    archive = packed or source

    def wanted_file(name: str) -> bool:
        study = _study(name)
        return study in wanted and f"/{name}".endswith(f"/p{wanted[study]}/s{study}.txt")

    try:
        for name, raw in scan_zip(archive, wanted_file, _LARGEST + 1):
            yield _study(name), _decode(raw, f"{archive}: {name}")
    except (OSError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile) as error:
        raise DataError(f"{archive}: cannot be read ({error}); get it anew") from error


def _read_tree(source: Path, wanted: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Reports from files. Each is opened without a look whether it exists, which is faster."""
    folders = [f"{source}/files/", f"{source}/"]
    for study, patient in wanted.items():
        for folder in folders:
            path = f"{folder}p{patient[:2]}/p{patient}/s{study}.txt"
            try:
                with open(path, "rb", buffering=0) as file:
                    raw = file.read(_LARGEST + 1)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                raise DataError(f"{path}: cannot be read ({error.strerror}); make it readable") from error
            if folder != folders[0]:
                folders.reverse()  # the others are most likely in this folder too
            yield study, _decode(raw, path)
            break


@dataclass(frozen=True)
class ReportTexts:
    """Where reports are, and what of them is the text.

    Args:
        root: the folder of MIMIC-CXR-JPG.
        reports: the zip, or the folder of an unpacked tree. If None, it is looked for in the root.
        sectioned: the official table of sections, which is used instead of the reports.
        section: the section that is the text. ``none`` reads no report.
        fallback: sections that are the text where that one is empty, the first that is not.

    Raises:
        ConfigError: reports and a table of sections are both given.
    """

    root: Path
    reports: Path | None
    sectioned: Path | None
    section: Section
    fallback: tuple[Fallback, ...]

    def __post_init__(self) -> None:
        if self.reports is not None and self.sectioned is not None:
            raise ConfigError("data.reports and data.sectioned are both given; the text is from one or the other")

    def __str__(self) -> str:
        if self.section == "none":
            return "no text"
        table = "" if self.sectioned is None else f" of {self.sectioned.name}"
        return f"section {self.section}" + "".join(f", else {name}" for name in self.fallback) + table

    def read(self, patients: Mapping[str, str], files: Files) -> dict[str, str]:
        """The text of each study that has a report.

        Args:
            patients: study to patient.
            files: those of the root.

        Raises:
            DataError: no study has one.
        """
        if self.section == "none":
            return {}
        if self.sectioned is not None:
            return self._read_sectioned(self.sectioned, patients)
        source = self.reports or self.root / "mimic-cxr-reports.zip"
        if not source.exists():
            source = self.reports or self.root
        inside = os.path.abspath(source).startswith(os.path.abspath(self.root))
        packed = files.texts if inside and not source.is_file() else None
        texts = {
            study: choose_text(find_sections(report), self.section, self.fallback)
            for study, report in read_reports(source, patients, packed)
        }
        if not texts:
            raise DataError(f"{source}: no report of any study in it; {OBTAIN['mimic_cxr/reports']}")
        return texts

    def _read_sectioned(self, path: Path, studies: Container[str]) -> dict[str, str]:
        table = find_file(path.parent, [path.name], "make it with create_section_files.py of MIMIC-CXR")
        names, texts = ("findings", "impression", "last_paragraph", "comparison"), {}
        for name, *sections in scan_table(table, ["study", *names[:2]], names[2:]):
            study = name.removeprefix("s")
            if study in studies:
                texts[study] = choose_text(dict(zip(names, sections, strict=True)), self.section, self.fallback)
        if not texts:
            raise DataError(f"{table}: none of the studies is in it; it must be mimic_cxr_sectioned.csv")
        return texts


def _study(name: str) -> str:
    return name.rpartition("/s")[2].removesuffix(".txt")


def _decode(raw: bytes, source: str) -> str:
    if len(raw) > _LARGEST:
        raise DataError(f"{source}: more than {_LARGEST} bytes, which is no report; get it anew")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{source}: not text ({error.reason} at byte {error.start}); get it anew") from None
