"""Run folders and checkpoints that cannot be used: one clear message, and nothing is run or lost."""

import fractions
import pickle
from pathlib import Path

import inprocess
import pytest
import torch
from bad_input import cutting, holds, message
from mini import diptych, script


def test_a_run_folder_that_cannot_be_written(write, tmp_path):
    (tmp_path / "file").write_text("in the way")
    for run in (tmp_path / "file", tmp_path / "file" / "below"):
        holds(message(inprocess.diptych("fit", "-c", write(), "--run", str(run))), f"--run {run}", "cannot be written")
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_checkpoint_of_another_head(trained):
    other = str(trained / "local_pooling" / "checkpoints" / "best.ckpt")
    for command in ("test", "fit"):
        done = inprocess.diptych(
            command, "-c", str(trained / "global.yaml"), "--run", str(trained / "x"), "--ckpt_path", other
        )
        holds(
            message(done), "does not fit", "LocalPooling", "unexpected: 5 (head.", "configuration it was trained with"
        )
    back = str(trained / "global" / "checkpoints" / "best.ckpt")
    done = inprocess.diptych(
        "test", "-c", str(trained / "local_pooling.yaml"), "--run", str(trained / "x"), "--ckpt_path", back
    )
    holds(message(done), "diptych_heads.global_.Global", "missing: 5 (head.")


def test_a_checkpoint_of_another_width(trained):
    words = ["--run", str(trained / "global"), "--ckpt_path", "best", "--model.head.width", "16"]
    done = inprocess.diptych("test", "-c", str(trained / "global.yaml"), *words)
    holds(message(done), "other shape: 2 (head.image_projection.weight [512, 16] for [16, 16]")


def test_a_checkpoint_that_is_not_there(trained):
    recipe = str(trained / "global.yaml")
    for which, parts in (
        ("best", ["best.ckpt does not exist", "there: nothing"]),
        ("last", ["last.ckpt does not exist"]),
    ):
        done = inprocess.diptych("test", "-c", recipe, "--run", str(trained / "empty"), "--ckpt_path", which)
        holds(message(done), f"--ckpt_path {which}", "same --run", *parts)
    done = inprocess.diptych("test", "-c", recipe, "--run", str(trained / "x"), "--ckpt_path", str(trained / "no.ckpt"))
    holds(message(done), "no.ckpt: no such checkpoint file")


class Opens:
    """Leaves a trace where it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


@pytest.mark.parametrize(
    ("kind", "parts"),
    [
        ("foreign", ["not written by diptych"]),
        ("lightning", ["does not fit", "not written by diptych", "unexpected: 1 (a.weight)"]),
        ("objects", ["refused", "fractions.Fraction", "only load checkpoints"]),
        ("pickle", ["refused", "only load checkpoints"]),
        ("evil", ["refused", "only load checkpoints"]),
        ("weights", ["not a training checkpoint", "state_dict"]),
        ("words", ["cut off or damaged"]),
        ("cut", ["cut off or damaged"]),
        ("empty", ["cut off or damaged"]),
    ],
)
def test_a_file_that_is_no_checkpoint_of_ours(trained, tmp_path, kind, parts):
    path, trace = tmp_path / f"{kind}.ckpt", tmp_path / "trace"
    weight = {"a.weight": torch.zeros(2)}
    contents = {
        "foreign": {"state_dict": weight},
        "lightning": {"state_dict": weight, "pytorch-lightning_version": "2.6.0", "loops": {}},
        "objects": {"state_dict": weight, "pytorch-lightning_version": "2.6.0", "more": fractions.Fraction(1, 2)},
        "evil": {"state_dict": weight, "pytorch-lightning_version": "2.6.0", "more": Opens(trace)},
        "weights": weight,
    }
    whole = (trained / "global" / "checkpoints" / "best.ckpt").read_bytes()
    raw = {"pickle": pickle.dumps(Path("x")), "words": b"hello", "cut": whole[: len(whole) // 2], "empty": b""}
    if kind in contents:
        torch.save(contents[kind], path)
    else:
        path.write_bytes(raw[kind])
    words = ["--run", str(tmp_path / "run"), "--ckpt_path", str(path)]
    error = message(inprocess.diptych("test", "-c", str(trained / "global.yaml"), *words))
    holds(error, *parts)
    assert kind == "lightning" or f"{kind}.ckpt" in error
    assert "weights_only" not in error  # torch would recommend to switch it off
    assert not trace.exists()


def test_testing_leaves_the_recipe_of_the_run_alone(trained):
    run = trained / "global"
    before = (run / "config.yaml").read_text()
    words = ["-c", str(run / "config.yaml"), "--run", str(run)]
    assert (
        inprocess.diptych("test", *words, "--ckpt_path", "best", "--data.loading.eval_batch_size", "2").returncode == 0
    )
    assert (run / "config.yaml").read_text() == before
    assert "eval_batch_size: 2" in (run / "config-test.yaml").read_text()
    error = message(inprocess.diptych("fit", *words, "--trainer.fast_dev_run", "true"))
    holds(error, f"--run {run}: holds a run already (best.ckpt, last.ckpt", "--overwrite")
    assert (run / "config.yaml").read_text() == before


def test_checkpoints_are_written_whole_or_not_at_all(trained, tmp_path, monkeypatch):
    """The command's own writer is in use: what it has not finished has another name."""
    moved = []
    replace = Path.replace

    def listen(source, target):
        moved.append((source.suffix, source.name.partition(".ckpt.")[0], target.name))
        return replace(source, target)

    monkeypatch.setattr(Path, "replace", listen)
    words = ["--run", str(tmp_path / "run"), "--recovery.every_n_train_steps", "2"]
    assert inprocess.diptych("fit", "-c", str(trained / "global.yaml"), *words).returncode == 0
    assert {(".part", "best", "best.ckpt"), (".part", "last", "last.ckpt")} <= set(moved)
    assert not list(tmp_path.rglob("*.part"))


# -- the same, as a user runs it --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_real_command_says_the_same(write, spoil, trained):
    error = message(script("fit", "-c", write({"model.lrr": 1})))
    holds(error, "unknown option 'model.lrr'")
    error = message(diptych("fit", *spoil(cutting("003.png"), workers=2)))
    holds(error, "/003.png: ", "truncated")
    words = ["--run", str(trained / "x"), "--ckpt_path", str(trained / "local_pooling" / "checkpoints" / "best.ckpt")]
    holds(message(diptych("test", "-c", str(trained / "global.yaml"), *words)), "does not fit", "LocalPooling")
