"""Every script of examples/ runs, in this process, and does what it says."""

import ast
import runpy
import sys

import inprocess
import numpy as np
import pytest
import torch
from mini import ROOT, config, write_pairs
from PIL import Image

from diptych.plugins import HEADS, plugins

EXAMPLES = ROOT / "examples"
OF_HEADS = [plugin.name for plugin in plugins(HEADS) if plugin.distribution == "diptych"]


@pytest.fixture
def run(monkeypatch, one_thread):
    """Names that a script leaves, run with these arguments as ``python examples/NAME.py`` runs it."""

    def script(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        return runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")

    return script


def trained(model):
    """Whether the last step had a gradient in the head and in both towers."""
    parts = (model.head, model.encoder.image, model.encoder.text)
    return all(any(p.grad is not None and p.grad.any() for p in part.parameters()) for part in parts)


def test_every_head_has_an_example_that_uses_the_public_face_alone():
    others = {"own_head", "own_data", "look_at_a_model"}
    assert {file.stem for file in EXAMPLES.glob("*.py")} == {*OF_HEADS, *others}
    for file in EXAMPLES.glob("*.py"):
        modules = {node.module for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom)}
        assert not [module for module in modules if module.startswith("diptych.")], file.name
        assert file.stem in others or len(file.read_text().splitlines()) <= 60, file.name


@pytest.mark.parametrize("name", OF_HEADS)
def test_an_example_trains_by_a_plain_loop(run, capsys, name):
    left = run(name, "--steps", "3")
    out = capsys.readouterr().out
    assert out.count("step ") == 3
    assert torch.isfinite(left["loss"])
    assert left["scores"].shape == (8, 8)
    assert "of 8 test images" in out
    assert trained(left["model"])


@pytest.mark.parametrize("name", OF_HEADS)
def test_an_example_trains_by_lightning(run, name):
    left = run(name, "--steps", "2", "--lightning")
    model = left["model"]
    assert model.trainer.global_step == 2
    assert left["scores"].isfinite().all()
    assert trained(model)


def test_a_head_of_your_own_trains_and_is_tested(run):
    short, long = (run("own_head", "--steps", steps) for steps in (1, 3))
    one, other = (left["model"].head.state_dict() for left in (short, long))
    assert not any(torch.equal(one[name], other[name]) for name in one)  # a test pass empties the gradients
    assert 0 <= long["figures"]["test/retrieval/r@5"] <= 1


def test_data_of_your_own_are_learned(run):
    assert run("own_data", "--steps", "30")["right"] >= 14  # chance is 8


def test_a_look_at_a_model_scores_and_draws(run, tmp_path, capsys):
    table = write_pairs(tmp_path / "pairs")
    recipe = tmp_path / "recipe.yaml"
    for head in ("local_pooling", "global"):
        recipe.write_text(config(table, head=head, epochs=1))
        done = inprocess.diptych("fit", "-c", str(recipe), "--run", str(tmp_path / head))
        assert done.returncode == 0, done.stderr
    out = tmp_path / "maps.png"
    left = run("look_at_a_model", tmp_path / "local_pooling", "--out", out)
    assert left["scores"].shape == (6, 9)
    assert left["seen"].words == ["There", "is", "a", "left", "pleural", "effusion"]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[-7:-1]] == left["seen"].words
    assert np.asarray(Image.open(out)).std(axis=(0, 1)).min() > 10
    left = run("look_at_a_model", tmp_path / "local_pooling", tmp_path / "pairs" / "000.png", "--out", out)
    assert left["scores"].shape == (1, 3)
    with pytest.raises(SystemExit, match=r"the head Global has no heatmap"):
        run("look_at_a_model", tmp_path / "global")
