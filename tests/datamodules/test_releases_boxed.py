"""Readers of the sets of boxed findings and objects on miniatures, against their tables read by hand."""

import json
import shutil

import numpy as np
import pytest

from diptych.data.loading import Loading
from diptych.errors import DataError
from diptych_datamodules.chestx_det10 import FINDINGS, ChestxDet10
from diptych_datamodules.phantoms.layouts.write import write_layout

LOADING = Loading(image_size=32, batch_size=4, eval_batch_size=4, workers=0)


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    folder, made = tmp_path_factory.mktemp("boxed"), {}

    def get(name):
        if name not in made:
            made[name] = write_layout(name, 40, folder / name, seed=2, size=48)
        return made[name]

    return get


def ready(reader, root, **options):
    module = reader(str(root), loading=LOADING, **options)
    module.setup("test")
    return module


def all_records(module):
    return [record for dataset in module.datasets.values() for record in dataset.records]


def patients(module, split):
    return set(module.datasets[split].patients)


# --- ChestX-Det10


def test_det10_is_what_its_tables_say(roots):
    root = roots("chestx_det10")
    listed = {name: json.loads((root / f"{name}.json").read_text()) for name in ("train", "test")}
    # The first object of the release's README, by its keys and types.
    released = {"file_name": "00000042_006.png", "syms": ["Fibrosis", "Fibrosis"]}
    released["boxes"] = [[632, 721, 909, 969], [129, 611, 474, 909]]
    for row in listed["train"] + listed["test"]:
        assert {key: type(value) for key, value in row.items()} == {k: type(v) for k, v in released.items()}
        assert all(isinstance(value, int) for box in row["boxes"] for value in box)
    module = ready(ChestxDet10, root, split="chestx_det10/official-leaky")
    rows = {row["file_name"]: row for part in listed.values() for row in part}
    assert len(rows) == 40
    boxed = 0
    for split, dataset in module.datasets.items():
        for index, record in enumerate(dataset.records):
            row = rows.pop(f"{record.id}.png")
            assert (row in listed["test"]) == (split == "test")
            assert {FINDINGS[i] for i in np.flatnonzero(record.labels)} == set(row["syms"])
            sample = module.native(split, index)  # 48 pixels wide, where the release's are 1,024
            assert sample.image.shape == (48, 48)
            for (*corners, finding), name, box in zip(sample.boxes.tolist(), row["syms"], row["boxes"], strict=True):
                assert FINDINGS[int(finding)] == name
                assert np.allclose(corners, [value * 48 / 1024 for value in box], atol=1e-4)
                boxed += 1
    assert not rows
    assert boxed > 20


def test_det10_official_leaves_out_training_images_of_tested_patients(roots, recwarn):
    root = roots("chestx_det10")
    leaky = ready(ChestxDet10, root, split="chestx_det10/official-leaky")
    assert any("as published" in str(warning.message) for warning in recwarn)
    module = ready(ChestxDet10, root)
    assert list(module.datasets["test"].ids) == list(leaky.datasets["test"].ids)
    tested = {row["file_name"][:8] for row in json.loads((root / "test.json").read_text())}
    names = {row["file_name"][:-4] for row in json.loads((root / "train.json").read_text())}
    kept = {key for split in ("train", "val") for key in module.datasets[split].ids}
    assert kept == {key for key in names if key[:8] not in tested} < names
    assert module.dropped.counts() == {"patient of the test set": len(names - kept)}
    assert not (patients(module, "train") | patients(module, "val")) & patients(module, "test")
    assert not patients(module, "train") & patients(module, "val")


def test_det10_takes_the_images_of_the_nih_release(roots, tmp_path):
    root = shutil.copytree(roots("chestx_det10"), tmp_path / "copy")
    (root / "images_001").mkdir()
    (root / "test_data").rename(root / "images_001" / "images")
    assert ready(ChestxDet10, root).split_hash == ready(ChestxDet10, roots("chestx_det10")).split_hash


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"syms": ["Mass"], "boxes": []}, r"syms \['Mass'\] and boxes \[\]; give two lists of one length"),
        ({"syms": ["Pneumonia"], "boxes": [[1, 2, 3, 4]]}, "the finding 'Pneumonia'; known are Atelectasis"),
        ({"syms": ["Mass"], "boxes": [[5, 2, 3, 4]]}, r"the box \[5, 2, 3, 4\]; give x1, y1, x2, y2"),
        ({"syms": ["Mass"], "boxes": [[1, 2, 3]]}, r"the box \[1, 2, 3\]"),
    ],
)
def test_bad_det10_rows_are_named(roots, tmp_path, change, message):
    root = shutil.copytree(roots("chestx_det10"), tmp_path / "copy")
    rows = json.loads((root / "train.json").read_text())
    rows[2] |= change
    (root / "train.json").write_text(json.dumps(rows))
    with pytest.raises(DataError, match=message) as caught:
        ready(ChestxDet10, root)
    assert f"train.json: '{rows[2]['file_name'][:-4]}'" in str(caught.value)


def test_an_image_in_both_det10_tables_is_refused(roots, tmp_path):
    root = shutil.copytree(roots("chestx_det10"), tmp_path / "copy")
    shutil.copy(root / "train.json", root / "test.json")
    with pytest.raises(DataError, match="stands twice, here or in the other table"):
        ready(ChestxDet10, root)
