"""The attentive probe: GLoRI's layer against plain loops, and a whole run against its parts."""

import math

import numpy as np
import pytest
import torch
from inprocess import fit_and_test
from mini import IMAGE, write_recipe
from sklearn.metrics import roc_auc_score

from diptych.data.loading import Loading
from diptych.errors import ConfigError
from diptych.metrics.localisation import measures
from diptych.model.checkpoint import read_checkpoint
from diptych.tasks.attentive_probe import AttentiveProbe, QueryDecoder
from diptych.towers.image import TimmImage
from diptych_datamodules.phantom import Phantom

pytestmark = pytest.mark.usefixtures("one_thread")
PHANTOMS = {"train": 48, "val": 16, "test": 20, "size": 48, "max_findings": 2, "normal": 0.2}
PHANTOMS["mix"] = {"Pleural Effusion": 1, "Pneumothorax": 1}
DECODER = {"width": 16, "attention_heads": 2, "hidden": 24, "dropout": 0.1}


def normed(x, weight=1.0, bias=0.0):
    return (x - x.mean()) / np.sqrt(x.var() + 1e-5) * weight + bias


def published(state, tokens, pooled):
    """GLoRI's forward pass in evaluation, query by query and head by head, as its repository writes it."""
    weights = {name: value.double().numpy() for name, value in state.items()}
    query, key, value = np.split(weights["attention.in_proj_weight"], 3)
    q_bias, k_bias, v_bias = np.split(weights["attention.in_proj_bias"], 3)
    width, heads = query.shape[0], DECODER["attention_heads"]
    size = width // heads
    memory = [np.maximum(weights["memory.weight"] @ normed(t) + weights["memory.bias"], 0) for t in tokens]
    logits, maps = [], []
    for j, start in enumerate(weights["queries"]):
        x = normed(2 * start, weights["norms.0.weight"], weights["norms.0.bias"])  # tgt + dropout(tgt)
        asked, message, share = query @ x + q_bias, np.zeros(width), np.zeros(len(memory))
        for h in range(heads):
            own = slice(h * size, (h + 1) * size)
            levels = np.array([asked[own] @ (key @ m + k_bias)[own] for m in memory]) / math.sqrt(size)
            attention = np.exp(levels - levels.max()) / np.exp(levels - levels.max()).sum()
            message[own] = sum(a * (value @ m + v_bias)[own] for a, m in zip(attention, memory, strict=True))
            share += attention / heads
        message = weights["attention.out_proj.weight"] @ message + weights["attention.out_proj.bias"]
        x = normed(x + message, weights["norms.1.weight"], weights["norms.1.bias"])
        inner = np.maximum(weights["expand.weight"] @ x + weights["expand.bias"], 0)
        x = x + weights["contract.weight"] @ inner + weights["contract.bias"]
        x = normed(x, weights["norms.2.weight"], weights["norms.2.bias"])
        read = x if pooled is None else np.concatenate([normed(pooled), x])  # torch.cat([cls, h])
        logits.append(read @ weights["readout"][j] + weights["bias"][j])
        maps.append(share)
    return np.array(logits), np.array(maps)


@pytest.mark.parametrize("pooled", [0, 6])
def test_the_decoder_is_glori_s(pooled):
    torch.manual_seed(0)
    decoder = QueryDecoder(5, pooled, 3, **DECODER).eval()
    for parameter in decoder.parameters():  # norms and biases start at 1 and 0, which would hide them
        parameter.data += 0.3 * torch.randn_like(parameter)
    tokens, whole = 3 * torch.randn(2, 9, 5), torch.randn(2, 6)
    with torch.no_grad():
        logits, maps = decoder(tokens, whole)
    for i in range(2):
        vector = whole[i].double().numpy() if pooled else None
        expected = published(decoder.state_dict(), tokens[i].double().numpy(), vector)
        np.testing.assert_allclose(logits[i], expected[0], atol=1e-4)
        np.testing.assert_allclose(maps[i], expected[1], atol=1e-5)
    torch.testing.assert_close(maps.sum(2), torch.ones(2, 3))
    trained = {name for name, parameter in decoder.named_parameters() if parameter.requires_grad}
    assert "queries" not in trained  # GLoRI's are drawn and stay
    assert "queries" in decoder.state_dict()


def test_what_it_cannot_take_it_says():
    image = TimmImage(**IMAGE)
    for options, message in (
        ({"width": 10, "attention_heads": 4}, "AttentiveProbe: width is 10; give a multiple of attention_heads, 4"),
        ({"dropout": 1.0}, "AttentiveProbe: dropout is 1.0"),
        ({"hidden": 0}, "AttentiveProbe: hidden is 0; give a whole number of 1 or more"),
        ({"pictures": -1}, "AttentiveProbe: pictures is -1"),
    ):
        with pytest.raises(ConfigError, match=message):
            AttentiveProbe(image, **options)


def test_a_run_s_figures_are_those_of_its_parts_by_hand(tmp_path):
    loading = {"image_size": 48, "batch_size": 8, "eval_batch_size": 7, "workers": 0}
    image = {"class_path": "TimmImage", "init_args": {**IMAGE, "stage": 2}}
    task = "AttentiveProbe", {"image": image, **DECODER, "pictures": 2, "resamples": 20}
    file = write_recipe(tmp_path / "one.yaml", task, ("phantom", {**PHANTOMS, "loading": loading}), max_epochs=2)
    result = fit_and_test(file, tmp_path / "run")
    weights = read_checkpoint(tmp_path / "run" / "checkpoints" / "best.ckpt")["state_dict"]
    torch.manual_seed(1)  # as the recipe
    tower = TimmImage(**IMAGE, stage=2)
    for name, value in tower.state_dict().items():
        if isinstance(value, torch.Tensor):  # the tower stays as it was, batch statistics too
            torch.testing.assert_close(weights[f"image.{name}"], value)
    tower.load_state_dict({k.removeprefix("image."): v for k, v in weights.items() if k.startswith("image.")})
    state = {k.removeprefix("decoder."): v for k, v in weights.items() if k.startswith("decoder.")}
    data = Phantom(**PHANTOMS, loading=Loading(image_size=48, workers=0))
    data.setup("test")
    batch = data.batch("test", range(20))
    with torch.no_grad():
        features = tower.eval()(batch.image)
    seen = [published(state, features.tokens[i].numpy(), features.pooled[i].numpy()) for i in range(20)]
    for name in ("Pleural Effusion", "Pneumothorax"):
        j = data.findings.index(name)
        expected = roc_auc_score(batch.labels[:, j] == 1, [logits[j] for logits, _ in seen])
        assert result["metrics"][f"test/attentive_probe/auroc/{name}"]["value"] == pytest.approx(expected, abs=1e-6)
        of_images = []
        for i, boxes in enumerate(batch.boxes):
            inside = np.zeros((48, 48), bool)
            for x0, y0, x1, y1, finding in boxes.round().int().tolist():
                if finding == j:
                    inside[max(0, y0) : y1, max(0, x0) : x1] = True
            if inside.any():
                grid = torch.from_numpy(seen[i][1][j]).view(1, 1, *features.grid)
                heat = torch.nn.functional.interpolate(grid, (48, 48), mode="bilinear")[0, 0].numpy()
                of_images.append(measures(heat.ravel(), inside.ravel()))
        for measure, value in zip(("cnr", "auroc"), np.mean(of_images, 0)[[1, 4]], strict=True):
            metric = result["metrics"][f"test/attentive_probe/map/{measure}/{name}"]
            assert metric["value"] == pytest.approx(value, abs=1e-3), (name, measure)
            assert metric["n"] == len(of_images)
    pictures = sorted(path.name for path in (tmp_path / "run" / "figures").iterdir())
    assert pictures == ["attentive_probe000.png", "attentive_probe001.png"]
    assert result["protocol"]["attentive_probe"]["reads"] == "regions and the pooled vector"
