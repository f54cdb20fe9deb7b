"""Intervals of figures of few patients: which one is given, its equation, and how often it holds."""

import math

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit, logit

from diptych.metrics.bootstrap import Metric, as_metrics, bootstrap_weights, figure_and_bootstrap, interval
from diptych.metrics.classification import binary_values
from diptych.metrics.delong import Spread, components, difference_interval, logit_interval
from diptych.metrics.few import intervals
from diptych.metrics.measures import auroc


def kernel(a, b):
    return float(a > b) + float(a == b) / 2


def plain_interval(scores, positive):
    """DeLong's variance pair by pair, one sample a patient, and Student's t on the logit scale."""
    above, below = scores[positive], scores[~positive]
    v10 = [np.mean([kernel(a, b) for b in below]) for a in above]
    v01 = [np.mean([kernel(a, b) for a in above]) for b in below]
    parts = np.var(v10, ddof=1) / len(above), np.var(v01, ddof=1) / len(below)
    area, variance = np.mean(v10), sum(parts)
    freedom = variance**2 / (parts[0] ** 2 / (len(above) - 1) + parts[1] ** 2 / (len(below) - 1))
    half = stats.t.ppf(0.975, freedom) * math.sqrt(variance) / (area * (1 - area))
    return expit(logit(area) - half), expit(logit(area) + half)


def spread(scores, positive, group):
    return Spread.of(components(scores, positive), positive, group, int(group.max()) + 1)


@pytest.mark.parametrize("seed", range(3))
def test_delongs_interval_is_that_of_a_plain_loop(seed):
    rng = np.random.default_rng(seed)
    positive = np.arange(50) < 7
    scores = np.round(rng.normal(size=50) + positive, 1)
    group = np.arange(50)
    ends = logit_interval([spread(scores, positive, group)])
    assert ends == pytest.approx(plain_interval(scores, positive))
    twice = logit_interval([spread(np.r_[scores, scores], np.r_[positive, positive], np.r_[group, group])])
    assert twice == pytest.approx(ends)  # each image twice tells nothing new of the patients
    assert logit_interval([spread(scores, positive, group)] * 3) == pytest.approx(ends)  # a mean of equals is no news
    assert logit_interval([spread(positive.astype(float), positive, group)]) is None


def plain_difference(ours, theirs, positive, level):
    """Zou's interval of a difference from the two intervals and the correlation, pair by pair, one sample a patient."""
    sides = []
    for scores in (ours, theirs):
        above, below = scores[positive], scores[~positive]
        v10 = np.array([np.mean([kernel(a, b) for b in below]) for a in above])
        v01 = np.array([np.mean([kernel(a, b) for a in above]) for b in below])
        parts = v10.var(ddof=1) / len(above), v01.var(ddof=1) / len(below)
        freedom = sum(parts) ** 2 / (parts[0] ** 2 / (len(above) - 1) + parts[1] ** 2 / (len(below) - 1))
        half = stats.t.ppf(1 - (1 - level) / 2, freedom) * math.sqrt(sum(parts)) / (v10.mean() * (1 - v10.mean()))
        ends = [expit(logit(v10.mean()) + sign * half) for sign in (-1, 1)]
        sides.append((v10.mean(), *ends, sum(parts), v10, v01))
    (a, l1, u1, var1, up1, down1), (b, l2, u2, var2, up2, down2) = sides
    shared = np.cov(up1, up2)[0, 1] / positive.sum() + np.cov(down1, down2)[0, 1] / (~positive).sum()
    r = shared / math.sqrt(var1 * var2)
    low = a - b - math.sqrt((a - l1) ** 2 + (u2 - b) ** 2 - 2 * r * (a - l1) * (u2 - b))
    high = a - b + math.sqrt((u1 - a) ** 2 + (b - l2) ** 2 - 2 * r * (u1 - a) * (b - l2))
    return low, high


@pytest.mark.parametrize("seed", range(3))
def test_the_interval_of_a_difference_is_that_of_a_plain_loop(seed):
    rng, positive, group = np.random.default_rng(seed), np.arange(50) < 7, np.arange(50)
    shared = rng.normal(size=50) + positive
    ours, theirs = (np.round(shared + skill * positive + rng.normal(size=50), 1) for skill in (1, 0))
    first, second = (spread(scores, positive, group) for scores in (ours, theirs))
    low, high, p = difference_interval([first], [second])
    assert (low, high) == pytest.approx(plain_difference(ours, theirs, positive, 0.95))
    assert (low > 0 or high < 0) == (p < 0.05)
    touching = plain_difference(ours, theirs, positive, 1 - p)  # at this confidence one end is zero
    assert min(map(abs, touching)) < 1e-9 < max(map(abs, touching))
    again = difference_interval([second], [first])
    assert again == pytest.approx((-high, -low, p))
    twice = np.r_[group, group]
    doubled = [spread(np.r_[s, s], np.r_[positive, positive], twice) for s in (ours, theirs)]
    assert difference_interval([doubled[0]], [doubled[1]]) == pytest.approx((low, high, p))
    assert difference_interval([first], [first]) is None
    assert difference_interval([first], [spread(positive.astype(float), positive, group)]) is None


def metrics(positives, seed=0, n=80, names=("Edema",)):
    rng = np.random.default_rng(seed)
    labels = np.stack([rng.permutation(n) < number for number in positives], axis=1).astype(float)
    scores = rng.normal(size=labels.shape) + labels
    group = np.arange(n)
    found = binary_values(
        names, scores, labels, figure_and_bootstrap(group, 50), group=group, probabilities=expit(scores)
    )
    return as_metrics(found.figures())


def test_the_number_of_patients_decides_which_interval_is_given():
    many, some, one = (metrics([number]) for number in (10, 9, 4))
    assert {metric.interval for metric in many.values()} == {""}
    assert not any(math.isnan(metric.low) for metric in many.values())
    for found, name in ((some, "DeLong"), (one, "too few")):
        assert found["auroc/Edema"].interval == found["auroc/macro"].interval == name
        for measure in ("f1", "auprc", "mcc", "balanced_accuracy", "sensitivity@spec0.9"):
            assert found[f"{measure}/Edema"].interval == found[f"{measure}/macro"].interval == "too few"
            assert math.isnan(found[f"{measure}/Edema"].low)
            assert not math.isnan(found[f"{measure}/Edema"].value)
        for measure in ("accuracy", "brier", "ece"):
            assert found[f"{measure}/Edema"].interval == ""
            assert found[f"{measure}/Edema"].low < found[f"{measure}/Edema"].high
    assert some["auroc/Edema"].low < some["auroc/Edema"].value < some["auroc/Edema"].high
    assert math.isnan(one["auroc/Edema"].low)
    negatives = metrics([74])
    assert negatives["auroc/Edema"].interval == "DeLong"
    both = metrics([40, 6], names=("Edema", "Mass"))
    assert [both[f"auroc/{name}"].interval for name in ("Edema", "Mass", "macro")] == ["", "DeLong", "DeLong"]
    assert both["auroc/macro"].low < both["auroc/macro"].value < both["auroc/macro"].high
    assert Metric.of(np.array([0.5]), 3).interval == ""  # without resamples none is asked for


def test_images_of_one_patient_are_one_patient():
    rng = np.random.default_rng(0)
    labels, scores = np.r_[np.ones(12), np.zeros(60)][:, None], rng.normal(size=(72, 1))
    group = np.r_[np.repeat(np.arange(4), 3), np.arange(4, 64)]
    found = binary_values(["Edema"], scores, labels, figure_and_bootstrap(group, 20), group=group)
    assert as_metrics(found.figures())["auroc/Edema"].interval == "too few"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("positives", "area", "least"), [(6, 0.75, 0.91), (9, 0.75, 0.92), (6, 0.85, 0.88), (9, 0.9, 0.86)]
)
def test_how_often_the_intervals_hold(positives, area, least):
    """DeLong's holds nearly as often as it says, and more often than the bootstrap that it replaces."""
    rng = np.random.default_rng(positives)
    shift, trials, group = math.sqrt(2) * stats.norm.ppf(area), 600, np.arange(150)
    positive = group < positives
    hits, instead, tested = 0, 0, 0
    for trial in range(trials):
        scores = rng.normal(size=150) + shift * positive
        instead_of = intervals({"Edema": spread(scores, positive, group)}, ["auroc"])["auroc"]["Edema"]
        low, high = interval(auroc(scores, positive, bootstrap_weights(group, 300, trial)))
        if instead_of.name == "DeLong":
            tested += 1
            hits += instead_of.low <= area <= instead_of.high
            instead += low <= area <= high
    assert tested > 0.97 * trials
    assert hits / tested > least
    assert hits > instead


@pytest.mark.slow
def test_how_often_the_interval_of_a_macro_holds():
    rng, hits, trials = np.random.default_rng(0), 0, 400
    for _ in range(trials):
        shared = rng.normal(size=150)
        spreads = []
        for positives in (6, 8, 60):
            positive = rng.permutation(150) < positives
            scores = (
                0.5 * shared + math.sqrt(0.75) * rng.normal(size=150) + math.sqrt(2) * stats.norm.ppf(0.8) * positive
            )
            spreads.append(spread(scores, positive, np.arange(150)))
        ends = logit_interval(spreads)
        hits += ends[0] <= 0.8 <= ends[1]
    assert 0.91 < hits / trials < 0.98


@pytest.mark.slow
@pytest.mark.parametrize("positives", [5, 9])
@pytest.mark.parametrize(("areas", "least"), [((0.8, 0.7), 0.92), ((0.9, 0.9), 0.91), ((0.95, 0.8), 0.9)])
def test_how_often_the_interval_of_a_difference_holds(positives, areas, least):
    """It holds nearly as often as it says, whether the models' scores are alike or not."""
    rng, group, trials = np.random.default_rng(positives), np.arange(100), 400
    positive = group < positives
    shifts = [math.sqrt(2) * stats.norm.ppf(area) for area in areas]
    for alike in (0.2, 0.8):
        hits, tested = 0, 0
        for _ in range(trials):
            shared = math.sqrt(alike) * rng.normal(size=100)
            sides = [shared + math.sqrt(1 - alike) * rng.normal(size=100) + shift * positive for shift in shifts]
            found = difference_interval(*([spread(scores, positive, group)] for scores in sides))
            if found is not None:
                tested += 1
                hits += found[0] <= areas[0] - areas[1] <= found[1]
        assert tested > 0.85 * trials
        assert least < hits / tested, alike


@pytest.mark.slow
def test_how_often_the_interval_of_a_difference_of_macros_holds():
    rng, hits, trials, group = np.random.default_rng(1), 0, 400, np.arange(100)
    for _ in range(trials):
        sides = [[], []]
        for positives in (6, 8, 50):
            positive, shared = rng.permutation(100) < positives, rng.normal(size=100)
            for side, area in zip(sides, (0.85, 0.75), strict=True):
                shift = math.sqrt(2) * stats.norm.ppf(area)
                side.append(spread((shared + rng.normal(size=100)) / math.sqrt(2) + shift * positive, positive, group))
        low, high, _ = difference_interval(*sides)
        hits += low <= 0.1 <= high
    assert 0.91 < hits / trials < 0.99
