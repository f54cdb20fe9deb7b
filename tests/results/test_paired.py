"""Paired differences against scipy and plain loops."""

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from diptych.errors import ConfigError, DataError
from diptych.results.paired import holm, over_seeds, over_studies, study_figures
from diptych.results.record import read_samples, write_samples


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
        "retrieval/patients": PATIENTS,
        "retrieval/image_ranks": rng.integers(1, 14 - skill, 14),
        "retrieval/text_ranks": rng.integers(1, 14 - skill, 8),
        "retrieval/text_first": FIRST,
        "zero_shot/patients": PATIENTS,
        "zero_shot/scores": np.nan_to_num(labels) * skill / 4 + rng.normal(size=(14, 3)),
        "zero_shot/labels": labels,
    }


def plainly(samples, drawn):
    """R@5 and AUROC of some images, one at a time. ``drawn`` has an image as often as it was drawn."""
    images = np.mean([samples["retrieval/image_ranks"][i] <= 5 for i in drawn])
    texts = [samples["retrieval/text_ranks"][t] <= 5 for i in drawn for t in np.flatnonzero(i == FIRST)]
    aurocs = []
    for finding in (0, 1):
        rows = [i for i in drawn if samples["zero_shot/labels"][i, finding] in (0, 1)]
        labels = samples["zero_shot/labels"][rows, finding]
        if len(set(labels)) == 2:
            aurocs.append(roc_auc_score(labels, samples["zero_shot/scores"][rows, finding]))
    return (images + np.mean(texts)) / 2, np.mean(aurocs)


def test_over_studies_is_a_bootstrap_of_both_variants_together():
    ours, theirs = ([sampled(seed + 10 * skill, skill) for seed in range(3)] for skill in (6, 1))
    found = over_studies(ours, theirs, resamples=60, seed=4)
    rng, differences = np.random.default_rng(4), []
    for _ in range(60):
        patients = rng.integers(10, size=10)
        drawn = [i for patient in patients for i in np.flatnonzero(patient == PATIENTS)]
        each = [[plainly(samples, drawn) for samples in side] for side in (ours, theirs)]
        differences.append(np.mean(each[0], axis=0) - np.mean(each[1], axis=0))
    low, high = np.percentile(differences, (2.5, 97.5), axis=0)
    assert found["retrieval/r@5"] == pytest.approx((low[0], high[0]))
    assert found["zero_shot/auroc/macro"] == pytest.approx((low[1], high[1]))
    whole = study_figures(ours[0], np.ones((1, 14)))
    assert [whole[name][0] for name in found] == pytest.approx(plainly(ours[0], range(14)))
    assert over_studies(ours, ours, resamples=20) == dict.fromkeys(found, (0, 0))


def test_only_the_same_studies_are_paired():
    other = sampled(1, 2) | {"retrieval/patients": PATIENTS[::-1]}
    with pytest.raises(DataError, match="of different studies"):
        over_studies([sampled(0, 2)], [other])
    assert over_studies([sampled(0, 2)], [{}]) == {}  # as of private data


def test_samples_are_read_as_they_were_written(tmp_path):
    samples = sampled(3, 3)
    write_samples(tmp_path / "samples.npz", samples)
    again = read_samples(tmp_path / "samples.npz")
    assert set(again) == set(samples)
    for name, values in samples.items():
        np.testing.assert_array_equal(again[name], values)
    write_samples(tmp_path / "samples.npz", {})
    assert read_samples(tmp_path / "samples.npz") == {}
    for content in (b"", b"PK\x03\x04no", b"\x80\x04."):  # the last is a pickle
        (tmp_path / "samples.npz").write_bytes(content)
        with pytest.raises(ConfigError, match=r"samples.npz' cannot be read .*; test the run anew"):
            read_samples(tmp_path / "samples.npz")
    with pytest.raises(ConfigError, match="test the run anew"):
        read_samples(tmp_path / "absent.npz")
