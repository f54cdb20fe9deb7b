"""Files of other projects: their tensors alone, whatever else is pickled beside them. Nothing in a file is run.

Lightning writes hyper-parameters into a checkpoint, often as objects of other packages. Some projects pickle whole modules.
torch's safe reader refuses both. Here every class of such a file is replaced by a stand-in, which keeps what it is given and
does nothing. Afterwards the tensors are picked out.
"""

from __future__ import annotations

import collections
import pickle
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from diptych.errors import ConfigError
from diptych.escaping import one_line

__all__ = ["read_foreign", "refuse_compressed"]

_DEEPEST = 64
"""How deep mappings and modules may lie within each other."""
_REBUILDING = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch", "Size"): torch.Size,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch._utils", "_rebuild_tensor"): torch._utils._rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
}
"""All that a file may call: what makes dense tensors, and the mapping that state dicts are."""


class _StandIn:
    """Stands for an object of any other class. It keeps what the file gives it, and does nothing."""

    state: Any
    items: dict[Any, Any]

    def __new__(cls, *_: Any, **__: Any) -> _StandIn:  # whatever a file calls it with
        made = object.__new__(cls)
        made.state, made.items = None, {}
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value

    def append(self, value: Any) -> None:
        """Take an item of a list."""

    def extend(self, values: Any) -> None:
        """Take items of a list."""

    def add(self, value: Any) -> None:
        """Take an item of a set."""


def refuse_compressed(path: Path) -> None:
    """Refuse an archive that would grow in memory. torch does not write such archives.

    Raises:
        ValueError: it is one.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > path.stat().st_size:
            raise ValueError(f"its contents are {size:,} bytes, more than the file")


def read_foreign(path: str | Path, *, of: str) -> tuple[dict[str, Tensor], list[str]]:
    """Every tensor of a file by its full name, and the classes of what was not read.

    The names of nested mappings are joined by dots. A pickled module gives the names of its state dict.

    Args:
        path: a .safetensors file, or one that ``torch.save`` wrote.
        of: what the file is for, for messages.

    Returns:
        The tensors, without gradients, and the import paths of the classes whose objects were left out, sorted.

    Raises:
        ConfigError: the file is missing, damaged, a compiled program (TorchScript), or holds no tensor.
    """
    path = Path(path)
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "does not exist"
        raise ConfigError(f"{of}: '{path}' {kind}; give a file of weights (.ckpt, .pt, .pth, .bin, .safetensors)")
    unread: set[str] = set()
    content: Any
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            refuse_compressed(path)
            _refuse_programs(path)
            content = _load(path, unread)
    except ConfigError:
        raise
    except Exception as error:  # the readers fail in many ways
        raise ConfigError(
            f"{of}: '{path}' is cut off or damaged, or holds no weights "
            f"({type(error).__name__}: {one_line(str(error))[:120]}); download it again"
        ) from error
    tensors: dict[str, Tensor] = {}
    for name, value in _tensors(content, "", 0):
        if value.layout is not torch.strided or value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ConfigError(f"{of}: '{path}': refused: '{one_line(name)}' is no dense tensor with values of its own")
        tensors[name] = value.detach()
    if not tensors:
        raise ConfigError(f"{of}: '{path}' holds no tensor; give the file with the weights")
    return tensors, sorted(unread)


def _refuse_programs(path: Path) -> None:
    """Refuse TorchScript, which is code, and the tar files of torch before 0.1.10."""
    names = []
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    if any(name.rpartition("/")[2] == "constants.pkl" for name in names):
        raise ConfigError(f"'{path}': refused: it is a TorchScript program; save its state_dict into a file of its own")
    if not names and tarfile.is_tarfile(path):
        raise ConfigError(f"'{path}': refused: it is a tar file; unpack it, and give the file of weights in it")


def _load(path: Path, unread: set[str]) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        pass

    class Unpickler(pickle.Unpickler):
        """Looks classes up in a short list, and gives a stand-in for all others."""

        def find_class(self, module: str, name: str) -> Any:
            if (known := _REBUILDING.get((module, name))) is not None:
                return known
            if module == "torch" and isinstance(number := getattr(torch, name, None), torch.dtype):
                return number
            unread.add(one_line(f"{module}.{name}"))
            return type("StandIn", (_StandIn,), {})  # without source, which torch's legacy format would compare

    def load(file: Any, **options: Any) -> Any:
        return Unpickler(file, **options).load()

    reader: Any = SimpleNamespace(Unpickler=Unpickler, load=load, __name__="diptych.towers.foreign")
    # weights_only=False takes our reader of classes; it is as strict as torch's, and goes on where torch's stops
    return torch.load(path, map_location="cpu", weights_only=False, pickle_module=reader)


def _tensors(content: Any, prefix: str, depth: int) -> Iterator[tuple[str, Tensor]]:
    if depth > _DEEPEST:
        return
    if isinstance(content, Tensor):
        yield prefix.removesuffix("."), content
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from _tensors(value, f"{prefix}{key}.", depth + 1)
    elif isinstance(content, _StandIn):
        yield from _tensors(content.items, prefix, depth + 1)
        if isinstance(content.state, Mapping):  # a module keeps its weights in these three
            for part in ("_parameters", "_buffers", "_modules"):
                yield from _tensors(content.state.get(part), prefix, depth + 1)
