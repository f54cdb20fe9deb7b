"""The healthy chest: outlines in patient coordinates and the X-ray attenuation of everything between tube and detector.

The picture is composed as the detector sees it. The thicknesses of all structures add up to one attenuation. So a rib
crosses the heart, and a vessel fades under the diaphragm, without any rule for overlaps.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from diptych_datamodules.phantoms.canvas import Field, Frame, Points, smooth

__all__ = ["SIDES", "Build", "Chest", "draw_chest", "heart_outline", "lung_outline", "sample_build", "sign"]

SIDES = ("right", "left")
"""The patient's sides; the right one is on the image's left."""

_LUNG_DEPTH = 1.02  # attenuation that air in a full lung takes away


def sign(side: str) -> float:
    """Direction of a side in patient coordinates: +1 for the patient's left, which is the image's right.

    >>> sign("left"), sign("right")
    (1.0, -1.0)
    """
    return 1.0 if side == "left" else -1.0


@dataclass(frozen=True)
class Build:
    """One patient's body and one exposure of it. Lengths are in patient coordinates (:mod:`.canvas`)."""

    female: bool
    portable: bool
    """Anteroposterior view: larger heart shadow, higher diaphragm, shoulder blades over the lungs."""
    width: float
    """Width of the rib cage, 1 is the standard."""
    dome: float
    """Lowering of both diaphragm domes by a deep breath (negative: shallow)."""
    left_lower: float
    """How much lower the left dome stands."""
    heart: float
    """Ratio of the heart's width to that of the rib cage."""
    fat: float
    """Soft tissue, 0 lean to 1 heavy."""
    rib_slope: float
    rib_phase: float
    scapula: float
    """How far the shoulder blades reach over the lungs."""
    bubble: float
    """Size of the gastric bubble, 0 for none."""
    knob: float
    """Prominence of the aortic knob."""
    zoom: float
    tilt: float
    shift: tuple[float, float]
    black: float
    """Attenuation that prints black."""
    span: float
    """Attenuation from black to white."""
    gamma: float
    photons: float
    """Photons a pixel of a 512-pixel picture gets through air, in thousands."""
    marker: str
    """Letter of the side marker, or empty."""
    marker_place: tuple[float, float]
    """Height and distance from the edge, as shares of the picture."""


def sample_build(body: np.random.Generator, film: np.random.Generator, *, female: bool, portable: bool) -> Build:
    """Sample a patient from ``body``. Sample an exposure, with the patient's position, from ``film``."""
    u, v = body.random(8), film.random(8)
    n, m = np.clip(body.standard_normal(3), -2, 2), np.clip(film.standard_normal(4), -2, 2)
    return Build(
        female=female,
        portable=portable,
        width=float(1.0 + 0.035 * n[0] - 0.02 * female),
        dome=float(0.012 * n[1] - 0.03 * portable),
        left_lower=float(0.012 + 0.018 * u[0]),
        heart=float(0.445 + 0.018 * n[2] + 0.02 * portable),
        fat=float(u[1]),
        rib_slope=float(0.095 + 0.03 * u[2]),
        rib_phase=float(0.02 * u[3]),
        scapula=float(0.25 + 0.35 * u[4] + 0.4 * portable),
        bubble=float(0.55 + 0.6 * u[5] if u[6] < 0.8 else 0.0),
        knob=float(0.6 + 0.8 * u[7]),
        zoom=float(1.05 + 0.03 * m[0]),
        tilt=float(1.6 * m[1]),
        shift=(float(0.014 * m[2]), float(0.012 * m[3])),
        black=float(0.04 + 0.12 * v[0]),
        span=float(1.75 + 0.40 * v[1]),
        gamma=float(0.75 + 0.30 * v[2]),
        photons=float(1.5 + 4.5 * v[3]),
        marker=("R" if v[4] < 0.5 else "L") if v[5] < 0.6 else "",
        marker_place=(float(0.06 + 0.12 * v[6]), float(0.03 + 0.05 * v[7])),
    )


def lung_outline(build: Build, side: str, lift: float = 0.0) -> Points:
    """Closed curve ``[K,2]`` around one lung, from its inner upper border outwards. Its lower edge is the diaphragm.

    Args:
        build: the patient.
        side: ``left`` or ``right``.
        lift: how far loss of volume raises the diaphragm.
    """
    low = build.dome + (build.left_lower if side == "left" else 0.0) - lift
    w = build.width
    out = [
        (0.052, 0.215), (0.075, 0.15), (0.125, 0.118), (0.185, 0.128), (0.25, 0.185), (0.305, 0.28),
        (0.345, 0.40), (0.368, 0.53), (0.377, 0.65 + 0.5 * low), (0.379, 0.755 + 0.8 * low), (0.372, 0.772 + 0.8 * low),
        (0.352, 0.747 + low), (0.30, 0.703 + low), (0.225, 0.678 + low), (0.145, 0.683 + low), (0.075, 0.712 + low),
        (0.04, 0.70 + low), (0.034, 0.55), (0.034, 0.40), (0.04, 0.29),
    ]  # fmt: skip
    return smooth([(sign(side) * x * w, y) for x, y in out])


def heart_outline(build: Build, growth: float = 0.0) -> Points:
    """Closed curve ``[K,2]`` around the heart, its apex to the patient's left.

    Args:
        build: the patient.
        growth: what disease adds to the ratio of the heart's width to that of the rib cage.
    """
    low = build.dome + 0.02
    inner = 2 * 0.377 * build.width
    wide = (build.heart + growth) * inner  # right border to apex
    r, a = 0.31 * wide, 0.69 * wide
    tall, up = 0.12 * growth, 0.69 * (build.heart + 0.35 * growth) * inner
    out = [
        (-0.06, 0.37), (-0.74 * r, 0.455 - tall), (-0.98 * r, 0.54 - 0.5 * tall), (-r, 0.60), (-0.85 * r, 0.68 + low),
        (-0.4 * r, 0.735 + low), (0.3 * a, 0.755 + low), (0.75 * a, 0.742 + low), (0.96 * a, 0.712 + low), (a, 0.665 + low),
        (0.95 * a, 0.60 + 0.5 * low), (0.45 * a + 0.36 * up, 0.52 - 0.5 * tall), (0.58 * up, 0.45 - tall), (0.08, 0.385),
        (0.02, 0.345),
    ]  # fmt: skip
    return smooth(out)


@dataclass(frozen=True)
class Chest:
    """The healthy chest on a raster."""

    frame: Frame
    build: Build
    attenuation: Field
    """Of everything but vessels and lung markings."""
    markings: Field
    """Attenuation of vessels and lung markings. Where a lung collapses, they leave with it."""
    air: Field
    """Air in front of and behind each pixel, 0 to 1."""
    lungs: dict[str, Field]
    """Coverage by each lung, as outlined."""
    heart: Field
    """Coverage by the heart."""
    lift: dict[str, float]
    """How far the diaphragm of a side is raised."""


def draw_chest(
    frame: Frame, build: Build, seed: list[int], *, growth: float = 0.0, lift: dict[str, float] | None = None
) -> Chest:
    """Compose the healthy chest. ``growth`` enlarges the heart, and ``lift`` raises a diaphragm."""
    lift = lift or {}
    f = frame
    lungs = {s: f.fill(lung_outline(build, s, lift.get(s, 0.0))) for s in SIDES}
    both = np.maximum(lungs["left"], lungs["right"])
    heart = f.fill(heart_outline(build, growth))
    bulk = f.depth(heart, 0.10) * f.blur(heart, 0.002)
    inward = np.clip((np.abs(f.x) - 0.035) / 0.10, 0, 1)  # the lung thins out towards the midline
    air = f.blur(f.depth(both, 0.085), 0.0022) * (0.5 + 0.5 * both) * (0.30 + 0.70 * inward) * (1 - 0.42 * bulk)
    below = np.clip((f.y - (0.69 + build.dome)) / 0.07, 0, 1)

    total, body = _trunk(f, build)
    total -= _LUNG_DEPTH * air
    total += (0.20 + 0.10 * build.fat) * below * (1 - both) * body
    middle = np.exp(-((f.x / np.float32(0.07)) ** 2))
    total += 0.47 * bulk * (1 - 0.75 * below * (1 - both)) * (1 - 0.45 * middle)
    total += _mediastinum(f, build) * (1 - 0.4 * below)
    total += _bones(f, build)
    if build.bubble:
        total -= _bubble(f, build) * (1 - both)
    if build.female:
        for s in SIDES:
            breast = f.blob(sign(s) * 0.225 * build.width, 0.60, 0.15 + 0.03 * build.fat, 0.15 + 0.02 * build.fat)
            total += (0.10 + 0.13 * build.fat) * np.sqrt(np.clip(1 - breast, 0, 1)) * np.clip((f.y - 0.47) / 0.15, 0, 1)

    rng = np.random.default_rng([*seed, 7])
    markings = _vessels(f, build, seed) * np.sqrt(air)
    markings += f.cloud(rng, {40: 0.018, 88: 0.020, 176: 0.016}) * air * (1.2 - 1.5 * np.abs(f.x))
    return Chest(f, build, total, markings, air, lungs, heart, lift)


def _trunk(f: Frame, build: Build) -> tuple[Field, Field]:
    """Soft tissue of neck, shoulders and trunk: attenuation and coverage."""
    fat, w = build.fat, build.width * (1 + 0.05 * build.fat)
    half = [
        (0.088, -0.30), (0.09, -0.05), (0.098, 0.02), (0.15, 0.062), (0.25, 0.085), (0.38, 0.105), (0.50, 0.145), (0.62, 0.23),
        (0.66, 0.35), (0.545, 0.385), (0.476, 0.43), (0.457, 0.51), (0.452, 0.62), (0.455, 0.76), (0.462, 0.90), (0.47, 1.30),
    ]  # fmt: skip
    right = [(-x * w, y) for x, y in half]
    left = [(x * w, y) for x, y in reversed(half)]
    cover = f.fill(smooth(right + left))
    rim = f.depth(cover, 0.17)
    side = np.clip(np.abs(f.x) / (0.62 * w), 0, 1)
    return np.asarray((1.42 + 0.22 * fat) * f.blur(rim, 0.006) * (1 - 0.40 * side**2), dtype=np.float32), cover


def _mediastinum(f: Frame, build: Build) -> Field:
    """Great vessels, spine with its discs, trachea and main bronchi."""
    k = build.knob
    outline = smooth(
        [
            (-0.055, -0.2), (-0.057, 0.12), (-0.066, 0.22), (-0.070, 0.32), (-0.07, 0.45), (-0.06, 0.75), (-0.06, 1.2),
            (0.07, 1.2), (0.064, 0.75), (0.070, 0.50), (0.082 + 0.012 * k, 0.425), (0.080 + 0.014 * k, 0.385),
            (0.070, 0.355), (0.070 + 0.020 * k, 0.325), (0.074 + 0.026 * k, 0.295), (0.066 + 0.018 * k, 0.262),
            (0.056, 0.23), (0.052, 0.12), (0.048, -0.2),
        ]
    )  # fmt: skip
    field = 0.36 * f.depth(f.fill(outline), 0.06)
    knob = f.blob(0.048 + 0.012 * k, 0.295, 0.036 + 0.010 * k, 0.038)
    field += 0.14 * k * np.sqrt(np.clip(1 - knob, 0, 1))

    spine, discs, canvas = f.blank(), f.blank(), f.blank()
    y = np.cumsum(0.040 + 0.0011 * np.arange(27)) - 0.19  # upper edges of the vertebrae
    step = (0.040 + 0.0011 * np.arange(1, 28))[:, None]
    wide = (0.030 + 0.006 * np.maximum(0.0, y))[:, None]
    body = np.array([(-1, 0.1), (1, 0.1), (0.93, 0.88), (-0.93, 0.88)])
    plates = np.array([[(-1, 0.08), (1, 0.08)], [(-0.97, 0.88), (0.97, 0.88)]])
    ring = np.array([(0, 0.30), (0.16, 0.60), (0, 0.88), (-0.16, 0.60)])
    pedicle = np.array([(0.64, 0.25), (0.80, 0.40), (0.64, 0.55), (0.50, 0.40)])

    def placed(shape: Points) -> Points:
        return np.stack([wide * shape[:, 0], y[:, None] + step * shape[:, 1]], axis=-1)

    f.paint(spine, placed(body))
    for plate in plates:
        f.stroke(discs, placed(plate), 0.0035)
    f.stroke(discs, smooth(placed(ring)), 0.003, 0.8, closed=True)
    for s in (-1, 1):
        f.stroke(discs, smooth(placed(pedicle * (s, 1))), 0.0025, 0.8, closed=True)
    field += 0.10 * f.blur(f.level(spine), 0.005) + 0.075 * f.blur(f.level(discs), 0.0015)

    tube = [
        (-0.018, -0.2), (-0.017, 0.10), (-0.020, 0.26), (-0.022, 0.345), (0.0, 0.365), (0.016, 0.345), (0.015, 0.26),
        (0.017, 0.10), (0.018, -0.2),
    ]  # fmt: skip
    f.paint(canvas, smooth(tube))
    airway = f.level(canvas)
    canvas = f.blank()
    f.stroke(canvas, smooth([(-0.008, 0.345), (-0.035, 0.385), (-0.068, 0.425)], closed=False), 0.021)
    f.stroke(canvas, smooth([(0.006, 0.345), (0.040, 0.395), (0.085, 0.425)], closed=False), 0.018)
    airway *= 1 - 0.45 * np.clip((f.y - 0.22) / 0.12, 0, 1)
    field -= 0.27 * f.blur(np.maximum(airway, 0.6 * f.level(canvas)), 0.004)
    return np.asarray(field, dtype=np.float32)


def _bones(f: Frame, build: Build) -> Field:
    """Ribs behind and in front, clavicles, shoulder blades, heads of the arm bones."""
    w = build.width
    back, front, rims, girdle = f.blank(), f.blank(), f.blank(), f.blank()
    i = np.arange(11.0)
    y = 0.105 + build.rib_phase + 0.0605 * i + 0.0009 * i * i
    reach = w * np.interp(
        y + 0.05, [0.12, 0.16, 0.22, 0.32, 0.45, 0.60, 1.0], [0.19, 0.25, 0.305, 0.352, 0.379, 0.388, 0.392]
    )
    drop = build.rib_slope * np.minimum(1.0, 0.45 + 0.09 * i)
    hind_x = np.stack([0.030 + 0 * i, 0.07 + 0 * i, 0.40 * reach, 0.68 * reach, 0.90 * reach, reach], axis=1)
    hind_y = np.stack([y + 0.012, y - 0.004, y - 0.008, y + 0.20 * drop, y + 0.62 * drop, y + 1.12 * drop], axis=1)
    fore_x = np.stack([1 + 0 * i, 0.985 + 0 * i, 0.86 + 0 * i, 0.66 + 0 * i, 0.46 + 0.012 * i], axis=1) * reach[:, None]
    fore_y = y[:, None] + drop[:, None] * np.array([1.10, 1.55, 2.15, 2.65, 2.85])
    bar = np.array(
        [(0.028, 0.196), (0.06, 0.186), (0.12, 0.168), (0.20, 0.142), (0.28, 0.122), (0.35, 0.112), (0.41, 0.118)]
    )
    bar = np.stack([bar[:, 0] * w, bar[:, 1] + 0.012 * build.portable * (1 - bar[:, 0])], axis=1)
    blade = np.array(
        [(0.36, 0.165), (0.34, 0.26), (0.365, 0.36), (0.405, 0.425), (0.425, 0.33), (0.455, 0.21), (0.42, 0.165)]
    )
    blade = (blade - (0.055 * build.scapula, 0)) * (w, 1)
    ridge = np.array([(0.33 * w, 0.20), (0.40 * w, 0.165), (0.47 * w, 0.145)])
    arm = np.array(
        [(0.455, 0.16), (0.485, 0.145), (0.52, 0.165), (0.535, 0.20), (0.53, 0.34), (0.60, 0.50), (0.56, 0.50), (0.49, 0.34),
         (0.465, 0.21)]
    )  # fmt: skip
    blades, spines, heads = f.blank(), f.blank(), f.blank()
    for s in (-1.0, 1.0):
        flip = np.array([s, 1.0])
        _band(f, back, smooth(np.stack([hind_x, hind_y], axis=-1) * flip, closed=False), 0.0205, rims)
        _band(f, front, smooth(np.stack([fore_x, fore_y], axis=-1)[:8] * flip, closed=False), 0.021)
        _band(f, girdle, smooth(bar * flip, closed=False), 0.023, rims)
        f.stroke(girdle, smooth(bar[:2] * flip, closed=False), 0.030)
        f.paint(blades, smooth(blade * flip))
        f.stroke(spines, smooth(blade * flip), 0.004, closed=True)
        f.stroke(spines, smooth(ridge * flip, closed=False), 0.012, 0.8)
        f.paint(heads, smooth(arm * flip * (w, 1)))
    field = 0.105 * f.blur(f.level(back), 0.0022) + 0.060 * f.blur(f.level(front), 0.003)
    field += 0.055 * f.blur(f.level(rims), 0.0016) + 0.17 * f.blur(f.level(girdle), 0.0025)
    field += 0.065 * f.blur(f.level(blades), 0.005) + 0.09 * f.blur(f.level(spines), 0.002)
    return np.asarray(field + 0.24 * f.blur(f.level(heads), 0.004), dtype=np.float32)


def _band(
    f: Frame, fill: NDArray[np.uint8], lines: Points, width: float, rims: NDArray[np.uint8] | None = None
) -> None:
    """Fill long bones along lines ``[...,K,2]`` on one canvas. Their edges go to ``rims``, if it is given."""
    step = np.gradient(lines, axis=-2)
    normal = np.stack([-step[..., 1], step[..., 0]], axis=-1)
    normal /= np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-9)
    above, below = lines - 0.5 * width * normal, lines + 0.5 * width * normal
    f.paint(fill, np.concatenate([above, below[..., ::-1, :]], axis=-2))
    if rims is not None:
        for edge in (above + 0.0015 * normal, below - 0.0015 * normal):
            f.stroke(rims, edge, 0.0035)


def _bubble(f: Frame, build: Build) -> Field:
    """Gas in the stomach, under the left dome."""
    size = build.bubble
    inside = np.clip(1 - f.blob(0.185, 0.752 + build.dome + build.left_lower, 0.09 * size, 0.045 * size, 0.15), 0, 1)
    return f.blur(np.asarray(0.5 * np.sqrt(inside), dtype=np.float32), 0.003)


def _vessels(f: Frame, build: Build, seed: list[int]) -> Field:
    """Hila and the branching vessels of both lungs."""
    rng = np.random.default_rng([*seed, 3])
    thick, thin = f.blank(), f.blank()
    field = np.zeros((f.size, f.size), np.float32)
    t = np.linspace(0, 1, 5)
    for side in SIDES:
        s = sign(side)
        x0, y0 = s * (0.088 if side == "right" else 0.098), 0.425 - 0.018 * (side == "left") + 0.3 * build.dome
        roots = 10
        angle = np.linspace(-1.3, 1.3, roots) + 0.14 * rng.standard_normal(roots)  # 0 points outwards, +pi/2 down
        start = np.stack([x0 + s * 0.012 * rng.random(roots), y0 + 0.055 * np.sin(angle)], axis=1)
        length = (0.065 + 0.05 * rng.random(roots)) * (1 + 0.25 * np.sin(angle))
        for level, width in enumerate((0.0105, 0.0062, 0.0040, 0.0026)):
            turn = angle[:, None] + 0.4 * rng.standard_normal(len(angle))[:, None] * t  # [K,5]
            move = np.stack([s * np.cos(turn), np.sin(turn)], axis=2) * (length[:, None, None] / 4)  # [K,5,2]
            line = start[:, None] + np.cumsum(move, axis=1) - move[:, :1]
            f.stroke(thin if level > 1 else thick, line, width, 0.75 if level == 3 else 1.0)
            start = np.repeat(line[:, -1], 2, axis=0)
            fork = 0.22 + 0.35 * rng.random(len(angle))
            angle = np.stack([turn[:, -1] - fork, turn[:, -1] + 0.8 * fork], axis=1).ravel()
            length = np.repeat(length, 2) * (0.5 + 0.45 * rng.random(len(angle)))
        hilum = f.blob(x0 - s * 0.014, y0 + 0.025, 0.036, 0.078, -s * 0.3)
        field += np.float32(0.24) * cv2.exp(-1.3 * hilum)
    # thinner towards the chest wall
    far = ((np.abs(f.x) - np.float32(0.093)) * np.float32(1 / 0.30)) ** 2 + (
        (f.y - np.float32(0.455)) * np.float32(1 / 0.34)
    ) ** 2
    field += cv2.exp(-1.6 * far) * (np.float32(0.20 / 255) * thick + np.float32(0.15 / 255) * thin)
    return f.blur(field, 0.0016)
