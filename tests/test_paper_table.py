"""A made-up paper's table comes out of one command: heads, peers, towers and five data sets, with intervals and p-values."""

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("paper_table.py")


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.skipif(
    "DIPTYCH_PAPER_TABLE" not in os.environ, reason="it takes minutes and gigabytes; set DIPTYCH_PAPER_TABLE=1"
)
def test_the_table_of_a_made_up_paper(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [sys.executable, str(SCRIPT), str(tmp_path / "paper"), "--quick", "--jobs", "1"]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    out = tmp_path / "paper" / "table"
    with (out / "suite.csv").open() as file:
        rows = list(csv.DictReader(file))
    whole = ["local_pooling", "pcma", "gloria", "mgca", "chexzero"]
    tests = {
        test: [row["model"] for row in rows if row["test"] == test] for test in dict.fromkeys(r["test"] for r in rows)
    }
    assert set(tests) == {"chexpert", "rsna", "siim", "nih", "ms_cxr", "nih_probe"}
    for name in ("chexpert", "rsna", "siim", "nih"):
        assert tests[name] == whole
    assert tests["ms_cxr"] == whole[:-1]  # CheXzero has no maps of words
    assert tests["nih_probe"] == [*whole, "dinov2", "random"]
    for row in rows:
        if row["interval"] == "too few":  # the miniatures are small
            assert row["low"] == row["high"] == ""
        else:
            assert float(row["low"]) <= float(row["value"]) <= float(row["high"]), row
        if row["p"]:
            assert 0 < float(row["p"]) <= float(row["p (Holm)"]) <= 1, row
    assert {row["test"] for row in rows if row["interval"] != "too few"} >= {"chexpert", "ms_cxr"}
    assert {row["test"] for row in rows if row["p"] or row["difference interval"] == "too few"} == set(tests)
    assert any(row["p"] for row in rows)
    assert not any(row["p"] for row in rows if row["model"] == "local_pooling")
    page = (out / "suite.md").read_text()
    assert "has no figure in" not in page  # one protocol a column
    assert "No paired tests" not in page
    if shutil.which("pdflatex"):
        command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
        made = subprocess.run(command, cwd=out, capture_output=True, check=False)
        assert made.returncode == 0, made.stdout.decode(errors="replace")[-2000:]
    shutil.rmtree(tmp_path / "paper")  # weights of true shape take gigabytes
