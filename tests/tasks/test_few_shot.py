"""Few-shot segmentation: the equation, whole runs against their parts, pictures, two processes, real lungs."""

import csv
import math

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from inprocess import diptych, rescored
from mini import DDP, IMAGE, TRAINER, write_masks, write_recipe
from PIL import Image
from sklearn.metrics import f1_score, jaccard_score, roc_auc_score

from diptych.data.loading import Loading
from diptych.errors import ConfigError
from diptych.tasks.few_shot import FewShot, carry_mask
from diptych.towers.image import TimmImage
from diptych_datamodules.tabular import Columns, Tabular

pytestmark = pytest.mark.usefixtures("one_thread")


def test_masks_are_carried_place_by_place():
    rng = torch.Generator().manual_seed(0)
    query, support = (torch.randn(n, 5, generator=rng, dtype=torch.float64) for n in (7, 11))
    share = torch.rand(11, generator=rng, dtype=torch.float64)
    centre = sum(support) / 11
    for q, value in zip(query, carry_mask(query, support, share, 0.3), strict=True):
        weights = []
        for s in support:
            a, b = q - centre, s - centre
            weights.append(float(torch.exp(a.dot(b) / (a.norm() * b.norm()) / 0.3)))
        expected = sum(w * float(x) for w, x in zip(weights, share, strict=True)) / sum(weights)
        assert float(value) == pytest.approx(expected, rel=1e-12)


def test_at_a_low_temperature_the_likest_place_decides_and_scale_and_order_change_nothing():
    rng = torch.Generator().manual_seed(0)
    support, share = torch.randn(20, 8, generator=rng), torch.rand(20, generator=rng)
    torch.testing.assert_close(carry_mask(support, support, share, 1e-3), share)
    order = torch.randperm(20, generator=rng)
    query = torch.randn(9, 8, generator=rng)
    mask = carry_mask(query, support, share, 0.1)
    torch.testing.assert_close(carry_mask(7 * query, 7 * support[order], share[order], 0.1), mask)
    assert 0 <= mask.min() <= mask.max() <= 1


def test_what_it_cannot_take_it_says():
    image = TimmImage("resnet10t", pretrained=False, model_args=IMAGE["model_args"])
    for options, message in (
        ({"stride": 7}, "stride is 7; choose among: 4, 8, 16, 32"),
        ({"shots": [0]}, r"shots is \[0\]; give different numbers of 1 or more"),
        ({"shots": [2, 2]}, r"shots is \[2, 2\]; give different"),
        ({"temperature": 0}, "temperature is 0; give a number above 0"),
        ({"episodes": 0}, "episodes is 0; give a whole number of 1 or more"),
        ({"pictures": -1}, "pictures is -1; give a whole number of 0 or more"),
    ):
        with pytest.raises(ConfigError, match=f"FewShot: {message}"):
            FewShot(image, **options)
    assert not any(parameter.requires_grad for parameter in FewShot(image).parameters())


def recipe(folder, table, name, *, columns=None, trainer=None, **options):
    columns = columns or {"mask": "mask", "patient": "patient", "split": "split", "text": []}
    loading = {"image_size": 32, "eval_batch_size": 4, "workers": 0}
    image = {"class_path": "TimmImage", "init_args": IMAGE}
    task = {"image": image, "shots": [1, 3], "episodes": 2, "stride": 4, "pictures": 3, "resamples": 50, **options}
    data = {"table": str(table), "columns": columns, "loading": loading}
    return write_recipe(folder / f"{name}.yaml", ("FewShot", task), ("tabular", data), **(trainer or {}))


@pytest.fixture(scope="module")
def tested(tmp_path_factory):
    folder = tmp_path_factory.mktemp("few_shot")
    table = write_masks(folder / "masks")
    done = diptych("test", "-c", recipe(folder, table, "one"), "--run", str(folder / "run"))
    assert done.returncode == 0, done.stderr
    return folder, table, rescored(folder / "run")


def test_the_figures_are_those_of_its_parts_by_hand(tested):
    _, table, result = tested
    torch.manual_seed(1)  # the recipe's seed: the tower is the first thing made
    tower = TimmImage("resnet10t", pretrained=False, model_args=IMAGE["model_args"]).eval()
    rows = {"train": [], "test": []}
    for row in csv.DictReader(table.open()):
        if row["split"] in rows:
            image = np.array(Image.open(table.parent / row["image"]))
            truth = np.array(Image.open(table.parent / row["mask"])) > 0
            with torch.no_grad():
                level = tower.pyramid(torch.from_numpy(image)[None, None])[0][0]
            rows[row["split"]].append((image, truth, level.flatten(1).T))
    values = []
    for _, truth, query in rows["test"]:
        if not truth.any():
            continue
        of_shots = []
        for shots in (1, 3):
            of_episodes = []
            for episode in range(2):
                order = np.random.default_rng([0, episode]).permutation(len(rows["train"]))
                chosen = [rows["train"][i] for i in order if rows["train"][i][1].any()][:shots]
                share = [torch.from_numpy(t).float().view(8, 4, 8, 4).mean((1, 3)).flatten() for _, t, _ in chosen]
                heat = carry_mask(query, torch.cat([level for *_, level in chosen]), torch.cat(share), 0.1)
                heat = torch.nn.functional.interpolate(heat.view(1, 1, 8, 8), (32, 32), mode="bilinear")[0, 0].numpy()
                flat, predicted = truth.ravel(), heat.ravel() > 0.5
                scores = (f1_score(flat, predicted), jaccard_score(flat, predicted), roc_auc_score(flat, heat.ravel()))
                of_episodes.append(scores)
            of_shots.append(np.mean(of_episodes, axis=0))
        values.append(of_shots)
    expected = np.mean(values, axis=0)
    metrics = result["metrics"]
    assert len(metrics) == 6
    for j, shots in enumerate((1, 3)):
        for of, name in enumerate(("dice", "iou", "auroc")):
            metric = metrics[f"test/few_shot/{shots}-shot/{name}"]
            assert metric["value"] == pytest.approx(expected[j, of], abs=1e-5), (shots, name)
            assert metric["n"] == len(values) == 8
            assert metric["low"] < metric["value"] < metric["high"]
    assert expected[1, 2] > 0.7  # bright places are found by their likeness, whatever the weights
    assert len(list((table.parent.parent / "run" / "figures").glob("few_shot*.png"))) >= 2


@pytest.mark.slow
def test_two_processes_are_as_one(tested, gloo2):
    from jobs import two_give

    folder, table, result = tested
    two_give(gloo2, result["metrics"], recipe(folder, table, "two", trainer={"strategy": DDP}), folder / "two")


def test_a_diverged_tower_has_no_figures(tested):
    """Not those of the images that came through."""
    folder, table, _ = tested

    class Odd(TimmImage):
        def pyramid(self, image):
            levels = super().pyramid(image)
            levels[0][image.float().mean((1, 2, 3)) > 60] = torch.nan  # some images
            return levels

    data = Tabular(
        str(table),
        columns=Columns(mask="mask", patient="patient", split="split", text=[]),
        loading=Loading(image_size=32, eval_batch_size=4, workers=0),
    )
    for precision in ("32-true", "bf16-mixed"):
        for kind, fine in ((TimmImage, True), (Odd, False)):
            torch.manual_seed(1)
            image = kind("resnet10t", pretrained=False, model_args=IMAGE["model_args"])
            task = FewShot(image, shots=[1], episodes=1, stride=4, pictures=0, resamples=0)
            quiet = {"logger": False, "enable_checkpointing": False, "default_root_dir": folder, "precision": precision}
            pl.Trainer(**TRAINER, **quiet).test(task, data, verbose=False)
            assert {math.isfinite(value.value) for value in task.results.values()} == {fine}
            assert {value.n for value in task.results.values()} == {8}


def test_what_the_data_lack_is_said(tested):
    folder, table, _ = tested
    columns = {"patient": "patient", "split": "split", "text": []}
    done = diptych("test", "-c", recipe(folder, table, "none", columns=columns), "--run", str(folder / "none"))
    assert done.returncode != 0
    assert "gives no masks; choose data that have some" in done.stderr
    done = diptych("test", "-c", recipe(folder, table, "many", shots=[1, 30]), "--run", str(folder / "many"))
    assert done.returncode != 0
    assert "images with a mask; shots of 30 need as many" in done.stderr
