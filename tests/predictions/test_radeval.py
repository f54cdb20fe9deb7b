"""Metrics of radeval by way of a package with its true interface, the json of ReXrank, and their options of `score`."""

import csv
import json

import numpy as np
import pytest

from diptych.cli.score import main as score
from diptych.errors import ConfigError, DataError
from diptych.metrics.radeval import RADEVAL, radeval_scores
from diptych.predictions.reading import read_predictions
from diptych.predictions.rexrank import read_studies, rexrank
from diptych.results.record import read_results

# As radeval 2.2.1: a class that builds metrics by name, is called with refs and hyps as lists, and gives lists with per_sample.
FAKE = """
import os, sys, warnings
import nltk
assert nltk.download("punkt_tab", quiet=True) is False or os.environ.get("HF_HUB_OFFLINE") != "1"
print("radeval prints")
warnings.filterwarnings("ignore")

class RadEval:
    def __init__(self, metrics=None, openai_api_key=None, gemini_api_key=None, per_sample=False, detailed=False,
                 show_progress=True, cache_dir=None):
        assert isinstance(metrics, list) and per_sample and not show_progress
        (self.name,) = metrics
        if self.name == "radgraph":
            import RadEval.inner
        if self.name == "ratescore":
            import medspacy_that_is_not_there
        if self.name == "bertscore":
            raise OSError("We couldn't connect to 'https://huggingface.co' to load the files, and couldn't find them in the "
                          "cached files.")

    def __call__(self, refs, hyps):
        if not (isinstance(hyps, list) and isinstance(refs, list)):
            raise TypeError("hyps and refs must be of type list")
        open("left behind", "w").close()
        same = [float(r == h) for r, h in zip(refs, hyps)]
        if self.name == "radgraph":
            return {"radgraph_simple": same, "radgraph_partial": [x / 2 for x in same], "radgraph_complete": same}
        if self.name == "green":
            return {"green": same[:-1]}
        return {"radcliq_v1": [float("nan")] + same[1:]}
"""


@pytest.fixture
def installed_radeval(tmp_path, monkeypatch):
    site = tmp_path / "site"
    (site / "radeval").mkdir(parents=True)
    (site / "radeval" / "__init__.py").write_text(FAKE)
    (site / "radeval" / "inner.py").write_text("")
    (site / "radeval-2.2.1.dist-info").mkdir()
    (site / "radeval-2.2.1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: radeval\nVersion: 2.2.1\n")
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("PYTHONPATH", str(site))
    monkeypatch.chdir(tmp_path)
    return tmp_path


WRITTEN, EXPECTED = ["Clear.", "Small effusion.", "No effusion."], ["Clear.", "No effusion.", "No effusion."]


def test_each_metric_is_computed_by_itself_and_what_is_missing_is_told(installed_radeval):
    scored = radeval_scores(list(RADEVAL), WRITTEN, EXPECTED)
    assert scored.version == "2.2.1"
    assert {name: column.tolist() for name, column in scored.columns.items() if name != "radcliq_v1"} == {
        "radgraph_simple": [1, 0, 1],
        "radgraph_partial": [0.5, 0, 0.5],
        "radgraph_complete": [1, 0, 1],
    }
    np.testing.assert_array_equal(scored.columns["radcliq_v1"], [np.nan, 0, 1])
    assert scored.missing["ratescore"].endswith("'medspacy_that_is_not_there'; install that package")
    assert "run `diptych score FILE --radeval bertscore --download` once" in scored.missing["bertscore"]
    assert scored.missing["green"].startswith("green has not one number a report")
    assert [line.partition(":")[0] for line in scored.lines] == ["ratescore", "bertscore", "green"]
    assert not (installed_radeval / "left behind").exists()


def test_without_radeval_one_line_says_so():
    scored = radeval_scores(["radgraph", "radcliq"], WRITTEN, EXPECTED)
    assert not scored.columns
    assert scored.lines == ["radgraph, radcliq: not computed, radeval is not installed: pip install 'diptych[report]'"]
    assert radeval_scores([], WRITTEN, EXPECTED) == radeval_scores(["radgraph"], [], [])
    with pytest.raises(ConfigError, match="radeval is 'crimson'; choose among: radgraph, radcliq"):
        radeval_scores(["crimson"], WRITTEN, EXPECTED)


def test_a_radeval_that_does_not_start_is_told(installed_radeval):
    (installed_radeval / "site" / "radeval" / "__init__.py").write_text("raise SystemExit('broken at its import')")
    assert radeval_scores(["radgraph"], WRITTEN, EXPECTED).lines == [
        "radgraph: not computed, radeval 2.2.1 ended with 1 (broken at its import); install it anew"
    ]


def predictions(folder, ids):
    path = folder / "p.csv"
    with path.open("w", newline="") as file:
        rows = [
            [key, f"p{i}", written, right]
            for i, (key, written, right) in enumerate(zip(ids, WRITTEN, EXPECTED, strict=True))
        ]
        csv.writer(file).writerows([["id", "patient", "generate/hypothesis", "generate/reference"], *rows])
    return path


def test_score_computes_them_of_a_file(installed_radeval, capsys):
    path = predictions(installed_radeval, ["a", "b", "c"])
    score([str(path), "--radeval", "radgraph", "bertscore", "--write", "r.json", "--resamples", "20"])
    assert "bertscore: not computed" in capsys.readouterr().out
    results = read_results(installed_radeval / "r.json")
    assert results["metrics"]["test/generate/radeval/radgraph_partial"].value == pytest.approx(1 / 3)
    assert results["metrics"]["test/generate/bleu/1"].n == 3
    assert results["protocol"]["generate"]["radeval"] == "2.2.1"
    with pytest.raises(ConfigError, match="--download fetches models of --radeval"):
        score([str(path), "--download"])


def test_their_columns_give_the_figures_again(tmp_path):
    path = predictions(tmp_path, ["a", "b", "c"])
    lines = path.read_text().splitlines()
    values = ["generate/radeval/ratescore", "0.25", "", "0.75"]
    path.write_text("\n".join(f"{line},{value}" for line, value in zip(lines, values, strict=True)))
    draws = read_predictions(path).draws(resamples=0)
    assert np.isnan(draws["generate/radeval/ratescore"].values[0])
    path.write_text(path.read_text().replace(",\n", ",0.5\n"))
    assert read_predictions(path).draws(resamples=0)["generate/radeval/ratescore"].values.tolist() == [0.5]


STUDIES = {
    "CXR38_IM-1911": {
        "key_image_path": "CXR38_IM-1911/1.png",
        "image_path": ["CXR38_IM-1911/0.png", "CXR38_IM-1911/1.png"],
        "section_findings": "Clear.",
        "section_impression": "Normal.",
        "split": "test",
    },
    "CXR3_IM-1384": {"key_image_path": "CXR3_IM-1384/0.png", "image_path": ["CXR3_IM-1384/0.png"]},
}


@pytest.mark.parametrize(
    ("ids", "chosen"),
    [
        (["CXR38_IM-1911-1001", "CXR3_IM-1384-2001", "CXR38_IM-1911-2001"], [0, 1]),  # as released
        (["CXR38_IM-1911/0.png", "CXR3_IM-1384/0.png", "CXR38_IM-1911/1.png"], [2, 1]),  # R2Gen's copy
        (["x/CXR3_IM-1384/0.png", "x/CXR38_IM-1911/0.png", "y/0.png"], [1, 0]),
    ],
)
def test_a_study_of_rexrank_gets_the_report_of_its_image(ids, chosen):
    found = rexrank(STUDIES, ids, WRITTEN)
    assert [entry["model_prediction"] for entry in found.values()] == [WRITTEN[i] for i in chosen]
    assert {
        name: {k: v for k, v in entry.items() if k != "model_prediction"} for name, entry in found.items()
    } == STUDIES


def test_mimic_studies_are_known_by_the_names_of_their_images():
    studies = {
        "p10_s1": {"image_path": ["p10/p100/s1/aa.jpg", "p10/p100/s1/bb.jpg"], "key_image_path": "p10/p100/s1/bb.jpg"},
        "p10_s2": {"image_path": ["p10/p100/s2/cc.jpg"], "key_image_path": "p10/p100/s2/cc.jpg"},
    }
    found = rexrank(studies, ["aa", "cc", "bb"], WRITTEN)
    assert [entry["model_prediction"] for entry in found.values()] == [WRITTEN[2], WRITTEN[1]]


def test_a_name_of_several_images_is_no_name():
    """CheXpert calls every first frontal image view1_frontal."""
    studies = {f"s{i}": {"image_path": [f"valid/patient{i}/study1/view1_frontal.jpg"]} for i in range(3)}
    ids = [f"patient{i}/study1/view1_frontal" for i in (2, 0, 1)]
    assert [e["model_prediction"] for e in rexrank(studies, ids, WRITTEN).values()] == [WRITTEN[i] for i in (1, 2, 0)]
    with pytest.raises(DataError, match=r"3 of 3 studies of ReXrank have no written report, the first is 's0'"):
        rexrank(studies, ["view1_frontal", "b", "c"], WRITTEN)


def test_score_writes_rexranks_json(tmp_path):
    path = predictions(tmp_path, ["CXR38_IM-1911-1001", "CXR3_IM-1384-2001", "CXR38_IM-1911-2001"])
    (tmp_path / "theirs.json").write_text(json.dumps(STUDIES))
    score([str(path), "--rexrank", str(tmp_path / "theirs.json"), str(tmp_path / "ours.json"), "--resamples", "0"])
    written = json.loads((tmp_path / "ours.json").read_text())
    assert written == rexrank(STUDIES, [row["id"] for row in csv.DictReader(path.open())], WRITTEN)
    assert set(written["CXR38_IM-1911"]) >= {"model_prediction", "section_findings", "section_impression"}
    (tmp_path / "theirs.json").write_text("[1]")
    with pytest.raises(DataError, match="it is no test set of ReXrank"):
        read_studies(tmp_path / "theirs.json")
    with pytest.raises(DataError, match="cannot be read as json"):
        read_studies(tmp_path / "none.json")
