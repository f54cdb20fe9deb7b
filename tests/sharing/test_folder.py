"""A model as a folder: written, read with the same bits, sent to the hub and fetched, and refused where it is hostile."""

import json
import pickle
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
import yaml
from refusing import COMMAND, refused
from safetensors.torch import load_file, save_file
from sharing import PICTURES, REPORTS, trained
from torch import nn

import diptych
from diptych.errors import ConfigError
from diptych.files import sha256
from diptych.metrics.bootstrap import Metric
from diptych.results.record import write_results
from diptych.sharing.folder import FILES, tensors_of

COMPOSITE = {"class_path": "composite", "init_args": {"heads": ["local_pooling", "global"], "shares": [1.0, 0.5]}}


@pytest.fixture(scope="module")
def model():
    return trained(COMPOSITE)


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    return model.save_pretrained(tmp_path_factory.mktemp("shared") / "model", licence="cc-by-nc-4.0")


@pytest.fixture
def copied(folder, tmp_path):
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def equal(a, b):
    assert torch.equal(a.similarity(PICTURES, REPORTS), b.similarity(PICTURES, REPORTS))


def test_what_is_read_gives_the_same_bits(model, folder):
    assert {file.name for file in folder.iterdir()} == set(FILES)
    for read in (diptych.load(folder), diptych.from_pretrained(folder)):
        equal(read, model)
        state = read.module.state_dict()
        assert state.keys() == model.module.state_dict().keys()
        assert all(torch.equal(state[name], value) for name, value in tensors_of(model.module).items())
        assert read.module.tokenizer.state() == model.module.tokenizer.state()
        assert (read.image_size, read.intensity) == (model.image_size, model.intensity)


def test_a_folder_is_shared_again_as_it_is(folder, tmp_path):
    again = diptych.save_pretrained(folder, tmp_path / "again", licence="cc-by-nc-4.0")
    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        assert (again / name).read_bytes() == (folder / name).read_bytes(), name
    first, second = (json.loads((place / "config.json").read_text()) for place in (folder, again))
    assert first["state"] == second["state"]
    assert first["normalisation"] == second["normalisation"] == {"mean": pytest.approx(0.4), "std": pytest.approx(0.3)}
    diptych.save_pretrained(folder, again)  # in place of one that it wrote
    assert (again / "README.md").read_text() != (folder / "README.md").read_text()


def test_safetensors_takes_the_weights_of_a_module(tmp_path):
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4, bias=False))
    module[1].weight = module[0].weight
    module.register_buffer("turned", torch.arange(6.0).view(2, 3).T)
    module.register_buffer("part", module.turned[1:])
    save_file(tensors_of(module), tmp_path / "a.safetensors")
    read = load_file(tmp_path / "a.safetensors")
    assert read.keys() == module.state_dict().keys()
    assert all(torch.equal(read[name], value) for name, value in module.state_dict().items())


def test_transformers_reads_the_tokenizer(model, folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    read = tokenizer(REPORTS, padding=True, return_tensors="pt")
    own = model.module.tokenizer(REPORTS)
    longest = read["input_ids"].shape[1]
    assert torch.equal(read["input_ids"], own.input_ids[:, :longest])
    assert torch.equal(read["attention_mask"].bool(), own.attention_mask[:, :longest])
    assert (tokenizer.cls_token, tokenizer.pad_token, tokenizer.model_max_length) == ("[CLS]", "[PAD]", 64)


def test_the_card_says_what_the_run_says(model, tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    model.save_pretrained(tmp_path / "first")
    checkpoint = run / "checkpoints" / "best.ckpt"
    stored = {"config": model.module.config, "head": "Composite", "findings": ["Effusion"], "image_size": 32}
    torch.save({"state_dict": model.module.state_dict(), "diptych": stored}, checkpoint)
    data = {"class_path": "tabular", "init_args": {"table": "secret/jane/pairs.csv", "columns": {"image": "path"}}}
    recipe = {
        "seed_everything": 3,
        "trainer": {"max_epochs": 7},
        "model": {"lr": 0.001, "head": "composite"},
        "data": data,
    }
    (run / "config.yaml").write_text(yaml.safe_dump(recipe))
    facts = {
        "protocol": {"retrieval": {"interval": "patients | drawn"}},
        "split_hash": "0123abcd",
        "seed": 3,
        "head": "x",
    }
    figures = {
        "test/retrieval/r@5": Metric(0.76, 0.7, 0.8123, 286),
        "test/zero_shot/auroc": Metric(0.9, *2 * [float("nan")], 9),
    }

    def card():
        return (diptych.save_pretrained(run, tmp_path / "out") / "README.md").read_text()

    assert "was not tested" in card()
    write_results(
        run / "results.json",
        metrics=figures,
        checkpoint=checkpoint,
        checkpoint_sha256=sha256(checkpoint),
        data="y",
        **facts,
    )
    text = card()
    front = yaml.safe_load(text.split("---")[1])
    assert front["license"] == "unknown"
    assert {"diptych", "chest-x-ray"} <= set(front["tags"])
    assert "base_model" not in front  # both towers began at random
    for line in (
        "| test/retrieval/r@5 | 0.760 | 0.700 to 0.812 | 286 |",
        "| test/zero_shot/auroc | 0.900 | - | 9 |",
        "those of its members",
        "Not for clinical use",
        "split 0123abcd, seed 3",
        "        table: pairs.csv",
        "      max_epochs: 7",
    ):
        assert line in text, line
    headings = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    assert headings == [
        "Intended use", "Out of scope", "How to use", "Model", "Training data", "Figures", "Limits", "Licence", "Citing"
    ]  # fmt: skip
    assert "jane" not in text
    read = diptych.load(tmp_path / "out")
    assert read.findings == ["Effusion"]
    write_results(run / "results.json", metrics=figures, checkpoint="x", checkpoint_sha256="0" * 64, data="y", **facts)
    assert "of another checkpoint" in card()


def test_places_of_this_machine_stay_here(tmp_path):
    model = trained("global")
    model.module.encoder.text._origin = {"name": "/home/jane/bert", "weights": "/home/jane/bert/model.safetensors"}
    text = "".join(file.read_text(errors="replace") for file in model.save_pretrained(tmp_path / "a").iterdir())
    assert "jane" not in text
    assert '"weights": "model.safetensors"' in text


def test_what_cannot_be_shared_is_refused_by_name(model, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds other files \(notes.txt\)"):
        model.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="licence is 'no such'"):
        model.save_pretrained(tmp_path / "a", licence="no such")
    built = trained("global")
    built.module.config = None
    with pytest.raises(ConfigError, match="built in Python"):
        built.save_pretrained(tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_the_hub_gets_and_gives_the_folder(model, folder, monkeypatch, tmp_path):
    calls = []

    def create(self, name, *, private, exist_ok):
        calls.append(("create", name, private, exist_ok))

    def upload(self, *, repo_id, folder_path, commit_message):
        shutil.copytree(folder_path, tmp_path / "hub")
        return type("Commit", (), {"commit_url": f"https://hub/{repo_id}/commit/1"})()

    def fetch(repo_id, *, revision, allow_patterns):
        calls.append(("fetch", repo_id, revision, tuple(allow_patterns)))
        return str(tmp_path / "hub")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert diptych.push_to_hub(folder, "jane/chest") == "https://hub/jane/chest/commit/1"
    equal(diptych.from_pretrained("jane/chest"), model)
    equal(diptych.load("hf-hub:jane/chest@v1.0"), model)
    assert calls == [
        ("create", "jane/chest", True, True),
        ("fetch", "jane/chest", None, FILES),
        ("fetch", "jane/chest", "v1.0", FILES),
    ]


def test_without_a_network_the_remedy_is_named():
    for action in (
        lambda: diptych.from_pretrained("diptych-cxr/no-such-model"),
        lambda: diptych.load("hf-hub:diptych-cxr/no-such-model"),
    ):
        with pytest.raises(ConfigError, match=r"could not be fetched.*HF_HUB_OFFLINE=1 forbids the network: unset it"):
            action()
    with pytest.raises(ConfigError, match="no existing folder and no name of a repository"):
        diptych.from_pretrained("../../no-such-folder")
    with pytest.raises(ConfigError, match="the revision is no name"):
        diptych.from_pretrained("jane/chest@../x")
    with pytest.raises(ConfigError, match="no such checkpoint file"):  # a mistyped path asks no network
        diptych.load("runs/demo")


def changed(folder, path, value):
    content = json.loads((folder / "config.json").read_text())
    *before, last = path.split("|")
    place = content
    for key in before:
        place = place[key]
    place[last] = value
    (folder / "config.json").write_text(json.dumps(content))


def weights(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


class Evil:
    def __reduce__(self):
        import os

        return os.system, ("touch /tmp/diptych-was-here",)


TEXT_STATE = "state|encoder.text._extra_state"
HOSTILE = {
    "head os.system": lambda f: changed(f, "model|head", COMMAND),
    "tower os.system": lambda f: changed(f, "model|image|class_path", "os.system"),
    "tower evilmod": lambda f: changed(f, "model|text|class_path", "evilmod.Text"),
    "evaluator evilmod": lambda f: changed(f, "model|evaluators", [{"class_path": "evilmod.E"}]),
    "tower of another file": lambda f: changed(
        f, "model|image", {"class_path": "TrainedImage", "init_args": {"checkpoint": "/dev/zero"}}
    ),
    "pickle as weights": lambda f: (f / "model.safetensors").write_bytes(pickle.dumps(Evil())),
    "torch.save as weights": lambda f: torch.save({"a": Evil()}, f / "model.safetensors"),
    "weights cut off": lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-100]),
    "tokenizer elsewhere": lambda f: changed(f, f"{TEXT_STATE}|tokenizer", "../../../etc/passwd"),
    "tokenizer absolute": lambda f: changed(f, f"{TEXT_STATE}|tokenizer", "/etc/passwd"),
    "tokenizer of code": lambda f: (f / "tokenizer.json").write_text('{"model": {"type": "evilmod"}}'),
    "tokenizer gone": lambda f: (f / "tokenizer.json").unlink(),
    "state a list": lambda f: changed(f, "state", []),
    "state of a weight": lambda f: changed(f, "state|encoder.image.mean", {"a": "b"}),
    "architecture of code": lambda f: changed(
        f, "state|encoder.image._extra_state|architecture", {"name": "hf-hub:evil/x", "model_args": {}}
    ),
    "architecture huge": lambda f: changed(
        f,
        "state|encoder.image._extra_state|architecture",
        {"name": "resnet10t", "model_args": {"channels": [2**20] * 4}},
    ),
    "image size": lambda f: changed(f, "image_size", 2**20),
    "format of the future": lambda f: changed(f, "format", 2),
    "of another library": lambda f: changed(f, "library", "timm"),
    "not JSON": lambda f: (f / "config.json").write_text("{"),
    "a number that is none": lambda f: (f / "config.json").write_text('{"library": NaN}'),
    "too long": lambda f: (f / "config.json").write_text(" " * 10_000_001),
    "not UTF-8": lambda f: (f / "config.json").write_bytes(b"\xff\xfe"),
    "wrong shape": lambda f: weights(f, lambda t: t.update({"encoder.image.mean": torch.zeros(7)})),
    "missing key": lambda f: weights(f, lambda t: t.pop("encoder.image.std")),
    "unexpected key": lambda f: weights(f, lambda t: t.update({"evil": torch.zeros(1)})),
    "complex weights": lambda f: weights(
        f, lambda t: t.update({"encoder.image.mean": torch.zeros((), dtype=torch.cfloat)})
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_folder_runs_nothing(copied, evil, name):
    HOSTILE[name](copied)
    message = refused(lambda: diptych.from_pretrained(copied), ConfigError)
    assert str(copied) in message, message
    assert not Path("/tmp/diptych-was-here").exists()
