"""Results of runs, and which of them may stand in one table: those with equal protocols.

A figure depends on the data, on the split, and on the evaluator's own protocol with its prompts' hash.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diptych.errors import ConfigError, shown
from diptych.files import sha256
from diptych.metrics.bootstrap import Metric
from diptych.results.record import read_results

__all__ = ["ResultsTable", "RunResults", "differences", "read_run", "tables", "without_seed"]

_OUTCOMES = {"thresholds", "seed", "seeds", "skipped", "gap between", "chance"}
"""Facts of a protocol that come out of a run, or belong to its seed. They may differ within a column.

The chance of pointing is one, as regions are measured on each model's own input.
"""
_OUTCOME_ENDINGS = (" of each seed", " of each episode")
"""A fact whose name ends so is an outcome too."""
_SEED = re.compile(r"[/_.-]?seed[_-]?\d+$")
_LONGEST = 60


@dataclass(frozen=True)
class RunResults:
    """The results of one run."""

    label: str
    file: Path
    seed: int | None
    head: str
    metrics: Mapping[str, Metric]
    """By full name, as ``test/zero_shot/auroc/macro``."""
    protocol: Mapping[str, Any]
    split_hash: str | None
    doubt: str | None = None
    """Why the results may not be those of the run's checkpoint."""

    def task(self, name: str) -> dict[str, str]:
        """All that the figures of ``stage/evaluator`` depend on, as text."""
        of_evaluator = self.protocol.get(name.partition("/")[2])
        facts: dict[str, Any] = {"data": self.protocol.get("data"), "split_hash": self.split_hash}
        if isinstance(of_evaluator, Mapping):
            facts |= _without_outcomes(of_evaluator)
        return {key: value if isinstance(value, str) else json.dumps(value) for key, value in facts.items()}


def _without_outcomes(facts: Any) -> Any:
    """The facts of a protocol, at every depth, that were settled before the run."""
    if not isinstance(facts, Mapping):
        return facts
    keys = [key for key in facts if key not in _OUTCOMES and not str(key).endswith(_OUTCOME_ENDINGS)]
    return {key: _without_outcomes(facts[key]) for key in keys}


@dataclass
class ResultsTable:
    """The runs of one evaluator under one protocol."""

    name: str
    """``stage/evaluator``."""
    protocol: dict[str, str]
    runs: list[RunResults] = field(default_factory=list)

    def metrics(self) -> list[str]:
        """Names of all columns, without ``stage/evaluator``."""
        start = f"{self.name}/"
        names = (m.removeprefix(start) for run in self.runs for m in run.metrics if m.startswith(start))
        return list(dict.fromkeys(names))

    def get(self, run: RunResults, column: str) -> Metric | None:
        """The figure of a run in a column, or None."""
        return run.metrics.get(f"{self.name}/{column}")


def without_seed(label: str) -> str:
    """The label of a run without its seed, for the row of all seeds.

    >>> without_seed("global/seed3"), without_seed("global-seed3"), without_seed("seed3")
    ('global', 'global', 'seed3')
    """
    return _SEED.sub("", label) or label


def read_run(argument: str) -> RunResults:
    """Read the results that an argument ``[NAME=]PATH`` stands for.

    The path is a ``results.json``, or the folder of a run that holds one.

    Raises:
        ConfigError: there is no such file, or it holds no results.
    """
    name, _, rest = argument.partition("=")
    named = bool(rest) and not Path(argument).exists()
    path = Path(rest if named else argument)
    file = path / "results.json" if path.is_dir() else path
    results = read_results(file)
    folder = file.parent
    short = f"{folder.parent.name}/{folder.name}" if _SEED.fullmatch(folder.name) else folder.name
    protocol, head = results.get("protocol"), results.get("head")
    if not isinstance(protocol, dict):
        raise ConfigError(f"'{file}' holds no 'protocol'; give a results.json written by 'diptych test'")
    seed = results.get("seed")
    if seed is not None and type(seed) is not int:
        raise ConfigError(f"'{file}': the seed is {shown(seed)}, and must be a whole number; test the run anew")
    if odd := [metric for metric in results["metrics"] if metric.count("/") < 2]:
        raise ConfigError(f"'{file}': the metric '{odd[0]}' is not named stage/evaluator/metric; test the run anew")
    return RunResults(
        name if named else short or str(folder),
        file,
        seed,
        head if isinstance(head, str) else json.dumps(head),
        results["metrics"],
        protocol,
        results.get("split_hash"),
        _doubt(results.get("checkpoint"), folder),
    )


def _doubt(checkpoint: Any, folder: Path) -> str | None:
    """What is wrong with the checkpoint that results name: it is gone, or is another file. None if all is well."""
    if not isinstance(checkpoint, dict) or not isinstance(named := checkpoint.get("path"), str):
        return None  # of weights in memory, as the probes train them
    own = folder / "checkpoints" / Path(named).name  # of a run that was moved
    there = [path for path in dict.fromkeys((Path(named), own)) if path.is_file()]
    if not there:
        return f"the checkpoint that was tested, {named}, is gone"
    if checkpoint.get("sha256") not in [sha256(path) for path in there]:
        return f"the checkpoint {there[0]} is not the one that was tested (another SHA-256); test it again"
    return None


def tables(runs: Sequence[RunResults]) -> list[ResultsTable]:
    """A table for each evaluator and protocol. The tables of one evaluator follow each other."""
    by_evaluator: dict[str, list[ResultsTable]] = {}
    for run in runs:
        for name in dict.fromkeys("/".join(metric.split("/")[:2]) for metric in run.metrics):
            protocol = run.task(name)
            same = by_evaluator.setdefault(name, [])
            if not any(table.protocol == protocol for table in same):
                same.append(ResultsTable(name, protocol))
            next(table for table in same if table.protocol == protocol).runs.append(run)
    return [table for same in by_evaluator.values() for table in same]


def differences(table: ResultsTable, first: ResultsTable) -> str:
    """Where the protocol of a table differs from that of the first, in words."""
    keys = [key for key in {**first.protocol, **table.protocol} if first.protocol.get(key) != table.protocol.get(key)]
    return "; ".join(
        f"{key} {_short(table.protocol.get(key))}, there {_short(first.protocol.get(key))}" for key in keys
    )


def _short(text: str | None) -> str:
    if text is None:
        return "is not said"
    return f"'{text}'" if len(text) <= _LONGEST else f"'{text[: _LONGEST - 3]}...'"
