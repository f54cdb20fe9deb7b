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
from pathlib import Path

from diptych.errors import DataError
from diptych_datamodules.openi import OpeniReport, nih_names, read_reports

COLUMNS = ("id", "findings", "impression", "labels")


def shipped_archive() -> Path:
    """The archive inside the installed torchxrayvision, which is not imported."""
    spec = importlib.util.find_spec("torchxrayvision")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "data" / "NLMCXR_reports.tgz"
        if path.is_file():
            return path
    sys.exit("openi_reports: torchxrayvision is not installed; run `pip install torchxrayvision`, or give --archive")


def labels(report: OpeniReport) -> str:
    """The label list of a report."""
    names = {name for term in report.terms for name in nih_names(term)}
    if not names and report.terms != ("normal",):
        names = {"Other"}
    return "|".join(sorted(names))


def main() -> None:
    """Write the table and say what is in it."""
    parser = argparse.ArgumentParser(description="Write the table of Open-i reports.")
    parser.add_argument("out", type=Path, help="the table to write (.csv)")
    parser.add_argument("--archive", type=Path, help="NLMCXR_reports.tgz; that of torchxrayvision if not given")
    arguments = parser.parse_args()
    archive = arguments.archive or shipped_archive()
    try:
        reports = [
            dict(zip(COLUMNS, (r.id, r.findings, r.impression, labels(r)), strict=True)) for r in read_reports(archive)
        ]
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        with arguments.out.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(reports)
    except (OSError, DataError) as error:
        sys.exit(f"openi_reports: {error}; check OUT.csv and --archive")
    counts = {name: sum(bool(row[name]) for row in reports) for name in ("findings", "impression", "labels")}
    print(
        f"{arguments.out}: {len(reports)} reports, {counts['findings']} with findings, {counts['impression']} with "
        f"impression, {len(reports) - counts['labels']} normal"
    )


if __name__ == "__main__":
    main()
