"""What a probe is trained with: losses, solvers, few images of each class; and whole runs against scikit-learn."""

import csv
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from inprocess import diptych, rescored
from mini import FINDINGS, IMAGE, write_pairs, write_recipe
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score, log_loss, roc_auc_score
from sklearn.utils.class_weight import compute_class_weight

from diptych.data.loading import Loading
from diptych.errors import ConfigError, DataError
from diptych.tasks.finetune import FineTune
from diptych.tasks.linear import LinearFit, best_fit, fit_linear, fit_logistic, k_shot_labels
from diptych.tasks.losses import LabelLoss, balanced_weights, check_exclusive, known_bce, known_ce
from diptych.tasks.probe import Probe
from diptych.towers.image import TimmImage
from diptych_datamodules.tabular import Columns, Tabular

pytestmark = pytest.mark.usefixtures("one_thread")


def random_set(n, seed=0, width=5, classes=3):
    """Features and labels, some of them unknown; the first finding is rare."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, width))
    y = (x @ np.random.default_rng(9).normal(size=(width, classes)) + rng.normal(size=(n, classes)) > [2, 0, 0.5]) * 1.0
    y[rng.random(y.shape) < 0.1], y[rng.random(y.shape) < 0.1] = -1, np.nan
    return torch.from_numpy(x).float(), torch.from_numpy(y).float()


def by_loop(logits, labels, weights=None):
    """The soft-max loss, sample by sample."""
    total, number = 0.0, 0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        own = [j for j, value in enumerate(label) if value == 1]
        if len(own) == 1:
            share = np.exp(row[own[0]]) / np.exp(row).sum()
            total -= np.log(share) * (1 if weights is None else float(weights[own[0]]))
            number += 1
    return total, number


def test_the_loss_of_exclusive_classes_against_a_loop():
    labels = random_set(60)[1]
    logits = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    for weights in (None, torch.tensor([0.5, 2.0, 1.0])):
        total, number = known_ce(logits, labels, weights)
        expected = by_loop(logits, labels, weights)
        assert 0 < number == expected[1] < 60
        assert float(total) == pytest.approx(expected[0], rel=1e-5)
    single = (labels == 1).sum(1) == 1
    true = (labels[single] == 1).float().argmax(1)
    mean = LabelLoss("exclusive").mean(logits, labels)
    assert float(mean) == pytest.approx(log_loss(true, logits[single].softmax(1), labels=[0, 1, 2]), rel=1e-5)


def test_balanced_weights_are_scikit_learns_and_give_each_class_its_share():
    labels = random_set(200)[1]
    weights = balanced_weights(labels, "independent")
    for j in range(3):
        known = labels[(labels[:, j] == 0) | (labels[:, j] == 1), j].numpy()
        np.testing.assert_allclose(weights[:, j], compute_class_weight("balanced", classes=np.array([0, 1]), y=known))
        chexnet = (known == 0).mean() / (known == 1).mean()  # its w+ over its w-
        assert float(weights[1, j] / weights[0, j]) == pytest.approx(chexnet, rel=1e-5)
    total, known = known_bce(torch.zeros(200, 3), labels, weights)
    plain, _ = known_bce(torch.zeros(200, 3), labels)
    assert float(total) == pytest.approx(float(plain), rel=1e-5)  # the mean weight is 1
    single = labels[(labels == 1).sum(1) == 1]
    true = (single == 1).float().argmax(1).numpy()
    expected = compute_class_weight("balanced", classes=np.arange(3), y=true)
    np.testing.assert_allclose(balanced_weights(labels, "exclusive"), expected, rtol=1e-6)
    assert balanced_weights(torch.ones(4, 1), "independent").T.tolist() == [[0.0, 0.5]]


@pytest.mark.parametrize("class_weights", ["none", "balanced"])
@pytest.mark.parametrize("c", [0.01, 1.0, 100.0])
def test_logistic_regression_is_scikit_learns(c, class_weights):
    (x, y), val = random_set(150), random_set(40, seed=1)
    options = {"C": c, "class_weight": None if class_weights == "none" else "balanced", "tol": 1e-8, "max_iter": 5000}
    fit = fit_logistic((x, y), val, loss=LabelLoss.of(y, "independent", class_weights), c=c, iterations=1000)
    assert fit.setting == c
    for j in range(3):
        known = (y[:, j] == 0) | (y[:, j] == 1)
        theirs = LogisticRegression(**options).fit(x[known].double(), y[known, j])
        np.testing.assert_allclose(fit.weight[j], theirs.coef_[0], rtol=1e-3, atol=1e-4)
        assert float(fit.bias[j]) == pytest.approx(float(theirs.intercept_[0]), rel=1e-3, abs=1e-4)
    single = (y == 1).sum(1) == 1
    theirs = LogisticRegression(**options).fit(x[single].double(), (y[single] == 1).float().argmax(1))
    loss = LabelLoss.of(y, "exclusive", class_weights)
    fit = fit_logistic((x, y), val, loss=loss, c=c, iterations=1000)
    chances = torch.nn.functional.linear(x, fit.weight, fit.bias).softmax(1)
    np.testing.assert_allclose(chances, theirs.predict_proba(x.double()), atol=1e-4)
    assert fit.loss == pytest.approx(float(loss.mean(val[0] @ fit.weight.T + fit.bias, val[1])), rel=1e-5)


def test_few_of_each_class_are_so_many_nested_and_drawn_by_the_seed():
    y = random_set(120)[1]
    names = ["rare", "b", "c"]
    drawn = {(k, seed): k_shot_labels(y, names, k, seed, "independent") for k in (2, 5) for seed in (0, 1)}
    for (k, _), few in drawn.items():
        known = ~few.isnan()
        assert (few[known] == y[known]).all()
        assert [[int((column == value).sum()) for value in (1, 0)] for column in few.T] == [[k, k]] * 3
    assert (~drawn[2, 0].isnan() <= ~drawn[5, 0].isnan()).all()
    assert not torch.equal(drawn[5, 0].isnan(), drawn[5, 1].isnan())
    few = k_shot_labels(y, names, 2, 0, "exclusive")
    rows = (~few.isnan()).any(1)
    assert few[rows].eq(1).sum(1).tolist() == [1] * 6
    assert few.eq(1).sum(0).tolist() == [2, 2, 2]
    rare = int((y[:, 0] == 1).sum())
    with pytest.raises(
        DataError, match=f"'train' has {rare} images with 'rare', and shots has {rare + 1}; give at most"
    ):
        k_shot_labels(y, names, rare + 1, 0, "independent")


def test_the_lowest_loss_on_val_is_chosen():
    fits = [LinearFit(torch.zeros(1, 1), torch.zeros(1), 1, loss, i) for i, loss in enumerate((np.nan, 0.4, 0.3, 0.3))]
    assert best_fit(fits).setting == 2
    assert best_fit(fits[:1]).setting == 0


def test_what_a_probe_cannot_take_it_says():
    with pytest.raises(
        ConfigError, match="Probe: classes is 'exclusive', and the data have one finding, Edema; give cla"
    ):
        check_exclusive("Probe", "exclusive", ["Edema"])
    image = TimmImage(**IMAGE)
    for options, message in (
        ({"solver": "sgd"}, "Probe: solver is 'sgd'; choose among: adamw, lbfgs"),
        ({"classes": "one"}, "Probe: classes is 'one'; choose among: independent, exclusive"),
        ({"class_weights": "some"}, "Probe: class_weights is 'some'; choose among: none, balanced"),
        ({"lr": []}, "Probe: lr is empty; give a number above 0, or several"),
        ({"lr": [1e-3, 0]}, "Probe: lr is 0; give a number above 0"),
        ({"solver": "lbfgs", "c": -1.0}, "Probe: c is -1.0; give a number above 0"),
        ({"shots": [4, 4]}, r"Probe: shots is \[4, 4\]; give different numbers"),
        ({"shots": [0]}, "Probe: shots is 0; give a whole number of 1 or more"),
        ({"percents": []}, r"Probe: percents is \[\]"),
    ):
        with pytest.raises(ConfigError, match=message):
            Probe(image, **options)


def slow_bce(logits, labels, weights):
    """The weighted loss of the known labels, one by one."""
    total, number = 0.0, 0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        for j, (logit, value) in enumerate(zip(row, label, strict=True)):
            if value in (0, 1):
                total += float(weights[int(value), j]) * np.log(1 + np.exp(logit if value == 0 else -logit))
                number += 1
    return total, number


class Some(SimpleNamespace):
    """Samples with labels: a batch, or a data set that reads no image."""

    def __len__(self):
        return len(self.labels)

    def labels_of(self, index):
        return self.labels[index].numpy()


def test_a_batch_of_fine_tuning_has_the_weighted_loss(monkeypatch):
    """The weights are of all training labels, the mean is of the batch."""
    _, y = random_set(80)
    images = torch.randint(0, 256, (10, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    data = SimpleNamespace(datasets={"train": Some(labels=y)}, findings=("a", "b", "c"), loading=Loading(image_size=32))
    monkeypatch.setattr(FineTune, "data", data)
    monkeypatch.setattr(FineTune, "log", lambda self, *args, **options: None)
    for classes, slow in (("independent", slow_bce), ("exclusive", by_loop)):
        task = FineTune(TimmImage(**IMAGE), classes=classes, class_weights="balanced")
        task.configure_model()
        task.on_fit_start()
        task.eval()
        loss = float(task.training_step(Some(image=images, labels=y[:10]), 0))
        total, number = slow(task(images).detach(), y[:10], balanced_weights(y, classes))
        assert loss == pytest.approx(total / number, rel=1e-5)
    one = SimpleNamespace(findings=("a",), loading=Loading(image_size=32), protocol="some data")
    monkeypatch.setattr(FineTune, "data", one)
    with pytest.raises(ConfigError, match="FineTune: classes is 'exclusive', and the data have one finding, a"):
        FineTune(TimmImage(**IMAGE), classes="exclusive").configure_model()


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("probe") / "pairs", n=90)


def run_of(table, name, options):
    """The results of a probe of random features, and its scores of the test images by share, seed and finding."""
    columns = {"patient": "patient", "split": "split", "labels": FINDINGS}
    data = {"table": str(table), "columns": columns, "loading": {"image_size": 32, "eval_batch_size": 15, "workers": 0}}
    model = {"image": {"class_path": "TimmImage", "init_args": IMAGE}, "resamples": 20, **options}
    run = table.parent.parent / name
    file = write_recipe(table.parent.parent / f"{name}.yaml", ("Probe", model), ("tabular", data))
    done = diptych("test", "-c", file, "--run", str(run))
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((run / "predictions.csv").open()))
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    return rescored(run), columns


def features_of(table):
    """The same random tower's features of each split."""
    torch.manual_seed(1)  # seed_everything of the recipe
    tower = TimmImage(**IMAGE).eval()
    columns = Columns(patient="patient", split="split", labels=FINDINGS)
    data = Tabular(str(table), columns=columns, loading=Loading(image_size=32, eval_batch_size=15, workers=0))
    data.setup("test")
    with torch.no_grad():
        sets = {split: list(data.evaluation_loader(split)) for split in ("train", "val", "test")}
        return {
            split: (torch.cat([tower(b.image).pooled for b in batches]), torch.cat([b.labels for b in batches]))
            for split, batches in sets.items()
        }


def test_the_learning_rate_is_chosen_on_val_and_told(table):
    rates, sets = [5e-3, 5e-2], features_of(table)
    options = {"lr": rates, "percents": [100], "shots": [4], "seeds": 2, "epochs": 9, "class_weights": "balanced"}
    result, _ = run_of(table, "rates", options)
    (x, y), fixed = sets["train"], {"weight_decay": 1e-6, "epochs": 9, "patience": 10, "batch_size": 48}
    told = result["protocol"]["probe"]["fractions"]
    for share in ("100%", "4-shot"):
        aurocs, chosen = [], []
        for seed in (0, 1):
            labels = y if share == "100%" else k_shot_labels(y, FINDINGS, 4, seed, "independent")
            rows = (~labels.isnan()).any(1)
            loss = LabelLoss(weights=balanced_weights(labels[rows], "independent"))
            fits = {
                lr: fit_linear((x[rows], labels[rows]), sets["val"], loss=loss, seed=seed, lr=lr, **fixed)
                for lr in rates
            }
            chosen.append(min(rates, key=lambda lr: fits[lr].loss))
            scores = sets["test"][0] @ fits[chosen[-1]].weight.T + fits[chosen[-1]].bias
            aurocs.append([roc_auc_score(sets["test"][1][:, j], scores[:, j]) for j in range(2)])
        assert told[share]["lr of each seed"] == pytest.approx(chosen)
        assert told[share]["auroc of each seed"] == pytest.approx(np.mean(aurocs, axis=1), abs=1e-6)
        metric = result["metrics"][f"test/probe/{share}/auroc/macro"]
        assert metric["value"] == pytest.approx(np.mean(aurocs), abs=1e-6)
    assert told["4-shot"]["positives"] == dict.fromkeys(FINDINGS, 4)
    assert result["protocol"]["probe"]["lr"] == f"lowest loss on val of {rates}"


def test_exclusive_classes_by_logistic_regression(table):
    options = {"solver": "lbfgs", "percents": [100], "shots": [5], "seeds": 2, "classes": "exclusive"}
    result, columns = run_of(table, "exclusive", options)
    labels = np.stack([columns[f"probe/label/{name}"].astype(float) for name in FINDINGS], axis=1)
    single = (labels == 1).sum(1) == 1
    assert 0 < single.sum() < len(single)
    true = labels[single].argmax(1)
    for share, seeds in (("100%", [0]), ("5-shot", [0, 1])):
        values = []
        for seed in seeds:
            scores = [columns[f"probe/{share}/seed{seed}/score/{name}"].astype(float) for name in FINDINGS]
            scores = np.stack(scores, axis=1)[single]
            predicted = scores.argmax(1)
            auroc = [roc_auc_score(true == j, scores[:, j]) for j in range(2)]
            values.append([accuracy_score(true, predicted), np.mean(auroc), f1_score(true, predicted, average="macro")])
        for name, value in zip(("accuracy", "auroc/macro", "f1/macro"), np.mean(values, axis=0), strict=True):
            metric = result["metrics"][f"test/probe/{share}/{name}"]
            assert metric["value"] == pytest.approx(value, abs=1e-9)
            assert metric["n"] == single.sum()
        told = result["protocol"]["probe"]["fractions"][share]
        assert len(told["c of each seed"]) == len(told["iterations of each seed"]) == len(seeds)
    assert f"probe/100%/seed1/score/{FINDINGS[0]}" not in columns  # the same layer again
    assert result["protocol"]["probe"]["stopped by"] == "convergence"
