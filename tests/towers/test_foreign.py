"""Tensors are taken from files that hold more than tensors. Nothing in them runs, and what is left out is named."""

import collections
import pickle
import sys
import tarfile
import types
import zipfile

import pytest
import torch
from refusing import refused
from safetensors.torch import save_file
from torch import nn

from diptych.errors import ConfigError
from diptych.towers.foreign import read_foreign


class Box:
    """An object of a package that the reader lacks, as omegaconf's of a Lightning checkpoint."""

    def __init__(self, content):
        self.content = content


class Runs:
    def __reduce__(self):
        return exec, ("raise SystemExit('it ran')",)


@pytest.fixture
def elsewhere(monkeypatch):
    """A module that is there while a file is written, and gone while it is read."""
    module = types.ModuleType("elsewhere")
    monkeypatch.setitem(sys.modules, "elsewhere", module)
    for kind in (Box, Runs):
        monkeypatch.setattr(kind, "__module__", "elsewhere")
        setattr(module, kind.__name__, kind)
    return module


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Sequential(nn.Linear(2, 2)))


def same(tensors, expected):
    assert list(tensors) == list(expected)
    for name, value in expected.items():
        assert torch.equal(tensors[name], value)
        assert not tensors[name].requires_grad


@pytest.mark.parametrize("zipped", [True, False])
def test_lightning_checkpoint_with_objects(tmp_path, elsewhere, zipped):
    state = net().state_dict()
    numbers = collections.defaultdict(list, {"a": [1]})
    held = {"state_dict": state, "hyper_parameters": Box({"x": Box([1])}), "callbacks": {Box: numbers}}
    torch.save(held, tmp_path / "a.ckpt", _use_new_zipfile_serialization=zipped)
    del sys.modules["elsewhere"]
    tensors, unread = read_foreign(tmp_path / "a.ckpt", of="a test")
    same(tensors, {f"state_dict.{name}": value for name, value in state.items()})
    assert {"collections.defaultdict", "elsewhere.Box"} <= set(unread)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_module(tmp_path, zipped):
    """As torchxrayvision's files are."""
    whole = net()
    torch.save(whole, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    tensors, unread = read_foreign(tmp_path / "a.pt", of="a test")
    same({name: tensors[name] for name in sorted(tensors)}, dict(sorted(whole.state_dict().items())))
    assert "torch.nn.modules.batchnorm.BatchNorm2d" in unread


@pytest.mark.parametrize("zipped", [True, False])
def test_code_does_not_run(tmp_path, elsewhere, zipped):
    file = tmp_path / "a.pt"
    torch.save({"state_dict": {"w": torch.ones(2)}, "x": Runs()}, file, _use_new_zipfile_serialization=zipped)
    tensors, unread = read_foreign(file, of="a test")
    same(tensors, {"state_dict.w": torch.ones(2)})
    assert unread == ["builtins.exec"] or unread == ["__builtin__.exec"]
    with pytest.raises(SystemExit):  # the file is as bad as it is meant to be
        torch.load(file, weights_only=False)


def test_safetensors_and_plain_files(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    assert read_foreign(tmp_path / "a.safetensors", of="a test")[1] == []
    torch.save({"a": torch.ones(2), "n": 3}, tmp_path / "a.pt")
    same(read_foreign(tmp_path / "a.pt", of="a test")[0], {"a": torch.ones(2)})


def test_programs_archives_and_damaged_files_are_refused(tmp_path):
    torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "a.pt")
    assert "TorchScript" in refused(lambda: read_foreign(tmp_path / "a.pt", of="a test"))
    (tmp_path / "storages").write_text("of a very old torch")
    with tarfile.open(tmp_path / "b.pt", "w") as archive:
        archive.add(tmp_path / "storages")
    assert "tar file" in refused(lambda: read_foreign(tmp_path / "b.pt", of="a test"))
    torch.save({"a": torch.ones(2000)}, tmp_path / "c.pt")
    (tmp_path / "d.pt").write_bytes((tmp_path / "c.pt").read_bytes()[:3000])
    assert "damaged" in refused(lambda: read_foreign(tmp_path / "d.pt", of="a test"))
    with (
        zipfile.ZipFile(tmp_path / "c.pt") as old,
        zipfile.ZipFile(tmp_path / "e.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, bytes(len(old.read(name))) if "/data/" in name else old.read(name))
    assert "more than the file" in refused(lambda: read_foreign(tmp_path / "e.pt", of="a test"))
    (tmp_path / "f.pt").write_bytes(pickle.dumps(Box(1)))
    refused(lambda: read_foreign(tmp_path / "f.pt", of="a test"))
    torch.save({"a": 1}, tmp_path / "g.pt")
    assert "no tensor" in refused(lambda: read_foreign(tmp_path / "g.pt", of="a test"))
    with pytest.raises(ConfigError, match="does not exist"):
        read_foreign(tmp_path / "h.pt", of="a test")


def test_a_tensor_larger_than_its_storage_is_refused(tmp_path):
    torch.save({"a": torch.ones(1).expand(10**9)}, tmp_path / "a.pt")
    assert "no dense tensor" in refused(lambda: read_foreign(tmp_path / "a.pt", of="a test"))
