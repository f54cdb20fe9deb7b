"""What a file is: the content decides, whatever its name, and the reader and ``diptych prepare`` agree."""

import csv

import numpy as np
import pytest
from greys import PLAIN
from hostile import DEEP, GREY, dicom, picture
from PIL import Image

from diptych.cli.prepare import prepare
from diptych.cli.scan import scan
from diptych.data.loading import Loading
from diptych.data.tables import Columns
from diptych.plugins import DATAMODULES, find
from diptych.radiographs.kinds import is_image, kind_of
from diptych.radiographs.limits import ImageError
from diptych.radiographs.read import read_mask, read_radiograph
from diptych_datamodules.phantoms.layouts.write import write_layout
from diptych_datamodules.tabular import Tabular

NATIVE = "ExplicitVRLittleEndian"


@pytest.mark.parametrize(
    ("raw", "kind", "remedy"),
    [
        (b"", "empty", "get it anew"),
        (bytes(5000), "a file of zero bytes alone", "get the file anew"),
        (b"\n <!DOCTYPE HTML><p>404", "an HTML page", "the download gave a page"),
        (b"<html>404 Not Found</html>", "an HTML page", "the download gave a page"),
        (b"<?xml version='1.0'?>\n<html xmlns='x'>", "an HTML page", "the download gave a page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "an XML file", "get the file anew"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "a git-lfs pointer", "git lfs pull"),
        (b'{"error": 403}', "a JSON file", "get the file anew"),
        ("Zugriff verweigert für Sie".encode(), "a text file", "begins with 'Zugriff verweigert"),
        (b"\x1f\x8b\x08\0" + bytes(99), "a gzip archive", "unpack it"),
        (b"PK\x03\x04" + bytes(99), "a zip archive", "unpack it"),
        (b"%PDF-1.7\n%\xe2\xe3", "a PDF document", "convert"),
        (b"\x93NUMPY\x01\0", "a NumPy array", "convert"),
        (b"GIF89a" + bytes(99), "a GIF picture", "convert it to PNG"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000 picture", "convert it to PNG"),
    ],
)
@pytest.mark.parametrize("name", ["x.png", "x.dcm", "IM000001"])
def test_what_is_no_picture_is_named(raw, kind, remedy, name, write):
    assert kind_of(raw[:1024]) == kind
    with pytest.raises(ImageError, match=remedy) as caught:
        read_radiograph(write(raw, name))
    assert kind.removeprefix("a ") in str(caught.value)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.rule == ("unsupported image" if "picture" in kind else "no image")
    with pytest.raises(ImageError, match=remedy):
        read_mask(write(raw, name))


def test_the_content_decides_what_a_file_is(write):
    for raw in (picture(Image.fromarray(GREY), "PNG"), picture(Image.fromarray(GREY), "WEBP", lossless=True)):
        for name in ("x.dcm", "x.jpg", "IM000001", "x.txt"):
            assert np.array_equal(read_radiograph(write(raw, name)), GREY)
    for transfer in (NATIVE, "ImplicitVRLittleEndian", "ExplicitVRBigEndian", "JPEGLSLossless"):
        for name in ("x.png", "IM000001"):
            raw = dicom(transfer)
            assert np.array_equal(read_radiograph(write(raw, name)), PLAIN)
            if transfer != "JPEGLSLossless":  # nothing else names its syntax
                assert np.array_equal(read_radiograph(write(raw[132:], name)), PLAIN)
                without_meta = raw[raw.index(b"\x08\0\x16\0") :] if b"\x08\0\x16\0" in raw else raw
                assert np.array_equal(read_radiograph(write(without_meta, name)), PLAIN)


@pytest.fixture
def folder(tmp_path):
    """Images under names that do not say so, and files that are none."""
    folder = tmp_path / "in"
    folder.mkdir()
    png = picture(Image.fromarray(GREY), "PNG")
    for name, raw in {
        "IM000001": dicom(NATIVE), "IM000002": dicom(NATIVE)[132:], "1.2.840.5": dicom("JPEGLSLossless"),
        "1.2.840.6": dicom(NATIVE), "a.PNG": png, "b.img": png, "c.dcm": png, "d.jpg": dicom(NATIVE),
        "e.tif": picture(Image.fromarray(DEEP), "TIFF"), "f.webp": picture(Image.fromarray(GREY), "WEBP"),
        "g.bmp": picture(Image.fromarray(GREY), "BMP"),
    }.items():  # fmt: skip
        (folder / name).write_bytes(raw)
    (folder / "html.jpg").write_bytes(b"<html>404")
    (folder / "README").write_bytes(b"Read me.")
    (folder / "DICOMDIR").write_bytes(dicom(NATIVE))
    (folder / "notes.bin").write_bytes(bytes(999))
    return folder


def test_prepare_and_the_reader_agree_on_what_an_image_is(folder, tmp_path):
    names = [
        "1.2.840.5",
        "1.2.840.6",
        "IM000001",
        "IM000002",
        "a.PNG",
        "b.img",
        "c.dcm",
        "d.jpg",
        "e.tif",
        "f.webp",
        "g.bmp",
    ]
    result = scan(folder)
    assert [name for name, _ in result.images] == [*names, "html.jpg"]
    assert result.others == ["DICOMDIR", "README", "notes.bin"]
    assert all(is_image(folder / name) for name in names)
    with (tmp_path / "mine.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", "text"], *([name, f"Report {name}."] for name in [*names, "html.jpg"])])
    prepare("tabular", folder, tmp_path / "out", size=32, say=lambda line: None)
    loading = Loading(image_size=32, workers=0, check_images=True)
    split = {"columns": Columns(), "loading": loading}
    one, other = (Tabular(str(tmp_path / "mine.csv"), root=str(root), **split) for root in (folder, tmp_path / "out"))
    for module in (one, other):
        module.prepare_data()
        module.setup("fit")
        assert module.dropped.counts() == {"no image": 1}
        assert sorted(key for dataset in module.datasets.values() for key in dataset.ids) == names
    for split_name, dataset in one.datasets.items():
        for index in range(len(dataset)):
            assert np.array_equal(one.batch(split_name, [index]).image, other.batch(split_name, [index]).image)


def test_a_release_finds_images_without_suffix(tmp_path):
    root = write_layout("siim", 12, tmp_path / "siim", seed=2, size=48)

    def read():
        module = find(DATAMODULES, "siim").load()(str(root), loading=Loading(image_size=32, workers=0))
        module.setup("test")
        return module.split_hash, module.dropped.counts()

    before = read()
    for path in sorted(root.rglob("*.dcm")):
        path.rename(path.with_suffix(""))
    assert read() == before
