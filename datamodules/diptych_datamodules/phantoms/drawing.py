"""A phantom as a sample of a data set: picture, boxes and a mask. Processes that draw import this module, and no torch."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from diptych_datamodules.phantoms import FINDINGS, PhantomPlan, render

__all__ = ["Drawing", "Masks", "draw"]

Masks = Literal["lungs", "heart", "findings"]
Drawing = tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.bool_] | None]
"""A picture ``[size,size]``, its boxes ``[K,5]`` (x0, y0, x1, y1, finding), and a mask ``[size,size]`` if it is asked for."""


def draw(plan: PhantomPlan, size: int, masks: Masks | None = None) -> Drawing:
    """Draw a plan, with the mask of the lungs, the heart or the findings if it is asked for."""
    radiograph = render(plan, size)
    boxes = [[*finding.box, FINDINGS.index(finding.name)] for finding in radiograph.findings]
    mask: NDArray[np.bool_] | None = None
    if masks == "lungs":
        mask = radiograph.lungs["left"] | radiograph.lungs["right"]
    elif masks == "heart":
        mask = radiograph.heart
    elif masks == "findings":
        mask = np.asarray(radiograph.masks.any(axis=0))
    return radiograph.image, np.array(boxes, np.float32).reshape(-1, 5), mask
