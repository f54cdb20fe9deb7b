"""From attenuation to a film: scatter, photon noise, the display curve and the side marker."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from diptych_datamodules.phantoms.anatomy import Build
from diptych_datamodules.phantoms.canvas import Field, Frame

__all__ = ["expose"]

_LEVELS = 2048  # steps of the display curve from black to white
_SCATTER = 0.10  # scattered photons as a share of those that pass nearby


def expose(attenuation: Field, build: Build, frame: Frame, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Expose and develop a picture, which is bright where X-rays were stopped.

    The share of photons that reach the detector is ``exp(-attenuation)``. Scatter veils dense parts. Noise grows with the
    square root of the count. The display shows the logarithm of the count, through a curve like that of a film.

    Args:
        attenuation: summed thickness ``[H,V]``.
        build: the exposure's window, gamma, photons and marker.
        frame: the raster. A smaller picture has larger pixels, and so less noise.
        rng: source of the noise.
    """
    size = frame.size
    passed = cv2.exp(-attenuation)
    coarse = cv2.GaussianBlur(cv2.resize(passed, (48, 48), interpolation=cv2.INTER_AREA), (0, 0), 3.0)
    passed = passed + _SCATTER * cv2.resize(coarse, (size, size), interpolation=cv2.INTER_LINEAR)
    counts = build.photons * 1000 * (512 / size) ** 2
    noise = cv2.GaussianBlur(rng.standard_normal((size, size), dtype=np.float32), (0, 0), 0.55) * np.float32(1.35)
    passed += cv2.sqrt(passed * np.float32(1 / counts)) * noise
    shade = cv2.log(np.maximum(passed, np.float32(1e-3)))
    shade = cv2.GaussianBlur(shade, (0, 0), max(0.0011 * size, 0.3))
    step = np.float32(-_LEVELS / build.span)
    level = np.clip(shade * step + np.float32(-build.black * _LEVELS / build.span), 0, 2 * _LEVELS - 1).astype(
        np.uint16
    )
    grey = np.arange(2 * _LEVELS) / _LEVELS
    curve = np.where(grey < 0.7, grey, 0.7 + 0.3 * np.tanh((grey - 0.7) / 0.3))  # bright parts bend, as on a film
    film = np.asarray(np.rint(255 * np.clip(curve, 0.004, 1) ** build.gamma).astype(np.uint8)[level])
    if build.marker:
        _print_marker(film, build)
    return film


def _print_marker(film: NDArray[np.uint8], build: Build) -> None:
    """Put the lead letter beside the patient's own side: ``R`` on the image's left, ``L`` on its right."""
    size = film.shape[0]
    down, inset = build.marker_place
    x = inset * size if build.marker == "R" else (1 - inset - 0.042) * size
    place, thick = (round(x), round((down + 0.05) * size)), max(1, round(size * 0.007))
    cv2.putText(film, build.marker, place, cv2.FONT_HERSHEY_SIMPLEX, size / 512, (235.0,), thick, cv2.LINE_AA)
