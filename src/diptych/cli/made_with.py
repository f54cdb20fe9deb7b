"""What a folder was made with, so that a command makes anew only what has changed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diptych.errors import ConfigError

__all__ = ["changed_parts"]


def changed_parts(folder: Path, file: str, description: Mapping[str, Any]) -> list[str] | None:
    """The parts of a description that have changed since a folder was made, or None if there is no folder.

    Args:
        folder: what was made.
        file: name of the JSON in it that holds the description of then.
        description: that of now, in the types of JSON.

    Raises:
        ConfigError: the folder was made by something else.
    """
    if not folder.is_dir() or not any(folder.iterdir()):
        return None
    try:
        before = json.loads((folder / file).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ConfigError(
            f"{folder} was not made by this command (no readable {file}); give another --run, or remove it"
        ) from None
    return [key for key, value in description.items() if before.get(key) != value]
