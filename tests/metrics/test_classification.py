"""Figures of binary and multi-class classification, against scikit-learn, torchmetrics and loops."""

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torchmetrics.functional.classification import binary_calibration_error

from diptych.metrics import bootstrap
from diptych.metrics.classification import binary_values, class_values
from diptych.metrics.curves import brier, calibration_error, curve_figures, pr_points, reliability, roc_points
from diptych.metrics.decisions import best_threshold, decision_figures, thresholds_of


def case(seed, n=60, ties=True):
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.3).astype(int)
    scores = rng.normal(size=n) + labels
    return (
        np.round(scores, 1) if ties else scores,
        labels,
        bootstrap.bootstrap_weights(rng.integers(0, n // 2, n), 12, seed),
    )


def drawn(weights):
    """The rows of each resample, one by one."""
    return [np.repeat(np.arange(weights.shape[1]), row) for row in weights]


def sensitivity_at(labels, scores, least):
    """The best sensitivity over all thresholds with a specificity of at least ``least``, threshold by threshold."""
    best = 0.0
    for t in [*np.unique(scores), np.inf]:
        told = scores >= t
        if np.mean(~told[labels == 0]) >= least - 1e-12:
            best = max(best, np.mean(told[labels == 1]))
    return best


def specificity_at(labels, scores, least):
    values = [
        np.mean(scores[labels == 0] < t)
        for t in np.unique(scores)
        if np.mean(scores[labels == 1] >= t) >= least - 1e-12
    ]
    return max(values)


@pytest.mark.parametrize("seed", range(3))
def test_figures_of_the_curve_equal_scikit_learn_in_every_resample(seed):
    scores, labels, weights = case(seed)
    for at in (0.9, 0.5):
        ours = curve_figures(scores, labels, weights, at)
        twins = {
            "auroc": sk.roc_auc_score,
            "auprc": sk.average_precision_score,
            f"sensitivity@spec{at}": lambda y, s, at=at: sensitivity_at(y, s, at),
            f"specificity@sens{at}": lambda y, s, at=at: specificity_at(y, s, at),
        }
        assert list(ours) == list(twins)
        for name, twin in twins.items():
            np.testing.assert_allclose(
                ours[name], [twin(labels[i], scores[i]) for i in drawn(weights)], atol=1e-12, err_msg=name
            )
    broken = curve_figures(np.where(np.arange(60) == 3, np.nan, scores), labels, weights)
    assert all(np.isnan(values).all() and len(values) == 12 for values in broken.values())
    none = curve_figures(scores, labels, np.where(labels == 1, 0, 1)[None])
    assert all(np.isnan(values).all() for values in none.values())


@pytest.mark.parametrize("seed", range(3))
def test_figures_of_decisions_equal_scikit_learn_in_every_resample(seed):
    scores, labels, weights = case(seed)
    told = scores > 0.5
    ours = decision_figures(told, labels, weights)
    twins = {
        "sensitivity": sk.recall_score,
        "specificity": lambda y, p: sk.recall_score(y, p, pos_label=0),
        "balanced_accuracy": sk.balanced_accuracy_score,
        "mcc": sk.matthews_corrcoef,
    }
    for name, twin in twins.items():
        np.testing.assert_allclose(
            ours[name], [twin(labels[i], told[i]) for i in drawn(weights)], atol=1e-12, err_msg=name
        )
    assert decision_figures(np.ones(60, bool), labels)["mcc"][0] == 0
    assert np.isnan(decision_figures(told, np.ones(60))["mcc"][0])


@pytest.mark.parametrize("seed", range(3))
def test_probabilities_are_scored_as_by_scikit_learn_and_torchmetrics(seed):
    scores, labels, weights = case(seed, n=200, ties=False)
    p = 1 / (1 + np.exp(-scores))
    p[0] = 0
    rows = drawn(weights)
    np.testing.assert_allclose(
        brier(p, labels, weights), [sk.brier_score_loss(labels[i], p[i]) for i in rows], atol=1e-12
    )
    twins = [binary_calibration_error(torch.from_numpy(p[i]), torch.from_numpy(labels[i]), n_bins=15) for i in rows]
    np.testing.assert_allclose(calibration_error(p, labels, weights), [float(t) for t in twins], atol=1e-6)
    assert np.isnan(calibration_error(np.array([np.nan]), np.ones(1)))
    assert calibration_error(np.array([1.0, 0.95]), np.array([1, 0]))[0] == pytest.approx(0.475)  # one bin, the last
    bins = reliability(p, labels)
    assert bins[:, 2].sum() == 200
    assert float(bins[:, 2] @ np.abs(bins[:, 0] - bins[:, 1]) / 200) == pytest.approx(calibration_error(p, labels)[0])


def test_curves_have_the_area_of_their_figures():
    scores, labels, _ = case(5)
    figures, roc, pr = curve_figures(scores, labels), roc_points(scores, labels), pr_points(scores, labels)
    assert np.trapezoid(roc[:, 1], roc[:, 0]) == pytest.approx(figures["auroc"][0], abs=1e-12)
    assert np.diff(pr[:, 0], prepend=0) @ pr[:, 1] == pytest.approx(figures["auprc"][0], abs=1e-12)
    assert roc[0].tolist() == [0, 0]
    assert roc[-1].tolist() == [1, 1]


@pytest.mark.parametrize("by", ["f1", "youden", "mcc"])
@pytest.mark.parametrize("seed", range(3))
def test_a_threshold_is_the_best_of_all(seed, by):
    scores, labels, _ = case(seed, n=40)
    value = {
        "f1": sk.f1_score,
        "youden": lambda y, p: 2 * sk.balanced_accuracy_score(y, p) - 1,
        "mcc": sk.matthews_corrcoef,
    }[by]
    tried = {float(t): value(labels, scores >= t) for t in np.unique(scores)}
    threshold = best_threshold(scores, labels, by)
    best = max(tried.values())
    assert tried[threshold] == pytest.approx(best, abs=1e-12)
    assert threshold == max(t for t, found in tried.items() if found == pytest.approx(best, abs=1e-12))


def test_thresholds_of_val_decide_and_a_finding_without_one_has_no_decisions():
    rng = np.random.default_rng(0)
    names, scores = ["Edema", "Mass"], rng.normal(size=(80, 2))
    labels = (rng.random((80, 2)) < 0.4).astype(float)
    labels[::7] = -1
    val_labels = np.stack([labels[:, 0], np.zeros(80)], axis=1)  # no Mass on val
    chosen = thresholds_of(names, scores, val_labels, "youden")
    assert chosen["Mass"] is None
    found = binary_values(names, scores, labels, np.ones((1, 80)), "val_youden", chosen=chosen)
    known = labels[:, 0] >= 0
    told = scores[known, 0] >= chosen["Edema"]
    assert found.values["mcc"]["Edema"][0] == pytest.approx(sk.matthews_corrcoef(labels[known, 0], told), abs=1e-12)
    assert found.values["f1"]["Edema"][0] == pytest.approx(sk.f1_score(labels[known, 0], told), abs=1e-12)
    assert list(found.values["f1"]) == ["Edema"]
    assert list(found.values["auroc"]) == names
    assert found.facts["threshold"] == "best Youden index on val"
    assert found.facts["thresholds"] == chosen
    assert "brier" not in found.values
    with_p = binary_values(names, scores, labels, np.ones((1, 80)), probabilities=1 / (1 + np.exp(-scores)))
    assert {"brier", "ece"} <= with_p.values.keys()


def test_several_classes_have_the_figures_of_scikit_learn():
    rng = np.random.default_rng(2)
    true, scores = rng.integers(0, 4, 90), rng.normal(size=(90, 4))
    scores[np.arange(90), true] += 1
    labels, weights = np.eye(4)[true], bootstrap.bootstrap_weights(np.arange(90), 10)
    figures, _ = class_values("abcd", scores, labels, weights)
    told = scores.argmax(axis=1)
    for name, twin in (("balanced_accuracy", sk.balanced_accuracy_score), ("mcc", sk.matthews_corrcoef)):
        np.testing.assert_allclose(figures[name].values, [twin(true[i], told[i]) for i in drawn(weights)], atol=1e-12)
    expected = [sk.average_precision_score(true[i] == 1, scores[i, 1]) for i in drawn(weights)]
    np.testing.assert_allclose(figures["auprc/b"].values, expected, atol=1e-12)
