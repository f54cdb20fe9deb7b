"""``diptych table``: results of many runs side by side, never two protocols in one column.

Every evaluator has its own tables. Rows are runs, and columns are metrics. Runs share a table if all that their figures depend
on is equal (:mod:`diptych.results.runs`). Others get a table of their own, headed by what is different.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

from diptych.errors import ConfigError, DataError
from diptych.escaping import csv_rows, for_markdown
from diptych.files import replace_text
from diptych.metrics.bootstrap import Metric, as_metrics
from diptych.metrics.few import explained
from diptych.predictions.kinds import RESAMPLES
from diptych.results.against import Against
from diptych.results.latex import readable, tabular
from diptych.results.paired import mean_draws
from diptych.results.runs import ResultsTable, RunResults, differences, read_run, tables, without_seed
from diptych.results.seeds import Summary, cell, markdown, show, summarise
from diptych.results.sheet import kind_of
from diptych.results.tested import read_tested

__all__ = ["View", "basis", "draw_shares", "latex", "main", "page", "read_run", "tables", "titles"]


FURTHER = (
    "sensitivity*", "specificity*", "balanced_accuracy", "mcc", "brier", "ece", "precision_*", "recall_*",
)  # fmt: skip
"""Measures that a table shows only if asked. It would be too wide."""
_LOWER_IS_BETTER = ("*_rank", "brier", "ece", "entropy", "radcliq*", "*error*", "*loss*", "*distance*")
"""Patterns of parts of names."""


def _is_further(name: str) -> bool:
    """Whether a metric is of a subgroup, or its measure is one of :data:`FURTHER`."""
    *_, measure, last = ("", *name.split("/"))
    return "by" in name.split("/") or any(fnmatchcase(measure or last, pattern) for pattern in FURTHER)


@dataclass(frozen=True)
class View:
    """Which columns are shown, and what a row is.

    Args:
        patterns: a column is shown if its name fits one of them, as ``auroc/*``. Without patterns all are shown but the parts
            of a ``macro``, figures of subgroups, and :data:`FURTHER`. A ``micro`` is no part.
        over_seeds: a row is all seeds of a model, rather than one run.
    """

    patterns: Sequence[str] = ()
    over_seeds: bool = False

    def columns(self, table: ResultsTable) -> list[str]:
        """Names of the metrics shown."""
        names = table.metrics()
        if self.patterns:
            return [name for name in names if any(fnmatchcase(name, pattern) for pattern in self.patterns)]
        own = [name for name in names if not _is_further(name)]
        return [n for n in own if n.endswith(("/macro", "/micro")) or f"{n.rpartition('/')[0]}/macro" not in names]

    def rows(self, table: ResultsTable) -> dict[str, list[RunResults]]:
        """The runs of each row.

        Raises:
            ConfigError: a row would hold two runs that are not two seeds of one model.
        """
        rows: dict[str, list[RunResults]] = {}
        for run in table.runs:
            rows.setdefault(without_seed(run.label) if self.over_seeds else run.label, []).append(run)
        for label, runs in rows.items():
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
        return rows

    def summary(self, table: ResultsTable, runs: Sequence[RunResults], column: str) -> Summary | None:
        """The figure of a row with its interval: over seeds, or the run's own. None if no run has it."""
        values = [table.get(run, column) for run in runs]
        if not (metrics := [value for value in values if value is not None]):
            return None
        if self.over_seeds:
            return summarise([math.nan if value is None else value.value for value in values])
        return Summary(metrics[0].value, metrics[0].low, metrics[0].high, 1, int(math.isnan(metrics[0].value)))

    def cell(self, table: ResultsTable, runs: Sequence[RunResults], column: str) -> str:
        """The same as text."""
        summary = self.summary(table, runs, column)
        if summary is not None and summary.undefined and summary.n == 1:
            return "undefined"
        if summary is None:
            return cell(summary)
        if self.over_seeds:
            of_mean = over_patients(tuple(run.file for run in runs))[0].get(f"{table.name}/{column}")
            return f"{cell(summary)}{_patients(of_mean)}"
        name = next(m.interval for run in runs if (m := table.get(run, column)) is not None)
        if math.isnan(summary.low):
            return f"{cell(summary)} ({name})" if name else cell(summary)
        return f"{show(summary.mean)} ({show(summary.low)} to {show(summary.high)}{', ' if name else ''}{name})"

    def best(self, table: ResultsTable) -> list[tuple[int, int]]:
        """Row and column of the cells with a column's best figure. None where there is one row, or all are alike."""
        found = []
        for j, column in enumerate(self.columns(table), start=1):
            sign = -1 if any(fnmatchcase(part, one) for part in column.split("/") for one in _LOWER_IS_BETTER) else 1
            summaries = [self.summary(table, runs, column) for runs in self.rows(table).values()]
            values = [-math.inf if one is None or math.isnan(one.mean) else sign * one.mean for one in summaries]
            if len(set(values)) > 1:
                found += [(i, j) for i, value in enumerate(values) if value == max(values)]
        return found

    def cells(self, table: ResultsTable) -> Iterator[list[str]]:
        """The header, then the rows, as text."""
        columns = self.columns(table)
        yield ["run", *columns, *(["seeds"] if self.over_seeds else [])]
        for label, runs in self.rows(table).items():
            end = [str(len(runs))] if self.over_seeds else []
            yield [label, *(self.cell(table, runs, column) for column in columns), *end]

    def note(self, table: ResultsTable) -> str:
        """What the intervals are, in a sentence."""
        if self.over_seeds:
            lacking = [
                f"{label} has none: {why}"
                for label, runs in self.rows(table).items()
                if (why := over_patients(tuple(run.file for run in runs))[1])
            ]
            return (
                "Mean over seeds ± half of the 95 % interval (Student's t over seeds). In brackets: the mean's 95 % percentile "
                f"bootstrap over patients, {RESAMPLES} resamples, the same for all seeds.{' '.join(['', *lacking])}"
            )
        interval = table.protocol.get("interval")
        if interval is None:
            return "Without intervals."
        named = {m.interval for run in table.runs for name in self.columns(table) if (m := table.get(run, name))} - {""}
        return f"In brackets: {interval}{', where no other is named' if named else ''}. {explained(named)}".strip()


@cache
def over_patients(files: tuple[Path, ...]) -> tuple[dict[str, Metric], str]:
    """The mean over runs of each figure, with its interval over patients, by its name without the stage.

    Args:
        files: ``results.json`` of each seed.

    Returns:
        The figures, and why there are none. The reason is empty if there are some.
    """
    try:
        tests = [read_tested(file) for file in files]
        if any(test is None for test in tests):
            return {}, "a run without predictions."
        return as_metrics(mean_draws([test for test in tests if test is not None], RESAMPLES), "test/"), ""
    except (ConfigError, DataError) as error:
        return {}, f"{error}."


def _patients(metric: Metric | None) -> str:
    if metric is None or math.isnan(metric.low):
        return f" ({metric.interval})" if metric is not None and metric.interval else ""
    return f" ({show(metric.low)} to {show(metric.high)})"


def titles(shown: Sequence[ResultsTable]) -> Iterator[tuple[ResultsTable, str, str]]:
    """Each table with its title, and how it differs from the first of the same evaluator."""
    for table in shown:
        same = [other for other in shown if other.name == table.name]
        number = f" ({same.index(table) + 1} of {len(same)})" if len(same) > 1 else ""
        yield table, f"{table.name}{number}", "" if table is same[0] else differences(table, same[0])


def basis(table: ResultsTable, view: View) -> str:
    """The data of a table, and what its intervals are."""
    return f"{table.protocol['data']}; split {table.protocol['split_hash']}. {view.note(table)}"


def page(shown: Sequence[ResultsTable], view: View, against: Against | None = None) -> str:
    """All tables as Markdown, each with the differences from one run if asked."""
    parts = []
    for table, title, different in titles(shown):
        header, *rows = view.cells(table)
        parts.append(f"## {for_markdown(title)}")
        parts.append(for_markdown(basis(table, view)))
        if different:
            parts.append(
                f"**Not to be compared with the first table of {for_markdown(table.name)}:** {for_markdown(different)}."
            )
        parts.append(markdown(header, rows))
        parts += [f"**{for_markdown(run.label)}:** {for_markdown(run.doubt)}." for run in table.runs if run.doubt]
        if against is not None and (differences_ := against.cells(table, view.columns(table))):
            parts += [for_markdown(against.note()), markdown(differences_[0], differences_[1:])]
    return "\n\n".join(parts) + "\n"


def latex(shown: Sequence[ResultsTable], view: View, against: Against | None = None) -> str:
    """All tables as LaTeX, which needs the package booktabs, each with the differences from one run if asked."""
    parts = []
    for table, title, different in titles(shown):
        header, *rows = view.cells(table)
        best = view.best(table)
        caption = f"{title}. {basis(table, view)}{' Bold: the best figure of a column.' if best else ''}"
        caption += f" Not to be compared with the first table: {different}." if different else ""
        parts.append(tabular(caption, [header[0], *map(readable, header[1:])], rows, bold=best))
        if against is not None and (different_rows := against.cells(table, view.columns(table))):
            parts.append(tabular(f"{title}. {against.note()}", different_rows[0], different_rows[1:], left=2))
    return "\n".join(parts)


def _csv(shown: Sequence[ResultsTable], against: Against | None) -> str:
    """Every figure of every run, one a row, with its protocol, and its difference from one run if asked."""
    rows: list[list[object]] = [
        ["table", "run", "seed", "head", "metric", "value", "low", "high", "n", "interval", "protocol", "file"]
    ]
    if against is not None:
        rows[0] += [
            f"difference from {against.base.label}",
            "difference low",
            "difference high",
            "p",
            "test",
            "p (Holm)",
            "difference interval",
        ]
    for table, title, _ in titles(shown):
        protocol = json.dumps(table.protocol)
        found = {} if against is None else against.of(table, table.metrics())
        for run in table.runs:
            for column in table.metrics():
                if (m := table.get(run, column)) is not None:
                    figures = [m.value, m.low, m.high, m.n, m.interval]
                    rows.append([title, run.label, run.seed, run.head, column, *figures, protocol, run.file])
                    if against is not None:
                        one = found.get(column, {}).get(run.label)
                        rows[-1] += [None] * 7 if one is None else astuple(one)
    return csv_rows(rows)


def _draw(shown: Sequence[ResultsTable], view: View, path: Path) -> None:
    from diptych.results.dotplot import SEEDS, Panel, draw

    panels, names = [], []
    for table, title, _ in titles(shown):
        rows = view.rows(table)
        names += [label for label in rows if label not in names]
        for column in view.columns(table):
            summaries = {label: view.summary(table, runs, column) for label, runs in rows.items()}
            values = {label: [table.get(run, column) for run in runs] for label, runs in rows.items()}
            dots = {label: [v.value for v in row if v is not None] for label, row in values.items()}
            means = {label: summary for label, summary in summaries.items() if summary is not None}
            panels.append(Panel(f"{title} {column}", means, dots if view.over_seeds else {}, whole=not view.over_seeds))
    seeds = {mark: meaning for mark, meaning in SEEDS.items() if mark != "chance"}
    draw(panels, names, path, seeds if view.over_seeds else {"mean": "value", "bar": "95 % interval over patients"})


_SHARE = re.compile(r"(\d+(?:\.\d+)?)%/(.+)")


def draw_shares(shown: Sequence[ResultsTable], view: View, path: Path) -> None:
    """Draw metrics named ``<percent>%/metric`` over the percent.

    Raises:
        ConfigError: there is no such metric.
    """
    from diptych.results.curves import Curves, draw_curves

    panels, names = [], []
    for table, title, _ in titles(shown):
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


def _against(argument: str, runs: list[RunResults], over_seeds: bool) -> Against:
    """The differences from a run, which is one of ``runs`` by its name or path, or is added to them.

    Raises:
        ConfigError: a row is several seeds, or a run has no predictions.
    """
    if over_seeds:
        raise ConfigError("--against compares single runs; leave out --over-seeds, or use diptych compare")
    named = [run for run in runs if run.label == argument]
    if not named:
        other = read_run(argument)
        named = [run for run in runs if run.file.resolve() == other.file.resolve()] or [other]
    if named[0] not in runs:
        runs.append(named[0])
    return Against(named[0], runs)


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``diptych table``. ``argv`` holds the words after it on the command line.

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
    parser.add_argument(
        "--against",
        metavar="[NAME=]RUN",
        help="add each run's difference from this one, paired by image, with p-values",
    )
    parser.add_argument("--over-seeds", action="store_true", help="mean and Student interval over the seeds of a model")
    for form, about in (
        ("markdown", "the printed page"),
        ("latex", "the same as LaTeX"),
        ("plot", "the same as PNG, SVG, PDF"),
    ):
        parser.add_argument(f"--{form}", type=Path, metavar="FILE", help=f"write {about}")
    parser.add_argument(
        "--shares", type=Path, metavar="FILE", help="draw metrics over the share of the labels, likewise"
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write every figure of every run")
    args = parser.parse_args(list(sys.argv[2:] if argv is None else argv))
    for option, path in (("--plot", args.plot), ("--shares", args.shares)):
        if path is not None:
            kind_of(path, option)
    runs = [read_run(argument) for argument in args.runs]
    files = [run.file.resolve() for run in runs]
    if twice := [run.file for run in runs if files.count(run.file.resolve()) > 1]:
        raise ConfigError(f"'{twice[0]}' is given twice; give it once")
    view = View(args.metrics, args.over_seeds)
    against = None if args.against is None else _against(args.against, runs, args.over_seeds)
    shown = [table for table in tables(runs) if view.columns(table)]
    if not shown:
        raise ConfigError(f"no metric fits --metrics {' '.join(args.metrics)}; write '*' to see them all")
    text = page(shown, view, against)
    writers: dict[str, Callable[[Path], object]] = {
        "markdown": lambda path: replace_text(path, text),
        "latex": lambda path: replace_text(path, latex(shown, view, against)),
        "csv": lambda path: replace_text(path, _csv(shown, against)),
        "plot": lambda path: _draw(shown, view, path),
        "shares": lambda path: draw_shares(shown, view, path),
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
