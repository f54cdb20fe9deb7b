"""Augmentation in training: small random changes of picture, boxes, report and mask together.

Every random draw is a function of (seed, epoch, index). So workers, restarts and the number of processes change nothing.
Reports name sides, so a picture is flipped only together with its report.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from diptych.checks import check_number
from diptych.errors import DataError
from diptych.radiographs.letterbox import Boxes, Mask
from diptych.reports.text import mirror

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks a registry for a newer version at import otherwise

__all__ = ["Augment", "AugmentedSample", "Augmenter"]


@dataclass(frozen=True)
class Augment:
    """Augmentation in training. A change is off at 0.

    Args:
        rotate: largest turn either way, degrees.
        zoom: largest change of size either way, as a share (0.1: 0.9 to 1.1 times).
        shift: largest displacement either way, as a share of the side.
        brightness: largest change of brightness, as a share of the full range.
        contrast: largest change of contrast, as a share.
        flip: probability of a horizontal flip of picture *and* report, in which the sides named are swapped. Where they
            cannot be swapped safely, report and picture stay as they are. The flipped heart lies on the wrong side, and no
            report says so. Leave it at 0 unless you mean it.
    """

    rotate: float = 5.0
    zoom: float = 0.1
    shift: float = 0.05
    brightness: float = 0.1
    contrast: float = 0.1
    flip: float = 0.0

    def __post_init__(self) -> None:
        for name in ("rotate", "zoom", "shift", "brightness", "contrast", "flip"):
            check_number(f"augment.{name}", getattr(self, name), least=0, most=180 if name == "rotate" else 1)


class AugmentedSample(NamedTuple):
    """A sample after augmentation."""

    image: NDArray[np.uint8]
    boxes: Boxes | None
    text: str | None
    mask: Mask | None = None


class Augmenter:
    """Applies an :class:`Augment` to picture, boxes, report and mask together."""

    def __init__(self, augment: Augment) -> None:
        import albumentations as A

        self.flip = augment.flip
        steps: list[Any] = []
        if augment.rotate or augment.zoom or augment.shift:
            zoom = (1 - augment.zoom, 1 + augment.zoom)
            shift = (-augment.shift, augment.shift)
            turn = (-augment.rotate, augment.rotate)
            steps.append(A.Affine(scale=zoom, translate_percent=shift, rotate=turn, p=1.0))
        if augment.brightness or augment.contrast:
            steps.append(
                A.RandomBrightnessContrast(
                    brightness_limit=(-augment.brightness, augment.brightness),
                    contrast_limit=(-augment.contrast, augment.contrast),
                    p=1.0,
                )
            )
        # Boxes that the shift pushes out of the picture are dropped, those cut are clipped.
        box_rule = A.BboxParams(format="pascal_voc", label_fields=["findings"], clip=True, min_visibility=0.1)
        self.steps = A.Compose(steps, bbox_params=box_rule)

    def __call__(
        self, image: NDArray[np.uint8], boxes: Boxes | None, text: str | None, seed: int, mask: Mask | None = None
    ) -> AugmentedSample:
        """Augment a picture ``[H,V]``, boxes ``[K,5]``, report and mask ``[H,V]``. Equal seeds give equal results."""
        if self.flip and np.random.default_rng([seed, 1]).random() < self.flip:
            try:
                text = None if text is None else mirror(text)
            except DataError:
                pass  # the rule above: neither the report nor its picture is flipped
            else:
                image = np.ascontiguousarray(image[:, ::-1])
                if boxes is not None:
                    boxes = boxes.copy()
                    boxes[:, [0, 2]] = image.shape[1] - boxes[:, [2, 0]]
                mask = None if mask is None else np.ascontiguousarray(mask[:, ::-1])
        self.steps.set_random_seed(seed % 2**32)
        rows = np.zeros((0, 5), np.float32) if boxes is None else boxes
        more = {} if mask is None else {"mask": mask.astype(np.uint8)}
        out = self.steps(image=image, bboxes=rows[:, :4], findings=rows[:, 4], **more)
        moved = None
        if boxes is not None:
            moved = np.zeros((len(out["bboxes"]), 5), np.float32)
            if len(moved):
                moved[:, :4], moved[:, 4] = out["bboxes"], out["findings"]
        return AugmentedSample(out["image"], moved, text, None if mask is None else out["mask"] > 0)
