"""Readers of releases on miniatures, and on hostile tables and files."""

import csv
import gzip
import shutil
import tarfile
import xml.etree.ElementTree as ET
from collections import Counter

import numpy as np
import pytest
import torch
from mini import installed
from PIL import Image
from releases import r2gen_list

from diptych.data.loading import Loading
from diptych.data.splits import split_hash
from diptych.errors import ConfigError, DataError
from diptych.plugins import DATAMODULES, find
from diptych_datamodules.nih import Nih
from diptych_datamodules.openi import Openi
from diptych_datamodules.phantoms.layouts.dicom import rle_encode
from diptych_datamodules.phantoms.layouts.write import write_layout
from diptych_datamodules.rsna import Rsna, box_mask
from diptych_datamodules.siim import Siim, rle_decode

LOADING = Loading(image_size=32, batch_size=4, eval_batch_size=4, workers=0)


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    folder, made = tmp_path_factory.mktemp("releases"), {}

    def get(name):
        if name not in made:
            made[name] = write_layout(name, 36, folder / name, seed=3, size=48)
        return made[name]

    return get


def labels_of(module, split):
    return np.stack([record.labels for record in module.datasets[split].records])


def test_miniatures_have_the_releases_headers_and_quirks(roots):
    """Against the first lines of the real tables, where the package that ships them is installed."""
    root, headers = roots("nih"), {}
    for name in ("Data_Entry_2017_v2020.csv", "BBox_List_2017.csv"):
        with gzip.open(installed("torchxrayvision", f"data/{name}.gz"), "rt") as file:
            headers[name] = file.readline().strip()
        assert (root / name).read_text().splitlines()[0] == headers[name]
    assert headers["BBox_List_2017.csv"].endswith(",,,")
    assert {Image.open(path).mode for path in root.glob("images_*/images/*.png")} == {"L", "RGBA"}
    listed = [(root / name).read_text().split("\n") for name in ("train_val_list.txt", "test_list.txt")]
    assert sorted(listed[0] + listed[1]) == sorted(path.name for path in root.glob("images_*/images/*.png"))
    root = roots("openi")
    with tarfile.open(installed("torchxrayvision", "data/NLMCXR_reports.tgz")) as archive:
        real = ET.fromstring(archive.extractfile("ecgen-radiology/1.xml").read())
    for tag, attribute in (("uId", "id"), ("AbstractText", "Label"), ("parentImage", "id"), ("major", None)):
        ours = next(ET.parse(root / "ecgen-radiology" / "1.xml").iter(tag))
        assert set(ours.attrib) == set(next(real.iter(tag)).attrib) == ({attribute} if attribute else set())
    texts = [e for path in root.glob("ecgen-radiology/*.xml") for e in ET.parse(path).iter("AbstractText")]
    assert {e.get("Label") for e in texts} == {e.get("Label") for e in real.iter("AbstractText")}


def test_rsna_boxes_are_what_was_drawn_and_copies_are_scaled(roots, tmp_path):
    root = roots("rsna")
    module = Rsna(str(root), masks=True, loading=LOADING)
    module.setup("test")
    boxes = {}
    for row in csv.DictReader((root / "phantom_boxes.csv").open()):
        if row["finding"] in {"Lung Opacity", "Consolidation"}:
            boxes.setdefault(row["image"], []).append([float(row[k]) for k in ("x0", "y0", "x1", "y1")])
    records = [record for dataset in module.datasets.values() for record in dataset.records]
    assert any(len(record.boxes) > 1 for record in records)
    for record in records:
        assert np.allclose(record.boxes[:, :4], np.reshape(boxes.get(record.id, []), (-1, 4)), atol=1e-3)
        assert record.labels[0] == (record.id in boxes)
    boxed = next(i for i, record in enumerate(module.datasets["train"].records) if len(record.boxes))
    whole = module.native("train", boxed)
    slow = np.zeros((1024, 1024), bool)
    for x0, y0, x1, y1, _ in whole.boxes:
        for y in range(round(float(y0)), round(float(y1))):
            slow[y, round(float(x0)) : round(float(x1))] = True
    assert np.array_equal(whole.mask, slow)
    assert np.array_equal(box_mask(whole.boxes, 1024), slow)
    copy = tmp_path / "stage_2_train_images"
    copy.mkdir()
    for name in ("stage_2_train_labels.csv", "stage_2_detailed_class_info.csv"):
        shutil.copy(root / name, tmp_path)
    for record in records:
        Image.fromarray(np.arange(256 * 256, dtype=np.uint8).reshape(256, 256)).save(copy / f"{record.id}.png")
    small = Rsna(str(tmp_path), masks=True, loading=LOADING)
    small.setup("test")
    sample = small.native("train", boxed)
    assert np.allclose(sample.boxes[:, :4], whole.boxes[:, :4] / 4)
    assert (sample.mask == whole.mask[2::4, 2::4]).mean() > 0.99


def test_rsna_mrm_reads_its_test_list(roots, tmp_path):
    root = shutil.copytree(roots("rsna"), tmp_path / "rsna")
    (root / "stage_2_test_images").mkdir()
    source = next((root / "stage_2_train_images").iterdir())
    for key in ("t1", "t2"):
        shutil.copy(source, root / "stage_2_test_images" / f"{key}.dcm")
    listed = tmp_path / "test_list.txt"
    listed.write_text("stage_2_test_images/t1.dcm 0 \nstage_2_test_images/t2.dcm 1 \n")
    module = Rsna(str(root), split="rsna/mrm", test_list=str(listed), loading=LOADING)
    module.setup("test")
    assert list(module.datasets["test"].ids) == ["t1", "t2"]
    assert labels_of(module, "test").tolist() == [[0], [1]]
    assert max(module.datasets["train"].ids) < min(module.datasets["val"].ids)
    with pytest.raises(ConfigError, match=r"data.test_list belongs to data.split rsna/mrm"):
        Rsna(str(root), split="rsna/mrm")
    listed.write_text("stage_2_test_images/t1.dcm x\n")
    with pytest.raises(DataError, match="line 1: the label is 'x'"):
        Rsna(str(root), split="rsna/mrm", test_list=str(listed), loading=LOADING).setup("test")


def test_overlapping_sets_are_warned_about_when_tested(roots, recwarn):
    Rsna(str(roots("rsna")), loading=LOADING).setup("fit")
    assert not [w for w in recwarn if "NIH" in str(w.message)]
    Rsna(str(roots("rsna")), loading=LOADING).setup("test")
    assert [w for w in recwarn if "every image is from NIH ChestX-ray14" in str(w.message)]


def test_siim_rows_are_united_and_strays_are_counted(roots):
    module = Siim(str(roots("siim")), loading=LOADING)
    module.setup("test")
    assert module.dropped.counts() == {"image without a row": 1, "missing image": 1}
    records = [(split, i, r) for split, dataset in module.datasets.items() for i, r in enumerate(dataset.records)]
    several = [(split, i, record) for split, i, record in records if len(record.runs) > 1]
    assert several
    for split, index, record in several[:2]:
        mask = module.native(split, index).mask
        single = [rle_decode([code]) for code in record.runs]
        assert np.array_equal(mask, np.logical_or.reduce(single))
        assert mask.sum() > max(part.sum() for part in single)


def test_siim_stage_2_has_other_names_and_no_spaces(roots, tmp_path):
    first = Siim(str(roots("siim")), loading=LOADING)
    first.setup("test")
    copy = shutil.copytree(roots("siim"), tmp_path / "copy")
    text = (copy / "train-rle.csv").read_text()
    (copy / "train-rle.csv").unlink()
    (copy / "stage_2_train.csv").write_text(text.replace(", ", ","))
    (copy / "dicom-images-train").rename(copy / "stage_2_images")
    second = Siim(str(copy), loading=LOADING)
    second.setup("test")
    assert second.split_hash == first.split_hash
    assert np.array_equal(labels_of(first, "train"), labels_of(second, "train"))
    positive = int(labels_of(first, "train").argmax())
    assert np.array_equal(first.native("train", positive).mask, second.native("train", positive).mask)


def test_run_lengths_against_a_pixel_loop():
    rng = np.random.default_rng(0)
    for _ in range(5):
        mask = rng.random((12, 12)) < 0.4
        code = rle_encode(mask)
        slow, at = np.zeros(144, bool), 0
        for k, number in enumerate(map(int, code.split())):
            for _ in range(number):
                slow[at] = k % 2 == 1
                at += 1
        assert np.array_equal(rle_decode([code], 12), mask)
        assert np.array_equal(slow.reshape(12, 12).T, mask)
    assert not rle_decode(["-1"], 12).any()
    for bad in ("1 2 3", "a b", "100 100", "-3 4"):
        with pytest.raises(DataError, match="no run-length code"):
            rle_decode([bad], 12)


def test_nih_lists_boxes_and_the_two_test_sets(roots, tmp_path):
    root = roots("nih")
    official = Nih(str(root), boxes=True, loading=LOADING)
    official.setup("test")
    other = Nih(str(root), split="nih/chexnet", lists=str(root / "chexnet"), loading=LOADING)
    other.setup("test")
    assert set(official.datasets["test"].ids) != set(other.datasets["test"].ids)
    assert "(a part" in official.protocol
    boxed = [r for r in official.datasets["test"].records if len(r.boxes)]
    assert boxed
    for record in boxed:
        for box in record.boxes:
            assert record.labels[int(box[4])] == 1  # Infiltrate is Infiltration
    assert not any(len(r.boxes) for r in official.datasets["train"].records)
    with pytest.raises(DataError, match=r"train_list.txt.*CheXNet"):
        Nih(str(root), split="nih/chexnet", loading=LOADING).setup("test")
    mixed = shutil.copytree(root, tmp_path / "mixed")
    shutil.copy(root / "chexnet" / "test_list.txt", mixed / "test_list.txt")
    with pytest.raises(DataError, match=r"in another list too|in no list"):
        Nih(str(mixed), loading=LOADING).setup("test")


def test_nih_leaves_out_what_another_set_tests_on(roots, tmp_path):
    root = roots("nih")
    whole = Nih(str(root), loading=LOADING)
    whole.setup("test")
    named = [whole.datasets["train"].ids[0], whole.datasets["test"].ids[0]]
    table, mapping = tmp_path / "list.csv", tmp_path / "mapping.json"
    table.write_text("rsna,img_id\n" + "".join(f"x,{key}.png\n" for key in named))
    mapping.write_text(str([{"img_id": f"{key}.png"} for key in named]).replace("'", '"'))
    for source in (table, mapping):
        less = Nih(str(root), exclude=str(source), loading=LOADING)
        less.setup("test")
        assert set(whole.datasets["train"].ids) - set(less.datasets["train"].ids) == {named[0]}
        assert less.datasets["test"].ids == whole.datasets["test"].ids
        assert source.name in less.protocol
    mapping.write_text("{}")
    with pytest.raises(DataError, match="no image is named"):
        Nih(str(root), exclude=str(mapping), loading=LOADING).setup("test")


def test_openi_xml_and_kaggle_copies_hold_the_same(roots):
    root = roots("openi")
    first, second = (Openi(str(folder), loading=LOADING) for folder in (root, root / "kaggle"))
    for module in (first, second):
        module.setup("test")
        assert module.dropped.counts() == {"report without an image": 1, "missing image": 1, "empty report": 2}
    for split, dataset in first.datasets.items():
        twin = {record.id: record for record in second.datasets[split].records}
        assert set(twin) == set(dataset.ids)
        for record in dataset.records:
            assert record.text == twin[record.id].text
            assert np.array_equal(record.labels, twin[record.id].labels, equal_nan=True)
    everything = [record for dataset in first.datasets.values() for record in dataset.records]
    assert any(np.isnan(record.labels).all() for record in everything)
    assert max(Counter(record.patient for record in everything).values()) == 2


def test_openi_sections_and_views(roots):
    root = roots("openi")
    impression = Openi(str(root), section="impression", loading=LOADING)
    impression.setup("fit")
    both = Openi(str(root), loading=LOADING)
    both.setup("fit")
    assert "section impression" in impression.protocol
    for a, b in zip(impression.datasets["val"].texts(), both.datasets["val"].texts(), strict=True):
        assert b.endswith(a)
    with pytest.raises(ConfigError, match=r"data.views is 'frontal'.*indiana_projections.csv"):
        Openi(str(root), views="frontal", loading=LOADING).setup("fit")
    frontal = Openi(str(root / "kaggle"), views="frontal", loading=LOADING)
    frontal.setup("fit")
    assert max(Counter(frontal.datasets["train"].patients).values()) <= 3
    assert frontal.dropped.counts()["another view"] > 5


def test_openi_is_split_as_r2gen_lists_it(roots, tmp_path):
    root = roots("openi")
    path, lists = r2gen_list(root, tmp_path / "annotation.json")
    module = Openi(str(root), split="openi/r2gen", annotation=path, section="findings", loading=LOADING)
    module.setup("test")
    for split, names in lists.items():
        records = module.datasets[split].records
        assert sorted({record.patient for record in records}) == sorted(names)
        assert {record.text for record in records} <= {r.findings for r in module.reports()}
        assert max(Counter(record.patient for record in records).values()) == 2
    assert "openi/r2gen (a part: " in module.protocol
    assert module.dropped.counts()["not in R2Gen's list"] > 2
    first = Openi(str(root), split="openi/r2gen", annotation=path, section="findings", views="first", loading=LOADING)
    first.setup("test")
    for split, dataset in first.datasets.items():
        twice = module.datasets[split].records
        assert list(dataset.ids) == [min(r.id for r in twice if r.patient == patient) for patient in dataset.patients]


def test_a_pair_of_openi_has_both_images_of_a_report(roots, tmp_path):
    root = roots("openi")
    path, lists = r2gen_list(root, tmp_path / "annotation.json")
    options = {"split": "openi/r2gen", "annotation": path, "section": "findings", "loading": LOADING}
    every, pair = Openi(str(root), **options), Openi(str(root), views="pair", **options)
    for module in (every, pair):
        module.setup("test")
    assert (every.others, pair.others) == (0, 1)
    assert sorted(pair.datasets["test"].patients) == sorted(lists["test"])
    batch = pair.batch("test", range(len(lists["test"])))
    assert batch.image.shape[1] == 2
    single = every.batch("test", range(len(every.datasets["test"])))
    of = dict(zip(every.datasets["test"].ids, single.image, strict=True))
    for key, patient, images in zip(
        pair.datasets["test"].ids, pair.datasets["test"].patients, batch.image, strict=True
    ):
        first, second = sorted(r.id for r in every.datasets["test"].records if r.patient == patient)
        assert key == first
        assert torch.equal(images, torch.cat([of[first], of[second]]))
    gone = [path for path in root.rglob("*.png") if second.removeprefix(f"{patient}_") in path.name]  # in both copies
    for path in gone:
        path.rename(path.with_suffix(".gone"))
    again = Openi(str(root), views="pair", **options)
    again.setup("test")
    for path in gone:
        path.with_suffix(".gone").rename(path)
    assert ("missing other image", first, second) in again.dropped.rows
    whole = Openi(str(root), views="pair", section="findings", loading=LOADING)
    whole.setup("fit")
    alone = [record.other is None for record in whole.datasets["train"].records]
    assert any(alone)
    assert not all(alone)
    assert not whole.batch("train", [alone.index(True)]).image[0, 1].any()


def test_r2gens_list_of_openi_is_asked_for_and_checked(roots, tmp_path):
    root = str(roots("openi"))
    path, _ = r2gen_list(roots("openi"), tmp_path / "annotation.json")
    with pytest.raises(ConfigError, match=r"data.annotation is None; openi/r2gen, and no other split, reads R2Gen's"):
        Openi(root, split="openi/r2gen", section="findings")
    with pytest.raises(ConfigError, match=r"data.split is 'openi/hash' and data.annotation is"):
        Openi(root, annotation=path)
    with pytest.raises(ConfigError, match=r"data.section is 'both', and R2Gen's reports are the findings"):
        Openi(root, split="openi/r2gen", annotation=path)
    for content, message in (
        ("{", r"it is not R2Gen's annotation.json \(JSONDecodeError"),
        ('{"train": [{"x": 1}]}', r"it is not R2Gen's annotation.json \(KeyError"),
        ('{"dev": [{"id": "CXR1_IM-1"}]}', r"it has the split 'dev'"),
        ('{"train": [{"id": "s50414267"}]}', r"its ids are not Open-i's, as CXR2384_IM-0942"),
    ):
        (tmp_path / "bad.json").write_text(content)
        module = Openi(root, split="openi/r2gen", annotation=str(tmp_path / "bad.json"), section="findings")
        with pytest.raises(DataError, match=message):
            module.setup("fit")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw.replace("<uId", "<x"), "no uId"),
        (lambda raw: raw[: len(raw) // 2], "not XML"),
        (lambda raw: raw.replace("?>", '?><!DOCTYPE a [<!ENTITY b "c">]>'), "declares entities"),
        (lambda raw: raw + " " * 2**20, "which is no report"),
    ],
)
def test_bad_reports_are_named(roots, tmp_path, change, message):
    root = shutil.copytree(roots("openi"), tmp_path / "openi")
    path = root / "ecgen-radiology" / "3.xml"
    path.write_text(change(path.read_text()))
    with pytest.raises(DataError, match=message) as caught:
        Openi(str(root), loading=LOADING).setup("fit")
    assert "3.xml" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "table", "old", "new", "message"),
    [
        ("rsna", "stage_2_train_labels.csv", ",0\n", ",7\n", "has Target '7'"),
        ("rsna", "stage_2_train_labels.csv", "patientId", "patient", "no column 'patientId'"),
        ("siim", "train-rle.csv", " -1\n", " -1 2 3\n", "no run-length code"),
        ("siim", "train-rle.csv", "ImageId", "Image", "no column 'ImageId'"),
        ("nih", "Data_Entry_2017_v2020.csv", "No Finding", "Nothing", "has the finding 'Nothing'"),
        ("nih", "BBox_List_2017.csv", ",Infiltrate,", ",Infiltrate,x", "give four numbers"),
    ],
)
def test_bad_tables_are_named(roots, tmp_path, name, table, old, new, message):
    root = shutil.copytree(roots(name), tmp_path / name)
    path = root / table
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    options = {"boxes": True} if name == "nih" else {}
    module = find(DATAMODULES, name).load()(str(root), loading=LOADING, **options)
    with pytest.raises(DataError, match=message):
        _read_all(module)


def _read_all(module):
    module.setup("test")
    for split in module.datasets:
        for index in range(len(module.datasets[split])):
            module.native(split, index)


def test_two_files_for_one_image_are_refused(roots, tmp_path):
    root = shutil.copytree(roots("rsna"), tmp_path / "rsna")
    path = next((root / "stage_2_train_images").iterdir())
    Image.new("L", (4, 4)).save(path.with_suffix(".png"))
    with pytest.raises(DataError, match="two files for one image"):
        Rsna(str(root), loading=LOADING).setup("test")


def test_the_hash_of_a_split_is_of_its_ids(roots):
    module = Siim(str(roots("siim")), loading=LOADING)
    module.setup("test")
    assert module.split_hash == split_hash({str(s): d.ids for s, d in module.datasets.items()})
