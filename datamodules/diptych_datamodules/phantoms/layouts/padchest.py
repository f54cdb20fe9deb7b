"""Phantoms as PadChest: 16-bit PNG files in numbered folders, and one table with Spanish reports and labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from diptych_datamodules.phantoms.lateral import render_lateral
from diptych_datamodules.phantoms.layouts.cohort import Options, sample_cohort, stream, write_csv
from diptych_datamodules.phantoms.plan import render

__all__ = ["write_padchest"]

_HEADER = (
    "", "ImageID", "ImageDir", "StudyDate_DICOM", "StudyID", "PatientID", "PatientBirth", "PatientSex_DICOM",
    "ViewPosition_DICOM", "Projection", "MethodProjection", "Pediatric", "Modality_DICOM", "Manufacturer_DICOM",
    "PhotometricInterpretation_DICOM", "PixelRepresentation_DICOM", "PixelAspectRatio_DICOM", "SpatialResolution_DICOM",
    "BitsStored_DICOM", "WindowCenter_DICOM", "WindowWidth_DICOM", "Rows_DICOM", "Columns_DICOM", "XRayTubeCurrent_DICOM",
    "Exposure_DICOM", "ExposureInuAs_DICOM", "ExposureTime", "RelativeXRayExposure_DICOM", "ReportID", "Report",
    "MethodLabel", "Labels", "Localizations", "LabelsLocalizationsBySentence", "labelCUIS", "LocalizationsCUIS",
)  # fmt: skip
_BROKEN = "216840111366964012819207061112010307142602253_04-014-084"  # one of the files that the release has broken
# The label of each finding, and how a report of the release has it: in stems, without accents.
_SPANISH = {
    "Atelectasis": ("laminar atelectasis", "atelectasi laminar"),
    "Cardiomegaly": ("cardiomegaly", "cardiomegali"),
    "Consolidation": ("consolidation", "consolid"),
    "Lung Opacity": ("infiltrates", "infiltr"),
    "Nodule": ("nodule", "nodul"),
    "Pleural Effusion": (" pleural effusion", "derram pleural"),
    "Pneumothorax": ("pneumothorax", "neumotorax"),
    "Support Devices": ("pacemaker", "marcapas"),
}
_SIDES = {"left": "izquierd", "right": "derech", None: ""}
_SHOWN = {"PA": "POSTEROANTERIOR", "L": "LATERAL"}


def write_padchest(n: int, out: Path, options: Options, progress: Callable[[int], None]) -> None:
    """Write ``n`` studies as PadChest.

    As in the release, PNG files have 16 bits, some labels begin with a blank, and cells span lines. Every 19th image has no
    labels (``nan``), and every 17th an empty one beside the others. The first file of the 6th study is broken, and has a name
    that the release's broken files have. Physicians label the patients of the test, and the first study of another.
    """
    rows: list[list[object]] = []
    studies = sample_cohort(n, options)
    mixed = max((study.patient for study in studies if study.split == "train" and study.number > 1), default=-1)
    for i, study in enumerate(studies):
        plan, rng = study.plan, stream(options, 11, i)
        pictures = [("PA" if plan.view == "PA" else "AP_horizontal", render(plan, options.size).image)]
        if plan.view == "PA" and i % 3 == 0:
            pictures.append(("L", render_lateral(plan, options.size)))
        labels = list(dict.fromkeys(_SPANISH[spec.name][0] for spec in plan.specs)) or ["normal"]
        sentences = [f"{_SPANISH[spec.name][1]} {_SIDES.get(spec.side, '')}".strip() for spec in plan.specs]
        report = "".join(f" {sentence} ." for sentence in sentences or ["sin hallazg patolog edad pacient"])
        number = f"1{i:05d}{rng.integers(10**15, 9 * 10**15)}{rng.integers(10**16, 9 * 10**16)}"
        for k, (projection, picture) in enumerate(pictures):
            row = len(rows)
            name = _BROKEN if i == 5 and not k else f"{number}_{row:02d}-{rng.integers(200):03d}-{k:03d}"
            listed = str([*labels, ""]) if row % 17 == 5 else "nan" if row % 19 == 7 else str(labels)
            path = out / ("0" if i < n // 2 else "54") / f"{name}.png"
            path.parent.mkdir(exist_ok=True)
            fine = picture.astype(np.uint16) * 256 + rng.integers(0, 256, picture.shape, dtype=np.uint16)
            encoded = cv2.imencode(".png", fine)[1].tobytes()
            path.write_bytes(encoded[: len(encoded) // 2] if i == 5 and not k else encoded)
            physician = study.split == "test" or (study.patient == mixed and study.number == 1)
            rows.append(
                [row, path.name, path.parent.name, 20140915, number, f"{study.patient:039d}", 1960.0, plan.sex,
                 _SHOWN.get(projection, "nan"), projection, "Manual review of DICOM fields", "No", "CR", "Phantom",
                 "MONOCHROME2", 0, None, None, 12, 2092, 2251, *picture.shape, 250, 2, 2500, 10, -1.42, 4_765_777 + i, report,
                 "Physician" if physician else "RNN_model", listed, [], [labels], "['C0032227'\n 'C0018800']", []]
            )  # fmt: skip
        progress(i + 1)
    write_csv(out / "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv.gz", _HEADER, rows)
