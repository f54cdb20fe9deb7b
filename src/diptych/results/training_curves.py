"""Curves of training, read from TensorBoard's files, as SVG within a page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from diptych.results.dotplot import marks

__all__ = ["draw_lines", "read_scalars"]

_COLOURS = ("#1a73e8", "#d93025", "#188038", "#f29900", "#9334e6", "#12858d", "#b31412", "#5f6368")
_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 460.0, 200.0, 56.0, 24.0
_MOST = 400
"""Points of a line. More are thinned evenly: nobody sees them."""

Points = Sequence[tuple[int, float]]
"""Steps with their values."""


def read_scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """All scalars of a run's event files: steps with their values, by tag. Empty if there are none.

    Where a run went on after a crash, a step may be there twice. Then the later value counts.
    """
    if not list(folder.glob("events.out.tfevents.*")):
        return {}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 1})
    events.Reload()
    found: dict[str, list[tuple[int, float]]] = {}
    for tag in events.Tags()["scalars"]:
        by_step = {event.step: event.value for event in events.Scalars(tag)}
        found[tag] = sorted(by_step.items())
    return found


def draw_lines(title: str, lines: Mapping[str, Points]) -> str:
    """An SVG with a line for each run over the steps. Values that are not finite break no line: they are left out.

    Args:
        title: what is drawn.
        lines: points by the name of the run. Each run has the colour of its place here. One without points has no line, but
            keeps its place, so that it has one colour in all drawings of a page.
    """
    known = {name: [(s, v) for s, v in points if math.isfinite(v)] for name, points in lines.items()}
    finite = {name: _thinned(points) for name, points in known.items() if points}
    if not finite:
        return ""
    values = [v for points in finite.values() for _, v in points]
    steps = [s for points in finite.values() for s, _ in points]
    low, high = min(values), max(values)
    if low == high:
        low, high = low - 0.5, high + 0.5
    first, last = min(steps), max(max(steps), min(steps) + 1)
    top, right = 28.0, _WIDTH - 12
    bottom = _HEIGHT - _BOTTOM

    def place(step: float, value: float) -> tuple[float, float]:
        across = _LEFT + (step - first) / (last - first) * (right - _LEFT)
        return across, bottom - (value - low) / (high - low) * (bottom - top)

    parts = [f'<text x="{_LEFT}" y="16" font-size="13" font-weight="600">{escape(title)}</text>']
    for value, text in marks(low, high):
        if low <= value <= high:
            y = place(first, value)[1]
            parts.append(
                f'<line x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="currentColor" opacity=".15"/>'
            )
            parts.append(
                f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" font-size="11" text-anchor="end">{escape(text)}</text>'
            )
    for step, anchor in ((first, "start"), (last, "end")):
        x = place(step, low)[0]
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - 8}" font-size="11" text-anchor="{anchor}">{step}</text>')
    colours = {name: _COLOURS[number % len(_COLOURS)] for number, name in enumerate(lines)}
    for name, points in finite.items():
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(s, v) for s, v in points))
        colour = colours[name]
        if len(points) == 1:
            x, y = place(*points[0])
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>')
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
    legend = "".join(f'<span style="color:{colours[name]}">&#9632;</span> {escape(name)} &nbsp; ' for name in finite)
    drawing = f'<svg viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" width="{_WIDTH:g}" role="img">{"".join(parts)}</svg>'
    return f"<figure>{drawing}<figcaption>{legend if len(lines) > 1 else ''}over optimiser steps</figcaption></figure>"


def _thinned(points: Points) -> Points:
    if len(points) <= _MOST:
        return points
    places = [round(i * (len(points) - 1) / (_MOST - 1)) for i in range(_MOST)]
    return [points[i] for i in places]
