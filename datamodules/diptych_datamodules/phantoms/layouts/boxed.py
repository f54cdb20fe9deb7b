"""Phantoms as the sets whose findings or objects are boxed: ChestX-Det10, object-CXR, TBX11K, and COVIDx."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageDraw

from diptych_datamodules.phantoms.layouts.cohort import BOX_COLUMNS, Options, box_rows, sample_cohort, stream, write_csv
from diptych_datamodules.phantoms.plan import render

__all__ = ["write_chestx_det10", "write_covidx", "write_object_cxr", "write_tbx11k"]

_DET10 = {"Lung Opacity": "Fibrosis", "Pleural Effusion": "Effusion", "Support Devices": "", "Cardiomegaly": ""}


def write_chestx_det10(n: int, out: Path, options: Options, progress: Callable[[int], None]) -> None:
    """Write ``n`` images as ChestX-Det10.

    As in the release, names are NIH's, boxes are whole pixels of 1024x1024 pictures, and an image without a finding has two
    empty lists. The test has images of patients whose other images are in training: every second training patient with
    several images gives its last one to the test.
    """
    rows: dict[str, list[dict[str, object]]] = {"train": [], "test": []}
    truth: list[list[object]] = []
    studies = sample_cohort(n, options)
    last = {study.patient: study.number for study in studies}
    scale = 1024 / options.size
    for i, study in enumerate(studies):
        shared = study.patient % 2 == 1 and study.number == last[study.patient] > 1
        split = "test" if shared or study.split == "test" else "train"
        name = f"{study.patient + 1:08d}_{study.number - 1:03d}.png"
        radiograph = render(study.plan, options.size)
        (out / f"{split}_data").mkdir(exist_ok=True)
        Image.fromarray(radiograph.image).save(out / f"{split}_data" / name)
        named = [(_DET10.get(finding.name, finding.name), finding.box) for finding in radiograph.findings]
        boxed = [(label, [round(value * scale) for value in box]) for label, box in named if label]
        rows[split].append(
            {"file_name": name, "syms": [label for label, _ in boxed], "boxes": [box for _, box in boxed]}
        )
        truth += box_rows(name, radiograph, scale)
        progress(i + 1)
    for split, listed in rows.items():
        (out / f"{split}.json").write_text(json.dumps(listed))
    write_csv(out / "phantom_boxes.csv", BOX_COLUMNS, truth)


def write_object_cxr(n: int, out: Path, options: Options, progress: Callable[[int], None]) -> None:
    """Write ``n`` images as object-CXR, of which three in eight are in ``dev``.

    Sizes differ from image to image. Every second image has one to three white objects: a bar (a rectangle), a button (an
    ellipse) or a pendant (a polygon). Shapes are in pixels of their own image, and images without objects have an empty cell.
    """
    rows: dict[str, list[tuple[str, str]]] = {"train": [], "dev": []}
    for i in range(n):
        rng, name = stream(options, 8, i), f"{i + 1:05d}.jpg"
        size = (options.size + 8 * (i % 3), options.size + 4 * (i % 2))
        drawn = Image.fromarray(render(options.plan(i), options.size).image // 2 + 64).resize(size)
        pencil = ImageDraw.Draw(drawn)
        shapes: list[str] = []
        for _ in range(int(rng.integers(1, 4)) if i % 2 else 0):
            kind, (width, height) = int(rng.integers(3)), rng.integers(6, 12, 2).tolist()
            x, y = (int(rng.integers(2, side - 14)) for side in size)
            box = (x, y, x + width, y + height)
            points = box if kind < 2 else (x, y, x + width, y + height // 2, x + width // 2, y + height)
            getattr(pencil, ("rectangle", "ellipse", "polygon")[kind])(points, fill=255)
            shapes.append(" ".join(map(str, (kind, *points))))
        split = "dev" if i % 4 == 3 or i % 8 == 2 else "train"
        (out / split).mkdir(exist_ok=True)
        drawn.save(out / split / name, quality=100, subsampling=0)
        rows[split].append((name, ";".join(shapes)))
        progress(i + 1)
    for split, listed in rows.items():
        write_csv(out / f"{split}.csv", ("image_name", "annotation"), listed)


_TB = {"Consolidation": 1, "Nodule": 2, "Lung Opacity": 1}
_CATEGORIES = ("ActiveTuberculosis", "ObsoletePulmonaryTuberculosis", "PulmonaryTuberculosis")


def write_tbx11k(n: int, out: Path, options: Options, progress: Callable[[int], None]) -> None:
    """Write ``n`` images as TBX11K: its lists, COCO boxes, and a folder for each class.

    As in the release, boxes are fractions of pixels of 512x512 pictures, names are numbered by class, and the fifth image of
    tuberculosis has no box.
    """
    rows: dict[str, list[tuple[str, list[tuple[int, list[float]]]]]] = {"train": [], "val": []}
    truth: list[list[object]] = []
    scale, counts = 512 / options.size, {"health": 0, "sick": 0, "tb": 0}
    for i in range(n):
        radiograph = render(options.plan(i), options.size)
        found = [(_TB[f.name], [v * scale for v in f.box]) for f in radiograph.findings if f.name in _TB]
        folder = "tb" if found else "sick" if radiograph.findings else "health"
        counts[folder] += 1
        name = f"{folder}/{folder[0] if folder != 'tb' else 'tb'}{counts[folder]:04d}.png"
        (out / "imgs" / folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(radiograph.image).save(out / "imgs" / name)
        rows["val" if i % 4 == 3 else "train"].append((name, [] if counts["tb"] == 5 and found else found))
        truth += box_rows(name, radiograph, scale)
        progress(i + 1)
    (out / "lists").mkdir()
    (out / "annotations" / "json").mkdir(parents=True)
    for split, listed in rows.items():
        (out / "lists" / f"TBX11K_{split}.txt").write_text("".join(f"{name}\n" for name, _ in listed))
        size = {"width": 512, "height": 512}
        boxes = [(k, category, box) for k, (_, found) in enumerate(listed, 1) for category, box in found]
        content = {
            "info": [{"description": "TBX11K Dataset"}],
            "licenses": [{"id": 1}],
            "categories": [{"id": k, "name": name, "supercategory": "Tuberculosis"} for k, name in enumerate(_CATEGORIES, 1)],
            "images": [{"id": k, "file_name": name, **size, "license": 1} for k, (name, _) in enumerate(listed, 1)],
            "annotations": [
                {"id": k, "image_id": image, "category_id": category, "iscrowd": 0, "area": int((x1 - x0) * (y1 - y0)),
                 "bbox": [x0, y0, x1 - x0, y1 - y0], **size}
                for k, (image, category, (x0, y0, x1, y1)) in enumerate(boxes, 1)
            ],
        }  # fmt: skip
        (out / "annotations" / "json" / f"TBX11K_{split}.json").write_text(json.dumps(content))
    write_csv(out / "phantom_boxes.csv", BOX_COLUMNS, truth)


def write_covidx(n: int, out: Path, options: Options, progress: Callable[[int], None]) -> None:
    """Write ``n`` images as COVIDx CXR-4, and the lists of three classes (CXR-3A) of the same images.

    Each line has patient, file, label and source. As in the release, names repeat but for their endings, one has spaces, and
    each source numbers its patients from 1.
    """
    lists: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    three: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for i, study in enumerate(sample_cohort(n, options)):
        radiograph = render(study.plan, options.size)
        names = {finding.name for finding in radiograph.findings}
        covid = bool(names & {"Consolidation", "Lung Opacity"})
        label = "COVID-19" if covid else "pneumonia" if names else "normal"
        name = f"{'image (1)' if i == 2 else f'{i // 2 + 1:06d}'}.{'png' if i % 2 else 'jpg'}"
        (out / study.split).mkdir(exist_ok=True)
        Image.fromarray(radiograph.image).save(out / study.split / name)
        patient, source = study.patient // 2 + 1, ("cohen", "actmed")[study.patient % 2]
        lists[study.split].append(f"{patient} {name} {'positive' if covid else 'negative'} {source}")
        three[study.split].append(f"{patient} {name} {label} {source}")
        progress(i + 1)
    for split, lines in lists.items():
        (out / f"{split}.txt").write_text("".join(f"{line}\n" for line in lines))
        if split != "val":
            (out / f"{split}_COVIDx_CXR-3A.txt").write_text("".join(f"{line}\n" for line in three[split]))
