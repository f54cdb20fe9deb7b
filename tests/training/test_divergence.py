"""A loss or gradient that is not finite stops the run before anything is overwritten, on all processes."""

import json
from pathlib import Path

import inprocess
import pytest
import torch
import yaml
from chains import differences, left_by
from mini import config, write_pairs

from diptych.model.checkpoint import read_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("diverged")
    described = yaml.safe_load(config(write_pairs(folder / "data"), epochs=3))
    described["recovery"] = {"every_n_train_steps": 1}
    (folder / "run.yaml").write_text(yaml.safe_dump(described))
    return folder


def fit(folder: Path, run: Path, *options: str, where: str = "", step: int = 5):
    spoiler = ["--trainer.callbacks+=killer.Spoil", f"--trainer.callbacks.step={step}"] if where else []
    spoiler += [f"--trainer.callbacks.where={where}"] if where else []
    return inprocess.diptych("fit", "-c", str(folder / "run.yaml"), "--run", str(run), *options, *spoiler)


@pytest.mark.parametrize("where", ["loss", "infinite", "gradient"])
def test_a_step_that_is_not_finite_stops_the_run(folder, tmp_path, where):
    done = fit(folder, tmp_path, where=where)
    assert done.returncode == 2
    (message,) = [line for line in done.stderr.splitlines() if line.startswith("diptych: error: ")]
    what = "gradient" if where == "gradient" else "loss"
    assert f"the {what} is not finite after step 5 of epoch 1" in message
    assert "train/loss/global" in message
    wrong = json.loads((tmp_path / "diverged.json").read_text())
    assert (wrong["step"], wrong["what"]) == (5, what)
    assert len(wrong["ids"]) == 4
    last = read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    assert last["global_step"] == 5
    assert all(torch.isfinite(x).all() for x in last["state_dict"].values() if isinstance(x, torch.Tensor))
    if where != "loss":
        return
    fit(folder, tmp_path / "whole")  # what was saved is whole: without the fault, the run goes on to the same end
    assert fit(folder, tmp_path, "--ckpt_path", "last").returncode == 0
    assert not differences(left_by(tmp_path), left_by(tmp_path / "whole"))


def test_within_an_accumulation_the_batch_is_known(folder, tmp_path):
    done = fit(folder, tmp_path, "--trainer.accumulate_grad_batches", "2", where="odd", step=3)
    assert done.returncode == 2, done.stderr
    wrong = json.loads((tmp_path / "diverged.json").read_text())
    assert len(wrong["ids"]) == 4  # of one batch of the two


def test_weights_that_a_finite_gradient_has_spoiled_are_not_saved(folder, tmp_path):
    done = fit(folder, tmp_path, where="weights")
    assert done.returncode == 2
    assert "weights are not finite" in done.stderr
    assert read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == 5


def test_single_steps_are_skipped_and_counted(folder, tmp_path):
    done = fit(folder, tmp_path, "--divergence.nonfinite", "skip", where="loss")
    assert done.returncode == 0, done.stderr
    last = left_by(tmp_path)["last"]
    assert last["global_step"] == 12
    assert last["callbacks"]["Divergence"]["skipped"] == 1
    assert all(torch.isfinite(x).all() for x in last["state_dict"].values() if isinstance(x, torch.Tensor))
    counts = {int(state["step"]) for state in last["optimizer_states"][0]["state"].values()}
    assert counts == {11}


def test_steps_skipped_in_a_row_stop_the_run(folder, tmp_path):
    options = ("--divergence.nonfinite", "skip", "--divergence.patience", "2")
    done = fit(folder, tmp_path, *options, where="always")
    assert done.returncode == 2
    assert "after step 6" in done.stderr


def test_other_steps_are_refused_on_going_on(folder, tmp_path):
    assert fit(folder, tmp_path, "--trainer.max_epochs", "1").returncode == 0
    for option, words in (
        (("--data.loading.batch_size", "8"), "4 samples a step"),
        (("--data.loading.seed", "3"), "data.loading.seed"),
    ):
        done = fit(folder, tmp_path, "--ckpt_path", "last", *option)
        assert done.returncode == 2
        assert words in done.stderr.splitlines()[-1]
