"""``diptych doctor``: what works, what does not, and nothing private."""

import json
import os
import socket
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
from torch import nn

from diptych.cli import doctor
from diptych.cli.trial import try_head
from diptych.errors import ConfigError
from diptych.plugins import HEADS, Plugin, plugins


@pytest.fixture
def one_head(monkeypatch):
    """The catalogue of heads has `global` alone, so that one step is enough."""
    monkeypatch.setattr(doctor, "_PARTS", tuple(part for part in doctor._PARTS if part is not doctor._steps))


def lines(capsys):
    return {line["name"]: line for line in json.loads(capsys.readouterr().out)}


def test_this_installation_works(capsys, one_head):
    doctor.main(["--json"])
    found = lines(capsys)
    assert found["torch"]["value"] == torch.__version__.partition("+")[0]
    assert "local_pooling" in found["heads"]["value"]
    assert "gloo" in found["processes"]["value"]
    assert {line["state"] for line in found.values()} <= {"fine", "note"}


@pytest.mark.parametrize("head", [plugin.name for plugin in plugins(HEADS)])
def test_every_head_makes_a_step(head):
    told = try_head(next(plugin for plugin in plugins(HEADS) if plugin.name == head), "cpu")
    assert told == "not tried: it needs heads" if head == "composite" else told.startswith("loss ")


class Broken(nn.Module):
    """A head whose loss is not a number."""

    needs = wants = gathers = frozenset()
    weights = MappingProxyType({"nan": 1.0})

    def __init__(self, dims):
        super().__init__()
        self.map = nn.Linear(dims.image, 4)

    def embed_image(self, image):
        return self.map(image.pooled)

    def embed_text(self, text):
        return text.pooled

    def losses(self, here, world):
        return {"nan": here.image.sum() * float("nan")}


class Cold(Broken):
    """A head whose loss has no gradient in the towers."""

    def losses(self, here, world):
        return {"nan": self.map.weight.sum()}


@pytest.mark.parametrize(("kind", "reason"), [(Broken, "the loss is nan"), (Cold, "no gradient in the towers")])
def test_a_head_that_does_not_train_is_named(kind, reason, monkeypatch):
    monkeypatch.setattr(Plugin, "load", lambda self: kind)
    with pytest.raises(ConfigError, match=f"'broken'.*{reason}"):
        try_head(Plugin("broken", "elsewhere.Broken", "elsewhere", HEADS), "cpu")


def test_a_head_that_does_not_train_ends_nothing(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "_PARTS", (doctor._steps,))
    monkeypatch.setattr(Plugin, "load", lambda self: Broken)
    with pytest.raises(SystemExit, match="1"):
        doctor.main([])
    said = capsys.readouterr().out
    assert said.count("report it to diptych") == len(plugins(HEADS))
    assert "something is wrong" in said


def test_wrong_and_missing_packages_come_with_a_remedy(capsys, monkeypatch):
    had = doctor._installed
    versions = {"timm": "0.9.0", "torchmetrics": None, "peft": None}
    monkeypatch.setattr(doctor, "_installed", lambda name: versions[name] if name in versions else had(name))
    monkeypatch.setattr(doctor, "_PARTS", (doctor.packages, doctor.extras))
    with pytest.raises(SystemExit, match="1"):
        doctor.main(["--json"])
    found = lines(capsys)
    assert (found["timm"]["state"], found["timm"]["value"]) == ("wrong", "0.9.0")
    assert "pip install 'timm" in found["timm"]["remedy"]
    assert found["torchmetrics"]["value"] == "missing"
    assert (found["peft"]["state"], found["peft"]["value"]) == ("note", "without peft")
    assert found["peft"]["remedy"] == "pip install 'diptych[peft]'"


def test_a_broken_plug_in_is_named(capsys, monkeypatch):
    had = plugins

    def with_broken(group):
        broken = Plugin("broken", "nowhere_at_all.Broken", "elsewhere", HEADS)
        return (*had(group), broken) if group == HEADS else had(group)

    monkeypatch.setattr("diptych.plugins.plugins", with_broken)
    monkeypatch.setattr(doctor, "_PARTS", (doctor._catalogues,))
    with pytest.raises(SystemExit, match="1"):
        doctor.main(["--json"])
    found = lines(capsys)
    assert found["broken"]["state"] == "wrong"
    assert "elsewhere" in found["broken"]["value"]
    assert "global" in found["heads"]["value"]


def test_nothing_private_is_printed(capsys, one_head, monkeypatch, tmp_path):
    home = tmp_path / "jane-doe"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HF_HOME", str(home / "hub"))
    monkeypatch.chdir(home)
    doctor.main([])
    said = capsys.readouterr().out
    assert "jane-doe" not in said
    assert "hf_secret" not in said
    assert "~/hub" in said


def test_names_of_user_and_host_are_left_out(capsys, monkeypatch):
    monkeypatch.setattr("getpass.getuser", lambda: "jane")
    monkeypatch.setattr(socket, "gethostname", lambda: "gpu17")
    line = doctor.Line("a step", "head", "OSError: /scratch/jane/x on gpu17.hospital.org", "wrong", "ask jane")
    monkeypatch.setattr(doctor, "_PARTS", (lambda: iter([line]),))
    with pytest.raises(SystemExit):
        doctor.main([])
    said = capsys.readouterr().out
    assert "jane" not in said
    assert "gpu17" not in said
    assert "/scratch/USER/x" in said


@pytest.mark.parametrize("path", ["/elsewhere/jane", f"{Path.home()}x"])
def test_other_paths_stay(path):
    assert doctor.plain_path(path) == path


def test_a_small_shared_memory_is_noted(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "_LEAST_SHARED", 1 << 60)
    monkeypatch.setattr(doctor, "_PARTS", (doctor._folders,))
    doctor.main([])
    said = capsys.readouterr().out
    assert ("--shm-size" in said) == os.path.isdir("/dev/shm")
