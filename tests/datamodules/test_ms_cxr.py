"""MS-CXR: an image and a phrase are a sample, with the phrase's boxes in pixels of many sizes of picture."""

import json
import re
import shutil
from collections import Counter, defaultdict

import numpy as np
import pytest
from PIL import Image

from diptych.data.loading import Loading
from diptych.errors import ConfigError, DataError
from diptych_datamodules.mimic_cxr import MimicCxr
from diptych_datamodules.ms_cxr import FINDINGS, MsCxr
from diptych_datamodules.phantoms.layouts.write import write_layout

LOADING = Loading(image_size=32, batch_size=4, workers=0)
NAME = "MS_CXR_Local_Alignment_v1.1.0.json"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_layout("ms_cxr", 30, tmp_path_factory.mktemp("ms_cxr") / "root", seed=2, size=48)


def read(root, **options):
    module = MsCxr(str(root), loading=LOADING, **options)
    module.setup("test")
    return module


def changed(root, tmp_path, change):
    """A copy with another json file."""
    copy = shutil.copytree(root, tmp_path / "copy")
    content = json.loads((copy / NAME).read_text())
    change(content)
    (copy / NAME).write_text(json.dumps(content))
    return copy


def test_samples_are_pairs_with_all_boxes_of_the_phrase(root):
    content = json.loads((root / NAME).read_text())
    images = {image["id"]: image for image in content["images"]}
    names = {category["id"]: category["name"] for category in content["categories"]}
    expected = defaultdict(list)
    for row in content["annotations"]:
        x, y, width, height = row["bbox"]
        image = images[row["image_id"]]
        key = image["file_name"].removesuffix(".jpg"), names[row["category_id"]], row["label_text"]
        expected[key].append((x, y, x + width, y + height))
        assert x + width <= image["width"] + 1
    module = read(root)
    (records,) = [dataset.records for dataset in module.datasets.values()]
    found = {}
    for i, record in enumerate(records):
        (finding,) = {FINDINGS[int(box[4])] for box in record.boxes}
        found[record.id.split("/")[0], finding, record.text] = [tuple(box[:4]) for box in record.boxes.tolist()]
        assert re.fullmatch(r"\d{8}", record.patient)
        if i < 4:
            sample = module.native("test", i)
            assert sample.image.shape == record.size  # the file is as large as the json says
            assert np.array_equal(sample.boxes, record.boxes)
    assert found == expected
    assert len(set(module.datasets["test"].ids)) == len(found) == module.counted
    phrases = Counter(name for name, _, _ in found)
    assert max(phrases.values()) > 1  # an image with two phrases is two samples
    assert len({record.size for record in records}) > 1
    assert module.protocol == f"ms_cxr/all (a part: {len(found)} images)"


def test_the_releases_split_keeps_patients_on_one_side(root):
    module = read(root, split="ms_cxr/official")
    content = json.loads((root / NAME).read_text())
    images = {image["id"]: image["path"].split("/")[2][1:] for image in content["images"]}
    for split in ("train", "val", "test"):
        listed = {images[row["image_id"]] for row in content["annotations"] if row["split"] == split}
        assert set(module.datasets[split].patients) == listed != set()


def test_copies_of_another_size_have_their_boxes_scaled(root, tmp_path):
    whole = read(root).native("test", 0)
    copy = shutil.copytree(root, tmp_path / "copy")
    path = read(copy).datasets["test"].records[0].path
    Image.fromarray(np.arange(40 * 30, dtype=np.uint16).reshape(40, 30).astype(np.uint8)).save(path.with_suffix(".png"))
    path.unlink()
    small = read(copy).native("test", 0)
    height, width = whole.image.shape
    assert np.allclose(small.boxes[:, :4], whole.boxes[:, :4] * np.array([30 / width, 40 / height] * 2), atol=1e-3)


def test_the_file_may_lie_elsewhere_and_the_older_release_has_no_split(root, tmp_path):
    (tmp_path / "files").symlink_to(root / "files")
    with pytest.raises(DataError, match=r"get MS-CXR 1.1.0 from physionet"):
        read(tmp_path)
    content = json.loads((root / NAME).read_text())
    for row in content["annotations"]:
        del row["split"]
    older = tmp_path / "elsewhere" / "MS_CXR_Local_Alignment_v1.0.0.json"
    older.parent.mkdir()
    older.write_text(json.dumps(content))
    module = read(tmp_path, annotations=str(older))
    assert list(module.datasets["test"].ids) == list(read(root).datasets["test"].ids)
    with pytest.raises(ConfigError, match=r"names no split; use release 1.1.0, or ms_cxr/all"):
        read(tmp_path, annotations=str(older), split="ms_cxr/official")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("annotations"), "'annotations' is 'None'"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 0, 4]), r"annotation 1: its bbox is \[1, 2, 0, 4\]"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 3]), r"it is x, y, width and height"),
        (lambda c: c["annotations"][0].update(label_text=["a"]), r"annotation 1: 'label_text' is"),
        (lambda c: c["annotations"][0].update(image_id=10_000), "no image 10000"),
        (lambda c: c["categories"][0].update(name="Hernia"), "or no finding"),
        (lambda c: c["images"][0].update(path="p10/a.jpg"), "lies at 'p10/a.jpg'; a path is files/p10/p10000032"),
        (lambda c: c["images"][0].update(width=0), "its image is"),
        (lambda c: c["images"][0].update(height="x"), "'height' is 'x'"),
    ],
)
def test_bad_files_are_named(root, tmp_path, change, message):
    copy = changed(root, tmp_path, lambda content: _category(content, change))
    with pytest.raises(DataError, match=message) as caught:
        read(copy)
    assert NAME in str(caught.value)


def _category(content, change):
    """All of one category and the first image, so that each change is met."""
    for row in content["annotations"]:
        row["category_id"] = 1
    content["annotations"][0]["image_id"] = content["images"][0]["id"]
    change(content)


def test_a_damaged_file_is_named(root, tmp_path):
    copy = shutil.copytree(root, tmp_path / "copy")
    text = (copy / NAME).read_text()
    for bad, message in ((text[:-5], "no JSON"), ("[1]", "holds a list, not an object")):
        (copy / NAME).write_text(bad)
        with pytest.raises(DataError, match=message):
            read(copy)


def test_mimic_cxr_leaves_its_patients_out_of_training(tmp_path):
    root = write_layout("mimic_cxr", 30, tmp_path / "mimic", seed=2, size=32)
    whole = MimicCxr(str(root), loading=LOADING)
    whole.setup("test")
    train, test = (whole.datasets[split].records[0] for split in ("train", "test"))
    named = [{"id": i, "path": f"files/p10/p{r.patient}/s1/{r.id}.jpg"} for i, r in enumerate((train, test))]
    listed = tmp_path / NAME
    listed.write_text(json.dumps({"images": named}))
    less = MimicCxr(str(root), exclude=str(listed), loading=LOADING)
    less.setup("test")
    gone = {r.id for r in whole.datasets["train"].records if r.patient == train.patient}
    assert set(whole.datasets["train"].ids) - set(less.datasets["train"].ids) == gone != set()
    assert list(less.datasets["test"].ids) == list(whole.datasets["test"].ids)
    assert less.dropped.counts()["in the excluded set"] >= len(gone)
    assert f"patients of {NAME} excluded" in less.protocol
