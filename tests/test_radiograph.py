"""One reader: formats, photometric interpretations, and files that must be named."""

import io

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from diptych.errors import DataError
from diptych.radiograph import read_radiograph, to_grey

RAMP = np.arange(48 * 32, dtype=np.uint16).reshape(48, 32) * 20


def dicom(path, values=RAMP, photometric="MONOCHROME2", **tags):
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    meta.MediaStorageSOPInstanceUID = generate_uid()
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.Rows, data.Columns = values.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, photometric
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
    data.PixelData = values.astype(np.uint16).tobytes()
    for name, value in tags.items():
        setattr(data, name, value)
    data.save_as(path, enforce_file_format=True)
    return path


def test_dicom_stretches_inverts_and_windows(tmp_path):
    plain = read_radiograph(dicom(tmp_path / "a.dcm"))
    assert plain.dtype == np.uint8
    assert (plain.min(), plain.max()) == (0, 255)
    inverted = read_radiograph(dicom(tmp_path / "b.dcm", values=RAMP.max() - RAMP, photometric="MONOCHROME1"))
    assert np.abs(plain.astype(int) - inverted).max() <= 1
    windowed = read_radiograph(dicom(tmp_path / "c.dcm", WindowCenter=15000, WindowWidth=2000))
    assert (windowed[:12] == 0).all()
    assert (windowed[-6:] == 255).all()
    rescaled = read_radiograph(dicom(tmp_path / "d.dcm", RescaleSlope=-1, RescaleIntercept=40000))
    assert np.abs(rescaled.astype(int) - (255 - plain.astype(int))).max() <= 1


def test_pictures_of_every_mode(tmp_path):
    grey = (RAMP / RAMP.max() * 255).astype(np.uint8)
    Image.fromarray(grey).save(tmp_path / "l.png")
    assert np.array_equal(read_radiograph(tmp_path / "l.png"), grey)
    Image.fromarray(RAMP).save(tmp_path / "i16.png")
    assert np.abs(read_radiograph(tmp_path / "i16.png").astype(int) - grey).max() <= 1
    Image.fromarray(grey).convert("RGB").save(tmp_path / "rgb.png")
    assert np.array_equal(read_radiograph(tmp_path / "rgb.png"), grey)
    Image.fromarray(grey).convert("RGBA").save(tmp_path / "rgba.png")
    assert np.array_equal(read_radiograph(tmp_path / "rgba.png"), grey)
    Image.fromarray(grey).save(tmp_path / "q.jpg", quality=95)
    assert np.abs(read_radiograph(tmp_path / "q.jpg").astype(int) - grey).mean() < 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, "no such image file"),
        (lambda p: p.write_bytes(b""), "not a PNG, JPEG or DICOM"),
        (lambda p: p.write_bytes(b"hello" * 100), "not a PNG, JPEG or DICOM"),
        (lambda p: Image.new("L", (20, 20), 7).save(p), r"flat \(every pixel is 7\)"),
        (lambda p: dicom(p, NumberOfFrames=100000), "100000 frames"),
        (lambda p: dicom(p, Rows=60000, Columns=60000), "over the limit"),
        (lambda p: dicom(p, photometric="RGB"), "PhotometricInterpretation is 'RGB'"),
        (lambda p: dicom(p, values=np.full((8, 8), 3)), "flat"),
    ],
)
def test_unusable_files_are_named(tmp_path, make, message):
    path = tmp_path / "x.png"
    make(path)
    with pytest.raises(DataError, match=message) as caught:
        read_radiograph(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["png", "jpg", "dcm"])
def test_files_cut_anywhere_are_named_or_whole(tmp_path, kind):
    path = tmp_path / f"x.{kind}"
    if kind == "dcm":
        dicom(path)
    else:
        noise = np.random.default_rng(0).integers(0, 255, (64, 64)).astype(np.uint8)
        Image.fromarray(noise).save(path)
    raw = path.read_bytes()
    for share in (0.02, 0.1, 0.3, 0.5, 0.8, 0.97):
        path.write_bytes(raw[: int(len(raw) * share)])
        with pytest.raises(DataError, match=r"x\."):
            read_radiograph(path)


def test_dicom_without_preamble(tmp_path):
    data = pydicom.dcmread(dicom(tmp_path / "a.dcm"))
    stream = io.BytesIO()
    data.save_as(stream, enforce_file_format=False)
    raw = stream.getvalue()
    (tmp_path / "b.dcm").write_bytes(raw[132:] if raw[128:132] == b"DICM" else raw)
    assert np.array_equal(read_radiograph(tmp_path / "a.dcm"), read_radiograph(tmp_path / "b.dcm"))


def test_not_numbers():
    with pytest.raises(DataError, match="not numbers"):
        to_grey(np.array([[0.0, np.nan]]), source="x")
