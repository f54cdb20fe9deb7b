"""VinDr-CXR: how three readers become one, boxes in pixels of many sizes, and the challenge's real table."""

import csv
import gzip
import shutil
from collections import Counter, defaultdict

import numpy as np
import pydicom
import pytest
from mini import installed
from PIL import Image

from diptych.data.loading import Loading
from diptych.errors import DataError
from diptych_datamodules import vindr_cxr
from diptych_datamodules.phantoms.layouts.write import write_layout
from diptych_datamodules.vindr_cxr import FINDINGS, KAGGLE, VindrCxr, fuse_boxes, merge_readers

LOADING = Loading(image_size=32, batch_size=4, workers=0)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_layout("vindr_cxr", 30, tmp_path_factory.mktemp("vindr") / "root", seed=2, size=48)


def read(root, **options):
    module = VindrCxr(str(root), loading=LOADING, **options)
    module.setup("test")
    return module


def records_of(module):
    return {record.id: record for dataset in module.datasets.values() for record in dataset.records}


def rows_of(path):
    return list(csv.DictReader(path.open()))


def slow_fusion(boxes):
    """Weighted boxes fusion by the paper's text, with plain numbers."""
    clusters = []
    for box in reversed(boxes):
        best, best_overlap = None, 0.5
        for cluster in clusters:
            mean = [sum(member[k] for member in cluster) / len(cluster) for k in range(4)]
            across = min(mean[2], box[2]) - max(mean[0], box[0])
            down = min(mean[3], box[3]) - max(mean[1], box[1])
            if across <= 0 or down <= 0:
                continue
            areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (mean, box)]
            overlap = across * down / (sum(areas) - across * down)
            if overlap > best_overlap:
                best, best_overlap = cluster, overlap
        if best is None:
            clusters.append([box])
        else:
            best.append(box)
    return [[sum(member[k] for member in cluster) / len(cluster) for k in range(4)] for cluster in clusters]


def test_fusion_is_that_of_the_paper():
    rng, joined = np.random.default_rng(0), 0
    for _ in range(150):
        corner = rng.integers(0, 25, (int(rng.integers(1, 8)), 2))
        boxes = np.concatenate([corner, corner + rng.integers(20, 90, corner.shape)], axis=1).astype(np.float32)
        fused = fuse_boxes(boxes)
        assert np.allclose(fused, slow_fusion(boxes.tolist()), atol=1e-3)
        joined += len(fused) < len(boxes)
    assert joined > 50
    assert fuse_boxes(np.zeros((0, 4), np.float32)).shape == (0, 4)


def test_readers_are_merged_by_count():
    votes = np.array([[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]], bool)
    for rule, needed in (("any", 1), ("majority", 2), ("all", 3)):
        assert merge_readers(votes, rule).tolist() == [n >= needed for n in (3, 2, 1, 0)]
    assert not merge_readers(np.array([[1], [0]], bool), "majority").any()  # half is not more than half


@pytest.mark.parametrize(("rule", "needed"), [("any", 1), ("majority", 2), ("all", 3)])
def test_labels_and_boxes_are_those_of_the_rule(root, rule, needed):
    module = read(root, readers=rule, boxes="every")
    votes, drawn, test = defaultdict(Counter), defaultdict(list), {}
    for row in rows_of(root / "annotations/image_labels_train.csv"):
        votes[row["image_id"]].update(name for name in FINDINGS[:-1] if row[name] == "1")
    for row in rows_of(root / "annotations/annotations_train.csv"):
        if row["class_name"] != "No finding":
            drawn[row["image_id"]].append(
                [row["class_name"], *(float(row[k]) for k in ("x_min", "y_min", "x_max", "y_max"))]
            )
    for row in rows_of(root / "annotations/image_labels_test.csv"):
        test[row["image_id"]] = {name for name in FINDINGS if row[name] == "1"}
    records = records_of(module)
    assert set(records) == set(votes) | set(test) | {row["image_id"] for row in rows_of(root / "train.csv")}
    assert {record.id for record in module.datasets["test"].records} == set(test)
    disputed = 0
    for key, record in records.items():
        named = {name for name, value in zip(FINDINGS, record.labels, strict=True) if value}
        if key in test:
            assert named == test[key]
            continue
        stands = {name for name, n in votes[key].items() if n >= needed}
        assert named == (stands or {"No finding"})
        kept = [box for box in drawn[key] if box[0] in stands]
        assert record.boxes.tolist() == [[*corner, FINDINGS.index(name)] for name, *corner in kept]
        disputed += len(kept) < len(drawn[key])
    assert (disputed > 0) == (rule == "all")  # the third reader overlooks some, and no other does
    assert f"readers {rule}, boxes every" in module.protocol


def test_a_lesion_has_one_box_where_readers_agree(root):
    every, fused = (records_of(read(root, boxes=boxes)) for boxes in ("every", "fused"))
    fewer = 0
    for key, record in fused.items():
        raw = every[key].boxes
        expected = [
            [*box, float(finding)]
            for finding in sorted(set(raw[:, 4]))
            for box in slow_fusion(raw[raw[:, 4] == finding, :4].tolist())
        ]
        if len(raw) and record.given != "test":
            assert np.allclose(record.boxes, expected, atol=1e-3)
            fewer += len(record.boxes) < len(raw)
    assert fewer > 5


def test_boxes_are_in_pixels_of_each_file_and_of_scaled_copies(root, tmp_path):
    truth = defaultdict(list)
    for row in rows_of(root / "phantom_boxes.csv"):
        truth[row["image"]].append([float(row[k]) for k in ("x0", "y0", "x1", "y1")])
    module = read(root)
    test = module.datasets["test"].records
    chosen = next(i for i, record in enumerate(test) if len(record.boxes))
    sample = module.native("test", chosen)
    height, width = sample.image.shape
    assert height != width
    for box in sample.boxes[:, :4]:
        assert min(np.abs(np.array(other) - box).max() for other in truth[test[chosen].id]) <= 0.5
    for part in ("train", "test", "annotations"):
        (tmp_path / part).mkdir()
    for path in (root / "annotations").iterdir():
        shutil.copy(path, tmp_path / "annotations")
    rows = []
    for path in root.glob("*/*.dicom"):
        data = pydicom.dcmread(path, stop_before_pixels=True)
        rows.append(f"{path.stem},{data.Rows},{data.Columns}")
        copy = Image.fromarray(np.arange(48 * 36, dtype=np.uint8).reshape(48, 36))
        copy.save(tmp_path / path.parent.name / f"{path.stem}.png")
    with pytest.raises(DataError, match=r"this copy does not tell; give data.sizes"):
        read(tmp_path)
    assert read(tmp_path, boxes="none").datasets["test"].records[0].boxes is None
    sizes = tmp_path / "meta.csv"
    sizes.write_text("\n".join(["image_id,dim0,dim1", *rows]) + "\n")
    small = read(tmp_path, sizes=str(sizes)).native("test", chosen)
    assert np.allclose(small.boxes[:, [0, 2]], sample.boxes[:, [0, 2]] * 36 / width)
    assert np.allclose(small.boxes[:, [1, 3]], sample.boxes[:, [1, 3]] * 48 / height)


@pytest.mark.parametrize(
    ("table", "old", "new", "message"),
    [
        ("annotations_train.csv", "No finding,,,,", "No finding,1,,,", "has a box of 'No finding'"),
        ("annotations_test.csv", "No finding", "Nothing", "has a box of 'Nothing'"),
        ("image_labels_test.csv", ",0,1\n", ",0,2\n", "has the label '2'"),
        ("image_labels_train.csv", ",0,1\n", ",0,\n", "neither 0 nor 1"),
        ("image_labels_train.csv", "Other diseases", "Other", "neither 0 nor 1"),
        ("image_labels_train.csv", "Other diseases", "Other disease", ""),
    ],
)
def test_bad_tables_are_named(root, tmp_path, table, old, new, message):
    shutil.copytree(root, tmp_path / "copy")
    path = tmp_path / "copy" / "annotations" / table
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    if message:
        with pytest.raises(DataError, match=message) as caught:
            read(tmp_path / "copy")
        assert table in str(caught.value)
    else:
        assert len(read(tmp_path / "copy").datasets["test"]) == 5


@pytest.mark.slow
@pytest.mark.real
def test_the_real_table_of_the_challenge(tmp_path, monkeypatch):
    source = installed("torchxrayvision", "data/vinbigdata-train.csv.gz")
    (tmp_path / "train.csv.gz").symlink_to(source)
    everywhere = type("All", (dict,), {"get": lambda self, key, default=None: f"{key}.dicom"})()
    monkeypatch.setattr(vindr_cxr, "index_images", lambda folders, files: everywhere)
    module = read(tmp_path, split="vindr_cxr/kaggle", readers="any", boxes="every")
    assert {split: len(dataset) for split, dataset in module.datasets.items()} == {
        "train": 10_500,
        "val": 1_500,
        "test": 3_000,
    }
    records = records_of(module).values()
    assert sum(len(record.boxes) for record in records) == 36_096
    seen = defaultdict(set)
    with gzip.open(source, "rt") as file:
        for row in csv.DictReader(file):
            seen[row["class_name"]].add(row["image_id"])
            assert row["class_name"] == KAGGLE[int(row["class_id"])]
    counted = np.stack([record.labels for record in records]).sum(axis=0).astype(int).tolist()
    assert dict(zip(KAGGLE, counted, strict=True)) == {name: len(images) for name, images in seen.items()}
    assert counted[-1] == 10_606
