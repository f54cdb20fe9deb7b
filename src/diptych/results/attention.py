"""Pictures of what a head sees: the map of each word over the radiograph, all on one scale, with their figures.

The scale is relative. A region's attention is given in multiples of the mean region: attention times ``R`` regions. Flat
attention is 1 everywhere, has no colour, and looks flat.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from diptych.data.dataset import Sample
from diptych.radiographs.letterbox import scale_to
from diptych.results.seen import Maps, Seen, choose_words
from diptych.results.sheet import Sheet, fitted, text_width, wrapped

__all__ = [
    "Panel",
    "colour_bar",
    "draw_maps",
    "draw_seen",
    "full_colour_of",
    "overlay",
    "panel_of",
    "reduced",
    "scale_marks",
]

RGB = NDArray[np.uint8]
_INK, _FAINT, _OUTLINE, _MARK = (32, 32, 32), (96, 96, 96), (64, 200, 255), (255, 255, 255)
_SIDE, _GAP, _EDGE, _BAR = 240.0, 12.0, 14.0, 84.0  # of a panel, between panels, around all, of the colour bar
_LEAST = (200.0, 130.0)  # width and height of a panel, for its text and for the colour bar
_TITLE, _NOTE = 14.0, 10.5  # type sizes
_MOST_COLUMNS, _MOST_LINES, _MOST_PIXELS = 4, 12, 960
_LEVELS = np.linspace(0, 1, 256, dtype=np.float32)
_OPACITY = 0.75 * np.minimum(1, 2 * _LEVELS)[:, None]
# From violet to yellow. The ends of the colour map look like a radiograph's black and white.
_INFERNO = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[None], cv2.COLORMAP_INFERNO)[0, :, ::-1]
_COLOURS = _INFERNO[np.rint(70 + 160 * _LEVELS).astype(int)].astype(np.float32)
_STATES = {1.0: "", 0.0: " (no finding)", -1.0: " (in doubt)"}


@dataclass(frozen=True)
class Panel:
    """One map over the radiograph."""

    title: str
    map: NDArray[np.float32]
    """``[h,v]`` in multiples of the mean region, of the radiograph's proportions."""
    note: str = ""
    """A line below the title."""


def reduced(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The picture with at most as many pixels a side as a panel shows."""
    return scale_to(image, _MOST_PIXELS) if max(image.shape) > _MOST_PIXELS else image


def full_colour_of(peak: float) -> float:
    """The attention of the strongest colour: the first of 5, 10, 20, 50, 100, ... that is no less than the peak.

    >>> full_colour_of(1.0), full_colour_of(12.3)
    (5.0, 20.0)
    """
    power = 1.0
    while True:
        for step in (1.0, 2.0, 5.0):
            if step * power >= max(5.0, min(peak, 1e9)):
                return step * power
        power *= 10


def level_of(ratio: NDArray[np.float32] | float, full: float) -> NDArray[np.float64]:
    """Place on the colour bar, from 0 (the mean region or less) to 1 (``full`` or more). The scale is logarithmic.

    >>> level_of(np.array([0.2, 1.0, 5.0, 25.0]), full=25.0).tolist()
    [0.0, 0.0, 0.5, 1.0]
    """
    return np.asarray(np.log(np.clip(ratio, 1.0, full)) / math.log(full))


def scale_marks(full: float) -> list[tuple[float, str]]:
    """The marks of the colour bar: the place of each from 0 to 1, and its text.

    >>> [(round(place, 2), text) for place, text in scale_marks(10.0)]
    [(0.0, '1 = flat'), (0.3, '2'), (0.7, '5'), (1.0, '10')]
    """
    steps = [step * 10.0**power for power in range(10) for step in (1, 2, 5)]
    inner = [step for step in steps if 1 < step < full * 0.85]
    return [(0.0, "1 = flat"), *((float(level_of(step, full)), f"{step:g}") for step in inner), (1.0, f"{full:g}")]


def overlay(image: NDArray[np.uint8], heat: NDArray[np.float32], full: float = 5.0) -> RGB:
    """A grey picture ``[h,v]`` with a map ``[h,v]`` over it, as ``[h,v,3]``.

    At or below the mean region the picture stays as it is.

    >>> picture = np.full((2, 2), 90, np.uint8)
    >>> bool((overlay(picture, np.ones((2, 2), np.float32)) == 90).all())
    True

    Args:
        image: the radiograph.
        heat: attention in multiples of the mean region.
        full: the attention that has the strongest colour.
    """
    level = np.rint(255 * level_of(heat, full)).astype(np.intp)
    opacity = _OPACITY[level]
    return np.asarray(np.rint(image[..., None] * (1 - opacity) + _COLOURS[level] * opacity), np.uint8)


def panel_of(maps: Maps, heat: NDArray[np.float32], title: str, note: str) -> Panel:
    """The panel of a map ``[rows,columns]`` over the regions of a picture. No place is above the highest region."""
    spread = maps.place.heat(heat[None], reduced(maps.image).shape, maps.size)[0]
    return Panel(title, spread.clip(max=heat.max()), note)


def draw_seen(
    seen: Seen,
    *,
    words: Sequence[str] | None = None,
    most: int = 4,
    full: float | None = None,
    sides: bool = True,
    private: bool = False,
    sample: Sample | None = None,
    findings: Sequence[str] = (),
) -> Sheet:
    """The radiograph, the maps of its words, the score of the pair, and the report below.

    Args:
        seen: what the head sees.
        words: which words to draw. If not given, those of :func:`choose_words`.
        most: most words.
        full: as for :func:`draw_maps`.
        sides: as for :func:`draw_maps`.
        private: whether to number the words, and leave out the report and all that it says. ``words`` are no secret.
        sample: the pair, if its boxes or its mask are to be outlined.
        findings: names of the boxes' findings.
    """
    names, entropy, peaks = seen.words, seen.entropy, seen.peaks
    panels = []
    if seen.weights is not None and len(names):
        whole = np.tensordot(seen.weights / max(float(seen.weights.sum()), 1e-12), seen.regions, 1)
        panels.append(panel_of(seen, whole, "all words", "by their weights"))
    for numbers, value in choose_words(seen, most, words, reported=not private):
        first = numbers[0]
        if private and words is None:
            title = ", ".join(f"word {i + 1}" for i in numbers)
        else:
            title = " ".join(names[i] for i in numbers) + ("" if private or value is None else _STATES[value])
        note = f"entropy {entropy[first]:.2f}, peak {peaks[first]:.1f}x"
        if seen.weights is not None:
            note = f"weight {sum(seen.weights[i] for i in numbers):.1%}, {note}"
        panels.append(panel_of(seen, seen.regions[first], title, note))
    score = f"score of the pair {seen.score:.3f}"
    if seen.local is not None:
        score += f", its local part {seen.local:.3f}"
    return draw_maps(
        sample or Sample(seen.image),
        panels,
        head=score,
        note=f"{seen.regions.shape[1] * seen.regions.shape[2]} regions",
        text="" if private else seen.text,
        full=full,
        sides=sides,
        findings=findings,
    )


def draw_maps(
    sample: Sample,
    panels: Sequence[Panel],
    *,
    head: str = "",
    note: str = "",
    text: str = "",
    full: float | None = None,
    sides: bool = True,
    findings: Sequence[str] = (),
) -> Sheet:
    """A radiograph, the same under each map, and one colour bar for all.

    Args:
        sample: the radiograph. Every panel outlines its boxes or, if it has none, its mask.
        panels: the maps.
        head: the line above.
        note: a line above the radiograph.
        text: the report, below.
        full: the attention that has the strongest colour, in multiples of the mean region, above 1. If not given, that of
            :func:`full_colour_of` for the highest peak. Give one to compare pictures.
        sides: whether to mark the patient's sides. R stands on the left, as radiographs are hung. That is wrong for lateral
            views, and for pictures that are mirrored.
        findings: names of the boxes' findings.
    """
    image = sample.image
    peak = max((float(panel.map.max(initial=0.0)) for panel in panels), default=1.0)
    full = full_colour_of(peak) if full is None else full
    scale = _SIDE / max(image.shape)
    width, height = image.shape[1] * scale, image.shape[0] * scale
    cell, bar = max(width, _LEAST[0]), _TITLE + _NOTE + 12
    step = bar + max(height, _LEAST[1]) + _GAP
    margin = 0.0 if width >= 60 else 18.0  # the marks of sides stand beside a narrow picture
    rows = -(-(1 + len(panels)) // _MOST_COLUMNS)
    columns = -(-(1 + len(panels)) // rows)
    inner = columns * (cell + _GAP) - _GAP + (_GAP + _BAR if panels else 0)
    lines = wrapped(text, _NOTE + 1.5, inner, _MOST_LINES)
    top = _EDGE + (_TITLE + 10 if head else 0)
    below = top + rows * step
    sheet = Sheet(inner + 2 * _EDGE, below + (16 * len(lines) + 4 if lines else 0) + _EDGE / 2)
    if head:
        sheet.text(_EDGE, top - 12, fitted(head, _TITLE, inner), _TITLE)
    small = reduced(image)
    for place, panel in enumerate([Panel("radiograph", np.ones(small.shape, np.float32), note), *panels]):
        row, column = divmod(place, columns)
        x, y = _EDGE + column * (cell + _GAP), top + row * step
        sheet.text(x, y + _TITLE, fitted(panel.title, _TITLE, cell), _TITLE)
        sheet.text(x, y + _TITLE + _NOTE + 4, fitted(panel.note, _NOTE, cell), _NOTE, _FAINT)
        heat = panel.map
        if heat.shape != small.shape:
            heat = cv2.resize(heat, small.shape[::-1], interpolation=cv2.INTER_LINEAR).astype(np.float32)
        left, upper, inset = x + margin, y + bar, 6 - margin * 1.3
        sheet.picture(left, upper, width, height, overlay(small, heat, full))
        _outline(sheet, sample, left, upper, scale, findings if place == 0 else ())
        if sides:
            sheet.text(left + inset, upper + height - 7, "R", _TITLE, _MARK, halo=True)
            sheet.text(left + width - inset, upper + height - 7, "L", _TITLE, _MARK, "end", halo=True)
    if panels:
        _colour_bar(sheet, _EDGE + columns * (cell + _GAP), top + bar, max(height, _LEAST[1]), full)
    for i, line in enumerate(lines):
        sheet.text(_EDGE, below + 10 + 16 * i, line, _NOTE + 1.5, _INK)
    return sheet


def colour_bar(full: float) -> RGB:
    """The colours from ``full`` down to the mean region, over dark and light grey: ``[200,20,3]``."""
    ratio = np.exp(np.linspace(1, 0, 200) * np.log(full)).astype(np.float32)[:, None].repeat(20, 1)
    grey = np.linspace(20, 210, 20).astype(np.uint8)[None].repeat(200, 0)
    return overlay(grey, ratio, full)


def _colour_bar(sheet: Sheet, x: float, y: float, height: float, full: float) -> None:
    """The colour bar, and the attention that its colours stand for."""
    for line, words in enumerate(("attention,", "times the", "mean region")):
        sheet.text(x, y - 25 + 11 * line, words, _NOTE - 1, _FAINT)
    start, length = y + 8, height - 12
    sheet.picture(x, start, 18, length, colour_bar(full))
    for place, words in scale_marks(full):
        at = start + length * (1 - place)
        sheet.line([(x + 18, at), (x + 22, at)], _INK)
        sheet.text(x + 25, at + 3.5, words, _NOTE, _INK)


def _outline(sheet: Sheet, sample: Sample, x: float, y: float, scale: float, findings: Sequence[str]) -> None:
    """The boxes of a sample with their names, or its mask."""
    width = sample.image.shape[1]
    if sample.boxes is None and sample.mask is not None:
        mask = sample.mask.astype(np.uint8)
        for outline in cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)[0]:
            points = [(x + (float(a) + 0.5) * scale, y + (float(b) + 0.5) * scale) for a, b in outline[:, 0]]
            sheet.line([*points, points[0]], _OUTLINE)
    for x0, y0, x1, y1, finding in sample.boxes[:, :5].tolist() if sample.boxes is not None else ():
        a, b, c, d = x + x0 * scale, y + y0 * scale, x + x1 * scale, y + y1 * scale
        sheet.line([(a, b), (c, b), (c, d), (a, d), (a, b)], _OUTLINE)
        if findings:
            name = fitted(findings[int(finding)], _NOTE, width * scale - 6)
            room = (c - a - text_width(name, _NOTE)) / 2
            inside = d - b > 2 * _NOTE and room > 0
            right = a > x + width * scale / 2 and not inside
            start = a + min(3.0, room) if inside else max(a, x + 3)
            left = min(c, x + width * scale - 3) if right else start
            height = b + _NOTE + 1 if inside else max(b - 3, y + 10)
            sheet.text(left, height, name, _NOTE, _OUTLINE, "end" if right else "start", halo=True)
