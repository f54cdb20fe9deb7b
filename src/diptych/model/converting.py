"""A peer's checkpoint becomes a checkpoint of diptych, with a report of every key (docs/peers.md)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from diptych.errors import ConfigError
from diptych.files import replace_text, replacing, sha256
from diptych.model.stored import build_stored, load_weights
from diptych.peer import Converted, Peer, Weights
from diptych.radiographs.intensity import Intensity
from diptych.towers.foreign import read_foreign
from diptych.towers.text_model import load_tokenizer
from diptych.towers.weights import files_of, some
from diptych.version import __version__

__all__ = ["Conversion", "convert"]


@dataclass(frozen=True)
class Conversion:
    """What was written."""

    checkpoint: Path
    recipe: Path
    """The ``model`` part of a recipe."""
    report: Path
    """Every key: mapped, left out, set, missing and unexpected."""
    content: dict[str, Any]
    """What the report holds."""


def convert(
    name: str,
    peer: Peer,
    files: Sequence[Path | str],
    out: Path | str,
    *,
    tokenizer: str | None = None,
    allow_missing: Sequence[str] = (),
    allow_unexpected: Sequence[str] = (),
) -> Conversion:
    """Write a peer's weights as a checkpoint of diptych, with a recipe and a report beside it.

    Nothing in the files is run. Missing weights that are allowed stay random, and the report names them.

    Args:
        name: of the peer.
        peer: how its weights are to be read.
        files: files of weights, or folders with one. Together they hold the model.
        out: the checkpoint. The recipe is ``<out without ending>.yaml``, and the report ``.convert.json``.
        tokenizer: folder or hub name of the tokenizer. None takes the name of the one that the peer was trained with.
        allow_missing: patterns (``*`` for any letters) of diptych's weights that the files may lack.
        allow_unexpected: patterns of the files' keys that may be left out.

    Raises:
        ConfigError: the files are no such model; keys are missing or unexpected, and no pattern allows them; weights have
            another shape, or are not finite; or the tokenizer cannot be loaded.
        DataError: the checkpoint cannot be written.
    """
    out = Path(out)
    of = f"peer {name}"
    if out.suffix != ".ckpt":
        raise ConfigError(f"--out {out}: the name of a checkpoint ends in .ckpt, as {out.with_suffix('.ckpt')}")
    paths = [path for file in files for path in (files_of(file, of=of) if Path(file).is_dir() else [Path(file)])]
    weights, not_read = _read(paths, of)
    converted = peer.convert(weights)
    unexpected = weights.remaining()
    _refuse(
        [key for key in unexpected if not _allowed(key, allow_unexpected)],
        f"{of}: {weights.source} holds keys that no rule of this peer knows",
        "--allow-unexpected PATTERN leaves them out",
    )
    origin = {"peer": name, "weights": weights.source, "sha256": [sha256(path) for path in paths]}
    config, extra = _configuration(converted, peer, tokenizer, origin)
    module = build_stored(config, {**converted.state, **extra}, str(out))
    module.eval()
    own = module.state_dict()
    shapes = [
        f"{key} {list(value.shape)} for {list(own[key].shape) if key in own else 'nothing'}"
        for key, value in converted.state.items()
        if key not in own or value.shape != own[key].shape
    ]
    if shapes:
        raise ConfigError(f"{of}: {weights.source} holds weights of another shape: {some(shapes, 4)}; is it a variant?")
    _refuse_not_finite(converted.state, of, weights.source)
    missing = []
    for key, value in own.items():
        if key in converted.state or not isinstance(value, Tensor):
            continue
        why = next((why for start, why in converted.untrained.items() if key.startswith(start)), None)
        if why is not None or not value.is_floating_point() or key in _SET_BY_NORMALISATION:
            weights.set[key] = why or ("as configured" if value.is_floating_point() else "a counter, from 0")
        else:
            missing.append(key)
    _refuse(
        [key for key in missing if not _allowed(key, allow_missing)],
        f"{of}: {weights.source} lacks weights",
        "give the whole checkpoint; --allow-missing PATTERN leaves them random",
    )
    state = {**own, **converted.state, **extra}
    load_weights(module, state, str(out))
    content = {
        "peer": name,
        "paper": peer.paper,
        "licence": peer.licence,
        "files": [{"path": str(path), "sha256": digest} for path, digest in zip(paths, origin["sha256"], strict=True)],
        "head": converted.head,
        "image_size": converted.image_size,
        "mean": float(converted.image["mean"]),
        "std": float(converted.image["std"]),
        "inferred": list(peer.inferred),
        "mapped": weights.mapped,
        "left_out": weights.left_out,
        "set": weights.set,
        "missing": missing,
        "unexpected": unexpected,
        "objects_not_read": not_read,
    }
    checkpoint = {
        "state_dict": module.state_dict(),
        "pytorch-lightning_version": version("lightning"),
        "epoch": 0,
        "global_step": 0,
        "diptych": {
            "version": __version__,
            "config": config,
            "head": f"{type(module.head).__module__}.{type(module.head).__qualname__}",
            "findings": [],
            "image_size": converted.image_size,
            "intensity": Intensity().plain(),
        },
    }
    with replacing(out) as file:
        torch.save(checkpoint, file)
    recipe, report = out.with_suffix(".yaml"), out.with_suffix(".convert.json")
    replace_text(report, json.dumps(content, indent=2) + "\n")
    replace_text(recipe, _recipe(converted, config, extra, name))
    return Conversion(out, recipe, report, content)


_WRAPPERS = ("state_dict.", "model_state_dict.")
"""What stands before the names where a file holds more than a state dict."""
_SET_BY_NORMALISATION = frozenset({"encoder.image.mean", "encoder.image.std"})


def _read(paths: Sequence[Path], of: str) -> tuple[Weights, list[str]]:
    """The tensors of all files together, and the classes of what was not read."""
    tensors: dict[str, Tensor] = {}
    outside: list[str] = []
    not_read: set[str] = set()
    for path in paths:
        found, unread = read_foreign(path, of=of)
        for start in _WRAPPERS:
            if any(name.startswith(start) for name in found):
                outside += [name for name in found if not name.startswith(start)]
                found = {name.removeprefix(start): value for name, value in found.items() if name.startswith(start)}
        if twice := sorted(set(found) & set(tensors)):
            raise ConfigError(
                f"{of}: '{path}' holds what another file holds too: {some(twice, 4)}; give each file once"
            )
        tensors |= found
        not_read |= set(unread)
    weights = Weights(tensors, " and ".join(f"'{path}'" for path in paths))
    weights.left_out |= dict.fromkeys(outside, "outside the state dict: of an optimiser, or a metric")
    return weights, sorted(not_read)


def _configuration(
    converted: Converted, peer: Peer, tokenizer: str | None, origin: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, dict[str, str]]]:
    """The ``model`` part of a recipe, and what a checkpoint holds of the towers besides weights."""
    image = dict(converted.image)
    architecture = json.dumps({"name": image["name"], "model_args": image.pop("model_args", {})})
    image_origin = json.dumps({"name": image["name"], **origin})
    extra = {"encoder.image._extra_state": {"architecture": architecture, "origin": image_origin}}
    text = {"class_path": "diptych.ScratchText", "init_args": _NO_TEXT}
    if converted.text is not None:
        name = tokenizer or peer.tokenizer
        if name is None:
            raise ConfigError("this peer names no tokenizer; give the folder of its own as --tokenizer")
        state = load_tokenizer(name, converted.text["max_tokens"], peer.lower_case).state()
        extra["encoder.text._extra_state"] = {
            "architecture": json.dumps(converted.text_config, indent=2, sort_keys=True),
            "origin": json.dumps({"name": peer.tokenizer or name, **origin}),
            "tokenizer": state,
        }
        arguments = {"name": peer.tokenizer or name, "pretrained": False, **converted.text}
        text = {"class_path": "diptych.TransformersText", "init_args": arguments}
    config = {
        "image": {"class_path": "diptych.TimmImage", "init_args": {"pretrained": False, **image}},
        "text": text,
        "head": {"class_path": converted.head, "init_args": converted.head_args},
    }
    return config, extra


_NO_TEXT = {"width": 32, "depth": 1, "heads": 1, "vocabulary": 77, "max_tokens": 8}
"""The smallest text tower, for peers that have none. It has no vocabulary, so it refuses every text."""


def _recipe(converted: Converted, config: dict[str, Any], extra: dict[str, dict[str, str]], name: str) -> str:
    """The recipe that builds the same model. It holds the architectures, so that nothing is fetched."""
    shown = json.loads(json.dumps(config))
    for tower in ("image", "text"):
        if (stored := extra.get(f"encoder.{tower}._extra_state")) is not None:
            shown[tower]["init_args"]["architecture"] = json.dumps(json.loads(stored["architecture"]))
    lines = [
        f"# The peer {name}, as `diptych convert` wrote it. Add `data`, with loading.image_size: {converted.image_size}.",
        yaml.safe_dump({"model": shown}, sort_keys=False, width=1_000_000),
    ]
    return "\n".join(lines)


def _allowed(key: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def _refuse(keys: Sequence[str], problem: str, remedy: str) -> None:
    if keys:
        raise ConfigError(f"{problem}: {some(keys)}; {remedy}")


def _refuse_not_finite(state: dict[str, Tensor], of: str, source: str) -> None:
    broken = [key for key, value in state.items() if value.is_floating_point() and not torch.isfinite(value).all()]
    if broken:
        raise ConfigError(f"{of}: {source} holds NaN or infinite weights: {some(broken, 4)}; download it again")
