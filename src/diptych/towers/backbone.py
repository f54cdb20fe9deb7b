"""Backbones of timm for radiographs: with one channel, without a classifier, and with weights that are loaded whole."""

from __future__ import annotations

import sys
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import timm
from timm.models import adapt_input_conv
from torch import Tensor, nn

from diptych.errors import ConfigError
from diptych.files import sha256
from diptych.towers.weights import check_loaded, files_of, load_whole, read_weights, record_loading

__all__ = ["make_backbone"]


def make_backbone(
    name: str, pretrained: bool, weights: str | None, prefix: str | None, args: dict[str, Any]
) -> tuple[nn.Module, dict[str, Any]]:
    """The backbone with its weights, and their origin in plain values.

    Args:
        name: a timm model, or ``hf-hub:owner/name``, or ``local-dir:/a/folder``.
        pretrained: whether the hub's or the folder's weights are loaded, unless a file of weights is given.
        weights: the file.
        prefix: what stands before the names of the weights in the file. None searches for it.
        args: arguments of timm's constructor.

    Raises:
        ConfigError: no such model, or weights that cannot be had whole.
    """
    of = f"image tower '{name}'"
    source, _, place = name.partition(":")
    if weights is None and pretrained and source == "local-dir":
        backbone = _create(name, False, args)
        file = files_of(place, of=of)[0]
    elif weights is not None:
        backbone = _create(name, False, args)
        file = Path(weights)
    elif prefix is not None:
        raise ConfigError(f"{of}: weights_prefix is '{prefix}', and there is no file; give one as `weights`")
    elif not pretrained:
        return _create(name, False, args), {"weights": "random"}
    else:
        with record_loading() as loads:
            backbone = _create(name, True, args)
        preset: dict[str, Any] = backbone.pretrained_cfg  # type: ignore[assignment]  # timm sets it
        tag = str(preset.get("tag") or preset.get("hf_hub_id") or name)
        for load in loads:
            check_loaded(backbone, load.missing_keys, load.unexpected_keys, of=of, file=f"'{tag}'")
        return backbone, {"weights": tag}
    state = read_weights(file, of=of)
    prefix = load_whole(
        backbone, state, of=of, file=f"'{file}'", prefix=prefix, convert=lambda own: _to_timm(own, backbone)
    )
    return backbone, {"weights": str(file), "sha256": sha256(file), "prefix": prefix}


def _to_timm(state: dict[str, Tensor], backbone: nn.Module) -> dict[str, Tensor]:
    """Weights under timm's names and for one channel.

    timm's own converter of the family renames them. First layers of three colours are summed.
    """
    convert = getattr(sys.modules[type(backbone).__module__], "checkpoint_filter_fn", None)
    if convert is not None:
        with suppress(Exception):  # on weights of another family it fails in many ways; load_whole says what is missing
            state = convert(dict(state), backbone)
    for name, own in backbone.state_dict().items():
        filters = state.get(name)
        if filters is None or filters.ndim != 4 or own.ndim != 4:
            continue
        coloured = filters.shape[1] == 3 * own.shape[1] and filters.shape[2:] == own.shape[2:]
        if coloured and filters.is_floating_point():
            state = {**state, name: adapt_input_conv(1, filters)}
    return state


def _create(name: str, pretrained: bool, args: dict[str, Any]) -> nn.Module:
    """The backbone with one input channel and no classifier."""
    if ":" not in name:
        _check_name(name)
    options = {"pretrained": pretrained, "num_classes": 0, "in_chans": 1, **args}
    try:
        try:
            model = timm.create_model(name, **{"dynamic_img_size": True, **options})
        except TypeError as error:
            if "dynamic_img_size" not in str(error):
                raise
            model = timm.create_model(name, **options)  # not a ViT
    except TypeError as error:
        raise ConfigError(f"image tower '{name}': model_args {args} do not fit it: {error}") from error
    except Exception as error:  # the hub, the network and the file each fail in their own way
        if not pretrained:
            raise ConfigError(
                f"image tower '{name}' could not be built with model_args {args}: {' '.join(str(error).split())[:300]}"
            ) from error
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"image tower '{name}': its weights could not be loaded ({reason}); set pretrained: false, or give a local "
            "file as `weights`, or a folder as the name 'local-dir:/path'"
        ) from error
    return model


def _check_name(name: str) -> None:
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        near = get_close_matches(architecture, timm.list_models(), n=5, cutoff=0.5)
        raise ConfigError(f"no image tower '{name}' in timm {timm.__version__}; nearest: {', '.join(near) or 'none'}")
    known = [entry.partition(".")[2] for entry in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in known:
        raise ConfigError(
            f"image tower '{name}': no weights are tagged '{tag}'; known tags: {', '.join(known) or 'none'}"
        )
