"""A sheet of pictures, lines and text: one drawing, which is written as PNG, SVG or PDF."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from diptych.errors import ConfigError
from diptych.escaping import one_line
from diptych.files import replace_text, replacing
from diptych.results.pdf import Page

__all__ = ["FORMATS", "Colour", "Sheet", "fitted", "kind_of", "text_width", "wrapped"]

Colour = tuple[int, int, int]
Format = Literal["png", "svg", "pdf"]
FORMATS: tuple[Format, ...] = ("png", "svg", "pdf")
"""The kinds of file that a sheet is written as. The ending of the name tells which."""

_PNG_SCALE = 2
"""Pixels a unit."""
_EM = 1000
"""The size of letters at which a PDF's font is measured."""
_HALO: Colour = (20, 20, 20)
_ANCHORS = {"start": "ls", "middle": "ms", "end": "rs"}
_SHARES = {"start": 0.0, "middle": 0.5, "end": 1.0}


def _font(size: float) -> Any:
    return ImageFont.load_default(size)


def _printable(text: str) -> str:
    """One line without letters that XML forbids."""
    return one_line("".join(letter for letter in text if ord(letter) & 0xFFFE != 0xFFFE))


def text_width(text: str, size: float) -> float:
    """Width of a line of text, in units of the sheet."""
    return float(_font(_PNG_SCALE * size).getlength(_printable(text))) / _PNG_SCALE  # letters are rounded to pixels


def fitted(text: str, size: float, width: float) -> str:
    """The text, cut to a width. A cut one ends in three dots.

    >>> fitted("effusion", 12, 500), fitted("effusion" * 99, 12, 60)
    ('effusion', 'effusione...')
    """
    line = _printable(text)
    if text_width(line, size) <= width:
        return line
    low, high = 0, len(line)  # the first `low` letters fit, the first `high` do not
    while high - low > 1:
        middle = (low + high) // 2
        if text_width(f"{line[:middle]}...", size) <= width:
            low = middle
        else:
            high = middle
    return f"{line[:low].rstrip()}..."


def wrapped(text: str, size: float, width: float, most: int) -> list[str]:
    """The text in lines of at most this width. From the line after ``most`` on it is cut.

    >>> wrapped("There is a small effusion.", 12, 90, most=9)
    ['There is a small', 'effusion.']
    """
    lines: list[str] = []
    line = ""
    words = _printable(text).split()
    for place, word in enumerate(words):
        longer = f"{line} {word}" if line else word
        if text_width(longer, size) <= width:
            line = longer
            continue
        if len(lines) == most - 1:
            return [*lines, fitted(" ".join([line, *words[place:]]).strip(), size, width)]
        lines += [line] if line else []
        line = fitted(word, size, width)
    return [*lines, line] if line else lines


@dataclass(frozen=True)
class _Picture:
    x: float
    y: float
    width: float
    height: float
    pixels: NDArray[np.uint8]


@dataclass(frozen=True)
class _Text:
    x: float
    y: float
    text: str
    size: float
    colour: Colour
    anchor: str
    halo: bool


@dataclass(frozen=True)
class _Line:
    points: Sequence[tuple[float, float]]
    colour: Colour
    width: float


@dataclass(frozen=True)
class _Area:
    points: Sequence[tuple[float, float]]
    colour: Colour


@dataclass(frozen=True)
class _Disc:
    x: float
    y: float
    radius: float
    colour: Colour
    edge: Colour


class Sheet:
    """A white sheet that pictures, lines and text are put on, in their order. A unit is a point of 1/72 inch.

    Args:
        width: in units.
        height: in units.
    """

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self._items: list[_Picture | _Text | _Line | _Area | _Disc] = []

    def picture(self, x: float, y: float, width: float, height: float, pixels: NDArray[np.uint8]) -> None:
        """Put a picture ``[h,v,3]``, stretched to a rectangle whose upper left corner is given."""
        self._items.append(_Picture(x, y, width, height, pixels))

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: float,
        colour: Colour = (32, 32, 32),
        anchor: Literal["start", "middle", "end"] = "start",
        halo: bool = False,
    ) -> None:
        """Put a line of text on the base line ``y``. ``halo`` draws a dark edge around it, so it is read on pictures."""
        if line := _printable(text):
            self._items.append(_Text(x, y, line, size, colour, anchor, halo))

    def line(self, points: Sequence[tuple[float, float]], colour: Colour, width: float = 1.0) -> None:
        """Put a line through points."""
        self._items.append(_Line(points, colour, width))

    def area(self, points: Sequence[tuple[float, float]], colour: Colour) -> None:
        """Fill the area within points."""
        self._items.append(_Area(points, colour))

    def box(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        """Fill a rectangle."""
        self.area([(left, top), (right, top), (right, bottom), (left, bottom)], colour)

    def disc(self, x: float, y: float, radius: float, colour: Colour, edge: Colour = (255, 255, 255)) -> None:
        """Put a disc with a thin edge around a point."""
        self._items.append(_Disc(x, y, radius, colour, edge))

    def image(self, scale: float = _PNG_SCALE) -> Image.Image:
        """The sheet as pixels, ``scale`` of them a unit."""
        sheet = Image.new("RGB", (round(self.width * scale), round(self.height * scale)), (255, 255, 255))
        pen = ImageDraw.Draw(sheet)
        for item in self._items:
            if isinstance(item, _Picture):
                size = (max(1, round(item.width * scale)), max(1, round(item.height * scale)))
                large = Image.fromarray(item.pixels).resize(size, Image.Resampling.BICUBIC)
                sheet.paste(large, (round(item.x * scale), round(item.y * scale)))
            elif isinstance(item, _Line):
                points = [(x * scale, y * scale) for x, y in item.points]
                pen.line(points, fill=item.colour, width=max(1, round(item.width * scale)))
            elif isinstance(item, _Area):
                pen.polygon([(x * scale, y * scale) for x, y in item.points], fill=item.colour)
            elif isinstance(item, _Disc):
                ends = [(place + side * item.radius) * scale for side in (-1, 1) for place in (item.x, item.y)]
                pen.ellipse(ends, fill=item.colour, outline=item.edge)
            else:
                pen.text(
                    (item.x * scale, item.y * scale),
                    item.text,
                    fill=item.colour,
                    font=_font(item.size * scale),
                    anchor=_ANCHORS[item.anchor],
                    stroke_width=round(scale) if item.halo else 0,
                    stroke_fill=_HALO,
                )
        return sheet

    def svg(self) -> str:
        """The sheet as SVG. Text is text, and each picture keeps its own pixels."""
        width, height = f"{self.width:g}", f"{self.height:g}"
        root = ElementTree.Element(
            "svg",
            {
                "xmlns": "http://www.w3.org/2000/svg",
                "xmlns:xlink": "http://www.w3.org/1999/xlink",
                "width": width,
                "height": height,
                "viewBox": f"0 0 {width} {height}",
                "font-family": "Helvetica, Arial, sans-serif",
            },
        )
        ElementTree.SubElement(root, "rect", {"width": "100%", "height": "100%", "fill": "white"})
        for item in self._items:
            if isinstance(item, _Picture):
                box = {"x": item.x, "y": item.y, "width": item.width, "height": item.height}
                file = io.BytesIO()
                Image.fromarray(item.pixels).save(file, format="PNG")
                link = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
                more = {"preserveAspectRatio": "none", "xlink:href": link}
                ElementTree.SubElement(root, "image", _numbers(box) | more)
            elif isinstance(item, _Line):
                points = " ".join(f"{x:g},{y:g}" for x, y in item.points)
                style = {"fill": "none", "stroke": _hex(item.colour), "stroke-width": f"{item.width:g}"}
                ElementTree.SubElement(root, "polyline", {"points": points} | style)
            elif isinstance(item, _Area):
                points = " ".join(f"{x:g},{y:g}" for x, y in item.points)
                ElementTree.SubElement(root, "polygon", {"points": points, "fill": _hex(item.colour)})
            elif isinstance(item, _Disc):
                style = {"fill": _hex(item.colour), "stroke": _hex(item.edge), "stroke-width": "0.5"}
                place = {"cx": item.x, "cy": item.y, "r": item.radius}
                ElementTree.SubElement(root, "circle", _numbers(place) | style)
            else:
                # The width is given, so that a reader's own font changes no layout.
                place = {
                    "x": item.x,
                    "y": item.y,
                    "font-size": item.size,
                    "textLength": text_width(item.text, item.size),
                }
                style = {"lengthAdjust": "spacingAndGlyphs", "text-anchor": item.anchor, "fill": _hex(item.colour)}
                if item.halo:
                    style |= {"stroke": _hex(_HALO), "stroke-width": "2", "paint-order": "stroke"}
                ElementTree.SubElement(root, "text", _numbers(place) | style).text = item.text
        return ElementTree.tostring(root, encoding="unicode")

    def pdf(self, title: str) -> bytes:
        """The sheet as PDF. Text is text in a font that the file holds, and each picture keeps its own pixels."""
        page = Page(self.width, self.height, title, _font(_EM))
        for item in self._items:
            if isinstance(item, _Picture):
                page.picture(item.x, item.y, item.width, item.height, item.pixels)
            elif isinstance(item, _Line):
                page.line(item.points, item.colour, item.width)
            elif isinstance(item, _Area):
                page.area(item.points, item.colour)
            elif isinstance(item, _Disc):
                page.disc(item.x, item.y, item.radius, item.colour, item.edge)
            else:
                width = text_width(item.text, item.size)
                left = item.x - width * _SHARES[item.anchor]
                page.text(left, item.y, item.text, item.size, item.colour, width, _HALO if item.halo else None)
        return page.document()

    def _repr_png_(self) -> bytes:
        """The picture as PNG, by which a notebook shows it."""
        out = io.BytesIO()
        self.image().save(out, format="PNG")
        return out.getvalue()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a whole file or none: PNG, SVG or PDF, by its ending.

        Raises:
            ConfigError: the ending is another one.
            DataError: it cannot be written.
        """
        file = Path(path)
        kind = kind_of(file)
        if kind == "svg":
            replace_text(file, self.svg())
            return
        with replacing(file) as out:
            if kind == "png":
                self.image().save(out, format="PNG")
            else:
                out.write(self.pdf(file.stem))


def kind_of(path: Path, option: str = "") -> Format:
    """The kind of file that a name's ending says.

    Args:
        path: the name.
        option: what asks for it, for the message.

    Raises:
        ConfigError: the ending is none of :data:`FORMATS`.
    """
    for kind in FORMATS:
        if path.suffix.lower() == f".{kind}":
            return kind
    before = f"{option} " if option else ""
    raise ConfigError(f"{before}'{path}' ends in '{path.suffix}'; end it in one of: {', '.join(FORMATS)}")


def _numbers(values: dict[str, float]) -> dict[str, str]:
    return {name: f"{value:.6g}" for name, value in values.items()}


def _hex(colour: Colour) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)
