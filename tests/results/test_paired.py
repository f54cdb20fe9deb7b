"""Paired differences against scipy and plain loops."""

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from diptych.errors import DataError
from diptych.metrics import few
from diptych.metrics.delong import Spread, components, difference_interval
from diptych.predictions.base import Predictions, named
from diptych.predictions.reading import Tested
from diptych.results.paired import holm, over_seeds, over_studies


def test_over_seeds_is_the_paired_t_test():
    rng = np.random.default_rng(0)
    for n in (2, 3, 5, 8):
        shared = rng.normal(0.5, 0.3, n)  # seeds differ much, and variants little
        ours, theirs = shared + rng.normal(0.05, 0.02, n), shared + rng.normal(0, 0.02, n)
        found, test = over_seeds(ours, theirs), stats.ttest_rel(ours, theirs)
        assert (found.p, found.seeds) == (pytest.approx(test.pvalue), n)
        assert (found.low, found.high) == pytest.approx(tuple(test.confidence_interval(0.95)))
        assert found.difference == pytest.approx(np.mean(ours - theirs))


def test_over_seeds_without_spread_or_values():
    assert over_seeds([0.5, 0.7], [0.5, 0.7]).p == 1
    constant = over_seeds([0.5, 0.75], [0.25, 0.5])
    assert (constant.p, constant.low, constant.high) == (0, 0.25, 0.25)
    single = over_seeds([0.5], [0.25])
    assert (single.difference, single.seeds) == (0.25, 1)
    assert math.isnan(single.low)
    assert math.isnan(single.p)
    assert math.isnan(over_seeds([0.5, math.nan], [0.2, 0.1]).difference)


def test_holm_rejects_as_the_step_down_procedure_does():
    """Step by step: the smallest p against alpha / m, the next against alpha / (m - 1), until one is not below."""
    rng = np.random.default_rng(1)
    for _ in range(40):
        p = (rng.random(int(rng.integers(1, 9))) ** 3).tolist()
        corrected = holm(p)
        for alpha in (0.01, 0.05, 0.2, 0.6):
            rejected, left = set(), sorted(range(len(p)), key=lambda i: p[i])
            while left and p[left[0]] <= alpha / len(left):
                rejected.add(left.pop(0))
            assert {i for i, value in enumerate(corrected) if value <= alpha} == rejected
    assert holm([]) == []
    with_none = holm([0.02, math.nan, 0.5])
    assert with_none[::2] == [0.04, 0.5]
    assert math.isnan(with_none[1])


PATIENTS = np.array([0, 0, 1, 2, 3, 3, 3, 4, 5, 6, 7, 8, 9, 9])
FIRST = np.array([0, 2, 3, 4, 7, 8, 9, 12])


def sampled(seed, skill):
    """A test of 14 images of 10 patients with 8 reports, two findings, and one that none has."""
    rng, truth = np.random.default_rng(seed), np.random.default_rng(99)
    labels = np.stack([truth.integers(0, 2, 14), truth.integers(-1, 2, 14), np.zeros(14)], axis=1).astype(float)
    labels[3, 0] = math.nan
    return {
        "image_ranks": rng.integers(1, 14 - skill, 14),
        "text_ranks": rng.integers(1, 14 - skill, 8),
        "scores": np.nan_to_num(labels) * skill / 4 + rng.normal(size=(14, 3)),
        "labels": labels,
    }


def predicted(samples, patients):
    """The same as predictions of a test."""
    of_texts = np.full(14, np.nan)
    of_texts[FIRST] = samples["text_ranks"]
    findings = ["Edema", "Mass", "Hernia"]
    columns = named("score", findings, samples["scores"]) | named("label", findings, samples["labels"])
    predictions = {
        "retrieval": Predictions("retrieval", {"image_rank": samples["image_ranks"], "text_rank": of_texts}),
        "zero_shot": Predictions("binary", columns),
    }
    return Tested([f"i{i}" for i in range(14)], [f"p{patient}" for patient in patients], predictions)


def plainly(samples, drawn):
    """R@5 and AUROC of some images, one at a time. ``drawn`` has an image as often as it was drawn."""
    images = np.mean([samples["image_ranks"][i] <= 5 for i in drawn])
    texts = [samples["text_ranks"][t] <= 5 for i in drawn for t in np.flatnonzero(i == FIRST)]
    aurocs = []
    for finding in (0, 1):
        rows = [i for i in drawn if samples["labels"][i, finding] in (0, 1)]
        labels = samples["labels"][rows, finding]
        if len(set(labels)) == 2:
            aurocs.append(roc_auc_score(labels, samples["scores"][rows, finding]))
    return (images + np.mean(texts)) / 2, np.mean(aurocs)


def test_over_studies_is_a_bootstrap_of_both_variants_together(monkeypatch):
    monkeypatch.setattr(few, "FEW", 1)  # of ten patients, for AUROCs too
    ours, theirs = ([sampled(seed + 10 * skill, skill) for seed in range(3)] for skill in (6, 1))
    of_ours, of_theirs = ([predicted(samples, PATIENTS) for samples in side] for side in (ours, theirs))
    found = over_studies(of_ours, of_theirs, resamples=60, seed=4)
    rng, differences = np.random.default_rng(4), []
    for _ in range(60):
        patients = rng.integers(10, size=10)
        drawn = [i for patient in patients for i in np.flatnonzero(patient == PATIENTS)]
        each = [[plainly(samples, drawn) for samples in side] for side in (ours, theirs)]
        differences.append(np.mean(each[0], axis=0) - np.mean(each[1], axis=0))
    low, high = np.percentile(differences, (2.5, 97.5), axis=0)
    assert found["retrieval/r@5"][:2] == pytest.approx((low[0], high[0]))
    assert found["zero_shot/auroc/macro"][:2] == pytest.approx((low[1], high[1]))
    assert {one.name for one in found.values()} == {""}
    whole = of_ours[0].draws(resamples=0)
    names = ("retrieval/r@5", "zero_shot/auroc/macro")
    assert [whole[name].values[0] for name in names] == pytest.approx(plainly(ours[0], range(14)))
    assert whole.keys() == found.keys()
    assert over_studies(of_ours, of_ours, resamples=20) == dict.fromkeys(found, (0, 0, ""))


def of_patients(positives, seed, skill):
    """A test of 80 patients with an image each, so many of whom have the finding."""
    rng = np.random.default_rng(seed)
    label = (np.arange(80) < positives)[:, None].astype(float)
    columns = named("score", ["Edema"], skill * label + rng.normal(size=(80, 1))) | named("label", ["Edema"], label)
    names = [f"i{i}" for i in range(80)]
    return Tested(names, names, {"zero_shot": Predictions("binary", columns)})


@pytest.mark.parametrize(("positives", "name"), [(10, ""), (9, "DeLong"), (4, "too few")])
def test_the_interval_over_studies_of_few_patients_is_delongs_of_the_means_over_seeds(positives, name):
    ours, theirs = ([of_patients(positives, seed + 10 * skill, skill) for seed in range(2)] for skill in (1, 0))
    found = over_studies(ours, theirs, resamples=20)
    one = found["zero_shot/auroc/Edema"]
    assert one.name == found["zero_shot/auroc/macro"].name == name
    assert found["zero_shot/f1/Edema"].name == ("too few" if name else "")
    assert found["zero_shot/accuracy/Edema"].name == ""
    if name == "DeLong":
        positive, member = np.arange(80) < positives, np.arange(80)
        means = [
            np.mean(
                [components(test.predictions["zero_shot"].columns["score/Edema"], positive) for test in side], axis=0
            )
            for side in (ours, theirs)
        ]
        low, high, _ = difference_interval(*([Spread.of(values, positive, member, 80)] for values in means))
        assert one[:2] == pytest.approx((low, high))
    assert math.isnan(one.low) == (name == "too few")


def test_only_the_same_studies_are_paired():
    with pytest.raises(DataError, match="of different studies"):
        over_studies([predicted(sampled(0, 2), PATIENTS)], [predicted(sampled(1, 2), PATIENTS[::-1])])
    assert over_studies([], []) == {}
