"""A tower for the library that it came from: a folder that timm reads, and one that transformers reads.

What is written is read again by that library, and must give the same features.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from diptych.errors import ConfigError
from diptych.files import replace_bytes, replace_text
from diptych.sharing.folder import make_room, tensors_of, without_places
from diptych.sharing.tokenizer_files import write_tokenizer
from diptych.towers.image import ImageTower, TimmImage
from diptych.towers.text import ScratchText, TextTower, TransformersText
from diptych.towers.text_model import quiet_loading

__all__ = ["write_timm", "write_transformers"]

_KEPT = ("classifier", "first_conv", "pool_size", "crop_pct", "crop_mode", "interpolation", "fixed_input_size")
"""What a timm configuration keeps of the pretrained one. Addresses and labels are of other weights."""


def write_timm(tower: ImageTower, image_size: int, folder: Path | str) -> Path:
    """Write the backbone for ``timm.create_model("local-dir:FOLDER", pretrained=True)``.

    It has one input channel and no classifier. Its mean and deviation are in its configuration. The regions of an inner
    ``stage`` come from ``forward_intermediates``.

    Args:
        tower: a :class:`diptych.TimmImage`.
        image_size: side of the square input, in pixels.
        folder: a new one.

    Raises:
        ConfigError: the tower is another, or timm reads something else from the folder.
    """
    if type(tower) is not TimmImage:
        raise ConfigError(f"the image tower {type(tower).__name__} is no backbone of timm; {_remedy(tower)}")
    import timm

    backbone: Any = tower.backbone
    stored = json.loads(tower.get_extra_state()["architecture"])
    args = dict(stored["model_args"])
    if getattr(backbone, "dynamic_img_size", False):
        args["dynamic_img_size"] = True
    preset = backbone.pretrained_cfg
    content = {
        "architecture": preset["architecture"],
        "num_classes": 0,
        "num_features": backbone.num_features,
        "model_args": args,
        "pretrained_cfg": {
            **{key: preset[key] for key in _KEPT if key in preset},
            "input_size": [1, image_size, image_size],  # timm takes the number of channels from it
            "mean": [float(tower.mean)],
            "std": [float(tower.std)],
            "num_classes": 0,
            "custom_load": False,
        },
    }
    folder = make_room(folder)
    replace_bytes(folder / "model.safetensors", save(tensors_of(backbone), {"format": "pt"}))
    replace_text(folder / "config.json", json.dumps(content, indent=2) + "\n")
    pixels = torch.rand(2, 1, image_size, image_size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        again: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        own = tower(pixels.to(tower.mean.device)).pooled
        read = again((pixels - float(tower.mean)) / float(tower.std))
    _check(own, read, "timm", folder)
    return folder


def write_transformers(tower: TextTower, folder: Path | str) -> Path:
    """Write model and tokenizer for ``transformers.AutoModel.from_pretrained(FOLDER)`` and ``AutoTokenizer``.

    Args:
        tower: a :class:`diptych.TransformersText` or a :class:`diptych.ScratchText`, which is a BERT.
        folder: a new one.

    Raises:
        ConfigError: the tower is another or has no vocabulary, or transformers reads something else from the folder.
    """
    if type(tower) not in {TransformersText, ScratchText}:
        raise ConfigError(f"the text tower {type(tower).__name__} is no model of transformers; {_remedy(tower)}")
    from transformers import AutoModel

    model: Any = tower.model
    of = f"text tower '{tower.origin.get('name')}'"
    tower.tokenizer.pad_id  # noqa: B018  # refuses a tower without vocabulary before anything is written
    folder = make_room(folder)
    with quiet_loading(of):
        model.save_pretrained(folder)
    config = folder / "config.json"
    content = without_places(json.loads(config.read_text(encoding="utf-8")))
    replace_text(config, json.dumps(content, indent=2, sort_keys=True) + "\n")
    write_tokenizer(tower.tokenizer, folder)
    ids = tower.tokenizer(["No effusion. The heart is large.", "No."])
    device = next(model.parameters()).device
    with torch.inference_mode(), quiet_loading(of):
        again = AutoModel.from_pretrained(folder, dtype=next(model.parameters()).dtype).eval()
        mask = ids.attention_mask.long()
        own = model(input_ids=ids.input_ids.to(device), attention_mask=mask.to(device)).last_hidden_state
        read = again(input_ids=ids.input_ids, attention_mask=mask).last_hidden_state
    _check(own, read, "transformers", folder)
    return folder


def _check(own: Tensor, read: Tensor, library: str, folder: Path) -> None:
    furthest = float((own.cpu() - read).abs().max() / own.abs().max().clamp_min(1).cpu())
    if not furthest <= 1e-5:
        raise ConfigError(
            f"{folder}: {library} reads a tower of other features from it, by {furthest:.2g}; do not use it"
        )


def _remedy(tower: Any) -> str:
    if hasattr(tower, "merge"):
        return "merge its adapters first: model.module.encoder.NAME = model.module.encoder.NAME.merge()"
    return "share the whole model with --to hub, or its programs with --to onnx or torch"
