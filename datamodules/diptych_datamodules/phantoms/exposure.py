"""From attenuation to a film: scatter, photon noise, the display curve and the side marker."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from diptych_datamodules.phantoms.anatomy import Build
from diptych_datamodules.phantoms.canvas import Field, Frame

__all__ = ["expose"]

_SCATTER = 0.10  # scattered photons as a share of those that pass nearby


def expose(attenuation: Field, build: Build, frame: Frame, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Expose and develop a picture, bright where X-rays were stopped.

    Photons that reach the detector follow ``exp(-attenuation)``; scatter veils dense parts, noise goes with the square
    root of the count, and the display shows the logarithm through a film-like curve.

    Args:
        attenuation: summed thickness ``[H,V]``.
        build: the exposure's window, gamma, photons and marker.
        frame: the raster; a smaller picture has larger pixels and so less noise.
        rng: source of the noise.
    """
    size = frame.size
    passed = cv2.exp(-attenuation)
    coarse = cv2.GaussianBlur(cv2.resize(passed, (48, 48), interpolation=cv2.INTER_AREA), (0, 0), 3.0)
    passed = passed + _SCATTER * cv2.resize(coarse, (size, size), interpolation=cv2.INTER_LINEAR)
    counts = build.photons * 1000 * (512 / size) ** 2
    noise = cv2.GaussianBlur(rng.standard_normal((size, size), dtype=np.float32), (0, 0), 0.55) * np.float32(1.35)
    passed = np.maximum(passed + cv2.sqrt(passed * np.float32(1 / counts)) * noise, np.float32(1e-3))
    shade = (-cv2.log(passed) - np.float32(build.black)) * np.float32(1 / build.span)
    shade = cv2.GaussianBlur(shade, (0, 0), max(0.0011 * size, 0.3))
    soft = np.where(shade < 0.8, shade, 0.8 + 0.2 * np.tanh((shade - 0.8) / 0.2))  # shoulder of the film curve
    film = np.asarray(np.clip(soft, 0.004, 1) ** np.float32(build.gamma) * 255, dtype=np.float32)
    if build.marker:
        film = np.maximum(film, _marker(build, size))
    return np.asarray(np.clip(film + 0.5, 0, 255), dtype=np.uint8)


def _marker(build: Build, size: int) -> Field:
    """The lead letter beside the patient's own side: ``R`` on the image's left, ``L`` on its right."""
    big = 1024
    canvas = np.zeros((big, big), np.uint8)
    down, inset = build.marker_place
    x = inset * big if build.marker == "R" else (1 - inset) * big - 42
    cv2.putText(canvas, build.marker, (int(x), int((down + 0.05) * big)), cv2.FONT_HERSHEY_SIMPLEX, 2.0, (235.0,), 7, cv2.LINE_AA)
    return np.asarray(cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA), dtype=np.float32)
