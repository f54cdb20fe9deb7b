"""An interrupted run ends where an uninterrupted one does, bit for bit."""

import pytest
import torch
from mini import FINDINGS, config, diptych, write_pairs

from diptych.loading import read_checkpoint


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
    import yaml

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
@pytest.mark.parametrize("step", [7, 9, 11])  # resumes from step 6 (mid-epoch), 8 (epoch's end), 10 (mid-epoch)
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
