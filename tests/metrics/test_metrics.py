import numpy as np
import pytest
import torch
import torchmetrics.functional.classification as reference
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

from diptych.metrics import bootstrap
from diptych.metrics import measures as metrics
from diptych.metrics.bootstrap import Metric


def case(seed, n=97, ties=True, positives=0.3):
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < positives).astype(int)
    labels[:2] = 0, 1
    scores = rng.normal(size=n) + labels
    return (np.round(scores, 1 if ties else 9)).astype(np.float32), labels


@pytest.mark.parametrize("ties", [True, False])
@pytest.mark.parametrize("positives", [0.02, 0.5, 0.97])
def test_auroc_equals_scikit_learn_and_torchmetrics(ties, positives):
    for seed in range(5):
        scores, labels = case(seed, ties=ties, positives=positives)
        (area,) = metrics.auroc(scores, labels)
        assert area == pytest.approx(roc_auc_score(labels, scores), abs=1e-6)
        other = reference.binary_auroc(torch.from_numpy(scores).sigmoid().double(), torch.from_numpy(labels))
        assert area == pytest.approx(float(other), abs=1e-6)


def test_auroc_is_the_chance_of_a_positive_above_a_negative():
    scores, labels = case(0)
    pairs = [1.0 if p > q else 0.5 if p == q else 0.0 for p in scores[labels == 1] for q in scores[labels == 0]]
    assert metrics.auroc(scores, labels)[0] == pytest.approx(np.mean(pairs), abs=1e-12)


def test_auroc_of_constant_scores_of_one_class_and_of_nan():
    labels = np.array([0, 1, 0, 1])
    assert metrics.auroc(np.zeros(4), labels)[0] == 0.5
    assert np.isnan(metrics.auroc(np.arange(4.0), np.ones(4))[0])
    assert np.isnan(metrics.auroc(np.array([0, 1, np.nan, 3]), labels)[0])
    assert np.isnan(metrics.auroc(np.zeros(0), np.zeros(0), np.zeros((3, 0)))).tolist() == [True] * 3


def test_auroc_reverses_with_the_sign_and_ignores_monotone_maps():
    scores, labels = case(1)
    (value,) = metrics.auroc(scores, labels)
    assert metrics.auroc(-scores, labels)[0] == pytest.approx(1 - value, abs=1e-12)
    assert metrics.auroc(np.exp(scores.astype(np.float64)), labels)[0] == value


def explicit(weights):
    """The samples that a row of weights stands for, each as often as it counts."""
    return [np.repeat(np.arange(weights.shape[1]), row) for row in weights.astype(int)]


def test_every_metric_on_weights_equals_a_loop_over_explicit_resamples(monkeypatch):
    scores, labels = case(2, n=61)
    rng = np.random.default_rng(0)
    ranks = rng.integers(1, 30, size=61)
    weights = bootstrap.bootstrap_weights(rng.integers(0, 20, size=61), 50, seed=3)
    predicted = scores > 0.5
    twins = {
        "auroc": ([roc_auc_score(labels[i], scores[i]) for i in explicit(weights)], (scores, labels)),
        "accuracy": ([accuracy_score(labels[i], predicted[i]) for i in explicit(weights)], (predicted, labels)),
        "f1": ([f1_score(labels[i], predicted[i]) for i in explicit(weights)], (predicted, labels)),
        "recall_at": ([np.mean(ranks[i] <= 5) for i in explicit(weights)], (ranks, 5)),
        "median_rank": ([np.median(ranks[i]) for i in explicit(weights)], (ranks,)),
    }
    for block in (metrics._BLOCK, 200):  # all rows at once, and three at a time
        monkeypatch.setattr(metrics, "_BLOCK", block)
        for name, (expected, arguments) in twins.items():
            values = getattr(metrics, name)(*arguments, weights)
            np.testing.assert_allclose(values, expected, atol=1e-12, err_msg=name)
    low, high = bootstrap.interval(np.array(twins["auroc"][0]))
    assert (low, high) == pytest.approx(tuple(np.percentile(twins["auroc"][0], [2.5, 97.5])))


def test_resampling_draws_whole_patients():
    group = np.array([7, 7, 7, 2, 2, 9, 4, 4, 4, 4])
    weights = bootstrap.bootstrap_weights(group, 4000, seed=1).astype(int)
    patients = np.array([weights[:, group == g][:, 0] for g in (2, 4, 7, 9)])
    for g, times in zip((2, 4, 7, 9), patients, strict=True):
        assert (weights[:, group == g] == times[:, None]).all()  # images of a patient go together
    assert (patients.sum(axis=0) == 4).all()  # as many as there are
    np.testing.assert_allclose(patients.mean(axis=1), 1.0, atol=0.06)
    np.testing.assert_allclose(patients.var(axis=1), 0.75, atol=0.08)  # binomial of 4 draws at 1/4


def test_resampling_depends_on_the_seed_and_not_on_the_order():
    group = np.random.default_rng(0).integers(0, 15, size=40)
    weights = bootstrap.bootstrap_weights(group, 20, seed=5)
    order = np.random.default_rng(1).permutation(40)
    np.testing.assert_array_equal(bootstrap.bootstrap_weights(group[order], 20, seed=5), weights[:, order])
    assert (bootstrap.bootstrap_weights(group, 20, seed=6) != weights).any()


def test_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        correct = rng.random(150) < 0.7
        values = metrics.accuracy(correct, np.ones(150), bootstrap.bootstrap_weights(np.arange(150), 200, trial))
        low, high = bootstrap.interval(values)
        hits += low <= 0.7 <= high
    assert 0.88 <= hits / 200 <= 0.99


def test_interval_leaves_undefined_resamples_out():
    assert bootstrap.interval(np.array([np.nan, 2.0, np.nan, 2.0])) == (2.0, 2.0)
    assert np.isnan(bootstrap.interval(np.zeros(0))).all()
    assert Metric.of(np.array([0.5, 0.4, 0.4]), 3) == Metric(0.5, 0.4, 0.4, 3)


def test_f1_of_classes_equals_scikit_learn():
    rng = np.random.default_rng(0)
    real, predicted = rng.integers(0, 5, 83), rng.integers(0, 5, 83)
    each = [metrics.f1(predicted == c, real == c)[0] for c in range(5)]
    np.testing.assert_allclose(each, f1_score(real, predicted, average=None), atol=1e-12)
    assert np.mean(each) == pytest.approx(f1_score(real, predicted, average="macro"), abs=1e-12)
    other = reference.multiclass_f1_score(torch.from_numpy(predicted), torch.from_numpy(real), 5, average="macro")
    assert np.mean(each) == pytest.approx(float(other), abs=1e-6)
    assert np.isnan(metrics.f1(np.zeros(3), np.zeros(3))[0])


def test_top_class_refuses_ties_and_nan():
    scores = np.array([[0, 2, 1], [3, 3, 1], [1, np.nan, 0], [5, 1, 1]], dtype=float)
    assert metrics.top_class(scores).tolist() == [1, -1, -1, 0]
    assert metrics.top_class(np.zeros((0, 3))).tolist() == []


def test_median_rank_of_an_even_and_an_odd_number():
    assert metrics.median_rank(np.array([4, 1, 2, 9]))[0] == 3.0
    assert metrics.median_rank(np.array([4, 1, 9]))[0] == 4.0
    medians = metrics.median_rank(np.array([4, 1]), np.array([[0, 0], [0, 1], [3, 1]]))
    np.testing.assert_array_equal(medians, [np.nan, 1.0, 4.0])
