"""Scores of crops against a plain loop, and the whole through a trained model."""

import json
import math

import cv2
import evaluating
import inprocess
import numpy as np
import pytest
import torch
import yaml
from evaluating import FINDINGS, PROMPTS, Cosine, Radiographs, embed_text, evaluate, vectors
from mini import config, write_pairs
from torch.nn.functional import normalize

from diptych.errors import ConfigError
from diptych.evaluation.multi_resolution import MultiResolution, combine_scores, crops
from diptych.evaluation.zero_shot import ZeroShot
from diptych.types import Embedding

SIDE = 16
PROJECTION = vectors("pixels", SIDE * SIDE)


def embed_image(images):
    """A model of pixels: each crop has another embedding."""
    return Embedding(normalize(images.flatten(1).float() @ PROJECTION, dim=1))


class Pixels(Radiographs):
    """The same samples with pictures that are embedded."""

    def __init__(self):
        super().__init__(n=40)
        noise = np.random.default_rng(0).integers(0, 255, (40, 1, SIDE, SIDE))
        self.pictures = torch.from_numpy(noise.astype(np.uint8))

    def batches(self, rows, size, **options):
        from dataclasses import replace

        for batch, _, text in super().batches(rows, size, **options):
            picture = self.pictures[batch.index]
            yield replace(batch, image=picture), embed_image(picture), text


def make(path, **options):
    evaluator = MultiResolution(path, resamples=20, **options)
    evaluator.embed_image = embed_image
    return evaluator


@pytest.mark.parametrize(("scale", "number"), [(0.25, 16), (0.5, 4), (0.75, 4), (1 / 3, 9)])
def test_crops_cover_the_image_and_are_those_of_opencv(scale, number):
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 255, (2, 1, 24, 24)).astype(np.uint8))
    parts = crops(images, scale)
    assert len(parts) == number
    side, per_axis = round(24 * scale), math.isqrt(number)
    starts = np.rint(np.linspace(0, 24 - side, per_axis)).astype(int)
    seen = np.zeros((24, 24), bool)
    for k, (top, left) in enumerate((t, s) for t in starts for s in starts):
        seen[top : top + side, left : left + side] = True
        for i in range(2):
            native = images[i, 0, top : top + side, left : left + side].numpy().astype(np.float32)
            expected = cv2.resize(native, (24, 24), interpolation=cv2.INTER_LINEAR)
            assert np.abs(parts[k][i, 0].numpy() - expected).max() <= 0.51
    assert seen.all()


def test_the_combination_equals_a_plain_loop():
    generator = torch.Generator().manual_seed(0)
    whole, parts = torch.randn(3, 4, generator=generator), torch.randn(5, 3, 4, generator=generator)
    scores = combine_scores(whole.double(), parts.double(), 0.3)
    for i in range(3):
        weights = [math.exp(max(parts[k, i].tolist())) for k in range(5)]
        for p in range(4):
            mean = sum(w * float(parts[k, i, p]) for k, w in enumerate(weights)) / sum(weights)
            assert float(scores[i, p]) == pytest.approx(0.7 * float(whole[i, p]) + 0.3 * mean, abs=1e-6)


def test_scores_are_those_of_every_crop_by_itself(tmp_path):
    from sklearn.metrics import roc_auc_score

    data, path = Pixels(), evaluating.write_prompts(tmp_path)
    metrics = evaluate(make(path), data, Cosine(), size=7)
    entry = PROMPTS["findings"]["Edema"]
    others = [
        t
        for e in PROMPTS["findings"].values()
        if e is not PROMPTS["findings"]["Fracture"]
        for t in (*e["positive"], *e["negative"])
    ]
    label, scores = data.labels[:, FINDINGS.index("Edema")].numpy(), []
    for i in range(data.n):

        def score(picture):
            return {t: float(Cosine().similarity(embed_image(picture), embed_text([t]))) for t in others}

        whole = score(data.pictures[i : i + 1])
        parts = [score(part) for scale in (0.25, 0.5, 0.75) for part in crops(data.pictures[i : i + 1], scale)]
        weights = [math.exp(max(part.values())) for part in parts]
        mixed = {
            t: whole[t] / 2 + sum(w * p[t] for w, p in zip(weights, parts, strict=True)) / sum(weights) / 2
            for t in others
        }
        scores.append(np.mean([mixed[t] for t in entry["positive"]]) - np.mean([mixed[t] for t in entry["negative"]]))
    known = np.isin(label, (0, 1))
    expected = roc_auc_score(label[known], np.array(scores)[known])
    assert metrics["auroc/Edema"].value == pytest.approx(expected, abs=1e-6)
    assert metrics["auroc/Edema"].value != evaluate(ZeroShot(path), data, Cosine())["auroc/Edema"].value


def test_without_a_share_it_is_zero_shot_and_the_protocol_says_what_was_done(tmp_path):
    data, path = Pixels(), evaluating.write_prompts(tmp_path)
    evaluator = make(path, share=0.0)
    assert evaluate(evaluator, data, Cosine()) == evaluate(ZeroShot(path, resamples=20), data, Cosine())
    protocol = json.loads(json.dumps(evaluator.protocol))
    assert (protocol["scales"], protocol["crops"], protocol["share_of_crops"]) == ([0.25, 0.5, 0.75], [16, 4, 4], 0.0)


def test_does_not_depend_on_order_batch_size_or_rows_that_fill_up(tmp_path):
    data, path = Pixels(), evaluating.write_prompts(tmp_path)
    expected = evaluate(make(path), data, Cosine())
    order = np.random.default_rng(1).permutation(data.n).tolist()
    for size in (7, 40):
        metrics = evaluate(make(path), data, Cosine(), rows=order, size=size, fill=2)
        for name, metric in expected.items():
            np.testing.assert_allclose(metrics[name].value, metric.value, atol=1e-6, err_msg=name)


def test_arguments_are_checked(tmp_path):
    path = evaluating.write_prompts(tmp_path)
    for options, message in (
        ({"scales": ()}, "at least one"),
        ({"scales": (1.0,)}, "below 1"),
        ({"share": 2}, "share is 2"),
    ):
        with pytest.raises(ConfigError, match=message):
            MultiResolution(path, **options)


def test_a_trained_model_is_given_to_it_by_the_command(tmp_path):
    (tmp_path / "tiny.yaml").write_text(config(write_pairs(tmp_path / "pairs"), epochs=1))
    content = PROMPTS | {"findings": {n: {"positive": [n], "negative": [f"No {n}"]} for n in ("Effusion", "Nodule")}}
    init = {"prompts": evaluating.write_prompts(tmp_path, content), "scales": [0.5]}
    (tmp_path / "more.yaml").write_text(
        yaml.safe_dump({"model": {"evaluators": [{"class_path": "MultiResolution", "init_args": init}]}})
    )
    run = ["-c", f"{tmp_path}/tiny.yaml", "-c", f"{tmp_path}/more.yaml", "--run", f"{tmp_path}/run"]
    for part in ("checkpoint", "early_stopping"):
        run += [f"--{part}.monitor", "val/multi_resolution/auroc/macro"]
    done = inprocess.diptych("fit", *run)
    assert done.returncode == 0, done.stderr
    done = inprocess.diptych("test", *run, "--ckpt_path", "last")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run" / "results.json").read_text())
    assert result["protocol"]["multi_resolution"]["crops"] == [4]
    assert set(result["metrics"]) >= {"test/multi_resolution/auroc/macro", "test/multi_resolution/f1/Nodule"}
