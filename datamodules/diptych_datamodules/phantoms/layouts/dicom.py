"""Phantoms as the two Kaggle sets in DICOM: RSNA pneumonia (boxes) and SIIM-ACR pneumothorax (run-length masks)."""

from __future__ import annotations

import io
import uuid
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.config import IGNORE
from pydicom.dataelem import DataElement
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, JPEGBaseline8Bit

from diptych_datamodules.phantoms.layouts.cohort import BOX_COLUMNS, Options, box_rows, stream, write_csv
from diptych_datamodules.phantoms.plan import PhantomPlan, PhantomRadiograph, render

__all__ = ["RSNA_MIX", "dicom_uids", "rle_encode", "write_dicom", "write_rsna", "write_siim"]

_SIDE = 1024  # both releases store 1024x1024
_INVERTED = 9
_CAPTURE = UID("1.2.840.10008.5.1.4.1.1.7")
_ROOT = "1.2.276.0.7230010.3.1"
RSNA_MIX = {
    "Lung Opacity": 1.5, "Consolidation": 1.2, "Nodule": 0.6, "Pleural Effusion": 0.8, "Pneumothorax": 0.5, "Cardiomegaly": 0.7,
    "Atelectasis": 0.6, "Support Devices": 0.6,
}  # fmt: skip
"""How often each finding is among the phantoms of sets with boxes."""
_SIIM_MIX = {**RSNA_MIX, "Pneumothorax": 2.2}


def rle_encode(mask: NDArray[np.bool_]) -> str:
    """Run-length code of a mask ``[H,V]`` as SIIM-ACR writes it: relative, column by column.

    Pixels are counted down the columns, from the left. Each run is two numbers. The first counts the pixels between the end
    of the run before and its start, or between the first pixel and its start. The second is its length. An empty mask is
    ``-1``.

    >>> rle_encode(np.array([[0, 1], [0, 1], [1, 0]], dtype=bool))
    '2 3'
    """
    flat = np.concatenate([[0], mask.T.ravel().astype(np.int8), [0]])
    edges = np.flatnonzero(np.diff(flat))
    if not len(edges):
        return "-1"
    starts, ends = edges[::2], edges[1::2]
    gaps = starts - np.concatenate([[0], ends[:-1]])
    return " ".join(f"{gap} {length}" for gap, length in zip(gaps, ends - starts, strict=True))


def dicom_uids(rng: np.random.Generator) -> tuple[str, str, str]:
    """Study, series and instance, looking like those of the releases."""
    process, second = int(rng.integers(1000, 32_000)), 1_517_870_000 + int(rng.integers(10_000))
    tail = f"8323329.{process}.{second}.{int(rng.integers(100_000, 999_999))}"
    study, series, instance = (f"{_ROOT}.{level}.{tail}" for level in (2, 3, 4))
    return study, series, instance


def write_dicom(
    path: Path,
    image: NDArray[np.uint8],
    plan: PhantomPlan,
    patient: str,
    uids: tuple[str, str, str],
    inverted: bool = False,
) -> None:
    """Write an 8-bit radiograph as the releases do: baseline JPEG inside DICOM, MONOCHROME2 (``inverted``: MONOCHROME1)."""
    stored = io.BytesIO()
    Image.fromarray(255 - image if inverted else image).save(stored, "JPEG", quality=92)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = _CAPTURE
    meta.MediaStorageSOPInstanceUID = UID(uids[2])
    meta.TransferSyntaxUID = JPEGBaseline8Bit
    meta.ImplementationClassUID = UID(f"{_ROOT}.0.3.6.0")
    ds = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.SOPClassUID, ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID = _CAPTURE, *(UID(u) for u in uids)
    ds.StudyDate, ds.StudyTime, ds.AccessionNumber, ds.ReferringPhysicianName = "19010101", "000000.00", "", ""
    ds.Modality, ds.ConversionType = "CR", "WSD"
    ds.SeriesDescription, ds.ViewPosition = f"view: {plan.view}", plan.view
    ds.PatientName = ds.PatientID = patient
    ds.PatientBirthDate, ds.PatientSex = "", plan.sex
    ds.add(DataElement("PatientAge", "AS", str(plan.age), validation_mode=IGNORE))  # the releases write no unit
    ds.BodyPartExamined, ds.StudyID, ds.PatientOrientation = "CHEST", "", ""
    ds.SeriesNumber = ds.InstanceNumber = "1"
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, f"MONOCHROME{1 if inverted else 2}"
    ds.Rows, ds.Columns = image.shape
    ds.PixelSpacing = [0.168, 0.168]
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
    ds.LossyImageCompression, ds.LossyImageCompressionMethod = "01", "ISO_10918_1"
    ds.PixelData = encapsulate([stored.getvalue()])
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)


def _native(radiograph: PhantomRadiograph) -> NDArray[np.uint8]:
    """The picture at the releases' 1024 pixels a side."""
    return np.asarray(cv2.resize(radiograph.image, (_SIDE, _SIDE), interpolation=cv2.INTER_CUBIC), dtype=np.uint8)


def write_rsna(n: int, out: Path, options: Options, progress: Callable[[int], None]) -> None:
    """Write ``n`` images, one a patient, as stage 2 of the RSNA pneumonia challenge.

    Boxes are those of opacities and consolidations, in pixels of the 1024x1024 image. As in the release, the class table
    repeats an image for each of its boxes. One image in nine is stored as MONOCHROME1.
    """
    rows: list[list[object]] = []
    classes: list[list[object]] = []
    boxes: list[list[object]] = []
    for i in range(n):
        rng = stream(options, 4, i)
        radiograph = render(options.plan(i, mix=RSNA_MIX), options.size)
        patient = str(uuid.UUID(bytes=rng.bytes(16), version=4))
        path = out / "stage_2_train_images" / f"{patient}.dcm"
        write_dicom(path, _native(radiograph), radiograph.plan, patient, dicom_uids(rng), inverted=i % _INVERTED == 4)
        scale = _SIDE / options.size
        opacities = [f.box for f in radiograph.findings if f.name in ("Lung Opacity", "Consolidation")]
        for x0, y0, x1, y1 in opacities:
            rows.append([patient, x0 * scale, y0 * scale, (x1 - x0) * scale, (y1 - y0) * scale, 1])
        if not opacities:
            rows.append([patient, "", "", "", "", 0])
        name = "Lung Opacity" if opacities else "No Lung Opacity / Not Normal" if radiograph.findings else "Normal"
        classes += [[patient, name]] * max(1, len(opacities))
        boxes += box_rows(patient, radiograph, scale)
        progress(i + 1)
    write_csv(out / "stage_2_train_labels.csv", ("patientId", "x", "y", "width", "height", "Target"), rows)
    write_csv(out / "stage_2_detailed_class_info.csv", ("patientId", "class"), classes)
    write_csv(out / "phantom_boxes.csv", BOX_COLUMNS, boxes)


def write_siim(n: int, out: Path, options: Options, progress: Callable[[int], None]) -> None:
    """Write ``n`` images as the SIIM-ACR pneumothorax set.

    As in the release, about a quarter of the positive images have their mask in several rows, which must be united. One
    more file has no row, and one more row has no file. One image in nine is stored as MONOCHROME1.
    """
    rows: list[tuple[str, str]] = []
    boxes: list[list[object]] = []
    for i in range(n + 1):
        rng = stream(options, 5, i)
        radiograph = render(options.plan(i, mix=_SIIM_MIX), options.size)
        uids = dicom_uids(rng)
        path = out.joinpath("dicom-images-train", uids[0], uids[1], f"{uids[2]}.dcm")
        patient = str(uuid.UUID(bytes=rng.bytes(16), version=4))
        write_dicom(path, _native(radiograph), radiograph.plan, patient, uids, inverted=i % _INVERTED == 4)
        if i == n:
            break  # the file without a row
        air = [radiograph.masks[k] for k, f in enumerate(radiograph.findings) if f.name == "Pneumothorax"]
        halves = rng.random() < 0.23  # the share of positive images with several rows in the release
        parts = [part for mask in air for part in _parts(mask, halves)]
        rows += [(uids[2], f" {rle_encode(part)}") for part in parts] or [(uids[2], " -1")]
        boxes += box_rows(uids[2], radiograph, _SIDE / options.size)
        progress(i + 1)
    rows.append((dicom_uids(stream(options, 6))[2], " -1"))  # the row without a file
    write_csv(out / "train-rle.csv", ("ImageId", " EncodedPixels"), rows)
    write_csv(out / "phantom_boxes.csv", BOX_COLUMNS, boxes)


def _parts(mask: NDArray[np.bool_], halves: bool) -> list[NDArray[np.bool_]]:
    """A mask at the releases' size, whole or as its upper and its lower half."""
    big = cv2.resize(mask.astype(np.uint8), (_SIDE, _SIDE), interpolation=cv2.INTER_NEAREST) > 0
    if not halves:
        return [np.asarray(big)]
    upper = np.arange(_SIDE)[:, None] < np.median(big.nonzero()[0])
    return [part for part in (big & upper, big & ~upper) if part.any()]
