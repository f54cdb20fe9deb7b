"""Configurations that older releases wrote: what they do not name means what it meant then."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from diptych.model.stored import completed_head

__all__ = ["with_former_arguments"]

_WRITTEN = "# lightning.pytorch=="
"""What a configuration of a run begins with. Such a file names every argument that there was."""


def with_former_arguments(arguments: Sequence[str]) -> list[str]:
    """The words of a command line. After a run's ``config.yaml`` stands its head, with what it lacks."""
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
        head = content["model"]["head"]
    except (OSError, ValueError, yaml.YAMLError, LookupError, TypeError):
        return []  # no run wrote it, or the parser has a better message
    whole = completed_head(head)
    return [] if whole == head else ["--model.head", json.dumps(whole)]
