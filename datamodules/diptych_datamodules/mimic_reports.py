"""Reports of MIMIC-CXR: read from the zip or from files, cut into sections, and the text that is chosen of them."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from diptych.data.cells import is_empty
from diptych.data.table_files import scan_zip
from diptych.errors import DataError

__all__ = ["Fallback", "Section", "choose_text", "find_sections", "read_reports"]

Section = Literal["findings", "impression", "both", "none"]
Fallback = Literal["findings", "impression", "last_paragraph", "comparison"]

_LARGEST = 2**20  # bytes of one report; the largest has some ten thousand
_HEADER = re.compile(r"\n ([A-Z ()/,-]+):\s")
_MAIN = ("impression", "findings", "history", "comparison", "addendum")
_VIEW_WORDS = re.compile(
    r"chest|portable|ribs|bone window|(?:pa|ap) and lat|lateral and (?:pa|ap)|frontal (?:and|view|upright|semi-upright)"
    r"|(?:pa|ap|one|lateral) view|two views"
)
# Names that the rules below would not tell, most of them misspelt, as the official script lists them.
_SPELLED = {
    "conclusion": "impression", "findings and impression": "impression", "findings/impression": "impression",
    "findings/ impression": "impression", "impresson": "impression", "imprression": "impression",
    "imoression": "impression", "impressoin": "impression", "imprssion": "impression", "impresion": "impression",
    "imperssion": "impression", "mpression": "impression", "impession": "impression", "ndication": "impression",
    "finding": "findings", "findins": "findings", "findindgs": "findings", "findgings": "findings",
    "findngs": "findings", "findnings": "findings", "finidngs": "findings",
}  # fmt: skip


def _name(header: str) -> str:
    header = header.lower().strip()
    if header in _SPELLED:
        return _SPELLED[header]
    for main in _MAIN:
        if main in header:
            return main
    return "findings" if _VIEW_WORDS.search(header) else header


def find_sections(report: str) -> dict[str, str]:
    """The sections of a report by name, as the official ``section_parser.py`` of MIMIC-CXR finds them.

    A header is capitals after a new line and a space, up to a colon; the line that it stands on holds no other. Of equal
    names the last one counts, but an empty impression or findings never. Where neither is there, ``last_paragraph`` is what
    follows the first blank line of the last section. (Some 54 reports that the authors treated by hand are parsed alike.)
    """
    parts: list[tuple[str, str]] = []
    name, begin, header = "preamble", 0, _HEADER.search(report)
    while header:
        parts.append((name, report[begin : header.start()]))
        name, begin = _name(header.group(1)), header.end()
        line = report.find("\n", begin)
        header = _HEADER.search(report, begin if line < 0 else line)
    parts.append((name, report[begin:]))
    parts = [(name, text) for name, text in parts if text.strip() or name not in {"impression", "findings"}]
    found = {name: text.strip() for name, text in parts}
    if not found.keys() & {"impression", "findings"} and "\n \n" in parts[-1][1]:
        found["last_paragraph"] = parts[-1][1].partition("\n \n")[2].strip()
    return found


def choose_text(sections: Mapping[str, str], section: Section, fallback: Sequence[Fallback]) -> str:
    """The text of a report: what is asked for, or the first fallback that is not empty; lines stripped."""
    asked = ("findings", "impression") if section == "both" else (section,)
    parts = [part for part in (sections.get(name, "") for name in asked) if not is_empty(part)]
    parts = parts or [part for part in (sections.get(name, "") for name in fallback) if not is_empty(part)][:1]
    return "\n".join(line.strip() for line in "\n\n".join(parts).splitlines())


def read_reports(source: Path, wanted: Mapping[str, str], packed: Path | None = None) -> Iterator[tuple[str, str]]:
    """Study and report of those wanted (study to patient).

    Args:
        source: the zip, or the folder of an unpacked tree; nothing is read where neither is there.
        wanted: study to patient.
        packed: the zip that `diptych prepare` made of the tree.

    Raises:
        DataError: a file is damaged, or no text.
    """
    if packed is None and not source.exists():
        return
    if packed is None and source.is_dir():
        yield from _unpacked(source, wanted)
        return
    archive = packed or source

    def ours(name: str) -> bool:
        study = _study(name)
        return study in wanted and f"/{name}".endswith(f"/p{wanted[study]}/s{study}.txt")

    try:
        for name, raw in scan_zip(archive, ours, _LARGEST + 1):
            yield _study(name), _decoded(raw, f"{archive}: {name}")
    except (OSError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile) as error:
        raise DataError(f"{archive}: cannot be read ({error}); get it anew") from error


def _unpacked(source: Path, wanted: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """From files, each of which is opened and not looked for before."""
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
                folders.reverse()  # the others are most likely there too
            yield study, _decoded(raw, path)
            break


def _study(name: str) -> str:
    return name.rpartition("/s")[2].removesuffix(".txt")


def _decoded(raw: bytes, source: str) -> str:
    if len(raw) > _LARGEST:
        raise DataError(f"{source}: more than {_LARGEST} bytes, which is no report; get it anew")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{source}: not text ({error.reason} at byte {error.start}); get it anew") from None
