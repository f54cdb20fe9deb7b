"""Configurations that older releases wrote: what they do not name means what it meant then."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from diptych.errors import ConfigError
from diptych.head import AlignmentHead
from diptych.model.arguments import known_class

__all__ = ["with_former_arguments"]

_WRITTEN = "# lightning.pytorch=="
"""What a configuration of a run begins with. Such a file names every argument that there was."""


def with_former_arguments(arguments: Sequence[str]) -> list[str]:
    """The words of a command line. After a run's ``config.yaml`` stand the arguments of its head that are younger than it."""
    words: list[str] = []
    for word, after in pairwise(["", *arguments]):
        option, equals, value = after.partition("=")
        words.append(after)
        if option in {"-c", "--config"} and equals:
            words += _former(value)
        elif word in {"-c", "--config"}:
            words += _former(after)
    return words


def _former(file: str) -> list[str]:
    try:
        text = Path(file).read_text(encoding="utf-8")
        content: Any = yaml.safe_load(text) if text.startswith(_WRITTEN) else None
        head: Any = content["model"]["head"]
        given = head["init_args"]
        kind: Any = known_class(head["class_path"], AlignmentHead, "model.head.class_path")
    except (OSError, ValueError, yaml.YAMLError, LookupError, TypeError, ConfigError):
        return []  # no run wrote it, or the parser has a better message
    former = {name: value for name, value in kind.former_arguments(()).items() if name not in given}
    return [word for name, value in former.items() for word in (f"--model.head.init_args.{name}", str(value))]
