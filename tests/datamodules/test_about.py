"""Sex, age and view of each image, read from releases' tables a second time by another way."""

import csv
import gzip

import pytest

from diptych.data.loading import Loading
from diptych_datamodules.chexpert import Chexpert
from diptych_datamodules.mimic_cxr import MimicCxr
from diptych_datamodules.nih import Nih
from diptych_datamodules.phantoms.layouts.write import write_layout

LOADING = Loading(image_size=32, batch_size=4, eval_batch_size=4, workers=0)


def table(path):
    with gzip.open(path, "rt", newline="") if path.suffix == ".gz" else path.open(newline="") as file:
        return list(csv.DictReader(file))


def nih(root):
    rows = table(root / "Data_Entry_2017_v2020.csv")
    about = {
        row["Image Index"].removesuffix(".png"): (row["Patient Gender"], row["Patient Age"], row["View Position"])
        for row in rows
    }
    return Nih(str(root), loading=LOADING), about


def chexpert(root):
    rows = [row for path in root.rglob("*.csv") if path.name in ("train.csv", "valid.csv") for row in table(path)]
    about = {
        "/".join(row["Path"].split("/")[-3:]): (row["Sex"][:1], row["Age"], row["AP/PA"])
        for row in rows
        if row["Frontal/Lateral"] == "Frontal"
    }
    return Chexpert(str(root), split="chexpert/official", loading=LOADING), about


def mimic_cxr(root):
    rows = table(next(root.glob("mimic-cxr-*-metadata.csv*")))
    return MimicCxr(str(root), loading=LOADING), {row["dicom_id"]: ("", "", row["ViewPosition"]) for row in rows}


@pytest.mark.parametrize("release", [nih, chexpert, mimic_cxr])
def test_a_release_says_what_its_table_says_of_each_image(release, tmp_path):
    module, expected = release(write_layout(release.__name__, 12, tmp_path / "it", seed=3, size=32))
    seen = 0
    for dataset in module.build().values():
        columns = [dataset.about.get(name, [""] * len(dataset)) for name in ("sex", "age", "view")]
        for key, *ours in zip(dataset.ids, *columns, strict=True):
            sex, age, view = expected[key]
            age = str(min(int(age), 90)) if age else ""
            assert ours == [sex, age, view], key
            seen += 1
    assert seen > 8
