"""How well maps of a model point at the regions of findings: pointing, contrast, overlap."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as nn_functional

from diptych.errors import ConfigError, DataError
from diptych.metrics.localisation import measures as measures_of
from diptych.metrics.localisation import overlap_above
from diptych.types import Batch

__all__ = ["at_pixels", "in_picture", "region_measures", "regions_of"]


def at_pixels(maps: Tensor, height: int, width: int) -> Tensor:
    """Maps ``[B,N]`` over a square grid of regions, interpolated to the pixels of the network's input ``[B,H,V]``.

    >>> at_pixels(torch.tensor([[0.0, 1.0, 0.0, 1.0]]), 2, 4)[0].tolist()
    [[0.0, 0.25, 0.75, 1.0], [0.0, 0.25, 0.75, 1.0]]

    Raises:
        ConfigError: ``N`` is no square number.
    """
    side = math.isqrt(maps.shape[1])
    if side * side != maps.shape[1]:
        raise ConfigError(
            f"grounding: {maps.shape[1]} regions are no square grid, so they have no places; use another tower"
        )
    grid = maps.reshape(len(maps), 1, side, side)
    return nn_functional.interpolate(grid, (height, width), mode="bilinear", align_corners=False)[:, 0]


def in_picture(image: Tensor) -> Tensor:
    """The pixels ``[H,V]`` of an input that hold the picture: the rectangle around all that is not black.

    A letterbox pads with black bars, which are no part of the radiograph. If all is black, every pixel counts.

    >>> in_picture(torch.tensor([[[0, 0, 0], [0, 7, 0], [0, 9, 0]]])).int().tolist()
    [[0, 0, 0], [0, 1, 0], [0, 1, 0]]
    """
    lit = image.reshape(-1, *image.shape[-2:])[0] > 0  # the first, where there are others of the study
    area = torch.zeros_like(lit)
    rows, columns = lit.any(dim=1).nonzero().flatten(), lit.any(dim=0).nonzero().flatten()
    if not len(rows):
        return ~area
    area[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    return area


def regions_of(batch: Batch, rows: Tensor, columns: Sequence[int], findings: Sequence[str], name: str) -> Tensor:
    """Where a finding is in each image: the union of its boxes, or the mask, as ``[n,H,V]`` bool on the CPU.

    Args:
        batch: it has boxes or masks.
        rows: the ``n`` images.
        columns: the finding's places among ``findings``.
        findings: names of the data set's findings.
        name: the evaluator that asks, for the message.

    Raises:
        DataError: a mask does not say which of several findings it is of.
    """
    if batch.boxes is None:
        assert batch.masks is not None  # the caller has checked
        if len(findings) > 1:
            raise DataError(
                f"{name}: the data have one mask for {', '.join(findings)}, which does not say of what; "
                "read boxes, or a set with one finding"
            )
        return batch.masks[rows].cpu()
    regions = torch.zeros(len(rows), *batch.image.shape[-2:], dtype=torch.bool)
    for region, i in zip(regions, rows.tolist(), strict=True):
        for x0, y0, x1, y1, finding in batch.boxes[i].tolist():
            if int(finding) in columns:
                left, top, right, bottom = (max(0, round(v)) for v in (x0, y0, x1, y1))
                region[top:bottom, left:right] = True
    return regions


def region_measures(
    heat: Tensor, region: Tensor, picture: Tensor, cosines: Tensor | None = None, thresholds: Sequence[float] = ()
) -> list[float] | None:
    """The measures of a map (:mod:`diptych.metrics.localisation`), and the share of the picture that its region takes.

    Between the two are IoU and Dice at each threshold of the cosines, if there are any.

    There are none (None) where the region fills the picture.

    Args:
        heat: the map ``[H,V]``.
        region: ``[H,V]`` bool.
        picture: ``[H,V]`` bool, as :func:`in_picture` gives it. Pixels of the region outside it count too.
        cosines: a map ``[H,V]`` on a fixed scale.
        thresholds: of that map.
    """
    counted = picture | region
    level, inside = heat[counted].numpy(), region[counted].numpy()
    if inside.all():
        return None
    pixels = None if cosines is None else cosines[counted].numpy()
    fixed = () if pixels is None else [v for t in thresholds for v in overlap_above(pixels, inside, t)]
    return [*measures_of(level, inside), *fixed, float(inside.mean())]
