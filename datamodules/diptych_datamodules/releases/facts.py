"""What each public release is made of, and where it is obtained, as data. Importing it costs nothing.

Readers use these words in their messages about missing files. ``diptych check-data`` looks for all files at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["OBTAIN", "RELEASES", "Facts", "Part"]

OBTAIN = {
    "rsna": "get stage 2 of the RSNA Pneumonia Detection Challenge (kaggle.com/c/rsna-pneumonia-detection-challenge)",
    "siim": "get the SIIM-ACR Pneumothorax Segmentation data (kaggle.com/c/siim-acr-pneumothorax-segmentation)",
    "nih": "get it from nihcc.app.box.com/v/ChestXray-NIHCC",
    "nih/chexnet": "get it from ChestX-ray14/labels of the arnoweng/CheXNet repository",
    "vindr_cxr": "get VinDr-CXR 1.0.0 from physionet.org/content/vindr-cxr",
    "vindr_cxr/kaggle": "get the VinBigData Chest X-ray Abnormalities Detection data "
    "(kaggle.com/c/vinbigdata-chest-xray-abnormalities-detection)",
    "padchest": "get PadChest from bimcv.cipf.es/bimcv-projects/padchest",
    "ms_cxr": "get MS-CXR 1.1.0 from physionet.org/content/ms-cxr, and put its json beside MIMIC-CXR-JPG's files/, or name it "
    "as data.annotations",
    "rexgradient": "get metadata/ and deid_png.part* from huggingface.co/datasets/rajpurkarlab/ReXGradient-160K",
    "openi": "get NLMCXR_reports.tgz and NLMCXR_png.tgz from openi.nlm.nih.gov/faq, or the Kaggle copy "
    "(raddar/chest-xrays-indiana-university)",
    "chexpert": "get CheXpert-v1.0 or CheXpert-v1.0-small from stanfordaimi.azurewebsites.net",
    "chexpert/plus": "get df_chexpert_plus_240401.csv of CheXpert Plus from stanfordaimi.azurewebsites.net",
    "chexpert/test": "get test_labels.csv and test/ of CheXlocalize from stanfordaimi.azurewebsites.net, or groundtruth.csv of "
    "rajpurkarlab/cheXpert-test-set-labels",
    "chestx_det10": "get train.json and test.json of github.com/Deepwise-AILab/ChestX-Det10-Dataset, and train_data.zip and "
    "test_data.zip, whose addresses its README has",
    "object_cxr": "get train.csv, dev.csv, train.zip and dev.zip of object-CXR from archive.org/download/object-CXR or "
    "academictorrents.com",
    "covidx": "get COVIDx CXR from kaggle.com/datasets/andyczhao/covidx-cxr2, and lists of other versions from labels/ of "
    "lindawangg/COVID-Net",
    "tbx11k": "get TBX11K from mmcheng.net/tb or kaggle.com/datasets/usmanshams/tbx-11, unpack it",
    "mimic_cxr": "get MIMIC-CXR-JPG from physionet.org/content/mimic-cxr-jpg",
    "mimic_cxr/reports": "get mimic-cxr-reports.zip from physionet.org/content/mimic-cxr and name it as data.reports",
    "mimic_cxr/2.1.0": "get MIMIC-CXR-JPG 2.1.0, which adds it",
}
"""Where a release, or what belongs to it, can be had."""


@dataclass(frozen=True)
class Part:
    """One file or folder of a release."""

    names: tuple[str, ...]
    """Patterns below the root. One of them is enough. ``a + b`` needs both, and a folder is ``folder/*``."""
    holds: str
    obtain: str
    """A key of :data:`OBTAIN`."""
    option: str = ""
    """``name=value`` of the only option that needs it. Empty, if it is always needed."""
    instead: tuple[str, ...] = ()
    """Options, or ``name=value`` of them, with which it is not needed."""
    splits: tuple[str, ...] = ()
    """The protocols that need it. Empty, if all do."""

    @property
    def title(self) -> str:
        """Its names, for people."""
        return " or ".join(name.replace("/*", "/") for name in self.names)

    def paths(self, root: Path) -> list[Path]:
        """The files or folders of the first pattern that exists. A table may be ``.gz`` or ``.zip`` too."""
        for name in self.names:
            places = [next(_glob(root, pattern), None) for pattern in name.split(" + ")]
            if all(places):
                return [place for place in places if place is not None]
        return []

    def is_needed(self, options: Mapping[str, str], split: str) -> bool:
        """Whether a reader with these options needs it."""
        if self.splits and split not in self.splits:
            return False
        name, _, value = self.option.partition("=")
        choices = options.keys() | {f"{key}={choice}" for key, choice in options.items()}
        return not choices & set(self.instead) and (not name or options.get(name) == value)


def _glob(root: Path, pattern: str) -> Iterator[Path]:
    for end in ("", ".gz", ".zip") if pattern.endswith(".csv") else ("",):
        for path in root.glob(pattern + end):
            yield path.parent if pattern.endswith("/*") else path


@dataclass(frozen=True)
class Facts:
    """A release."""

    total: int
    """How many there are, counted in the release's own tables."""
    unit: str
    """What is counted."""
    split: str
    """The protocol that reads most of it."""
    parts: tuple[Part, ...]
    whole: Mapping[str, str] = field(default_factory=dict)
    """Options with which that protocol reads all of it. An option whose part is missing is left at its default."""


_CHEXPERT_ALL = ("chexpert/linear", "chexpert/official", "chexpert/test500")
_CHEXPERT_TABLES = ("", "CheXpert*/")

RELEASES: dict[str, Facts] = {
    "rsna": Facts(
        26_684, "images", "rsna/gloria-cls",
        (
            Part(("stage_2_train_labels.csv",), "labels and boxes", "rsna"),
            Part(("stage_2_train_images/*",), "images", "rsna"),
            Part(("stage_2_detailed_class_info.csv",), "three classes", "rsna", option="labels=classes"),
            Part(("stage_2_test_images/*",), "test images", "rsna", splits=("rsna/mrm",)),
        ),
    ),
    "siim": Facts(
        12_047, "images", "siim/image-level",
        (
            Part(("train-rle.csv", "stage_2_train.csv"), "masks", "siim"),
            Part(("dicom-images-train/*", "stage_2_images/*"), "images", "siim"),
        ),
    ),
    "nih": Facts(
        112_120, "images", "nih/official",
        (
            Part(("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv"), "labels and patients", "nih"),
            Part(("images/*", "images_[0-9]*/*"), "images", "nih"),
            Part(("test_list.txt",), "the test split", "nih", instead=("lists",)),
            Part(("train_val_list.txt",), "the official split", "nih", instead=("lists",), splits=("nih/official",)),
            *(
                Part((name,), "the other split", "nih/chexnet", instead=("lists",), splits=("nih/chexnet",))
                for name in ("train_list.txt", "val_list.txt")
            ),
            Part(("BBox_List_2017.csv",), "boxes", "nih", option="boxes=true"),
        ),
        {"boxes": "true"},
    ),
    "vindr_cxr": Facts(
        18_000, "images", "vindr_cxr/official",
        (
            *(
                Part((f"annotations/{name}.csv", f"{name}.csv"), holds, "vindr_cxr", splits=("vindr_cxr/official",))
                for name, holds in (
                    ("image_labels_train", "three readers' labels"), ("image_labels_test", "the test's labels"),
                    ("annotations_train", "three readers' boxes"), ("annotations_test", "the test's boxes"),
                )
            ),
            Part(("train.csv",), "three readers' boxes", "vindr_cxr/kaggle", splits=("vindr_cxr/kaggle",)),
            Part(("train/*",), "training images", "vindr_cxr"),
            Part(("test/*",), "test images", "vindr_cxr", splits=("vindr_cxr/official",)),
        ),
    ),
    "padchest": Facts(
        160_861, "images", "padchest/physician",
        (
            Part(
                ("PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv",), "labels, reports and patients", "padchest",
            ),
            Part(("[0-9]*/*", "images/*"), "images", "padchest"),
        ),
        {"views": "all"},
    ),
    "ms_cxr": Facts(
        1_162, "pairs of image and phrase", "ms_cxr/all",
        (
            Part(
                ("MS_CXR_Local_Alignment_v1.1.0.json", "MS_CXR_Local_Alignment_v1.0.0.json"), "phrases and boxes", "ms_cxr",
                instead=("annotations",),
            ),
            Part(("files/*",), "images", "mimic_cxr"),
        ),
    ),
    "rexgradient": Facts(
        160_000, "studies", "rexgradient/official",
        (
            *(
                Part((f"metadata/{name}_metadata_view_position.json",), "reports, views and paths", "rexgradient")
                for name in ("train", "valid", "test")
            ),
            Part(("deid_png/*",), "images", "rexgradient"),
        ),
        {"views": "all"},
    ),
    "openi": Facts(
        3_955, "reports", "openi/hash",
        (
            Part(
                ("ecgen-radiology/*", "NLMCXR_reports.tgz", "indiana_reports.csv + indiana_projections.csv"), "reports",
                "openi",
            ),
            Part(("NLMCXR_png/*", "images/images_normalized/*", "**/*.png"), "images", "openi"),
        ),
    ),
    "chexpert": Facts(
        223_414, "rows of train.csv", "chexpert/official",
        (
            Part(tuple(f"{at}train.csv" for at in _CHEXPERT_TABLES), "training labels", "chexpert"),
            Part(
                tuple(f"{at}valid.csv" for at in _CHEXPERT_TABLES), "radiologists' labels", "chexpert",
                splits=_CHEXPERT_ALL,
            ),
            Part(("train/*", "CheXpert*/train/*", "CheXpert*(train*/*"), "images", "chexpert", instead=("images",)),
            Part(
                ("valid/*", "CheXpert*/valid/*"), "validation images", "chexpert", instead=("images",),
                splits=_CHEXPERT_ALL,
            ),
            Part(
                tuple(f"{at}{name}.csv" for name in ("test_labels", "groundtruth") for at in _CHEXPERT_TABLES),
                "labels of the 500 test studies", "chexpert/test", splits=("chexpert/test500",),
            ),
            Part(
                ("test/*", "CheXpert*/test/*"), "test images", "chexpert/test", instead=("images",),
                splits=("chexpert/test500",),
            ),
            Part(("df_chexpert_plus_240401.csv",), "reports", "chexpert/plus", option="reports=df_chexpert_plus_240401.csv"),
        ),
        {"frontal": "false"},
    ),
    "chestx_det10": Facts(
        3_543, "images", "chestx_det10/official",
        (
            Part(("train.json",), "boxes of the training images", "chestx_det10"),
            Part(("test.json",), "boxes of the test images", "chestx_det10"),
            Part(("train_data/*", "images/*", "images_[0-9]*/*"), "training images", "chestx_det10"),
            Part(("test_data/*", "images/*", "images_[0-9]*/*"), "test images", "chestx_det10"),
        ),
    ),
    "object_cxr": Facts(
        9_000, "images of train.csv and dev.csv", "object_cxr/dev",
        (
            Part(("train.csv",), "shapes of the training images", "object_cxr"),
            Part(("dev.csv",), "shapes of the development images", "object_cxr"),
            Part(("train/*",), "training images", "object_cxr"),
            Part(("dev/*",), "development images", "object_cxr"),
            Part(("test.csv",), "shapes of the test images", "object_cxr", splits=("object_cxr/official",)),
            Part(("test/*",), "test images", "object_cxr", splits=("object_cxr/official",)),
        ),
        {"masks": "true"},
    ),
    "covidx": Facts(
        84_818, "images of three lists", "covidx/cxr-4",
        (
            *(
                Part((f"{split}.txt",), f"the {split} split", "covidx", splits=("covidx/cxr-4",))
                for split in ("train", "val", "test")
            ),
            Part(("train/*",), "training images", "covidx"),
            Part(("val/*",), "validation images", "covidx", splits=("covidx/cxr-4",)),
            Part(("test/*",), "test images", "covidx"),
            *(
                Part(
                    (f"{split}_COVIDx_CXR-3A.txt",), f"the {split} split of three classes", "covidx",
                    splits=("covidx/cxr-3a",),
                )
                for split in ("train", "test")
            ),
            *(
                Part((f"{split}_COVIDx_CXR-3B.txt", f"{split}.txt"), f"the {split} split", "covidx", splits=("covidx/cxr-3",))
                for split in ("train", "test")
            ),
            *(
                Part((f"{split}_COVIDx9B.txt", f"{split}.txt"), f"the {split} split", "covidx", splits=("covidx/cxr-2",))
                for split in ("train", "test")
            ),
        ),
    ),
    "tbx11k": Facts(
        8_400, "images of two lists", "tbx11k/val",
        (
            *(Part((f"lists/TBX11K_{name}.txt",), f"the {name} split", "tbx11k") for name in ("train", "val")),
            *(
                Part((f"annotations/json/TBX11K_{name}.json",), f"boxes of the {name} split", "tbx11k")
                for name in ("train", "val")
            ),
            Part(("imgs/*",), "images", "tbx11k"),
        ),
    ),
    "mimic_cxr": Facts(
        377_110, "images", "mimic_cxr/official",
        (
            *(
                Part((f"mimic-cxr-2.0.0-{name}.csv", f"mimic-cxr-2.1.0-{name}.csv"), holds, "mimic_cxr")
                for name, holds in (("split", "splits"), ("metadata", "views"))
            ),
            Part(
                ("mimic-cxr-2.0.0-chexpert.csv", "mimic-cxr-2.1.0-chexpert.csv"), "labels", "mimic_cxr",
                instead=("labels=negbio",),
            ),
            Part(
                ("mimic-cxr-2.0.0-negbio.csv", "mimic-cxr-2.1.0-negbio.csv"), "labels", "mimic_cxr",
                option="labels=negbio",
            ),
            Part(
                ("mimic-cxr-2.1.0-test-set-labeled.csv",), "radiologist's labels of the test", "mimic_cxr/2.1.0",
                option="test_labels=radiologist",
            ),
            Part(("files/*",), "images", "mimic_cxr"),
            Part(
                ("mimic-cxr-reports.zip", "files/p1*/p1*/s*.txt", "p1*/p1*/s*.txt"), "reports", "mimic_cxr/reports",
                instead=("reports", "sectioned", "section=none"),
            ),
        ),
        {"views": "all"},
    ),
}  # fmt: skip
"""The releases that are read, by the name of their datamodule."""
