"""Metrics of detection against pycocotools, and against plain loops."""

import numpy as np
import pytest
from detection_twins import by_mgca, by_pycocotools, slow_challenge

from diptych.metrics import detection
from diptych.metrics.detection import IOUS


def boxes(rng, n, findings, whole, score=False):
    """``n`` random boxes, on whole pixels or not; many IoUs of ``whole`` ones lie on a threshold, and many scores are equal."""
    corner, side = rng.uniform(0, 20, (n, 2)), rng.uniform(1, 20, (n, 2))
    if whole:
        corner, side = np.rint(corner / 2), np.ceil(side / 2)
    columns = [corner, corner + side, rng.integers(0, findings, (n, 1))]
    if score:
        columns.append(rng.integers(1, 20, (n, 1)) / 20 if whole else rng.uniform(0.05, 1, (n, 1)))
    return np.concatenate(columns, axis=1)


def random_set(seed, images=60, findings=4, most=6, whole=False):
    """Boxes of the last finding in no image; predictions near boxes, and others; images with neither."""
    rng = np.random.default_rng(seed)
    predicted, truth = [], []
    for _ in range(images):
        real = boxes(rng, rng.integers(0, most), findings - 1, whole)
        near = real[rng.random(len(real)) < 0.8]
        shown = boxes(rng, len(near) + rng.integers(0, most), findings, whole, score=True)
        shown[: len(near), :5] = near
        if not whole:
            shown[: len(near), :4] += rng.normal(0, 1, (len(near), 4))
            shown[:, 2:4] = np.maximum(shown[:, 2:4], shown[:, :2] + 0.5)
        predicted.append(shown if rng.random() < 0.9 else shown[:0])
        truth.append(real)
    return predicted, truth


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_average_precision_is_that_of_pycocotools(seed, whole):
    predicted, truth = random_set(seed, whole=whole)
    expected = by_pycocotools(predicted, truth, 4, IOUS)
    matches = detection.match(predicted, truth, 4)
    values = np.stack([detection.average_precision(matches, finding)[0] for finding in range(4)], axis=1)
    assert (expected[:, 3] == -1).all()  # pycocotools' sign for a finding without a box
    assert np.isnan(values[:, 3]).all()
    np.testing.assert_allclose(values[:, :3], expected[:, :3], atol=1e-9)
    assert 0.05 < values[2, :3].mean() < 0.95  # neither nothing nor everything was found


def test_the_hundred_surest_of_an_image_count_as_in_pycocotools():
    rng = np.random.default_rng(5)
    truth = [boxes(rng, 60, 1, False) for _ in range(3)]
    predicted = [np.concatenate([real, rng.uniform(0.1, 0.6, (60, 1))], axis=1) for real in truth]
    predicted = [np.concatenate([p, boxes(rng, 90, 1, False, score=True)]) for p in predicted]
    matches = detection.match(predicted, truth, 1)
    assert np.bincount(matches.image).tolist() == [100, 100, 100]
    expected = by_pycocotools(predicted, truth, 1, IOUS)[:, 0]
    np.testing.assert_allclose(detection.average_precision(matches, 0)[0], expected, atol=1e-9)


def test_a_weighting_is_the_set_with_its_images_repeated():
    predicted, truth = random_set(7, images=30)
    matches = detection.match(predicted, truth, 4)
    weights = np.random.default_rng(0).integers(0, 4, (5, 30)).astype(np.uint16)
    weights[4] = [len(real) == 0 for real in truth]  # no box is left
    for finding in range(3):
        values = detection.average_precision(matches, finding, weights)
        for row, weight in enumerate(weights[:4]):
            again = np.repeat(np.arange(30), weight)
            expected = by_pycocotools([predicted[i] for i in again], [truth[i] for i in again], 4, IOUS)[:, finding]
            np.testing.assert_allclose(values[row], expected, atol=1e-9)
        assert np.isnan(values[4]).all()


@pytest.mark.parametrize("findings", [2, 4])
def test_mgcas_figure_is_that_of_its_published_loop(findings):
    predicted, truth = random_set(17, findings=findings, most=4)
    for shown in predicted[::3]:  # a third of the images is silent at one half
        shown[:, 5] *= 0.5
    predicted[1] = predicted[1][:0]
    names = [f"finding {i}" for i in range(findings)]
    figures = detection.box_figures(detection.match(predicted, truth, findings), names, np.ones((1, 60)), None)
    ours, published = figures["ap40-75/macro"].values[0], figures["mgca/ap40-75/macro"].values[0]
    assert published == pytest.approx(by_mgca(predicted, truth), abs=1e-6)
    assert abs(published - ours) > 0.03
    kept = [len(real) > 0 and (shown[:, 5] >= 0.5).any() for shown, real in zip(predicted, truth, strict=True)]
    assert 0 < sum(kept) == figures["mgca/ap40-75/macro"].n < 60


def test_mgcas_figure_of_a_silent_model_is_not_defined():
    box = np.array([[0.0, 0, 10, 10, 0]])
    silent = detection.match([np.array([[0.0, 0, 10, 10, 0, 0.49]])], [box], 1)
    figures = detection.box_figures(silent, ["Nodule"], np.ones((1, 1)), None)
    assert figures["ap40-75/macro"].values[0] == 1
    assert np.isnan(figures["mgca/ap40-75/macro"].values[0])
    assert figures["mgca/ap40-75/Nodule"].n == 0


@pytest.mark.parametrize("threshold", [0.05, 0.5, 0.97])
def test_the_challenge_image_by_image(threshold):
    predicted, truth = random_set(11, most=4)
    matches = detection.match(predicted, truth, 4)
    expected = [slow_challenge(shown, real, threshold) for shown, real in zip(predicted, truth, strict=True)]
    np.testing.assert_allclose(
        detection.challenge_scores(matches, threshold), [np.nan if x is None else x for x in expected], atol=1e-12
    )
    assert None in expected
    assert 0.0 in expected


def test_normals_count_where_something_is_predicted_and_misses_always():
    box = np.array([[0.0, 0, 10, 10, 0]])
    sure, unsure = np.array([[0.0, 0, 10, 10, 0, 0.9]]), np.array([[0.0, 0, 10, 10, 0, 0.3]])
    none, empty = np.zeros((0, 6)), np.zeros((0, 5))
    matches = detection.match([sure, none, sure, unsure, none], [box, box, empty, empty, empty], 1)
    np.testing.assert_array_equal(detection.challenge_scores(matches, 0.5), [1, 0, 0, np.nan, np.nan])
    np.testing.assert_array_equal(detection.challenge_scores(matches, 0.2), [1, 0, 0, 0, np.nan])
    assert detection.misses(matches, 0.5).tolist() == [0, 1, 0, 0, 0]
    # One of two boxes found at the same confidence as a false alarm: a recall of one half, at a precision of at least one half.
    assert detection.average_precision(matches, 0)[0, 0] == pytest.approx(51 / 101)
    late = detection.match([unsure, none, sure], [box, box, empty], 1)
    assert detection.average_precision(late, 0)[0, 0] == pytest.approx(51 / 101 / 2)


def test_the_threshold_is_the_best_of_all_and_of_equals_the_middle_one():
    predicted, truth = random_set(13, most=4)
    matches = detection.match(predicted, truth, 4)
    means = {t: np.nanmean(detection.challenge_scores(matches, t)) for t in np.arange(5, 100) / 100}
    assert means[detection.best_threshold(matches)] == max(means.values())
    box = np.array([[0.0, 0, 10, 10, 0]])
    shown = [np.array([[0.0, 0, 10, 10, 0, 0.8]]), np.array([[0.0, 0, 10, 10, 0, 0.305]])]
    assert detection.best_threshold(detection.match(shown, [box, box[:0]], 1)) == 0.56  # 0.31 to 0.80 are alike


def test_nothing_predicted_and_nothing_there():
    none, empty, box = np.zeros((0, 6)), np.zeros((0, 5)), np.array([[0.0, 0, 4, 4, 1]])
    matches = detection.match([none, none], [empty, box], 2)
    assert np.isnan(detection.average_precision(matches, 0)).all()
    assert (detection.average_precision(matches, 1) == 0).all()
    np.testing.assert_array_equal(detection.challenge_scores(matches, 0.5), [np.nan, 0])
    assert detection.iou(np.zeros((1, 4)), np.zeros((1, 4))).tolist() == [[0]]
