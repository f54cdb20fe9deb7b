"""Thresholds of tasks that are chosen on ``val``: by hand, from the logits of a whole test."""

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from mini import FINDINGS, IMAGE, write_pairs
from sklearn.metrics import balanced_accuracy_score, f1_score, matthews_corrcoef

from diptych.data.loading import Loading
from diptych.errors import ConfigError
from diptych.metrics.bootstrap import as_metrics
from diptych.predictions.kinds import with_draws
from diptych.tasks.attentive_probe import AttentiveProbe
from diptych.tasks.finetune import FineTune
from diptych.tasks.linear import fit_linear
from diptych.tasks.losses import LabelLoss
from diptych.tasks.multiple_instance import MultipleInstance
from diptych.tasks.probe import Probe
from diptych.towers.image import TimmImage
from diptych_datamodules.tabular import Columns, Tabular

pytestmark = pytest.mark.usefixtures("one_thread")
BY = {"val_f1": f1_score, "val_youden": balanced_accuracy_score, "val_mcc": matthews_corrcoef}
WORDS = {"val_f1": "best F1", "val_youden": "best Youden index", "val_mcc": "best MCC"}
COLUMNS = Columns(patient="patient", split="split", labels=FINDINGS)
SMALL = {"width": 16, "attention_heads": 2, "hidden": 16, "pictures": 1}
ROWS = {FineTune: "finetune", MultipleInstance: "multiple_instance", AttentiveProbe: "attentive_probe"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    table = write_pairs(tmp_path_factory.mktemp("thresholds"), n=96)
    return Tabular(str(table), columns=COLUMNS, loading=Loading(image_size=32, eval_batch_size=16, workers=0))


def tower():
    torch.manual_seed(0)
    return TimmImage(**IMAGE)


def ended(task, data, folder):
    """A task after its test, untrained."""
    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    pl.Trainer(default_root_dir=folder, use_distributed_sampler=False, **options).test(task, data, verbose=False)
    return task.eval()


def best_on(scores, labels, measure):
    """The highest of the scores with the best value of scikit-learn's measure."""
    return max(scores.tolist(), key=lambda t: (round(measure(labels, scores >= t), 12), t))


def split_of(data, split):
    batches = list(data.evaluation_loader(split))
    return torch.cat([b.image for b in batches]), torch.cat([b.labels for b in batches]).numpy()


@pytest.mark.parametrize(("kind", "threshold"), zip(ROWS, BY, strict=True))
def test_a_trained_task_takes_its_threshold_from_val(kind, threshold, data, tmp_path):
    task = ended(
        kind(tower(), threshold=threshold, resamples=20, **(SMALL if kind is AttentiveProbe else {})), data, tmp_path
    )
    name, protocol = ROWS[kind], task.protocol[ROWS[kind]]
    assert protocol["threshold"] == f"{WORDS[threshold]} on val"
    for j, finding in enumerate(FINDINGS):
        sides = []
        for split in ("val", "test"):
            images, labels = split_of(data, split)
            with torch.no_grad():
                sides.append((task.logits(images)[:, j].numpy(), labels[:, j]))
        (val, on_val), (scores, labels) = sides
        chosen = protocol["thresholds"][finding]
        best = best_on(val, on_val, BY[threshold])
        assert chosen == pytest.approx(best, abs=1e-5)
        gaps = np.abs(scores - best)
        assert gaps.min() > 1e-5  # the batch's rounding decides for none
        assert task.results[f"test/{name}/f1/{finding}"].value == pytest.approx(f1_score(labels, scores >= best))
    kept = task.predictions[name]
    assert len(kept) == len(task.index) == 16  # of the test alone
    again = as_metrics(with_draws(kept, np.arange(16))[0], f"test/{name}/")
    assert repr(again) == repr({k: v for k, v in task.results.items() if "/map/" not in k})
    if kind is AttentiveProbe:  # no picture of val is drawn
        assert [file.name for file in sorted((tmp_path / "figures").iterdir())] == ["attentive_probe000.png"]


def test_each_layer_of_a_probe_has_its_own_threshold_from_val(data, tmp_path):
    task = Probe(tower(), percents=[50, 100], seeds=2, lr=0.05, epochs=3, threshold="val_mcc", resamples=20)
    features = ended(task, data, tmp_path).image
    protocol, kept = task.protocol["probe"], task.predictions["probe"]
    assert protocol["threshold"] == "best MCC on val"
    different = set()
    for share in ("50%", "100%"):
        found = protocol["fractions"][share]["thresholds of each seed"]
        for seed in (0, 1):
            assert kept.settings["thresholds"][f"{share}/seed{seed}"] == found[seed]
            different.add(found[seed]["Effusion"])
    assert len(different) == 4
    # The layers again, trained by the same function from the same features.
    sets = {}
    with torch.no_grad():
        for split in ("train", "val", "test"):
            images, labels = split_of(data, split)
            sets[split] = features(images).pooled, torch.from_numpy(labels)
    options = {"loss": LabelLoss(), "lr": 0.05, "weight_decay": 1e-6, "epochs": 3, "patience": 10, "batch_size": 48}
    labels, f1s = sets["test"][1][:, 1].numpy(), []
    for seed in (0, 1):
        layer = fit_linear(sets["train"], sets["val"], seed=seed, **options)
        val, test = ((sets[split][0] @ layer.weight[1] + layer.bias[1]).numpy() for split in ("val", "test"))
        best = best_on(val, sets["val"][1][:, 1].numpy(), matthews_corrcoef)
        assert kept.settings["thresholds"][f"100%/seed{seed}"]["Nodule"] == pytest.approx(best, abs=1e-4)
        assert np.abs(test - best).min() > 1e-4
        f1s.append(f1_score(labels, test >= best))
    assert task.results["test/probe/100%/f1/Nodule"].value == pytest.approx(np.mean(f1s))


def test_what_has_no_threshold_says_so(data, tmp_path):
    for kind in (FineTune, Probe):
        with pytest.raises(
            ConfigError, match=f"{kind.__name__}: threshold is 'val_f1', and exclusive classes have none"
        ):
            kind(tower(), classes="exclusive", threshold="val_f1")
        with pytest.raises(
            ConfigError, match=f"{kind.__name__}: threshold is 'half'; choose among: zero, best_f1, val_f1"
        ):
            kind(tower(), threshold="half")
    plain = ended(FineTune(tower(), resamples=0), data, tmp_path)
    assert plain.protocol["finetune"]["threshold"] == "score > 0"
    table = write_pairs(tmp_path / "pairs", n=12)
    table.write_text(table.read_text().replace(",val,", ",train,"))
    without = Tabular(str(table), columns=COLUMNS, loading=Loading(image_size=32, eval_batch_size=16, workers=0))
    with pytest.raises(ConfigError, match=r"FineTune: threshold is 'val_f1', and .* has no 'val'; use data with one"):
        ended(FineTune(tower(), threshold="val_f1"), without, tmp_path)
