"""Reports by retrieval against a plain loop over all training reports, on one process and on two."""

import evaluating
import numpy as np
import pytest
import torch
from evaluating import Constant, Cosine, Radiographs, embed_text, evaluate

from diptych.errors import ConfigError
from diptych.evaluation.retrieved_reports import RetrievedReports
from diptych.metrics import generated_text as nlg
from diptych.metrics.clinical import clinical
from diptych.reports.labeller import Rules
from diptych.reports.r2gen import R2GenText

TRAINING = [(f"p{i}", text) for i, text in enumerate(evaluating.training_texts())]


def made(training=TRAINING, **options):
    evaluator = RetrievedReports(**{"resamples": 20, "texts": 7, **options})
    evaluator.training_reports = lambda: list(training)
    return evaluator


def nearest(data, head):
    """The best training report of each image: one image and one report at a time, the first of equals."""
    chosen = []
    for i in range(data.n):
        best, which = -np.inf, None
        for _, text in TRAINING:
            score = float(head.similarity(data.image([i]), embed_text([text])))
            if text.strip() and score > best + 1e-5:
                best, which = score, text
        chosen.append(which)
    return chosen


def test_the_figures_are_those_of_the_nearest_reports_of_a_plain_loop():
    data, head = Radiographs(n=41), Cosine()
    evaluator = made()
    metrics = evaluate(evaluator, data, head)
    expected = nearest(data, head)
    assert len(set(expected)) > 8
    assert evaluator.name == "generate"
    assert evaluator.predictions.columns["hypothesis"] == expected
    assert evaluator.predictions.columns["reference"] == data.texts
    for name, value in nlg.scores(expected, data.texts).items():
        assert metrics[name].value == pytest.approx(float(value[0]), abs=1e-12), name
    figures, _ = clinical(Rules()(expected), Rules()(data.texts), np.ones((1, data.n)))
    assert {name for name in metrics if name.startswith("clinical/")} == {f"clinical/{name}" for name in figures}
    different = len({text.casefold() for _, text in TRAINING if text.strip()})
    assert (
        evaluator.protocol["reports"] == f"the nearest of {different} different training reports, by the head's score"
    )


def test_of_equal_scores_the_first_report_is_taken_whatever_the_blocks():
    data = Radiographs(n=20)
    for texts in (1, 4, 1000):
        evaluator = made(texts=texts)
        evaluate(evaluator, data, Constant())
        assert set(evaluator.predictions.columns["hypothesis"]) == {TRAINING[0][1]}


def test_two_processes_give_the_figures_of_one(gloo2):
    shares = [list(range(0, 41, 2)), list(range(1, 41, 2))]
    expected = evaluating.task_retrieved([list(range(41))])
    assert gloo2(evaluating.task_retrieved, shares) == [expected, expected]


def test_published_rules_hold_for_both_texts():
    data = Radiographs(n=20)
    evaluator = made(protocol="r2gen/openi")
    metrics = evaluate(evaluator, data, Cosine())
    rules = R2GenText("r2gen/openi", TRAINING)
    assert evaluator.predictions.columns["reference"] == [rules.reference(text) for text in data.texts]
    assert any("<unk>" in text.split() for text in evaluator.predictions.columns["reference"])
    columns = [evaluator.predictions.columns[name] for name in ("hypothesis", "reference")]
    assert metrics["cider/d"].value == pytest.approx(float(nlg.scores(*columns, blanks=True)["cider/d"][0]))
    assert evaluator.protocol["rules"]["name"] == "r2gen/openi"


def test_nothing_is_computed_within_training():
    data, evaluator = Radiographs(n=6), made()
    evaluator.start(embed_text, (), intervals=False)
    for batch, image, text in data.batches(range(6), 6):
        evaluator.update(batch, image, text, Cosine())
    assert evaluator.compute(Cosine()) == {}
    assert evaluator.protocol["skipped"] == "not computed within training"
    assert evaluator.predictions is None


def test_what_is_missing_is_named():
    with pytest.raises(
        ConfigError, match="there are no training reports to choose from; give data whose 'train' split"
    ):
        evaluate(made([("p", " ")]), Radiographs(n=6), Cosine())
    with pytest.raises(ConfigError, match="RetrievedReports: texts is 0; give a whole number of 1 or more"):
        RetrievedReports(texts=0)
    with pytest.raises(ConfigError, match="RetrievedReports: protocol is 'r2gen'; choose among: diptych, r2gen/openi"):
        RetrievedReports(protocol="r2gen")


def test_a_score_that_is_no_number_is_below_all_others():
    class Broken(Cosine):
        def similarity(self, image, text):
            scores = super().similarity(image, text)
            return torch.where(scores == scores.max(), torch.nan, scores)

    evaluate(made(), Radiographs(n=12), Broken())
