"""A model as a folder that others can read: weights, configuration, tokenizer and model card.

The folder holds what a checkpoint holds, without the optimiser. It is read by the same rule: it runs nothing, and names
classes of diptych and of installed heads alone (:mod:`diptych.model.stored`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file, save
from torch import Tensor, nn

from diptych.errors import ConfigError, shown
from diptych.escaping import one_line
from diptych.files import replace_bytes, replace_text
from diptych.plain import read_json
from diptych.reports.tokenizer import Tokenizer
from diptych.sharing.tokenizer_files import TOKENIZER, write_tokenizer
from diptych.version import __version__

if TYPE_CHECKING:
    from diptych.sharing.shareable import Shareable

__all__ = ["FILES", "WEIGHTS", "is_folder", "make_room", "read_folder", "tensors_of", "without_places", "write_folder"]

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
FILES = (CONFIG, WEIGHTS, CARD, TOKENIZER, "tokenizer_config.json")
"""All files of a folder. Nothing else is written, fetched or read."""
FORMAT = 1
_LARGEST_CONFIG = 10_000_000  # bytes
_LARGEST_TOKENIZER = 100_000_000  # as a checkpoint may hold
_EXTRA = "_extra_state"
_RELATIVE = re.compile(r"[^\n]*[/\\][^/\\\n]+\.(?:pth|pt|ckpt|bin|safetensors|csv|jsonl?|parquet|txt|ya?ml)")
"""A file in a folder. A name with one slash and no ending may be one of the hub."""


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """The weights of a module as ``safetensors.torch.save_file`` takes them.

    They are on the CPU and contiguous. No two share memory: a tensor that two names share is there twice. What modules
    keep besides tensors (``get_extra_state``) is left out.

    >>> layer = nn.Linear(2, 2)
    >>> layer.again = layer.weight
    >>> sorted(tensors_of(layer))
    ['again', 'bias', 'weight']
    """
    tensors: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, value in module.state_dict().items():
        if not isinstance(value, Tensor):
            continue
        place = value.untyped_storage().data_ptr()
        tensor = value.detach().cpu().contiguous()
        tensors[name] = tensor.clone() if place in storages else tensor
        storages.add(place)
    return tensors


def without_places(value: Any) -> Any:
    """Plain values without the folders of this machine: of a path only its last part stays.

    >>> without_places({"weights": "/home/jane/r50.pth", "name": "timm/resnet50", "from": "local-dir:/data/tower"})
    {'weights': 'r50.pth', 'name': 'timm/resnet50', 'from': 'local-dir:tower'}
    >>> without_places(["cohorts/st_mary/r50.pth", "owner/name"])
    ['r50.pth', 'owner/name']
    """
    if isinstance(value, Mapping):
        return {key: without_places(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_places(item) for item in value]
    if isinstance(value, str) and (
        path := re.fullmatch(r"(local-dir:)?(?:[/~.]|[A-Za-z]:)[^\n]*[/\\]([^/\\\n]*)", value)
    ):
        return (path[1] or "") + path[2]
    if isinstance(value, str) and _RELATIVE.fullmatch(value):
        return re.split(r"[/\\]", value)[-1]
    return value


def is_folder(path: Path) -> bool:
    """Whether a path is a folder that :func:`write_folder` wrote, or one that looks like it."""
    return (path / CONFIG).is_file() and (path / WEIGHTS).is_file()


def _is_ours(folder: Path) -> bool:
    """Whether the files of a folder may be replaced: its configuration says that diptych wrote them."""
    try:
        content = read_json(_text(folder / CONFIG, _LARGEST_CONFIG), "", longest=_LARGEST_CONFIG, largest=2**63)
    except ConfigError:
        return False
    return content.get("library") == "diptych"


def make_room(folder: Path | str, replaced: Sequence[str] = ()) -> Path:
    """A folder without files, except for those that are to be replaced.

    Raises:
        ConfigError: it holds others.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder}: is a file; give a new folder")
    if folder.is_dir() and (others := sorted({file.name for file in folder.iterdir()} - {*replaced})):
        raise ConfigError(
            f"{folder}: holds other files ({one_line(others[0])}); give a new folder, so that none is replaced"
        )
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_folder(model: Shareable, folder: Path | str, card: str) -> Path:
    """Write a model and its card. The configuration is written last, so a folder that is not whole is none.

    Raises:
        ConfigError: the model was not built from a configuration, names a file elsewhere, or the folder holds other files.
        DataError: it cannot be written.
    """
    module = model.module
    config = module.config
    if config is None:
        raise ConfigError(
            "the model was built in Python, so it has no configuration that others could build it from; train it with "
            "diptych fit, or build it by diptych.model.stored.build_module(config)"
        )
    if "TrainedImage" in json.dumps(config.get("image", {})):
        raise ConfigError(
            "the image tower TrainedImage reads another checkpoint, which a folder cannot hold; share that run itself"
        )
    extra, tokenizer = _extra_state(module)
    normalised: Any = next(
        (m for m in module.encoder.image.modules() if hasattr(m, "mean") and hasattr(m, "std")), None
    )
    content = {
        "library": "diptych",
        "format": FORMAT,
        "diptych_version": __version__,
        "head": f"{type(module.head).__module__}.{type(module.head).__qualname__}",
        "image_size": model.image_size,
        "normalisation": {} if normalised is None else {k: getattr(normalised, k).tolist() for k in ("mean", "std")},
        "intensity": model.intensity.plain(),
        "findings": model.findings,
        "model": without_places({**config, "evaluators": []}),
        "state": without_places(extra),
    }
    try:
        written = json.dumps(content, indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"the model's configuration holds what JSON cannot ({error}); use plain, finite values"
        ) from error
    ours = FILES if _is_ours(Path(folder)) else ()
    folder = make_room(folder, (*ours, ".git", ".gitattributes"))
    (folder / CONFIG).unlink(missing_ok=True)
    replace_bytes(folder / WEIGHTS, save(tensors_of(module), {"format": "pt"}))
    write_tokenizer(tokenizer, folder)
    replace_text(folder / CARD, card)
    replace_text(folder / CONFIG, written)
    return folder


def _extra_state(module: Any) -> tuple[dict[str, dict[str, Any]], Tokenizer]:
    """What the towers keep besides weights, readable, with the file's name in place of the tokenizer."""
    tokenizer: Tokenizer = module.tokenizer
    extra: dict[str, dict[str, Any]] = {}
    for name, state in module.state_dict().items():
        if name.rpartition(".")[2] != _EXTRA:
            continue
        if not isinstance(state, dict) or not all(isinstance(text, str) for text in state.values()):
            raise ConfigError(f"{name}: it is {shown(state)}, which a folder cannot hold; give texts by name")
        extra[name] = {key: TOKENIZER if key == "tokenizer" else _readable(text) for key, text in state.items()}
        if state.get("tokenizer", tokenizer.state()) != tokenizer.state():
            raise ConfigError(f"{name}: a second tokenizer, which a folder cannot hold")
    return extra, tokenizer


def _readable(text: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return text if isinstance(value, str) else value


def read_folder(folder: Path | str) -> dict[str, Any]:
    """What a folder holds, in the form of a checkpoint. Nothing in it is run, and no class is looked up here.

    Raises:
        ConfigError: a file is missing, damaged or too large, or is not as :func:`write_folder` writes it.
    """
    folder = Path(folder)
    where = str(folder / CONFIG)
    content = read_json(_text(folder / CONFIG, _LARGEST_CONFIG), where, longest=_LARGEST_CONFIG, largest=2**63)
    if content.get("library") != "diptych":
        raise ConfigError(
            f"{where}: is not of diptych; a timm or transformers folder becomes a tower by its path "
            "(docs/foundation.md), and a peer's weights by `diptych convert`"
        )
    if content.get("format") != FORMAT:
        raise ConfigError(
            f"{where}: its format is {shown(content.get('format'))}, and this diptych {__version__} reads {FORMAT}; update it"
        )
    if "TrainedImage" in json.dumps(content.get("model")):
        raise ConfigError(f"{where}: refused: it names another checkpoint by TrainedImage; ask for that run itself")
    try:
        tensors = load_file(folder / WEIGHTS)
    except Exception as error:  # the reader fails in many ways
        raise ConfigError(
            f"{folder / WEIGHTS}: refused: it is cut off, or no safetensors "
            f"({type(error).__name__}: {one_line(str(error))[:120]}); copy the folder again"
        ) from error
    extra = content.get("state")
    if not isinstance(extra, dict):
        raise ConfigError(f"{where}: refused: state is {shown(extra)}, and must be a mapping")
    state: dict[str, Any] = dict(tensors)
    for name, values in extra.items():
        if name.rpartition(".")[2] != _EXTRA or name in tensors or not isinstance(values, dict):
            raise ConfigError(f"{where}: refused: state.{one_line(name)} is no state of a tower")
        state[name] = {key: _stored(folder, key, value, where) for key, value in values.items()}
    return {
        "state_dict": state,
        "diptych": {
            "version": content.get("diptych_version"),
            "config": content.get("model"),
            "head": content.get("head"),
            "findings": content.get("findings"),
            "image_size": content.get("image_size"),
            "intensity": content.get("intensity"),
        },
    }


def _stored(folder: Path, key: str, value: Any, where: str) -> str:
    """The text that a tower keeps under a key. That of the tokenizer comes from its file, whose name is fixed."""
    if key != "tokenizer":
        return value if isinstance(value, str) else json.dumps(value)
    if value != TOKENIZER:
        raise ConfigError(f"{where}: refused: the tokenizer is {shown(value)}, and its file must be {TOKENIZER}")
    return _text(folder / TOKENIZER, _LARGEST_TOKENIZER)


def _text(path: Path, most: int) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
        if len(content) > most:
            raise ConfigError(f"{path}: refused: it has more than {most:,} bytes")
        return content.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({one_line(str(error))[:120]}); copy the folder again") from None
