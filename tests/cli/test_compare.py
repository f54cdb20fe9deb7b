"""Comparisons: variants of one recipe over seeds, the arithmetic of the table, the picture, and what can go wrong."""

import csv
import json
import math
import os
import subprocess
import sys
import time

import inprocess
import numpy as np
import pytest
import yaml
from mini import IMAGE, ROOT, TEXT, TRAINER
from PIL import Image
from scipy import stats

from diptych.cli import children, compare
from diptych.cli.variants import read_variants
from diptych.errors import ConfigError
from diptych.results.comparison import Comparison, Outcome, summarise
from diptych.results.dotplot import _BAR, _CHANCE, _DOT, _MEAN, draw, span, ticks
from diptych.results.tested import read_tested
from diptych_datamodules import phantom

RECIPE = {
    "trainer": {"max_epochs": 1, **TRAINER},
    "model": {
        "image": {"class_path": "TimmImage", "init_args": IMAGE},
        "text": {"class_path": "ScratchText", "init_args": TEXT},
        "head": "global",
        "evaluators": [
            {"class_path": "Retrieval", "init_args": {"resamples": 0}},
            {"class_path": "ZeroShot", "init_args": {"prompts": "phantom", "resamples": 0}},
        ],
    },
    "data": {
        "class_path": "phantom",
        "init_args": {
            "train": 16,
            "val": 8,
            "test": 12,
            "size": 32,
            "mix": {"Cardiomegaly": 1, "Pleural Effusion": 1},
            "section": "impression",
            "loading": {"image_size": 32, "batch_size": 4, "eval_batch_size": 8, "workers": 0},
        },
    },
    "figures": {"pairs": 0},
}
VARIANTS = """\
plain: {head: global, note: one vector}
words: {head: local_pooling, pooling: mean, width: 64}
"""


@pytest.fixture
def asked(monkeypatch):
    """Fake probes whose answers depend on the model; every call's options."""
    calls = []

    def run_probes(model, **options):
        calls.append(options)
        first = list(model.module.head.parameters())[-1].detach()
        values = {"pair": float(first.double().mean().tanh()), "pair/side": 0.5, "distractor": math.nan}
        if type(model.module.head).__name__ == "LocalPooling":
            values |= {"grounding/pointing": 0.3, "grounding/pointing/chance": 0.1}
        return values

    monkeypatch.setattr(phantom, "run_probes", run_probes)
    return calls


@pytest.fixture
def commands(monkeypatch):
    """Training and testing in this process; every command."""
    done = []

    def call(command, log, what):
        done.append(command)
        result = inprocess.diptych(*command)
        log.write_text(result.stdout + result.stderr)
        assert result.returncode == 0, result.stderr

    monkeypatch.setattr(compare, "call", call)
    return done


@pytest.fixture
def files(tmp_path):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    (tmp_path / "variants.yaml").write_text(VARIANTS)
    return tmp_path


def run(files, *more, seeds=("0", "1")):
    compare.main(["-c", str(files / "recipe.yaml"), "--run", str(files / "out"), "--seeds", *seeds, *more])


@pytest.mark.slow
def test_from_recipe_to_table_and_nothing_twice(files, asked, commands, capsys):
    run(files, "--probe-pairs", "3")
    out = files / "out"
    assert [c[0] for c in commands] == ["fit", "test"] * 4
    options = {"mix": RECIPE["data"]["init_args"]["mix"], "section": "impression", "cache": None, "pairs": 3}
    assert asked == [options] * 4
    printed = capsys.readouterr().out
    assert "[4/4] words seed 1 ... made\n" in printed

    result = json.loads((out / "compare.json").read_text())
    assert [(r["variant"], r["seed"]) for r in result["runs"]] == [(v, s) for v in ("plain", "words") for s in (0, 1)]
    assert result["missing"] == []
    for row in result["runs"]:
        folder = out / row["variant"] / f"seed{row['seed']}"
        tested = {k: m["value"] for k, m in json.loads((folder / "results.json").read_text())["metrics"].items()}
        assert row["metrics"]["retrieval/r@5"] == tested["test/retrieval/r@5"]
        ranks = [tested[f"test/retrieval/{side}/median_rank"] for side in ("image_to_text", "text_to_image")]
        assert row["metrics"]["retrieval/median_rank"] == np.mean(ranks)
        assert row["metrics"]["zero_shot/auroc/macro"] == tested["test/zero_shot/auroc/macro"]
        whole = {f"test/{name}": one.values[0] for name, one in read_tested(folder / "results.json").draws(0).items()}
        assert whole == tested
        assert row["metrics"]["distractor"] is None
        assert row["facts"]["steps"] == 4
        assert 0 < row["facts"]["seconds_per_step"] < 10
        config = yaml.safe_load((folder / "config.yaml").read_text())
        assert config["seed_everything"] == config["data"]["init_args"]["loading"]["seed"] == row["seed"]
        assert json.loads((folder / "results.json").read_text())["checkpoint"]["path"].endswith("last.ckpt")
    pairs = [r["metrics"]["pair"] for r in result["runs"]]
    assert len(set(pairs)) == 4  # seeds differ, heads differ
    assert result["runs"][2]["facts"]["head_parameters"] != result["runs"][0]["facts"]["head_parameters"]
    assert result["chance"]["grounding/pointing"] == pytest.approx(0.1)
    assert "grounding/pointing" not in result["runs"][0]["metrics"]
    assert "grounding/pointing/chance" not in result["runs"][2]["metrics"]

    summary = result["summary"]["pair"]["words"]
    low, high = stats.t.interval(0.95, 1, np.mean(pairs[2:]), stats.sem(pairs[2:]))
    assert (summary["low"], summary["high"], summary["n"]) == (pytest.approx(low), pytest.approx(high), 2)

    page = (out / "compare.md").read_text()
    assert "| undefined in 2 of 2 |" in page
    assert "| one vector |" in page
    rows = list(csv.DictReader((out / "compare.csv").open()))
    values = {(r["variant"], int(r["seed"]), r["metric"]): float(r["value"] or "nan") for r in rows}
    assert values["words", 1, "pair"] == pairs[3]
    assert len(rows) == sum(len(r["metrics"]) + len(r["facts"]) for r in result["runs"])
    picture = np.asarray(Image.open(out / "compare.png").convert("RGB"))
    assert (picture.sum(axis=2) < 700).mean() > 0.02

    against = result["paired"]["retrieval/r@5"]
    assert result["against"] == "plain"
    assert set(against) == {"words"}
    values = [[r["metrics"]["retrieval/r@5"] for r in result["runs"] if r["variant"] == v] for v in ("words", "plain")]
    assert against["words"]["difference"] == pytest.approx(np.mean(values[0]) - np.mean(values[1]))
    assert against["words"]["studies_low"] <= against["words"]["difference"] <= against["words"]["studies_high"]
    assert against["words"]["seeds"] == 2
    of_auroc = result["paired"]["zero_shot/auroc/macro"]["words"]
    assert (of_auroc["studies_low"] is None) == (of_auroc["studies_interval"] == "too few")
    assert result["paired"]["pair"]["words"]["studies_low"] is None
    assert "## Against plain, paired" in page

    # Again: nothing is done, and the figures are the same.
    commands.clear()
    run(files, "--probe-pairs", "3")
    assert not commands
    assert capsys.readouterr().out.count("there already") == 4
    assert json.loads((out / "compare.json").read_text()) == result

    # Without its probes a run is probed, not trained; without its results it goes on from its last checkpoint.
    (out / "plain/seed0/probes.json").unlink()
    for name in ("results.json", "probes.json"):
        (out / "plain/seed1" / name).unlink()
    run(files, "--probe-pairs", "3")
    assert "plain seed 0 ... probed" in (output := capsys.readouterr().out)
    assert "plain seed 1 ... taken up where it was interrupted" in output
    assert [c[0] for c in commands] == ["fit", "test"]
    assert commands[0][-2:] == ["--ckpt_path", "last"]
    again = json.loads((out / "compare.json").read_text())
    for row, before in zip(again["runs"], result["runs"], strict=True):
        assert row["metrics"] == before["metrics"]

    # Probes of a release before, or with other pairs, are made again. Nothing is trained.
    commands.clear()
    probes = json.loads((out / "plain/seed0/probes.json").read_text())
    before = probes | {"made_with": probes["made_with"] | {"probe_version": 0}}
    (out / "plain/seed0/probes.json").write_text(json.dumps(before))
    del probes["made_with"]
    (out / "plain/seed1/probes.json").write_text(json.dumps(probes))
    run(files, "--probe-pairs", "3", "--only", "plain")
    output = capsys.readouterr().out
    assert "plain seed 0 ... probed again, for its probe_version changed" in output
    assert "plain seed 1 ... probed again, for its probe_pairs, probe_version changed" in output
    run(files, "--probe-pairs", "4", "--only", "words", seeds=("1",))
    assert "words seed 1 ... probed again, for its probe_pairs changed" in capsys.readouterr().out
    run(files, "--probe-pairs", "3", "--only", "words", seeds=("1",))
    assert asked[-1]["pairs"] == 3
    assert not commands

    # Without its predictions it is tested again, and not trained.
    (out / "plain/seed0/predictions.csv").unlink()
    run(files, "--probe-pairs", "3", "--against", "words")
    assert "plain seed 0 ... tested again, for its predictions.csv is missing" in capsys.readouterr().out
    assert [c[0] for c in commands] == ["test"]
    reverse = json.loads((out / "compare.json").read_text())
    assert reverse["against"] == "words"
    assert reverse["paired"]["retrieval/r@5"]["plain"]["difference"] == pytest.approx(-against["words"]["difference"])
    commands.clear()

    # A changed variant is made again, alone; --only leaves the others, and the table says which are not there.
    commands.clear()
    (files / "variants.yaml").write_text(VARIANTS.replace("width: 64", "width: 32").replace("one vector", "a note"))
    run(files, "--probe-pairs", "3", "--only", "plain")
    assert not commands
    assert json.loads((out / "compare.json").read_text())["missing"] == ["words seed 0", "words seed 1"]
    assert "made otherwise than they would be now: words seed 0, words seed 1." in (out / "compare.md").read_text()
    capsys.readouterr()
    run(files, "--probe-pairs", "3", seeds=("0",))
    assert "words seed 0 ... made again, for its variant changed" in capsys.readouterr().out
    assert [c[0] for c in commands] == ["fit", "test"]
    assert "head_parameters" in json.loads((out / "words/seed0/probes.json").read_text())["facts"]


def test_options_after_the_dashes_go_to_fit_and_count(files, asked, commands):
    run(files, "--only", "plain", "--", "--trainer.max_epochs", "2", seeds=("5",))
    result = json.loads((files / "out/compare.json").read_text())
    assert [r["facts"]["steps"] for r in result["runs"]] == [8]
    assert result["summary"]["pair"]["plain"]["low"] is None  # one seed has no interval
    commands.clear()
    run(files, "--only", "plain", seeds=("5",))
    assert [c[0] for c in commands] == ["fit", "test"]
    with pytest.raises(ConfigError, match=r"--run=x after -- is set by this command"):
        run(files, "--", "--run=x")


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        ("a: {head: globl}", r"variants.yaml: a: .*unknown head 'globl'; known heads, nearest first: global"),
        ("a: {head: global, widht: 3}", r"variants.yaml: a: .*widht"),
        ("a: {head: local_pooling, pooling: best}", r"variants.yaml: a: .*'logsumexp'.* best"),
        ("a: {model: {lrr: 1}}", r"variants.yaml: a: .*lrr"),
        ("a: {mode: none}", r"variants.yaml: a is {'mode': 'none'}; write {head: NAME"),
        ("a: {model: {lr: 1}, head: global}", r"variants.yaml: a is .*; write"),
        ("a/b: {head: global}", r"variants.yaml: 'a/b' cannot name a folder"),
        ("a: {head: global}\na: {head: reclf}", r"variants.yaml: a is there twice"),
        ("- a", r"variants.yaml holds no mapping"),
        ("a: {", r"variants.yaml is not YAML"),
    ],
)
def test_a_wrong_variant_is_named_before_anything_is_trained(files, commands, variants, message):
    (files / "variants.yaml").write_text(variants)
    with pytest.raises(ConfigError, match=message) as error:
        run(files)
    assert "\n" not in str(error.value)
    assert not commands
    assert not (files / "out").exists()


def test_other_errors_are_one_line(files, commands):
    with pytest.raises(ConfigError, match=r"--only word: not in .*variants.yaml, which has plain, words"):
        run(files, "--only", "word")
    with pytest.raises(ConfigError, match=r"--against word: not in .*variants.yaml, which has plain, words"):
        run(files, "--against", "word")
    with pytest.raises(ConfigError, match="--jobs is 0"):
        run(files, "--jobs", "0")
    with pytest.raises(ConfigError, match=r"absent.yaml cannot be read"):
        run(files, "--variants", str(files / "absent.yaml"))
    (files / "out/plain/seed0").mkdir(parents=True)
    (files / "out/plain/seed0/thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"seed0 was not made by this command"):
        run(files)
    assert (files / "out/plain/seed0/thesis.txt").is_file()
    described = {**RECIPE, "model": {**RECIPE["model"], "head": {"class_path": "reclf", "init_args": {"mode": "srm"}}}}
    (files / "recipe.yaml").write_text(yaml.safe_dump(described))
    with pytest.raises(ConfigError, match=r"model.head has init_args, which variants of the same head would inherit"):
        run(files)


@pytest.mark.slow
def test_a_failed_run_is_named_with_its_log(files):
    """In a process of its own, as users have it."""
    (files / "variants.yaml").write_text("steep: {head: local_pooling, scale: 1000}")
    with pytest.raises(ConfigError) as error:
        run(files)
    log = files / "out/steep/seed0/fit.log"
    assert str(error.value).startswith("steep seed 0: diptych fit failed: head local_pooling: scale is 1000")
    assert not (files / "out/steep/seed1").exists()  # the fault may be in all of them
    assert str(error.value).endswith(f"(log: {log})")
    assert log.is_file()


def test_a_run_that_fails_does_not_stop_the_others(files, asked, commands, monkeypatch, capsys):
    fit = compare.call

    def call(command, log, what):
        if what.startswith(("words seed 0", "plain seed 1")):
            raise ConfigError(f"{what} failed: no more memory")
        fit(command, log, what)

    monkeypatch.setattr(compare, "call", call)
    with pytest.raises(
        ConfigError, match=r"^2 runs failed, the first: plain seed 1: diptych fit failed: no more memory$"
    ):
        run(files)
    assert [line for line in capsys.readouterr().out.splitlines() if " ... " in line] == [
        "[1/4] plain seed 0 ... made",
        "[2/4] plain seed 1 ... failed",
        "[3/4] words seed 0 ... failed",
        "[4/4] words seed 1 ... made",
    ]
    assert json.loads((files / "out/compare.json").read_text())["missing"] == ["plain seed 1", "words seed 0"]
    monkeypatch.setattr(compare, "call", fit)
    run(files, "--runs-only")
    assert "written" not in capsys.readouterr().out
    run(files)
    assert json.loads((files / "out/compare.json").read_text())["missing"] == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_several_runs_at_a_time(files, monkeypatch, capsys):
    """In processes of their own, as users have it."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    recipe = yaml.safe_load((files / "recipe.yaml").read_text())
    recipe["data"]["init_args"]["mix"] = {"Consolidation": 1, "Lung Opacity": 1}  # as the real probes need it
    (files / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    run(files, "--probe-pairs", "2", "--jobs", "2", "--only", "plain", seeds=("7", "8"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["[1/2] plain seed 7 begins", "[2/2] plain seed 8 begins"]
    assert sorted(lines[2:4]) == ["[1/2] plain seed 7 ... made", "[2/2] plain seed 8 ... made"]
    result = json.loads((files / "out/compare.json").read_text())
    assert [(r["seed"], r["facts"]["steps"]) for r in result["runs"]] == [(7, 4), (8, 4)]
    assert result["missing"] == ["words seed 7", "words seed 8"]
    assert not list((files / "out").glob("*/*.log"))
    run(files, "--probe-pairs", "2", "--jobs", "2", "--only", "plain", seeds=("7", "8"))
    assert capsys.readouterr().out.count("there already") == 2


@pytest.mark.parametrize("fails", [True, False])
def test_runs_in_processes_of_their_own_tell_what_went_wrong(fails, files, monkeypatch, capsys):
    script = f"echo $OMP_NUM_THREADS $@ >> {files}/words; exit 0"
    if fails:
        script = "echo diptych: error: plain seed 0: diptych fit failed: no more memory; exit 2"
    monkeypatch.setattr(sys, "executable", stand_in(files / "python", script))
    monkeypatch.setattr(children, "FORKS", False)
    monkeypatch.setattr(compare, "cores", lambda: 7)
    message = "diptych fit failed: no more memory" if fails else "the recipe or the variants have changed since"
    with pytest.raises(ConfigError, match=f"^plain seed 0: {message}"):
        run(files, "--only", "plain", "--jobs", "2", "--", "--trainer.max_epochs", "2", seeds=("0",))
    assert capsys.readouterr().out.splitlines() == ["[1/1] plain seed 0 begins", "[1/1] plain seed 0 ... failed"]
    if not fails:
        own = f"3 -m diptych compare -c {files}/recipe.yaml --variants {files}/variants.yaml --run {files}/out"
        own += " --only plain --seeds 0 --runs-only -- --trainer.max_epochs 2\n"
        assert (files / "words").read_text() == own


def stand_in(path, script):
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_children_share_the_cores_and_say_how_they_ended(tmp_path, monkeypatch):
    script = f"cd {tmp_path}; ls *.on | wc -l > $3.beside; echo $OMP_NUM_THREADS > $3.threads; touch $3.on; sleep 1; rm $3.on"
    script += '; [ "$3" = b ] && echo "diptych: error: $3 is wrong" && exit 2; [ "$3" = c ] && kill -9 $$; exit 0'
    monkeypatch.setattr(sys, "executable", stand_in(tmp_path / "python", script))
    ended = []
    family = [children.Child(name, [name], tmp_path / f"{name}.log") for name in "abcde"]
    children.run_all(
        family, 2, lambda child, error: ended.append((child.name, error)), environment={"OMP_NUM_THREADS": "3"}
    )
    assert sorted(ended) == [
        ("a", ""),
        ("b", f"b failed: b is wrong (log: {tmp_path}/b.log)"),
        ("c", f"c failed: ended by SIGKILL (log: {tmp_path}/c.log)"),
        ("d", ""),
        ("e", ""),
    ]
    assert {(tmp_path / f"{name}.threads").read_text() for name in "abcde"} == {"3\n"}
    assert {int((tmp_path / f"{name}.beside").read_text()) for name in "abcde"} <= {0, 1}


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_comparison_that_is_ended_ends_its_runs(jobs, tmp_path):
    """SIGTERM reaches the command alone, as from a job scheduler; a run left alone would write beside the next one."""
    python = stand_in(tmp_path / "python", f"cd {tmp_path}; echo $$ > part$3; mv part$3 pid$3; exec sleep 100")
    code = f"""
import sys; from pathlib import Path; from diptych.cli.children import Child, run_all
sys.executable = {python!r}
run_all([Child(n, [n], Path({str(tmp_path)!r}, n)) for n in "012"], {jobs}, print)
"""
    command = subprocess.Popen([sys.executable, "-c", code])
    try:
        end = time.monotonic() + 200
        while not all((tmp_path / f"pid{i}").is_file() for i in range(jobs)) and time.monotonic() < end:
            time.sleep(0.05)
        pids = [int((tmp_path / f"pid{i}").read_text()) for i in range(jobs)]
        command.terminate()
        assert command.wait(20) == 143
        for pid in pids:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)
        assert not (tmp_path / f"pid{jobs}").exists()  # no further one is started
    finally:
        command.kill()
        command.wait()


def test_an_error_here_leaves_no_child_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", stand_in(tmp_path / "python", '[ "$3" = 0 ] && exit 1; exec sleep 100'))
    found = []
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: found.append(popen(*a, **k)) or found[-1])

    def ended(child, error):
        raise ConfigError(error)

    family = [children.Child(name, [name], tmp_path / name) for name in "012"]
    with pytest.raises(ConfigError, match="0 failed: it said nothing"):
        children.run_all(family, 2, ended)
    assert [process.returncode for process in found] == [1, -15]


def test_intervals_are_those_of_student():
    values = [0.61, 0.64, 0.7, 0.55]
    summary = summarise(values)
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert (summary.mean, summary.low, summary.high) == pytest.approx((np.mean(values), low, high))
    assert summarise([0.0, 2.0]).high == pytest.approx(1 + 12.7062, abs=1e-3)  # t(1) of the tables, standard error 1
    single = summarise([0.4])
    assert single.mean == 0.4
    assert math.isnan(single.low)
    broken = summarise([0.4, math.nan, 0.5])
    assert (broken.n, broken.undefined) == (3, 1)
    assert math.isnan(broken.mean)


def test_intervals_hold_the_mean_as_often_as_they_say():
    rng = np.random.default_rng(0)
    summaries = [summarise(rng.normal(3.0, 2.0, 3)) for _ in range(4000)]
    assert np.mean([s.low <= 3.0 <= s.high for s in summaries]) == pytest.approx(0.95, abs=0.012)


def outcomes():
    values = {"a": [0.70, 0.71, 0.72], "b": [0.40, 0.41, 0.45]}
    return [
        Outcome(
            v, s, {"pair": x, "rank": 2.0} | ({"own": x} if v == "a" else {}), {"steps": 10.0 + (s == 2)}, {"pair": 0.5}
        )
        for v, row in values.items()
        for s, x in enumerate(row)
    ]


def test_the_page_has_every_run_and_says_what_is_unequal():
    page = Comparison("t", {"a": "", "b": "", "never": ""}, outcomes()).page()
    assert "**Not all runs were trained equally long:** 10, 11 steps." in page
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("|")]
    half = stats.t.ppf(0.975, 2) * stats.sem([0.70, 0.71, 0.72])
    assert ["a", f"0.710 ± {half:.3f}", "2.000 ± 0.000", f"0.710 ± {half:.3f}", "10.3", "3"] in rows
    assert ["*chance*", "0.500", "", "", "", ""] in rows
    assert ["b", "2", "0.450", "2.000", "-", "11"] in rows
    assert sum(row[0] in {"a", "b"} for row in rows) == 2 + 6


def test_differences_are_of_runs_with_the_same_seed(tmp_path, capsys):
    runs = [*outcomes(), Outcome("a", 7, {"pair": 0.1}, {}), Outcome("c", 9, {"pair": 0.1}, {})]
    runs += [Outcome("d", s, {"pair": x, "rank": 2.0, "rank/upper": 1.0}, {}) for s, x in enumerate([0.41, 0.42, 0.44])]
    for o in runs[3:6]:
        o.metrics["rank/upper"] = 0.5
    comparison = Comparison("t", dict.fromkeys("abcd", ""), runs, against="b")
    expected = {
        v: stats.ttest_rel(row, [0.40, 0.41, 0.45]) for v, row in (("a", [0.70, 0.71, 0.72]), ("d", [0.41, 0.42, 0.44]))
    }
    found = comparison.paired["pair"]
    assert set(found) == {"a", "d"}  # c has no seed in common
    for variant, test in expected.items():
        assert found[variant].p == pytest.approx(test.pvalue)
        assert (found[variant].low, found[variant].high) == pytest.approx(tuple(test.confidence_interval(0.95)))
    assert found["a"].p_holm == pytest.approx(2 * found["a"].p)
    assert found["d"].p_holm == pytest.approx(found["d"].p)
    assert "own" not in comparison.paired  # b has none
    assert comparison.paired["rank/upper"]["d"].difference == 0.5
    assert "| rank/upper | d " not in comparison.differences()
    assert " rank " in comparison.differences()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in comparison.page().splitlines()]
    ends = f"{found['a'].low:+.3f} to {found['a'].high:+.3f}"
    assert ["pair", "a", "+0.290", ends, "-", f"{found['a'].p_holm:.3f}", "3"] in rows
    comparison.write(tmp_path)
    table = list(csv.DictReader((tmp_path / "compare-paired.csv").open()))
    assert [(r["metric"], r["variant"]) for r in table][:2] == [("pair", "a"), ("pair", "d")]
    assert float(table[0]["difference"]) == found["a"].difference
    assert "No other variant has a seed in common" in Comparison("t", {"a": "", "b": ""}, runs[:3]).page()


def test_the_picture_shows_seeds_intervals_and_chance(tmp_path):
    draw(Comparison("t", {"a": "", "b": ""}, outcomes()).panels(), ["a", "b"], tmp_path / "a.png")
    pixels = np.asarray(Image.open(tmp_path / "a.png"))[60:]  # below the key
    for colour in (_BAR, _CHANCE, _DOT, _MEAN):
        assert (pixels == colour).all(axis=2).sum() > 50
    only = [Outcome("a", 0, {"pair": 0.7}, {}), Outcome("b", 0, {"pair": math.nan}, {})]
    draw(Comparison("t", {"a": "", "b": ""}, only).panels(), ["a", "b"], tmp_path / "b.png")
    pixels = np.asarray(Image.open(tmp_path / "b.png"))[60:]
    assert (pixels == _DOT).all(axis=2).any()
    assert not (pixels == _CHANCE).all(axis=2).any()


def test_axes():
    assert ticks(0.0, 1.0) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert ticks(0.013, 0.061) == pytest.approx([0.02, 0.03, 0.04, 0.05, 0.06])
    assert ticks(-3.0, 12.0) == pytest.approx([0, 5, 10])
    low, high = span([0.4, 0.6], [summarise([0.4, 0.6])])  # an interval from -0.77 to 1.77 does not flatten the rest
    assert 0.1 < low < 0.4
    assert 0.6 < high < 0.9
    low, high = span([2.0], [summarise([2.0, 2.0])])
    assert low < 2.0 < high


def test_shipped_variants_fit_their_recipe():
    folder = ROOT / "experiments" / "compare"
    variants = read_variants(folder / "variants.yaml", folder / "phantom.yaml")
    assert {"global", "mean_softmax", "reclf", "reclf_none"} <= {variant.name for variant in variants}
    assert next(v for v in variants if v.name == "reclf_none").model["head"]["init_args"]["mode"] == "none"
    assert next(v for v in variants if v.name == "reclf").model["head"]["class_path"] == "reclf"
