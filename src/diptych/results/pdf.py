"""A page of PDF: lines and letters stay lines and letters, and the font goes with them (ISO 32000-1)."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Page"]

Colour = tuple[int, int, int]
_ROUND = 4 / 3 * math.tan(math.pi / 8)  # a quarter of a circle as a Bezier curve
_CODES = range(32, 256)
_LATIN = "cp1252"
"""The letters that a font of this kind can have: Western European ones."""


class Page:
    """One page. A unit is a point of 1/72 inch, and the origin is the upper left corner.

    Args:
        width: in units.
        height: in units.
        title: of the document.
        font: Pillow's TrueType font, of which the letters are.
    """

    def __init__(self, width: float, height: float, title: str, font: Any) -> None:
        self.width, self.height, self.title = width, height, title
        self._font = font
        self._drawn: list[str] = [f"1 0 0 -1 0 {_n(height)} cm 1 j"]
        self._pictures: list[bytes] = []

    def picture(self, x: float, y: float, width: float, height: float, pixels: NDArray[np.uint8]) -> None:
        """Put a picture ``[h,v,3]``. It keeps its own pixels."""
        tall, wide = pixels.shape[:2]
        head = f"/Type /XObject /Subtype /Image /Width {wide} /Height {tall} /ColorSpace /DeviceRGB /BitsPerComponent 8"
        self._pictures.append(_stream(pixels.tobytes(), f"{head} /Interpolate true"))
        place = " ".join(map(_n, (width, 0, 0, -height, x, y + height)))
        self._drawn.append(f"q {place} cm /I{len(self._pictures)} Do Q")

    def line(self, points: Sequence[tuple[float, float]], colour: Colour, width: float) -> None:
        """Draw a line through points."""
        self._drawn.append(f"{_rgb(colour)} RG {_n(width)} w {_path(points)} S")

    def area(self, points: Sequence[tuple[float, float]], colour: Colour) -> None:
        """Fill the area within points."""
        self._drawn.append(f"{_rgb(colour)} rg {_path(points)} h f")

    def disc(self, x: float, y: float, radius: float, colour: Colour, edge: Colour) -> None:
        """Put a disc with a thin edge."""
        near, r = _ROUND * radius, radius
        curves = [
            *((r, near, near, r, 0, r), (-near, r, -r, near, -r, 0)),
            *((-r, -near, -near, -r, 0, -r), (near, -r, r, -near, r, 0)),
        ]
        path = [f"{_n(x + r)} {_n(y)} m"]
        path += [" ".join(_n(place + (y if i % 2 else x)) for i, place in enumerate(curve)) + " c" for curve in curves]
        self._drawn.append(f"{_rgb(colour)} rg {_rgb(edge)} RG 0.5 w {' '.join(path)} h B")

    def text(
        self, x: float, y: float, text: str, size: float, colour: Colour, width: float, halo: Colour | None = None
    ) -> None:
        """Put a line of text that begins at ``x`` on the base line ``y``, stretched to ``width``.

        A letter that is not Western European becomes a question mark.
        """
        coded = text.encode(_LATIN, errors="replace")
        own = self._font.getlength(coded.decode(_LATIN)) * size / self._font.size
        begin = f"BT /F {_n(size)} Tf {_n(100 * width / own if own else 100)} Tz 1 0 0 -1 {_n(x)} {_n(y)} Tm"
        show = f"<{coded.hex()}> Tj"
        around = "" if halo is None else f"{_rgb(halo)} RG 2 w 1 Tr {show} 1 0 0 -1 {_n(x)} {_n(y)} Tm 0 Tr "
        self._drawn.append(f"{_rgb(colour)} rg {begin} {around}{show} ET")

    def document(self) -> bytes:
        """The file, whole."""
        pictures = range(8, 8 + len(self._pictures))
        shown = " ".join(f"/I{i} {number} 0 R" for i, number in enumerate(pictures, 1))
        title = (b"\xfe\xff" + self.title.encode("utf-16-be")).hex()
        objects = [
            b"<< /Type /Catalog /Pages 2 0 R >>",
            b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 {_n(self.width)} {_n(self.height)}] /Contents 4 0 R "
            f"/Resources << /Font << /F 5 0 R >> /XObject << {shown} >> >> >>".encode(),
            _stream("\n".join(self._drawn).encode()),
            *self._font_objects(),
            *self._pictures,
        ]
        out = bytearray(b"%PDF-1.5\n%\xe2\xe3\xcf\xd3\n")
        places = []
        objects.append(f"<< /Title <{title}> /Producer (diptych) >>".encode())
        for number, content in enumerate(objects, 1):
            places.append(len(out))
            out += b"%d 0 obj\n%b\nendobj\n" % (number, content)
        start, count = len(out), len(objects) + 1
        out += b"xref\n0 %d\n0000000000 65535 f \n" % count
        out += b"".join(b"%010d 00000 n \n" % place for place in places)
        out += b"trailer\n<< /Size %d /Root 1 0 R /Info %d 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (
            *(count, count - 1),
            start,
        )
        return bytes(out)

    def _font_objects(self) -> list[bytes]:
        """Objects 5 to 7: the font, what it looks like, and its file."""
        font = self._font
        name = "".join(part for part in font.getname() if part).replace(" ", "")
        em = 1000 / font.size
        widths = [_n(em * font.getlength(_letter(code))) for code in _CODES]
        up, down = font.getmetrics()
        file = font.path.getvalue() if hasattr(font.path, "getvalue") else _read(font.path)
        box = f"[0 {_n(-em * down)} 1000 {_n(em * up)}]"
        looks = f"/Flags 32 /FontBBox {box} /ItalicAngle 0 /Ascent {_n(em * up)} /Descent {_n(-em * down)}"
        return [
            f"<< /Type /Font /Subtype /TrueType /BaseFont /{name} /FirstChar 32 /LastChar 255 "
            f"/Widths [{' '.join(widths)}] /FontDescriptor 6 0 R /Encoding /WinAnsiEncoding >>".encode(),
            f"<< /Type /FontDescriptor /FontName /{name} {looks} /CapHeight 700 /StemV 80 /FontFile2 7 0 R >>".encode(),
            _stream(file, f"/Length1 {len(file)}"),
        ]


def _letter(code: int) -> str:
    return bytes([code]).decode(_LATIN, errors="replace")


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _stream(content: bytes, head: str = "") -> bytes:
    packed = zlib.compress(content)
    return f"<< {head} /Filter /FlateDecode /Length {len(packed)} >>\nstream\n".encode() + packed + b"\nendstream"


def _path(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{_n(x)} {_n(y)} {'l' if i else 'm'}" for i, (x, y) in enumerate(points))


def _n(value: float) -> str:
    """A number as PDF has it, without an exponent."""
    return f"{value:.3f}".rstrip("0").rstrip(".")


def _rgb(colour: Colour) -> str:
    return " ".join(_n(part / 255) for part in colour)
