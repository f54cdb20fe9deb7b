"""Phantoms as the releases whose tables are JSON: MS-CXR (phrases with boxes) and ReXGradient-160K (reports in sections)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from diptych_datamodules.phantoms.lateral import render_lateral
from diptych_datamodules.phantoms.layouts.cohort import BOX_COLUMNS, Options, box_rows, sample_cohort, stream, write_csv
from diptych_datamodules.phantoms.layouts.dicom import RSNA_MIX
from diptych_datamodules.phantoms.plan import PhantomRadiograph, render

__all__ = ["write_ms_cxr", "write_rexgradient"]

_CATEGORIES = (
    "Pneumonia", "Pneumothorax", "Consolidation", "Atelectasis", "Edema", "Cardiomegaly", "Lung Opacity", "Pleural Effusion",
)  # fmt: skip


def _phrases(radiograph: PhantomRadiograph) -> dict[tuple[str, str], list[tuple[float, ...]]]:
    """Boxes by finding and phrase. Two places of one finding on one side share a phrase."""
    found: dict[tuple[str, str], list[tuple[float, ...]]] = {}
    for finding in radiograph.findings:
        if finding.name in _CATEGORIES:
            words = [finding.severity or "", finding.side or "", finding.name.lower()]
            phrase = f"there is {' '.join(filter(None, words))} in this study"
            found.setdefault((finding.name, phrase), []).append(finding.box)
    return found


def write_ms_cxr(n: int, out: Path, options: Options, progress: Callable[[int], None]) -> None:
    """Write ``n`` studies as MS-CXR 1.1.0, with the images of MIMIC-CXR-JPG that it names.

    Pictures are not square, and boxes are whole pixels of them. The first two thirds of the images have one phrase each, the
    others one for each finding. A phrase of several boxes has an annotation for each. Studies without a finding of the eight
    are not in the file, and have no image.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    truth: list[list[object]] = []
    for i, study in enumerate(sample_cohort(n, options)):
        rng = stream(options, 12, i)
        radiograph = render(options.plan(i, study.patient, RSNA_MIX), options.size)
        phrases = list(_phrases(radiograph).items())
        across, down = 2, 2 + i % 2
        patient, name = f"p{10_000_000 + 7 * study.patient}", "-".join(rng.bytes(4).hex() for _ in range(5))
        path = Path("files", patient[:3], patient, f"s{50_000_000 + i}", f"{name}.jpg")
        for (finding, phrase), boxes in phrases[: 1 if i < 2 * n // 3 else None]:
            for box in boxes:
                x0, y0, x1, y1 = (round(v * s) for v, s in zip(box, (across, down) * 2, strict=True))
                annotations.append(
                    {"id": len(annotations) + 1, "category_id": _CATEGORIES.index(finding) + 1, "image_id": i,
                     "bbox": [x0, y0, x1 - x0, y1 - y0], "label_text": phrase, "split": study.split}
                )  # fmt: skip
        if phrases:
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            size = (options.size * across, options.size * down)
            Image.fromarray(cv2.resize(radiograph.image, size)).save(out / path, quality=95)
            images.append({"id": i, "file_name": path.name, "path": str(path), "width": size[0], "height": size[1]})
            scale = np.array([across, down, across, down])
            truth += [[*row[:5], *(np.array(row[5:], float) * scale)] for row in box_rows(name, radiograph)]
        progress(i + 1)
    content = {
        "info": {"version": "1.1.0", "description": "MS-CXR"},
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(_CATEGORIES)],
        "images": images,
        "annotations": annotations,
    }
    (out / "MS_CXR_Local_Alignment_v1.1.0.json").write_text(json.dumps(content))
    write_csv(out / "phantom_boxes.csv", BOX_COLUMNS, truth)


def write_rexgradient(n: int, out: Path, options: Options, progress: Callable[[int], None]) -> None:
    """Write ``n`` studies as ReXGradient-160K.

    As in the release, paths are seen from ``metadata``, views are written in many ways, and some are ``UNKNOWN`` or none. Every
    9th report has no findings (``None`` in letters), and every 31st has no text.
    """
    studies: dict[str, dict[str, Any]] = {"train": {}, "valid": {}, "test": {}}
    for i, study in enumerate(sample_cohort(n, options, ("train", "valid", "test"))):
        rng, plan = stream(options, 13, i), study.plan
        patient, accession = f"GRDN{study.patient:09d}", f"GRDN{rng.bytes(6).hex().upper()}"
        unit = f"1.2.826.0.1.{int(rng.integers(10**9))}.{i}"
        frontal = ("UNKNOWN", None, "POSTERO_ANTERIOR")[i // 11 % 3] if i % 11 == 10 else plan.view
        pictures = [(frontal, render(plan, options.size).image)]
        if plan.view == "PA":
            pictures.append(("LATERAL" if i % 3 else "LL", render_lateral(plan, options.size)))
        paths = []
        for k, (_, picture) in enumerate(pictures):
            below = Path(patient, accession, "studies", unit, "series", f"{unit}.{k}", "instances", f"{unit}.{k}.1.png")
            (out / "deid_png" / below).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(out / "deid_png" / below)
            paths.append(f"../deid_png/{below}")
        empty = i % 31 == 30
        studies[study.split][f"p{patient}_a{accession}_st{unit}"] = {
            "PatientID": patient, "AccessionNumber": accession, "StudyInstanceUid": unit, "PatientSex": plan.sex,
            "PatientAge": f"{plan.age:03d}Y", "StudyDate": "20200101", "Indication": "chest pain", "Comparison": "None",
            "Findings": "None" if i % 9 == 8 or empty else plan.report.findings,
            "Impression": None if empty else plan.report.impression, "ImagePath": paths,
            "ImageViewPosition": [view for view, _ in pictures],
        }  # fmt: skip
        progress(i + 1)
    (out / "metadata").mkdir()
    for name, content in studies.items():
        (out / "metadata" / f"{name}_metadata_view_position.json").write_text(json.dumps(content))
