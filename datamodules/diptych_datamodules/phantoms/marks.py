"""How each finding changes the attenuation of the chest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diptych_datamodules.phantoms.anatomy import Chest, heart_outline, lung_outline, sign
from diptych_datamodules.phantoms.canvas import Field, Points, smooth
from diptych_datamodules.phantoms.findings import FindingSpec

__all__ = ["Mark", "draw_mark", "shape_changes"]

_VISIBLE = 0.10  # a pixel with more added attenuation belongs to the finding
_ZONE_HEIGHT = {"upper": (0.195, 0.30), "mid": (0.37, 0.48), "lower": (0.555, 0.645)}
_LOBE = {"upper": (0.12, 0.365), "mid": (0.365, 0.535), "lower": (0.535, 0.80)}
_GROWTH = (0.080, 0.135, 0.200)
_LIFT = (0.008, 0.020, 0.040)


@dataclass(frozen=True)
class Mark:
    """What one finding does to the picture."""

    added: Field
    """Attenuation added, or taken where it is negative."""
    mask: NDArray[np.bool_]
    """Pixels of the finding."""
    keeps: Field | None = None
    """Share of vessels and markings that stays."""


def shape_changes(specs: Sequence[FindingSpec]) -> tuple[float, dict[str, float]]:
    """How findings change organs: the growth of the heart, and how far the diaphragm of each side is raised."""
    growth = max((_GROWTH[s.grade] for s in specs if s.name == "Cardiomegaly"), default=0.0)
    lift = {str(s.side): _LIFT[s.grade] for s in specs if s.name == "Atelectasis" and s.zone == "lower"}
    return growth, lift


def draw_mark(spec: FindingSpec, chest: Chest, rng: np.random.Generator, growth: float) -> Mark:
    """What a finding adds to a chest. ``growth`` is that of the heart, which hides part of the lung."""
    if spec.name == "Cardiomegaly":  # it has changed the chest's shape already, and is the whole silhouette
        return Mark(np.zeros_like(chest.air), chest.heart > 0.5)
    if spec.name == "Pneumothorax":
        return _pneumothorax(spec, chest)
    added = _DRAW[spec.name](spec, chest, rng, growth)
    return Mark(added, added > _VISIBLE)


def _reach(outline: Points, y: float, s: float) -> float:
    """How far from the midline, towards side ``s``, a closed curve crosses height ``y``."""
    ahead = np.roll(outline, -1, axis=0)
    cross = (outline[:, 1] <= y) != (ahead[:, 1] <= y)
    a, b = outline[cross], ahead[cross]
    x = a[:, 0] + (y - a[:, 1]) / (b[:, 1] - a[:, 1]) * (b[:, 0] - a[:, 0])
    return float((s * x).max()) if len(x) else 0.0


def _extent(chest: Chest, side: str, y: float, growth: float) -> tuple[float, float]:
    """Inner and outer border of the visible lung at height ``y``, as distances from the midline."""
    inner = max(0.105, _reach(heart_outline(chest.build, growth), y, sign(side)))
    outer = _reach(lung_outline(chest.build, side, chest.lift.get(side, 0.0)), y, sign(side))
    return min(inner, outer - 0.06), outer


def _place(
    spec: FindingSpec, chest: Chest, rng: np.random.Generator, growth: float, margin: float
) -> tuple[float, float]:
    """A point of the finding's zone, ``margin`` inside the visible lung where it is wide enough."""
    low, high = _ZONE_HEIGHT[str(spec.zone)]
    y = low + (high - low) * rng.random() + 0.8 * chest.build.dome * (spec.zone == "lower")
    inner, outer = _extent(chest, str(spec.side), y, growth)
    margin = min(margin, 0.35 * (outer - inner))
    x = inner + margin + (outer - inner - 2 * margin) * rng.random()
    return sign(str(spec.side)) * x, float(y)


def _edge(distance: NDArray[np.floating], width: float) -> Field:
    """Soft step from 0 to 1 around distance 0."""
    return np.asarray(0.5 + 0.5 * np.tanh(distance * np.float32(0.5 / width)), dtype=np.float32)


def _inside(chest: Chest, side: str | None) -> Field:
    """Where a shadow in this lung can be seen. It ends softly at the lung's border."""
    cover = chest.lungs[str(side)]
    return np.asarray(cover * (0.25 + 0.75 * np.sqrt(chest.air)), dtype=np.float32)


def _opacity(spec: FindingSpec, chest: Chest, rng: np.random.Generator, growth: float) -> Field:
    """Ill-defined patchy cloud."""
    f, g = chest.frame, spec.grade
    radius = (0.052, 0.070, 0.094)[g]
    x, y = _place(spec, chest, rng, growth, 0.8 * radius)
    field = np.zeros_like(chest.air)
    for i in range(4 + 2 * g):
        dx, dy = (0.62 * radius * rng.standard_normal(2)) if i else (0.0, 0.0)
        r = radius * (0.55 + 0.4 * rng.random())
        field += (0.45 + 0.3 * rng.random()) * np.exp(-0.9 * f.blob(x + dx, y + dy, r, r * (0.8 + 0.5 * rng.random())))
    field *= np.clip(1 + f.cloud(rng, {20: 0.30, 56: 0.28}), 0.2, 2)
    return np.asarray((0.54, 0.60, 0.68)[g] * np.tanh(field * 1.35) * _inside(chest, spec.side), dtype=np.float32)


def _consolidation(spec: FindingSpec, chest: Chest, rng: np.random.Generator, growth: float) -> Field:
    """Dense, even filling of part of a lobe, sharp at the fissure, with air left in the bronchi."""
    f, g, s = chest.frame, spec.grade, sign(str(spec.side))
    top, bottom = _LOBE[str(spec.zone)]
    bottom = bottom if spec.zone != "lower" else 0.79 + chest.build.dome
    share = (0.55, 0.75, 1.0)[g] * (0.95 + 0.1 * rng.random())
    rough = 0.020 * f.cloud(rng, {16: 0.8, 40: 0.5})
    slant = (0.05 + 0.06 * rng.random()) * (s * f.x - 0.2)
    if spec.zone == "lower":  # fuzzy above, ends at the diaphragm
        along = _edge(f.y - (bottom - 0.11 - 0.13 * share) + rough, 0.012)
    else:
        way, edge = (-1.0, bottom) if spec.zone == "upper" else (1.0, top)
        far = edge + way * share * (bottom - top)
        along = _edge(way * (f.y - edge - slant), 0.0022) * _edge(-way * (f.y - far + rough), 0.014)
    middle = 0.5 * (top + bottom)
    inner, outer = _extent(chest, str(spec.side), min(middle, 0.64), growth)
    start = inner + (outer - inner) * (1 - share) * rng.random()
    across = _edge(s * f.x - (start - (0.05 if g < 2 else 0.09)) + rough, 0.014)
    across = across * _edge(start + share * (outer - inner) + 0.02 - rough - s * f.x, 0.014)
    tubes = f.blank()
    for _ in range(5):
        angle = rng.uniform(-0.6, 0.9)
        t = np.linspace(0, 1, 5)[:, None]
        root = np.array([s * (start + 0.01 + 0.03 * rng.random()), middle + 0.05 * rng.standard_normal()])
        bend = np.array([0.0, 0.03 * rng.standard_normal()])
        f.stroke(tubes, root + t * 0.11 * np.array([s * np.cos(angle), np.sin(angle)]) + t**2 * bend, 0.0055)
    field = along * across * ((0.60, 0.68, 0.76)[g] + 0.5 * rough)
    field *= 1 - 0.24 * f.blur(f.level(tubes), 0.0022)
    return np.asarray(field * _inside(chest, spec.side), dtype=np.float32)


def _nodule(spec: FindingSpec, chest: Chest, rng: np.random.Generator, growth: float) -> Field:
    """Small round shadow with a sharp border."""
    f, g = chest.frame, spec.grade
    radius = (0.0175, 0.026, 0.038)[g] * (0.95 + 0.1 * rng.random())
    x, y = _place(spec, chest, rng, growth, radius + 0.025)
    shape = 1 - f.blob(x, y, radius, radius * (0.9 + 0.2 * rng.random()), 3 * rng.random())
    return f.blur(np.asarray((0.50, 0.56, 0.62)[g] * np.clip(shape, 0, 1) ** 0.45, dtype=np.float32), 0.0016)


def _effusion(spec: FindingSpec, chest: Chest, rng: np.random.Generator, growth: float) -> Field:
    """Fluid in the base. It is level in the middle, climbs the chest wall, and fills the costophrenic angle."""
    f, g, side = chest.frame, spec.grade, str(spec.side)
    s, low = sign(side), chest.build.dome - chest.lift.get(side, 0.0)
    low += chest.build.left_lower if side == "left" else 0.0
    outwards = np.clip((s * f.x - 0.05) / (0.33 * chest.build.width), 0, 1.1)
    jitter = 0.9 + 0.2 * rng.random()
    flat, climb, power = ((0.0, 0.135, 3.2), (0.105, 0.13, 2.4), (0.245, 0.14, 2.0))[g]
    level = 0.772 + low - jitter * (flat + climb * outwards**power) + 0.004 * f.cloud(rng, {14: 1.0})
    fluid = _edge(f.y - level, 0.0045)
    return np.asarray(fluid * chest.lungs[side] * (0.16 + 0.86 * chest.air), dtype=np.float32)


def _pneumothorax(spec: FindingSpec, chest: Chest) -> Mark:
    """Air around a collapsed lung. The lung's border is a thin line, and all outside it is black."""
    f, g, side = chest.frame, spec.grade, str(spec.side)
    s = sign(side)
    outline = lung_outline(chest.build, side, chest.lift.get(side, 0.0))
    pull = (0.19, 0.33, 0.50)[g] * np.clip((s * outline[:, 0] - 0.055) / 0.15, 0, 1)
    pull = pull * np.clip((0.67 - outline[:, 1]) / 0.40, 0, 1) ** 0.8
    pull[int(outline[:, 1].argmax()) :] = 0  # the base stays on the diaphragm
    hilum = np.array([s * 0.085, 0.44])
    collapsed = outline + pull[:, None] * (hilum - outline)
    cover = chest.lungs[side]
    space = np.asarray(cover * (1 - f.fill(collapsed)), dtype=np.float32)
    canvas = f.blank()
    f.stroke(canvas, collapsed[pull > 0.02], 0.0042)
    line = f.blur(f.level(canvas), 0.0012) * cover
    lung = np.asarray(cover - space, dtype=np.float32)
    added = -0.24 * space + 0.22 * line + (0.05, 0.10, 0.20)[g] * lung * chest.air
    return Mark(np.asarray(added, dtype=np.float32), (space > 0.5) | (line > 0.4), 1 - space)


def _atelectasis(spec: FindingSpec, chest: Chest, rng: np.random.Generator, growth: float) -> Field:
    """Plates of collapsed lung: bands that are nearly level. Where there are several, a haze is around them."""
    f, g, s = chest.frame, spec.grade, sign(str(spec.side))
    _, y = _place(spec, chest, rng, growth, 0.05)
    inner, outer = _extent(chest, str(spec.side), y, growth)
    field = np.zeros_like(chest.air)
    for i in range(1 + g):
        canvas = f.blank()
        height = y + (0.0, -0.042, 0.038)[i] + 0.006 * rng.standard_normal()
        wide = min(outer - inner, 0.25)
        start = max(0.07, inner - 0.02) + 0.25 * wide * rng.random()
        end = min(start + (0.75 + 0.25 * rng.random()) * wide, outer - 0.012)
        slope, bow = rng.uniform(-0.22, 0.22), rng.uniform(-0.012, 0.012)
        t = np.linspace(0, 1, 9)
        course = height + slope * t * (end - start) + 4 * bow * t * (1 - t)
        thick = (0.0085, 0.0105, 0.0130)[g] * np.sin(np.pi * (0.06 + 0.88 * t)) ** 0.6 * (0.8 + 0.4 * rng.random(9))
        x = s * (start + t * (end - start))
        lens = np.stack([np.r_[x, x[::-1]], np.r_[course - thick, (course + thick)[::-1]]], axis=1)
        f.paint(canvas, smooth(lens))
        field = np.maximum(field, f.blur(f.level(canvas), 0.0028))
    haze = np.exp(-1.2 * f.blob(s * 0.5 * (inner + outer), y + 0.01, 0.4 * (outer - inner) + 0.02, 0.05))
    field = (0.42, 0.46, 0.50)[g] * field + (0.0, 0.08, 0.16)[g] * haze
    return np.asarray(field * _inside(chest, spec.side), dtype=np.float32)


def _device(spec: FindingSpec, chest: Chest, rng: np.random.Generator, growth: float) -> Field:
    """Metal and plastic: a pacemaker, a port, a central line, an endotracheal tube, or wires of the breastbone."""
    f = chest.frame
    s = sign(spec.side) if spec.side else 0.0
    dense, thin = f.blank(), f.blank()
    dx, dy = 0.012 * rng.standard_normal(2)
    vein = [(s * 0.17, 0.170), (s * 0.09, 0.187), (-0.030 if s < 0 else -0.010, 0.215), (-0.048, 0.27)]
    if spec.device == "pacemaker":
        x, y = s * (0.262 + dx), 0.245 + dy
        box = np.array([(-0.8, -1), (0.8, -1), (1, -0.6), (1, 0.5), (0.5, 1), (-0.5, 1), (-1, 0.5), (-1, -0.6)])
        f.paint(dense, smooth((x, y) + box * (0.042, 0.036)))
        apex = heart_outline(chest.build, growth)[:, 0].max()
        start = [(x - s * 0.02, y - 0.034), (x - s * 0.045, y - 0.060)]
        ventricle = [(-0.056, 0.40), (-0.040, 0.55), (0.03, 0.65), (0.62 * apex, 0.672)]
        atrium = [(-0.050, 0.42), (-0.055, 0.52), (-0.030, 0.53), (-0.035, 0.48)]
        for end in (ventricle, atrium):
            f.stroke(thin, smooth([*start, *vein, *end], closed=False), 0.0058)
        f.stroke(dense, np.array([(0.54 * apex, 0.671), (0.62 * apex, 0.672)]), 0.009)
    elif spec.device == "port":
        x, y = s * (0.235 + dx), 0.290 + dy
        ring = smooth([(x + 0.026 * np.cos(a), y + 0.026 * np.sin(a)) for a in np.linspace(0, 2 * np.pi, 9)[:-1]])
        f.paint(dense, ring, 0.55)
        f.stroke(dense, ring, 0.008, closed=True)
        f.stroke(thin, smooth([(x, y - 0.02), (s * 0.225, 0.21), *vein, (-0.050, 0.40)], closed=False), 0.0062, 0.85)
    elif spec.device == "central line":
        neck = [(s * 0.115, -0.12), (s * 0.085, 0.02), (s * 0.070, 0.11), (s * 0.055, 0.175)]
        path = [*neck, (-0.040 if s < 0 else -0.005, 0.225), (-0.050, 0.29), (-0.052, 0.40 + dy)]
        f.stroke(thin, smooth(path, closed=False), 0.0072, 0.95)
    elif spec.device == "endotracheal tube":
        tip = 0.285 + dy
        for x, wide in ((-0.0125, 0.0035), (0.0105, 0.0065)):
            f.stroke(thin, smooth([(x, -0.15), (x, 0.10), (x - 0.002, tip)], closed=False), wide)
        f.stroke(thin, np.array([(-0.0145, tip), (0.0085, tip + 0.012)]), 0.0035)
    else:
        for y in np.linspace(0.225, 0.60, 6) + dy:
            a, b = 0.004 * rng.standard_normal(2)
            upper, lower = [(-0.010 + a, y - 0.011), (0.014, y - 0.009)], [(0.010, y + 0.011), (-0.012, y + 0.010)]
            loop = [(-0.022, y), *upper, (0.023, y + b), *lower]
            f.stroke(dense, smooth(loop, closed=True), 0.0045, 0.75, closed=True)
            f.stroke(dense, np.array([(-0.004, y + 0.010), (0.008, y + 0.022)]), 0.0055, 0.75)
    field = 1.25 * f.blur(f.level(dense), 0.0012) + 0.62 * f.blur(f.level(thin), 0.0010)
    return np.asarray(field, dtype=np.float32)


_DRAW: dict[str, Callable[[FindingSpec, Chest, np.random.Generator, float], Field]] = {
    "Lung Opacity": _opacity,
    "Consolidation": _consolidation,
    "Nodule": _nodule,
    "Pleural Effusion": _effusion,
    "Atelectasis": _atelectasis,
    "Support Devices": _device,
}
