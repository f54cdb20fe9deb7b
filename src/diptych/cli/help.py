"""The help of ``diptych fit``: first diptych's own options, then Lightning's in a sentence each."""

from __future__ import annotations

import re
from argparse import Action
from collections.abc import Sequence
from itertools import pairwise

from jsonargparse import DefaultHelpFormatter

from diptych.errors import ConfigError
from diptych.plugins import DATAMODULES, HEADS, plugins

__all__ = ["GROUPS", "Help", "class_help"]

GROUPS = {
    "model": "model: the towers, the alignment head, evaluators and the optimiser",
    "data": "data: the data set and how it is loaded",
    "figures": "figures: pictures of chosen pairs",
    "checkpoint": "checkpoint: which weights are kept as best.ckpt",
    "early_stopping": "early_stopping: when training stops",
    "recovery": "recovery: how often last.ckpt is saved",
    "divergence": "divergence: what is done when a loss or a gradient is not finite",
    "trainer": "trainer: Lightning's Trainer (lightning.ai/docs/pytorch has a page on it)",
}
"""Titles of groups of options, in the order of the help."""

_OF_CLASS = {"--model.head": HEADS, "--data": DATAMODULES, "--model.image": "", "--model.text": "", "--model": ""}
"""Options that name a class, each with the catalogue of such classes."""

_OF_TORCH = {"model.optimizer", "model.schedule"}
"""Options that name a class of torch. Its own pages list them."""

_WITHOUT_EFFECT = {  # the run's folder and the checkpoint reader are diptych's; the others belong to `predict` or a cloud
    "trainer.default_root_dir",
    "trainer.limit_predict_batches",
    "trainer.model_registry",
    "weights_only",
}


class Help(DefaultHelpFormatter):
    """The help text: one line of usage, the first sentence of Lightning's options, and classes without their modules."""

    def _format_usage(self, usage: str | None, actions: object, groups: object, prefix: str | None) -> str:
        return "usage: diptych fit|validate|test -c RECIPE [-c RECIPE ...] [--OPTION VALUE ...]\n\n"

    def _format_action(self, action: Action) -> str:
        theirs = action.dest.startswith("trainer.") and action.dest.endswith(".help")
        of_torch = action.dest.removesuffix(".help") in _OF_TORCH and action.dest.endswith(".help")
        if theirs or of_torch or action.dest in _WITHOUT_EFFECT or action.help == "Path to a configuration file.":
            return ""
        return super()._format_action(action)

    def _get_help_string(self, action: Action) -> str:
        if re.match(r"(trainer|checkpoint|early_stopping)\.\w+$|ckpt_path$|seed_everything$", action.dest):
            sentence = re.split(r"(?<=[.:])\s", " ".join((action.help or "").split()))[0].rstrip(":")
            return f"{sentence} (default: %(default)s)".replace("``", "")
        text, known, classes = super()._get_help_string(action).partition("known subclasses: ")
        if action.dest in _OF_TORCH:
            return text.rstrip(", ") + ")"
        catalogue = _OF_CLASS.get(f"--{action.dest}")
        names = f" One of {_names(catalogue)}." if catalogue else ""
        return text + known + re.sub(r"(?:\w+\.)+(\w+)", r"\1", classes) + names


def _names(catalogue: str) -> str:
    return ", ".join(plugin.name for plugin in plugins(catalogue))


def class_help(arguments: Sequence[str]) -> list[str]:
    """Turn ``--model.head reclf --help`` into ``--model.head.help reclf``, which jsonargparse understands.

    >>> class_help(["fit", "--model.head", "reclf", "--help"])
    ['fit', '--model.head.help', 'reclf']

    Raises:
        ConfigError: the help of a class is asked for, and no class is named.
    """
    classes = {}
    asked = None
    for word, after in pairwise([*arguments, ""]):
        option, equals, value = word.partition("=")
        value = value if equals else after
        if option in _OF_CLASS and value and not value.startswith("-"):
            classes[option] = value
        elif option in {"-h", "--help"} and classes:
            asked = list(classes)[-1]
        elif option.removesuffix(".help") in _OF_CLASS and option.endswith(".help") and value[:1] in {"", "-"}:
            asked = option.removesuffix(".help")
    if asked is None:
        return list(arguments)
    if asked not in classes:
        names = f", one of {_names(_OF_CLASS[asked])}" if _OF_CLASS[asked] else ""
        raise ConfigError(f"{asked}.help: name the class{names}")
    return [*arguments[:1], f"{asked}.help", classes[asked]]
