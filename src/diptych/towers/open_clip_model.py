"""Models of open_clip: their configuration, towers and tokenizers, from the hub or a folder, without running a file."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from torch import Tensor, nn
from transformers import AutoConfig

from diptych.errors import ConfigError, shown
from diptych.plain import read_json
from diptych.reports.tokenizer import Tokenizer
from diptych.towers.architecture import shape_fields, transformers_architecture
from diptych.towers.text_model import hashes, load_tokenizer, quiet_loading
from diptych.towers.weights import files_of, load_whole, read_weights

__all__ = ["Panel", "library", "load_panel", "read_model", "read_panel", "stored_panel", "tokenizer_of"]

_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
_TINY = {
    "image": {"layers": 1, "width": 8, "head_width": 8, "patch_size": 8, "image_size": 8},
    "text": {"context_length": 1, "vocab_size": 1, "width": 8, "heads": 1, "layers": 1},
}
"""The smallest tower of each panel. open_clip builds both at once, and one is thrown away."""
_FETCHING = frozenset({"timm_model_pretrained", "hf_model_pretrained", "hf_model_name", "hf_tokenizer_name"})


def library(of: str) -> Any:
    """The package open_clip.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import open_clip
    except ImportError as error:
        raise ConfigError(f"{of} needs open_clip; pip install 'diptych[openclip]'") from error
    return open_clip


@dataclass(frozen=True)
class Panel:
    """One tower of a model: all that its shape depends on, in plain values."""

    kind: str
    """``image`` or ``text``."""
    embed_dim: int
    """Width of the shared space."""
    shape: dict[str, Any]
    """Its ``vision_cfg`` or ``text_cfg``, without what would be fetched."""
    quick_gelu: bool = False
    text_config: dict[str, Any] | None = None
    """The configuration of its text model, if that is one of transformers."""

    def to_json(self) -> str:
        """The same for a checkpoint."""
        return json.dumps({field.name: getattr(self, field.name) for field in fields(self)}, sort_keys=True)

    def build(self, of: str) -> nn.Module:
        """The tower with random weights. Nothing is fetched.

        Raises:
            ConfigError: open_clip refuses the shape.
        """
        open_clip = library(of)
        try:
            if self.kind == "text" and self.text_config is not None:
                from open_clip.hf_model import HFTextEncoder

                text: Any = HFTextEncoder(
                    "",
                    output_dim=self.embed_dim,
                    config=transformers_architecture(json.dumps(self.text_config), "text"),
                    pooler_type=self.shape.get("hf_pooler_type"),
                    proj_type=self.shape.get("hf_proj_type", "mlp"),  # as open_clip's CLIPTextCfg
                )
                if self.shape.get("hf_pooler_type") != "cls_pooler" and hasattr(text.transformer, "pooler"):
                    text.transformer.pooler = None  # which is not used
                built: nn.Module = text
                return built
            shapes = {**_TINY, self.kind: self.shape}
            model = open_clip.CustomTextCLIP(
                self.embed_dim, vision_cfg=shapes["image"], text_cfg=shapes["text"], quick_gelu=self.quick_gelu
            )
        except ConfigError:
            raise
        except Exception as error:  # open_clip, timm and transformers judge shapes in many ways
            raise ConfigError(
                f"{of}: open_clip cannot build it ({type(error).__name__}: {shown(str(error))})"
            ) from error
        tower: nn.Module = model.visual if self.kind == "image" else model.text
        return tower


def read_model(name: str, of: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The ``model_cfg`` and the ``preprocess_cfg`` of a model.

    Args:
        name: ``owner/name`` on the hub, or a folder with ``open_clip_config.json``.
        of: what it is for, for messages.

    Raises:
        ConfigError: there is no such file, or it is of no dual encoder.
    """
    file = _file(name, ("open_clip_config.json",), of)
    content = read_json(file.read_text(encoding="utf-8"), f"{of}: '{file}'")
    model, preset = content.get("model_cfg", content), content.get("preprocess_cfg", {})
    parts = [model.get("vision_cfg"), model.get("text_cfg")] if isinstance(model, dict) else [None]
    if not all(isinstance(part, dict) for part in (*parts, preset)) or type(model.get("embed_dim")) is not int:
        raise ConfigError(f"{of}: '{file}' is of no dual encoder of open_clip; it must hold vision_cfg and text_cfg")
    return model, preset


def _file(name: str, names: tuple[str, ...], of: str) -> Path:
    """The first file of these names that a folder or a repository of the hub has."""
    folder = Path(name)
    if folder.is_dir():
        found = [folder / one for one in names if (folder / one).is_file()]
        if not found:
            raise ConfigError(
                f"{of}: '{folder}' has no {' or '.join(names)}; copy the whole folder of an open_clip model"
            )
        return found[0]
    reason = ""
    for one in names:
        try:
            return Path(hf_hub_download(name.removeprefix("hf-hub:"), one))
        except Exception as error:  # the hub and the network fail in many ways
            reason = reason or " ".join(str(error).split())[:200]
    raise ConfigError(
        f"{of}: {names[0]} could not be had ({reason}); give the folder of an open_clip model, or a hub name with the network "
        "allowed (HF_HUB_OFFLINE unset)"
    )


def read_panel(model: dict[str, Any], kind: str, of: str) -> Panel:
    """The tower of one panel, from a ``model_cfg``. The configuration of a text model of transformers is fetched.

    Raises:
        ConfigError: it cannot be had, or is of another kind than these towers.
    """
    shape = dict(model["vision_cfg" if kind == "image" else "text_cfg"])
    text_config = None
    if kind == "text" and shape.get("hf_model_name"):
        name = str(shape["hf_model_name"])
        with quiet_loading(f"{of}: its text model '{name}'"):
            config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        known = shape_fields(type(config))
        text_config = {key: value for key, value in json.loads(config.to_json_string()).items() if key in known}
    plain = {key: value for key, value in shape.items() if key not in _FETCHING}
    return _checked(kind, model["embed_dim"], plain, bool(model.get("quick_gelu", False)), text_config, of)


def stored_panel(architecture: str, kind: str, of: str) -> Panel:
    """The tower that a checkpoint holds.

    Raises:
        ConfigError: it holds anything else.
    """
    where = f"the {kind} tower's stored architecture"
    content = read_json(architecture, where)
    if set(content) != {field.name for field in fields(Panel)} or content["kind"] != kind:
        raise ConfigError(f"{where} is refused: it is of no {kind} tower of open_clip")
    config = content["text_config"]
    if type(content["embed_dim"]) is not int or not isinstance(content["shape"], dict):
        raise ConfigError(f"{where} is refused: it must hold a width and a shape")
    if config is not None and not isinstance(config, dict):
        raise ConfigError(f"{where} is refused: text_config is {shown(config)}, and must be a mapping")
    return _checked(kind, content["embed_dim"], content["shape"], content["quick_gelu"] is True, config, of)


def _checked(
    kind: str, embed_dim: int, shape: dict[str, Any], quick_gelu: bool, config: dict[str, Any] | None, of: str
) -> Panel:
    """A panel whose shape holds plain values under names that open_clip knows, and nothing that is fetched."""
    open_clip = library(of)
    known = {field.name for field in fields(open_clip.CLIPVisionCfg if kind == "image" else open_clip.CLIPTextCfg)}
    for key, value in shape.items():
        values = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else [value]
        plain = all(
            re.fullmatch(r"(\w+(\.\w+)?)?", item)
            if isinstance(item, str)
            else item is None or isinstance(item, int | float)
            for item in values
        )
        if key in _FETCHING or key not in known or not plain:
            raise ConfigError(
                f"{of}: refused: {shown(key)}: {shown(value)} is nothing that a tower of open_clip declares"
            )
    return Panel(kind, embed_dim, shape, quick_gelu, config)


def load_panel(tower: nn.Module, name: str, kind: str, of: str, resize: Any = None) -> dict[str, Any]:
    """Give a tower the weights of a model, all of them, and say where they come from.

    Args:
        tower: built by :meth:`Panel.build`.
        name: of the model.
        kind: ``image`` or ``text``.
        of: what it is for, for messages.
        resize: changes the tensors before they are taken, as position codes for another size.

    Raises:
        ConfigError: weights are missing, damaged or of another shape.
    """
    library(of)
    from open_clip.model import convert_to_custom_text_state_dict

    file = _file(name, _FILES, of) if not Path(name).is_dir() else _weights_in(Path(name), of)
    state: dict[str, Tensor] = convert_to_custom_text_state_dict(read_weights(file, of=of))
    state = {key: value for key, value in state.items() if not key.endswith("position_ids")}
    if resize is not None:
        resize(state)
    load_whole(tower, state, of=of, file=f"'{file}'", prefix="visual" if kind == "image" else "text")
    return {"name": name, **hashes([file])}


def _weights_in(folder: Path, of: str) -> Path:
    own = [folder / one for one in _FILES if (folder / one).is_file()]
    return own[0] if own else files_of(folder, of=of)[0]


def tokenizer_of(model: dict[str, Any], name: str, max_tokens: int, of: str) -> Tokenizer:
    """The tokenizer of a model: CLIP's byte pairs, which open_clip brings along, or one of transformers.

    In a folder the files of the latter lie beside the weights, as open_clip has it.

    Raises:
        ConfigError: it cannot be loaded, or cleans texts in a way that is not done here.
    """
    shape = model["text_cfg"]
    other = {key: shape[key] for key in ("tokenizer_kwargs", "tokenizer_mode") if shape.get(key)}
    if other:
        raise ConfigError(
            f"{of}: its tokenizer has settings that are not read here: {shown(other)}; take another model"
        )
    if source := shape.get("hf_tokenizer_name"):
        return load_tokenizer(name if Path(name).is_dir() else str(source), max_tokens, None)
    from transformers import CLIPTokenizer

    own = library(of).SimpleTokenizer()
    start, end = "<start_of_text>", "<end_of_text>"
    special = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": end}
    wrapper: Any = CLIPTokenizer(vocab=dict(own.encoder), merges=list(own.bpe_ranks), **special)
    return Tokenizer(wrapper.backend_tokenizer, max_tokens, pad_id=0)
