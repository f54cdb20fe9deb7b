"""PadChest: 16-bit PNG files, Spanish reports, and labels by physicians or by a network that learned from them."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from diptych.checks import check_choice
from diptych.data.loading import Loading
from diptych.data.splits import assign
from diptych.data.tables import find_file, scan_table
from diptych.errors import ConfigError, DataError
from diptych.plugins import nearest
from diptych.reports.tokenizer import Tokenizer
from diptych_datamodules.releases.base import Record, Release, index_images
from diptych_datamodules.releases.facts import OBTAIN

__all__ = ["BROKEN", "FREQUENT", "Padchest", "label_names"]

FREQUENT = (
    "adenopathy", "air trapping", "alveolar pattern", "aortic atheromatosis", "aortic button enlargement",
    "aortic elongation", "apical pleural thickening", "artificial aortic heart valve", "artificial heart valve",
    "artificial mitral heart valve", "atelectasis", "axial hyperostosis", "azygos lobe", "bone metastasis",
    "bronchiectasis", "bronchovascular markings", "bullas", "calcified adenopathy", "calcified densities",
    "calcified granuloma", "calcified pleural thickening", "callus rib fracture", "cardiomegaly", "cavitation",
    "central vascular redistribution", "central venous catheter", "central venous catheter via jugular vein",
    "central venous catheter via subclavian vein", "chest drain tube", "chronic changes", "clavicle fracture",
    "consolidation", "COPD signs", "costochondral junction hypertrophy", "costophrenic angle blunting", "dai",
    "descendent aortic elongation", "diaphragmatic eventration", "dual chamber device", "emphysema", "end on vessel",
    "endotracheal tube", "fibrotic band", "flattened diaphragm", "goiter", "granuloma", "ground glass pattern",
    "gynecomastia", "heart insufficiency", "hemidiaphragm elevation", "hiatal hernia", "hilar congestion",
    "hilar enlargement", "humeral fracture", "hyperinflated lung", "hypoexpansion", "hypoexpansion basal",
    "increased density", "infiltrates", "interstitial pattern", "kyphosis", "laminar atelectasis", "lobar atelectasis",
    "lung metastasis", "mammary prosthesis", "mastectomy", "mediastinal enlargement", "mediastinal mass",
    "mediastinic lipomatosis", "metal", "minor fissure thickening", "multiple nodules", "nipple shadow", "nodule",
    "non axial articular degenerative changes", "NSG tube", "osteopenia", "osteoporosis", "osteosynthesis material",
    "pacemaker", "pectum excavatum", "pleural effusion", "pleural thickening", "pneumonia", "pneumothorax",
    "pseudonodule", "pulmonary edema", "pulmonary fibrosis", "pulmonary mass", "reservoir central venous catheter",
    "reticular interstitial pattern", "reticulonodular interstitial pattern", "rib fracture", "sclerotic bone lesion",
    "scoliosis", "single chamber device", "sternotomy", "superior mediastinal enlargement", "supra aortic elongation",
    "surgery", "surgery breast", "surgery lung", "surgery neck", "suture material", "thoracic cage deformation",
    "tracheal shift", "tracheostomy tube", "tuberculosis", "tuberculosis sequelae", "vascular hilar enlargement",
    "vascular redistribution", "vertebral anterior compression", "vertebral compression",
    "vertebral degenerative changes", "vertebral fracture", "volume loss",
)  # fmt: skip
"""What physicians found in 50 images or more, without ``normal``, ``unchanged``, ``exclude`` and ``suboptimal study``."""
BROKEN = frozenset(
    f"216840111366964{name}" for name in (
        "012819207061112010307142602253_04-014-084", "012989926673512011074122523403_00-163-058",
        "012959786098432011033083840143_00-176-115", "012558082906712009327122220177_00-102-064",
        "012339356563862009072111404053_00-043-192", "013076187734852011291090445391_00-196-188",
        "012373310883942009117084022290_00-064-025", "012283393834152009033102258826_00-059-087",
        "012373310883942009170084120009_00-097-074", "012819207061112010315104455352_04-024-184",
        "012819207061112010306085429121_04-020-102", "012989926673512011083134050913_00-168-009",
        "012373310883942009152114636712_00-102-045", "012819207061112010281134410801_00-129-131",
        "012487858717522009280135853083_00-075-001", "012989926673512011151082430686_00-157-045",
        "013686042548532013208193054515_02-026-007", "013590140476722013058110301622_02-056-111",
        "013590140476722013043111952381_02-065-198", "013829543166512013353113303615_02-092-190",
        "013962490064942014134093945580_01-178-104",
    )
)  # fmt: skip
"""Images whose files the release lacks or has broken, as torchxrayvision's reader lists them."""

VIEWS = {"frontal": ("PA", "AP", "AP_horizontal"), "lateral": ("L",)}
_OBTAIN = OBTAIN["padchest"]
_TABLE = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
_COLUMNS = ("ImageID", "PatientID", "Projection", "MethodLabel", "Report", "Labels")
_VALIDATION = {"train": 0.9, "val": 0.1}


def label_names(listed: str) -> frozenset[str] | None:
    """The labels of an image, from the Python list that the table holds. None, if it has none: the table says ``nan``.

    Some names begin with a blank, and some are empty.

    >>> sorted(label_names("['COPD signs', ' pleural effusion', '']")), label_names("nan")
    (['COPD signs', 'pleural effusion'], None)

    Raises:
        ValueError: it is neither a list of texts nor ``nan``.
    """
    if listed == "nan":
        return None
    try:
        names = ast.literal_eval(listed)  # reads values, and runs nothing
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise ValueError(f"'{listed[:80]}' is no list ({type(error).__name__})") from None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"'{listed[:80]}' is no list of texts")
    return frozenset(name.strip() for name in names) - {""}


@dataclass(slots=True)
class _Image(Record):
    view: str = ""


class Padchest(Release):
    """``PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv``, and the folders ``0`` to ``54`` of 16-bit PNG files.

    The reports are Spanish, in lower case, and their words are cut down to stems: the release has no others.

    Args:
        root: the folder that holds the table and the folders of images. Or all images are in ``images``.
        tokenizer: linked from the text tower by the command line.
        split: ``padchest/physician`` (the test are the 39,053 images that physicians labelled) or ``padchest/hash``.
        views: ``frontal`` (PA, AP and AP_horizontal), ``lateral`` (L), or ``all``. A few images of other views are in ``all``
            alone.
        findings: names of the labels that are read. :data:`FREQUENT`, if not given.
        percent: share of the training images. Those of 1 % are among those of 10 %.
        strict: refuse a release with missing or broken images. Otherwise they are left out, and counted.
        loading: how samples are loaded.
    """

    paper: ClassVar[str] = "Bustos et al., PadChest, Medical Image Analysis 66, 2020"
    needs: ClassVar[frozenset[str]] = frozenset({_TABLE, "0/*.png"})
    holds: ClassVar[frozenset[str]] = frozenset({"image", "text", "labels"})
    data_set: ClassVar[str] = "padchest"

    def __init__(
        self,
        root: str,
        tokenizer: Tokenizer | None = None,
        *,
        split: str = "padchest/physician",
        views: Literal["frontal", "lateral", "all"] = "frontal",
        findings: Sequence[str] | None = None,
        percent: float = 100.0,
        strict: bool = False,
        loading: Loading = Loading(),  # noqa: B008  # frozen, and the command line shows its fields
    ) -> None:
        super().__init__(root, tokenizer, split=split, percent=percent, strict=strict, loading=loading)
        check_choice("data.views", views, (*VIEWS, "all"))
        self.findings = FREQUENT if findings is None else tuple(findings)
        if not self.findings or len(set(self.findings)) < len(self.findings):
            raise ConfigError(f"data.findings is {list(self.findings)}; give one name or more, each once")
        self.views = views

    @property
    def protocol(self) -> str:
        """The split, and the views that were read."""
        return f"{super().protocol}, views {self.views}"

    def records(self) -> list[Record]:
        """Every image of the table."""
        table = find_file(self.root, [_TABLE], _OBTAIN)
        folders = [name for name in self.files.folders(self.root) if name.isdecimal()]
        images = index_images([self.root / name for name in ("images", *folders)], self.files)
        known: dict[str, tuple[frozenset[str] | None, NDArray[np.float32]]] = {}
        found: set[str] = set()
        physician: dict[str, bool] = {}
        records: list[Record] = []
        for name, patient, view, method, report, listed in scan_table(table, _COLUMNS):
            if listed not in known:
                try:
                    names = label_names(listed)
                except ValueError as error:
                    raise DataError(f"{table}: the labels of '{name}': {error}; get the table anew") from None
                known[listed] = names, self._vector(names)
                found |= names or frozenset()
            text = report if any(map(str.isalpha, report)) else ""
            key = Path(name).stem
            if key in physician:
                raise DataError(f"{table}: '{name}' stands there twice; get the table anew")
            physician[key] = method == "Physician"
            records.append(_Image(key, images.get(key), patient, text, known[listed][1], view=view))
        unknown = [name for name in self.findings if name not in found]
        if unknown and self.findings is not FREQUENT:
            near = ", ".join(nearest(unknown[0], found)[:5])
            raise ConfigError(f"data.findings: no image is labelled '{unknown[0]}'; the most similar labels are {near}")
        if self.split == "padchest/physician":
            tested = {record.patient for record in records if physician[record.id]}
            for record in records:
                if physician[record.id]:
                    record.given = "test"
                elif record.patient not in tested:
                    record.given = assign(record.patient, _VALIDATION, 0)
        self.counted = len(records)
        return records

    def _vector(self, names: frozenset[str] | None) -> NDArray[np.float32]:
        if names is None:
            return np.full(len(self.findings), np.nan, np.float32)
        return np.array([name in names for name in self.findings], np.float32)

    def assign(self, records: Sequence[Record]) -> tuple[str, list[tuple[Record, str]]]:
        """The splits, for the images of the views that are read."""
        name, assigned = super().assign(records)
        return name, [(record, split) for record, split in assigned if self._shows(record)]

    def _shows(self, record: Record) -> bool:
        return self.views == "all" or (isinstance(record, _Image) and record.view in VIEWS[self.views])

    def _usable(self, record: Record) -> bool:
        if record.id in BROKEN:
            self.dropped.add("broken in the release", record.id)
            return False
        return super()._usable(record)
