"""Predictions: what is written gives the figures of its test with every digit, and a file of others is read or named."""

import csv
import json

import evaluating
import numpy as np
import pytest
from evaluating import CLASSES, Cosine, Radiographs, evaluate
from sklearn.metrics import f1_score, roc_auc_score

from diptych.cli.score import main as score
from diptych.errors import ConfigError, DataError
from diptych.evaluation.class_retrieval import ClassRetrieval
from diptych.evaluation.retrieval import Retrieval
from diptych.evaluation.zero_shot import ZeroShot
from diptych.metrics.bootstrap import as_metrics
from diptych.metrics.localisation import MEASURES
from diptych.predictions import table as tables_of
from diptych.predictions.base import Boxes, Chosen, Predictions
from diptych.predictions.reading import read_predictions
from diptych.predictions.table import need_format, read_table, write_table
from diptych.results.record import read_results, write_results

IDS = ["a,b", 'two\nlines "quoted"', "=1+1", "'=1", "-5", " x", "é|", "007"]


def data_set():
    """Samples whose patients are numbered in the order in which they come, as those of a loader are."""
    data = Radiographs()
    numbers = {group: i for i, group in enumerate(dict.fromkeys(data.group.tolist()))}
    data.group.copy_(data.group.clone().apply_(numbers.get))
    return data


def evaluators(folder):
    prompts, classes = evaluating.write_prompts(folder), folder / "classes.yaml"
    classes.write_text(json.dumps(CLASSES))
    yield Retrieval(resamples=30, ks=(1, 7))
    yield ZeroShot(prompts, resamples=30, seed=3)
    yield ZeroShot(prompts, threshold="best_f1", name="best", resamples=0)
    yield ZeroShot(str(classes), name="which", resamples=30)
    yield ZeroShot(prompts, name="chexzero", resamples=30, protocol="chexzero")
    yield ZeroShot(prompts, name="gloria", resamples=30, protocol="gloria", drawn_prompts=1)
    yield Retrieval(resamples=30, duplicates="kept", name="kept")
    yield ClassRetrieval(str(classes), "reports", name="reports", resamples=30)
    yield ClassRetrieval(str(classes), "prompts", name="prompts", resamples=30)


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_file_gives_the_figures_of_its_evaluators_with_every_digit(form, tmp_path):
    data, metrics, kept = data_set(), {}, {}
    for evaluator in evaluators(tmp_path):
        metrics |= {f"{evaluator.name}/{key}": value for key, value in evaluate(evaluator, data, Cosine()).items()}
        kept[evaluator.name] = evaluator.predictions
    ids = [f"=i{i}" for i in range(data.n)]
    path = tmp_path / f"predictions.{form}"
    write_table(path, ids, [f"p{group}" for group in data.group.tolist()], range(data.n), kept)
    tested = read_predictions(path, {name: {"kind": one.kind, **one.settings} for name, one in kept.items()})
    assert tested.ids == ids
    assert repr(as_metrics(tested.draws())) == repr(metrics)
    assert {name.partition("/")[0] for name in metrics} == kept.keys()

    cells = read_table(path).cells
    best = [json.loads(cell) for cell in cells["retrieval/top10"]]
    for i, names in enumerate(best):  # the place of an image's own text among the ten, by its first image
        own = ids[data.texts.index(data.texts[i])]
        rank = float(cells["retrieval/image_rank"][i])
        assert (names.index(own) + 1 == rank) if rank <= 10 else own not in names
    firsts = [i for i, text in enumerate(data.texts) if text not in data.texts[:i]]
    assert [i for i, cell in enumerate(cells["retrieval/text_rank"]) if cell] == firsts


def test_a_part_of_the_data_set_has_its_own_ids(tmp_path):
    data, evaluator = data_set(), Retrieval(resamples=0)
    evaluate(evaluator, data, Cosine(), rows=[40, 2, 9, 31])
    ids = [f"i{i}" for i in range(data.n)]
    write_table(tmp_path / "p.csv", ids, ids, evaluator.index.tolist(), {"retrieval": evaluator.predictions})
    table = read_table(tmp_path / "p.csv")
    assert table.cells["id"] == ["i2", "i9", "i31", "i40"]
    assert {name for cell in table.cells["retrieval/top10"] for name in json.loads(cell)} <= set(table.cells["id"])


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_ids_numbers_and_texts_come_back_as_they_were(form, tmp_path):
    rng = np.random.default_rng(0)
    single, double = rng.normal(size=8).astype(np.float32), rng.normal(size=8) * 1e-300
    single[0], double[1] = np.inf, np.nan
    boxes = [rng.random((k % 3, 6)) * 0.5 + [0, 0, 1, 1, 0, 0] for k in range(8)]
    for k, one in enumerate(boxes):
        one[:, 4] = k % 2
    columns = {
        "x/score/Edema": single,
        "x/score/a/b, c": double,
        "x/label/Edema": np.array([1, 0, -1, np.nan] * 2, np.float32),
        "x/label/a/b, c": np.zeros(8),
        "y/boxes": Boxes([*boxes[:-1], None], ["Nodule", "Mass"]),
        "y/truth": Boxes([one[:, :5] for one in boxes], ["Nodule", "Mass"]),
        "z/hypothesis": IDS,
        "z/reference": IDS[::-1],
        "y2/image_rank": np.arange(1, 9),
        "y2/text_rank": np.array([1.0] + [np.nan] * 7),
        "y2/top10": Chosen(rng.integers(0, 8, (8, 3))),
    }
    kept = {}
    for name, column in columns.items():
        start, _, local = name.partition("/")
        kept.setdefault(start, Predictions("binary", {})).columns[local] = column
    path = tmp_path / f"p.{form}"
    write_table(path, IDS, [f"={name}" for name in IDS], range(8), kept)
    tested = read_predictions(path, {"y": {"findings": ["Nodule", "Mass"]}})
    assert tested.ids == IDS
    assert tested.patients == [f"={name}" for name in IDS]
    again = tested.predictions
    for name in ("x/score/Edema", "x/score/a/b, c", "x/label/Edema", "y2/text_rank"):
        start, _, local = name.partition("/")
        np.testing.assert_array_equal(again[start].columns[local], columns[name].astype(np.float64))
    assert again["z"].columns["hypothesis"] == IDS
    for local in ("boxes", "truth"):
        for one, other in zip(again["y"].columns[local].rows, columns[f"y/{local}"].rows, strict=True):
            assert (one is None) == (other is None)
            assert one is None or np.array_equal(one, other)
    assert [kept.kind for kept in again.values()] == ["binary", "boxes", "reports", "retrieval"]


def write(path, header, *rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header.split(","), *rows])
    return path


ZERO_SHOT = "id,patient,zero_shot/score/Edema,zero_shot/label/Edema"


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        ("name,patient", [["a", "p"]], r"p.csv: no column 'id'; add one with a different name for each image"),
        ("id,patient", [["a", "p"]], r"p.csv: no column of predictions beside id and patient; docs/evaluation.md lists"),
        ("id,zero_shot/score/Edema,zero_shot/label/Edema", [["a", 1, 1]], r"p.csv: no column 'patient'; add one"),
        (ZERO_SHOT, [], r"p.csv: no row below the names of columns"),
        (ZERO_SHOT, [["a", "p", 1, 1], ["b", "p", 1, 0], ["a", "q", 1, 1]], r"p.csv, lines 2 and 4: both are id 'a'; keep"),
        (ZERO_SHOT, [["", "p", 1, 1]], r"p.csv, line 2: id is empty; name each image"),
        (ZERO_SHOT, [["a", "p", "high", 1]], r"line 2: zero_shot/score/Edema is 'high', and no number; give a number"),
        (ZERO_SHOT, [["a", "p", 1, 1], ["b", "p", 1, 2]], r"line 3: zero_shot/label/Edema is '2'; give 1 \(present\), 0"),
        (ZERO_SHOT, [["a", "p", 1]], r"p.csv, line 2: 3 values for 4 columns"),
        (f"{ZERO_SHOT},bmi", [["a", "p", 1, 1, 50]], r"p.csv, line 1: the column 'bmi' is not known .*; rename or remove"),
        (f"{ZERO_SHOT},age", [["a", "p", 1, 1, "old"]], r"p.csv, line 2: age is 'old'; give whole years up to 120"),
        (f"{ZERO_SHOT},zero_shot/scor/Mass", [["a", "p", 1, 1, 5]], r"'zero_shot/scor/Mass' is not known \(nearest of those"),
        (f"{ZERO_SHOT},id", [["a", "p", 1, 1, "a"]], r"2 columns are called 'id'; rename all but one"),
        ("id,patient,x/score/Edema", [["a", "p", 1]], r"no column 'x/label/Edema', which x needs; add it"),
        (f"{ZERO_SHOT},zero_shot/label/Mass", [["a", "p", 1, 1, 1]], r"'zero_shot/label/Mass' has no score beside it; add"),
        ("id,patient,r/image_rank", [["a", "p", 1]], r"no column 'r/text_rank', which r needs"),
        ("id,patient,r/image_rank,r/text_rank", [["a", "p", 0, 1]], r"line 2: r/image_rank is '0'; give a whole number of 1"),
        ("id,patient,r/image_rank,r/text_rank", [["a", "p", "", 1]], r"line 2: r/image_rank is ''; give a whole number"),
        ("id,patient,r/image_rank,r/text_rank", [["a", "p", 1, 1.5]], r"r/text_rank is '1.5'; give a whole number of 1 or"),
        ("id,patient,d/boxes,d/truth", [["a", "p", "", "[]"]], r"line 2: d/boxes is ''; give a JSON list of \[x0, y0"),
        ("id,patient,d/boxes,d/truth", [["a", "p", "[[3, 0, 1, 1, \"N\", 0.5]]", "[]"]], r"d/boxes is .*with x0 <= x1"),
        ("id,patient,d/boxes,d/truth", [["a", "p", "[[0, 0, 1, 1, \"N\", 7]]", "[]"]], r"confidence from 0 to 1"),
        ("id,patient,d/boxes,d/truth", [["a", "p", "[[0, 0, 1, 1, 0, 0.5]]", "[]"]], r"d/boxes is"),
        ("id,patient,s/dice,s/iou,s/pixels", [["a", "p", 1, 1, -4]], r"s/pixels is '-4'; give a number of 0 or more"),
        ("id,patient,g/hypothesis,g/reference,g/reference_label/Edema", [["a", "p", "x", "y", 1]], r"no column 'g/hypothesis_"),
    ],
)  # fmt: skip
def test_what_a_file_lacks_is_named_with_its_place(header, rows, message, tmp_path):
    with pytest.raises(DataError, match=message) as error:
        read_predictions(write(tmp_path / "p.csv", header, *rows))
    assert "\n" not in str(error.value)


def peers(n=60, seed=1):
    """Labels and probabilities of a peer, two images a patient."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    return labels, np.clip(labels * 0.3 + rng.random(n) * 0.7, 0, 1)


def test_probabilities_of_a_peer_are_cut_at_one_half(tmp_path, capsys):
    labels, probability = peers()
    rows = [
        [f"i{i}", f"p{i // 2}", repr(float(p)), y] for i, (p, y) in enumerate(zip(probability, labels, strict=True))
    ]
    path = write(tmp_path / "peer.csv", "id,patient,peer/probability/Edema,peer/label/Edema", *rows)
    score([str(path), "--write", str(tmp_path / "peer.json"), "--title", "Peer", "--resamples", "50"])
    assert "test/peer/auroc/macro" in capsys.readouterr().out
    results = read_results(tmp_path / "peer.json")
    assert results["metrics"]["test/peer/auroc/Edema"].value == pytest.approx(roc_auc_score(labels, probability))
    assert results["metrics"]["test/peer/f1/Edema"].value == pytest.approx(f1_score(labels, probability > 0.5))
    assert results["head"] == "Peer"
    assert results["protocol"]["peer"]["threshold"] == "score > 0.5"
    assert "50 resamples, seed 0" in results["protocol"]["peer"]["interval"]
    score([str(path), "--threshold", "best_f1", "--write", str(tmp_path / "best.json"), "--resamples", "0"])
    best = read_results(tmp_path / "best.json")["metrics"]["test/peer/f1/Edema"]
    assert best.value == pytest.approx(max(f1_score(labels, probability >= t) for t in probability))
    for options, message in (
        (["--ks", "1"], "--ks is for predictions that .*peer.csv has not"),
        (["--ks", "0"], r"--ks is \[0\]; give whole numbers"),
        (["--resamples", "-1"], "--resamples is -1"),
        (["--confidence", "2"], "--confidence is 2"),
    ):
        with pytest.raises(ConfigError, match=message):
            score([str(path), *options])


@pytest.fixture
def run(tmp_path):
    """A run of zero-shot and retrieval, with its results and predictions."""
    data, metrics, kept, protocol = data_set(), {}, {}, {"data": "this test"}
    for evaluator in list(evaluators(tmp_path))[:2]:
        found = evaluate(evaluator, data, Cosine())
        metrics |= {f"test/{evaluator.name}/{key}": value for key, value in found.items()}
        kept[evaluator.name], protocol[evaluator.name] = evaluator.predictions, evaluator.protocol
    folder, ids = tmp_path / "run", [f"i{i}" for i in range(data.n)]
    write_table(folder / "predictions.csv", ids, [f"p{g}" for g in data.group.tolist()], range(data.n), kept)
    of = {name: {"kind": one.kind, **one.settings} for name, one in kept.items()}
    given = {"split_hash": "s", "seed": 4, "checkpoint": None, "checkpoint_sha256": None, "head": "Ours", "data": "D"}
    predictions = {"file": "predictions.csv", "of": of}
    write_results(folder / "results.json", metrics=metrics, protocol=protocol, predictions=predictions, **given)
    return folder


def test_a_run_is_scored_as_it_was_tested(run, capsys):
    score([str(run / "predictions.csv"), "--write", str(run / "again.json")])
    printed = capsys.readouterr().out
    assert "figures are those of" in printed
    assert "every digit" in printed
    before, after = (json.loads((run / name).read_text()) for name in ("results.json", "again.json"))
    for part in ("metrics", "split_hash", "seed", "head", "data"):
        assert after[part] == before[part]
    assert {n: after["protocol"][n] for n in ("data", "retrieval", "zero_shot")} == before["protocol"]
    with pytest.raises(ConfigError, match="it holds the results of the run itself; name another file"):
        score([str(run / "predictions.csv"), "--write", str(run / "results.json")])
    text = (run / "predictions.csv").read_text().split("\n")
    text[1] = text[1].replace("i0,", "i00,", 1)
    table = read_table(run / "predictions.csv").cells
    assert table["retrieval/image_rank"][0] != "83"
    rows = list(csv.reader((run / "predictions.csv").open()))
    rows[1][rows[0].index("retrieval/image_rank")] = "83"
    write(run / "predictions.csv", ",".join(rows[0]), *rows[1:])
    score([str(run / "predictions.csv")])
    assert "figures are not those of" in capsys.readouterr().out


def test_a_peer_on_the_runs_test_set_gets_its_labels_and_stands_in_its_table(run, tmp_path, capsys):
    from diptych.results.runs import read_run, tables

    rows = list(csv.DictReader((run / "predictions.csv").open()))
    names = [name for name in rows[0] if name.startswith("zero_shot/score/")]
    order = np.random.default_rng(0).permutation(len(rows))
    peer = write(
        tmp_path / "peer.csv", ",".join(["id", *names]), *([rows[i]["id"], *(rows[i][n] for n in names)] for i in order)
    )
    score([str(peer), "--run", str(run), "--write", str(tmp_path / "peer/results.json")])
    ours, theirs = read_results(run / "results.json"), read_results(tmp_path / "peer/results.json")
    of = {name: value for name, value in ours["metrics"].items() if "/zero_shot/" in name}
    assert repr(theirs["metrics"]) == repr(of)  # in the run's order, so with its draws
    assert theirs["head"] == "peer"
    found = tables([read_run(str(run)), read_run(str(tmp_path / "peer"))])
    assert [len(table.runs) for table in found if table.name == "test/zero_shot"] == [2]

    fewer = write(
        tmp_path / "fewer.csv", ",".join(["id", *names]), *([r["id"], *(r[n] for n in names)] for r in rows[1:])
    )
    with pytest.raises(
        DataError, match=r"fewer.csv: 1 images of .*predictions.csv are not there, the first is id 'i0'"
    ):
        score([str(fewer), "--run", str(run)])
    label = next(name for name in rows[0] if name.startswith("zero_shot/label/"))
    turned = [[r["id"], *(r[n] for n in names), "1" if r[label] == "0.0" else r[label]] for r in rows]
    other = write(tmp_path / "other.csv", ",".join(["id", *names, label]), *turned)
    with pytest.raises(
        DataError, match=rf"other.csv, line \d+: {label} is '1', and '0.0' in .*; give the same test set"
    ):
        score([str(other), "--run", str(run)])


def test_reports_of_a_peer_are_labelled_by_the_rules(tmp_path):
    texts = [["Small left effusion.", "Small left effusion."], ["Clear lungs.", "No effusion."], ["- Edema.", "Edema."]]
    rows = [[f"i{i}", f"p{i}", *pair] for i, pair in enumerate(texts)]
    path = write(tmp_path / "peer.csv", "id,patient,peer/hypothesis,peer/reference", *rows)
    metrics = as_metrics(read_predictions(path).draws(0))
    assert metrics["peer/clinical/f1/Pleural Effusion"].value == 1
    assert metrics["peer/clinical/f1/Edema"].value == 1
    assert 0 < metrics["peer/bleu/1"].value < 1


def test_boxes_of_a_peer_have_thresholded_figures_only_with_a_confidence(tmp_path):
    row = ["a", "p", '[[0, 0, 4, 4, "Nodule", 0.9], [5, 5, 6, 6, "Mass", 0.2]]', '[[0, 0, 4, 4, "Nodule"]]']
    path = write(tmp_path / "peer.csv", "id,patient,peer/boxes,peer/truth", row, ["b", "q", "[]", "[]"])
    figures = read_predictions(path).draws(0)
    assert figures["peer/ap/Nodule"].values[0] == 1
    assert "peer/missed" not in figures
    score([str(path), "--confidence", "0.5", "--write", str(tmp_path / "p.json"), "--resamples", "0"])
    assert read_results(tmp_path / "p.json")["metrics"]["test/peer/challenge"].value == 1
    with pytest.raises(DataError, match=r"line 2: peer/boxes has the finding 'Mass'; known are Nodule"):
        read_predictions(path, {"peer": {"kind": "boxes", "findings": ["Nodule"]}})


def test_regions_of_two_models_are_paired_though_each_measures_them_on_its_own_input(tmp_path):
    header = ",".join(["id,patient", *(f"peer/{name}/Mass" for name in (*MEASURES, "area"))])
    figures = ["0.5"] * len(MEASURES)
    rows = [("a", "p", *figures, "0.005"), ("b", "q", *figures, "0.25"), ("c", "q", *[""] * (len(MEASURES) + 1))]
    small = write(tmp_path / "small.csv", header, *rows)
    large = write(tmp_path / "large.csv", header, ("a", "p", *figures, "0.0062"), *rows[1:])
    paired = read_predictions(large, truth=small)  # 112 and 299 pixels a side give a box another share
    assert paired.predictions["peer"].columns["area/Mass"][:2].tolist() == [0.0062, 0.25]
    other = write(tmp_path / "other.csv", header, *rows[:2], ("c", "q", *figures, "0.1"))
    with pytest.raises(
        DataError, match=r"other.csv, line 4: peer/area/Mass is '0.1', and '' in .*; give the same test set"
    ):
        read_predictions(other, truth=small)


def test_parquet_without_its_library_is_refused_before_the_test(monkeypatch):
    def missing(name):
        raise ImportError(name)

    need_format("parquet")
    monkeypatch.setattr(tables_of, "import_module", missing)
    need_format("csv")
    with pytest.raises(
        ConfigError, match=r"predictions: parquet needs pyarrow: pip install 'diptych\[parquet\]'.*or give csv"
    ):
        need_format("parquet")
