"""The architecture of a tower, as a checkpoint stores it: a kind of model and its shape.

Nothing else is accepted: timm and transformers know arguments that open files or fetch code.
"""

from __future__ import annotations

import inspect
import re
from difflib import get_close_matches
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig

from diptych.errors import ConfigError, shown
from diptych.escaping import one_line
from diptych.plain import read_json

__all__ = [
    "architecture_args",
    "check_model_args",
    "check_no_weights",
    "shape_fields",
    "timm_architecture",
    "transformers_architecture",
]

_MODEL_ARGS = frozenset({
    "act_layer", "aa_layer", "always_partition", "attn_drop_rate", "avg_down", "base_width", "block_config",
    "cardinality", "channels", "class_token", "conv_mlp", "depth", "depths", "dims", "drop_block_rate",
    "drop_path_rate", "drop_rate", "dynamic_img_pad", "dynamic_img_size", "embed_dim", "fc_norm", "final_norm",
    "global_pool", "growth_rate", "head_init_scale", "img_size", "init_values", "kernel_sizes", "layers",
    "ls_init_value", "mlp_ratio", "no_embed_class", "norm_eps", "norm_layer", "num_heads", "num_stages",
    "output_stride", "patch_drop_rate", "patch_size", "pos_drop_rate", "pos_embed", "pre_norm", "proj_bias",
    "proj_drop_rate", "qk_norm", "qkv_bias", "reg_tokens", "replace_stem_pool", "stem_stride", "stem_type",
    "stem_width", "strict_img_size", "use_abs_pos_emb", "use_grn", "use_rel_pos_bias", "window_size",
    "zero_init_last",
})  # fmt: skip
"""What ``model_args`` may hold: shapes and layers, nothing that opens a file or an address."""


def architecture_args(extra_state: dict[str, str], panel: str) -> dict[str, Any]:
    """The constructor arguments with which a tower is built from a checkpoint: its shape, without weights.

    Args:
        extra_state: what the tower's ``get_extra_state`` had put in the checkpoint.
        panel: ``image`` or ``text``.

    Raises:
        ConfigError: the checkpoint holds no architecture.
    """
    if "architecture" not in extra_state:
        raise ConfigError(f"the {panel} tower's architecture is not in the checkpoint; no run of diptych wrote it")
    architecture = extra_state["architecture"]
    return {"pretrained": False, "weights": None, "weights_prefix": None, "architecture": architecture}


def check_no_weights(tower: str, pretrained: bool, weights: str | None) -> None:
    """Refuse weights beside a stored architecture, which a checkpoint has weights for.

    Raises:
        ConfigError: there are some.
    """
    if pretrained or weights:
        raise ConfigError(f"{tower}: `architecture` is for checkpoints; set pretrained: false, weights: null")


def check_model_args(name: str, args: dict[str, Any]) -> None:
    """Refuse arguments of a timm model that a checkpoint may not hold.

    Raises:
        ConfigError: one is not known to be harmless, or is not plain and small. The message names it.
    """
    for key, value in args.items():
        if key not in _MODEL_ARGS:
            near = get_close_matches(str(key), _MODEL_ARGS, n=4, cutoff=0.5)
            raise ConfigError(
                f"image tower '{name}': model_args.{one_line(key)} is not among the arguments that a checkpoint may hold; "
                f"nearest: {', '.join(near) or 'none'}"
            )
        values = value if isinstance(value, list | tuple) else [value]
        if len(values) > 64 or any(
            item is not None
            and not isinstance(item, int | float)
            and not (isinstance(item, str) and item.isidentifier())
            for item in values
        ):
            raise ConfigError(
                f"image tower '{name}': model_args.{key} is {shown(value)}; it must be plain: a number, a name, or a short "
                "list of them, for the checkpoint"
            )


def timm_architecture(architecture: str) -> tuple[str, dict[str, Any]]:
    """Name and arguments of the timm model that a checkpoint holds.

    Raises:
        ConfigError: it holds anything else.
    """
    fields = read_json(architecture, "the image tower's stored architecture")
    name, args = fields.get("name"), fields.get("model_args")
    if set(fields) != {"name", "model_args"} or not isinstance(name, str) or not isinstance(args, dict):
        raise ConfigError("the image tower's stored architecture is refused: it must hold a name and model_args alone")
    if not re.fullmatch(r"\w{1,100}(\.\w{1,100})?", name):
        raise ConfigError(f"the image tower's stored architecture is refused: {shown(name)} is no name of a timm model")
    return name, args


_INERT = frozenset({
    "_name_or_path", "architectures", "chunk_size_feed_forward", "directionality", "dtype", "gradient_checkpointing",
    "id2label", "is_encoder_decoder", "label2id", "model_type", "output_attentions", "output_hidden_states",
    "pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers", "pooler_size_per_head", "pooler_type",
    "position_embedding_type", "problem_type", "return_dict", "torch_dtype", "transformers_version",
})  # fmt: skip
"""Keys of configurations that say nothing of an encoder's shape. Older checkpoints hold them. They are ignored."""


def shape_fields(kind: type) -> frozenset[str]:
    """The fields of a transformers configuration that describe the model's shape, and ``model_type``.

    The fields of its base class are left out: they hold addresses, attention implementations and code to be fetched.

    Args:
        kind: the configuration's class.
    """
    own = set(vars(kind).get("__annotations__", {})) | set(inspect.signature(kind).parameters)
    return frozenset(own - set(inspect.signature(PretrainedConfig).parameters) | {"model_type"})


def transformers_architecture(architecture: str, panel: str) -> Any:
    """The transformers configuration that a checkpoint holds.

    Args:
        architecture: JSON.
        panel: ``image`` or ``text``.

    Raises:
        ConfigError: it is of no model that transformers knows, or holds more than its shape.
    """
    where = f"the {panel} tower's stored architecture"
    fields = read_json(architecture, where)
    model_type = fields.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise ConfigError(f"{where} is refused: model_type is {shown(model_type)}, which transformers does not know")
    kind = CONFIG_MAPPING[model_type]
    own = shape_fields(kind)
    if odd := sorted(set(fields) - own - _INERT - set(kind().to_dict())):
        raise ConfigError(f"{where} is refused: '{odd[0]}' is nothing that a {model_type} declares of its shape")
    try:
        return AutoConfig.for_model(model_type, **{k: v for k, v in fields.items() if k in own - {"model_type"}})
    except Exception as error:  # each configuration judges its values in its own way
        raise ConfigError(f"{where} is refused: a {model_type} has no such shape ({shown(str(error))})") from error
