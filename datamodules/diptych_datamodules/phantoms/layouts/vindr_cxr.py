"""Phantoms as VinDr-CXR, and as the Kaggle challenge that was made of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from diptych_datamodules.phantoms.layouts.cohort import BOX_COLUMNS, Options, box_rows, stream, write_csv
from diptych_datamodules.phantoms.layouts.dicom import RSNA_MIX, dicom_uids, write_dicom
from diptych_datamodules.phantoms.plan import render

__all__ = ["KAGGLE_CLASSES", "VINDR_LABELS", "write_vindr_cxr"]

VINDR_LABELS = (
    "Aortic enlargement", "Atelectasis", "Calcification", "Cardiomegaly", "Clavicle fracture", "Consolidation", "Edema",
    "Emphysema", "Enlarged PA", "ILD", "Infiltration", "Lung Opacity", "Lung cavity", "Lung cyst", "Mediastinal shift",
    "Nodule/Mass", "Pleural effusion", "Pleural thickening", "Pneumothorax", "Pulmonary fibrosis", "Rib fracture",
    "Other lesion", "COPD", "Lung tumor", "Pneumonia", "Tuberculosis", "Other diseases", "No finding",
)  # fmt: skip
"""The columns of the tables of labels."""
KAGGLE_CLASSES = {
    "Atelectasis": 1, "Cardiomegaly": 3, "Consolidation": 4, "Lung Opacity": 7, "Nodule/Mass": 8, "Pleural effusion": 10,
    "Pneumothorax": 12, "No finding": 14,
}  # fmt: skip
"""The challenge's number of each class that phantoms have."""

_NAMES = {"Nodule": "Nodule/Mass", "Pleural Effusion": "Pleural effusion", "Support Devices": ""}
_CORNERS = ("x_min", "y_min", "x_max", "y_max")


def write_vindr_cxr(n: int, out: Path, options: Options, progress: Callable[[int], None]) -> None:
    """Write ``n`` images, one a patient, as VinDr-CXR, with the ``train.csv`` of the Kaggle challenge beside.

    Pictures are of different sizes and not square, and boxes are in their pixels. Three of seventeen readers read a training
    image. The first draws what is there, the second a little beside it, and the third overlooks one finding in three. Every
    sixth image is the test, with one row each. Every fifth image has also a finding without a box, as tuberculosis.
    """
    labels: dict[str, list[list[object]]] = {"train": [], "test": []}
    boxes: dict[str, list[list[object]]] = {"train": [], "test": []}
    kaggle: list[list[object]] = []
    truth: list[list[object]] = []
    for i in range(n):
        rng = stream(options, 10, i)
        radiograph = render(options.plan(i, mix=RSNA_MIX), options.size)
        image, part = rng.bytes(16).hex(), "test" if i % 6 == 5 else "train"
        across, down = 2 + i % 2, 2.5
        size = (options.size * across, int(options.size * down))
        path = out / part / f"{image}.dicom"
        picture = np.asarray(cv2.resize(radiograph.image, size, interpolation=cv2.INTER_CUBIC), dtype=np.uint8)
        write_dicom(path, picture, radiograph.plan, "", dicom_uids(rng), inverted=i % 9 == 4)
        scale = np.array([across, down, across, down])
        own: list[list[object]] = (
            [[f"R{reader + 1}"] for reader in rng.permutation(17)[:3]] if part == "train" else [[]]
        )
        for order, reader in enumerate(own):
            drawn = []
            for finding in radiograph.findings:
                name = _NAMES.get(finding.name, finding.name)
                if name and not (order == 2 and rng.random() < 1 / 3):
                    drawn.append((name, (np.array(finding.box) * scale + (order == 1)).round().astype(int).tolist()))
            seen = {name for name, _ in drawn} | ({"Tuberculosis"} if i % 5 == 3 else set())
            labels[part].append([image, *reader, *(int(name in seen) for name in VINDR_LABELS[:-1]), int(not seen)])
            lines = drawn or [("No finding", ["", "", "", ""])]
            boxes[part] += [[image, *reader, name, *box] for name, box in lines]
            if part == "train":
                kaggle += [[image, name, KAGGLE_CLASSES[name], *reader, *box] for name, box in lines]
        truth += [[*row[:5], *(np.array(row[5:], float) * scale)] for row in box_rows(image, radiograph)]
        progress(i + 1)
    (out / "annotations").mkdir()
    for part, column in (("train", ["rad_id"]), ("test", [])):
        write_csv(out / "annotations" / f"image_labels_{part}.csv", ["image_id", *column, *VINDR_LABELS], labels[part])
        write_csv(
            out / "annotations" / f"annotations_{part}.csv", ["image_id", *column, "class_name", *_CORNERS], boxes[part]
        )
    write_csv(out / "train.csv", ("image_id", "class_name", "class_id", "rad_id", *_CORNERS), kaggle)
    write_csv(out / "phantom_boxes.csv", BOX_COLUMNS, truth)
