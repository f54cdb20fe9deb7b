"""Subgroups: figures of parts of a test set, the gap between them, and macros over what two sets of figures have."""

import csv
import json

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from diptych.cli.score import main as score
from diptych.errors import ConfigError
from diptych.metrics.bootstrap import Draws, bootstrap_weights
from diptych.metrics.classification import with_macro
from diptych.predictions.base import Predictions, named
from diptych.predictions.reading import read_predictions
from diptych.predictions.subgroups import age_band, by_group, shared
from diptych.predictions.table import write_table
from diptych.results.record import read_results

N = 120


def predictions(seed=0, names=("Edema", "Mass"), **settings):
    rng = np.random.default_rng(seed)
    labels = (rng.random((N, 2)) < 0.5).astype(float)
    scores = rng.normal(size=(N, 2)) + labels
    some = [("Edema", "Mass").index(name) for name in names]
    columns = named("score", names, scores[:, some]) | named("label", names, labels[:, some])
    return Predictions("binary", columns, {"threshold": "zero", "resamples": 40, "seed": 3, **settings})


SEX = ["F" if i % 3 else "M" for i in range(N - 2)] + ["", ""]
GROUP = np.arange(N) // 2


def test_figures_of_a_part_and_the_gap_are_those_of_a_loop_over_the_same_draws():
    kept = predictions()
    figures, facts = by_group(kept, GROUP, SEX)
    rows = {name: np.flatnonzero(np.array(SEX) == name) for name in "FM"}
    weights = np.concatenate([np.ones((1, N), int), bootstrap_weights(GROUP, 40, 3)])
    for finding in ("Edema", "Mass"):
        score_, label = kept.columns[f"score/{finding}"], kept.columns[f"label/{finding}"]
        each = {}
        for name, own in rows.items():
            drawn = [np.repeat(own, row[own]) for row in weights]
            each[name] = [roc_auc_score(label[i], score_[i]) for i in drawn]
            np.testing.assert_allclose(figures[f"{name}/auroc/{finding}"].values, each[name], atol=1e-12)
        high, low = sorted("FM", key=lambda name: -each[name][0])
        gap = figures[f"gap/auroc/{finding}"]
        np.testing.assert_allclose(gap.values, np.array(each[high]) - each[low], atol=1e-12)
        assert gap.values[0] > 0
        assert gap.instead is None
        assert facts["gap between"][f"auroc/{finding}"] == f"{high} - {low}"
    assert facts["groups"]["F"] == {"images": len(rows["F"]), "patients": len(set(GROUP[rows["F"]]))}
    assert facts["images of no group"] == 2


def test_a_gap_with_a_group_of_few_patients_has_no_interval():
    kept = predictions()
    site = ["rare/site"] * 12 + ["common"] * (N - 12)
    figures, _ = by_group(kept, GROUP, site)
    assert figures["gap/auroc/Edema"].instead.name == "too few"
    assert figures["rare_site/f1/Edema"].instead.name == "too few"
    assert figures["common/f1/Edema"].instead is None


def test_a_macro_of_two_is_over_what_both_have():
    ours = with_macro({"auroc": {"a": np.array([0.9, 0.8]), "b": np.array([0.5, 0.6])}}, {"a": 1, "b": 1}, 1)
    theirs = with_macro({"auroc": {"a": np.array([0.7, 0.7])}}, {"a": 1}, 1)
    both = shared([ours, theirs], "auroc/macro")
    assert [values.tolist() for values in both] == [[0.9, 0.8], [0.7, 0.7]]
    assert shared([ours, ours], "auroc/macro")[0].tolist() == ours["auroc/macro"].values.tolist()
    assert shared([ours, theirs], "auroc/b") is None
    assert (
        shared([ours, {"auroc/macro": Draws(np.zeros(2), 1), "auroc/c": Draws(np.zeros(2), 1)}], "auroc/macro") is None
    )


def test_ages_fall_into_bands():
    ages = ["", "0", "39", "40", "59", "60", "79", "80", "90"]
    below, middle, older, above = "below 40", "40 to 59", "60 to 79", "80 and above"
    assert [age_band(age) for age in ages] == ["", below, below, middle, middle, older, older, above, above]
    assert age_band("30", [50]) == "below 50"


@pytest.fixture
def file(tmp_path):
    about = {"sex": SEX, "age": [str(20 + i % 70) for i in range(N)]}
    ids = [f"i{i}" for i in range(N)]
    path = tmp_path / "peer.csv"
    write_table(path, ids, [f"p{g}" for g in GROUP], range(N), {"peer": predictions()}, about)
    return path


def test_the_command_divides_by_what_the_file_has(file, tmp_path, capsys):
    read = read_predictions(file)
    assert list(read.about["sex"]) == SEX
    options = ["--by", "sex", "age", "--bands", "50", "--resamples", "30", "--write", str(tmp_path / "r.json")]
    score([str(file), *options])
    assert "test/peer/by/sex/gap/auroc/macro" in capsys.readouterr().out
    results = read_results(tmp_path / "r.json")
    expected, facts = by_group(predictions(resamples=30, seed=0), GROUP, SEX)
    for name, draws in expected.items():
        assert results["metrics"][f"test/peer/by/sex/{name}"].value == pytest.approx(
            float(draws.values[0]), nan_ok=True
        )
    assert results["protocol"]["peer"]["by/sex"] == json.loads(json.dumps(facts))
    assert results["protocol"]["peer"]["by/age"]["groups"].keys() == {"below 50", "50 and above"}
    for wrong, message in (
        (["--by", "site"], "has no column 'site' with values"),
        (["--bands", "60", "40"], "ages that rise"),
    ):
        with pytest.raises(ConfigError, match=message):
            score([str(file), *wrong])


def test_the_command_takes_thresholds_from_predictions_of_val_and_draws_curves(file, tmp_path):
    val = tmp_path / "val.csv"
    kept = predictions(seed=8)
    write_table(val, [f"v{i}" for i in range(N)], [f"q{i}" for i in range(N)], range(N), {"peer": kept})
    options = ["--resamples", "0", "--write", str(tmp_path / "r.json"), "--curves", str(tmp_path)]
    score([str(file), "--threshold", "val_youden", "--val", str(val), *options])
    results = read_results(tmp_path / "r.json")
    scores, labels = kept.columns["score/Edema"], kept.columns["label/Edema"]
    best = max(scores, key=lambda t: (scores[labels == 1] >= t).mean() - (scores[labels == 0] >= t).mean())
    assert results["protocol"]["peer"]["thresholds"]["Edema"] == best
    assert results["protocol"]["peer"]["threshold"] == "best Youden index on val"
    assert {path.name for path in tmp_path.glob("curves-*")} == {
        f"curves-peer.{kind}" for kind in ("png", "svg", "pdf")
    }
    with pytest.raises(ConfigError, match="give the model's predictions on val, as --val FILE"):
        score([str(file), "--threshold", "val_f1"])
    with pytest.raises(ConfigError, match="--val is for --threshold val_f1"):
        score([str(file), "--val", str(val)])


def test_a_table_of_the_user_says_who_is_on_an_image(tmp_path):
    from PIL import Image

    from diptych.data.dataset import Subset
    from diptych.data.loading import Loading
    from diptych_datamodules.tabular import Columns, Tabular

    rows = [["a.png", "p1", "Female", "058Y", "pa", "north", "test"], ["b.png", "p2", "", "97", "AP", "", "test"]]
    rows.append(["c.png", "p3", "m", "", "", "", "train"])
    for name, *_ in rows:
        Image.new("L", (8, 8)).save(tmp_path / name)
    with (tmp_path / "t.csv").open("w", newline="") as out:
        csv.writer(out).writerows([["image", "patient", "sex", "years", "view", "site", "split"], *rows])
    columns = Columns(text=[], patient="patient", split="split", sex="sex", age="years", view="view", site="site")
    data = Tabular(str(tmp_path / "t.csv"), columns=columns, loading=Loading(image_size=8, workers=0)).build()
    found = {name: list(values) for name, values in data["test"].about.items()}
    assert found == {"sex": ["F", ""], "age": ["58", "90"], "view": ["PA", "AP"], "site": ["north", ""]}
    assert {name: list(values) for name, values in data["train"].about.items()} == {"sex": ["M"]}
    assert Subset(data["test"], {0}).about["age"] == ["90"]
