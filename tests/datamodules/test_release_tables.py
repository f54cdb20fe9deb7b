"""Readers of releases on the real tables, and on some real radiographs."""

from collections import Counter

import numpy as np
import pytest
from mini import installed

from diptych.data.loading import Loading
from diptych.data.splits import shared_patients
from diptych.data.tables import find_file, scan_table
from diptych.errors import ConfigError
from diptych_datamodules import nih
from diptych_datamodules.nih import FINDINGS, Nih
from diptych_datamodules.openi import read_reports
from diptych_datamodules.releases import protocols
from diptych_datamodules.rsna import CLASSES, Rsna
from diptych_datamodules.siim import Siim, rle_decode

LOADING = Loading(image_size=32, batch_size=4, eval_batch_size=4, workers=0)


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
        assert sum(len(record.boxes) > 0 for record in records) == 6_012
        assert sum(record.labels[0] == 1 for record in records) == 6_012
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
    sizes = {split: len(dataset) for split, dataset in module.datasets.items()}
    assert sizes == {"train": 8_433, "val": 1_807, "test": 1_807}
    assert module.split_hash == protocols.PROTOCOLS["siim/image-level"].hash
    assert not shared_patients({split: dataset.ids for split, dataset in module.datasets.items()})


@pytest.mark.real
@pytest.mark.parametrize("split", ["siim/image-level", "siim/gloria-rows-leaky"])
def test_siim_negatives_are_sampled_to_the_positives_as_published(stub, split):
    root = stub("siim-pneumothorax-train-rle.csv.gz", "train-rle.csv.gz")
    rows = list(scan_table(find_file(root, ["train-rle.csv"], ""), ["ImageId", "EncodedPixels"]))
    empty = {key for key, code in rows if code == "-1"}
    whole, balanced, tenth = (
        Siim(root, split=split, negatives=negatives, percent=percent, loading=LOADING)
        for negatives, percent in (("all", 100), ("balanced", 100), ("balanced", 10))
    )
    for module in (whole, balanced, tenth):
        module.setup("test")
    before, after = (module.datasets["train"].ids for module in (whole, balanced))
    positive = {key for key in before if key not in empty}
    # GLoRIA's loader: n_pos images with a mask, as many others without replacement, then the share of both.
    assert {key for key in after if key not in empty} == positive
    assert len(after) == len(set(after)) == 2 * len(positive) < len(before)
    assert set(after) <= set(before)
    assert abs(len(tenth.datasets["train"]) - 0.1 * len(after)) < 1
    assert set(tenth.datasets["train"].ids) < set(after)
    for which in ("val", "test"):
        assert list(balanced.datasets[which].ids) == list(whole.datasets[which].ids)
    assert balanced.protocol == f"{whole.protocol}, negatives balanced"


def test_siim_with_few_negatives_keeps_them_and_refuses_another_rule(tmp_path):
    (tmp_path / "dicom-images-train").mkdir()
    rows = [f"{i:02d},{'-1' if i % 5 == 0 else '2 3'}" for i in range(40)]
    (tmp_path / "train-rle.csv").write_text("\n".join(["ImageId,EncodedPixels", *rows]))
    for i in range(40):
        (tmp_path / f"dicom-images-train/{i:02d}.png").touch()
    both = [Siim(str(tmp_path), negatives=negatives, loading=LOADING) for negatives in ("all", "balanced")]
    ids = [{name: list(dataset.ids) for name, dataset in module.build().items()} for module in both]
    assert ids[0] == ids[1]
    with pytest.raises(ConfigError, match=r"data.negatives is 'none'; choose among: all, balanced"):
        Siim(str(tmp_path), negatives="none", loading=LOADING)


@pytest.mark.real
def test_siim_leaky_split_leaks_what_is_said_and_warns(stub, recwarn):
    root = stub("siim-pneumothorax-train-rle.csv.gz", "train-rle.csv.gz")
    module = Siim(root, split="siim/gloria-rows-leaky", loading=LOADING)
    module.setup("test")
    train = set(module.datasets["train"].ids)
    positive = [record.id for record in module.datasets["test"].records if record.labels[0]]
    assert np.mean([key in train for key in positive]) == pytest.approx(0.32, abs=0.01)
    warnings = " ".join(str(warning.message) for warning in recwarn)
    assert "are in both 'test' and 'train', as published" in warnings
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
    unknown = sum(bool(np.isnan(report.labels()).all()) for report in reports)
    assert unknown == sum(not report.terms for report in reports) > 50


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
    rows = scan_table(table, ["Path", "Frontal/Lateral"])
    paths = [path.partition("train/")[2] for path, view in rows if view == "Frontal"]
    patients = [path.split("/")[0] for path in paths]
    assigned = protocols.split("chexpert/linear", paths, patients)
    assert Counter(assigned.splits) == {"train": 186_027, "val": 5_000}
    pairs = list(zip(patients, assigned.splits, strict=True))
    assert not shared_patients(
        {which: [patient for patient, split in pairs if split == which] for which in ("train", "val")}
    )
