"""Text models of transformers, loaded whole: from the hub, a folder, or another project's file."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import MODEL_MAPPING
from transformers.utils import logging as transformers_logging

from diptych.errors import ConfigError
from diptych.files import sha256
from diptych.towers.weights import check_loaded, files_of, load_whole, read_weights

__all__ = ["load_text_model", "quiet_loading"]


@contextmanager
def quiet_loading(name: str) -> Iterator[None]:
    """Within it, transformers keeps its reports and bars to itself, and a failure becomes one line with a remedy."""
    log: Any = transformers_logging
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    except (OSError, ValueError, ImportError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"text tower '{name}' could not be loaded ({reason}); give the path of a local folder with config.json, "
            "weights and tokenizer files, or a hub name with the network allowed (HF_HUB_OFFLINE unset)"
        ) from error
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()


def load_text_model(
    name: str, config: Any, pretrained: bool, weights: str | None, prefix: str | None
) -> tuple[nn.Module, dict[str, Any]]:
    """A transformers encoder with its weights, and where they are from.

    Args:
        name: see :class:`diptych.towers.text.TransformersText`, as all others.
        config: of transformers.
        pretrained: weights of the hub or of the folder, where no file is given.
        weights: the file.
        prefix: before its names; None searches.

    Raises:
        ConfigError: the model is no encoder, or its weights cannot be had whole.
    """
    of = f"text tower '{name}'"
    kind: Any = MODEL_MAPPING.get(type(config), None)
    if not callable(kind) or getattr(config, "is_encoder_decoder", False):
        raise ConfigError(f"{of}: '{config.model_type}' is not a text encoder; use a BERT-like model")
    bare = {"add_pooling_layer": False} if "add_pooling_layer" in inspect.signature(kind).parameters else {}
    folder = Path(name).is_dir()
    if prefix is not None and not (weights or (pretrained and folder)):
        raise ConfigError(f"{of}: weights_prefix is '{prefix}', and there is no file; give one as `weights`")
    if weights is not None:
        return _of_files(kind(config, **bare), [Path(weights)], of, name, prefix)
    if not pretrained:
        return kind(config, **bare), {"name": name, "weights": "random"}
    if folder:
        files = files_of(name, of=of)
        if prefix is not None:
            return _of_files(kind(config, **bare), files, of, name, prefix)
        try:
            with quiet_loading(name):
                model, info = _from_pretrained(kind, name, config, bare)
            whole = not info["missing_keys"] and not info["mismatched_keys"]
        except Exception:  # damaged files and wrong shapes fail in many ways; below it is said which
            whole = False
        if not whole:  # as transformers names them; another project's prefix it does not know
            return _of_files(kind(config, **bare), files, of, name, prefix)
        _check(model, info, of, f"'{name}'")
        return model, {"name": name, **_hashed(files)}
    with quiet_loading(name):
        model, info = _from_pretrained(kind, name, config, bare)
    _check(model, info, of, f"'{name}'")
    commit = getattr(config, "_commit_hash", None)
    return model, {"name": name, "weights": f"{name}@{commit}" if commit else name}


def _from_pretrained(kind: Any, name: str, config: Any, bare: dict[str, Any]) -> Any:
    return kind.from_pretrained(
        name, config=config, dtype=torch.float32, output_loading_info=True, trust_remote_code=False, **bare
    )


def _check(model: Any, info: dict[str, Any], of: str, file: str) -> None:
    lacking = sorted(info["missing_keys"]) + sorted(str(key[0]) for key in info["mismatched_keys"])
    head = f"{model.base_model_prefix}."
    check_loaded(model, lacking, sorted(key.removeprefix(head) for key in info["unexpected_keys"]), of=of, file=file)


def _of_files(
    model: nn.Module, files: list[Path], of: str, name: str, prefix: str | None
) -> tuple[nn.Module, dict[str, Any]]:
    state: dict[str, Tensor] = {}
    for file in files:
        state |= read_weights(file, of=of)
    named = f"'{files[0]}'" if len(files) == 1 else f"'{files[0].parent}'"
    found = load_whole(model, state, of=of, file=named, prefix=prefix, convert=_renamed)
    return model, {"name": name, **_hashed(files), "prefix": found}


def _renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Norms of the first BERTs had weights called gamma and beta."""
    ends = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
    return {
        next((name.removesuffix(old) + new for old, new in ends.items() if name.endswith(old)), name): value
        for name, value in state.items()
    }


def _hashed(files: list[Path]) -> dict[str, Any]:
    if len(files) == 1:
        return {"weights": str(files[0]), "sha256": sha256(files[0])}
    return {"weights": str(files[0].parent), "sha256": [sha256(file) for file in files]}
