"""Boxes of releases whose pictures have many sizes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diptych_datamodules.releases.base import Record, ReleaseDataset

__all__ = ["SizedDataset", "SizedRecord"]


@dataclass(slots=True)
class SizedRecord(Record):
    """An image with the size of the release's own picture."""

    size: tuple[int, int] | None = None
    """Height and width that its boxes are measured in. None: those of the file."""


class SizedDataset(ReleaseDataset):
    """Boxes are in pixels of each :attr:`SizedRecord.size`, so copies of another size have them scaled."""

    def regions(
        self, record: Record, native: tuple[int, int]
    ) -> tuple[NDArray[np.float32] | None, NDArray[np.bool_] | None]:
        """Boxes ``[K,5]`` in pixels of the user's file. There are no masks."""
        size = record.size if isinstance(record, SizedRecord) else None
        if record.boxes is None or size is None or size == native:
            return record.boxes, None
        boxes = record.boxes.copy()
        boxes[:, :4] *= np.array([native[1] / size[1], native[0] / size[0]] * 2, np.float32)
        return boxes, None
