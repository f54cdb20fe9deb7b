"""Readers of the sets of boxed findings and objects on miniatures, against their tables read by hand."""

import csv
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from diptych.data.loading import Loading
from diptych.errors import DataError
from diptych_datamodules.chestx_det10 import FINDINGS, ChestxDet10
from diptych_datamodules.object_cxr import ObjectCxr, read_shapes, shapes_mask
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


# --- object-CXR


def inside(kind, numbers, x, y):
    """Whether a point is inside of a shape, by its equation. A polygon by the crossings of a ray to the right."""
    points = list(zip(numbers[::2], numbers[1::2], strict=True))
    if kind == "2":
        crossings = 0
        for (x0, y0), (x1, y1) in zip(points, points[1:] + points[:1], strict=True):
            if (y0 > y) != (y1 > y) and x < x0 + (y - y0) * (x1 - x0) / (y1 - y0):
                crossings += 1
        return crossings % 2 == 1
    (x0, y0), (x1, y1) = points
    if kind == "0":
        return x0 <= x <= x1 and y0 <= y <= y1
    return ((2 * x - x0 - x1) / (x1 - x0)) ** 2 + ((2 * y - y0 - y1) / (y1 - y0)) ** 2 <= 1


def test_object_cxr_shapes_are_the_white_objects(roots):
    root = roots("object_cxr")
    assert (root / "train.csv").read_text().startswith("image_name,annotation\n")
    module = ready(ObjectCxr, root, masks=True)
    assert {record.id.split("/")[0] for record in module.datasets["test"].records} == {"dev"}
    assert len(all_records(module)) == 40
    cells = {f"{name}/{row['image_name'][:-4]}": row["annotation"]
             for name in ("train", "dev") for row in csv.DictReader((root / f"{name}.csv").open())}  # fmt: skip
    kinds, sizes = set(), set()
    for split, dataset in module.datasets.items():
        for index, record in enumerate(dataset.records):
            sample, cell = module.native(split, index), cells[record.id]
            parts = [part.split() for part in cell.split(";") if part]
            kinds |= {part[0] for part in parts}
            sizes.add(sample.image.shape)
            assert sample.labels.tolist() == [float(bool(cell))]
            for box, (_, *words) in zip(sample.boxes.tolist(), parts, strict=True):
                xs, ys = [int(word) for word in words[::2]], [int(word) for word in words[1::2]]
                assert box == [min(xs), min(ys), max(xs), max(ys), 0]
            assert sample.mask.shape == sample.image.shape
            white = sample.image > 225  # elsewhere the picture is at most 191
            assert (white != sample.mask).mean() < 0.01
            assert bool(white.any()) == bool(cell)
    assert kinds == {"0", "1", "2"}
    assert len(sizes) > 2


def test_masks_of_shapes_against_their_equations():
    for cell in ("0 3 5 20 11", "1 4 4 30 20", "2 2 2 30 6 18 30", "2 4 4 28 8 8 16 28 28 2 30;0 1 1 6 3"):
        mask = shapes_mask(read_shapes(cell, "here"), (34, 40))
        parts = [part.split() for part in cell.split(";")]
        far = np.zeros((34, 40), int)  # how many of a pixel's eight neighbours and itself are inside
        for y in range(34):
            for x in range(40):
                near = [(x + dx, y + dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1)]
                far[y, x] = sum(any(inside(k, list(map(float, w)), *at) for k, *w in parts) for at in near)
        assert mask[far == 9].all()
        assert not mask[far == 0].any()


def test_object_cxr_official_reads_the_third_table(roots, tmp_path):
    root = shutil.copytree(roots("object_cxr"), tmp_path / "copy")
    with pytest.raises(DataError, match=r"no test.csv .*archive.org"):
        ready(ObjectCxr, root, split="object_cxr/official")
    shutil.copytree(root / "dev", root / "test")
    text = (root / "dev.csv").read_text()
    (root / "test.csv").write_text(text.replace("image_name", "image_path").replace("\n0", "\n/path/0"))
    module = ready(ObjectCxr, root, split="object_cxr/official")
    ids = {split: [key.split("/") for key in dataset.ids] for split, dataset in module.datasets.items()}
    assert {split: {name for name, _ in keys} for split, keys in ids.items()} == {
        "train": {"train"}, "val": {"dev"}, "test": {"test"},
    }  # fmt: skip
    assert [key for _, key in ids["val"]] == [key for _, key in ids["test"]]


@pytest.mark.parametrize("shape", ["3 1 1 4 4", "0 1 1 4", "0 1 1 4 4 5 5", "2 1 1 4 4", "0 a b c d", "1"])
def test_bad_shapes_are_named(shape):
    with pytest.raises(DataError, match=r"train.csv: '00002' has the shape '.*'; write 0, 1 or 2"):
        read_shapes(f"0 1 1 4 4;{shape}", "train.csv: '00002'")


def test_smaller_copies_of_object_cxr_are_refused(roots, tmp_path):
    root = shutil.copytree(roots("object_cxr"), tmp_path / "copy")
    module = ready(ObjectCxr, root)
    split, index = next((s, i) for s, d in module.datasets.items() for i, r in enumerate(d.records) if len(r.boxes))
    path = module.datasets[split].records[index].path
    Image.open(path).resize((4, 4)).save(path)
    with pytest.raises(DataError, match="outside of the picture, which is 4x4; give the images at their released size"):
        module.native(split, index)
