"""The predictions of a run, found by its ``results.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diptych.errors import ConfigError
from diptych.predictions.reading import Tested, read_predictions
from diptych.results.record import read_results

__all__ = ["read_tested", "settings_of"]


def settings_of(results: Path) -> tuple[str | None, dict[str, dict[str, Any]]]:
    """What a ``results.json`` says of its predictions: their file, seen from its folder, and how figures follow from each part.

    The file is None if the test wrote no predictions.

    Raises:
        ConfigError: the file cannot be read, or what it says of predictions is not what a test writes.
    """
    content = read_results(results).get("predictions")
    if content is None:
        return None, {}
    of = content.get("of") if isinstance(content, dict) else None
    file = content.get("file") if isinstance(content, dict) else None
    plain = isinstance(of, dict) and all(isinstance(one, dict) for one in of.values())
    if not isinstance(of, dict) or not plain or not isinstance(file, str):
        raise ConfigError(f"'{results}': 'predictions' is not what 'diptych test' writes; test the run anew")
    return file, of


def read_tested(results: Path) -> Tested | None:
    """The predictions of a run. None if its test wrote none.

    Raises:
        ConfigError: the results cannot be read.
        DataError: the predictions cannot be read.
    """
    file, of = settings_of(results)
    return None if file is None else read_predictions(results.parent / file, of)
