"""The variants of a comparison: what each replaces in the recipe, read from YAML and checked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from diptych.errors import ConfigError

__all__ = ["Variant", "read_mapping", "read_variants"]


@dataclass(frozen=True)
class Variant:
    """One row of the comparison: a name, and what differs from the recipe."""

    name: str
    model: dict[str, Any]
    """The parts of the recipe's ``model`` that it replaces."""
    note: str = ""


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping with distinct keys."""
    try:
        text = path.read_text(encoding="utf-8")
        content, node = yaml.safe_load(text), yaml.compose(text)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; name a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or not content:
        raise ConfigError(f"{path} holds no mapping of names; see experiments/compare for one of each kind")
    keys = [str(key.value) for key, _ in node.value] if node is not None else []
    if twice := sorted({key for key in keys if keys.count(key) > 1}):
        raise ConfigError(f"{path}: {twice[0]} is there twice; the first would be lost, so rename one")
    return {str(key): value for key, value in content.items()}


def read_variants(path: Path, recipe: Path) -> list[Variant]:
    """Read the variants of a file, in its order. Each is checked against the constructors that it configures.

    Args:
        path: a YAML file of ``name: {head: NAME, ARGUMENT: VALUE, ...}`` or ``name: {model: {...}}``. Each may have a ``note``.
        recipe: the recipe that they vary.

    Raises:
        ConfigError: a variant is wrong. The message names the file, the variant, the key and the remedy.
    """
    base = read_mapping(recipe).get("model")
    if not isinstance(base, dict):
        raise ConfigError(f"{recipe} has no model; give a recipe of `diptych fit`, as experiments/compare/phantom.yaml")
    if isinstance(base.get("head"), dict) and base["head"].get("init_args"):
        raise ConfigError(
            f"{recipe}: model.head has init_args, which variants of the same head would inherit; give them in {path}"
        )
    variants = []
    for name, entry in read_mapping(path).items():
        if not re.fullmatch(r"[A-Za-z0-9][\w.+-]*", name):
            raise ConfigError(f"{path}: '{name}' cannot name a folder; use letters, digits, and _ . + -")
        rest = dict(entry) if isinstance(entry, dict) else {}
        note = str(rest.pop("note", "") or "")
        if isinstance(rest.get("model"), dict) and len(rest) == 1:
            model = dict(rest["model"])
        elif isinstance(rest.get("head"), str) and "model" not in rest:
            model = {"head": {"class_path": rest.pop("head"), "init_args": rest}}
        else:
            raise ConfigError(
                f"{path}: {name} is {str(entry)[:80]}; write {{head: NAME, ARGUMENT: VALUE}} or {{model: {{KEY: VALUE}}}}"
            )
        variants.append(Variant(name, model, note))
    _check(variants, base, path, recipe)
    return variants


def _check(variants: Sequence[Variant], base: dict[str, Any], path: Path, recipe: Path) -> None:
    """Parse all variants now. Otherwise a wrong last one would be found after hours."""
    import jsonargparse

    from diptych.model.building import register_names
    from diptych.model.module import AlignmentModule

    register_names()
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(AlignmentModule, "model")

    def parse(model: dict[str, Any], where: str, over: Any = None) -> Any:
        try:
            return parser.parse_object({"model": model}, cfg_base=over)
        except (jsonargparse.ArgumentError, ConfigError, TypeError, ValueError) as error:
            message = re.sub(r"Type \S*Callable\[.*?\] expects .*?: (?=\w)|\. Got value: Namespace.*", "", str(error))
            raise ConfigError(f"{where}: {' '.join(message.split())}") from None

    recipe_model = parse(base, str(recipe))
    for variant in variants:
        parse(variant.model, f"{path}: {variant.name}", recipe_model)
