"""Weakly supervised localisation: the equation, a whole run against its parts, what is never trained on."""

import numpy as np
import pytest
import torch
from inprocess import fit_and_test
from mini import DDP, IMAGE, write_recipe
from sklearn.metrics import roc_auc_score

from diptych.data.loading import Loading
from diptych.errors import ConfigError
from diptych.metrics.localisation import measures
from diptych.model.checkpoint import read_checkpoint
from diptych.tasks.multiple_instance import MultipleInstance, top_share
from diptych.towers.image import TimmImage
from diptych_datamodules.phantom import Phantom

pytestmark = pytest.mark.usefixtures("one_thread")
PHANTOMS = {
    "train": 64,
    "val": 24,
    "test": 30,
    "size": 48,
    "max_findings": 2,
    "normal": 0.2,
    "mix": {"Pleural Effusion": 1, "Pneumothorax": 1},
}


def test_the_top_share_is_the_mean_of_the_highest():
    logits = torch.randn(3, 2, 10, dtype=torch.float64)
    for share, count in ((0.01, 1), (0.1, 1), (0.11, 2), (0.5, 5), (1.0, 10)):
        expected = np.sort(logits.numpy())[..., -count:].mean(-1)
        np.testing.assert_allclose(top_share(logits, share).numpy(), expected)


def test_what_it_cannot_take_it_says():
    image = TimmImage("resnet10t", pretrained=False, model_args=IMAGE["model_args"])
    for share in (0, 1.5):
        with pytest.raises(ConfigError, match=f"MultipleInstance: share is {share}; give a number above 0 and up to 1"):
            MultipleInstance(image, share=share)


@pytest.fixture(scope="module")
def located(tmp_path_factory):
    folder = tmp_path_factory.mktemp("located")
    loading = {"image_size": 48, "batch_size": 8, "eval_batch_size": 7, "workers": 0}
    image = {"class_path": "TimmImage", "init_args": {**IMAGE, "stage": 2}}
    task = "MultipleInstance", {"image": image, "share": 0.2, "resamples": 50}
    data = "phantom", {**PHANTOMS, "loading": loading}
    write_recipe(folder / "two.yaml", task, data, strategy=DDP)
    run = folder / "run"
    return folder, run, fit_and_test(write_recipe(folder / "one.yaml", task, data, max_epochs=3), run)


def test_the_figures_are_those_of_its_parts_by_hand(located):
    _, run, result = located
    checkpoint = read_checkpoint(run / "checkpoints" / "best.ckpt")
    weights = checkpoint["state_dict"]
    tower = TimmImage("resnet10t", pretrained=False, model_args=IMAGE["model_args"], stage=2)
    tower.load_state_dict({k.removeprefix("image."): v for k, v in weights.items() if k.startswith("image.")})
    tower.eval()
    data = Phantom(**PHANTOMS, loading=Loading(image_size=48, workers=0))
    data.setup("test")
    batch = data.batch("test", range(30))
    with torch.no_grad():
        tokens = tower(batch.image).tokens
    tokens = (tokens - tokens.mean(-1, keepdim=True)) / (tokens.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    maps = (tokens @ weights["linear.weight"].T + weights["linear.bias"]).transpose(1, 2)  # [n,L,N]
    side = round(maps.shape[2] ** 0.5)
    metrics = result["metrics"]
    columns = ["Pleural Effusion", "Pneumothorax"]
    for name in columns:
        j = data.findings.index(name)
        scores = top_share(maps[:, j], 0.2)
        expected = roc_auc_score(batch.labels[:, j] == 1, scores)
        assert metrics[f"test/multiple_instance/auroc/{name}"]["value"] == pytest.approx(expected, abs=1e-6)
        of_images = []
        for i, boxes in enumerate(batch.boxes):
            inside = np.zeros((48, 48), bool)
            for x0, y0, x1, y1, finding in boxes.round().int().tolist():
                if finding == j:
                    inside[max(0, y0) : y1, max(0, x0) : x1] = True
            if inside.any():
                heat = maps[i, j].view(1, 1, side, side)
                heat = torch.nn.functional.interpolate(heat, (48, 48), mode="bilinear")[0, 0].numpy()
                of_images.append(measures(heat.ravel(), inside.ravel()))
        for measure, value in zip(("pointing", "cnr", "miou", "dice", "auroc"), np.mean(of_images, 0), strict=True):
            metric = metrics[f"test/multiple_instance/map/{measure}/{name}"]
            assert metric["value"] == pytest.approx(value, abs=1e-5), (name, measure)
            assert metric["n"] == len(of_images)
    assert set(result["protocol"]["multiple_instance"]["images with a region"]) == set(columns)
    before = {k: v for k, v in weights.items() if k.startswith("image.")}
    torch.manual_seed(1)
    start = TimmImage("resnet10t", pretrained=False, model_args=IMAGE["model_args"], stage=2).state_dict()
    for name, value in start.items():
        if isinstance(value, torch.Tensor):  # the tower stays as it was, batch statistics too
            torch.testing.assert_close(before[f"image.{name}"], value)


@pytest.mark.slow
def test_two_processes_are_as_one(located, gloo2):
    from jobs import two_give

    folder, run, result = located
    best = str(run / "checkpoints" / "best.ckpt")
    two_give(gloo2, result["metrics"], str(folder / "two.yaml"), folder / "two", "--ckpt_path", best)
