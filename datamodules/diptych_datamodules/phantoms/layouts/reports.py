"""Phantoms as MIMIC-CXR-JPG with MIMIC-CXR's reports, and as CheXpert v1.0-small with CheXpert Plus' report table."""

from __future__ import annotations

import textwrap
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diptych_datamodules.phantoms.lateral import render_lateral
from diptych_datamodules.phantoms.layouts.cohort import (
    BOX_COLUMNS,
    Options,
    Study,
    box_rows,
    release_labels,
    sample_cohort,
    stream,
    write_csv,
)
from diptych_datamodules.phantoms.plan import PhantomPlan, render

__all__ = ["CHEXPERT_LABELS", "MIMIC_LABELS", "mimic_report", "write_chexpert", "write_mimic_cxr"]

CHEXPERT_LABELS = (
    "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation",
    "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture", "Support Devices",
)  # fmt: skip
"""CheXpert's order of the labels."""
MIMIC_LABELS = tuple(sorted(CHEXPERT_LABELS))
"""MIMIC-CXR's order of the labels."""

_METADATA = (
    "dicom_id", "subject_id", "study_id", "PerformedProcedureStepDescription", "ViewPosition", "Rows", "Columns", "StudyDate",
    "StudyTime", "ProcedureCodeSequence_CodeMeaning", "ViewCodeSequence_CodeMeaning",
    "PatientOrientationCodeSequence_CodeMeaning",
)  # fmt: skip
_PLUS = (
    "path_to_image", "path_to_dcm", "frontal_lateral", "ap_pa", "deid_patient_id", "patient_report_date_order", "report",
    "section_narrative", "section_clinical_history", "section_history", "section_comparison", "section_technique",
    "section_procedure_comments", "section_findings", "section_impression", "section_end_of_impression", "section_summary",
    "section_accession_number", "age", "sex", "race", "ethnicity", "interpreter_needed", "insurance_type", "recent_bmi",
    "deceased", "split",
)  # fmt: skip
_FIRST_TEST_PATIENT = 64_741  # the first patient of CheXpert's test set
_RARE_VIEWS = ("LAO", "RAO", "SWIMMERS", "PA LLD", "AP AXIAL")
_VIEW_MEANING = {"PA": "postero-anterior", "AP": "antero-posterior", "LATERAL": "lateral", "LL": "left lateral", "": ""}


def _jpeg(path: Path, image: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, quality=92)


def mimic_report(study: Study, sections: str) -> str:
    """A report in the form of MIMIC-CXR's files: a centred title, indented lines, capitals, ``___`` for removed words.

    Args:
        study: the study it belongs to.
        sections: ``both``, ``impression``, ``conclusion`` (both under rarer headers), ``last_paragraph`` (no headers) or
            ``none`` (nothing to read).
    """
    plan, woman = study.plan, study.plan.sex == "F"
    portable = plan.view == "AP"
    lines = [
        "FINAL REPORT",
        f"EXAMINATION:  CHEST ({'PORTABLE AP' if portable else 'PA AND LAT'})",
        "",
        f"INDICATION:  ___ year old {'woman' if woman else 'man'} with ___  // evaluate for interval change",
        "",
        f"TECHNIQUE:  {'Portable AP view' if portable else 'PA and lateral views'} of the chest.",
        "",
        f"COMPARISON:  {'___' if plan.comparison else 'None.'}",
        "",
    ]
    parts: list[tuple[str, str]] = []
    if sections == "both":
        parts = [("FINDINGS: ", plan.report.findings), ("IMPRESSION: ", plan.report.impression)]
    elif sections == "impression":
        parts = [("IMPRESSION: ", f"{plan.report.findings} {plan.report.impression}")]
    elif sections == "conclusion":
        parts = [("CHEST, TWO VIEWS: ", plan.report.findings), ("CONCLUSION: ", plan.report.impression)]
    elif sections == "last_paragraph":
        lines = lines[:3]
        parts = [("", f"{plan.report.findings} {plan.report.impression}")]
    for header, text in parts:
        lines += [header, ""] if header else []
        lines += [*textwrap.wrap(text, 76), ""]
    return "\n".join([" " * 33 + lines[0], *(f" {line}" for line in lines[1:])]) + "\n"


def write_mimic_cxr(n: int, out: Path, options: Options, progress: Callable[[int], None]) -> None:
    """Write ``n`` studies as MIMIC-CXR-JPG 2.1.0 with ``mimic-cxr-reports.zip``.

    Erect studies have a frontal picture and mostly a lateral one. Portable studies have a frontal picture alone.

    As in the release, some studies lack a row of labels (every 23rd), a readable report (every 29th) or any report (every
    37th). Some reports lack a header of the impression. Some frontal pictures lack a ViewPosition, and the second picture of
    every 11th study has a rare one. The first file of the 7th study is missing, and its row in the split table is there
    twice. One table is not gzipped, as if the user had unpacked it.
    """
    studies = sample_cohort(n, options, ("train", "validate", "test"))
    ids = stream(options, 1)
    subjects = np.sort(ids.choice(9_999_999, len({s.patient for s in studies}), replace=False)) + 10_000_000
    numbers = ids.choice(9_999_999, n, replace=False) + 50_000_000
    metadata: list[list[object]] = []
    splits: list[list[object]] = []
    labels: list[list[object]] = []
    radiologist: list[list[object]] = []
    boxes: list[list[object]] = []
    with zipfile.ZipFile(out / "mimic-cxr-reports.zip", "w", zipfile.ZIP_DEFLATED) as reports:
        for i, study in enumerate(studies):
            rng = stream(options, 2, i)
            plan, subject, number = study.plan, int(subjects[study.patient]), int(numbers[i])
            folder = f"files/p{subject // 1_000_000}/p{subject}"
            lateral = plan.view == "PA" and rng.random() < 0.75
            title = "CHEST (PORTABLE AP)" if plan.view == "AP" else "CHEST (PA AND LAT)"
            date = f"21{rng.integers(10, 99)}{rng.integers(1, 13):02d}{rng.integers(1, 29):02d}"
            clock = int(rng.integers(24)) * 10_000 + int(rng.integers(60)) * 100 + int(rng.integers(60))
            time = clock + int(rng.integers(1000)) / 1000  # a number: 00:07:05 reads 705.0
            frontal = "" if rng.random() < 0.03 else plan.view
            second = "LATERAL" if rng.random() < 0.8 else "LL"
            second = _RARE_VIEWS[i // 11 % 5] if i % 11 == 4 else second
            for position in (frontal, second)[: 1 + lateral]:
                dicom = "-".join(rng.bytes(4).hex() for _ in range(5))
                if position == second:
                    picture = render_lateral(plan, options.size)
                else:
                    radiograph = render(plan, options.size)
                    picture = radiograph.image
                    boxes += box_rows(dicom, radiograph)
                if i != 6 or position != frontal:
                    _jpeg(out / folder / f"s{number}" / f"{dicom}.jpg", picture)
                erect = "Recumbent" if plan.view == "AP" else "Erect"
                meaning = _VIEW_MEANING.get(position, position.lower())
                names = [dicom, subject, number, title, position]
                metadata.append([*names, *picture.shape, date, time, title, meaning, erect])
                splits += [[dicom, number, subject, study.split]] * (2 if i == 6 and position == frontal else 1)
            kinds = ("both", "both", "both", "conclusion", "impression", "last_paragraph")
            sections = "none" if i % 29 == 28 else kinds[rng.integers(6)]
            entry = zipfile.ZipInfo(f"{folder}/s{number}.txt", (1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            if i % 37 != 36:
                reports.writestr(entry, mimic_report(study, sections))
            values = release_labels(plan)
            row: list[object] = [values.get(name, "") for name in MIMIC_LABELS]
            if i % 23 != 22:
                labels.append([subject, number, *row])
            if study.split == "test":
                radiologist.append([number, *row])
            progress(i + 1)
    labels.sort(key=lambda row: (row[0], row[1]))
    write_csv(out / "mimic-cxr-2.0.0-metadata.csv.gz", _METADATA, metadata)
    write_csv(out / "mimic-cxr-2.0.0-split.csv.gz", ("dicom_id", "study_id", "subject_id", "split"), splits)
    for labeller in ("chexpert.csv.gz", "negbio.csv"):
        write_csv(out / f"mimic-cxr-2.0.0-{labeller}", ("subject_id", "study_id", *MIMIC_LABELS), labels)
    renamed = ["Airspace Opacity" if name == "Lung Opacity" else name for name in MIMIC_LABELS]
    write_csv(out / "mimic-cxr-2.1.0-test-set-labeled.csv", ("study_id", *renamed), radiologist)
    write_csv(out / "phantom_boxes.csv", BOX_COLUMNS, boxes)


def write_chexpert(n: int, out: Path, options: Options, progress: Callable[[int], None]) -> None:
    """Write ``n`` studies as CheXpert-v1.0-small, with the report table of CheXpert Plus beside it.

    Training labels are what the reports say, with doubts and gaps. Validation labels are what is there. About a quarter of
    the rows of CheXpert Plus have findings, and all but those of every 27th study have an impression. The first training row
    is there twice, and the file of the next one is missing. The paths of ``valid.csv`` begin with another release's name.

    The test set is that of CheXlocalize: ``CheXpert/test``, and ``CheXpert/test_labels.csv`` without views and ages. Its
    labels by study are in ``groundtruth.csv``.
    """
    studies = sample_cohort(n, options, ("train", "valid"))
    rows: dict[str, list[list[object]]] = {"train": [], "valid": []}
    plus: list[list[object]] = []
    boxes: list[list[object]] = []
    order = {split: sorted({s.patient for s in studies if s.split == split}) for split in rows}
    for i, study in enumerate(studies):
        rng = stream(options, 3, i)
        plan, split = study.plan, study.split
        patient = order[split].index(study.patient) + (1 if split == "train" else 64_541)
        radiograph = render(plan, options.size)
        folder = f"{split}/patient{patient:05d}/study{study.number}"
        views = [("frontal", radiograph.image)]
        if plan.view == "PA" and rng.random() < 0.35:
            views.append(("lateral", render_lateral(plan, options.size)))
        values = release_labels(plan) if split == "train" else _radiologist_labels(study.plan)
        written = rng.random() < 0.25 and i % 27 != 26
        impression = plan.report.impression if written else plan.report.text.replace("\n", " ")
        for k, (view, picture) in enumerate(views, start=1):
            name = f"{folder}/view{k}_{view}.jpg"
            if split == "valid" or len(rows[split]) != 2:  # the second image: the first has two rows
                _jpeg(out / "CheXpert-v1.0-small" / name, picture)
            if view == "frontal":
                boxes += box_rows(name, radiograph)
            direction = plan.view if view == "frontal" else ""
            sex = "Female" if plan.sex == "F" else "Male"
            labels: list[object] = [values.get(label, "") for label in CHEXPERT_LABELS]
            release = "CheXpert-v1.0-small" if split == "train" else "CheXpert-v1.0"
            rows[split].append([f"{release}/{name}", sex, plan.age, view.capitalize(), direction, *labels])
            if split == "train" and len(rows[split]) == 1:
                rows[split].append(rows[split][0])
            cells: dict[str, object] = {
                "path_to_image": name,
                "path_to_dcm": name.replace(".jpg", ".dcm"),
                "frontal_lateral": view.capitalize(),
                "ap_pa": direction,
                "deid_patient_id": f"patient{patient:05d}",
                "patient_report_date_order": study.number,
                "section_findings": plan.report.findings if written else "",
                "section_impression": "" if i % 27 == 26 else impression,
                "age": plan.age,
                "sex": sex,
                "split": split,
            }
            head = f"FINDINGS: \n{cells['section_findings']}\n\n" if written else ""
            cells["report"] = (
                f"NARRATIVE: \nCHEST, {len(views)} VIEW(S)\n\n{head}IMPRESSION: \n{cells['section_impression']}\n"
            )
            plus.append([cells.get(column, "") for column in _PLUS])
        progress(i + 1)
    columns = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *CHEXPERT_LABELS)
    for split, table in rows.items():
        write_csv(out / "CheXpert-v1.0-small" / f"{split}.csv", columns, table)
    write_csv(out / "df_chexpert_plus_240401.csv", _PLUS, plus)
    _write_test(n, out, options)
    write_csv(out / "phantom_boxes.csv", BOX_COLUMNS, boxes)


def _write_test(n: int, out: Path, options: Options) -> None:
    """The test set: one study each of more patients, with the labels of radiologists."""
    images: list[list[object]] = []
    studies: list[list[object]] = []
    for i in range(max(2, n // 8)):
        plan = options.plan(n + i)
        labels = [int(value) for value in _radiologist_labels(plan).values()]
        study = f"test/patient{_FIRST_TEST_PATIENT + i}/study1"
        pictures = {"view1_frontal": render(plan, options.size).image}
        if i % 3 == 1:
            pictures["view2_lateral"] = render_lateral(plan, options.size)
        for name, picture in pictures.items():
            _jpeg(out / "CheXpert" / study / f"{name}.jpg", picture)
            images.append([f"{study}/{name}.jpg", *map(float, labels)])
        studies.append([f"CheXpert-v1.0/{study}", *labels])
    write_csv(out / "CheXpert" / "test_labels.csv", ("Path", *CHEXPERT_LABELS), images)
    write_csv(out / "groundtruth.csv", ("Study", *CHEXPERT_LABELS), studies)


def _radiologist_labels(plan: PhantomPlan) -> dict[str, float]:
    """Labels without doubts and gaps, as those of radiologists for the validation and test images."""
    present = {"Lung Lesion" if spec.name == "Nodule" else spec.name for spec in plan.specs}
    labels = {label: float(label in present) for label in CHEXPERT_LABELS}
    labels["No Finding"] = float(present <= {"Support Devices"})
    return labels
