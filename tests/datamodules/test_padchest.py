"""PadChest: its list of labels, its broken files, 16-bit pictures, both splits, and the real table."""

import ast
import csv
import gzip
import shutil
from collections import Counter

import numpy as np
import pytest
from mini import installed
from PIL import Image

from diptych.data.loading import Loading
from diptych.errors import ConfigError, DataError
from diptych.evaluation.prompts import load_prompts
from diptych_datamodules import padchest
from diptych_datamodules.padchest import BROKEN, FREQUENT, Padchest, label_names
from diptych_datamodules.phantoms.layouts.write import write_layout

LOADING = Loading(image_size=32, batch_size=4, workers=0)
TABLE = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv.gz"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_layout("padchest", 40, tmp_path_factory.mktemp("padchest") / "root", seed=2, size=48)


def read(root, **options):
    module = Padchest(str(root), loading=LOADING, **options)
    module.setup("test")
    return module


def rows_of(path):
    with gzip.open(path, "rt") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("bad", ["__import__('os').getcwd()", "['a'", "'a'", "[1]", "", "[['a']]", "(" * 300])
def test_a_cell_is_a_list_of_texts_and_nothing_is_run(bad):
    with pytest.raises(ValueError, match="is no list"):
        label_names(bad)


def test_labels_texts_and_views_are_those_of_the_table(root):
    rows = {row["ImageID"].removesuffix(".png"): row for row in rows_of(root / TABLE)}
    unlabelled = blank = 0
    for views, shown in (
        ("frontal", {"PA", "AP", "AP_horizontal"}),
        ("lateral", {"L"}),
        ("all", {"PA", "AP_horizontal", "L"}),
    ):
        module = read(root, views=views, split="padchest/hash")
        records = [record for dataset in module.datasets.values() for record in dataset.records]
        assert {record.id for record in records} == {
            key for key, row in rows.items() if row["Projection"] in shown
        } - BROKEN
        assert f"views {views}" in module.protocol
        for record in records:
            row = rows[record.id]
            assert record.text == row["Report"].strip()
            assert record.patient == row["PatientID"]
            if row["Labels"] == "nan":
                unlabelled += 1
                assert np.isnan(record.labels).all()
                continue
            listed = ast.literal_eval(row["Labels"])
            blank += " pleural effusion" in listed
            named = {name for name, value in zip(FREQUENT, record.labels, strict=True) if value}
            assert named == {name.strip() for name in listed} - {"", "normal"}
    assert unlabelled > 0
    assert blank > 0


def test_what_the_release_has_broken_is_left_out_by_name(root):
    module = read(root, views="all")
    (dropped,) = [key for rule, key, _ in module.dropped.rows if rule == "broken in the release"]
    assert dropped in BROKEN
    assert dropped in {row["ImageID"].removesuffix(".png") for row in rows_of(root / TABLE)}
    with pytest.raises(DataError, match="broken in the release"):
        read(root, strict=True)


def test_16_bits_are_read_as_such(root):
    module = read(root)
    record = module.datasets["train"].records[0]
    with Image.open(record.path) as file:
        assert file.mode.startswith("I")
        stored = np.asarray(file).astype(float)
    assert stored.max() > 2**15
    picture = module.native("train", 0).image.astype(float)
    assert np.corrcoef(picture.ravel(), stored.ravel())[0, 1] > 0.99
    assert len(np.unique(picture)) > 50


def test_the_test_is_what_physicians_labelled_and_no_patient_is_on_two_sides(root):
    rows = rows_of(root / TABLE)
    module = read(root, views="all")
    members = {split: set(dataset.ids) for split, dataset in module.datasets.items()}
    physician = {row["ImageID"].removesuffix(".png") for row in rows if row["MethodLabel"] == "Physician"}
    assert members["test"] == physician - BROKEN
    tested = {row["PatientID"] for row in rows if row["MethodLabel"] == "Physician"}
    others = {row["ImageID"].removesuffix(".png") for row in rows if row["PatientID"] not in tested} - BROKEN
    assert members["train"] | members["val"] == others
    assert len(others) < len(rows) - len(physician) - 1  # one patient of training has an image of the test


def test_findings_are_a_choice(root):
    module = read(root, findings=["cardiomegaly", "normal"])
    assert module.findings == ("cardiomegaly", "normal")
    labels = np.stack([record.labels for record in module.datasets["train"].records])
    assert 0 < np.nansum(labels[:, 1]) < len(labels)
    with pytest.raises(
        ConfigError, match="no image is labelled 'cardiomegalia'; the most similar labels are cardiomegaly"
    ):
        read(root, findings=["cardiomegalia"])
    for bad in ([], ["nodule", "nodule"]):
        with pytest.raises(ConfigError, match="give one name or more, each once"):
            Padchest(str(root), findings=bad)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("['normal']", "[normal]", 1), r"the labels of '.*png': '\[normal\]' is no list"),
        (lambda text: text.replace(",Labels,", ",Label,"), "no column 'Labels'"),
        (lambda text: text + text.split("\n", 1)[1], "stands there twice"),
    ],
)
def test_bad_tables_are_named(root, tmp_path, change, message):
    copy = shutil.copytree(root, tmp_path / "copy")
    text = gzip.decompress((copy / TABLE).read_bytes()).decode()
    changed = change(text)
    assert changed != text
    (copy / TABLE).write_bytes(gzip.compress(changed.encode()))
    with pytest.raises(DataError, match=message):
        read(copy)


def test_every_finding_has_prompts():
    assert {entry.name for entry in load_prompts("padchest").entries} == set(FREQUENT)


@pytest.mark.slow
@pytest.mark.real
def test_the_real_table(tmp_path, monkeypatch):
    source = installed("torchxrayvision", f"data/{TABLE}")
    (tmp_path / TABLE).symlink_to(source)
    everywhere = type("All", (dict,), {"get": lambda self, key, default=None: f"{key}.png"})()
    monkeypatch.setattr(padchest, "index_images", lambda folders, files: everywhere)
    module = read(tmp_path, views="all")
    assert module.protocol == "padchest/physician, views all"
    assert module.counted == 160_861
    assert module.dropped.counts() == {"broken in the release": 17, "empty report": 15}  # others are in no split
    assert sum(map(len, module.datasets.values())) == 39_053 + 97_121 - 17 - 15
    members = {split: dataset.records for split, dataset in module.datasets.items()}
    assert len({record.patient for records in members.values() for record in records}) > 60_000
    counted, mentioned, found, patients, broken = Counter(), Counter(), 0, set(), 0
    for row in rows_of(source):
        patients.add(row["PatientID"])
        broken += row["ImageID"].removesuffix(".png") in BROKEN
        if row["Labels"] != "nan":
            names = {name.strip() for name in ast.literal_eval(row["Labels"])} - {""}
            mentioned.update(names)
            if row["MethodLabel"] == "Physician":
                counted.update(names)
        else:
            found += 1
    assert (len(mentioned), found, len(patients), broken) == (193, 103, 67_625, len(BROKEN))
    assert {name for name, n in counted.items() if n >= 50} - set(FREQUENT) == {
        "normal", "unchanged", "exclude", "suboptimal study",
    }  # fmt: skip
    assert min(counted[name] for name in FREQUENT) >= 50
    labels = np.stack([record.labels for record in members["test"]])
    seen = dict(zip(FREQUENT, np.nansum(labels, axis=0).astype(int).tolist(), strict=True))
    assert all(abs(seen[name] - counted[name]) <= 10 for name in FREQUENT)  # those of images that were left out
    assert counted["pleural effusion"] == 1_748
