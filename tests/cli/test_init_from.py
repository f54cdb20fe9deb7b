"""``--init_from``: the weights of a run without its steps."""

import inprocess
import pytest
import torch
import yaml
from mini import IMAGE, TEXT, config, write_pairs

from diptych import AlignmentModule, FusedImage, LoraImage, ScratchText, TimmImage, TrainedImage
from diptych.errors import ConfigError
from diptych.model.checkpoint import read_checkpoint
from diptych.model.initial import take_weights
from diptych_heads.global_ import Global
from diptych_heads.local_pooling import LocalPooling


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A run of one epoch: its folder and its data."""
    folder = tmp_path_factory.mktemp("first")
    (folder / "recipe.yaml").write_text(config(write_pairs(folder / "data"), epochs=1))
    done = inprocess.diptych("fit", "-c", str(folder / "recipe.yaml"), "--run", str(folder / "run"), *inprocess.QUIET)
    assert done.returncode == 0, done.stderr
    return folder


def module(head=Global, **text):
    torch.manual_seed(5)
    return AlignmentModule(TimmImage(**IMAGE), ScratchText(**{**TEXT, **text}), head)


def test_towers_head_and_vocabulary_are_taken(first):
    state = read_checkpoint(first / "run" / "checkpoints" / "last.ckpt")["state_dict"]
    mine = module()
    before = {name: value.clone() for name, value in mine.named_parameters()}
    told = take_weights(mine, first / "run" / "checkpoints" / "last.ckpt")
    for name, value in mine.named_parameters():
        assert torch.equal(value, state[name])
    assert any(not torch.equal(value, before[name]) for name, value in mine.named_parameters())
    assert mine.tokenizer.state() == state["encoder.text._extra_state"]["tokenizer"]
    assert [line.split(":")[0] for line in told] == ["image tower", "text tower", "head", "vocabulary"]
    assert mine.encoder.image.origin["weights"].endswith("last.ckpt")
    assert mine.encoder.text.origin["before"]["weights"] == "random"


@pytest.mark.parametrize("around", [lambda image: image, lambda image: FusedImage(image, heads=2), LoraImage])
def test_a_tower_of_a_run_takes_weights_too(first, tmp_path, around):
    """``TrainedImage`` keeps no origin of its own. That of the tower inside says where the weights are from."""

    def trained():
        torch.manual_seed(5)
        image = TrainedImage(str(first / "run"))
        if around is LoraImage:
            return AlignmentModule(LoraImage(image, targets=["0"]), ScratchText(**TEXT), Global)
        return AlignmentModule(around(image), ScratchText(**TEXT), Global)

    source, mine = trained(), trained()
    state = read_checkpoint(first / "run" / "checkpoints" / "last.ckpt")["state_dict"]
    source.tokenizer.load(state["encoder.text._extra_state"]["tokenizer"])
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(0.25)
    stored = {"config": None, "head": f"{Global.__module__}.Global"}
    torch.save({"state_dict": source.state_dict(), "diptych": stored}, tmp_path / "a.ckpt")
    take_weights(mine, tmp_path / "a.ckpt")
    for (name, value), other in zip(mine.named_parameters(), source.parameters(), strict=True):
        assert torch.equal(value, other), name
    origin = mine.encoder.image.origin
    kept = origin if around is LoraImage else origin["tower"]
    assert kept["weights"] == str(tmp_path / "a.ckpt")
    assert kept["before"].get("name") or kept["before"]["head"]
    # It stands in the checkpoint of the new run, so that a test of it says the same.
    again = trained()
    again.load_state_dict(mine.state_dict())
    assert again.encoder.image.origin == origin


def test_another_head_stays_new_and_is_told(first):
    mine = module(LocalPooling)
    before = {name: value.clone() for name, value in mine.head.state_dict().items()}
    told = take_weights(mine, first / "run")
    assert all(torch.equal(value, before[name]) for name, value in mine.head.state_dict().items())
    assert any(
        line.startswith("head: new and random, since the checkpoint's is diptych_heads.global_.G") for line in told
    )


def test_other_towers_and_other_files_are_refused(first, tmp_path):
    with pytest.raises(ConfigError, match=r"its text tower is another: .*configure this one alike"):
        take_weights(module(vocabulary=300), first / "run")
    with pytest.raises(ConfigError, match=r"its head is another"):
        take_weights(module(lambda dims: Global(dims, width=16)), first / "run")
    torch.save({"state_dict": {"a": torch.ones(1)}}, tmp_path / "a.ckpt")
    with pytest.raises(ConfigError, match="of no pre-training run"):
        take_weights(module(), tmp_path / "a.ckpt")


def test_a_run_begins_at_step_0_with_other_data(first, tmp_path):
    recipe = yaml.safe_load(config(write_pairs(tmp_path / "data", seed=9), epochs=1))
    recipe["model"]["lr"] = 1e-9
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    arguments = ("fit", "-c", str(tmp_path / "recipe.yaml"), "--run", str(tmp_path / "run"), *inprocess.QUIET)
    done = inprocess.diptych(*arguments, "--init_from", str(first / "run"))
    assert done.returncode == 0, done.stderr
    assert "image tower" in done.stdout + done.stderr
    source = read_checkpoint(first / "run" / "checkpoints" / "best.ckpt")["state_dict"]
    ended = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert ended["global_step"] == 4
    name = "head.image_projection.weight"
    torch.testing.assert_close(ended["state_dict"][name], source[name], atol=1e-6, rtol=0)
    vocabularies = [state["encoder.text._extra_state"]["tokenizer"] for state in (source, ended["state_dict"])]
    assert vocabularies[0] == vocabularies[1]
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["init_from"] == str(first / "run")
