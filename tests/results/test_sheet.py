"""A sheet of pictures, lines and text as PNG, SVG and PDF."""

from __future__ import annotations

import io
import re
import subprocess
import zlib
from shutil import which
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image, ImageFont

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


def objects(pdf):
    """The objects of a PDF, each where its table says, with its stream unpacked."""
    start = int(re.search(rb"startxref\n(\d+)\n%%EOF\n$", pdf)[1])
    table = pdf[start:].split(b"trailer")[0].splitlines()[3:]
    found = []
    for number, line in enumerate(table, 1):
        content = pdf[int(line[:10]) :]
        assert content.startswith(b"%d 0 obj\n" % number)
        head, stream, rest = content.partition(b"\nstream\n")
        length = re.search(rb"/Length (\d+)", head)
        if stream and length and b"endobj" not in head:
            assert rest[int(length[1]) :].startswith(b"\nendstream\nendobj")
            found.append((head, zlib.decompress(rest[: int(length[1])])))
        else:
            found.append((content.partition(b"endobj")[0], b""))
    return found


def words_of(pdf):
    return [bytes.fromhex(text.decode()).decode("cp1252") for text in re.findall(rb"<(\w*)> Tj", objects(pdf)[3][1])]


def test_a_pdf_holds_letters_as_letters_with_their_font_and_pictures_as_they_are(tmp_path):
    one, pixels = sheet()
    one.save(tmp_path / "a.pdf")
    pdf = (tmp_path / "a.pdf").read_bytes()
    assert pdf.startswith(b"%PDF-")
    parts = objects(pdf)
    assert b"/MediaBox [0 0 120 90]" in parts[2][0]
    assert words_of(pdf) == ["effusion"]
    assert b"1 0 0 RG 2 w 0 80 m 120 80 l S" in parts[3][1]
    font, picture = parts[6], parts[7]
    assert b"/Length1 %d" % len(font[1]) in font[0]
    assert ImageFont.truetype(io.BytesIO(font[1])).getname()[0] in parts[4][0].decode()
    assert b"/Width 30 /Height 20" in picture[0]
    assert picture[1] == pixels.tobytes()


@pytest.mark.parametrize("text", [*HOSTILE, "> Tj ET Q (\\) endstream endobj", "% comment"])
def test_words_in_a_pdf_are_words(text, tmp_path):
    one, _ = sheet()
    one.text(5, 20, text, 10, halo=True)
    one.save(tmp_path / f"{text[:9].replace('/', '').replace(chr(0), '').encode('ascii', 'replace').decode()}.pdf")
    (file,) = tmp_path.iterdir()
    kept = "a b [31m c" if text.startswith("a\x00") else text.replace("中文", "??")
    assert words_of(file.read_bytes()) == ["effusion", kept, kept]  # the edge, and the letters


@pytest.mark.skipif(which("pdftoppm") is None, reason="poppler is not installed")
def test_a_pdf_looks_like_the_png(tmp_path):
    one = Sheet(120, 90)
    slope = np.linspace(0, 255, 60).astype(np.uint8)
    one.picture(10, 10, 60, 40, np.broadcast_to(slope[None, :, None], (40, 60, 3)).copy())
    one.line([(0, 80), (120, 80)], (255, 0, 0), 2)
    one.area([(80, 10), (110, 20), (90, 50)], (0, 0, 200))
    one.disc(100, 60, 8, (0, 120, 0))
    one.text(110, 70, "right", 12, anchor="end")
    one.text(40, 30, "on a picture", 10, (255, 255, 255), "middle", halo=True)
    one.save(tmp_path / "a.pdf")
    subprocess.run(["pdftoppm", "-png", "-r", "144", "a.pdf", "a"], cwd=tmp_path, check=True)
    drawn = np.asarray(Image.open(next(tmp_path.glob("a-*.png"))).convert("RGB")).astype(int)
    own = np.asarray(one.image()).astype(int)
    assert drawn.shape == own.shape
    assert np.abs(drawn - own).mean() < 8  # edges are smoothed
    own[:, :] = 255
    assert np.abs(drawn - own).mean() > 20


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
