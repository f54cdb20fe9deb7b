"""Pictures of classification: the ROC curve, the precision-recall curve and the reliability of each finding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diptych.metrics.curves import calibration_error, curve_figures, pr_points, reliability, roc_points
from diptych.predictions.base import Array, Columns, Predictions
from diptych.predictions.kinds import SHARES, logistic, names_of
from diptych.results.seeds import show
from diptych.results.sheet import FORMATS, Colour, Sheet, fitted

__all__ = ["Scored", "draw_classification", "scored", "write_curves"]

_INK: Colour = (40, 40, 40)
_GRID: Colour = (226, 226, 226)
# Okabe and Ito's colours, which the colour-blind can tell apart too, then the same darker.
_OKABE: tuple[Colour, ...] = (
    (0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233), (110, 110, 110),
)  # fmt: skip
_COLOURS: tuple[Colour, ...] = (*_OKABE, *((c[0] * 5 // 9, c[1] * 5 // 9, c[2] * 5 // 9) for c in _OKABE))
_SIDE, _LEFT, _RIGHT, _TOP, _BOTTOM, _ROW = 230, 52, 22, 52, 56, 16
_FINE = 500
"""Steps of a panel's side. Points closer than one are drawn as one."""


@dataclass(frozen=True)
class Scored:
    """A finding's scores and labels, where these are known."""

    name: str
    scores: Array
    """``[n]``"""
    labels: Array
    """``[n]``, 0 or 1, both among them."""
    probabilities: Array | None = None
    """``[n]``, 0 to 1."""


def scored(kept: Predictions) -> dict[str, list[Scored]]:
    """The findings with both classes of each picture, by the picture's name. Empty if predictions have no scores of findings.

    Of a probe each share of the labels has a picture, of its first seed.
    """
    columns = kept.columns
    if kept.kind == "seeds":
        firsts: dict[str, str] = {}
        for name in columns:
            if (match := SHARES.match(name)) is not None:
                firsts.setdefault(match["share"], match[0])
        return {share: list(_findings(columns, f"{start}/score", logistic)) for share, start in firsts.items()}
    if kept.kind not in ("binary", "classes"):
        return {}
    start = "score" if names_of(columns, "score") else "probability"
    return {"": list(_findings(columns, start, None))}


def _findings(columns: Columns, start: str, link: Callable[[Array], Array] | None) -> Iterator[Scored]:
    for name in names_of(columns, start):
        scores, labels = (np.asarray(columns[f"{part}/{name}"], np.float64) for part in (start, "label"))
        known = (labels == 0) | (labels == 1)
        scores, labels = scores[known], labels[known]
        if np.isnan(scores).any() or not 0 < labels.sum() < len(labels):
            continue
        given = columns.get(f"probability/{name}")
        p = np.asarray(given, np.float64)[known] if given is not None else None if link is None else link(scores)
        yield Scored(name, scores, labels, p)


def draw_classification(findings: Sequence[Scored], title: str) -> Sheet:
    """A sheet with the ROC curves, the precision-recall curves and, where there are probabilities, the reliability.

    At most as many findings are drawn as there are colours (14): those with most positives. The key has their figures.

    Args:
        findings: one at least.
        title: stands above all.
    """
    shown = sorted(findings, key=lambda one: -one.labels.sum())[: len(_COLOURS)]
    shown = [one for one in findings if any(one is other for other in shown)]
    panels = 3 if any(one.probabilities is not None for one in shown) else 2
    wide = _LEFT + _SIDE + _RIGHT
    sheet = Sheet(panels * wide, _TOP + _SIDE + _BOTTOM + _ROW * (len(shown) + 1) + 10)
    left_out = (
        f" ({len(shown)} of {len(findings)} findings, those with most positives)" if len(shown) < len(findings) else ""
    )
    sheet.text(12, 20, fitted(f"{title}{left_out}", 13, panels * wide - 24), 13, _INK)
    axes = [("ROC", "1 - specificity", "sensitivity"), ("precision and recall", "recall", "precision")]
    axes += [("reliability", "mean probability", "share with the finding")]
    for number, (name, across, up) in enumerate(axes[:panels]):
        _axes(sheet, number * wide + _LEFT, name, across, up, diagonal=number != 1)
    top = _TOP + _SIDE + _BOTTOM
    places = [12.0, 210, 270, 330, 400, 460]
    heads = ["finding", "AUROC", "AUPRC", "positives", "of", *(["ECE"] if panels == 3 else [])]
    for x, head in zip(places[: len(heads)], heads, strict=True):
        sheet.text(x, top, head, 10, _INK)
    for row, (one, colour) in enumerate(zip(shown, _COLOURS, strict=False)):
        lines = [roc_points(one.scores, one.labels), _steps(pr_points(one.scores, one.labels))]
        if one.probabilities is not None:
            lines.append(reliability(one.probabilities, one.labels)[:, :2])
        for number, points in enumerate(lines):
            _curve(sheet, number * wide + _LEFT, points, colour, marks=number == 2)
        figures = curve_figures(one.scores, one.labels)
        cells = [show(float(figures["auroc"][0])), show(float(figures["auprc"][0]))]
        cells += [str(int(one.labels.sum())), str(len(one.labels))]
        if panels == 3:
            cells.append(
                "-" if one.probabilities is None else show(float(calibration_error(one.probabilities, one.labels)[0]))
            )
        y = top + _ROW * (row + 1)
        sheet.line([(12, y - 4), (30, y - 4)], colour, 3)
        for x, cell in zip([36.0, *places[1:]], [fitted(one.name, 10, 166), *cells], strict=False):
            sheet.text(x, y, cell, 10, _INK)
    return sheet


def _steps(points: Array) -> Array:
    """A curve that keeps each precision back to the recall before, so that its area is the average precision."""
    before = np.r_[0.0, points[:-1, 0]]
    return np.stack([np.stack([before, points[:, 1]], axis=1), points], axis=1).reshape(-1, 2)


def _axes(sheet: Sheet, left: float, name: str, across: str, up: str, diagonal: bool) -> None:
    sheet.text(left, _TOP - 8, name, 12, _INK)
    sheet.text(left + _SIDE, _TOP - 8, f"up: {up}", 9, _INK, anchor="end")
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y = left + tick * _SIDE, _TOP + (1 - tick) * _SIDE
        sheet.line([(left, y), (left + _SIDE, y)], _GRID)
        sheet.line([(x, _TOP), (x, _TOP + _SIDE)], _GRID)
        sheet.text(left - 6, y + 3, f"{tick:g}", 9, _INK, anchor="end")
        sheet.text(x, _TOP + _SIDE + 14, f"{tick:g}", 9, _INK, anchor="middle")
    sheet.text(left + _SIDE / 2, _TOP + _SIDE + 30, across, 10, _INK, anchor="middle")
    if diagonal:
        sheet.line([(left, _TOP + _SIDE), (left + _SIDE, _TOP)], (170, 170, 170))
    sheet.line([(left, _TOP), (left, _TOP + _SIDE), (left + _SIDE, _TOP + _SIDE)], _INK, 1.5)


def _curve(sheet: Sheet, left: float, points: Array, colour: Colour, marks: bool) -> None:
    steps = np.round(points * _FINE)
    new = np.r_[True, (steps[1:] != steps[:-1]).any(axis=1)]
    new[-1] = True
    there = [(round(left + x * _SIDE, 2), round(_TOP + (1 - y) * _SIDE, 2)) for x, y in points[new].tolist()]
    if len(there) > 1:
        sheet.line(there, colour, 1.5)
    for x, y in there if marks or len(there) == 1 else ():
        sheet.line([(x - 2.5, y), (x + 2.5, y)], colour, 5)


def write_curves(folder: Path, kept: Mapping[str, Predictions]) -> list[Path]:
    """Write ``curves-NAME.png``, ``.svg`` and ``.pdf`` for predictions that have scores of findings, and return their paths.

    Args:
        folder: where the files go.
        kept: predictions by the first part of metrics' names.

    Raises:
        DataError: a file cannot be written.
    """
    written = []
    for name, predictions in kept.items():
        for part, findings in scored(predictions).items():
            if not findings:
                continue
            title = f"{name}, {part} of the labels, seed 0" if part else name
            sheet = draw_classification(findings, title)
            stem = "-".join(["curves", *name.split("/"), *([part.removesuffix("%")] if part else [])])
            for ending in FORMATS:
                written.append(folder / f"{stem}.{ending}")
                sheet.save(written[-1])
    return written
