"""ReXGradient-160K: radiographs of 79 sites with reports, whose sections are given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, ClassVar, Literal

from diptych.checks import check_choice
from diptych.data.loading import Loading
from diptych.data.tables import find_file
from diptych.errors import DataError
from diptych.reports.tokenizer import Tokenizer
from diptych_datamodules.releases.base import Record, Release, image_file
from diptych_datamodules.releases.facts import OBTAIN
from diptych_datamodules.releases.json_tables import field, read_object

__all__ = ["VIEWS", "Rexgradient"]

Section = Literal["both", "findings", "impression"]
VIEWS = {
    "frontal": ("PA", "AP", "POSTERO_ANTERIOR", "ANTERO_POSTERIOR"),
    "lateral": ("LATERAL", "LL", "LAT"),
}
"""Values of ``ImageViewPosition``. Others, as ``UNKNOWN`` or none, may be any view."""
_OBTAIN = OBTAIN["rexgradient"]
_SPLITS = {"train": "train", "valid": "val", "test": "test"}
_FOLDER = "deid_png"


@dataclass(slots=True)
class _Image(Record):
    place: str = ""
    view: str = ""


class Rexgradient(Release):
    """``metadata/{train,valid,test}_metadata_view_position.json``, and ``deid_png`` as its archive unpacks.

    The release's pictures have a quarter of the width and height of the originals.

    Args:
        root: the folder that holds ``metadata`` and ``deid_png``.
        tokenizer: linked from the text tower by the command line.
        split: ``rexgradient/official``.
        section: the section that is the text, or ``both``.
        views: ``frontal``, ``lateral`` or ``all``, by :data:`VIEWS`. Images of an unnamed view are in ``all`` alone.
        percent: share of the training images. Those of 1 % are among those of 10 %.
        strict: refuse a release with missing images or empty reports. Otherwise they are left out, and counted.
        loading: how samples are loaded.
    """

    paper: ClassVar[str] = "Zhang et al., ReXGradient-160K, arXiv:2505.00228"
    needs: ClassVar[frozenset[str]] = frozenset({"metadata/*_metadata_view_position.json", "deid_png/"})
    holds: ClassVar[frozenset[str]] = frozenset({"image", "text"})
    data_set: ClassVar[str] = "rexgradient"

    def __init__(
        self,
        root: str,
        tokenizer: Tokenizer | None = None,
        *,
        split: str = "rexgradient/official",
        section: Section = "both",
        views: Literal["frontal", "lateral", "all"] = "frontal",
        percent: float = 100.0,
        strict: bool = False,
        loading: Loading = Loading(),  # noqa: B008  # frozen, and the command line shows its fields
    ) -> None:
        super().__init__(root, tokenizer, split=split, percent=percent, strict=strict, loading=loading)
        check_choice("data.section", section, ("both", "findings", "impression"))
        check_choice("data.views", views, (*VIEWS, "all"))
        self.section, self.views = section, views

    @property
    def protocol(self) -> str:
        """The split, the views, and the section that is the text."""
        return f"{super().protocol}, views {self.views}, section {self.section}"

    def records(self) -> list[Record]:
        """Every image of the three files. They count studies."""
        if not self.files.folders(self.root / _FOLDER):
            raise DataError(
                f"{self.root / _FOLDER}: no image in it; unpack the release's {_FOLDER}.part* there ({_OBTAIN})"
            )
        records: dict[str, Record] = {}
        self.counted = 0
        for name, split in _SPLITS.items():
            path = find_file(self.root, [f"metadata/{name}_metadata_view_position.json"], _OBTAIN)
            for study, entry in read_object(path).items():
                where = f"{path}: study '{study}'"
                self.counted += 1
                text, patient = self._text(entry, where), field(entry, "PatientID", str, where)
                places, views = (field(entry, key, list, where) for key in ("ImagePath", "ImageViewPosition"))
                if len(places) != len(views):
                    raise DataError(
                        f"{where}: {len(places)} images and {len(views)} views; get the release's own file anew"
                    )
                for place, view in zip(places, views, strict=True):
                    image = self._image(place, where)
                    if image in records:
                        raise DataError(
                            f"{where}: the image '{image}' stands there twice; get the release's own file anew"
                        )
                    file = image_file(f"{self.root / _FOLDER / image}", self.files)
                    records[image] = _Image(
                        image, file, patient, text, given=split, place=str(place), view=str(view).upper()
                    )
        return list(records.values())

    def _text(self, entry: Any, where: str) -> str:
        """The chosen sections without the empty ones. A section may be missing, ``None`` in letters, or no text at all."""
        names = {"both": ("Findings", "Impression"), "findings": ("Findings",), "impression": ("Impression",)}[
            self.section
        ]
        if not isinstance(entry, dict) or not any(name in entry for name in names):
            raise DataError(f"{where}: it has neither of {' and '.join(names)}; get the release's own file anew")
        texts = [entry.get(name) for name in names]
        parts = [text.strip() for text in texts if isinstance(text, str)]
        return "\n\n".join(part for part in parts if part and part.lower() != "none")

    def _image(self, place: Any, where: str) -> str:
        """The path of an image below ``deid_png``, without its suffix. The file has it from ``metadata``."""
        parts = PurePosixPath(str(place)).parts
        below = parts[parts.index(_FOLDER) + 1 :] if _FOLDER in parts else ()
        if not below or ".." in below:
            raise DataError(f"{where}: '{place}' is no path below ../{_FOLDER}; get the release's own file anew")
        return str(PurePosixPath(*below)).removesuffix(".png")

    def assign(self, records: Sequence[Record]) -> tuple[str, list[tuple[Record, str]]]:
        """The splits of the release, for the images of the views that are read."""
        name, assigned = super().assign(records)
        return name, [(record, split) for record, split in assigned if self._shows(record)]

    def _shows(self, record: Record) -> bool:
        return self.views == "all" or (isinstance(record, _Image) and record.view in VIEWS[self.views])

    def place(self, record: Record) -> str:
        """Where the image was looked for."""
        return record.place if isinstance(record, _Image) else ""
