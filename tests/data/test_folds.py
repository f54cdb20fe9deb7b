"""Folds: each patient is in the test set of one of them."""

import subprocess
import sys

import cv2
import numpy as np
import pytest

from diptych.data.loading import Loading
from diptych.data.splits import Fractions, assign
from diptych.data.tables import Columns
from diptych.errors import ConfigError
from diptych_datamodules.label_matched import LabelMatched

FOLDS_ELSEWHERE = """
from diptych.data.splits import Fractions
folds = [Fractions(0.7, 0.1, 0.2, fold=fold) for fold in range(5)]
print("".join(fold.split(f"p{i}", 3)[1] for fold in folds for i in range(300)))
"""


def test_every_patient_is_tested_in_one_fold():
    patients = [f"p{i}" for i in range(3000)]
    splits = [[Fractions(fold=fold).split(patient, 3) for patient in patients] for fold in range(5)]
    assert [row.count("test") for row in zip(*splits, strict=True)] == [1] * 3000
    assert splits[0] == [assign(patient, {"train": 0.7, "val": 0.1, "test": 0.2}, 3) for patient in patients]
    for split in splits:
        assert np.allclose([split.count(name) / 3000 for name in ("train", "val", "test")], [0.7, 0.1, 0.2], atol=0.03)
    elsewhere = subprocess.run([sys.executable, "-c", FOLDS_ELSEWHERE], capture_output=True, text=True, check=True)
    assert elsewhere.stdout.strip() == "".join(name[1] for split in splits for name in split[:300])


def test_folds_part_an_image_table_by_patient(tmp_path):
    picture = tmp_path / "a.png"
    cv2.imwrite(str(picture), np.zeros((16, 16), np.uint8))
    names = [f"{i}.png" for i in range(60)]
    for name in names:
        (tmp_path / name).symlink_to(picture)
    lines = ["image,patient,labels", *(f"{name},p{i // 3}," for i, name in enumerate(names))]
    (tmp_path / "table.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "reports.csv").write_text("text,labels\n" + "".join(f"Report {i}.,\n" for i in range(60)))
    tested: list[str] = []
    for fold in range(4):
        data = LabelMatched(
            str(tmp_path / "table.csv"), str(tmp_path / "reports.csv"), "Effusion", None,
            image_columns=Columns(patient="patient", label_list="labels"), report_columns=Columns(label_list="labels"),
            fractions=Fractions(0.75, 0, 0.25, fold=fold), loading=Loading(image_size=32, workers=0),
        )  # fmt: skip
        splits = data.build()
        assert not set(splits["train"].patients) & set(splits["test"].patients)
        assert not set(splits["train"].texts()) & set(splits["test"].texts())
        assert len(splits["train"]) + len(splits["test"]) == 60
        tested += splits["test"].ids
    assert sorted(tested) == sorted(names)


def test_folds_that_part_nothing_evenly_are_refused():
    for shares, message in (
        ({"fold": 5}, "fractions.fold is 5; give a whole number from 0 to 4, as test 0.2 makes 5 folds"),
        ({"fold": -1}, "fractions.fold is -1; give a whole number from 0 to 4"),
        ({"fold": 1.5}, "fractions.fold is 1.5; give a whole number"),
        (
            {"train": 0.6, "test": 0.3, "fold": 1},
            "fractions.fold is 1, and fractions.test is 0.3: .* give test 0.2 for 5",
        ),
        ({"train": 0.9, "test": 0, "fold": 1}, "fractions.test is 0: "),
    ):
        with pytest.raises(ConfigError, match=message):
            Fractions(**shares)
