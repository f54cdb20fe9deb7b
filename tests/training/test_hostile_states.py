"""Checkpoints that a run goes on from: a hostile one is refused in one line."""

import copy

import inprocess
import pytest
import torch
from mini import config, write_pairs
from refusing import COMMAND, WORDS, at, tensor

STATES = {
    "version": lambda c: at(c, "pytorch-lightning_version", "evil"),
    "version a list": lambda c: at(c, "pytorch-lightning_version", [1]),
    "loops a text": lambda c: at(c, "loops", "os.system"),
    "optimisers a number": lambda c: at(c, "optimizer_states", 5),
    "callbacks a list": lambda c: at(c, "callbacks", [COMMAND]),
    "vocabulary": lambda c: at(c, f"state_dict/{WORDS[0]}/tokenizer", "{"),
    "weight": lambda c: tensor(c, lambda w: w.to("meta")),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A recipe, and the contents of a checkpoint of it."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "run.yaml").write_text(config(write_pairs(folder / "data", n=12), epochs=1))
    done = inprocess.diptych("fit", "-c", str(folder / "run.yaml"), "--run", str(folder / "run"))
    assert done.returncode == 0, done.stderr
    checkpoint = torch.load(folder / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    return folder / "run.yaml", checkpoint


@pytest.mark.parametrize("name", STATES)
def test_a_run_does_not_go_on_from_a_hostile_checkpoint(trained, evil, tmp_path, name):
    recipe, checkpoint = trained
    path = tmp_path / "state.ckpt"
    torch.save(STATES[name](copy.deepcopy(checkpoint)), path)
    options = ["--run", str(tmp_path / "run"), "--ckpt_path", str(path), "--trainer.max_epochs", "2"]
    done = inprocess.diptych("fit", "-c", str(recipe), *options, *inprocess.QUIET)
    assert done.returncode == 2, done.stderr
    assert done.stderr.strip().split("\n")[-1].startswith("diptych: error: ")
    assert "Traceback" not in done.stderr
