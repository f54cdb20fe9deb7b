"""Options that make each release give all it holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from diptych_datamodules.openi import read_reports

RELEASES = {
    "rsna": {"masks": True},
    "siim": {},
    "nih": {"boxes": True},
    "covidx": {},
    "tbx11k": {},
    "vindr_cxr": {},
    "padchest": {},
    "ms_cxr": {"split": "ms_cxr/official"},
    "rexgradient": {},
    "openi": {},
    "chestx_det10": {},
    "object_cxr": {"masks": True},
    "chexpert": {"reports": "df_chexpert_plus_240401.csv"},
    "mimic_cxr": {},
}
"""Options that make each release give all it holds."""


def r2gen_list(root: Path, out: Path) -> tuple[str, dict[str, list[str]]]:
    """R2Gen's annotation.json of the reports of a miniature of Open-i that have findings and two images, dealt 4:1:2."""
    lists: dict[str, list[dict[str, Any]]] = {"train": [], "val": [], "test": []}
    reports = [
        report for report in read_reports(root / "ecgen-radiology") if report.findings and len(report.images) > 1
    ]
    for i, report in enumerate(reports):
        name = min(report.images).rpartition("-")[0]
        entry = {"id": name, "report": report.findings, "image_path": [f"{name}/0.png", f"{name}/1.png"]}
        lists[["train", "train", "val", "train", "test", "train", "test"][i % 7]].append(entry)
    out.write_text(json.dumps(lists))
    return str(out), {split: [e["id"].partition("_")[0] for e in entries] for split, entries in lists.items()}
