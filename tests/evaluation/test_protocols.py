"""Zero-shot protocols against the published rules, written again in numpy, one image and one prompt at a time."""

import json
import math
from collections import Counter

import evaluating
import numpy as np
import pytest
import torch
from evaluating import CLASSES, PROMPTS, Cosine, Radiographs, Words, embed_text, evaluate
from sklearn.metrics import roc_auc_score

from diptych.errors import ConfigError
from diptych.evaluation.base import embed_once
from diptych.evaluation.prompts import load_prompts
from diptych.evaluation.protocols import PROTOCOLS, z_scores
from diptych.evaluation.zero_shot import ZeroShot

NAMES = ["Edema", "Mass", "Nodule"]
"""Findings of the data set with positive and negative samples."""
PAIRS = {name: {"positive": [f"{name} seen"], "negative": [f"no {name}"]} for name in NAMES}


@pytest.fixture
def prompts(tmp_path):
    return lambda content=PROMPTS, **changed: evaluating.write_prompts(tmp_path, content, **changed)


def unit(x):
    return x / np.linalg.norm(x)


def vector(text):
    return embed_text([text]).pooled[0].double().numpy()


def cosine(data, i, text):
    return float(unit(data.regions[i, 0].double().numpy()) @ unit(vector(text)))


def averaged(data, i, texts):
    """The cosine of an image with the mean of unit vectors, made a unit vector again."""
    return float(unit(data.regions[i, 0].double().numpy()) @ unit(np.mean([unit(vector(t)) for t in texts], axis=0)))


def scored(data, head, i, text):
    return float(head.similarity(data.image([i]), embed_text([text]))[0, 0])


def columns(evaluator, what="score"):
    kept = evaluator.predictions.columns
    return {name.split("/")[1]: np.asarray(kept[name]) for name in kept if name.startswith(f"{what}/")}


def run(data, head, *arguments, **options):
    evaluator = ZeroShot(*arguments, resamples=0, **options)
    return evaluator, evaluate(evaluator, data, head, size=10)


def check_figures(metrics, data, scores):
    """The AUROC of each finding is scikit-learn's, of the scores given."""
    for k, name in enumerate(NAMES):
        label = data.labels[:, k].numpy()
        known = np.isin(label, (0, 1))
        expected = roc_auc_score(label[known], scores[name][known])
        assert metrics[f"auroc/{name}"].value == pytest.approx(expected, abs=1e-6)


# -- the published rules ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", [Cosine(), Words()], ids=["pooled", "tokens"])
def test_chexzero_is_the_soft_max_of_two_cosines_with_averaged_texts(head, prompts):
    """exp(+) / (exp(+) + exp(-)), as rajpurkarlab/CheXzero's run_softmax_eval has it, without a temperature."""
    data = Radiographs()
    evaluator, metrics = run(data, head, prompts(), protocol="chexzero")
    expected = {}
    for name in NAMES:
        sides = PROMPTS["findings"][name]
        plus, minus = (np.array([averaged(data, i, sides[s]) for i in range(data.n)]) for s in ("positive", "negative"))
        expected[name] = np.exp(plus) / (np.exp(plus) + np.exp(minus))
        np.testing.assert_allclose(columns(evaluator, "probability")[name], expected[name], atol=1e-6)
        np.testing.assert_allclose(columns(evaluator)[name], plus - minus, atol=1e-6)
    check_figures(metrics, data, expected)
    assert len(PROMPTS["findings"]["Mass"]["negative"]) == 2  # averaging is seen


def test_biovil_is_the_soft_max_of_one_pair(prompts):
    data = Radiographs()
    evaluator, metrics = run(data, Words(), prompts(findings=PAIRS), protocol="biovil")
    expected = {}
    for name in NAMES:
        plus, minus = (np.array([cosine(data, i, t) for i in range(data.n)]) for t in (f"{name} seen", f"no {name}"))
        expected[name] = 1 / (1 + np.exp(minus - plus))
        np.testing.assert_allclose(columns(evaluator, "probability")[name], expected[name], atol=1e-6)
    check_figures(metrics, data, expected)


def test_convirt_is_the_probability_of_the_texts_given_the_image(prompts):
    """The soft-max over texts of eq. 2 at temperature 0.1, of the prompts of both sides of a finding."""
    data = Radiographs()
    evaluator, metrics = run(data, Words(), prompts(), protocol="convirt")
    expected = {}
    for name in NAMES:
        sides, values = PROMPTS["findings"][name], []
        for i in range(data.n):
            plus, minus = (sum(math.exp(cosine(data, i, t) / 0.1) for t in sides[s]) for s in ("positive", "negative"))
            values.append(plus / (plus + minus))
        expected[name] = np.array(values)
        np.testing.assert_allclose(columns(evaluator, "probability")[name], expected[name], atol=1e-5)
    check_figures(metrics, data, expected)


TEXTS = {
    "Edema": ["edema here", "edema is seen"],
    "Mass": ["mass", "mass on the left", "small mass", "small mass on the left"],
    "Nodule": ["nodule"],
}


def test_convirt_gives_classes_that_sum_to_one(prompts):
    data = Radiographs(n=60)
    evaluator, _ = run(data, Cosine(), prompts(CLASSES), protocol="convirt")
    found = np.exp(np.stack(list(columns(evaluator).values()), axis=1))
    sums = np.array(
        [[sum(math.exp(cosine(data, i, t) / 0.1) for t in texts) for texts in TEXTS.values()] for i in range(data.n)]
    )
    np.testing.assert_allclose(found, sums / sums.sum(axis=1, keepdims=True), atol=1e-5)


@pytest.mark.parametrize("head", [Cosine(), Words()], ids=["pooled", "tokens"])
def test_gloria_is_the_z_score_of_the_best_drawn_prompt(head, prompts):
    """As zero_shot_classification of marshuang80/gloria: the maximum over prompts, then (x - mean) / std over the images."""
    data = Radiographs(n=90)
    extended = {name: {"prompts": [f"{name} {word}" for word in "abcdefgh"]} for name in NAMES}
    evaluator, metrics = run(data, head, prompts(CLASSES, classes=extended), protocol="gloria", drawn_prompts=3, seed=4)
    drawn = json.loads(json.dumps(evaluator.protocol))["drawn"]
    assert all(len(set(drawn[name])) == 3 and set(drawn[name]) < set(extended[name]["prompts"]) for name in NAMES)
    best = np.array([[max(scored(data, head, i, t) for t in drawn[name]) for name in NAMES] for i in range(data.n)])
    expected = np.stack([(column - column.mean()) / column.std() for column in best.T], axis=1)
    np.testing.assert_allclose(np.stack(list(columns(evaluator).values()), axis=1), expected, atol=2e-5)
    one = (data.labels[:, :3].numpy() == 1).sum(axis=1) == 1
    right = expected[one].argmax(axis=1) == (data.labels[one, :3].numpy() == 1).argmax(axis=1)
    assert metrics["accuracy"].value == pytest.approx(right.mean(), abs=1e-9)
    assert (best[one].argmax(axis=1) != expected[one].argmax(axis=1)).any()  # the z-score changes answers
    assert f"over the {data.n} images" in evaluator.protocol["transductive"]


def test_gloria_takes_the_two_sides_of_a_finding_as_classes(prompts):
    data = Radiographs()
    evaluator, metrics = run(data, Cosine(), prompts(), protocol="gloria", drawn_prompts=1)
    expected = {}
    for name in NAMES:
        plus, minus = evaluator.protocol["drawn"][name]
        assert plus in PROMPTS["findings"][name]["positive"]
        sides = [np.array([scored(data, Cosine(), i, text) for i in range(data.n)]) for text in (plus, minus)]
        z = [(side - side.mean()) / side.std() for side in sides]
        expected[name] = z[0] - z[1]
        np.testing.assert_allclose(columns(evaluator)[name], expected[name], atol=2e-5)
    check_figures(metrics, data, expected)


def test_only_gloria_depends_on_the_other_images(prompts):
    data, few = Radiographs(), list(range(20))
    for name in PROTOCOLS:
        content = prompts(findings=PAIRS)
        options = {"protocol": name} | ({"drawn_prompts": 1} if name == "gloria" else {})
        whole, part = (ZeroShot(content, resamples=0, **options) for _ in range(2))
        evaluate(whole, data, Cosine())
        evaluate(part, data, Cosine(), rows=few)
        same = all(np.array_equal(columns(whole)[n][:20], columns(part)[n]) for n in NAMES)
        assert same != PROTOCOLS[name].transductive == (name == "gloria")


def test_z_scores_of_one_image_and_of_a_constant():
    assert z_scores(torch.tensor([[3.0, 4.0]])).tolist() == [[3.0, 4.0]]
    flat = torch.tensor([[0.9, 1.0], [0.9 + 1e-9, 2.0]], dtype=torch.float64)
    assert z_scores(flat).tolist() == [[0, -1], [0, 1]]
    assert z_scores(torch.tensor([[math.nan], [1.0]])).isnan().all()


# -- ensembling, drawing, embedding once --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in PROTOCOLS if name != "gloria"])
def test_text_vectors_may_be_averaged_in_every_protocol(name, prompts):
    data = Radiographs()
    evaluator, _ = run(data, Words(), prompts(), protocol=name, average_prompts=True)
    sides = PROMPTS["findings"]["Mass"]
    plus, minus = (np.array([averaged(data, i, sides[s]) for i in range(data.n)]) for s in ("positive", "negative"))
    factor = 10 if name == "convirt" else 1
    np.testing.assert_allclose(columns(evaluator)["Mass"], factor * (plus - minus), atol=1e-5)
    assert evaluator.protocol["score"] == "cosine of the pooled vectors"
    assert evaluator.protocol["text_vectors"] == "mean over a side's prompts, of length 1"


def test_gloria_averages_what_it_has_drawn(prompts):
    data = Radiographs(n=40)
    extended = {name: {"prompts": [f"{name} {word}" for word in "abcd"]} for name in NAMES}
    options = {"protocol": "gloria", "drawn_prompts": 2, "average_prompts": True}
    evaluator, _ = run(data, Words(), prompts(CLASSES, classes=extended), **options)
    for name in NAMES:
        values = np.array([averaged(data, i, evaluator.protocol["drawn"][name]) for i in range(data.n)])
        np.testing.assert_allclose(columns(evaluator)[name], (values - values.mean()) / values.std(), atol=2e-5)


def test_what_is_drawn_follows_from_the_seed(prompts):
    first, again, other = (ZeroShot("gloria", protocol="gloria", seed=seed).prompts for seed in (0, 0, 1))
    assert first == again
    assert first.hash not in (other.hash, load_prompts("gloria").hash)
    assert {len(entry.positive) for entry in first.entries} == {5}
    ten = ZeroShot("gloria", protocol="gloria", drawn_prompts=10).prompts
    assert {len(entry.positive) for entry in ten.entries} == {10}


class Counting:
    """Embeds texts, and counts how often each is embedded."""

    def __init__(self):
        self.asked = Counter()

    def __call__(self, texts):
        self.asked.update(texts)
        return embed_text(texts)


@pytest.mark.parametrize("name", list(PROTOCOLS))
def test_a_prompt_is_embedded_once_in_a_test(name, prompts):
    shared = {
        finding: sides | {"negative": ["nothing"]} for finding, sides in PAIRS.items()
    }  # one text of three findings
    options = {"drawn_prompts": 1} if name == "gloria" else {}
    counting, data = Counting(), Radiographs()
    embed = embed_once(counting)
    evaluators = [ZeroShot(prompts(findings=shared), protocol=name, resamples=0, **options) for _ in range(2)]
    for evaluator in evaluators:
        evaluator.start(embed, evaluating.FINDINGS)
    for batch, image, text in data.batches(range(data.n), 16):
        for evaluator in evaluators:
            evaluator.update(batch, image, text, Cosine())
    for evaluator in evaluators:
        evaluator.compute(Cosine())
    assert {"nothing", "Edema seen", "Mass seen", "Nodule seen"} < set(counting.asked)
    assert set(counting.asked.values()) == {1}
    # One evaluator by itself embeds no prompt twice either.
    alone = Counting()
    evaluators[0].start(alone, evaluating.FINDINGS)
    assert set(alone.asked.values()) == {1}


def test_embedding_once_gives_every_text_its_own_row():
    embed = embed_once(embed_text)
    embed(["a longer text", "b"])
    rows = embed(["b", "c d", "a longer text", "b"])
    for i, text in enumerate(["b", "c d", "a longer text", "b"]):
        expected = embed_text([text])
        assert torch.equal(rows.pooled[i], expected.pooled[0])
        assert torch.equal(rows.tokens[i][rows.mask[i]], expected.tokens[0])


# -- what is said, and refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(PROTOCOLS))
def test_results_say_which_protocol(name, prompts):
    options = {"drawn_prompts": 1} if name == "gloria" else {}
    evaluator, _ = run(Radiographs(), Cosine(), prompts(findings=PAIRS), protocol=name, **options)
    said = json.loads(json.dumps(evaluator.protocol))
    assert (said["protocol"], said["rule"], said["source"]) == (name, PROTOCOLS[name].rule, PROTOCOLS[name].source)
    assert ("transductive" in said) == (name == "gloria")
    assert evaluator.predictions.settings["protocol"] == name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": "clip"}, "protocol is 'clip'; known are diptych, chexzero, gloria, biovil, convirt"),
        (
            {"protocol": "biovil"},
            r"takes one prompt a side, and 'Edema' of prompt set 'test' has 2; .* average_prompts: true",
        ),
        ({"drawn_prompts": 5}, "drawn_prompts is 5, and protocol diptych draws none; leave it out, or take gloria"),
        ({"protocol": "gloria", "drawn_prompts": 0}, "drawn_prompts is 0; give 1 or more"),
        (
            {"protocol": "gloria"},
            r"5 prompts are to be drawn for 'Edema' of prompt set 'test', which has 2 \(positive\)",
        ),
    ],
)
def test_a_protocol_that_cannot_ask_says_why(options, message, prompts):
    with pytest.raises(ConfigError, match=message):
        ZeroShot(prompts(), **options)


@pytest.mark.parametrize("name", ["chexzero", "biovil"])
def test_pairs_are_not_asked_of_classes(name, prompts):
    with pytest.raises(ConfigError, match=f"protocol {name} asks for pairs, and prompt set 'which' has classes"):
        ZeroShot(prompts(CLASSES), protocol=name)


def test_shipped_sets_are_those_of_the_literature():
    chexzero = load_prompts("chexzero")
    assert len(chexzero.entries) == 14
    assert all((e.positive, e.negative) == ((e.name,), (f"no {e.name}",)) for e in chexzero.entries)
    gloria = {entry.name: entry.positive for entry in load_prompts("gloria").entries}
    sizes = {"Atelectasis": 3 * 7 * 10, "Cardiomegaly": 15, "Consolidation": 4 * 6 * 8, "Edema": 6 * 3}
    assert {name: len(texts) for name, texts in gloria.items()} == sizes | {"Pleural Effusion": 6 * 3 * 2}
    assert "mild subsegmental atelectasis at the mid lung zone" in gloria["Atelectasis"]
    assert "small left subpulmonic pleural effusion" in gloria["Pleural Effusion"]  # location before sub-type
    pair = load_prompts("biovil").entries[0]
    assert (pair.positive, pair.negative) == (("Findings suggesting pneumonia.",), ("No evidence of pneumonia.",))
    ZeroShot("chexzero", protocol="chexzero")
    ZeroShot("biovil", protocol="biovil")
    ZeroShot("biovil_four", protocol="biovil", average_prompts=True)
