"""Paired tests between runs, against loops, and the table that shows them."""

import csv
import json
import math

import numpy as np
import pytest
from scipy.stats import norm, t

from diptych.errors import ConfigError, DataError
from diptych.metrics import generated_text as nlg
from diptych.metrics.bootstrap import as_metrics
from diptych.metrics.delong import delong
from diptych.predictions.base import Predictions, named
from diptych.predictions.reading import Tested
from diptych.predictions.table import write_table
from diptych.reports.labeller import FINDINGS
from diptych.results.against import Pair, corrected, swapped
from diptych.results.record import write_results
from diptych.results.table import main


def kernel(a, b):
    return float(a > b) + float(a == b) / 2


def plain_delong(ours, theirs, positive, group):
    """The covariance of the two AUROCs from sums over patients, pair by pair."""
    above, below = np.flatnonzero(positive), np.flatnonzero(~positive)
    m, n, patients = len(above), len(below), list(dict.fromkeys(group.tolist()))
    areas, ups, downs = [], [], []
    for scores in (ours, theirs):
        v10 = {i: np.mean([kernel(scores[i], scores[j]) for j in below]) for i in above}
        v01 = {j: np.mean([kernel(scores[i], scores[j]) for i in above]) for j in below}
        area = np.mean(list(v10.values()))
        areas.append(area)
        ups.append(np.array([sum(v10[i] - area for i in above if group[i] == p) for p in patients]))
        downs.append(np.array([sum(v01[j] - area for j in below if group[j] == p) for p in patients]))
    i10, i01 = (sum(any(group[i] == p for i in rows) for p in patients) for rows in (above, below))
    total = len(patients)

    def covariance(r, s):
        s10 = i10 / ((i10 - 1) * m) * ups[r] @ ups[s]
        s01 = i01 / ((i01 - 1) * n) * downs[r] @ downs[s]
        s11 = [total / (total - 1) * ups[a] @ downs[b] for a, b in ((r, s), (s, r))]
        return s10 / m + s01 / n + sum(s11) / (m * n)

    variance = covariance(0, 0) + covariance(1, 1) - 2 * covariance(0, 1)
    return 2 * norm.sf(abs(areas[0] - areas[1]) / math.sqrt(variance))


@pytest.mark.parametrize("each", [1, 3])
def test_delong_is_that_of_a_plain_loop_with_and_without_clusters(each):
    rng = np.random.default_rng(each)
    for _ in range(5):
        group = rng.integers(0, 30, 40) if each > 1 else np.arange(40)
        positive = rng.random(40) < 0.4
        shared = rng.normal(size=40) + positive
        ours, theirs = (np.round(shared + rng.normal(size=40), 1) for _ in range(2))  # with ties
        assert delong(ours, theirs, positive, group) == pytest.approx(plain_delong(ours, theirs, positive, group))
    assert delong(ours, ours, positive, group) == 1
    assert math.isnan(delong(ours, theirs * np.nan, positive, group))
    assert math.isnan(delong(ours, theirs, np.arange(40) == 3, group))


def test_delong_rejects_equal_models_as_often_as_it_says_although_patients_have_several_images():
    rng, p = np.random.default_rng(0), []
    group = np.repeat(np.arange(60), 3)
    for _ in range(400):
        positive = np.repeat(rng.random(60) < 0.4, 3)
        own = [np.repeat(rng.normal(size=60), 3) + positive + 0.3 * rng.normal(size=180) for _ in range(2)]
        p.append(delong(*own, positive, group))
    assert 0.025 < np.mean(np.array(p) < 0.05) < 0.08  # without clusters it is 0.25


TEXTS = ["no effusion is seen", "a small effusion", "the heart is large", "clear lungs", "a nodule is seen"]


def reports(seed, n=12):
    rng, truth = np.random.default_rng(seed), np.random.default_rng(99)
    columns = {}
    for side, draw in (("hypothesis", rng), ("reference", truth)):
        columns[side] = [TEXTS[i] for i in draw.integers(0, 5, n)]
        columns |= named(f"{side}_label", FINDINGS, draw.choice([0.0, 1.0], (n, 14)))
    return Predictions("reports", columns, {"resamples": 0, "seed": 0})


def test_swapped_reports_are_those_of_a_loop_over_patients():
    ours, theirs, group = reports(1), reports(2), np.arange(12) // 2
    found = swapped(ours, theirs, group, draws=6, seed=3)
    turned = np.concatenate([np.zeros((1, 6), int), np.random.default_rng(3).integers(0, 2, (6, 6), dtype=np.uint16)])
    references = ours.columns["reference"]
    for k, coins in enumerate(turned):
        sides = [
            [(two if coins[group[i]] else one)[i] for i in range(12)]
            for one, two in (
                (ours.columns["hypothesis"], theirs.columns["hypothesis"]),
                (theirs.columns["hypothesis"], ours.columns["hypothesis"]),
            )
        ]
        first, second = (nlg.scores(side, references) for side in sides)
        for name, value in first.items():
            assert found[name][k] == pytest.approx(value[0] - second[name][0], abs=1e-12), name


def of_patients(positives, seed, skill, names):
    """60 patients with an image each. Of each finding some have it, and the first comes first."""
    rng = np.random.default_rng(seed)
    labels = np.stack([np.arange(60) < number for number in positives[: len(names)]], axis=1).astype(float)
    columns = named("score", names, labels * skill + rng.normal(size=labels.shape)) | named("label", names, labels)
    ids = [f"i{i}" for i in range(60)]
    return Tested(ids, ids, {"zero_shot": Predictions("binary", columns)})


def test_the_number_of_patients_decides_how_a_difference_is_tested():
    names = ["Edema", "Mass"]
    for positives, test, interval in ((10, "DeLong", ""), (9, "DeLong, logit", "DeLong"), (4, "too few", "too few")):
        pair = Pair(*(of_patients((positives, 30), seed, skill, names) for seed, skill in ((1, 1.0), (2, 0.2))), 50)
        one = pair.difference("zero_shot/auroc/Edema")
        assert (one.test, one.interval) == (test, interval)
        assert math.isnan(one.p) == math.isnan(one.low) == (interval == "too few")
        assert one.cells()[1].endswith(interval)
        assert one.cells()[-1] == test
        macro = pair.difference("zero_shot/auroc/macro")
        assert (macro.test, macro.interval) == ("bootstrap" if not interval else test, interval)
        f1 = pair.difference("zero_shot/f1/Edema")
        assert f1.interval == ("too few" if interval else "")
        assert f1.cells()[2] == "-" or not interval
        assert pair.difference("zero_shot/auroc/Mass").test == "DeLong"
        assert pair.difference("zero_shot/accuracy/Edema").test == "bootstrap"
    # A macro over what both have is tested by the patients of that.
    ours, theirs = (of_patients((30, 6), seed, 1.0, few) for seed, few in ((1, names), (2, names[:1])))
    assert Pair(ours, theirs, 50).difference("zero_shot/auroc/macro").test == "bootstrap"
    assert corrected([one, Pair(ours, theirs, 50).difference("zero_shot/auroc/Edema")])[1].p_holm <= 1


def run_of(folder, seed, skill, ids=None, private=False, number=0):
    """A run of 60 images of 30 patients with two findings, and its results."""
    truth, rng = np.random.default_rng(7), np.random.default_rng(seed)
    labels = truth.integers(0, 2, (60, 2)).astype(float)
    scores = labels * skill + truth.normal(size=(60, 2)) + 0.3 * rng.normal(size=(60, 2))
    columns = named("score", ["Edema", "Mass"], scores) | named("label", ["Edema", "Mass"], labels)
    kept = {"zero_shot": Predictions("binary", columns, {"threshold": "zero", "resamples": 100, "seed": 0})}
    ids = ids or [f"i{i}" for i in range(60)]
    patients = [f"p{i // 2}" for i in range(60)]
    write_table(folder / "predictions.csv", ids, patients, range(60), kept)
    predictions = {"file": "predictions.csv", "of": {"zero_shot": {"kind": "binary", **kept["zero_shot"].settings}}}
    tested = Tested(ids, patients, kept)
    write_results(
        folder / "results.json",
        metrics=as_metrics(tested.draws(), "test/"),
        protocol={"data": "D", "zero_shot": {"interval": "I"}},
        split_hash="s",
        seed=number,
        checkpoint=None,
        checkpoint_sha256=None,
        head="H",
        data="D",
        predictions=None if private else predictions,
    )
    return tested


def test_the_table_has_the_difference_of_each_run_with_its_test(tmp_path, capsys):
    ours = run_of(tmp_path / "a", 1, 0.5)
    better = run_of(tmp_path / "b", 2, 2.0)
    run_of(tmp_path / "c", 1, 0.5)
    runs = [str(tmp_path / name) for name in "abc"]
    files = [f"--{form}={tmp_path / form}" for form in ("csv", "latex", "markdown")]
    main([*runs, "--against", "a", "--metrics", "*/macro", "auroc/*", *files])
    printed = capsys.readouterr().out
    assert printed == (tmp_path / "markdown").read_text()
    assert "Difference from a on the same test images" in printed
    assert "DeLong" in printed
    assert (tmp_path / "latex").read_text().count(r"\begin{tabular}{ll") == 1
    rows = {(r["run"], r["metric"]): r for r in csv.DictReader((tmp_path / "csv").open())}
    pair = Pair(better, ours)
    for metric, test in (("auroc/Edema", "DeLong"), ("auroc/macro", "bootstrap"), ("f1/Mass", "bootstrap")):
        row, one = rows["b", metric], pair.difference(f"zero_shot/{metric}")
        assert float(row["difference from a"]) == one.value > 0
        assert row["test"] == one.test == test
        assert one.low <= one.value <= one.high
        assert float(row["p"]) == one.p < 0.05
        assert float(row["p (Holm)"]) == pytest.approx(2 * one.p)  # of two runs, the other of which is equal
        assert float(rows["c", metric]["p"]) == 1
        assert rows["a", metric]["p"] == ""
    # The bootstrap's p is the share of draws on the other side of zero, in both directions.
    values = better.draws(2000, 0)["zero_shot/f1/Mass"].values - ours.draws(2000, 0)["zero_shot/f1/Mass"].values
    assert pair.difference("zero_shot/f1/Mass").p == pytest.approx(2 * (1 + (values[1:] <= 0).sum()) / 2001)
    assert pair.difference("zero_shot/f1/Nodule") is None
    assert corrected([None]) == [None]


def test_what_cannot_be_paired_is_named(tmp_path):
    for name, more in (("a", {}), ("b", {"ids": [f"j{i}" for i in range(60)]}), ("c", {"private": True})):
        run_of(tmp_path / name, 1, 1.0, **more)
    a, b, c = (str(tmp_path / name) for name in "abc")
    with pytest.raises(DataError, match=r"60 images of .*a/predictions.csv are not there, the first is id 'i0'"):
        main([b, "--against", a])
    with pytest.raises(
        ConfigError, match=r"--against: '.*c/results.json' has no predictions .*; test it again with them"
    ):
        main([a, c, "--against", a])
    with pytest.raises(ConfigError, match="--against compares single runs; leave out --over-seeds"):
        main([a, "--against", a, "--over-seeds"])
    broken = json.loads((tmp_path / "a/results.json").read_text())
    (tmp_path / "a/results.json").write_text(json.dumps(broken | {"predictions": {"file": 3}}))
    with pytest.raises(ConfigError, match=r"'predictions' is not what 'diptych test' writes; test the run anew"):
        main([b, "--against", a])


def test_one_row_of_several_seeds_has_the_spread_over_seeds_and_the_interval_over_patients(tmp_path, capsys):
    tests = [run_of(tmp_path / f"lp/seed{k}", k, 1.0, number=k) for k in range(3)]
    run_of(tmp_path / "other", 5, 1.0, private=True)
    main([*(str(tmp_path / f"lp/seed{k}") for k in range(3)), str(tmp_path / "other"), "--over-seeds"])
    printed = capsys.readouterr().out
    row = next(line for line in printed.splitlines() if line.startswith("| lp"))
    means = np.mean([one.draws(1000)["zero_shot/auroc/macro"].values for one in tests], axis=0)
    low, high = np.percentile(means[1:], [2.5, 97.5])
    values = [one.draws(0)["zero_shot/auroc/macro"].values[0] for one in tests]
    half = t.ppf(0.975, 2) * np.std(values, ddof=1) / math.sqrt(3)
    assert f"{np.mean(values):.3f} ± {half:.3f} ({low:.3f} to {high:.3f})" in row
    assert "other has none: a run without predictions." in printed


def test_a_file_of_fewer_findings_is_compared_over_what_both_have(tmp_path, capsys):
    ours, peer = run_of(tmp_path / "a", 1, 1.0), run_of(tmp_path / "b", 2, 1.0)
    for name, findings in (("a", ["Edema", "Mass"]), ("b", ["Edema"])):
        results = json.loads((tmp_path / name / "results.json").read_text())
        results["protocol"]["zero_shot"]["excluded"] = dict.fromkeys(findings, 0)
        (tmp_path / name / "results.json").write_text(json.dumps(results))
    rows = list(csv.reader((tmp_path / "b" / "predictions.csv").open()))
    kept = [i for i, column in enumerate(rows[0]) if "Mass" not in column]
    with (tmp_path / "b" / "predictions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([[row[i] for i in kept] for row in rows])
    main(
        [
            str(tmp_path / "b"),
            str(tmp_path / "a"),
            "--against",
            "a",
            "--metrics",
            "auroc/macro",
            "--csv",
            str(tmp_path / "t"),
        ]
    )
    assert "Not to be compared with the first table" in capsys.readouterr().out  # their macros are of other findings
    row = next(
        row for row in csv.DictReader((tmp_path / "t").open()) if row["run"] == "b" and row["metric"] == "auroc/macro"
    )
    both = [one.draws(0)["zero_shot/auroc/Edema"].values[0] for one in (peer, ours)]
    assert float(row["difference from a"]) == pytest.approx(both[0] - both[1], abs=1e-12)
