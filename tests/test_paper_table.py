"""A made-up paper's table comes out of one command: heads, peers, towers and five data sets, with intervals and p-values."""

import csv
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
SCRIPT = Path(__file__).with_name("paper_table.py")
WHOLE = ["local_pooling", "pcma", "gloria", "mgca", "chexzero"]
TAKERS = {
    **dict.fromkeys(("chexpert", "rsna", "siim", "nih"), WHOLE),
    "ms_cxr": WHOLE[:-1],  # CheXzero has no maps of words
    "nih_probe": [*WHOLE, "dinov2", "random"],
}


def run(out):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [sys.executable, str(SCRIPT), str(out), "--jobs", "1"]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a whole run, and what it said."""
    out = tmp_path_factory.mktemp("made_up") / "paper"
    yield out, run(out)
    shutil.rmtree(out)  # weights of true shape take gigabytes


def test_every_model_has_a_figure_in_every_test_it_takes(made):
    out, said = made
    table = out / "table"
    with (table / "suite.csv").open() as file:
        rows = list(csv.DictReader(file))
    takers = defaultdict(list)
    for row in rows:
        takers[row["test"]].append(row["model"])
    assert takers == TAKERS
    files = 2 + 5 + 1 + 3 + 2 + 1  # heads, data sets, a list of images, peers, tokenizers, a tower
    assert said.count(" ... made (") == sum(map(len, TAKERS.values())) + files
    page = (table / "suite.md").read_text()
    for row in rows:
        assert row["interval"] in ("", "DeLong"), row  # as there are enough patients of each class, never "too few"
        assert float(row["low"]) <= float(row["value"]) <= float(row["high"]), row
        if row["model"] == "local_pooling":
            assert row["p"] == row["p (Holm)"] == ""
        elif row["difference interval"] == "too few":  # a reason, which the page explains
            assert row["p"] == ""
            assert "too few: none" in page
        else:
            assert 0 < float(row["p"]) <= float(row["p (Holm)"]) <= 1, row
            assert float(row["difference low"]) <= float(row["difference high"]), row
    assert {row["test"] for row in rows if row["p"]} == set(TAKERS)
    assert "has no figure in" not in page  # one protocol a column
    assert "No paired tests" not in page
    assert "corrected for the number of models in the column (Holm)" in page
    assert {row["interval"] for row in rows if row["test"] in ("nih", "nih_probe", "rsna", "siim")} == {""}
    assert (table / "suite.png").stat().st_size > 10_000


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="LaTeX is not installed")
def test_latex_sets_it_within_the_page(made):
    table = made[0] / "table"
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    done = subprocess.run(command, cwd=table, capture_output=True, check=False)
    log = done.stdout.decode(errors="replace")
    assert done.returncode == 0, log[-2000:]
    assert "Overfull" not in log
    assert "too large for page" not in log


def test_a_second_run_makes_nothing_anew(made):
    out, _ = made
    files = {
        path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file() and path.parent != out / "table"
    }
    page = (out / "table" / "suite.md").read_text()
    said = run(out)
    assert said.count("there already") == sum(map(len, TAKERS.values()))
    assert " ... made" not in said
    del files[out / "suite.yaml"]
    assert {path: path.stat().st_mtime_ns for path in files} == files
    assert (out / "table" / "suite.md").read_text() == page
