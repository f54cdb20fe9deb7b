"""Masks at fixed thresholds of the cosine, against OpenCV, scikit-learn and plain loops."""

import json
import math

import cv2
import evaluating
import grounded
import numpy as np
import pytest
import torch
from grounded import FINDINGS, GRID, PHRASES, SIDE, Blind, Boxed, Sees, embed_text, ground
from sklearn.metrics import f1_score, jaccard_score

from diptych.errors import ConfigError
from diptych.evaluation.grounding import Grounding
from diptych.head import Compares
from diptych.metrics.localisation import overlap_above
from diptych.predictions.kinds import with_draws
from diptych.types import Dims, Features
from diptych_heads.composite import Composite
from diptych_heads.local_pooling import LocalPooling
from diptych_heads.mgca import MGCA

LEVELS = (-0.1, 0.0, 0.15)


@pytest.fixture
def phrases(tmp_path):
    return evaluating.write_prompts(tmp_path, PHRASES)


def test_overlap_above_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    for _ in range(20):
        heat, inside = rng.uniform(-1, 1, 60), rng.random(60) < 0.3
        inside[0] = True
        level = float(rng.uniform(-0.5, 0.8))
        expected = jaccard_score(inside, heat > level), f1_score(inside, heat > level)
        assert overlap_above(heat, inside, level) == pytest.approx(expected)
    assert overlap_above(np.array([0.5, 0.5]), np.array([True, False]), 0.5) == (0, 0)  # equal is not above: no mask
    assert all(map(math.isnan, overlap_above(np.array([math.nan, 1.0]), np.array([True, False]), 0.5)))


def test_equals_a_plain_loop(phrases):
    data, evaluator = Boxed(), Grounding(phrases, resamples=10, cosines=LEVELS)
    metrics = ground(evaluator, data, Sees())
    marked = {"There is a {mass}.": [3], "a large {lung mass} there": [2, 3], "one small nodule": [0, 1, 2]}
    for name in FINDINGS[:2]:
        found = {level: [] for level in LEVELS}
        for i in range(data.n):
            inside = np.zeros((SIDE, SIDE), bool)
            for x0, y0, x1, y1, finding in data.boxes[i].tolist():
                if FINDINGS[int(finding)] == name:
                    inside[max(0, round(y0)) : max(0, round(y1)), max(0, round(x0)) : max(0, round(x1))] = True
            if not inside.any():
                continue
            maps = []
            for text in PHRASES["classes"][name]["prompts"]:
                words = embed_text([text.replace("{", "").replace("}", "")]).tokens[0, marked[text]].numpy()
                maps.append(np.mean([data.regions[i].numpy() @ word for word in words], axis=0))
            coarse = np.mean(maps, axis=0).reshape(GRID, GRID)
            level = cv2.resize(coarse, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
            counted = np.ones((SIDE, SIDE), bool)
            if i % 3 == 0:
                counted[:3] = counted[-3:] = False
            counted |= inside
            for c in LEVELS:
                mask, truth = level[counted] > c, inside[counted]
                found[c].append((jaccard_score(truth, mask), f1_score(truth, mask)))
        for c in LEVELS:
            iou, dice = np.mean(found[c], axis=0)
            assert metrics[f"iou@{c:g}/{name}"].value == pytest.approx(iou, abs=1e-6)
            assert metrics[f"dice@{c:g}/{name}"].value == pytest.approx(dice, abs=1e-6)
    assert len({metrics[f"dice@{c:g}/macro"].value for c in LEVELS}) == 3
    assert "RadZero" in json.loads(json.dumps(evaluator.protocol))["cosines"]
    again = with_draws(evaluator.predictions, data.group.numpy())[0]  # what `diptych score` computes from the columns
    assert set(again) == set(metrics)
    assert all(again[name].values[0] == pytest.approx(metrics[name].value) for name in metrics)


def test_nothing_else_changes(phrases):
    data, plain, fixed = Boxed(), Grounding(phrases, resamples=10), Grounding(phrases, resamples=10, cosines=[0.2])
    before, after = ground(plain, data, Sees()), ground(fixed, data, Sees())
    assert {name: after[name] for name in before} == before
    assert {name.partition("/")[0] for name in after.keys() - before.keys()} == {"iou@0.2", "dice@0.2"}
    assert "cosines" not in plain.protocol
    order = np.random.default_rng(1).permutation(data.n).tolist()
    again = Grounding(phrases, resamples=10, cosines=[0.2])
    assert ground(again, data, Sees(), rows=order, size=5, fill=2) == after


def test_what_has_no_cosines_is_said(phrases):
    with pytest.raises(ConfigError, match=r"the head Blind has no cosines of words and regions, .* leave cosines out"):
        ground(Grounding(phrases, cosines=[0.1]), Boxed(), Blind())
    with pytest.raises(ConfigError, match=r"grounding: cosines is 1.5; give a number from -1 to 1"):
        Grounding(phrases, cosines=[0.1, 1.5])


def features(width, rows, words, text):
    generator = torch.Generator().manual_seed(words)
    mask = torch.ones(rows, words, dtype=torch.bool)
    mask[0, -2:] = not text
    x = torch.randn(rows, words, width, generator=generator)
    attention = torch.rand(rows, words, generator=generator) * mask
    return Features(x.mean(dim=1), x, mask, grid=None if text else (2, words // 2), attention=attention)


@pytest.mark.parametrize(
    "build",
    [
        lambda dims: LocalPooling(dims, width=6),
        lambda dims: LocalPooling(dims, width=6, attention="raw"),
        lambda dims: MGCA(dims, width=6, hidden=7, prototypes=4).eval(),
        lambda dims: Composite(dims, heads=[lambda d: LocalPooling(d, width=6)]),
    ],
    ids=["unit", "raw", "mgca", "composite"],
)
def test_heads_give_the_cosine_of_each_word_and_region(build):
    torch.manual_seed(0)
    head = build(Dims(image=5, text=5, image_tokens=5, text_tokens=5))
    assert isinstance(head, Compares)
    image, text = head.embed_image(features(5, 2, 4, False)), head.embed_text(features(5, 2, 3 + 3, True))
    found = head.cosines(image, text)
    panels = (image, text) if not hasattr(image, "members") else [next(iter(p.members.values())) for p in (image, text)]
    regions, words = (panel.tokens.detach().numpy() for panel in panels)
    for b in range(2):
        for w in range(6):
            for r in range(4):
                a, c = words[b, w], regions[b, r]
                real = bool(panels[1].mask[b, w])
                expected = a @ c / (np.linalg.norm(a) * np.linalg.norm(c)) if real else 0
                assert found[b, w, r].item() == pytest.approx(expected, abs=1e-5)
    assert found.abs().max() > 0.3


def test_several_processes_equal_one(gloo2, phrases):
    one = grounded.task_ground(phrases, [range(37)], [16], (0.1,))
    for answers in gloo2(grounded.task_ground, phrases, [[*range(30, 37)], [*range(30)]], [8, 5], (0.1,)):
        assert answers == one
