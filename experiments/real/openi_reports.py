"""Write the table of Open-i reports (3,955 chest radiograph reports of Indiana University) that nih64.yaml reads.

    python experiments/real/openi_reports.py OUT.csv [--archive NLMCXR_reports.tgz]

The archive comes inside the torchxrayvision wheel and is read in place. Its licence (CC BY-NC-ND 4.0) lets nobody
distribute a changed copy: write the table where your data are, and keep it there.

Columns: ``id``; ``findings`` and ``impression``, as written (``XXXX`` is a word that was removed to protect the
patient); ``labels``, the indexers' MeSH terms as ChestX-ray14 names findings, ``Cardiomegaly|Effusion``. It is empty
where the indexers wrote *normal*, and only there: a report that is not normal and has none of the named findings, or
that nobody indexed, is labelled ``Other``. (Demner-Fushman et al., JAMIA 23, 2016; Wang et al., CVPR 2017.)
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import sys
import tarfile
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

COLUMNS = ("id", "findings", "impression", "labels")
LARGEST = 2**20  # bytes of one report; the largest has 20 thousand

# The first part of a term; "Opacity/lung/base/left" is an opacity.
NIH_NAMES = {
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
    """The findings that a MeSH term of the indexers names; none for what ChestX-ray14 does not label."""
    head, *rest = (part.strip() for part in term.split("/"))
    if head == "Thickening" and "pleura" in rest:
        return ("Pleural_Thickening",)
    if head == "Cardiac Shadow" and "enlarged" in rest:
        return ("Cardiomegaly",)
    if head == "Opacity" and "lung" in rest:
        return ("Infiltration",)
    return NIH_NAMES.get(head, ())


def shipped_archive() -> Path:
    """The archive inside the installed torchxrayvision, which is not imported."""
    spec = importlib.util.find_spec("torchxrayvision")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "data" / "NLMCXR_reports.tgz"
        if path.is_file():
            return path
    sys.exit("openi_reports: torchxrayvision is not installed; run `pip install torchxrayvision`, or give --archive")


def read_reports(archive: Path) -> Iterator[dict[str, str]]:
    """Every report of the archive, by its number; nothing is unpacked to disk."""
    found: list[dict[str, str]] = []
    with tarfile.open(archive, "r:gz") as members:
        for member in members:
            file = members.extractfile(member) if member.isfile() and member.name.endswith(".xml") else None
            if file is None:
                continue
            if member.size > LARGEST:
                sys.exit(f"openi_reports: {archive}: {member.name} has {member.size} bytes, which is no report")
            found.append(_report(ET.fromstring(file.read()), f"{archive}: {member.name}"))
    yield from sorted(found, key=lambda row: int(row["id"].removeprefix("CXR")))


def _report(root: ET.Element, source: str) -> dict[str, str]:
    key = root.find("uId")
    if key is None:
        sys.exit(f"openi_reports: {source} has no uId; it is no Open-i report")
    sections: dict[str, str] = {}
    for element in root.iter("AbstractText"):
        sections[element.get("Label", "")] = " ".join("".join(element.itertext()).split())
    terms = [(term.text or "").strip() for term in root.iter("major")]
    names = {name for term in terms for name in nih_names(term)}
    if not names and terms != ["normal"]:
        names = {"Other"}
    return {
        "id": key.get("id", ""),
        "findings": sections.get("FINDINGS", ""),
        "impression": sections.get("IMPRESSION", ""),
        "labels": "|".join(sorted(names)),
    }


def main() -> None:
    """Write the table and say what is in it."""
    parser = argparse.ArgumentParser(description="Write the table of Open-i reports.")
    parser.add_argument("out", type=Path, help="the table to write (.csv)")
    parser.add_argument("--archive", type=Path, help="NLMCXR_reports.tgz; that of torchxrayvision if not given")
    arguments = parser.parse_args()
    archive = arguments.archive or shipped_archive()
    try:
        reports = list(read_reports(archive))
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        with arguments.out.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(reports)
    except (OSError, tarfile.TarError, ET.ParseError) as error:
        sys.exit(f"openi_reports: {error}; check OUT.csv and --archive")
    counts = {name: sum(bool(row[name]) for row in reports) for name in ("findings", "impression", "labels")}
    print(
        f"{arguments.out}: {len(reports)} reports, {counts['findings']} with findings, {counts['impression']} with "
        f"impression, {len(reports) - counts['labels']} normal"
    )


if __name__ == "__main__":
    main()
