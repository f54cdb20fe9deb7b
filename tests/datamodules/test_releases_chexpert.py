"""CheXpert as released: the real table, its subsets, label policies, paths of every release, and CheXpert Plus' reports."""

import csv
import shutil
from collections import Counter

import numpy as np
import pytest
from mini import TEXT, installed

from diptych.data.loading import Loading
from diptych.data.splits import split_hash
from diptych.errors import ConfigError, DataError
from diptych.plugins import DATAMODULES, find
from diptych.towers.text import ScratchText
from diptych_datamodules.chexpert import FINDINGS, Chexpert, settle
from diptych_datamodules.phantoms.layouts.write import write_layout
from diptych_datamodules.releases.protocols import PROTOCOLS
from diptych_datamodules.releases.subsets import COMPETITION, SUBSETS, Subset, exclusive

LOADING = Loading(image_size=32, batch_size=4, eval_batch_size=4, workers=0)
PLUS = "df_chexpert_plus_240401.csv"
# Name: present, absent, uncertain, in the 223,414 rows of train.csv.
COUNTED = {
    "No Finding": (22_381, 0, 0), "Enlarged Cardiomediastinum": (10_798, 21_638, 12_403),
    "Cardiomegaly": (27_000, 11_116, 8_087), "Lung Opacity": (105_581, 6_599, 5_598), "Lung Lesion": (9_186, 1_270, 1_488),
    "Edema": (52_246, 20_726, 12_984), "Consolidation": (14_783, 28_097, 27_742), "Pneumonia": (6_039, 2_799, 18_770),
    "Atelectasis": (33_376, 1_328, 33_739), "Pneumothorax": (19_448, 56_341, 3_145),
    "Pleural Effusion": (86_187, 35_396, 11_628), "Pleural Other": (3_523, 316, 2_653), "Fracture": (9_040, 2_512, 642),
    "Support Devices": (116_001, 6_137, 1_079),
}  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_layout("chexpert", 40, tmp_path_factory.mktemp("chexpert") / "it", seed=2, size=32)


def made(root, **options):
    module = Chexpert(str(root), loading=LOADING, **options)
    module.setup("test")
    return module


def everything(module):
    return [record for dataset in module.datasets.values() for record in dataset.records]


# -- the real table ---------------------------------------------------------------------------------------------------


@pytest.mark.real
def test_the_real_table_its_pools_and_its_subsets(tmp_path):
    (tmp_path / "train.csv.gz").symlink_to(installed("torchxrayvision", "data/chexpert_train.csv.gz"))
    module = Chexpert(str(tmp_path), split="chexpert/5x200", loading=LOADING)
    module._complete = lambda images: None  # neither files nor folders are there
    records = module.records()
    frontal = [record for record in records if record.frontal]
    assert (len(records), len({record.patient for record in records}), len(frontal)) == (223_414, 64_540, 191_027)
    raw = np.stack([record.raw for record in records])
    for name, column in zip(FINDINGS, raw.T, strict=True):
        assert tuple(int((column == value).sum()) for value in (1, 0, -1)) == COUNTED[name], name
    pools = Counter(exclusive(record.raw, FINDINGS, FINDINGS) for record in frontal)
    assert [pools[name] for name in COMPETITION] == [1_087, 1_034, 537, 2_257, 2_425]
    assert min(pools[name] for name in SUBSETS["chexpert/8x200"]) == 296
    for split, training in (("chexpert/5x200", 179_863), ("chexpert/8x200", 177_716)):
        module.split, module.subset = split, Subset(split, FINDINGS, "train.csv")
        name, assigned = module.assign(records)
        assert name == split
        assert Counter(module.chosen.values()) == dict.fromkeys(SUBSETS[split], 200)
        of = {which: [record for record, w in assigned if w == which] for which in ("train", "val", "test")}
        assert [len(of[which]) for which in of] == [training, 5_000, 200 * len(SUBSETS[split])]
        patients = [{record.patient for record in of[which]} for which in of]
        assert sum(map(len, patients)) == len(set().union(*patients))
        assert split_hash({"test": [record.id for record in of["test"]]}) == PROTOCOLS[split].hash


# -- rules ------------------------------------------------------------------------------------------------------------


def vector(**values):
    return np.array([values.get(name.replace(" ", "_"), np.nan) for name in FINDINGS], np.float32)


def test_uncertain_labels_against_a_loop():
    rng = np.random.default_rng(0)
    usual = {"Atelectasis", "Edema", "Pleural Effusion"}
    for _ in range(20):
        labels = rng.choice(np.array([1, 0, -1, np.nan], np.float32), len(FINDINGS))
        for policy in ("ignore", "zeros", "ones", "mixed"):
            slow = [
                value
                if value != -1 or policy == "ignore"
                else float(policy == "ones" or (policy == "mixed" and name in usual))
                for name, value in zip(FINDINGS, labels.tolist(), strict=True)
            ]
            before = labels.copy()
            assert np.array_equal(settle(labels, policy), slow, equal_nan=True)
            assert np.array_equal(labels, before, equal_nan=True)


def test_what_shows_one_finding_alone():
    assert exclusive(vector(Edema=1), FINDINGS, COMPETITION) == "Edema"
    assert exclusive(vector(Edema=1, No_Finding=1, Fracture=0), FINDINGS, COMPETITION) == "Edema"
    for other in ("Support_Devices", "Fracture", "Atelectasis"):
        for value in (1, -1):
            assert exclusive(vector(Edema=1, **{other: value}), FINDINGS, COMPETITION) == ""
    assert exclusive(vector(Edema=-1), FINDINGS, COMPETITION) == ""
    assert exclusive(vector(Fracture=1), FINDINGS, COMPETITION) == ""
    assert exclusive(vector(No_Finding=1), FINDINGS, SUBSETS["chexpert/8x200"]) == "No Finding"
    assert exclusive(vector(), FINDINGS, FINDINGS) == ""


# -- the miniature ----------------------------------------------------------------------------------------------------


def test_labels_policies_and_order(root):
    table = {
        row["Path"].partition("train/")[2]: row
        for row in csv.DictReader((root / "CheXpert-v1.0-small/train.csv").open())
    }
    five = made(root, labels="competition", uncertain="mixed", missing="zeros")
    assert five.findings == COMPETITION
    doubted = 0
    for record in five.datasets["train"].records:
        for name, value in zip(COMPETITION, record.labels.tolist(), strict=True):
            written = table[record.id][name]
            doubted += written == "-1.0"
            yes = written == "1.0" or (written == "-1.0" and name in {"Atelectasis", "Edema", "Pleural Effusion"})
            assert value == float(yes)
    assert doubted
    assert "uncertain mixed, missing zeros" in five.protocol
    plain = made(root)
    assert {-1.0, 0.0, 1.0} <= set(np.concatenate([r.labels for r in plain.datasets["train"].records]).tolist())
    assert any(np.isnan(r.labels).any() for r in plain.datasets["train"].records)
    assert not any(np.isnan(r.labels).any() for r in plain.datasets["test"].records)
    assert plain.dropped.counts() == {"duplicate row": 1, "missing image": 1}
    assert [r.text for r in everything(plain)] == [None] * len(everything(plain))


def test_uncertain_labels_by_a_models_word(root, tmp_path):
    path = tmp_path / "predictions.csv"
    records = {record.id: record for record in everything(made(root))}
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["Path", *FINDINGS])
        writer.writerows([f"x/train/{key}", *[0.5 if i % 2 else 0.49 for i in range(14)]] for key in records)
    changed = 0
    for record in everything(made(root, uncertain="self", predictions=str(path))):
        for i, (now, before) in enumerate(zip(record.labels, records[record.id].labels, strict=True)):
            changed += before == -1
            assert now == i % 2 if before == -1 else np.array_equal(now, before, equal_nan=True)
    assert changed
    text = path.read_text()
    path.write_text(text.replace("0.49", "1.49", 1))
    with pytest.raises(DataError, match="no probability"):
        made(root, uncertain="self", predictions=str(path))
    path.write_text(text.splitlines()[0] + "\n")
    with pytest.raises(DataError, match=r"no row for 'patient.*add it"):
        made(root, uncertain="self", predictions=str(path))


def test_zeros_and_mixed_are_the_published_rule(root):
    """GLoRIA's and MGCA's loaders: ``fillna(0)``, then -1 becomes what their table of the five findings says."""
    mapping = {"Atelectasis": 1, "Cardiomegaly": 0, "Consolidation": 0, "Edema": 1, "Pleural Effusion": 1}
    module = made(root, labels="competition", uncertain="mixed", missing="zeros")
    other = made(root, labels="competition", uncertain="mixed")
    table = {}
    for split in ("train", "valid"):
        for row in csv.DictReader((root / f"CheXpert-v1.0-small/{split}.csv").open()):
            values = {name: float(row[name] or 0) for name in mapping}
            table[row["Path"].partition(f"{split}/")[2]] = [
                mapping[name] if value == -1 else value for name, value in values.items()
            ]
    kept = 0
    for record, before in zip(everything(module), everything(other), strict=True):
        assert record.labels.tolist() == table[record.id]
        kept += int(np.isnan(before.labels).sum())
        known = ~np.isnan(before.labels)
        assert (record.labels[known] == before.labels[known]).all()
    assert kept
    assert "uncertain mixed, missing zeros" in module.protocol
    assert "uncertain mixed, missing keep" in other.protocol


@pytest.mark.parametrize("layout", ["CheXpert-v1.0", "here", "batches", "elsewhere"])
def test_whatever_release_the_paths_begin_with(root, tmp_path, layout):
    expected = made(root)
    copy, options = tmp_path / "copy", {}
    folder = shutil.copytree(root / "CheXpert-v1.0-small", copy / "CheXpert-v1.0")
    if layout == "CheXpert-v1.0":  # the folder of one release, the table of the other
        pass
    elif layout == "here":
        copy = folder
    elif layout == "elsewhere":
        shutil.move(folder / "train", tmp_path / "PNG" / "train")
        shutil.move(folder / "valid", tmp_path / "PNG" / "valid")
        for path in (tmp_path / "PNG").rglob("*.jpg"):
            path.rename(path.with_suffix(".png"))
        options = {"images": str(tmp_path / "PNG")}
    else:
        batches = [
            copy / f"CheXpert-v1.0 batch {k} ({what})"
            for k, what in enumerate(("validate & csv", "train 1", "train 2"), 1)
        ]
        folder.rename(batches[0])
        for k, patient in enumerate(sorted((batches[0] / "train").iterdir())):
            shutil.move(patient, batches[1 + k % 2] / patient.name)
        (batches[0] / "train").rmdir()
        for name in ("train.csv", "valid.csv"):
            path = batches[0] / name
            path.write_text(path.read_text().replace("CheXpert-v1.0-small/train/", f"{batches[1].name}/"))
    module = made(copy, **options)
    assert module.split_hash == expected.split_hash
    assert module.dropped.counts() == expected.dropped.counts()
    assert all(record.path.is_file() for record in everything(module))


def test_reports_of_plus(root):
    module, other = made(root, reports=PLUS), made(root, reports=str(root / PLUS), section="both")
    table = {row["path_to_image"].partition("/")[2]: row for row in csv.DictReader((root / PLUS).open())}
    assert module.dropped.counts()["empty report"] == 1
    for record, both in zip(everything(module), everything(other), strict=True):
        row = table[record.id]
        assert record.text == row["section_impression"].strip()
        assert both.text.endswith(record.text)
        assert bool(row["section_findings"]) == (both.text != record.text)
    assert "section both" in other.protocol
    few = Chexpert(str(root), reports=PLUS, section="findings", loading=LOADING).build()["train"]
    assert 0 < len(few) < len(module.datasets["train"]) / 2
    with pytest.raises(DataError, match=r"no none\.csv.*get df_chexpert_plus_240401\.csv"):
        made(root, reports="none.csv")


def test_all_views_are_of_the_official_split(root):
    rows = [row for s in ("train", "valid") for row in csv.DictReader((root / f"CheXpert-v1.0-small/{s}.csv").open())]
    whole, frontal = made(root, split="chexpert/official", frontal=False), made(root, split="chexpert/official")
    assert len(everything(whole)) == len(rows) - 2
    assert len(everything(frontal)) == sum(row["Frontal/Lateral"] == "Frontal" for row in rows) - 2
    assert set(whole.datasets) == {"train", "val"}
    assert set(whole.datasets["val"].patients) == {r["Path"].split("/")[-3] for r in rows if "/valid/" in r["Path"]}
    with pytest.raises(ConfigError, match=r"chexpert/linear is defined on frontal images"):
        Chexpert(str(root), frontal=False)


@pytest.mark.parametrize("by", ["image", "study"])
def test_the_500_studies_are_read_in_either_layout(root, tmp_path, by):
    copy = shutil.copytree(root, tmp_path / "copy")
    listed = list(csv.DictReader((root / "CheXpert/test_labels.csv").open()))
    assert all("AP/PA" not in row and row["Path"].startswith("test/patient647") for row in listed)
    studies = {row["Study"].partition("test/")[2]: row for row in csv.DictReader((root / "groundtruth.csv").open())}
    (copy / ("groundtruth.csv" if by == "image" else "CheXpert/test_labels.csv")).unlink()
    module = made(copy, split="chexpert/test500", frontal=False)
    official = made(root, split="chexpert/official", frontal=False)
    tested = module.datasets["test"].records
    assert sorted(f"test/{record.id}" for record in tested) == sorted(row["Path"] for row in listed)
    for record in tested:
        row = studies["/".join(record.id.split("/")[:2])]
        assert record.path.parts[-4:-1] == ("test", *record.id.split("/")[:2])
        assert record.labels.tolist() == [float(row[name]) for name in FINDINGS]
    assert {record.labels[0] for record in tested} == {0, 1}
    assert [module.datasets[which].ids for which in ("train", "val")] == [
        official.datasets[which].ids for which in ("train", "val")
    ]
    frontal = made(copy, split="chexpert/test500")
    assert {record.id.split("_")[1] for record in tested} == {"frontal.jpg", "lateral.jpg"}
    assert list(frontal.datasets["test"].ids) == [record.id for record in tested if "frontal" in record.id]
    assert len(module.datasets["test"]) > len(frontal.datasets["test"]) == len(studies)
    shutil.rmtree(copy / "CheXpert/test/patient64741")
    assert made(copy, split="chexpert/test500").dropped.counts()["missing image"] == 2
    assert "(a part: " in module.protocol


def test_a_test_table_that_is_none_is_named(root, tmp_path):
    copy = shutil.copytree(root, tmp_path / "copy")
    table = copy / "CheXpert/test_labels.csv"
    whole = table.read_text()
    for old, new, message in (
        ("Edema", "Oedema", "no column 'Edema'"),
        (",1.0", ",", "lacks a label; the radiologists gave all"),
        ("/study1/", "/", "no path of the release"),
        (",1.0", ",2.0", "has the label '2.0'"),
    ):
        table.write_text(whole.replace(old, new))
        with pytest.raises(DataError, match=message) as caught:
            made(copy, split="chexpert/test500")
        assert str(table) in str(caught.value)
    table.write_text(whole.replace("Lung Opacity", "Airspace Opacity"))  # as CheXlocalize calls it elsewhere
    assert len(made(copy, split="chexpert/test500").datasets["test"])
    table.unlink()
    by_study = copy / "groundtruth.csv"
    by_study.write_text(by_study.read_text().replace("/study1", ""))
    with pytest.raises(DataError, match="is no study of the release"):
        made(copy, split="chexpert/test500")
    by_study.unlink()
    with pytest.raises(DataError, match=r"no test_labels.csv or groundtruth.csv.*CheXlocalize"):
        made(copy, split="chexpert/test500")


def test_200_of_each_class_are_drawn_by_hash():
    labels = {f"{name}{i:03d}": vector(**{name.replace(" ", "_"): 1}) for name in COMPETITION for i in range(250)}
    labels |= {f"both{i}": vector(Edema=1, Atelectasis=-1) for i in range(50)}
    chosen = Subset("chexpert/5x200", FINDINGS, "x").choose(labels, [], lambda name, table: name)
    assert Counter(chosen.values()) == dict.fromkeys(COMPETITION, 200)
    assert all(image.startswith(name) for image, name in chosen.items())
    turned = dict(reversed(labels.items()))
    assert Subset("mimic_cxr/5x200", FINDINGS, "x").choose(turned, [], lambda name, table: name) == chosen
    other = Subset("chexpert/5x200", FINDINGS, "x", seed=1)
    assert 500 < len(other.choose(labels, [], lambda name, table: name).keys() & chosen.keys()) < 900
    assert other.name("chexpert/5x200", chosen, whole=True) == "chexpert/5x200, subset seed 1"
    with pytest.raises(DataError, match="the release's size, but other labels"):
        Subset("chexpert/5x200", FINDINGS, "x").name("chexpert/5x200", chosen, whole=True)


def test_subsets_are_drawn_written_and_read_again(root, tmp_path):
    from lightning.pytorch import Trainer

    module = Chexpert(str(root), split="chexpert/5x200", loading=LOADING)
    module.trainer = Trainer(default_root_dir=tmp_path / "run", accelerator="cpu", logger=False)
    module.setup("test")
    tested = module.datasets["test"]
    assert set(tested.ids) <= set(module.chosen)
    for record in tested.records:
        assert exclusive(record.raw, FINDINGS, COMPETITION) == module.chosen[record.id]
    assert "chexpert/5x200 (" in module.protocol
    assert "0 Edema" in module.protocol  # phantoms have none
    patients = {which: set(dataset.patients) for which, dataset in module.datasets.items()}
    assert not patients["test"] & (patients["train"] | patients["val"])
    written = tmp_path / "run" / "chexpert_5x200.csv"
    again = made(root, split="chexpert/5x200", subset=str(written))
    assert again.split_hash == module.split_hash
    assert "listed by chexpert_5x200.csv" in again.protocol
    lines = written.read_text().splitlines()
    written.write_text("\n".join(lines[:-1]))
    fewer = made(root, split="chexpert/5x200", subset=str(written))
    assert len(fewer.datasets["test"]) == len(tested) - 1
    stranger = next(key for key in fewer.datasets["train"].ids if key not in module.chosen)
    for line, message in (
        (f"train/{stranger}", "alone, as chexpert/5x200 needs"),
        ("train/patient99999/study1/view1_frontal.jpg", "no frontal image"),
        ("x.jpg", "no path of the release"),
    ):
        written.write_text("\n".join([*lines, f"{line},Edema"]))
        with pytest.raises(DataError, match=message):
            made(root, split="chexpert/5x200", subset=str(written))
    with pytest.raises(ConfigError, match=r"data.subset lists the test of chexpert/5x200"):
        Chexpert(str(root), subset=str(written))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (",1.0", ",2.0", "has the label '2.0'"),
        (",Frontal,", ",Oblique,", "is 'Oblique'"),
        ("/study1/", "/", "no path of the release"),
        ("No Finding", "Nothing", "no column 'No Finding'"),
    ],
)
def test_bad_tables_are_named(root, tmp_path, old, new, message):
    copy = shutil.copytree(root, tmp_path / "copy")
    path = copy / "CheXpert-v1.0-small" / "train.csv"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(DataError, match=message) as caught:
        made(copy)
    assert "train.csv" in str(caught.value)


def test_rows_that_contradict_each_other_and_two_releases_are_refused(root, tmp_path):
    copy = shutil.copytree(root, tmp_path / "copy")
    path = copy / "CheXpert-v1.0-small" / "train.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, lines[1].rpartition(",")[0] + ",-1.0"]))
    with pytest.raises(DataError, match="twice with other labels"):
        made(copy)
    path.write_text("\n".join(lines))
    shutil.copytree(root / "CheXpert-v1.0-small", copy / "CheXpert-v1.0")
    with pytest.raises(DataError, match=r"CheXpert-v1.0 and CheXpert-v1.0-small hold a train.csv each"):
        made(copy)
    shutil.rmtree(copy / "CheXpert-v1.0")
    for name in ("train", "valid"):
        shutil.rmtree(copy / "CheXpert-v1.0-small" / name)
    with pytest.raises(DataError, match="no image in it; unpack"):
        made(copy)


def test_options_that_belong_together():
    with pytest.raises(ConfigError, match=r"data.predictions belongs to data.uncertain 'self'"):
        Chexpert("x", uncertain="self")
    with pytest.raises(ConfigError, match=r"data.split is 'chexpert/5'; choose among: chexpert/"):
        Chexpert("x", split="chexpert/5")


def test_it_trains_with_and_without_reports(root):
    tokenizer = ScratchText(**TEXT).tokenizer
    module = find(DATAMODULES, "chexpert").load()(str(root), tokenizer, reports=PLUS, loading=LOADING)
    module.setup("fit")
    batch = next(iter(module.train_dataloader()))
    assert batch.text is not None
    assert batch.labels.shape == (4, 14)
    silent = made(root)
    assert next(iter(silent.test_dataloader())).text is None
