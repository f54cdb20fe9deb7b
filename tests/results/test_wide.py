"""The table of several tests: what stands in a cell, what is best, what is left out, and that LaTeX can set it."""

import csv
import io
import math
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from diptych.errors import ConfigError
from diptych.metrics.bootstrap import Metric
from diptych.results.against import Difference
from diptych.results.runs import RunResults
from diptych.results.wide import Column, WideTable


def run_of(label, protocol=None, **metrics):
    figures = {f"test/zero_shot/{name}": Metric(value, value - 0.1, value + 0.1, 20) for name, value in metrics.items()}
    facts = {"data": "D", "zero_shot": {"interval": "95 % interval of a bootstrap", **(protocol or {})}}
    return RunResults(label, Path("none") / label / "results.json", 0, "head", figures, facts, "hash")


COLUMNS = [
    Column("a", "test/zero_shot/auroc", "Set A_1", "AUROC"),
    Column("a", "test/zero_shot/ece", "Set A_1", "ECE", best="lowest"),
    Column("b", "test/zero_shot/auroc", "Set & B", "AUROC"),
]
MODELS = {"x": "Model x", "y": "50 % of y", "z": "Image alone"}


def table(**changes):
    runs = {
        ("x", "a"): run_of("x", auroc=0.8, ece=0.3),
        ("y", "a"): run_of("y", auroc=0.80001, ece=0.2),
        ("x", "b"): run_of("x", auroc=0.7),
        ("y", "b"): run_of("y", auroc=math.nan),
        ("z", "b"): run_of("z", auroc=0.6),
    }
    return WideTable(MODELS, COLUMNS, runs | changes.pop("runs", {}), **changes)


def test_a_row_a_model_and_a_column_a_figure():
    text = table().markdown("Title")
    header, _, *rows = [line for line in text.splitlines() if line.startswith("|")]
    assert [cell.strip() for cell in header.split("|")[1:-1]] == [
        "model",
        "Set A_1 AUROC",
        "Set A_1 ECE",
        "Set &amp; B AUROC",
    ]
    cells = {row.split("|")[1].strip(): [cell.strip() for cell in row.split("|")[2:-1]] for row in rows}
    assert cells["Model x"] == ["**0.800 (0.700 to 0.900)**", "0.300 (0.200 to 0.400)", "**0.700 (0.600 to 0.800)**"]
    assert cells["50 % of y"] == ["**0.800 (0.700 to 0.900)**", "**0.200 (0.100 to 0.300)**", "undefined"]
    assert cells["Image alone"] == ["-", "-", "0.600 (0.500 to 0.700)"]
    assert "Set A\\_1: D, split hash" in text or "Set A_1: D, split hash" in text
    assert "Intervals: 95 % interval of a bootstrap." in text


def test_an_interval_of_another_kind_is_named():
    few = RunResults("x", Path("none"), 0, "h", {}, {"data": "D", "zero_shot": {}}, "hash")
    metrics = {
        "test/zero_shot/auroc": Metric(0.8, 0.6, 0.9, 8, "DeLong"),
        "test/zero_shot/ece": Metric(0.3, math.nan, math.nan, 8, "too few"),
    }
    text = WideTable(MODELS, COLUMNS[:2], {("x", "a"): replace(few, metrics=metrics)}).markdown("Title")
    assert "0.800 (0.600 to 0.900, DeLong)" in text
    assert "0.300 (too few)" in text
    assert "DeLong: on the logit scale" in text
    assert "Too few: patients of either class" in text


def test_intervals_of_two_kinds_are_told_apart():
    runs = {
        ("z", "b"): run_of("z", {"interval": "one over seeds"}, auroc=0.6),
        ("x", "b"): run_of("x", {"interval": "one over seeds"}, auroc=0.7),
        ("y", "b"): run_of("y", {"interval": "one over seeds"}, auroc=0.8),
    }
    assert table(runs=runs).intervals == [
        "Intervals: 95 % interval of a bootstrap.",
        "Those of Set & B: one over seeds.",
    ]


def test_latex_names_a_column_once_and_writes_minus():
    wide = table()
    wide.against = "x"
    for model, number, value in (("y", 0, -0.1), ("z", 0, 0.2), ("y", 1, -0.3)):
        wide.paired[model, number] = Difference(value, value - 0.1, value + 0.1, 0.04, "DeLong", 0.08)
    lines = wide.latex().splitlines()
    start = lines.index("column & model & difference & 95 \\% & p & p (Holm) & test \\\\")
    assert lines[start + 1 : lines.index("\\bottomrule", start)] == [
        "\\midrule",
        "Set A\\_1 AUROC & 50 \\% of y & $-$0.100 & $-$0.200 to +0.000 & 0.0400 & 0.0800 & DeLong \\\\",
        " & Image alone & +0.200 & +0.100 to +0.300 & 0.0400 & 0.0800 & DeLong \\\\",
        "\\midrule",
        "Set A\\_1 ECE & 50 \\% of y & $-$0.300 & $-$0.400 to $-$0.200 & 0.0400 & 0.0800 & DeLong \\\\",
    ]
    assert "DeLong: DeLong's test, with patients as clusters." in wide.markdown("Title")


def test_another_protocol_gets_no_cell_but_a_note():
    wide = table(runs={("z", "b"): run_of("z", {"prompts": "others"}, auroc=0.9)})
    assert ("z", 2) not in wide.cells
    assert any("Image alone has no figure in Set & B AUROC" in note and "'others'" in note for note in wide.notes)
    assert wide.best(2) == {"x"}


def test_models_of_two_input_sizes_stand_in_one_column_though_their_chance_of_pointing_differs():
    of = {("z", "b"): 0.0145, ("x", "b"): 0.0148, ("y", "b"): 0.0148}
    runs = {
        (model, test): run_of(model, {"chance": {"pointing/Mass": chance}}, auroc=0.9)
        for (model, test), chance in of.items()
    }
    wide = table(runs=runs)
    assert [model for model, number in wide.cells if number == 2] == ["x", "y", "z"]


def test_the_protocol_is_that_of_the_model_compared_with():
    wide = table(runs={("x", "b"): run_of("x", {"prompts": "others"}, auroc=0.9)}, against="y")
    assert [model for model, number in wide.cells if number == 2] == ["y", "z"]


def test_a_figure_that_nobody_has_is_refused_with_those_that_are_there():
    with pytest.raises(ConfigError, match=r"column 'Set A AUPRC': .* test/zero_shot/auroc"):
        WideTable(MODELS, [Column("a", "test/zero_shot/auprc", "Set A", "AUPRC")], {("x", "a"): run_of("x", auroc=0.8)})


def test_without_predictions_there_is_no_paired_test_and_a_note(tmp_path):
    (tmp_path / "results.json").write_text('{"metrics": {}, "predictions": null}')
    runs = {}
    for name in "xy":
        run = run_of(name, auroc=0.8)
        runs[name, "a"] = RunResults(name, tmp_path / "results.json", 0, "h", run.metrics, run.protocol, "hash")
    wide = WideTable(MODELS, COLUMNS[:1], runs, against="x")
    assert not wide.paired
    assert any(note.startswith("No paired tests for a: ") and "has no predictions" in note for note in wide.notes)


def test_csv_has_every_figure():
    rows = list(csv.DictReader(io.StringIO(table().csv())))
    assert [(row["model"], row["test"], row["value"]) for row in rows][:3] == [
        ("x", "a", "0.8"),
        ("y", "a", "0.80001"),
        ("x", "a", "0.3"),
    ]
    assert len(rows) == 7


def test_latex_has_as_many_cells_in_each_row_as_columns():
    lines = table().latex().splitlines()
    start = lines.index("\\midrule") + 1
    rows = lines[start : lines.index("\\bottomrule")]
    assert len(rows) == 2 * 3  # the intervals stand below
    assert all(row.count(" & ") == 3 for row in rows)
    assert (
        rows[1]
        == " & \\scriptsize 0.700 to 0.900 & \\scriptsize 0.200 to 0.400 & \\scriptsize 0.600 to 0.800 \\\\[2pt]"
    )
    assert "\\multicolumn{2}{c}{Set A\\_1}" in "\n".join(lines)
    assert "\\multicolumn{1}{c}{Set \\& B}" in "\n".join(lines)
    assert "\\cmidrule(lr){2-3} \\cmidrule(lr){4-4}" in lines
    assert "50 \\% of y" in rows[2]


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="LaTeX is not installed")
def test_latex_compiles(tmp_path):
    table().write(tmp_path, "Title")
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"],
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout.decode(errors="replace")[-2000:]
    assert (tmp_path / "page.pdf").stat().st_size > 1000
    assert "Overfull" not in (tmp_path / "page.log").read_text(errors="replace")
    assert (tmp_path / "suite.png").is_file()
