"""Phantoms as the two open sets in PNG: NIH ChestX-ray14 (labels, boxes, lists) and Open-i (XML and the Kaggle copy)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from xml.sax.saxutils import escape

from PIL import Image

from diptych_datamodules.phantoms.lateral import render_lateral
from diptych_datamodules.phantoms.layouts.cohort import BOX_COLUMNS, Options, box_rows, sample_cohort, stream, write_csv
from diptych_datamodules.phantoms.plan import PhantomPlan, render

__all__ = ["write_nih", "write_openi"]

_NIH = {"Lung Opacity": "Infiltration", "Pleural Effusion": "Effusion", "Support Devices": ""}
_SIDE = 1024  # boxes are in pixels of the released pictures, whatever size ours are
_ENTRY = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,OriginalImage[Width,Height],"
    "OriginalImagePixelSpacing[x,y]"
)


def write_nih(n: int, out: Path, options: Options, progress: Callable[[int], None]) -> None:
    """Write ``n`` images as ChestX-ray14.

    As in the release, the header's commas are not quoted. Images are spread over numbered folders, and some PNG files are
    RGBA. The table of boxes calls an infiltration ``Infiltrate``, and has test images alone. The lists of the official split
    are written too. Those of CheXNet's split are in ``chexnet/``.
    """
    studies = sample_cohort(n, options)
    rows: list[str] = []
    boxes: list[str] = []
    truth: list[list[object]] = []
    lists: dict[str, list[str]] = {"train_val_list.txt": [], "test_list.txt": []}
    other: dict[str, list[str]] = {"train_list.txt": [], "val_list.txt": [], "test_list.txt": []}
    order = sorted({study.patient for study in studies})
    for i, study in enumerate(studies):
        radiograph = render(study.plan, options.size)
        name = f"{study.patient + 1:08d}_{study.number - 1:03d}.png"
        folder = out / f"images_{1 + i * 2 // n:03d}" / "images"
        folder.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(radiograph.image)
        (picture.convert("RGBA") if i % 13 == 5 else picture).save(folder / name)
        named = sorted({_NIH.get(spec.name, spec.name) for spec in study.plan.specs} - {""})
        sex = study.plan.sex
        entry = (
            f"{name},{'|'.join(named) or 'No Finding'},{study.number - 1},{study.patient + 1},{study.plan.age},{sex}"
        )
        rows.append(f"{entry},{study.plan.view},2682,2749,0.143,0.143")
        lists["test_list.txt" if study.split == "test" else "train_val_list.txt"].append(name)
        place = order.index(study.patient) / len(order)
        which = "train" if place < 0.7 else "val" if place < 0.8 else "test"
        other[f"{which}_list.txt"].append(f"{name} " + " ".join("0" for _ in range(14)))
        scale = _SIDE / options.size
        truth += box_rows(name, radiograph, scale)
        for finding in radiograph.findings:
            label = _NIH.get(finding.name, finding.name)
            if study.split == "test" and label:
                x0, y0, x1, y1 = (value * scale for value in finding.box)
                label = "Infiltrate" if label == "Infiltration" else label
                boxes.append(f"{name},{label},{x0},{y0},{x1 - x0},{y1 - y0}")
        progress(i + 1)
    (out / "Data_Entry_2017_v2020.csv").write_text("\n".join([_ENTRY, *rows]) + "\n")
    (out / "BBox_List_2017.csv").write_text("\n".join(["Image Index,Finding Label,Bbox [x,y,w,h],,,", *boxes]) + "\n")
    (out / "chexnet").mkdir()
    for here, named_lists in ((out, lists), (out / "chexnet", other)):
        for name, lines in named_lists.items():
            (here / name).write_text("\n".join(lines))  # as in the release, the last line has no newline
    write_csv(out / "phantom_boxes.csv", BOX_COLUMNS, truth)


_MESH = {
    "Lung Opacity": "Opacity/lung", "Pleural Effusion": "Pleural Effusion", "Atelectasis": "Pulmonary Atelectasis",
    "Support Devices": "Catheters, Indwelling", "Pneumothorax": "Pneumothorax", "Cardiomegaly": "Cardiomegaly/mild",
    "Consolidation": "Consolidation", "Nodule": "Nodule/lung",
}  # fmt: skip


def _xml(uid: int, sections: dict[str, str], terms: list[str], images: list[str]) -> str:
    texts = "".join(f'<AbstractText Label="{name}">{escape(text)}</AbstractText>' for name, text in sections.items())
    majors = "".join(f"<major>{escape(term)}</major>" for term in terms)
    parents = "".join(f'<parentImage id="{name}"><figureId>F1</figureId></parentImage>' for name in images)
    return (
        f'<?xml version="1.0" encoding="utf-8"?>\n<eCitation><uId id="CXR{uid}"/><IUXRId id="{uid}"/><MedlineCitation>'
        f"<Article><Abstract>{texts}</Abstract></Article></MedlineCitation><MeSH>{majors}</MeSH>{parents}</eCitation>\n"
    )


def _terms(plan: PhantomPlan) -> list[str]:
    return sorted({_MESH[spec.name] for spec in plan.specs}) or ["normal"]


def write_openi(n: int, out: Path, options: Options, progress: Callable[[int], None]) -> None:
    """Write ``n`` reports as Open-i, and the same as the Kaggle copy in ``kaggle/``.

    As in the release, words are ``XXXX``, and sections are missing: every 8th report has no findings, and every 31st has no
    text at all. One report in 20 was not indexed. The 5th report has no image, and the 4th lacks a file.
    """
    reports: list[list[object]] = []
    projections: list[list[object]] = []
    (out / "ecgen-radiology").mkdir()
    (out / "NLMCXR_png").mkdir()
    (out / "kaggle" / "images" / "images_normalized").mkdir(parents=True)
    for i, study in enumerate(sample_cohort(n, options)):
        uid, plan, rng = i + 1, study.plan, stream(options, 7, i)
        views = [("Frontal", render(plan, options.size).image)]
        if plan.view == "PA":
            views.append(("Lateral", render_lateral(plan, options.size)))
        sections = {"COMPARISON": "None.", "INDICATION": "XXXX-year-old with chest pain"}
        if i % 8 != 7 and i % 31 != 30:
            sections["FINDINGS"] = plan.report.findings.replace("chest", "XXXX", 1)
        if i % 31 != 30:
            sections["IMPRESSION"] = plan.report.impression
        terms = ["No Indexing"] if i % 20 == 19 else _terms(plan)
        names = []
        number = int(rng.integers(1, 3000))  # images of a report share it
        for k, (view, picture) in enumerate(views if i != 4 else []):
            stem = f"{uid}_IM-{number:04d}-{k + 1}001"
            names.append(f"CXR{uid}_{stem}")
            projections.append([uid, f"{stem}.dcm.png", view])
            if i != 3 or k:
                Image.fromarray(picture).save(out / "NLMCXR_png" / f"{names[-1]}.png")
                Image.fromarray(picture).save(out / "kaggle" / "images" / "images_normalized" / f"{stem}.dcm.png")
        (out / "ecgen-radiology" / f"{uid}.xml").write_text(_xml(uid, sections, terms, names))
        texts = [sections.get(name, "") for name in ("INDICATION", "COMPARISON", "FINDINGS", "IMPRESSION")]
        reports.append([uid, ";".join(terms), ";".join(term.split("/")[0] for term in terms), "Xray Chest PA", *texts])
        progress(uid)
    columns = ("uid", "MeSH", "Problems", "image", "indication", "comparison", "findings", "impression")
    write_csv(out / "kaggle" / "indiana_reports.csv", columns, reports)
    write_csv(out / "kaggle" / "indiana_projections.csv", ("uid", "filename", "projection"), projections)
