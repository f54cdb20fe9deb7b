"""The evaluators against scikit-learn and plain loops, on one process and on several."""

import json
import math
from dataclasses import astuple

import evaluating
import numpy as np
import pytest
import torch
from evaluating import (
    CLASSES,
    FINDINGS,
    PROMPTS,
    WIDTH,
    Constant,
    Copies,
    Cosine,
    Radiographs,
    Words,
    embed_text,
    evaluate,
)
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

from diptych.errors import ConfigError, DataError
from diptych.evaluation import scoring
from diptych.evaluation.retrieval import Retrieval
from diptych.evaluation.rows import stack
from diptych.evaluation.zero_shot import ZeroShot, _any
from diptych.types import Embedding


@pytest.fixture
def prompts(tmp_path):
    return lambda content=PROMPTS, **changed: evaluating.write_prompts(tmp_path, content, **changed)


# -- processes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shares",
    [
        [range(0, 83, 2), range(1, 83, 2)],
        [[*range(70, 83), *range(20)], range(20, 70)],
        [range(83), []],  # a set with fewer samples than processes
        [range(0, 60, 2), range(60, 83), [7], [i for i in range(1, 60, 2) if i != 7]],
    ],
    ids=["interleaved", "uneven", "empty", "four"],
)
def test_several_processes_equal_one(shares, processes, tmp_path):
    path = evaluating.write_prompts(tmp_path)
    (tmp_path / "classes").mkdir()
    classes = evaluating.write_prompts(tmp_path / "classes", CLASSES)
    expected = evaluating.task_evaluate(path, classes, [range(83)], [16])
    shares = [list(share) for share in shares]
    for answers in processes.run(len(shares), evaluating.task_evaluate, path, classes, shares, [8, 5, 3, 11]):
        for i, ((metrics, count, protocol), one) in enumerate(zip(answers, expected, strict=True)):
            assert count == one[1] == 83
            assert list(metrics) == list(one[0]), i
            for name, metric in metrics.items():  # an end that is not a number equals itself here
                np.testing.assert_equal(astuple(metric), astuple(one[0][name]), err_msg=name)
            assert protocol == one[2]


def test_a_sample_counted_on_two_processes_is_refused(gloo2):
    with pytest.raises(
        pytest.fail.Exception, match=r"1 samples were counted more than once \(the first has index 30\)"
    ):
        gloo2(evaluating.task_count_twice, [list(range(31)), list(range(30, 83))])


def test_ties_are_told_by_the_largest_score_of_all_processes(gloo2):
    near = ([0], [[1.0, 1 - 1e-5]])
    assert gloo2(evaluating.task_ranks, [near, ([1], [[-100.0, 0.0]])]) == [
        [[2], [1, 2], [[0, 1]]],
        [[1], [1, 2], [[1, 0]]],
    ]
    assert gloo2(evaluating.task_ranks, [near, ([1], [[-1.0, 0.0]])]) == [
        [[1], [1, 2], [[0, 1]]],
        [[1], [1, 2], [[1, 0]]],
    ]


# -- retrieval ----------------------------------------------------------------------------------------------------------


def plain_ranks(data, head):
    """Ranks of every image and of every different text, by loops over the whole score matrix."""
    with torch.no_grad():
        scores = head.similarity(data.image(range(data.n)), embed_text(data.texts)).double()
    slack = 1e-6 * scores.abs().max()
    first = {text: data.texts.index(text) for text in data.texts}
    image_ranks = [
        1 + sum(not scores[i, j] < scores[i, first[text]] - slack for t, j in first.items() if t != text)
        for i, text in enumerate(data.texts)
    ]
    text_ranks = {}
    for text, j in first.items():
        best = max(scores[i, j] for i in range(data.n) if data.texts[i] == text)
        text_ranks[text] = 1 + sum(not scores[i, j] < best - slack for i in range(data.n) if data.texts[i] != text)
    return np.array(image_ranks), np.array(list(text_ranks.values()))


@pytest.mark.parametrize("head", [Cosine(), Words()], ids=["pooled", "tokens"])
def test_retrieval_equals_a_plain_loop(head):
    data = Radiographs()
    metrics = evaluate(Retrieval(resamples=20), data, head)
    image_ranks, text_ranks = plain_ranks(data, head)
    assert 1 < np.median(image_ranks) < 20  # neither perfect nor chance
    for side, ranks in (("image_to_text", image_ranks), ("text_to_image", text_ranks)):
        for k in (1, 5, 10):
            assert metrics[f"{side}/r@{k}"].value == pytest.approx(np.mean(ranks <= k), abs=1e-12)
        assert metrics[f"{side}/median_rank"].value == np.median(ranks)
        assert metrics[f"{side}/r@1"].n == len(ranks)
    assert len(text_ranks) == len(set(data.texts)) < data.n == len(image_ranks)
    assert metrics["r@5"].value == pytest.approx((np.mean(image_ranks <= 5) + np.mean(text_ranks <= 5)) / 2, abs=1e-12)


@pytest.mark.parametrize("head", [Cosine(), Words()], ids=["pooled", "tokens"])
def test_retrieval_does_not_depend_on_order_batch_size_blocks_or_what_is_kept(head):
    data = Radiographs()
    expected = evaluate(Retrieval(resamples=50), data, head)
    order = np.random.default_rng(1).permutation(data.n).tolist()
    for size in (1, 7, 83):
        assert evaluate(Retrieval(resamples=50), data, head, rows=order, size=size) == expected
    assert evaluate(Retrieval(resamples=50, keep_bytes=0), data, head, rows=order, size=10, fill=3) == expected


def test_rows_that_only_fill_up_are_not_counted(prompts):
    data = Radiographs()
    for make in (lambda: Retrieval(resamples=10), lambda: ZeroShot(prompts(), resamples=10)):
        plain, filled = make(), make()
        assert evaluate(plain, data, Cosine()) == evaluate(filled, data, Cosine(), fill=5)
        assert plain.count == filled.count == data.n


@pytest.mark.parametrize("head", [Constant(), Copies()], ids=["constant", "collapsed"])
@pytest.mark.parametrize("size", [16, 83])
def test_constant_scores_are_the_worst(head, size):
    data = Radiographs()
    metrics = evaluate(Retrieval(resamples=0), data, head, size=size)
    assert metrics["r@10"].value == 0
    assert metrics["image_to_text/median_rank"].value == len(set(data.texts))
    assert metrics["text_to_image/median_rank"].value > 0.9 * data.n


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_scores_that_are_no_numbers_are_the_worst(value, prompts):
    head, data = Constant(), Radiographs()
    head.value = value
    metrics = evaluate(Retrieval(resamples=0), data, head)
    assert metrics["r@10"].value == 0
    metrics = evaluate(ZeroShot(prompts(), resamples=0), data, head)
    assert all(math.isnan(metric.value) for metric in metrics.values())


def test_an_image_without_a_score_loses_against_all_and_counts_against_all():
    nan, scores = math.nan, torch.eye(3)
    scores[1] = nan
    block = [(torch.arange(3), scores)]
    image_ranks, text_ranks, _ = scoring.ranks(block, block, 3, torch.device("cpu"))
    assert image_ranks.tolist() == [1, 3, 1]
    assert text_ranks.tolist() == [2, 3, 2]


def test_equal_texts_are_one_candidate_and_none_is_a_wrong_answer():
    data = Radiographs(n=6, reports=1)
    data.texts = ["a", "a", "a", "b", "b", "c"]
    data.regions = embed_text(data.texts).pooled[:, None].expand(-1, 5, -1).clone()
    data.regions[1] *= -1  # the worst image of "a", which has better ones
    metrics = evaluate(Retrieval(ks=(1,), resamples=0), data, Cosine())
    assert metrics["text_to_image/r@1"].value == 1
    assert metrics["image_to_text/r@1"].value == pytest.approx(5 / 6)
    assert (metrics["image_to_text/r@1"].n, metrics["text_to_image/r@1"].n) == (6, 3)


def test_interval_of_retrieval_equals_explicit_resampling_of_patients():
    data, evaluator = Radiographs(), Retrieval(resamples=200, seed=4)
    metrics = evaluate(evaluator, data, Cosine())
    image_ranks, text_ranks = plain_ranks(data, Cosine())
    firsts = [data.texts.index(text) for text in dict.fromkeys(data.texts)]
    group, rng, values = data.group.numpy(), np.random.default_rng(4), []
    names = np.unique(group)
    for _ in range(200):
        sample = names[rng.integers(len(names), size=len(names))]
        images = [i for g in sample for i in np.flatnonzero(group == g)]
        texts = [t for g in sample for t in range(len(firsts)) if group[firsts[t]] == g]
        values.append([np.mean(image_ranks[images] <= 5), np.mean(text_ranks[texts] <= 5)])
    for name, column in (
        ("image_to_text/r@5", np.array(values)[:, 0]),
        ("text_to_image/r@5", np.array(values)[:, 1]),
        ("r@5", np.mean(values, axis=1)),
    ):
        expected = np.percentile(column, [2.5, 97.5])
        np.testing.assert_allclose((metrics[name].low, metrics[name].high), expected, atol=1e-12)
        assert metrics[name].low < metrics[name].value < metrics[name].high


def test_a_sample_counted_twice_is_refused():
    data = Radiographs()
    with pytest.raises(DataError, match=r"2 samples were counted more than once \(the first has index 3\)"):
        evaluate(Retrieval(), data, Cosine(), rows=[*range(data.n), 3, 9])


def test_a_set_without_reports_or_labels_is_skipped_and_says_so(prompts):
    data, evaluator = Radiographs(), Retrieval()
    assert evaluate(evaluator, data, Cosine(), texts=False) == {}
    assert (evaluator.protocol["skipped"], evaluator.count) == ("the data set has no reports", data.n)
    evaluator = ZeroShot(prompts())
    assert evaluate(evaluator, data, Cosine(), findings=(), labels=False) == {}
    assert (evaluator.protocol["skipped"], evaluator.count) == ("the data set has no labels", data.n)
    with pytest.raises(DataError, match="hold no labels"):
        evaluate(evaluator, data, Cosine(), labels=False)


def test_a_second_pass_forgets_the_first(prompts):
    data = Radiographs()
    for evaluator in (Retrieval(resamples=10), ZeroShot(prompts(), resamples=10)):
        first = evaluate(evaluator, data, Cosine(), rows=range(40))
        assert evaluator.count == 40
        assert evaluate(evaluator, data, Cosine()) != first
        assert evaluate(evaluator, data, Cosine(), rows=range(40)) == first


def test_one_patient_and_no_resamples_give_no_interval():
    data = Radiographs()
    assert math.isnan(evaluate(Retrieval(resamples=0), data, Cosine())["r@5"].low)
    data.group[:] = 1
    recall = evaluate(Retrieval(), data, Cosine())["r@5"]
    assert math.isnan(recall.low)
    assert recall.value > 0


def test_stack_pads_to_the_longest():
    parts = [embed_text(["a"]), embed_text(["a b c", "d"])]
    joined = stack(parts)
    assert joined.tokens.shape == (3, 4, WIDTH)
    assert joined.mask.sum(dim=1).tolist() == [2, 4, 2]
    assert torch.equal(joined.tokens[0, :2], parts[0].tokens[0])
    assert not joined.tokens[0, 2:].any()


def test_a_score_does_not_depend_on_the_images_beside_it():
    torch.manual_seed(0)
    images, texts = Embedding(torch.randn(70, 384)), Embedding(torch.randn(300, 384))
    whole = torch.cat([s for _, s in scoring.blocks(Cosine(), images, texts, torch.device("cpu"))])
    torch.testing.assert_close(whole, 10 * images.pooled @ texts.pooled.T)
    for n in (1, 31, 33, 64):
        part = torch.cat(
            [s for _, s in scoring.blocks(Cosine(), images.select(torch.arange(n)), texts, torch.device("cpu"))]
        )
        assert torch.equal(part, whole[:n])


# -- zero-shot ----------------------------------------------------------------------------------------------------------


def plain_scores(data, head, findings):
    """Score of every image for every finding of ``PROMPTS``, one prompt at a time."""
    scores = {}
    for name in findings:
        means = {}
        for side in ("positive", "negative"):
            each = [
                head.similarity(data.image(range(data.n)), embed_text([p])) for p in PROMPTS["findings"][name][side]
            ]
            means[side] = torch.cat(each, dim=1).double().mean(dim=1)
        scores[name] = (means["positive"] - means["negative"]).float().numpy()
    return scores


@pytest.mark.parametrize("threshold", ["zero", "best_f1"])
@pytest.mark.parametrize("head", [Cosine(), Words()], ids=["pooled", "tokens"])
def test_zero_shot_equals_scikit_learn_on_all(head, threshold, prompts):
    data, evaluator = Radiographs(), ZeroShot(prompts(), threshold=threshold, resamples=30)
    metrics = evaluate(evaluator, data, head, size=10)  # 83 samples: an odd last batch
    names = ["Edema", "Mass", "Nodule", "Abnormal"]
    labels = dict(zip(FINDINGS, data.labels.numpy().T, strict=True))
    three = np.stack([labels[name] for name in names[:3]])
    labels["Abnormal"] = np.where((three == 1).any(axis=0), 1, np.where((three == 0).all(axis=0), 0, np.nan))
    values = {"auroc": [], "accuracy": [], "f1": []}
    for name, score in plain_scores(data, head, names).items():
        known = np.isin(labels[name], (0, 1))
        real, score = labels[name][known], score[known]
        predicted = score > 0
        if threshold == "best_f1":
            predicted = max((score >= t for t in sorted(score, reverse=True)), key=lambda p: f1_score(real, p))
        expected = {
            "auroc": roc_auc_score(real, score),
            "accuracy": accuracy_score(real, predicted),
            "f1": f1_score(real, predicted),
        }
        for measure, value in expected.items():
            assert metrics[f"{measure}/{name}"].value == pytest.approx(value, abs=1e-6), (measure, name)
            assert metrics[f"{measure}/{name}"].n == known.sum() < data.n
            values[measure].append(value)
    for measure, each in values.items():
        assert metrics[f"{measure}/macro"].value == pytest.approx(np.mean(each), abs=1e-6)
        macro = metrics[f"{measure}/macro"]
        if measure == "f1":  # few patients have a nodule
            assert (macro.interval, math.isnan(macro.low)) == ("too few", True)
        else:
            assert macro.low < np.mean(each) < macro.high
    assert set(metrics) >= {f"{measure}/{name}" for measure in values for name in [*names, "macro"]}


def test_protocol_says_what_was_done(prompts):
    data, evaluator = Radiographs(), ZeroShot(prompts(), threshold="best_f1", resamples=30)
    evaluate(evaluator, data, Cosine())
    protocol = json.loads(json.dumps(evaluator.protocol))
    label = data.labels[:, 0]
    assert protocol["samples"] == data.n
    assert protocol["prompts"] == "test 1"
    assert protocol["prompts_hash"] == evaluator.prompts.hash
    assert protocol["threshold"] == "best F1 on the evaluated split itself"
    assert set(protocol["thresholds"]) == {"Edema", "Mass", "Nodule", "Abnormal"}
    assert protocol["not_labelled"] == ["Fracture"]
    assert protocol["any_of"] == {"Abnormal": ["Edema", "Mass", "Nodule"]}
    assert protocol["excluded"]["Edema"] == {"uncertain": int((label == -1).sum()), "missing": int(label.isnan().sum())}
    assert protocol["absent"] == {"Hernia": {"positive": 0, "negative": int((data.labels[:, 3] == 0).sum())}}
    assert "30 resamples" in protocol["interval"]
    evaluator = Retrieval(resamples=0)
    evaluate(evaluator, data, Cosine())
    assert json.loads(json.dumps(evaluator.protocol))["texts"] == len(set(data.texts))


@pytest.mark.parametrize("options", [{}, {"protocol": "chexzero"}, {"protocol": "gloria", "drawn_prompts": 1}])
def test_zero_shot_does_not_depend_on_order_or_batch_size(options, prompts):
    data = Radiographs()
    expected = evaluate(ZeroShot(prompts(), resamples=20, **options), data, Words())
    order = np.random.default_rng(1).permutation(data.n).tolist()
    for size in (1, 7, 83):
        assert evaluate(ZeroShot(prompts(), resamples=20, **options), data, Words(), rows=order, size=size) == expected


def test_constant_scores_are_chance(prompts):
    metrics = evaluate(ZeroShot(prompts(), resamples=0), Radiographs(), Constant())
    assert metrics["auroc/macro"].value == 0.5
    assert metrics["f1/macro"].value == 0


def test_a_set_with_every_finding_absent_has_no_macro(prompts):
    data, evaluator = Radiographs(), ZeroShot(prompts())
    data.labels[:] = 0
    metrics = evaluate(evaluator, data, Cosine())
    assert math.isnan(metrics["auroc/macro"].value)
    assert list(metrics) == ["auroc/macro", "accuracy/macro", "f1/macro"]
    assert set(evaluator.protocol["absent"]) == {*FINDINGS, "Abnormal"}


def test_any_of_labels():
    nan = math.nan
    labels = torch.tensor([[1, nan], [0, 0], [0, -1], [nan, -1], [0, nan], [1, -1]])
    torch.testing.assert_close(_any(labels), torch.tensor([1, 0, -1, -1, nan, 1]), equal_nan=True)


def test_multiclass_equals_scikit_learn(prompts):
    data, evaluator = Radiographs(n=140), ZeroShot(prompts(CLASSES), resamples=30)
    metrics = evaluate(evaluator, data, Cosine(), size=9)
    names = list(CLASSES["classes"])
    labels = data.labels[:, :3].numpy()
    single = (labels == 1).sum(axis=1) == 1
    real = (labels[single] == 1).argmax(axis=1)
    texts = [
        ["edema here", "edema is seen"],
        ["mass", "mass on the left", "small mass", "small mass on the left"],
        ["nodule"],
    ]
    columns = [Cosine().similarity(data.image(range(data.n)), embed_text(t)).double().mean(dim=1) for t in texts]
    scores = torch.stack(columns, dim=1).float().numpy()[single]
    predicted = scores.argmax(axis=1)
    assert metrics["accuracy"].value == pytest.approx(accuracy_score(real, predicted), abs=1e-6)
    assert metrics["accuracy"].n == single.sum() < data.n
    assert metrics["f1/macro"].value == pytest.approx(f1_score(real, predicted, average="macro"), abs=1e-6)
    for i, name in enumerate(names):
        assert metrics[f"auroc/{name}"].value == pytest.approx(roc_auc_score(real == i, scores[:, i]), abs=1e-6)
    assert evaluator.protocol["excluded"] == {"none of the classes or several": int((~single).sum())}
    metrics = evaluate(ZeroShot(prompts(CLASSES), resamples=0), data, Constant())
    assert metrics["accuracy"].value == 0  # a tie is no answer


def test_prompts_for_other_findings_are_refused(prompts):
    with pytest.raises(ConfigError, match=r"asks for Edema, Mass, .*Fracture; the data set labels Cat, Dog"):
        evaluate(ZeroShot(prompts()), Radiographs(), Cosine(), findings=("Cat", "Dog"))
    with pytest.raises(ConfigError, match=r"asks for Edema, Mass, Nodule; the data set labels Edema, Mass;"):
        evaluate(ZeroShot(prompts(CLASSES)), Radiographs(), Cosine(), findings=("Edema", "Mass"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Retrieval(ks=()), "at least one cut-off"),
        (lambda: Retrieval(ks=(0,)), "each 1 or more"),
        (lambda: Retrieval(resamples=-1), "resamples is -1"),
        (lambda: Retrieval(duplicates="merged"), "retrieval: duplicates is 'merged'; choose among: folded, kept"),
    ],
)
def test_arguments_are_checked(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
