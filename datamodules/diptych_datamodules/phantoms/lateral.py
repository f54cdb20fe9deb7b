"""A plain lateral view of a phantom, for the layouts that have one. It shows the body, and none of the findings."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from diptych_datamodules.phantoms.anatomy import sample_build
from diptych_datamodules.phantoms.canvas import Frame, Points, smooth
from diptych_datamodules.phantoms.exposure import expose
from diptych_datamodules.phantoms.plan import PhantomPlan

__all__ = ["render_lateral"]


def render_lateral(plan: PhantomPlan, size: int = 128) -> NDArray[np.uint8]:
    """Draw a lateral picture ``[size,size]`` of the patient, facing the image's left."""
    seed = [plan.seed, plan.index, 11]
    build = sample_build(
        np.random.default_rng([plan.seed, plan.patient, 2]),
        np.random.default_rng(seed),
        female=plan.sex == "F",
        portable=False,
    )
    f = Frame(max(size, 256), zoom=build.zoom, tilt=build.tilt, shift=build.shift)
    low = build.dome
    body = f.fill(
        _curve(
            (-0.10, -0.3), (-0.11, 0.04), (-0.20, 0.12), (-0.27, 0.25), (-0.31 - 0.05 * build.female, 0.42), (-0.30, 0.60),
            (-0.31, 1.3), (0.30, 1.3), (0.31, 0.75), (0.345, 0.50), (0.33, 0.30), (0.26, 0.12), (0.15, 0.02), (0.13, -0.3),
        )
    )  # fmt: skip
    lung = f.fill(
        _curve(
            (-0.02, 0.13), (-0.12, 0.19), (-0.20, 0.30), (-0.245, 0.45), (-0.25, 0.62 + low), (-0.19, 0.645 + low),
            (-0.08, 0.635 + low), (0.06, 0.675 + low), (0.17, 0.76 + low), (0.225, 0.83 + low), (0.25, 0.80 + low),
            (0.275, 0.62), (0.27, 0.42), (0.22, 0.24), (0.13, 0.14),
        )
    )  # fmt: skip
    total = (1.75 + 0.25 * build.fat) * f.blur(f.depth(body, 0.15), 0.006) - 1.15 * f.blur(f.depth(lung, 0.11), 0.0025)
    heart = f.fill(
        _curve(
            (-0.10, 0.38), (-0.19, 0.46), (-0.225, 0.58), (-0.20, 0.68), (-0.05, 0.69), (0.04, 0.62), (0.045, 0.52),
            (-0.01, 0.42),
        )
    )  # fmt: skip
    total += 0.55 * f.depth(heart, 0.10) * f.blur(heart, 0.004) * (0.2 + 0.8 * lung)
    total += 0.10 * f.fill(
        _curve((-0.10, 0.40), (-0.10, 0.28), (-0.02, 0.235), (0.08, 0.27), (0.12, 0.40), (0.07, 0.32), (-0.02, 0.285))
    )

    bones, rims, arms = f.blank(), f.blank(), f.blank()
    y = np.linspace(-0.1, 1.1, 26)
    x = np.interp(y, [-0.1, 0.05, 0.2, 0.5, 0.85, 1.1], [0.055, 0.085, 0.17, 0.25, 0.235, 0.20])
    block = np.array([(-0.030, 0.003), (0.030, 0.003), (0.028, 0.038), (-0.028, 0.038)])
    vertebrae = np.stack([x, y], axis=1)[:, None] + block  # [26,4,2]
    f.paint(bones, vertebrae)
    f.stroke(rims, vertebrae, 0.004, closed=True)
    f.stroke(bones, _open((-0.215, 0.20), (-0.262, 0.34), (-0.275, 0.52)), 0.018, 0.7)  # breastbone
    for i in range(9):
        top = 0.13 + 0.062 * i
        rib = _open((0.24, top), (0.14, top + 0.015), (0.0, top + 0.075), (-0.15, top + 0.145))
        f.stroke(rims, rib, 0.009, 0.55)
    f.paint(arms, _curve((-0.30, -0.1), (-0.10, 0.02), (0.06, 0.10), (0.02, 0.17), (-0.14, 0.10), (-0.40, 0.02)))
    airway = f.blank()
    f.stroke(airway, _open((-0.01, -0.1), (0.0, 0.18), (0.03, 0.37)), 0.034)
    total += (
        0.24 * f.blur(f.level(bones), 0.004) + 0.13 * f.blur(f.level(rims), 0.002) + 0.20 * f.blur(f.level(arms), 0.010)
    )
    total -= 0.22 * f.blur(f.level(airway), 0.005)
    rng = np.random.default_rng(seed)
    total += f.cloud(rng, {30: 0.02, 80: 0.02, 160: 0.015}) * lung
    total += 0.22 * np.exp(-1.2 * f.blob(0.005, 0.42, 0.05, 0.07)) * lung  # hila
    image = expose(np.asarray(np.maximum(total, 0), dtype=np.float32), build, f, rng)
    return np.asarray(
        image if f.size == size else cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA), dtype=np.uint8
    )


def _curve(*points: tuple[float, float]) -> Points:
    return smooth(points)


def _open(*points: tuple[float, float]) -> Points:
    return smooth(points, closed=False)
