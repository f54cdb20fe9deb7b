"""Readers of releases on real tables, on hostile ones, and their protocols against the libraries that published them."""

import csv
import gzip
import shutil
import tarfile
import xml.etree.ElementTree as ET
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from mini import installed
from PIL import Image

from diptych.data.loading import Loading
from diptych.data.splits import filled, nested, shared, shuffled, split_hash
from diptych.data.tables import find_file, scan_table
from diptych.errors import ConfigError, DataError
from diptych.plugins import DATAMODULES, find
from diptych_datamodules import nih
from diptych_datamodules.nih import FINDINGS, Nih
from diptych_datamodules.openi import Openi, read_reports
from diptych_datamodules.phantoms.layouts.dicom import rle_encode
from diptych_datamodules.phantoms.layouts.write import write_layout
from diptych_datamodules.releases import protocols
from diptych_datamodules.rsna import CLASSES, Rsna, box_mask
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


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """A folder into which a real table is put; every image is taken to be there."""
    for module in ("rsna", "siim", "nih"):
        monkeypatch.setattr(f"diptych_datamodules.{module}.index_images", lambda folders, files: _All())

    def put(package_file, name):
        (tmp_path / name).symlink_to(installed("torchxrayvision", f"data/{package_file}"))
        return str(tmp_path)

    return put


class _All(dict):
    def get(self, key, default=None):
        return f"{key}.dcm"


def labels_of(module, split):
    return np.stack([record.labels for record in module.datasets[split].records])


# -- real tables ------------------------------------------------------------------------------------------------------


@pytest.mark.real
def test_rsna_real_table(stub):
    root = stub("kaggle_stage_2_train_labels.csv.zip", "stage_2_train_labels.csv.zip")
    rows = list(scan_table(find_file(root, ["stage_2_train_labels.csv"], ""), ["patientId", "Target"]))
    assert len(rows) == 30_227
    sizes = {"rsna/gloria-cls": (18_678, 4_003, 4_003), "rsna/mgca-det": (16_010, 5_337, 5_337)}
    for name, expected in sizes.items():
        module = Rsna(root, split=name, loading=LOADING)
        module.setup("test")
        assert tuple(len(module.datasets[split]) for split in ("train", "val", "test")) == expected
        assert module.split_hash == protocols.PROTOCOLS[name].hash
        assert module.protocol == name
        records = [record for dataset in module.datasets.values() for record in dataset.records]
        assert len(records) == 26_684
        assert sum(len(record.boxes) for record in records) == 9_555
        assert (
            sum(len(record.boxes) > 0 for record in records)
            == sum(record.labels[0] == 1 for record in records)
            == 6_012
        )
    share = [Rsna(root, percent=p, loading=LOADING) for p in (1, 10)]
    for module in share:
        module.setup("test")
    one, ten = (set(module.datasets["train"].ids) for module in share)
    assert (len(one), len(ten)) == (187, 1_868)
    assert one < ten


@pytest.mark.real
def test_siim_real_table_and_every_mask(stub):
    root = stub("siim-pneumothorax-train-rle.csv.gz", "train-rle.csv.gz")
    rows = list(scan_table(find_file(root, ["train-rle.csv"], ""), ["ImageId", "EncodedPixels"]))
    assert len(rows) == 12_954
    codes = [code for _, code in rows if code != "-1"]
    assert len(codes) == 3_576
    for code in codes:
        mask = rle_decode([code])
        assert 0 < mask.sum() == sum(int(n) for n in code.split()[1::2])
    module = Siim(root, loading=LOADING)
    module.setup("test")
    records = [record for dataset in module.datasets.values() for record in dataset.records]
    assert (len(records), sum(int(record.labels[0]) for record in records)) == (12_047, 2_669)
    assert sum(len(record.runs) > 1 for record in records) == 624
    assert {split: len(dataset) for split, dataset in module.datasets.items()} == {
        "train": 8_433,
        "val": 1_807,
        "test": 1_807,
    }
    assert module.split_hash == protocols.PROTOCOLS["siim/image-level"].hash
    assert not shared({split: dataset.ids for split, dataset in module.datasets.items()})


@pytest.mark.real
def test_siim_leaky_split_leaks_what_is_said_and_warns(stub, recwarn):
    module = Siim(
        stub("siim-pneumothorax-train-rle.csv.gz", "train-rle.csv.gz"), split="siim/gloria-rows-leaky", loading=LOADING
    )
    module.setup("test")
    train = set(module.datasets["train"].ids)
    positive = [record.id for record in module.datasets["test"].records if record.labels[0]]
    assert np.mean([key in train for key in positive]) == pytest.approx(0.32, abs=0.01)
    warnings = " ".join(str(warning.message) for warning in recwarn)
    assert "images are in both 'test' and 'train', as published" in warnings
    assert "leaky" in module.protocol


@pytest.mark.real
def test_nih_real_tables(stub, tmp_path, monkeypatch):
    root = stub("Data_Entry_2017_v2020.csv.gz", "Data_Entry_2017_v2020.csv.gz")
    stub("BBox_List_2017.csv.gz", "BBox_List_2017.csv.gz")
    monkeypatch.setattr(nih.Nih, "_splits", lambda self, patients: dict.fromkeys(patients, "test"))
    module = Nih(root, boxes=True, loading=LOADING)
    records = module.records()
    assert len(records) == 112_120
    assert len({record.patient for record in records}) == 30_805
    assert sum(len(record.boxes) for record in records) == 984
    assert sum(len(record.boxes) > 0 for record in records) == 880
    labels = np.stack([record.labels for record in records])
    assert int((labels.sum(axis=1) == 0).sum()) == 60_361
    counts = dict(zip(FINDINGS, labels.sum(axis=0).astype(int).tolist(), strict=True))
    assert counts["Infiltration"] == 19_894
    assert counts["Hernia"] == 227
    boxed = Counter(FINDINGS[int(box[4])] for record in records for box in record.boxes)
    assert boxed["Infiltration"] == 123


@pytest.mark.real
def test_openi_real_reports():
    reports = read_reports(installed("torchxrayvision", "data/NLMCXR_reports.tgz"))
    assert len(reports) == 3_955
    assert sum(bool(report.findings) for report in reports) == 3_425
    assert sum(bool(report.impression) for report in reports) == 3_921
    assert sum(len(report.images) for report in reports) == 7_470
    assert sum(report.terms == ("normal",) for report in reports) == 1_391
    assert (
        sum(bool(np.isnan(report.labels()).all()) for report in reports)
        == sum(not report.terms for report in reports)
        > 50
    )


@pytest.mark.real
def test_rsna_on_real_radiographs(shared_data):
    module = Rsna(str(shared_data / "rsna_like"), labels="classes", masks=True, loading=LOADING)
    module.setup("test")
    assert sum(len(dataset) for dataset in module.datasets.values()) == 24
    assert module.protocol == "rsna/gloria-cls (a part: 24 of 26,684)"
    assert not module.dropped.rows
    batch = next(iter(module.test_dataloader()))
    assert (batch.labels.sum(dim=1) == 1).all()
    for boxes, mask, label in zip(batch.boxes, batch.masks, batch.labels, strict=True):
        assert bool(len(boxes)) == bool(mask.any()) == (CLASSES[int(label.argmax())] == "Lung Opacity")


@pytest.mark.real
def test_chexpert_linear_protocol_on_the_real_table():
    table = installed("torchxrayvision", "data/chexpert_train.csv.gz")
    paths = [
        path.partition("train/")[2]
        for path, view in scan_table(table, ["Path", "Frontal/Lateral"])
        if view == "Frontal"
    ]
    patients = [path.split("/")[0] for path in paths]
    assigned = protocols.split("chexpert/linear", paths, patients)
    assert Counter(assigned.splits) == {"train": 186_027, "val": 5_000}
    assert not shared(
        {w: [p for p, s in zip(patients, assigned.splits, strict=True) if s == w] for w in ("train", "val")}
    )


# -- protocols --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "val", "test"), [(26_684, 4_003, 4_003), (26_684, 5_337, 5_337), (12_954, 1_943, 1_944)]
)
def test_shuffled_is_what_scikit_learn_gives(number, val, test):
    from sklearn.model_selection import train_test_split

    rows = np.arange(number)
    train, rest = train_test_split(rows, test_size=val + test, random_state=0)
    first, second = train_test_split(rest, test_size=val, random_state=0)
    got = np.array(shuffled(number, val, test))
    for name, expected in (("train", train), ("test", first), ("val", second)):
        assert np.array_equal(np.flatnonzero(got == name), np.sort(expected))


def test_filled_keeps_patients_whole_and_sizes_exact():
    rng = np.random.default_rng(0)
    patients = [f"p{i}" for i in range(300) for _ in range(int(rng.integers(1, 6)))]
    splits = filled(patients, {"val": 97, "test": 101}, "train", seed=0)
    assert Counter(splits)["val"] == 97
    assert Counter(splits)["test"] == 101
    assert len(set(zip(patients, splits, strict=True))) == 300
    assert filled(patients[::-1], {"val": 97, "test": 101}, "train", seed=0) == splits[::-1]
    with pytest.raises(DataError, match="2 are missing"):
        filled(["a", "a", "a"], {"val": 2}, "train", seed=0)


def test_nested_by_patient():
    patients = [f"p{i // 3}" for i in range(600)]
    chosen = [set(nested(patients, percent)) for percent in (1, 10, 50, 100)]
    assert [len(part) for part in chosen] == [6, 60, 300, 600]
    assert all(small <= big for small, big in pairwise(chosen))
    for percent in (0, 101):
        with pytest.raises(DataError, match="percent"):
            nested(patients, percent)


def test_a_table_of_the_releases_size_must_be_the_release():
    ids = [f"id{i:05d}" for i in range(26_684)]
    with pytest.raises(DataError, match=r"rsna/gloria-cls: the table has the release's 26,684 entries, but others"):
        protocols.split("rsna/gloria-cls", ids, ids)


def test_protocols_add_up_and_leaks_are_in_the_name():
    for name, protocol in protocols.PROTOCOLS.items():
        assert protocol.leaky == name.endswith("-leaky")
        assert protocol.about
        if protocol.rule not in {"given", "shares"}:
            assert len(protocol.hash) == 16
    with pytest.raises(ConfigError, match=r"data.split is 'rsna/gloria'; choose among: rsna/gloria-cls"):
        Rsna("x", split="rsna/gloria")


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
    labels = {
        e.get("Label") for path in root.glob("ecgen-radiology/*.xml") for e in ET.parse(path).iter("AbstractText")
    }
    assert labels == {e.get("Label") for e in real.iter("AbstractText")}


# -- miniatures -------------------------------------------------------------------------------------------------------


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
    several = [
        (split, i, r) for split, d in module.datasets.items() for i, r in enumerate(d.records) if len(r.runs) > 1
    ]
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
