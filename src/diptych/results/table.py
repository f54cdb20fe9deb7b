"""``diptych table``: results of many runs side by side, never two protocols in one column.

Every evaluator has tables of its own, rows are runs and columns are metrics. Runs stand in one table if all that their
figures depend on is equal: data, split hash, and the evaluator's own protocol with its prompts' hash. Others get a table of
their own, headed by what is different.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from diptych.errors import ConfigError, DataError, shown
from diptych.escaping import csv_rows, for_latex, for_markdown
from diptych.files import replace_text, sha256
from diptych.metrics.bootstrap import Metric
from diptych.results.record import read_results
from diptych.results.seeds import Summary, markdown, show, summarise

__all__ = ["Run", "Table", "latex", "main", "page", "read_run", "tables"]

_OUTCOMES = {"thresholds", "seed", "seeds", "skipped"}
"""Facts of a protocol that come out of a run, or belong to its seed, and so may differ within a column."""
_OF_RUNS = (" of each seed", " of each episode")
"""Names of facts that end so are outcomes too, however deep they stand."""
_SEED = re.compile(r"[/_.-]?seed[_-]?\d+$")
_LONGEST = 60


@dataclass(frozen=True)
class Run:
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
            facts |= _given(of_evaluator)
        return {key: value if isinstance(value, str) else json.dumps(value) for key, value in facts.items()}


def _given(facts: Any) -> Any:
    """What of a protocol was settled before the run."""
    if not isinstance(facts, Mapping):
        return facts
    keys = [key for key in facts if key not in _OUTCOMES and not str(key).endswith(_OF_RUNS)]
    return {key: _given(facts[key]) for key in keys}


@dataclass
class Table:
    """The runs of one evaluator under one protocol."""

    name: str
    """``stage/evaluator``."""
    protocol: dict[str, str]
    runs: list[Run] = field(default_factory=list)

    def metrics(self) -> list[str]:
        """Names of all columns, without ``stage/evaluator``."""
        start = f"{self.name}/"
        return list(
            dict.fromkeys(m.removeprefix(start) for run in self.runs for m in run.metrics if m.startswith(start))
        )

    def get(self, run: Run, column: str) -> Metric | None:
        """A figure, where the run has it."""
        return run.metrics.get(f"{self.name}/{column}")


def read_run(given: str) -> Run:
    """The results that ``[NAME=]PATH`` stands for: a ``results.json``, or the folder of a run that holds one.

    Raises:
        ConfigError: there is none, or it is another file; the message names it.
    """
    name, _, rest = given.partition("=")
    named = bool(rest) and not Path(given).exists()
    path = Path(rest if named else given)
    file = path / "results.json" if path.is_dir() else path
    found = read_results(file)
    folder = file.parent
    short = f"{folder.parent.name}/{folder.name}" if _SEED.fullmatch(folder.name) else folder.name
    protocol, head = found.get("protocol"), found.get("head")
    if not isinstance(protocol, dict):
        raise ConfigError(f"'{file}' holds no 'protocol'; give a results.json written by 'diptych test'")
    seed = found.get("seed")
    if seed is not None and type(seed) is not int:
        raise ConfigError(f"'{file}': the seed is {shown(seed)}, and must be a whole number; test the run anew")
    if odd := [metric for metric in found["metrics"] if metric.count("/") < 2]:
        raise ConfigError(f"'{file}': the metric '{odd[0]}' is not named stage/evaluator/metric; test the run anew")
    return Run(
        name if named else short or str(folder),
        file,
        seed,
        head if isinstance(head, str) else json.dumps(head),
        found["metrics"],
        protocol,
        found.get("split_hash"),
        _doubt(found.get("checkpoint"), folder),
    )


def _doubt(checkpoint: Any, folder: Path) -> str | None:
    """What is wrong with the checkpoint that results name: gone, or not the file that was tested. None if all is well."""
    if not isinstance(checkpoint, dict) or not isinstance(named := checkpoint.get("path"), str):
        return None  # of weights in memory, as the probes train them
    own = folder / "checkpoints" / Path(named).name  # of a run that was moved
    there = [path for path in dict.fromkeys((Path(named), own)) if path.is_file()]
    if not there:
        return f"the checkpoint that was tested, {named}, is gone"
    if checkpoint.get("sha256") not in [sha256(path) for path in there]:
        return f"the checkpoint {there[0]} is not the one that was tested (another SHA-256); test it again"
    return None


def tables(runs: Sequence[Run]) -> list[Table]:
    """One for each evaluator and protocol; those of an evaluator stand together."""
    found: dict[str, list[Table]] = {}
    for run in runs:
        for name in dict.fromkeys("/".join(metric.split("/")[:2]) for metric in run.metrics):
            protocol = run.task(name)
            same = found.setdefault(name, [])
            if not any(table.protocol == protocol for table in same):
                same.append(Table(name, protocol))
            next(table for table in same if table.protocol == protocol).runs.append(run)
    return [table for same in found.values() for table in same]


def differences(table: Table, first: Table) -> str:
    """What sets the protocol of a table apart from that of another."""
    keys = [key for key in {**first.protocol, **table.protocol} if first.protocol.get(key) != table.protocol.get(key)]
    return "; ".join(
        f"{key} {_short(table.protocol.get(key))}, there {_short(first.protocol.get(key))}" for key in keys
    )


def _short(text: str | None) -> str:
    if text is None:
        return "is not said"
    return f"'{text}'" if len(text) <= _LONGEST else f"'{text[: _LONGEST - 3]}...'"


@dataclass(frozen=True)
class View:
    """Which columns are shown, and what a row is.

    Args:
        patterns: columns whose name fits one of these (``auroc/*``); if there are none, all but the parts of a ``macro`` (a
            ``micro`` is none).
        over_seeds: a row is the seeds of one model.
    """

    patterns: Sequence[str] = ()
    over_seeds: bool = False

    def columns(self, table: Table) -> list[str]:
        """Names of the metrics shown."""
        names = table.metrics()
        if self.patterns:
            return [name for name in names if any(fnmatchcase(name, pattern) for pattern in self.patterns)]
        return [n for n in names if n.endswith(("/macro", "/micro")) or f"{n.rpartition('/')[0]}/macro" not in names]

    def rows(self, table: Table) -> dict[str, list[Run]]:
        """The runs of each row.

        Raises:
            ConfigError: a row would hold two runs that are no seeds of one model.
        """
        found: dict[str, list[Run]] = {}
        for run in table.runs:
            label = (_SEED.sub("", run.label) or run.label) if self.over_seeds else run.label
            found.setdefault(label, []).append(run)
        for label, runs in found.items():
            for run in runs[1:]:
                if not self.over_seeds:
                    raise ConfigError(f"'{runs[0].file}' and '{run.file}' are both called '{label}'; write NAME=PATH")
                if run.head != runs[0].head:
                    raise ConfigError(
                        f"'{runs[0].file}' ({runs[0].head}) and '{run.file}' ({run.head}) would be seeds of one row "
                        f"'{label}'; write NAME=PATH"
                    )
            seeds = [run.seed for run in runs]
            if twice := [run for run in runs if seeds.count(run.seed) > 1]:
                raise ConfigError(
                    f"'{twice[0].file}' and '{twice[1].file}' have the seed {twice[0].seed} and would be one row "
                    f"'{label}'; write NAME=PATH"
                )
        return found

    def summary(self, table: Table, runs: Sequence[Run], column: str) -> Summary | None:
        """The figure of a row with its interval: over seeds, or the run's own."""
        values = [table.get(run, column) for run in runs]
        given = [value for value in values if value is not None]
        if not given:
            return None
        if self.over_seeds:
            return summarise([math.nan if value is None else value.value for value in values])
        return Summary(given[0].value, given[0].low, given[0].high, 1, int(math.isnan(given[0].value)))

    def cell(self, table: Table, runs: Sequence[Run], column: str) -> str:
        """The same as text."""
        found = self.summary(table, runs, column)
        if found is None:
            return "-"
        if found.undefined:
            return "undefined" if found.n == 1 else f"undefined in {found.undefined} of {found.n}"
        if math.isnan(found.low):
            return show(found.mean)
        if self.over_seeds:
            return f"{show(found.mean)} ± {show(found.high - found.mean)}"
        return f"{show(found.mean)} ({show(found.low)} to {show(found.high)})"

    def cells(self, table: Table) -> Iterator[list[str]]:
        """Header, then rows."""
        columns = self.columns(table)
        yield ["run", *columns, *(["seeds"] if self.over_seeds else [])]
        for label, runs in self.rows(table).items():
            end = [str(len(runs))] if self.over_seeds else []
            yield [label, *(self.cell(table, runs, column) for column in columns), *end]

    def note(self, table: Table) -> str:
        """What the intervals are."""
        if self.over_seeds:
            return "Mean over seeds ± half of the 95 % interval (Student's t over seeds)."
        interval = table.protocol.get("interval")
        return "Without intervals." if interval is None else f"In brackets: {interval}."


def _heads(found: Sequence[Table]) -> Iterator[tuple[Table, str, str]]:
    """Each table with its title, and what is different from the first of the same evaluator."""
    for table in found:
        same = [other for other in found if other.name == table.name]
        number = f" ({same.index(table) + 1} of {len(same)})" if len(same) > 1 else ""
        yield table, f"{table.name}{number}", "" if table is same[0] else differences(table, same[0])


def page(found: Sequence[Table], view: View) -> str:
    """All tables as Markdown."""
    parts = []
    for table, title, different in _heads(found):
        header, *rows = view.cells(table)
        parts.append(f"## {for_markdown(title)}")
        said = f"{table.protocol['data']}; split {table.protocol['split_hash']}. {view.note(table)}"
        parts.append(for_markdown(said))
        if different:
            parts.append(
                f"**Not to be compared with the first table of {for_markdown(table.name)}:** {for_markdown(different)}."
            )
        parts.append(markdown(header, rows))
        parts += [f"**{for_markdown(run.label)}:** {for_markdown(run.doubt)}." for run in table.runs if run.doubt]
    return "\n\n".join(parts) + "\n"


def latex(found: Sequence[Table], view: View) -> str:
    """All tables as LaTeX, for the packages booktabs and nothing else."""
    parts = []
    for table, title, different in _heads(found):
        header, *rows = ([for_latex(cell) for cell in row] for row in view.cells(table))
        said = f"{title}. {table.protocol['data']}; split {table.protocol['split_hash']}. {view.note(table)}"
        caption = said + (f" Not to be compared with the first table: {different}." if different else "")
        body = "\n".join(" & ".join(row) + r" \\" for row in rows)
        parts.append(
            f"\\begin{{table}}\n\\caption{{{for_latex(caption)}}}\n"
            f"\\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}\n\\toprule\n"
            f"{' & '.join(header)} \\\\\n\\midrule\n{body}\n\\bottomrule\n\\end{{tabular}}\n\\end{{table}}\n"
        )
    return "\n".join(parts)


def _csv(found: Sequence[Table]) -> str:
    """Every figure of every run, one a row, with all that tells protocols apart."""
    rows: list[list[object]] = [
        ["table", "run", "seed", "head", "metric", "value", "low", "high", "n", "protocol", "file"]
    ]
    for table, title, _ in _heads(found):
        protocol = json.dumps(table.protocol)
        for run in table.runs:
            for column in table.metrics():
                if (m := table.get(run, column)) is not None:
                    figures = [m.value, m.low, m.high, m.n]
                    rows.append([title, run.label, run.seed, run.head, column, *figures, protocol, run.file])
    return csv_rows(rows)


def _draw(found: Sequence[Table], view: View, path: Path) -> None:
    from diptych.results.dotplot import SEEDS, Panel, draw

    panels, names = [], []
    for table, title, _ in _heads(found):
        rows = view.rows(table)
        names += [label for label in rows if label not in names]
        for column in view.columns(table):
            summaries = {label: view.summary(table, runs, column) for label, runs in rows.items()}
            values = {label: [table.get(run, column) for run in runs] for label, runs in rows.items()}
            dots = {label: [v.value for v in row if v is not None] for label, row in values.items()}
            given = {label: summary for label, summary in summaries.items() if summary is not None}
            panels.append(Panel(f"{title} {column}", given, dots if view.over_seeds else {}, whole=not view.over_seeds))
    seeds = {mark: said for mark, said in SEEDS.items() if mark != "chance"}
    draw(panels, names, path, seeds if view.over_seeds else {"mean": "value", "bar": "95 % interval over patients"})


_SHARE = re.compile(r"(\d+(?:\.\d+)?)%/(.+)")


def _draw_shares(found: Sequence[Table], view: View, path: Path) -> None:
    """Metrics named ``<percent>%/metric`` over the percent.

    Raises:
        ConfigError: there are none.
    """
    from diptych.results.curves import Curves, draw_curves

    panels, names = [], []
    for table, title, _ in _heads(found):
        rows = view.rows(table)
        lines: dict[str, dict[str, dict[float, Summary]]] = {}
        for column in view.columns(table):
            if (parts := _SHARE.fullmatch(column)) is not None:
                for label, runs in rows.items():
                    if (summary := view.summary(table, runs, column)) is not None:
                        lines.setdefault(parts[2], {}).setdefault(label, {})[float(parts[1])] = summary
        panels += [Curves(f"{title} {metric}", of) for metric, of in lines.items()]
        names += [label for label in rows if label not in names and any(label in of for of in lines.values())]
    if not panels:
        raise ConfigError("--shares draws metrics over the share of the labels, as those of Probe; no run has any")
    draw_curves(panels, names, path, "95 % interval over " + ("seeds" if view.over_seeds else "patients"))


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``diptych table``; ``argv`` is what follows that word on the command line.

    Raises:
        ConfigError: a file holds no results, or two runs cannot be told apart.
        DataError: a file cannot be written.
    """
    parser = argparse.ArgumentParser(
        prog="diptych table",
        description="Results of runs side by side: a table for each evaluator and protocol, with intervals.",
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", metavar="[NAME=]RUN", help="a results.json, or the folder of a run")
    parser.add_argument("--metrics", nargs="+", default=[], metavar="GLOB", help="columns, as 'auroc/*'; '*' for all")
    parser.add_argument("--over-seeds", action="store_true", help="mean and Student interval over the seeds of a model")
    for form, about in (("markdown", "the printed page"), ("latex", "the same as LaTeX"), ("plot", "the same as PNG")):
        parser.add_argument(f"--{form}", type=Path, metavar="FILE", help=f"write {about}")
    parser.add_argument("--shares", type=Path, metavar="FILE", help="draw metrics over the share of the labels, as PNG")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write every figure of every run")
    args = parser.parse_args(list(sys.argv[2:] if argv is None else argv))
    runs = [read_run(given) for given in args.runs]
    files = [run.file.resolve() for run in runs]
    if twice := [run.file for run in runs if files.count(run.file.resolve()) > 1]:
        raise ConfigError(f"'{twice[0]}' is given twice; give it once")
    view, found = View(args.metrics, args.over_seeds), tables(runs)
    found = [table for table in found if view.columns(table)]
    if not found:
        raise ConfigError(f"no metric fits --metrics {' '.join(args.metrics)}; write '*' to see them all")
    text = page(found, view)
    writers: dict[str, Callable[[Path], object]] = {
        "markdown": lambda path: replace_text(path, text),
        "latex": lambda path: replace_text(path, latex(found, view)),
        "csv": lambda path: replace_text(path, _csv(found)),
        "plot": lambda path: _draw(found, view, path),
        "shares": lambda path: _draw_shares(found, view, path),
    }
    print(text, end="", flush=True)
    failed: list[str] = []
    for form, write in writers.items():
        if (path := getattr(args, form)) is not None:
            try:
                write(path)
            except DataError as error:  # the others are written all the same
                failed.append(f"--{form} {error}")
    if failed:
        raise DataError("; ".join(failed))
