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
from diptych_datamodules.covidx import CLASSES, Covidx
from diptych_datamodules.object_cxr import ObjectCxr, read_shapes, shapes_mask
from diptych_datamodules.phantoms.layouts.write import write_layout
from diptych_datamodules.tbx11k import ACTIVITY, Tbx11k

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
    assert module.dropped.counts() == {"patient of the test split": len(names - kept)}
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


# --- TBX11K


def test_tbx11k_is_what_its_lists_and_annotations_say(roots):
    root = roots("tbx11k")
    # Keys of the released json, as its first and last lines have them.
    content = {
        name: json.loads((root / f"annotations/json/TBX11K_{name}.json").read_text()) for name in ("train", "val")
    }
    assert set(content["train"]) == {"info", "licenses", "categories", "images", "annotations"}
    assert [row["name"] for row in content["train"]["categories"]] == [*ACTIVITY, "PulmonaryTuberculosis"]
    image, annotation = content["train"]["images"][0], content["train"]["annotations"][0]
    assert {"id", "file_name", "width", "height"} <= set(image)
    assert set(annotation) == {"id", "image_id", "category_id", "iscrowd", "area", "bbox", "width", "height"}
    lists = {name: (root / f"lists/TBX11K_{name}.txt").read_text().split() for name in ("train", "val")}
    plain, activity, classes = (ready(Tbx11k, root, labels=name) for name in ("tuberculosis", "activity", "classes"))
    assert set(plain.datasets["test"].ids) == {line.split("/")[1][:-4] for line in lists["val"]}
    assert len(all_records(plain)) == 40 == sum(map(len, lists.values()))
    folder = {line.split("/")[1][:-4]: line.split("/")[0] for name in lists for line in lists[name]}
    boxes = {}
    for part in content.values():
        names = {row["id"]: row["file_name"].split("/")[1][:-4] for row in part["images"]}
        for row in part["annotations"]:
            x, y, width, height = row["bbox"]
            scaled = [value * 48 / 512 for value in (x, y, x + width, y + height)]
            boxes.setdefault(names[row["image_id"]], []).append((*scaled, row["category_id"] - 1))
    unsure = 0
    for split, dataset in plain.datasets.items():
        for index, key in enumerate(dataset.ids):
            samples = [module.native(split, index) for module in (plain, activity, classes)]
            expected = np.array(boxes.get(key, [])).reshape(-1, 5)
            for sample, column in zip(samples, (0, None, 2), strict=True):
                assert np.allclose(sample.boxes[:, :4], expected[:, :4], atol=1e-4)
                assert (sample.boxes[:, 4] == (expected[:, 4] if column is None else column)).all()
            assert samples[0].labels.tolist() == [folder[key] == "tb"]
            assert samples[2].labels.tolist() == [folder[key] == name for name in ("health", "sick", "tb")]
            if folder[key] == "tb" and key not in boxes:
                unsure += 1
                assert np.isnan(samples[1].labels).all()
            else:
                assert samples[1].labels.tolist() == [k in expected[:, 4] for k in (0, 1)]
    assert unsure == 1  # as in the release
    assert len(boxes) > 5


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("lists/TBX11K_train.txt", "health/", "other/", "is not in TBX11K_train.json, stands twice, or is not below health"),
        ("lists/TBX11K_val.txt", "tb/tb0001", "tb/tb9999", "'tb/tb9999.png' is not in TBX11K_val.json"),
        ("annotations/json/TBX11K_train.json", '"bbox"', '"box"', "no COCO annotations .KeyError: 'bbox'"),
        ("annotations/json/TBX11K_train.json", "ActiveTuberculosis", "Silicosis", "the category 'Silicosis'; known are"),
    ],
)  # fmt: skip
def test_bad_tbx11k_files_are_named(roots, tmp_path, file, old, new, message):
    root = shutil.copytree(roots("tbx11k"), tmp_path / "copy", ignore=shutil.ignore_patterns("imgs"))
    (root / "imgs").symlink_to(roots("tbx11k") / "imgs")
    text = (root / file).read_text()
    if old not in text:  # the first image of tuberculosis is in the other list
        file, message = file.replace("val", "train"), message.replace("val", "train")
        text = (root / file).read_text()
    (root / file).write_text(text.replace(old, new))
    with pytest.raises(DataError, match=message):
        ready(Tbx11k, root)


# --- COVIDx


def test_covidx_lists_labels_and_sources(roots):
    root = roots("covidx")
    module = ready(Covidx, root)
    lines = {
        (split, line) for split in ("train", "val", "test") for line in (root / f"{split}.txt").read_text().splitlines()
    }
    assert any(line.count(" ") == 4 for _, line in lines)  # a name with a space
    stems = [line.split(" ")[1].rsplit(".", 1)[0] for split, line in lines if split == "train"]
    assert len(set(stems)) < len(stems)  # names that differ by their endings
    patients_of_one_number = set()
    for split, line in lines:
        words = line.split(" ")
        name = " ".join(words[1:-2])
        (record,) = [r for r in module.datasets[split].records if r.id == f"{split}/{name}"]
        assert record.labels.tolist() == [{"positive": 1, "negative": 0}[words[-2]]]
        assert str(record.path) == str(root / split / name)
        if words[0] == "1":
            patients_of_one_number.add(record.patient)
    assert len(patients_of_one_number) == 2  # of two sources
    three = ready(Covidx, root, split="covidx/cxr-3a")
    assert three.findings == CLASSES == ("Normal", "Pneumonia", "COVID-19")
    names = ("normal", "pneumonia", "COVID-19")
    for split, dataset in three.datasets.items():
        listed = "test" if split == "test" else "train"
        rows = {
            f"{listed}/{' '.join(line.split(' ')[1:-2])}": line.split(" ")[-2]
            for line in (root / f"{listed}_COVIDx_CXR-3A.txt").read_text().splitlines()
        }
        for record in dataset.records:
            assert record.labels.tolist() == [rows[record.id] == name for name in names]


def test_covidx_keeps_the_test_and_tells_of_what_leaves(roots, tmp_path):
    root = shutil.copytree(roots("covidx"), tmp_path / "copy")
    before = ready(Covidx, root)
    assert before.dropped.counts() == {}
    (root / "train.txt").open("a").write((root / "train.txt").read_text().splitlines()[0] + "\n")
    tested, validated = ((root / f"{split}.txt").read_text().split(" ")[0] for split in ("test", "val"))
    sources = [(root / f"{split}.txt").read_text().splitlines()[0].split(" ")[-1] for split in ("test", "val")]
    for patient, source, name in zip((tested, validated), sources, ("a.png", "b.png"), strict=True):
        (root / "train.txt").open("a").write(f"{patient} {name} negative {source}\n")
    (root / "val.txt").open("a").write(f"{tested} c.png positive {sources[0]}\n")
    module = ready(Covidx, root)
    rules = {(rule, key) for rule, key, _ in module.dropped.rows}
    first = module.datasets["train"].ids[0]
    assert rules == {
        ("duplicate row", first), ("patient of the test split", "train/a.png"), ("patient of the val split", "train/b.png"),
        ("patient of the test split", "val/c.png"),
    }  # fmt: skip
    assert module.split_hash == before.split_hash
    text = (root / "train.txt").read_text()
    (root / "train.txt").write_text(
        text + text.splitlines()[0].replace("positive", "x").replace("negative", "x") + "\n"
    )
    with pytest.raises(
        DataError, match=r"train.txt, line \d+: '.* x .*' is not patient, file, negative or positive, source"
    ):
        ready(Covidx, root)
    swapped = {"positive": "negative", "negative": "positive"}
    words = text.splitlines()[0].split(" ")
    (root / "train.txt").write_text(f"{text}{' '.join([*words[:-2], swapped[words[-2]], words[-1]])}\n")
    with pytest.raises(DataError, match="stands above with another label"):
        ready(Covidx, root)
