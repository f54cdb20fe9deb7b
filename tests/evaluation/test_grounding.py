"""Grounding against scikit-learn, OpenCV and plain loops, on one process and on several."""

import json
import math
import shlex

import cv2
import evaluating
import grounded
import inprocess
import numpy as np
import pytest
import torch
from evaluating import Cosine
from grounded import FINDINGS, GRID, PHRASES, SIDE, Blind, Boxed, Sees, embed_text, ground
from mini import ROOT, config, write_pairs
from PIL import Image
from sklearn.metrics import f1_score, jaccard_score, roc_auc_score

from diptych.errors import ConfigError, DataError
from diptych.evaluation.grounding import Grounding, Phrase
from diptych.evaluation.prompts import load_prompts
from diptych.metrics.bootstrap import Metric
from diptych.metrics.localisation import contrast_to_noise, flatness, overlap, pointing, stretch
from diptych.metrics.regions import at_pixels, in_picture
from diptych.radiographs.letterbox import letterbox

MEASURES = ("pointing", "cnr", "miou", "dice", "auroc", "entropy")


@pytest.fixture
def phrases(tmp_path):
    return evaluating.write_prompts(tmp_path, PHRASES)


# -- the equations ------------------------------------------------------------------------------------------------------


def plain(heat, inside):
    """All five, by scikit-learn where it has them and by loops over pixels where not."""
    pixels = [(float(h), bool(i)) for h, i in zip(heat.ravel(), inside.ravel(), strict=True)]
    within, without = [h for h, i in pixels if i], [h for h, i in pixels if not i]
    low, high = min(within + without), max(within + without)
    mean = [sum(part) / len(part) for part in (within, without)]
    spread = [sum((h - m) ** 2 for h in part) / len(part) for part, m in zip((within, without), mean, strict=True)]
    masks = [[(h - low) / (high - low) >= t for h, _ in pixels] for t in (0.1, 0.2, 0.3, 0.4, 0.5)]
    real = [i for _, i in pixels]
    return (
        float(max(without) < high - 1e-6 * high),
        (mean[0] - mean[1]) / math.sqrt(sum(spread)),
        np.mean([jaccard_score(real, f) for f in masks]),
        np.mean([f1_score(real, f) for f in masks]),
        roc_auc_score(real, [h for h, _ in pixels]),
    )


def test_equations_equal_scikit_learn_and_loops():
    rng = np.random.default_rng(0)
    hits = 0
    for case in range(30):
        heat = rng.random((9, 11)).astype(np.float32) if case % 2 else rng.integers(0, 5, (9, 11)).astype(np.float32)
        inside = rng.random((9, 11)) < (0.05, 0.4, 0.9)[case % 3]
        inside[0, 0], inside[0, 1] = True, False
        if case % 5 == 0:
            heat[0, 0] = 9
        expected = plain(heat, inside)
        flat = heat.ravel(), inside.ravel()
        values = (pointing(*flat), contrast_to_noise(*flat), *overlap(*flat))
        assert values == pytest.approx(expected[:4], abs=1e-6)
        hits += expected[0]
    assert 3 < hits < 30


def test_a_map_without_contrast_misses_and_ties_are_no_hits():
    inside = np.array([True, False, False, True])
    flat = np.full(4, 0.3)
    assert (pointing(flat, inside), contrast_to_noise(flat, inside), overlap(flat, inside)) == (0, 0, (0, 0))
    assert pointing(np.array([1, 0, 0, 1.0]), inside) == 1
    assert pointing(np.array([1, 1, 0, 0.0]), inside) == 0
    assert pointing(np.array([1, 1 - 1e-8, 0, 0.0]), inside) == 0
    assert contrast_to_noise(np.array([1, 0, 0, 1.0]), inside) == math.inf
    assert contrast_to_noise(np.array([0, 1, 1, 0.0]), inside) == -math.inf


def test_flatness_is_the_entropy_over_that_of_equal_weights():
    weights = np.random.default_rng(2).dirichlet(np.full(9, 0.3), (4, 5))
    slow = [[-sum(p * math.log(p) for p in row) / math.log(9) for row in rows] for rows in weights.tolist()]
    np.testing.assert_allclose(flatness(weights), slow)
    assert flatness(np.eye(3)).tolist() == [0, 0, 0]
    assert flatness(np.full(7, 1 / 7)) == pytest.approx(1)
    assert flatness(np.ones((2, 1))).tolist() == [0, 0]


def test_only_order_and_proportion_of_a_map_count():
    rng = np.random.default_rng(1)
    heat, inside = rng.random(50), rng.random(50) < 0.3
    for measure in (pointing, contrast_to_noise, overlap):
        assert measure(3 * heat + 7, inside) == pytest.approx(measure(heat, inside), abs=1e-9)
    assert (stretch(heat).min(), stretch(heat).max()) == (0, 1)
    assert contrast_to_noise(-heat, inside) == pytest.approx(-contrast_to_noise(heat, inside))


def test_a_map_that_is_no_number_has_no_figures():
    heat, inside = np.array([0.1, math.nan, 0.3]), np.array([True, False, False])
    assert all(map(math.isnan, (pointing(heat, inside), contrast_to_noise(heat, inside), *overlap(heat, inside))))


# -- phrases, maps, pictures --------------------------------------------------------------------------------------------


def test_words_in_braces_are_those_whose_maps_are_taken():
    assert Phrase.parse("There is a {lung mass}, {large}.") == Phrase("There is a lung mass, large.", (3, 4, 5), 6)
    assert Phrase.parse("small nodule") == Phrase("small nodule", (0, 1), 2)


def test_every_shipped_phrase_marks_a_word_and_has_three():
    for entry in load_prompts("grounding").entries:
        for text in entry.positive:
            phrase = Phrase.parse(text)
            assert "{" in text
            assert 3 <= phrase.length > len(phrase.words)


@pytest.mark.parametrize("size", [(20, 20), (21, 21), (64, 64)])
def test_maps_at_pixels_are_those_of_opencv(size):
    maps = torch.randn(3, 25, generator=torch.Generator().manual_seed(0))
    for fine, coarse in zip(at_pixels(maps, *size), maps.reshape(3, 5, 5).numpy(), strict=True):
        np.testing.assert_allclose(fine, cv2.resize(coarse, size, interpolation=cv2.INTER_LINEAR), atol=1e-5)
    with pytest.raises(ConfigError, match="24 regions are no square grid"):
        at_pixels(maps[:, :24], *size)


@pytest.mark.parametrize("shape", [(50, 20), (20, 50), (32, 32)])
def test_the_bars_of_a_letterbox_are_no_picture(shape):
    native = np.random.default_rng(0).integers(1, 255, shape).astype(np.uint8)
    image, place = letterbox(native, 32)
    expected = np.zeros((32, 32), bool)
    expected[place.top : place.top + place.height, place.left : place.left + place.width] = True
    assert np.array_equal(in_picture(torch.from_numpy(image)[None]), expected)
    assert in_picture(torch.zeros(1, 4, 4)).all()


# -- the evaluator ------------------------------------------------------------------------------------------------------


def expected(data, head, masks=False):
    """All six of each image and finding with a region, one image, word and phrase at a time."""
    measures = {name: {} for name in FINDINGS[:2]}
    for name in measures:
        for i in range(data.n):
            inside = data.masks[i].numpy() if masks else np.zeros((SIDE, SIDE), bool)
            for x0, y0, x1, y1, finding in data.boxes[i].tolist():
                if not masks and FINDINGS[int(finding)] == name:
                    inside[max(0, round(y0)) : max(0, round(y1)), max(0, round(x0)) : max(0, round(x1))] = True
            if not inside.any():
                continue
            maps, entropies = [], []
            for text in PHRASES["classes"][name]["prompts"]:
                phrase = embed_text([text.replace("{", "").replace("}", "")])
                words = {"There is a {mass}.": [3], "a large {lung mass} there": [2, 3]}.get(text, [0, 1, 2])
                attention = head.heatmap(data.image([i]), phrase)[0, words]
                maps.append(attention.mean(dim=0))
                entropies.append(np.mean([-sum(p * math.log(p) for p in row) for row in attention.tolist()]))
            coarse = torch.stack(maps).mean(dim=0).reshape(GRID, GRID).numpy()
            heat = cv2.resize(coarse.astype(np.float64), (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
            counted = np.ones((SIDE, SIDE), bool)
            if i % 3 == 0:
                counted[:3] = counted[-3:] = False
            counted |= inside
            entropy = np.mean(entropies) / math.log(GRID**2)
            measures[name][i] = (*plain(heat[counted].astype(np.float32), inside[counted]), entropy)
    return measures


def test_equals_a_plain_loop_with_boxes(phrases):
    data, evaluator = Boxed(), Grounding(phrases, resamples=60, seed=3)
    metrics = ground(evaluator, data, Sees())
    each = expected(data, Sees())
    for m, measure in enumerate(MEASURES):
        means = []
        for name, images in each.items():
            means.append(np.mean([values[m] for values in images.values()]))
            near = 1e-4 if measure == "auroc" else 1e-6  # rounding decides which of two like pixels comes first
            assert metrics[f"{measure}/{name}"].value == pytest.approx(means[-1], abs=near), measure
            assert metrics[f"{measure}/{name}"].n == len(images)
        assert metrics[f"{measure}/macro"].value == pytest.approx(np.mean(means), abs=near)
    assert set(metrics) == {f"{measure}/{name}" for measure in MEASURES for name in ("Mass", "Nodule", "macro")}
    assert 0 < metrics["pointing/macro"].value < 0.9
    protocol = json.loads(json.dumps(evaluator.protocol))
    assert protocol["absent"] == ["Hernia"]
    assert protocol["images"] == {name: len(images) for name, images in each.items()}
    assert protocol["region"] == "union of the boxes"
    assert 0.05 < protocol["chance"]["pointing/Mass"] < 0.5
    # Intervals: patients drawn anew, all of a patient's images with them.
    rng, group, names = np.random.default_rng(3), data.group.numpy(), np.unique(data.group.numpy())
    values = []
    for _ in range(60):
        sample = [i for g in names[rng.integers(len(names), size=len(names))] for i in np.flatnonzero(group == g)]
        values.append(np.mean([each["Mass"][i][4] for i in sample if i in each["Mass"]]))
    low, high = np.percentile(values, [2.5, 97.5])
    assert (metrics["auroc/Mass"].low, metrics["auroc/Mass"].high) == pytest.approx((low, high), abs=1e-6)


def test_equals_a_plain_loop_with_masks(phrases):
    data, evaluator = Boxed(), Grounding(phrases, resamples=0)
    metrics = ground(evaluator, data, Sees(), boxes=False, masks=True, findings=("Nodule",))
    each = expected(data, Sees(), masks=True)["Nodule"]
    for m, measure in enumerate(MEASURES):
        assert metrics[f"{measure}/Nodule"].value == pytest.approx(np.mean([v[m] for v in each.values()]), abs=1e-6)
    assert metrics["cnr/Nodule"].n == len(each) < data.n
    assert evaluator.protocol["region"] == "mask"


@pytest.mark.parametrize(
    "shares",
    [[range(0, 37, 2), range(1, 37, 2)], [[*range(30, 37), *range(9)], range(9, 30)], [range(37), []]],
    ids=["interleaved", "uneven", "empty"],
)
def test_several_processes_equal_one(shares, gloo2, phrases):
    one = grounded.task_ground(phrases, [range(37)], [16])
    for answers in gloo2(grounded.task_ground, phrases, [list(share) for share in shares], [8, 5]):
        assert answers == one


def test_does_not_depend_on_order_batch_size_or_rows_that_fill_up(phrases):
    data = Boxed()
    expected = ground(Grounding(phrases, resamples=20), data, Sees())
    order = np.random.default_rng(1).permutation(data.n).tolist()
    for size in (1, 7, 37):
        assert ground(Grounding(phrases, resamples=20), data, Sees(), rows=order, size=size, fill=2) == expected


def test_a_head_that_looks_everywhere_is_chance_or_worse(phrases):
    metrics = ground(Grounding(phrases, resamples=0), Boxed(), Blind())
    assert metrics["auroc/macro"].value == 0.5
    assert metrics["entropy/macro"].value == pytest.approx(1)
    assert all(metrics[f"{measure}/macro"].value == 0 for measure in MEASURES[:4])
    head = Blind()
    head.value = math.nan
    assert math.isnan(ground(Grounding(phrases, resamples=0), Boxed(), head)["pointing/macro"].value)


def test_a_head_that_looks_at_the_boxes_is_perfect(phrases):
    data = Boxed()
    cell = SIDE // GRID
    data.boxes = [torch.tensor([[4.0 * (i % 5), 8.0, 4.0 * (i % 5) + cell, 12.0, 0.0]]) for i in range(data.n)]
    word = torch.stack(
        [embed_text(["There is a mass."]).tokens[0, 3], embed_text(["a large lung mass there"]).tokens[0, 2]]
    )
    data.regions[:] = -torch.nn.functional.normalize(word.sum(dim=0), dim=0)
    for i in range(data.n):
        data.regions[i, 2 * GRID + i % 5] *= -1
    metrics = ground(Grounding(phrases, resamples=0), data, Sees())
    assert metrics["pointing/Mass"].value == 1
    assert metrics["auroc/Mass"].value > 0.97
    assert metrics["cnr/Mass"].value > 1


def test_a_region_that_fills_the_picture_is_left_out_and_counted(phrases):
    data, evaluator = Boxed(), Grounding(phrases, resamples=0)
    before = ground(evaluator, data, Sees())["auroc/Mass"].n
    data.boxes[0] = torch.tensor([[-1.0, -1, 30, 30, 0]])
    data.boxes[1] = torch.tensor([[0.4, 5, 0.4, 6, 1]])  # no pixel wide: no region
    assert ground(evaluator, data, Sees())["auroc/Mass"].n <= before
    assert evaluator.protocol["excluded"] == {"the region fills the picture": 1}


def test_what_cannot_be_grounded_is_said(phrases):
    data = Boxed()
    with pytest.raises(ConfigError, match=r"grounding: the head Cosine has no heatmap"):
        ground(Grounding(phrases), data, Cosine())
    with pytest.raises(ConfigError, match=r"asks for Mass, .*; the data set labels Edema"):
        ground(Grounding(phrases), data, Sees(), findings=("Edema",))
    with pytest.raises(DataError, match=r"one mask for Mass, Nodule, Hernia"):
        ground(Grounding(phrases), data, Sees(), boxes=False, masks=True)
    with pytest.raises(ConfigError, match="pictures is -1"):
        Grounding(phrases, pictures=-1)
    evaluator = Grounding(phrases)
    assert ground(evaluator, data, Sees(), boxes=False) == {}
    assert evaluator.protocol["skipped"] == "the data set has neither boxes nor masks"
    assert ground(evaluator, data, Sees(), findings=()) == {}
    assert evaluator.protocol["skipped"] == "the data set names no findings"


def test_a_phrase_that_the_tower_reads_otherwise_is_named(tmp_path):
    content = PHRASES | {
        "classes": {"Mass": {"prompts": ["a right-sided {mass}"]}, "Nodule": {"prompts": ["a nodule"]}}
    }
    path = evaluating.write_prompts(tmp_path, content)

    class Splits(Sees):
        def heatmap(self, image, text):
            return super().heatmap(image, text)[:, 1:]

    with pytest.raises(ConfigError, match=r"the phrase 'a right-sided mass' has 4 words, and Splits has maps for 3"):
        ground(Grounding(path), Boxed(), Splits())


def test_pictures_are_those_of_the_first_images(phrases):
    data, evaluator = Boxed(), Grounding(phrases, pictures=3, resamples=0)
    order = np.random.default_rng(1).permutation(data.n).tolist()
    ground(evaluator, data, Sees(), rows=order, size=5)
    with_boxes = [i for i in range(data.n) if len(data.boxes[i])]
    assert [picture.index for picture in evaluator.pictures] == sorted(
        [i for i in with_boxes for _ in set(data.boxes[i][:, 4].tolist())]
    )[:3]
    first = evaluator.pictures[0]
    assert np.array_equal(first.sample.image, data.images[first.index, 0])
    assert first.heat.shape == (SIDE, SIDE)
    assert "auroc" in first.sample.text


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.yaml").write_text(config(write_pairs(folder / "pairs"), head="local_pooling", epochs=1))
    done = inprocess.diptych("fit", "-c", f"{folder}/tiny.yaml", "--run", f"{folder}/run")
    assert done.returncode == 0, done.stderr
    return folder / "run"


CASES = ["rsna", pytest.param("siim", marks=pytest.mark.slow), pytest.param("nih", marks=pytest.mark.slow)]
CASES += [pytest.param(name, marks=pytest.mark.slow) for name in ("chestx_det10", "vindr_cxr", "ms_cxr")]


@pytest.mark.parametrize("source", [*CASES, pytest.param("real", marks=pytest.mark.real)])
def test_a_trained_head_grounds_a_release_and_draws_it(source, trained, tmp_path, request):
    """As each file's own command says, on a miniature in the release's layout, and on real radiographs in RSNA's."""
    from diptych_datamodules.phantoms.layouts.write import write_layout

    layout = "rsna" if source == "real" else source
    if source == "real":
        root = request.getfixturevalue("shared_data") / "rsna_like"
    else:
        root = write_layout(layout, 40, tmp_path / layout, seed=4, size=48)
    file = ROOT / "experiments" / "evaluate" / f"{layout}_grounding.yaml"
    known = {
        "runs/mine/config.yaml": trained / "config.yaml",
        "DIR": root,
        "FILE": trained / "checkpoints" / "best.ckpt",
    }
    known |= {f"experiments/evaluate/{file.name}": file, f"runs/mine-{file.stem}": tmp_path / "out"}
    words = shlex.split(file.read_text().split("#   diptych ", 1)[1].splitlines()[0])
    small = ["--data.loading.image_size", "64", "--figures.pairs", "1"]
    done = inprocess.diptych(*[str(known.get(word, word)) for word in words], *small)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out" / "results.json").read_text())
    images = result["protocol"]["grounding"]["images"]
    assert result["protocol"]["grounding"]["region"] == ("mask" if source == "siim" else "union of the boxes")
    for finding, number in images.items():
        metric = Metric(**result["metrics"][f"test/grounding/auroc/{finding}"])
        assert 0 < metric.value < 1
        assert metric.n == number > 0
    pictures = sorted((tmp_path / "out" / "figures").glob("test-grounding-*.png"))
    assert len(pictures) == min(8, sum(images.values()))
    assert ((np.asarray(Image.open(pictures[0])) == (64, 200, 255)).all(axis=2)).sum() > 50  # the outline of the region
