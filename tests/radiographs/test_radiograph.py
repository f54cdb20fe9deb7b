"""One reader: formats, photometric interpretations, and files that must be named."""

import io
import json
import os
import subprocess
import sys
import zlib
from pathlib import Path

import hostile
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from diptych.errors import DataError
from diptych.radiographs import presentation
from diptych.radiographs.intensity import Intensity
from diptych.radiographs.limits import ImageError
from diptych.radiographs.read import open_radiograph, read_radiograph, read_radiograph_float, to_grey

RAMP = np.arange(48 * 32, dtype=np.uint16).reshape(48, 32) * 20


def dicom(path, values=RAMP, photometric="MONOCHROME2", **tags):
    """16 bits of 16, written explicitly. ``tags`` are added last."""
    more = {"BitsStored": 16, "HighBit": 15, "PhotometricInterpretation": photometric}
    path.write_bytes(hostile.dicom("ExplicitVRLittleEndian", values.astype(np.uint16), **{**more, **tags}))
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
        (lambda p: p.write_bytes(b""), r"the file is empty \(0 bytes\)"),
        (lambda p: p.write_bytes(b"hello" * 100), "not an image but a text file that begins with 'hellohello"),
        (lambda p: p.write_bytes(bytes(range(200, 256)) * 9), "not a DICOM, PNG, JPEG, TIFF, WebP or BMP file"),
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


@pytest.mark.parametrize("kind", ["png", "jpg", "dcm", "tif", "webp", "bmp"])
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


@pytest.mark.parametrize("name", [name for name, pixels in hostile.TEMPLATE if pixels is hostile.DEEP])
def test_every_transfer_syntax_gives_one_picture(tmp_path, name):
    (tmp_path / "x.dcm").write_bytes(hostile.dicom(name))
    first, last = int(hostile.DEEP.min()), int(hostile.DEEP.max())
    expected = np.rint((hostile.DEEP.astype(float) - first) / (last - first) * 255)
    got = read_radiograph(tmp_path / "x.dcm")
    if name in {"JPEG2000", "JPEGExtended12Bit"}:  # lossy
        assert np.corrcoef(got.ravel(), expected.ravel())[0, 1] > 0.99
    else:
        np.testing.assert_array_equal(got, expected)


def test_baseline_jpeg_in_dicom_is_the_jpeg_stretched(tmp_path):
    (tmp_path / "x.dcm").write_bytes(hostile.dicom("JPEGBaseline8Bit", hostile.GREY))
    got = read_radiograph(tmp_path / "x.dcm").astype(int)
    assert np.abs(got - to_grey(hostile.GREY, source="x")).mean() < 3


def test_windows_luts_signs_and_unused_bits_against_plain_arithmetic(tmp_path):
    """Each against the standard's own formula on every pixel."""
    deep = hostile.DEEP.astype(float)

    def read(**tags):
        pixels = tags.pop("pixels", hostile.DEEP)
        (tmp_path / "x.dcm").write_bytes(hostile.dicom("ExplicitVRLittleEndian", pixels, **tags))
        return read_radiograph_float(tmp_path / "x.dcm")

    def stretched(values):
        return (values - values.min()) / (values.max() - values.min())

    plain = stretched(deep)
    assert np.allclose(read(), plain, atol=1e-6)
    window = np.clip((deep - (1500 - 0.5)) / (900 - 1) + 0.5, 0, 1)  # PS3.3 C.11.2.1.2.1
    assert np.allclose(read(WindowCenter=1500, WindowWidth=900), stretched(window), atol=1e-6)
    assert np.allclose(
        read(WindowCenter=[1500, 9], WindowWidth=[900, 9], PhotometricInterpretation="MONOCHROME1"),
        1 - stretched(window),
        atol=1e-6,
    )
    sigmoid = 1 / (1 + np.exp(-4 * (deep - 1500) / 900))
    got = read(WindowCenter=1500, WindowWidth=900, VOILUTFunction="SIGMOID")
    assert np.allclose(got, stretched(sigmoid), atol=1e-3)
    assert np.allclose(read(RescaleSlope=-2, RescaleIntercept=7), 1 - plain, atol=1e-6)
    signed = (hostile.DEEP.astype(np.int32) - 1700).astype(np.int16)
    assert np.allclose(read(pixels=signed), plain, atol=1e-6)
    overlaid = hostile.DEEP | (np.uint16(0xF000) * (np.indices(hostile.DEEP.shape).sum(axis=0) % 2).astype(np.uint16))
    graphics = [DataElement((0x6000 + 2 * i, 0x0102), "US", 12 + i) for i in range(4)]  # in the bits above the twelve
    assert np.allclose(read(pixels=overlaid, more=graphics), plain, atol=1e-6)
    lut = Dataset()
    lut.LUTDescriptor, lut.LUTData = [4096, 0, 16], [(i * i) // 256 for i in range(4096)]
    lut["LUTDescriptor"].VR = lut["LUTData"].VR = "US"
    squared = stretched(hostile.DEEP.astype(np.int64) ** 2 // 256)
    assert np.allclose(read(VOILUTSequence=Sequence([lut])), squared, atol=1e-6)
    lut.ModalityLUTType = "OD"
    assert np.allclose(read(ModalityLUTSequence=Sequence([lut])), squared, atol=1e-6)


def test_float_and_uint8_agree(tmp_path):
    hostile_png = tmp_path / "x.png"
    for image in (hostile.GREY, hostile.DEEP):
        Image.fromarray(image).save(hostile_png)
        exact, coarse = read_radiograph_float(hostile_png), read_radiograph(hostile_png)
        assert exact.dtype == np.float32
        assert 0 <= exact.min() < exact.max() <= 1
        assert np.abs(exact * 255 - coarse).max() <= 0.5001
    assert len(np.unique(exact)) > 256


def test_a_bomb_is_named_before_it_goes_off(tmp_path):
    path = tmp_path / "bomb.dcm"
    raw = hostile.dicom("DeflatedExplicitVRLittleEndian")
    meta = raw.index(b"1.2.840.10008.1.2.1.99") + 22
    plain = pydicom.dcmread(io.BytesIO(raw)).file_meta.FileMetaInformationGroupLength + 144
    assert plain >= meta
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    zeros = b"".join(packer.compress(bytes(2**24)) for _ in range(17)) + packer.flush()
    path.write_bytes(raw[:plain] + zeros)
    with pytest.raises(ImageError, match="larger than the limit") as caught:
        read_radiograph(path)
    assert caught.value.rule == "oversized image"
    frame = hostile.dicom("JPEG2000Lossless")
    at = frame.index(b"\xff\x4f\xff\x51")
    forged = frame[: at + 8] + (60_000).to_bytes(4, "big") * 2 + frame[at + 16 :]
    path.write_bytes(forged)
    with pytest.raises(ImageError, match="frame is 60000x60000 pixels of 1 value"):
        read_radiograph(path)
    with path.open("wb") as file:
        file.truncate(2**30)
    with pytest.raises(ImageError, match="bytes is over the limit"):
        read_radiograph(path)


def test_a_compressed_frame_without_an_end_is_truncated(tmp_path):
    for name, pixels in hostile.TEMPLATE:
        if name.startswith("JPEG"):
            data = pydicom.dcmread(io.BytesIO(hostile.dicom(name, pixels)))
            frame = pydicom.encaps.get_frame(data.PixelData, 0, number_of_frames=1)
            data.PixelData = pydicom.encaps.encapsulate([frame[: len(frame) * 2 // 3]])
            data.save_as(tmp_path / "x.dcm")
            with pytest.raises(ImageError, match="no end; the file is truncated") as caught:
                read_radiograph(tmp_path / "x.dcm")
            assert caught.value.rule == "truncated image"


def test_what_is_not_read_is_named_with_a_remedy(tmp_path):
    data = pydicom.dcmread(io.BytesIO(hostile.dicom("JPEGBaseline8Bit", hostile.GREY)))
    data.file_meta.TransferSyntaxUID = pydicom.uid.MPEG2MPML
    data.save_as(tmp_path / "x.dcm")
    with pytest.raises(ImageError, match=r"MPEG2 Main Profile.*gdcmconv --raw"):
        read_radiograph(tmp_path / "x.dcm")


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_two_thousand_mutated_files_are_decoded_or_named(tmp_path):
    """In a process of its own, so that a decoder's crash, hang or appetite is seen. It has one core."""
    script = Path(hostile.__file__)
    places = {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script), "2000", "0", str(tmp_path)],
        capture_output=True, text=True, check=False, timeout=110, env={**os.environ, **places},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout)
    counts = result["counts"]
    assert counts.pop("MemoryError", 0) == 0
    assert sum(counts.values()) == 2000
    assert counts["decoded"] > 200
    assert {"truncated image", "corrupt image", "oversized image", "unsupported image"} <= set(counts)
    assert result["grown_mib"] < 1024
    assert result["slowest"] < 10


def test_not_numbers():
    with pytest.raises(DataError, match="not numbers"):
        to_grey(np.array([[0.0, np.nan]]), source="x")


@pytest.fixture(scope="session")
def cases():
    beside = Path(__file__).resolve().parents[3] / "shared"
    folder = Path(os.environ.get("DIPTYCH_SHARED", beside)) / "cases"
    if not folder.is_dir():
        pytest.skip(f"no cases: {folder} is not a folder; name its parent in DIPTYCH_SHARED")
    return folder


@pytest.mark.real
def test_the_cases_are_as_their_table_says(cases):
    def read(name, intensity=Intensity()):  # noqa: B008  # frozen
        return open_radiograph(cases / name, intensity)

    def near(one, other):
        return np.abs(one.pixels.astype(int) - other.pixels).max()

    plain, mono1 = read("dicom/plain.dcm"), read("dicom/mono1.dcm")
    assert len(np.unique(plain.pixels)) == 256
    assert near(read("dicom/jpegbaseline_ffpad.dcm"), plain) <= 8
    assert near(read("dicom/jpeg_lossless_sv1.dcm"), plain) == 0
    assert near(read("dicom/window_w0.dcm"), plain) == 0
    assert read("dicom/window_w0.dcm").notes == (presentation.WINDOW,)
    assert near(read("dicom/mono2_plut_inverse.dcm"), mono1) == 0
    assert read("dicom/hflip_orientation.dcm").notes == (presentation.MIRRORED,)
    assert read("dicom/pixel_aspect_2_1.dcm").pixels.shape == (640, 256)
    for name in ("padding_65535_nowindow", "mono1_padding0_white_border"):
        got = read(f"dicom/{name}.dcm").pixels
        assert (got[:, :30].max(), got[:, -30:].max()) == (0, 0)  # the border is at both sides
        assert len(np.unique(got)) > 250
        assert np.corrcoef(got[:, 30:-30].ravel(), plain.pixels[:, 30:-30].ravel())[0, 1] > 0.99
    with pytest.raises(ImageError, match="BitsStored 12 and HighBit 11"):
        read("dicom/bitsstored12_values16.dcm")
    grey, deep = read("pictures/g8.png"), read("pictures/g16_12bit.png")
    for name, other, limit in (
        ("exif2.jpg", grey, 4), ("exif6.jpg", grey, 4), ("exif6.png", grey, 0), ("w.webp", grey, 4),
        ("rgb16_12bit.png", deep, 0), ("la16_12bit.png", deep, 0), ("t16.tiff", deep, 0),
    ):  # fmt: skip
        assert near(read(f"pictures/{name}"), other) <= limit
    for name in ("g16_12bit_hot_pixel.png", "g16_12bit_white_border.png"):
        assert len(np.unique(read(f"pictures/{name}").pixels)) < 20
        assert len(np.unique(read(f"pictures/{name}", Intensity((0.5, 90))).pixels)) > 200
    for name, words in (("html.jpg", "an HTML page"), ("lfs.png", "a git-lfs pointer"), ("zero.png", "is empty")):
        with pytest.raises(ImageError, match=words):
            read(f"pictures/{name}")
