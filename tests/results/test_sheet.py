"""A sheet of pictures, lines and text as PNG, SVG and PDF."""

from __future__ import annotations

import io
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from diptych.errors import ConfigError, DataError
from diptych.results.sheet import FORMATS, Sheet, fitted, text_width, wrapped

HOSTILE = [
    "</text><script>alert(1)</script>",
    '"&amp;\' onload="x',
    "]]><!-- -->",
    "Größe 中文",
    "a\x00b\x1b[31m\ud800\uffff\ufffe\u202ec",
    "x" * 5000,
]
NAME = "{http://www.w3.org/2000/svg}"


def sheet():
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3)).astype(np.uint8)
    one = Sheet(120, 90)
    one.picture(10, 10, 60, 40, pixels)
    one.line([(0, 80), (120, 80)], (255, 0, 0), 2)
    one.text(10, 70, "effusion", 12)
    return one, pixels


@pytest.mark.parametrize("text", HOSTILE)
def test_svg_parses_and_its_words_are_words(text, tmp_path):
    one, _ = sheet()
    one.text(5, 20, text, 10, halo=True)
    one.save(tmp_path / "a.svg")
    root = ElementTree.parse(tmp_path / "a.svg").getroot()
    assert {element.tag.removeprefix(NAME) for element in root} == {"rect", "image", "polyline", "text"}
    assert not [element for element in root if len(element)]
    words = [element.text for element in root.iter(f"{NAME}text")]
    kept = text.replace("a\x00b\x1b[31m\ud800\uffff\ufffe\u202ec", "a b [31m c")
    assert words == ["effusion", kept]
    (image,) = root.iter(f"{NAME}image")
    link = image.get("{http://www.w3.org/1999/xlink}href")
    assert link.startswith("data:image/png;base64,")
    assert all(not value.startswith("http") for element in root for value in element.attrib.values())


def test_each_kind_of_file_shows_the_same(tmp_path):
    one, _ = sheet()
    for kind in FORMATS:
        one.save(tmp_path / f"a.{kind}")
    png = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
    assert png.shape == (180, 240, 3)
    assert (png[160, :] == (255, 0, 0)).all()
    assert (png[120:142, 20:100] < 128).all(axis=2).sum() > 100  # the letters
    pdf = (tmp_path / "a.pdf").read_bytes()
    assert pdf.startswith(b"%PDF-")
    assert pdf.rstrip().endswith(b"%%EOF")
    box = re.search(rb"/MediaBox \[ ([0-9. ]+) \]", pdf)
    assert box is not None
    assert [float(value) for value in box[1].split()] == [0, 0, 120, 90]
    page = Image.open(io.BytesIO(pdf[pdf.index(b"\xff\xd8\xff") :]))
    assert page.size == (480, 360)
    apart = np.asarray(page.convert("RGB")).astype(int) - np.asarray(one.image(4)).astype(int)
    assert np.abs(apart).mean() < 2


def test_other_endings_and_places_are_refused(tmp_path):
    one, _ = sheet()
    with pytest.raises(ConfigError, match=r"a.jpg' ends in '.jpg'; end it in one of: png, svg, pdf"):
        one.save(tmp_path / "a.jpg")
    (tmp_path / "file").write_text("")
    for kind in FORMATS:
        with pytest.raises(DataError, match="cannot be written"):
            one.save(tmp_path / "file" / f"a.{kind}")
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


@pytest.mark.parametrize("text", [*HOSTILE, "There is a small left pleural effusion. " * 50, "", " \n "])
def test_text_stays_within_its_width(text):
    for width in (30.0, 200.0):
        assert text_width(fitted(text, 11, width), 11) <= width
        lines = wrapped(text, 11, width, most=5)
        assert len(lines) <= 5
        assert all(text_width(line, 11) <= width for line in lines)


def test_whole_text_is_kept_where_it_fits():
    text = "There is a small left pleural effusion and a nodule."
    assert " ".join(wrapped(text, 11, 120, most=9)) == text
    assert wrapped(text, 11, 120, most=2)[1].endswith("...")


def test_areas_and_discs_are_shapes_in_svg_and_filled_in_png(tmp_path):
    one = Sheet(60, 40)
    one.box(10, 10, 30, 20, (250, 0, 0))
    one.area([(40, 10), (50, 10), (45, 20)], (0, 0, 250))
    one.disc(20, 30, 4, (0, 250, 0))
    one.save(tmp_path / "a.svg")
    shapes = list(ElementTree.parse(tmp_path / "a.svg").getroot())
    assert [shape.tag.removeprefix(NAME) for shape in shapes] == ["rect", "polygon", "polygon", "circle"]
    assert shapes[1].get("points") == "10,10 30,10 30,20 10,20"
    assert (shapes[3].get("cx"), shapes[3].get("r"), shapes[3].get("fill")) == ("20", "4", "#00fa00")
    pixels = np.asarray(one.image())
    assert [tuple(pixels[2 * y, 2 * x]) for x, y in ((20, 15), (45, 12), (20, 30))] == [
        (250, 0, 0), (0, 0, 250), (0, 250, 0)
    ]  # fmt: skip
