"""Metrics of the package radeval (EMNLP 2025, 2025.emnlp-demos.40): RadGraph F1, RadCliQ, RaTEScore, BERTScore and GREEN.

They run in a process of their own (``radeval_child.py``). radeval changes warnings and loads models, and none of that stays
here. It is told to stay offline, unless the user lets it fetch its models.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diptych.checks import check_choice

__all__ = ["RADEVAL", "USUAL", "Scored", "check_names", "radeval_scores"]

RADEVAL = {
    "radgraph": "overlap of entities and relations, 0 to 1 (arXiv 2210.12186)",
    "radcliq": "RadCliQ-v1, a distance: lower is better (Patterns 2023)",
    "ratescore": "overlap of entities up to synonyms, 0 to 1 (arXiv 2406.16845)",
    "bertscore": "F1 of distilbert's word vectors, 0 to 1 (arXiv 1904.09675)",
    "green": "share of findings without error by a language model of 7 billion weights, 0 to 1 (arXiv 2405.03595)",
}
"""The metrics that need no key of a company's service, and what they are."""

USUAL = ("radgraph", "radcliq", "ratescore")
"""Those that run on a CPU in minutes."""

_CHILD = Path(__file__).with_name("radeval_child.py")


@dataclass(frozen=True)
class Scored:
    """What radeval computed of ``n`` reports."""

    columns: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    """Values ``[n]`` by radeval's own names, as ``radgraph_partial``."""
    version: str = ""
    """radeval's version. Empty if it is not installed."""
    missing: dict[str, str] = field(default_factory=dict)
    """For each metric that was not computed the reason and the remedy."""

    @property
    def lines(self) -> list[str]:
        """One line for each reason, with the metrics that it keeps from being computed."""
        reasons = dict.fromkeys(self.missing.values())
        return [f"{', '.join(m for m, r in self.missing.items() if r == why)}: not computed, {why}" for why in reasons]


def check_names(what: str, names: Sequence[str]) -> None:
    """Check names of metrics.

    Raises:
        ConfigError: one is not in :data:`RADEVAL`.
    """
    for name in names:
        check_choice(what, name, list(RADEVAL))


def radeval_scores(
    names: Sequence[str], written: Sequence[str], expected: Sequence[str], *, download: bool = False
) -> Scored:
    """Each report's values in metrics of radeval.

    Args:
        names: of :data:`RADEVAL`.
        written: ``n`` reports.
        expected: the reference of each.
        download: whether radeval may fetch models. The reports stay here.
    """
    check_names("radeval", names)
    if not names or not written:
        return Scored()
    try:
        version = metadata.version("radeval")
    except metadata.PackageNotFoundError:
        why = "radeval is not installed: pip install 'diptych[report]'"
        return Scored(missing=dict.fromkeys(names, why))
    environment = {**os.environ, **({} if download else {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"})}
    asked = json.dumps({"metrics": list(names), "hyps": list(written), "refs": list(expected), "download": download})
    with tempfile.TemporaryDirectory() as folder:  # GREEN writes into its working folder
        done = subprocess.run(
            [sys.executable, "-P", str(_CHILD)],
            input=asked,
            capture_output=True,
            text=True,
            cwd=folder,
            env=environment,
        )
    if done.returncode:
        why = f"radeval {version} ended with {done.returncode} ({_last_line(done.stderr)}); install it anew"
        return Scored(version=version, missing=dict.fromkeys(names, why))
    answer: dict[str, Any] = json.loads(done.stdout)
    columns: dict[str, NDArray[np.float64]] = {}
    missing: dict[str, str] = {}
    for name in names:
        values, error = answer[name]["values"], answer[name]["error"]
        arrays = {key: np.array(column, np.float64) for key, column in values.items()}  # None becomes NaN
        if error is None and (odd := [key for key, array in arrays.items() if array.shape != (len(written),)]):
            error = f"{odd[0]} has not one number a report"
        if error is None:
            columns |= arrays
        else:
            missing[name] = f"{error}; {_remedy(error, name)}"
    return Scored(columns, version, missing)


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1][:160]


def _remedy(error: str, name: str) -> str:
    low = error.lower()
    if "no module named" in low:
        return "install that package"
    if any(sign in low for sign in ("offline", "cached files", "local cache", "internet", "connect")):
        return f"its model is not here: run `diptych score FILE --radeval {name} --download` once"
    return "run radeval on the two columns of predictions.csv to see more"
