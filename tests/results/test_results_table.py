"""One table of many results: what shares a column, what does not, and how it is written."""

import csv
import json
import math
import subprocess
import sys

import inprocess
import numpy as np
import pytest
from PIL import Image
from scipy import stats

from diptych.errors import ConfigError, DiptychError
from diptych.metrics.bootstrap import Metric
from diptych.results import table as results_table
from diptych.results.record import write_results

NAN = math.nan


def results(folder, value=0.8, seed=0, head="Global", split="ab12", prompts="aa", data="rsna/gloria-cls", **protocol):
    metrics = {
        "test/zero_shot/auroc/macro": Metric(value, value - 0.1, value + 0.1, 40),
        "test/zero_shot/auroc/Edema_left": Metric(value + 0.01, NAN, NAN, 40),
        "test/zero_shot/accuracy": Metric(NAN, NAN, NAN, 0),
        "test/retrieval/r@5": Metric(value / 2, value / 2 - 0.1, value / 2 + 0.1, 40),
    }
    zero_shot = {"interval": "95 % bootstrap", "prompts": "rsna 1", "prompts_hash": prompts, "thresholds": {"a": value}}
    write_results(
        folder / "results.json",
        metrics=metrics,
        protocol={"data": data, "zero_shot": zero_shot | protocol, "retrieval": {"interval": "95 % bootstrap"}},
        split_hash=split,
        seed=seed,
        checkpoint=None,
        checkpoint_sha256=None,
        head=head,
        data="Rsna",
    )
    return str(folder)


def output(capsys, *arguments):
    results_table.main([str(argument) for argument in arguments])
    return capsys.readouterr().out


def rows(text):
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]


def test_runs_of_one_protocol_share_a_table_with_intervals(tmp_path, capsys):
    text = output(capsys, results(tmp_path / "a"), f"other={results(tmp_path / 'b', 0.7)}/results.json")
    assert text.count("## ") == 2
    assert "rsna/gloria-cls; split ab12. In brackets: 95 % bootstrap." in text
    assert rows(text) == [
        ["run", "auroc/macro", "accuracy"],
        ["a", "0.800 (0.700 to 0.900)", "undefined"],
        ["other", "0.700 (0.600 to 0.800)", "undefined"],
        ["run", "r@5"],
        ["a", "0.400 (0.300 to 0.500)"],
        ["other", "0.350 (0.250 to 0.450)"],
    ]
    text = output(capsys, tmp_path / "a", "--metrics", "auroc/*")
    assert rows(text)[0] == ["run", "auroc/macro", "auroc/Edema_left"]
    assert rows(text)[1][2] == "0.810"


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"split": "cd34"}, "split_hash 'cd34', there 'ab12'"),
        ({"prompts": "bb"}, "prompts_hash 'bb', there 'aa'"),
        ({"data": "siim/image-level"}, "data 'siim/image-level', there 'rsna/gloria-cls'"),
        ({"z_scored": True}, "z_scored 'true', there is not said"),
    ],
)
def test_another_protocol_never_shares_a_column_and_is_named(tmp_path, capsys, changed, named):
    text = output(
        capsys, results(tmp_path / "a"), results(tmp_path / "b", **changed), results(tmp_path / "c", **changed)
    )
    tables = text.split("## ")[1:]
    zero_shot = [table for table in tables if table.startswith("test/zero_shot")]
    assert [[row[0] for row in rows(table)[1:]] for table in zero_shot] == [["a"], ["b", "c"]]
    assert zero_shot[0].startswith("test/zero_shot (1 of 2)")
    assert f"**Not to be compared with the first table of test/zero_shot:** {named}." in zero_shot[1]
    whole = set(changed) & {"split", "data"}  # the evaluator's own facts concern no other
    assert len(tables) == (4 if whole else 3)


def test_what_comes_out_of_a_run_is_no_protocol(tmp_path, capsys):
    for folder, value in (("a", 0.8), ("b", 0.6)):
        results(tmp_path / folder, value, fractions={"1%": {"images": 9, "auroc of each seed": [value]}}, seeds=[value])
    assert "of 2)" not in output(capsys, tmp_path / "a", tmp_path / "b")
    for folder, value in (("c", 0.8), ("d", 0.6)):
        results(tmp_path / folder, value, **{"dice of each episode": {"1-shot": [value]}})
    assert "of 2)" not in output(capsys, tmp_path / "c", tmp_path / "d")
    results(tmp_path / "b", 0.6, fractions={"1%": {"images": 8}}, seeds=[0.6])
    assert "of 2)" in output(capsys, tmp_path / "a", tmp_path / "b")


def test_seeds_are_summarised_as_student_does(tmp_path, capsys):
    values = {0: 0.7, 1: 0.75, 2: 0.71}
    runs = [results(tmp_path / "lp" / f"seed{s}", v, seed=s) for s, v in values.items()]
    runs.append(results(tmp_path / "g-seed4", 0.6, seed=4))
    text = output(capsys, *runs, "--over-seeds")
    half = stats.t.ppf(0.975, 2) * stats.sem(list(values.values()))
    assert rows(text)[:3] == [
        ["run", "auroc/macro", "accuracy", "seeds"],
        ["lp", f"0.720 ± {half:.3f}", "undefined in 3 of 3", "3"],
        ["g", "0.600", "undefined", "1"],
    ]
    text = output(capsys, *runs)
    assert [row[0] for row in rows(text)[1:5]] == ["lp/seed0", "lp/seed1", "lp/seed2", "g-seed4"]


def test_csv_has_every_figure_and_says_which_table(tmp_path, capsys):
    output(capsys, results(tmp_path / "a"), results(tmp_path / "b", split="cd34"), "--csv", tmp_path / "new" / "t.csv")
    figures = list(csv.DictReader((tmp_path / "new" / "t.csv").open()))
    assert len(figures) == 8
    row = next(r for r in figures if r["run"] == "b" and r["metric"] == "auroc/Edema_left")
    assert (float(row["value"]), row["low"], row["n"]) == (0.81, "", "40")
    assert row["table"] == "test/zero_shot (2 of 2)"
    assert json.loads(row["protocol"])["split_hash"] == "cd34"


def test_markdown_file_is_what_is_printed_and_latex_is_escaped(tmp_path, capsys):
    text = output(
        capsys,
        f"50 % & more_={results(tmp_path / 'a')}",
        *("--markdown", tmp_path / "t.md", "--latex", tmp_path / "t.tex", "--metrics", "*"),
    )
    assert (tmp_path / "t.md").read_text() == text
    tex = (tmp_path / "t.tex").read_text()
    assert r"50 \% \& more\_ & 0.800 (0.700 to 0.900) & 0.810 & undefined \\" in tex
    assert "AUROC (macro)" in tex
    assert r"test/zero\_shot. rsna/gloria-cls; split ab12. In brackets: 95 \% bootstrap." in tex
    assert tex.count(r"\begin{tabular}{l") == tex.count(r"\end{table}") == 2
    for line in tex.splitlines():
        assert "_" not in line.replace(r"\_", "")


def test_the_plot_draws_values_and_intervals(tmp_path, capsys):
    from diptych.results.dotplot import _BAR, _DOT, _MEAN

    runs = [results(tmp_path / f"a/seed{s}", 0.5 + s / 10, seed=s) for s in range(3)]
    output(capsys, *runs, "--plot", tmp_path / "t.png")
    pixels = np.asarray(Image.open(tmp_path / "t.png"))[60:]
    assert all((pixels == colour).all(axis=2).sum() > 50 for colour in (_BAR, _MEAN))
    assert not (pixels == _DOT).all(axis=2).any()
    output(capsys, *runs, "--over-seeds", "--plot", tmp_path / "t.png")
    assert (np.asarray(Image.open(tmp_path / "t.png"))[60:] == _DOT).all(axis=2).any()


def test_shares_of_the_labels_are_an_axis(tmp_path, capsys):
    from diptych.results.curves import _COLOURS

    for run, low in (("ours", 0.7), ("random", 0.5)):
        rows = {f"test/probe/{p}%/auroc/macro": low + p / 1000 for p in (1, 10, 100)}
        metrics = {name: {"value": v, "low": v - 0.02, "high": v + 0.02, "n": 9} for name, v in rows.items()}
        protocol = {"data": "phantom", "probe": {"interval": "95 % bootstrap"}}
        (tmp_path / run).mkdir()
        content = {"metrics": metrics, "protocol": protocol, "head": run, "seed": 0, "split_hash": "ab12"}
        (tmp_path / run / "results.json").write_text(json.dumps(content))
    output(capsys, tmp_path / "ours", tmp_path / "random", "--shares", tmp_path / "s.png")
    pixels = np.asarray(Image.open(tmp_path / "s.png"))[108:]  # below the key
    places = [np.argwhere((pixels == colour).all(axis=2)) for colour in _COLOURS[:3]]
    assert min(len(place) for place in places[:2]) > 500
    assert len(places[2]) == 0
    assert places[0][:, 0].max() < places[1][:, 0].min()  # higher values are higher up, and the two do not touch
    assert all(np.ptp(place[:, 1]) > 450 for place in places[:2])
    output(capsys, tmp_path / "ours", "--shares", tmp_path / "s.svg")
    assert (tmp_path / "s.svg").read_text().count("<circle") == 3
    with pytest.raises(ConfigError, match=r"--shares '.*s\.jpg' ends in '\.jpg'; end it in one of: png, svg, pdf"):
        results_table.main([str(tmp_path / "ours"), "--shares", str(tmp_path / "s.jpg")])
    with pytest.raises(ConfigError, match=r"--shares draws metrics over the share of the labels, .*no run has any"):
        results_table.main([str(results(tmp_path / "a")), "--shares", str(tmp_path / "t.png")])


def test_errors_name_the_file(tmp_path):
    a, b = results(tmp_path / "x" / "run"), results(tmp_path / "y" / "run", 0.6, head="LocalPooling")
    (tmp_path / "empty").mkdir()
    (tmp_path / "odd.json").write_text(
        '{"metrics": {"loss": {"value": 1, "low": 1, "high": 1, "n": 1}}, "protocol": {}}'
    )
    (tmp_path / "bare.json").write_text('{"metrics": {}}')
    for arguments, message in (
        ([tmp_path / "none"], r"none' cannot be read"),
        ([tmp_path / "empty"], r"empty/results.json' cannot be read"),
        ([tmp_path / "odd.json"], r"odd.json': the metric 'loss' is not named"),
        ([tmp_path / "bare.json"], r"bare.json' holds no 'protocol'"),
        ([a, b], r"x/run/results.json' and .*y/run/results.json' are both called 'run'; write NAME=PATH"),
        ([a, f"{a}/results.json"], r"x/run/results.json' is given twice"),
        ([a, b, "--over-seeds"], r"\(Global\) and .*y/run.* \(LocalPooling\) would be seeds of one row 'run'"),
        ([a, results(tmp_path / "z" / "run"), "--over-seeds"], r"x/run.* and .*z/run.* have the seed 0"),
        ([a, "--metrics", "f2/*"], r"no metric fits --metrics f2/\*"),
        ([a, "--csv", tmp_path], r"--csv .*: cannot be written"),
    ):
        with pytest.raises(DiptychError, match=message) as caught:
            results_table.main([str(argument) for argument in arguments])
        assert "\n" not in str(caught.value)


def test_it_is_a_command(tmp_path):
    done = inprocess.diptych("table", results(tmp_path / "a"))
    assert done.returncode == 0, done.stderr
    assert "## test/zero_shot" in done.stdout
    done = inprocess.diptych("table", str(tmp_path / "b"))
    assert done.returncode == 2
    assert done.stderr.startswith("diptych: error: ")


def test_no_torch_is_imported():
    code = "import sys, diptych.results.table, diptych.results.dotplot; assert not {'torch', 'lightning'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
