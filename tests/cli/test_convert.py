"""``diptych convert``, from a peer's file to the results of ``diptych test``."""

import json

import inprocess
import pytest
import torch
import yaml
from mini import TRAINER, write_pairs
from peers import bert, named, resnet, tokenizer_folder
from torch import nn

from diptych.plugins import PEERS, plugins


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    state = named("gloria.img_encoder.model.", resnet(18), without="fc.") | named("gloria.text_encoder.model.", bert(4))
    state |= named("gloria.img_encoder.global_embedder.", nn.Linear(512, 128))
    return state | named("gloria.img_encoder.local_embedder.", nn.Conv2d(256, 128, 1, bias=False))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tokenizer_folder(tmp_path_factory.mktemp("convert") / "tokenizer")


def convert(path, state, folder, *options):
    torch.save({"state_dict": state, "lr": torch.tensor(0.1)}, path / "peer.ckpt")
    files = (str(path / "peer.ckpt"), "--out", str(path / "run.ckpt"))
    return inprocess.diptych("convert", "gloria", *files, "--tokenizer", folder, *options)


def test_convert_then_test(tmp_path, state, folder):
    done = convert(tmp_path, state, folder)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "run.convert.json").read_text())
    assert f"{len(report['mapped'])} mapped" in done.stdout
    assert report["left_out"]["lr"].startswith("outside the state dict")
    assert "inferred: mean and std 0.5" in done.stdout
    assert "images: 299 px, mean 0.5, std 0.5" in done.stdout
    data = {"table": str(write_pairs(tmp_path / "data")), "columns": {"patient": "patient", "split": "split"}}
    loading = {"image_size": 64, "batch_size": 4, "eval_batch_size": 4, "workers": 0}
    own = {
        "trainer": TRAINER,
        "data": {"class_path": "tabular", "init_args": {**data, "loading": loading}},
        "figures": {"pairs": 0},
    }
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(own))
    recipes = ("-c", str(tmp_path / "run.yaml"), "-c", str(tmp_path / "data.yaml"))
    run = tmp_path / "run"
    tested = inprocess.diptych("test", *recipes, "--run", str(run), "--ckpt_path", str(tmp_path / "run.ckpt"))
    assert tested.returncode == 0, tested.stderr
    results = json.loads((run / "results.json").read_text())
    assert "gloria" in json.dumps(results)
    assert any("retrieval/" in name for name in json.dumps(results).split('"'))


def error(done):
    assert done.returncode == 2, done.stderr
    return done.stderr.splitlines()[-1]


def test_missing_and_unexpected_keys_are_errors_unless_named(tmp_path, state, folder):
    lacking = {name: value for name, value in state.items() if "layer4.1.bn2.weight" not in name}
    message = error(convert(tmp_path, lacking, folder))
    assert "1 (encoder.image.backbone.layer4.1.bn2.weight)" in message
    assert not (tmp_path / "run.ckpt").exists()
    done = convert(tmp_path, lacking, folder, "--allow-missing", "encoder.image.*.bn2.weight")
    assert done.returncode == 0
    assert "missing: encoder.image.backbone.layer4.1.bn2.weight" in done.stdout
    odd = state | {"gloria.odd": torch.ones(1), "gloria.odder": torch.ones(1)}
    assert "2 (gloria.odd, gloria.odder)" in error(convert(tmp_path, odd, folder))
    assert "1 (gloria.odder)" in error(convert(tmp_path, odd, folder, "--allow-unexpected", "gloria.odd"))
    done = convert(tmp_path, odd, folder, "--allow-unexpected", "gloria.odd*")
    assert done.returncode == 0
    assert json.loads((tmp_path / "run.convert.json").read_text())["unexpected"] == ["gloria.odd", "gloria.odder"]


def test_weights_that_do_not_fit_are_refused(tmp_path, state, folder):
    name = "gloria.img_encoder.global_embedder.weight"
    assert "another shape" in error(convert(tmp_path, state | {name: torch.ones(128, 500)}, folder))
    assert "NaN" in error(convert(tmp_path, state | {name: torch.full((128, 512), torch.nan)}, folder))
    no_tower = {key: value for key, value in state.items() if ".layer3." not in key}
    assert "no ResNet of torchvision" in error(convert(tmp_path, no_tower, folder))
    assert "unknown peer 'glorai'" in error(inprocess.diptych("convert", "glorai", "a", "--out", "b.ckpt"))
    assert "ends in .ckpt" in error(inprocess.diptych("convert", "gloria", "a", "--out", str(tmp_path / "b.pt")))


def test_every_peer_says_what_it_is():
    for plugin in plugins(PEERS):
        peer = plugin.load()
        assert peer.paper
        assert peer.licence
        assert peer.inferred
        assert plugin.summary
