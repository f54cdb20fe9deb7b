"""An interrupted run ends where an uninterrupted one does, bit for bit."""

import inprocess
import pytest
import torch
import yaml
from mini import FINDINGS, config, diptych, write_pairs

from diptych.model.checkpoint import read_checkpoint
from diptych.model.inference import load


def final(run):
    """Weights and optimiser state after the last step."""
    checkpoint = read_checkpoint(run / "checkpoints" / "last.ckpt")
    assert checkpoint["global_step"] == 12
    tensors = {name: value for name, value in checkpoint["state_dict"].items() if isinstance(value, torch.Tensor)}
    for i, state in checkpoint["optimizer_states"][0]["state"].items():
        tensors |= {f"optimizer.{i}.{name}": value for name, value in state.items()}
    return tensors


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    table = write_pairs(folder / "data")  # 16 training pairs: 4 steps an epoch
    columns = {"patient": "patient", "split": "split", "labels": FINDINGS}
    described = yaml.safe_load(config(table, head="local_pooling", epochs=3, workers=2))
    described["data"] = {  # captions are drawn anew each epoch
        "class_path": "label_matched",
        "init_args": {
            "images": str(table),
            "reports": str(table),
            "findings": FINDINGS,
            "image_columns": columns,
            "report_columns": {"split": "split", "labels": FINDINGS},
            "loading": described["data"]["init_args"]["loading"],
        },
    }
    described["recovery"] = {"every_n_train_steps": 2}
    described["trainer"]["callbacks"] = [{"class_path": "EMAWeightAveraging", "init_args": {"decay": 0.9}}]
    (folder / "run.yaml").write_text(yaml.safe_dump(described))
    return folder


@pytest.fixture(scope="module")
def uninterrupted(recipe):
    done = diptych("fit", "-c", str(recipe / "run.yaml"), "--run", str(recipe / "whole"))
    assert done.returncode == 0, done.stderr
    return final(recipe / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("step", [7, 9])  # resumes from step 6 (mid-epoch) and 8 (epoch's end)
def test_killed_in_mid_epoch_and_resumed(recipe, uninterrupted, step):
    run = recipe / f"killed{step}"
    command = ["fit", "-c", str(recipe / "run.yaml"), "--run", str(run)]
    killed = diptych(*command, "--trainer.callbacks+=killer.KillAt", f"--trainer.callbacks.step={step}")
    assert killed.returncode == -9, killed.stderr
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == step - 1
    resumed = diptych(*command, "--ckpt_path", "last")
    assert resumed.returncode == 0, resumed.stderr
    ended = final(run)
    assert ended.keys() == uninterrupted.keys()
    different = [name for name in ended if not torch.equal(ended[name], uninterrupted[name])]
    assert not different


# Prototypes that stand still in epoch 0, and a term that warms up, draws by the step and has a moving teacher.
FOLLOWING = {
    "class_path": "composite",
    "init_args": {
        "heads": [
            {"class_path": "mgca", "init_args": {"width": 16, "hidden": 16, "prototypes": 8}},
            {"class_path": "pcma", "init_args": {"width": 16, "queries": 4, "cce": 0.0}},
            {"class_path": "cce", "init_args": {"width": 16, "source": "ema", "warmup": 0.7}},
        ]
    },
}


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """A recipe, and its uninterrupted run in ``whole``."""
    folder = tmp_path_factory.mktemp("followed")
    described = yaml.safe_load(config(write_pairs(folder / "data"), epochs=3))
    described["model"]["head"] = FOLLOWING
    described["model"]["image"]["init_args"] = described["model"]["image"]["init_args"] | {"stage": 2}  # 4x4 regions
    described["recovery"] = {"every_n_train_steps": 2}
    described["figures"] = {"pairs": 1, "every_n_epochs": 3}
    (folder / "run.yaml").write_text(yaml.safe_dump(described))
    done = inprocess.diptych("fit", "-c", str(folder / "run.yaml"), "--run", str(folder / "whole"))
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("step", [3, 7])  # resumes in mid-epoch 0, with the prototypes frozen, and in mid-epoch 1
def test_heads_that_follow_training_resume_exactly(followed, step):
    run = followed / f"stopped{step}"
    fit = ["fit", "-c", str(followed / "run.yaml"), "--run", str(run)]
    with pytest.raises(InterruptedError):
        inprocess.diptych(*fit, "--trainer.callbacks+=killer.RaiseAt", f"--trainer.callbacks.step={step}")
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == step - 1
    resumed = inprocess.diptych(*fit, "--ckpt_path", "last")
    assert resumed.returncode == 0, resumed.stderr
    ended, whole = final(run), final(followed / "whole")
    assert ended.keys() == whole.keys()
    assert not [name for name in ended if not torch.equal(ended[name], whole[name])]


@pytest.mark.slow
def test_a_composite_is_drawn_and_loaded_as_any_head(followed):
    kinds = {path.name.split("-")[-2] for path in (followed / "whole" / "figures").glob("*.png") if "-" in path.stem}
    assert {"attention", "queries"} <= kinds
    model = load(followed / "whole" / "checkpoints" / "last.ckpt")
    picture = followed / "data" / "000.png"
    assert model.similarity([picture], ["There is no effusion.", "There is a nodule."]).shape == (1, 2)
    assert model.heatmap(picture, "There is no effusion.")[1].shape == (4, 32, 32)
    assert model.observations(picture).shape == (4, 32, 32)
