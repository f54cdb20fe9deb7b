"""The images of MIMIC-CXR: their views, and which images of a study are read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from diptych_datamodules.releases.base import Record

__all__ = ["VIEWS", "StudyImage", "ViewChoice", "view_rank"]

VIEWS = {"frontal": ("PA", "AP"), "lateral": ("LATERAL", "LL")}


@dataclass(slots=True)
class StudyImage(Record):
    """An image, with the study that it is of."""

    study: str = ""


def view_rank(view: str) -> int:
    """The order in which an image stands for its study: a PA before an AP before another view.

    >>> sorted(["LATERAL", "AP", "PA"], key=view_rank)
    ['PA', 'AP', 'LATERAL']
    """
    return VIEWS["frontal"].index(view) if view in VIEWS["frontal"] else len(VIEWS["frontal"])


@dataclass(frozen=True)
class ViewChoice:
    """Which images are read.

    Args:
        views: ``frontal``, ``lateral``, or ``all``.
        per_study: all such images of a study, or the ``one`` of the first rank.
    """

    views: Literal["frontal", "lateral", "all"]
    per_study: Literal["all", "one"]

    def __str__(self) -> str:
        return f"views {self.views}, {self.per_study} of a study"

    def takes(self, image: StudyImage) -> bool:
        """Whether an image has one of these views."""
        return self.views == "all" or image.view in VIEWS[self.views]

    def images(self, images: Iterable[StudyImage]) -> dict[str, StudyImage]:
        """The images that are read, by their ids."""
        chosen = [image for image in images if self.takes(image)]
        if self.per_study == "one":
            best: dict[str, StudyImage] = {}
            for image in chosen:
                other = best.setdefault(image.study, image)
                if view_rank(image.view) < view_rank(other.view):
                    best[image.study] = image
            chosen = list(best.values())
        return {image.id: image for image in chosen}
