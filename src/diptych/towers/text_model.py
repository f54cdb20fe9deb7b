"""Text models of transformers and their tokenizers, loaded whole: from the hub, a folder, or another project's file."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer as Backend
from tokenizers import normalizers
from torch import Tensor, nn
from transformers import MODEL_MAPPING, AutoTokenizer
from transformers.utils import logging as transformers_logging

from diptych.errors import ConfigError
from diptych.files import sha256
from diptych.reports.tokenizer import Tokenizer
from diptych.towers.weights import check_loaded, files_of, load_whole, read_weights

__all__ = [
    "from_pretrained", "hashes", "load_text_model", "load_tokenizer", "looks_back_only", "most_pieces", "quiet_loading",
]  # fmt: skip

_log = logging.getLogger(__name__)


@contextmanager
def quiet_loading(of: str, files: str = "tokenizer files") -> Iterator[None]:
    """Within it, transformers prints no reports and no bars. A failure becomes one line with a remedy.

    Args:
        of: what is loaded, for the message.
        files: what a folder needs beside config.json and weights.
    """
    log: Any = transformers_logging
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    except (OSError, ValueError, ImportError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"{of} could not be loaded ({reason}); give the path of a local folder with config.json, "
            f"weights and {files}, or a hub name with the network allowed (HF_HUB_OFFLINE unset)"
        ) from error
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()


def load_text_model(
    name: str, config: Any, pretrained: bool, weights: str | None, prefix: str | None
) -> tuple[nn.Module, dict[str, Any]]:
    """A transformers encoder with its weights, and their origin in plain values.

    Args:
        name: of the model, on the hub or as a folder.
        config: of transformers.
        pretrained: whether the hub's or the folder's weights are loaded, unless a file of weights is given.
        weights: the file.
        prefix: what stands before the names of the weights in the file. None searches for it.

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
        return _load_files(kind(config, **bare), [Path(weights)], of, name, prefix)
    if not pretrained:
        return kind(config, **bare), {"name": name, "weights": "random"}
    if folder:
        files = files_of(name, of=of)
        if prefix is not None:
            return _load_files(kind(config, **bare), files, of, name, prefix)
        try:
            with quiet_loading(of):
                model, info = _read_pretrained(kind, name, config, bare)
            whole = not info["missing_keys"] and not info["mismatched_keys"]
        except Exception:  # damaged files and wrong shapes fail in many ways; _load_files says which
            whole = False
        if not whole:  # transformers knows no other project's prefix
            return _load_files(kind(config, **bare), files, of, name, prefix)
        _check(model, info, of, f"'{name}'")
        return model, {"name": name, **hashes(files)}
    with quiet_loading(of):
        model, info = _read_pretrained(kind, name, config, bare)
    _check(model, info, of, f"'{name}'")
    return model, {"name": name, "weights": _commit(name, config)}


def from_pretrained(
    kind: Any, name: str, config: Any, *, of: str, files: str, **options: Any
) -> tuple[nn.Module, dict[str, Any]]:
    """A model of transformers with the weights of the hub or of a folder, all of them, and their origin in plain values.

    Names of older files are translated by transformers. Files other than safetensors are read as tensors alone.

    Args:
        kind: class of the model.
        name: on the hub, or a folder.
        config: of transformers.
        of: what is loaded, for messages.
        files: what a folder needs beside config.json and weights, for messages.
        options: further arguments of the class.

    Raises:
        ConfigError: the weights cannot be had whole.
    """
    own = files_of(name, of=of) if Path(name).is_dir() else []
    try:
        with quiet_loading(of, files):
            model, info = _read_pretrained(kind, name, config, options)
    except Exception:  # damaged files fail in many ways; read_weights says how, and names the file
        for file in own:
            read_weights(file, of=of)
        raise
    _check(model, info, of, f"'{name}'")
    if own:
        return model, {"name": name, **hashes(own)}
    return model, {"name": name, "weights": _commit(name, config)}


def _commit(name: str, config: Any) -> str:
    commit = getattr(config, "_commit_hash", None)
    return f"{name}@{commit}" if commit else name


def _read_pretrained(kind: Any, name: str, config: Any, bare: dict[str, Any]) -> Any:
    return kind.from_pretrained(
        name, config=config, dtype=torch.float32, output_loading_info=True, trust_remote_code=False, **bare
    )


def _check(model: Any, info: dict[str, Any], of: str, file: str) -> None:
    lacking = sorted(info["missing_keys"]) + sorted(str(key[0]) for key in info["mismatched_keys"])
    head = f"{model.base_model_prefix}."
    check_loaded(model, lacking, sorted(key.removeprefix(head) for key in info["unexpected_keys"]), of=of, file=file)


def _load_files(
    model: nn.Module, files: list[Path], of: str, name: str, prefix: str | None
) -> tuple[nn.Module, dict[str, Any]]:
    state: dict[str, Tensor] = {}
    for file in files:
        state |= read_weights(file, of=of)
    place = f"'{files[0]}'" if len(files) == 1 else f"'{files[0].parent}'"
    prefix = load_whole(model, state, of=of, file=place, prefix=prefix, convert=_rename_norms)
    return model, {"name": name, **hashes(files), "prefix": prefix}


def _rename_norms(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights under today's names: the norms of the first BERTs had weights called gamma and beta."""
    ends = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
    return {
        next((name.removesuffix(old) + new for old, new in ends.items() if name.endswith(old)), name): value
        for name, value in state.items()
    }


def hashes(files: list[Path]) -> dict[str, Any]:
    """Where weights come from, in plain values: the file and its hash, or the folder and the hashes of its files."""
    if len(files) == 1:
        return {"weights": str(files[0]), "sha256": sha256(files[0])}
    return {"weights": str(files[0].parent), "sha256": [sha256(file) for file in files]}


def looks_back_only(model: nn.Module) -> bool:
    """Whether a model is causal. It is tried out: a later piece is changed, and the first piece's vector stays as it was."""
    last = int(model.config.vocab_size) - 1  # type: ignore[union-attr, arg-type]  # special pieces are the first
    ids = torch.tensor([[last - 1, last], [last - 1, last - 2]], device=next(model.parameters()).device)
    training = model.training
    with torch.no_grad():
        first = model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[:, 0]
    model.train(training)
    return bool(torch.equal(first[0], first[1]))


def load_tokenizer(name: str, max_tokens: int, lower_case: bool | None) -> Tokenizer:
    """The tokenizer that belongs to a model.

    Args:
        name: of the model, on the hub or as a folder.
        max_tokens: most word pieces of a report.
        lower_case: whether it folds case. None decides by its own setting and its vocabulary.

    Raises:
        ConfigError: it cannot be loaded, is of a kind that does not give words, or its case cannot be set.
    """
    with quiet_loading(f"text tower '{name}'"):
        wrapper = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        backend: Backend | None = getattr(wrapper, "backend_tokenizer", None)
    if backend is None:
        raise ConfigError(f"text tower '{name}' has no fast tokenizer; add its tokenizer.json to the folder")
    normalizer = backend.normalizer
    if not isinstance(normalizer, normalizers.BertNormalizer):
        if lower_case is not None:
            raise ConfigError(f"text tower '{name}': lower_case cannot be set for its tokenizer; leave it out")
    else:
        folds = lower_case if lower_case is not None else normalizer.lowercase and not _is_cased(backend)
        if folds != normalizer.lowercase:
            _log.info(
                "text tower '%s': case is %s", name, "folded" if folds else "kept, as its vocabulary holds capitals"
            )
            normalizer.lowercase = folds
            backend.normalizer = normalizer
    return Tokenizer(backend, max_tokens, pad_id=wrapper.pad_token_id or 0)


def _is_cased(backend: Backend) -> bool:
    """Whether the vocabulary holds words with capitals, special tokens aside."""
    return any(piece != piece.lower() for piece in backend.get_vocab() if not re.fullmatch(r"[\[<].*[\]>]", piece))


def most_pieces(config: Any) -> int:
    """Most word pieces of a report that the model's position embeddings allow."""
    positions = int(getattr(config, "max_position_embeddings", 0) or 1_000_000)
    offset = (config.pad_token_id or 0) + 1 if config.model_type in ("roberta", "xlm-roberta", "camembert") else 0
    return positions - offset
