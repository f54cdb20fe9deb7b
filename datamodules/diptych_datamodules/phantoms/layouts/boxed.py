"""Phantoms as the sets whose findings or objects are boxed: ChestX-Det10 and object-CXR."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageDraw

from diptych_datamodules.phantoms.layouts.cohort import BOX_COLUMNS, Options, box_rows, sample_cohort, stream, write_csv
from diptych_datamodules.phantoms.plan import render

__all__ = ["write_chestx_det10", "write_object_cxr"]

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
        pencil, shapes = ImageDraw.Draw(drawn), []
        for _ in range(int(rng.integers(1, 4)) if i % 2 else 0):
            kind, (width, height) = int(rng.integers(3)), rng.integers(6, 12, 2).tolist()
            x, y = (int(rng.integers(2, side - 14)) for side in size)
            box = (x, y, x + width, y + height)
            points = box if kind < 2 else (x, y, x + width, y + height // 2, x + width // 2, y + height)
            (pencil.rectangle, pencil.ellipse, pencil.polygon)[kind](points, fill=255)
            shapes.append(" ".join(map(str, (kind, *points))))
        split = "dev" if i % 4 == 3 or i % 8 == 2 else "train"
        (out / split).mkdir(exist_ok=True)
        drawn.save(out / split / name, quality=100, subsampling=0)
        rows[split].append((name, ";".join(shapes)))
        progress(i + 1)
    for split, listed in rows.items():
        write_csv(out / f"{split}.csv", ("image_name", "annotation"), listed)
