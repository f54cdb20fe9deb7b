"""Two processes train and test as one process does on the same global batch. They are launched as by a user, or by torchrun."""

import json
import signal

import inprocess
import pytest
import torch
import yaml
from chains import differences, left_by
from jobs import GLOO, launch, on_two
from mini import ROOT, config, write_pairs

from diptych.data.sampling import TrainingSampler
from diptych.model.checkpoint import read_checkpoint

pytestmark = pytest.mark.slow

STEPS = 6  # two epochs of 26 pairs in global batches of 8
MACHINE = str(ROOT / "experiments" / "machine" / "ddp.yaml")
TWO = [*GLOO, "--trainer.precision", "32-true", "--data.loading.batch_size", "4"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """No dropout (each process draws its own) and no batch norm; batches of 8 on one process."""
    folder = tmp_path_factory.mktemp("ddp")
    described = yaml.safe_load(
        config(write_pairs(folder / "data", n=39), head="local_pooling", epochs=2)
    )  # 26, 6, 7 pairs
    vit = {"embed_dim": 32, "depth": 1, "num_heads": 2, "img_size": 32}
    described["model"]["image"]["init_args"] = {"name": "vit_tiny_patch16_224", "pretrained": False, "model_args": vit}
    described["model"]["text"]["init_args"]["dropout"] = 0.0
    described["model"]["evaluators"] = [
        {"class_path": "Retrieval", "init_args": {"resamples": 50}},
        {"class_path": "ZeroShot", "init_args": {"prompts": "nih", "resamples": 50}},
    ]
    described["data"]["init_args"]["loading"]["batch_size"] = 8
    described["recovery"] = {"every_n_train_steps": 2}
    (folder / "run.yaml").write_text(yaml.safe_dump(described))
    return folder


def fit(recipe, run, *options):
    done = inprocess.diptych("fit", "-c", str(recipe / "run.yaml"), "--run", str(recipe / run), *options)
    assert done.returncode == 0, done.stderr


def command(recipe, run, what="fit"):
    return [what, "-c", str(recipe / "run.yaml"), "-c", MACHINE, *TWO, "--run", str(recipe / run)]


@pytest.fixture(scope="module")
def one(recipe):
    fit(recipe, "one")
    return recipe / "one"


@pytest.fixture(scope="module")
def two(recipe):
    done = launch(*command(recipe, "two"))
    assert done.returncode == 0, done.stderr
    assert "Starting with 2 processes" in done.stderr
    return recipe / "two"


def at(callback, **options):
    return [f"--trainer.callbacks+=killer.{callback}", *[f"--trainer.callbacks.{k}={v}" for k, v in options.items()]]


def trained(run):
    """Weights and both moments of the optimiser, after the last step."""
    checkpoint = read_checkpoint(run / "checkpoints" / "last.ckpt")
    assert checkpoint["global_step"] == STEPS
    tensors = {name: value for name, value in checkpoint["state_dict"].items() if isinstance(value, torch.Tensor)}
    for i, state in checkpoint["optimizer_states"][0]["state"].items():
        tensors |= {f"optimizer.{i}.{name}": value for name, value in state.items()}
    return tensors


def apart(left, right, prefix=""):
    """The largest difference between two runs, over the tensors of this name, and whose it is."""
    assert left.keys() == right.keys()
    return max(
        (float((left[name].double() - right[name].double()).abs().max()), name)
        for name in left
        if name.startswith(prefix)
    )


def test_two_processes_train_as_one_does_on_the_same_batch(recipe, one, two):
    single, double = trained(one), trained(two)
    moments, where = apart(single, double, "optimizer.")
    assert moments < 1e-5, where
    # Adam makes steps of the learning rate, 1e-3, out of the rounding of gradients that should be 0, as a key bias's.
    weights, where = apart(single, double)
    assert weights < 1e-4, where
    fit(recipe, "half", "--data.loading.batch_size", "4", "--trainer.max_steps", str(STEPS))
    assert apart(single, trained(recipe / "half"), "optimizer.")[0] > 1e-2  # another batch is another training
    assert apart(single, trained(recipe / "half"), "head.")[0] > 1e-3


def test_two_processes_test_as_one_does(recipe, two, gloo2):
    best = ["--ckpt_path", str(two / "checkpoints" / "best.ckpt")]
    single = inprocess.diptych("test", "-c", str(recipe / "run.yaml"), "--run", str(recipe / "test1"), *best)
    assert single.returncode == 0, single.stderr
    said = on_two(gloo2, *command(recipe, "test2", "test"), *best)
    assert said.count("test/retrieval/r@5") == 1  # one table
    assert said.count("results.json") == 1
    assert len(list((recipe / "test2").rglob("results*.json"))) == 1
    first, second = (json.loads((recipe / run / "results.json").read_text()) for run in ("test1", "test2"))
    assert first["metrics"]["test/retrieval/r@5"]["n"] == 7
    assert "test/zero_shot/auroc/Effusion" in first["metrics"]
    for key in ("metrics", "protocol", "split_hash", "checkpoint", "head"):
        assert first[key] == second[key]


def test_killed_on_two_processes_and_resumed(recipe, two, gloo2):
    """At the end of a validation, and in mid-epoch: everything that a run leaves is the same."""
    run = command(recipe, "killed")
    for step, moment in ((3, "validated"), (5, "trained")):
        going_on = ["--ckpt_path", "last"] if step > 3 else []
        killer = ["--trainer.callbacks+=killer.KillAt", f"--trainer.callbacks.step={step}"]
        killed = launch(*run, *going_on, *killer, f"--trainer.callbacks.moment={moment}")
        assert killed.returncode == -9, killed.stderr
        assert read_checkpoint(recipe / "killed" / "checkpoints" / "last.ckpt")["global_step"] == step - 1
    on_two(gloo2, *run, "--ckpt_path", "last")
    assert not differences(left_by(recipe / "killed"), left_by(two))
    # One process goes on with the same steps (each process draws its own dropout, of which there is none here).
    other = inprocess.diptych(
        "fit", "-c", str(recipe / "run.yaml"), "--run", str(recipe / "killed"), "--ckpt_path", "last",
        "--data.loading.batch_size", "4",
    )  # fmt: skip
    assert other.returncode == 2
    assert "8 samples a step, and this one has 4" in other.stderr
    assert "set it to 8" in other.stderr


def test_a_loss_that_is_no_number_on_one_process_stops_both(recipe):
    spoil = ["--trainer.callbacks+=killer.Spoil", "--trainer.callbacks.step=4", "--trainer.callbacks.where=loss"]
    done = launch(*command(recipe, "diverged"), *spoil, "--trainer.callbacks.rank=1")
    assert done.returncode == 2, done.stderr
    assert "the loss is not finite after step 4" in done.stderr
    assert len(json.loads((recipe / "diverged" / "diverged.json").read_text())["ids"]) == 4  # of the second process
    assert read_checkpoint(recipe / "diverged" / "checkpoints" / "last.ckpt")["global_step"] == 4


def test_a_signal_to_one_process_saves_and_ends_both(recipe, two, gloo2):
    run = command(recipe, "signal")
    done = launch(*run, *at("SignalAt", step=3, number=15, rank=1))
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert "Traceback" not in done.stderr
    assert "diptych: error" not in done.stderr
    assert read_checkpoint(recipe / "signal" / "checkpoints" / "last.ckpt")["global_step"] == 4
    on_two(gloo2, *run, "--ckpt_path", "last")
    assert apart(trained(two), trained(recipe / "signal"))[0] == 0


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_dies_is_named_by_the_other(recipe, rank):
    """With ResNet towers, whose norms ddp.yaml synchronises: on CPUs too."""
    resnet = ["--model.image", "TimmImage", "--model.image.name", "resnet10t", "--model.image.pretrained", "false"]
    resnet += [
        "--model.image.model_args",
        "{channels: [8, 8, 16, 16], stem_width: 8}",
        "--trainer.precision",
        "32-true",
    ]
    run = [*command(recipe, f"died{rank}"), *resnet, *at("KillAt", step=2, rank=rank)]
    done = launch(*run)
    assert done.returncode == (-9 if rank == 0 else 2), done.stderr
    assert "Traceback" not in done.stderr
    messages = [line for line in done.stderr.splitlines() if line.startswith(f"diptych: error: rank {rank} (host ")]
    assert len(messages) == 1
    assert (" was ended by SIGKILL; " if rank else " has ended; ") in messages[0]


def test_an_image_that_only_the_second_process_cannot_read(recipe, tmp_path):
    write_pairs(tmp_path, n=39)
    second = TrainingSampler(26, 4, seed=0, rank=1, processes=2)
    name = f"{next(iter(second))[0].index:03d}.png"
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:200])
    options = ["--data.table", str(tmp_path / "table.csv"), "--data.loading.workers", "1"]
    done = launch(*command(recipe, "unreadable"), *options)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    messages = [line for line in done.stderr.splitlines() if line.startswith("diptych: error: ")]
    assert f"/{name}: the PNG data are truncated" in messages[0]
    assert messages[1:] == [] or messages[1].startswith("diptych: error: rank 1 (host ")
