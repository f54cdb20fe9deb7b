"""Layouts of phantoms in DICOM: RSNA with boxes, and SIIM-ACR with run-length codes."""

from __future__ import annotations

import csv
import io
import re
import uuid
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pydicom
import pytest

from diptych.radiographs.read import read_radiograph
from diptych_datamodules.phantoms.layouts.write import rle_encode, write_layout

N = 60


def table(path: Path) -> tuple[str, list[dict[str, str]]]:
    """The header line as it stands in the file, and the rows."""
    text = path.read_text()
    return text.split("\n", 1)[0], list(csv.DictReader(io.StringIO(text)))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    made: dict[str, Path] = {}

    def get(layout: str) -> Path:
        if layout not in made:
            made[layout] = write_layout(layout, N, tmp_path_factory.mktemp("layouts") / layout, seed=1, size=64)
        return made[layout]

    return get


def decode(code: str, side: int = 1024) -> np.ndarray:
    """The decoder of the challenge: offsets from the end of the run before, columns first."""
    flat = np.zeros(side * side, dtype=bool)
    numbers = [int(v) for v in code.split()]
    at = 0
    for gap, length in zip(numbers[::2], numbers[1::2], strict=True):
        at += gap
        flat[at : at + length] = True
        at += length
    return flat.reshape(side, side).T


# --- run-length code


def test_a_run_length_code_written_by_hand():
    mask = np.array([[0, 1, 0, 0], [1, 1, 0, 0], [1, 0, 0, 1]], dtype=bool)
    # down the columns: 0 1 1 | 1 1 0 | 0 0 0 | 0 0 1: one pixel, a run of four; six pixels, a run of one
    assert rle_encode(mask) == "1 4 6 1"


@pytest.mark.parametrize(
    ("mask", "code"), [(np.zeros((2, 3)), "-1"), (np.ones((2, 3)), "0 6"), (np.eye(3), "0 1 3 1 3 1")]
)
def test_run_length_codes_of_plain_masks(mask, code):
    assert rle_encode(mask.astype(bool)) == code


def test_run_length_codes_come_back():
    rng = np.random.default_rng(0)
    for density in (0.001, 0.3, 0.999):
        mask = rng.random((64, 64)) < density
        code = rle_encode(mask)
        assert np.array_equal(decode("" if code == "-1" else code, 64), mask)


# --- RSNA


def test_rsna_tables_and_files(written):
    out = written("rsna")
    header, rows = table(out / "stage_2_train_labels.csv")
    assert header == "patientId,x,y,width,height,Target"
    header, classes = table(out / "stage_2_detailed_class_info.csv")
    assert header == "patientId,class"
    assert [r["patientId"] for r in classes] == [r["patientId"] for r in rows]
    assert Counter(r["class"] for r in classes).keys() == {"Normal", "No Lung Opacity / Not Normal", "Lung Opacity"}
    for r, c in zip(rows, classes, strict=True):
        assert str(uuid.UUID(r["patientId"])) == r["patientId"]
        assert (r["Target"] == "1") == (c["class"] == "Lung Opacity") == bool(r["x"])
        if r["x"]:
            x, y, width, height = (float(r[k]) for k in ("x", "y", "width", "height"))
            assert 0 <= x < x + width <= 1024
            assert 0 <= y < y + height <= 1024
    assert max(Counter(r["patientId"] for r in rows).values()) >= 2  # several boxes on one image
    stems = {p.stem for p in (out / "stage_2_train_images").iterdir()}
    assert stems == {r["patientId"] for r in rows}
    assert len(stems) == N


def test_rsna_boxes_hold_what_was_drawn(written):
    out = written("rsna")
    bright, around = [], []
    for r in table(out / "stage_2_train_labels.csv")[1]:
        if r["x"]:
            pixels = read_radiograph(out / "stage_2_train_images" / f"{r['patientId']}.dcm")
            x, y, width, height = (round(float(r[k])) for k in ("x", "y", "width", "height"))
            bright.append(pixels[y : y + height, x : x + width].mean())
            mirrored = 1024 - x - width  # the same place in the other lung
            around.append(pixels[y : y + height, mirrored : mirrored + width].mean())
    assert len(bright) > 10
    assert np.mean(bright) > np.mean(around) + 15


@pytest.mark.parametrize("layout", ["rsna", "siim"])
def test_dicom_files_are_read_by_pydicom(written, layout):
    out = written(layout)
    for path in sorted(out.glob("**/*.dcm"))[:5]:
        ds = pydicom.dcmread(path)
        assert ds.file_meta.TransferSyntaxUID == pydicom.uid.JPEGBaseline8Bit
        assert (ds.Rows, ds.Columns, ds.BitsStored) == (1024, 1024, 8)
        assert ds.ViewPosition in ("AP", "PA")
        assert ds.SOPInstanceUID == ds.file_meta.MediaStorageSOPInstanceUID
        pixels = ds.pixel_array
        assert pixels.shape == (1024, 1024)
        assert pixels.dtype == np.uint8
        assert pixels.std() > 30
        assert (ds.PatientID == path.stem) == (layout == "rsna")
        assert (ds.SOPInstanceUID == path.stem) == (layout == "siim")


@pytest.mark.parametrize("layout", ["rsna", "siim"])
def test_some_dicom_files_are_monochrome1_and_read_alike(written, layout):
    stored, seen = defaultdict(list), defaultdict(list)
    for path in sorted(written(layout).glob("**/*.dcm")):
        ds = pydicom.dcmread(path)
        stored[ds.PhotometricInterpretation].append(ds.pixel_array[::32, ::32].astype(float).ravel())
        seen[ds.PhotometricInterpretation].append(read_radiograph(path)[::32, ::32].astype(float).ravel())
    assert set(stored) == {"MONOCHROME1", "MONOCHROME2"}
    usual = np.mean(stored["MONOCHROME2"], axis=0)
    for raw, read in zip(stored["MONOCHROME1"], seen["MONOCHROME1"], strict=True):
        assert np.corrcoef(usual, raw)[0, 1] < -0.7
        assert np.corrcoef(usual, read)[0, 1] > 0.7


# --- SIIM


def test_siim_table_has_the_releases_quirks(written):
    out = written("siim")
    text = (out / "train-rle.csv").read_text()
    assert text.startswith("ImageId, EncodedPixels\n")
    rows = [line.split(",") for line in text.splitlines()[1:]]
    codes = defaultdict(list)
    for name, code in rows:
        assert code[0] == " "
        codes[name].append(code.strip())
    assert any(len(c) > 1 for c in codes.values())
    assert all(c == ["-1"] or "-1" not in c for c in codes.values())
    files = {p.stem: p for p in out.glob("dicom-images-train/*/*/*.dcm")}
    assert len(files) == len(codes) == N + 1
    assert len(set(files) - set(codes)) == len(set(codes) - set(files)) == 1
    for stem, path in files.items():
        ds = pydicom.dcmread(path, stop_before_pixels=True)
        assert (ds.StudyInstanceUID, ds.SeriesInstanceUID) == (path.parts[-3], path.parts[-2])
        assert re.fullmatch(r"[\d.]{20,64}", stem)


def test_siim_masks_are_the_drawn_pneumothoraces(written):
    out = written("siim")
    masks: dict[str, np.ndarray] = {}
    for line in (out / "train-rle.csv").read_text().splitlines()[1:]:
        name, code = line.split(",")
        if code != " -1":
            mask = decode(code)
            assert not (masks.get(name, np.zeros_like(mask)) & mask).any()  # the rows of an image do not overlap
            masks[name] = masks.get(name, False) | mask
    boxes = defaultdict(list)
    for r in table(out / "phantom_boxes.csv")[1]:
        if r["finding"] == "Pneumothorax":
            boxes[r["image"]].append([float(r[k]) for k in ("x0", "y0", "x1", "y1")])
    assert set(masks) == set(boxes)
    for name, mask in masks.items():
        rows, columns = mask.any(axis=1).nonzero()[0], mask.any(axis=0).nonzero()[0]
        whole = np.array(boxes[name])
        corners = [whole[:, 0].min(), whole[:, 1].min(), whole[:, 2].max(), whole[:, 3].max()]
        assert [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1] == pytest.approx(corners, abs=1)
