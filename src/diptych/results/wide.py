"""One table of several tests: a row for each model, and a column for each figure, as papers print it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from itertools import groupby
from pathlib import Path

from diptych.errors import ConfigError
from diptych.escaping import csv_rows, for_latex, for_markdown
from diptych.files import replace_text
from diptych.metrics.bootstrap import Metric
from diptych.metrics.few import explained
from diptych.results.against import TESTS, Against, Difference
from diptych.results.runs import ResultsTable, RunResults, differences
from diptych.results.seeds import Summary, markdown, show

__all__ = ["Column", "WideTable"]

_SIGNIFICANT = 0.05
_BEST = {"highest": max, "lowest": min}
_FITTED = "\\resizebox{\\ifdim\\width>\\textwidth\\textwidth\\else\\width\\fi}{!}{%"
"""Makes a table smaller that is wider than the page. Another one keeps its size."""


@dataclass(frozen=True)
class Column:
    """A figure of a test.

    Args:
        test: name of the test.
        metric: its name in ``results.json``, as ``test/zero_shot/auroc/macro``.
        group: what stands above it, as the name of the data set.
        title: what heads it.
        best: which figure is in bold, ``highest`` or ``lowest``. Empty for none.
    """

    test: str
    metric: str
    group: str
    title: str
    best: str = "highest"

    @property
    def name(self) -> str:
        """Group and title in one."""
        return f"{self.group} {self.title}"

    @property
    def evaluator(self) -> str:
        """``stage/evaluator``."""
        return "/".join(self.metric.split("/")[:2])


@dataclass
class WideTable:
    """The figures of models in tests. A cell whose test had another protocol than the column's is left out, and a note says so.

    Args:
        models: title of each row by its name.
        columns: the columns, from left to right.
        runs: the results by model and test, labelled by the model. A model without a test has no figure there.
        against: name of the model that the others are compared with, or None.
    """

    models: Mapping[str, str]
    columns: Sequence[Column]
    runs: Mapping[tuple[str, str], RunResults]
    against: str | None = None
    cells: dict[tuple[str, int], Metric] = field(init=False, default_factory=dict)
    """Figures by model and number of the column."""
    paired: dict[tuple[str, int], Difference] = field(init=False, default_factory=dict)
    """Differences from the model of ``against``."""
    notes: list[str] = field(init=False, default_factory=list)
    """What the figures come from, and what is missing, a sentence each."""
    intervals: list[str] = field(init=False, default_factory=list)
    """What the intervals are, a sentence each."""

    def __post_init__(self) -> None:
        """Fill the cells.

        Raises:
            ConfigError: a column's figure is in no result.
            DataError: predictions cannot be read, or are not of the same images.
        """
        self._pairs: dict[str, Against | None] = {}
        tables = [self._table(number, column) for number, column in enumerate(self.columns)]
        bases = list(dict.fromkeys(f"{column.group}: {table.protocol['data']}, split {table.protocol['split_hash']}"
                     for column, table in zip(self.columns, tables, strict=True)))  # fmt: skip
        groups: dict[str, list[str]] = {}
        for column, table in zip(self.columns, tables, strict=True):
            if (text := table.protocol.get("interval")) is not None and column.group not in groups.setdefault(text, []):
                groups[text].append(column.group)
        named = {metric.interval for metric in self.cells.values()} - {""}
        self.notes[:0] = [f"{text}." for text in bases]
        for text, of in groups.items():
            start = f"Those of {'; '.join(of)}" if self.intervals else "Intervals"
            self.intervals.append(f"{start}: {text}{', where no other is named' if named else ''}.")
        self.intervals += filter(None, [explained(named)])
        doubts = [
            f"{self.models[model]}, {test}: {run.doubt}." for (model, test), run in self.runs.items() if run.doubt
        ]
        self.notes += doubts

    def _table(self, number: int, column: Column) -> ResultsTable:
        runs = {model: run for model in self.models if (run := self.runs.get((model, column.test))) is not None}
        having = {model: run for model, run in runs.items() if column.metric in run.metrics}
        if not having:
            names = sorted({name for run in runs.values() for name in run.metrics})
            raise ConfigError(
                f"column '{column.name}': no result of the test '{column.test}' has {column.metric}; there are "
                f"{', '.join(names) or 'no results'}"
            )
        first = having.get(self.against or "") or next(iter(having.values()))
        table = ResultsTable(column.evaluator, first.task(column.evaluator))
        for model, run in having.items():
            other = ResultsTable(column.evaluator, run.task(column.evaluator))
            if other.protocol != table.protocol:
                text = (
                    f"{self.models[model]} has no figure in {column.name}, for it was tested by another protocol than "
                )
                self.notes.append(f"{text}{first.label}: {differences(other, table)}.")
                continue
            table.runs.append(run)
            self.cells[model, number] = run.metrics[column.metric]
        if self.against in having and len(table.runs) > 1 and (pairs := self._against(column.test, table)) is not None:
            figure = column.metric.removeprefix(f"{column.evaluator}/")
            for model, difference in pairs.of(table, [figure]).get(figure, {}).items():
                self.paired[model, number] = difference
        return table

    def _against(self, test: str, table: ResultsTable) -> Against | None:
        """The pairs of a test, read once. None, with a note, if a run has no predictions."""
        if test not in self._pairs:
            base = self.runs[self.against or "", test]
            try:
                self._pairs[test] = Against(base, [run for (_, of), run in self.runs.items() if of == test])
            except ConfigError as error:
                self.notes.append(f"No paired tests for {test}: {error}.")
                self._pairs[test] = None
        return self._pairs[test]

    def best(self, number: int) -> set[str]:
        """The models whose figure, as it is printed, is the best of a column."""
        if (pick := _BEST.get(self.columns[number].best)) is None:
            return set()
        values = {model: self.cells[model, number].value for model in self.models if (model, number) in self.cells}
        values = {model: value for model, value in values.items() if not math.isnan(value)}
        if not values:
            return set()
        top = show(pick(values.values()))
        return {model for model, value in values.items() if show(value) == top}

    def _mark(self, model: str, number: int) -> str:
        difference = self.paired.get((model, number))
        return "*" if difference is not None and difference.p_holm < _SIGNIFICANT else ""

    def _signs(self) -> list[str]:
        """What the signs of the table stand for."""
        said = ["Bold: the best figure of a column."] if any(column.best for column in self.columns) else []
        said += self.intervals
        if self.paired:
            base = self.models[self.against or ""]
            star = (
                f"A star marks a difference from {base} with p < {_SIGNIFICANT}, paired by image and corrected for the "
            )
            said.append(f"{star}number of models in the column (Holm).")
        return said

    def _tests(self) -> str:
        """What the tests of the differences are."""
        names = dict.fromkeys(one.test for one in self.paired.values())
        return " ".join(f"{name}: {TESTS[name]}." for name in names)

    def _differences(self) -> tuple[list[str], list[list[str]]]:
        header = ["column", "model", f"difference from {self.models.get(self.against or '', '')}"]
        rows = [
            [self.columns[number].name, self.models[model], *one.cells()] for (model, number), one in self.paired.items()
        ]  # fmt: skip
        return [*header, "95 %", "p", "p (Holm)", "test"], rows

    def markdown(self, title: str) -> str:
        """The table as a page of Markdown."""
        best = [self.best(number) for number in range(len(self.columns))]
        rows, bold = [], set()
        for i, (model, name) in enumerate(self.models.items()):
            row = [name]
            for number in range(len(self.columns)):
                figure, interval = _texts(self.cells.get((model, number)))
                row.append(f"{figure}{self._mark(model, number)}{f' ({interval})' if interval else ''}")
                if model in best[number]:
                    bold.add((i, number + 1))
            rows.append(row)
        parts = [f"# {for_markdown(title)}", markdown(["model", *(c.name for c in self.columns)], rows, bold=bold)]
        parts += [for_markdown(note) for note in [*self._signs(), *self.notes]]
        if self.paired:
            parts += ["## Differences", markdown(*self._differences()), for_markdown(self._tests())]
        return "\n\n".join(parts) + "\n"

    def latex(self) -> str:
        r"""The table in LaTeX, for ``\input``. It needs the packages booktabs and graphicx."""
        groups = [(name, len(list(of))) for name, of in groupby(self.columns, lambda column: column.group)]
        ends = _ends(groups)
        lines = [
            "\\begin{table}",
            "\\centering",
            f"\\caption{{{for_latex(' '.join(self._signs()))}}}",
            "\\medskip",
            _FITTED,
            f"\\begin{{tabular}}{{l{'c' * len(self.columns)}}}",
            "\\toprule",
            " & ".join(["", *(f"\\multicolumn{{{n}}}{{c}}{{{for_latex(name)}}}" for name, n in groups)]) + " \\\\",
            " ".join(f"\\cmidrule(lr){{{first}-{last}}}" for first, last in ends),
            " & ".join(["model", *(for_latex(column.title) for column in self.columns)]) + " \\\\",
            "\\midrule",
            *self._latex_rows(),
            "\\bottomrule",
            "\\end{tabular}}",
            *_small(self.notes),
            "\\end{table}",
        ]
        if self.paired:
            (column, model, _, *header), rows = self._differences()
            header = [column, model, "difference", *header]
            base = for_latex(self.models[self.against or ""])
            lines += [
                "",
                "\\begin{table}",
                "\\centering",
                f"\\caption{{Differences from {base}. {for_latex(self._tests())}}}",
                "\\medskip",
            ]
            lines += [_FITTED, "\\begin{tabular}{llrrrrl}", "\\toprule", f"{' & '.join(map(for_latex, header))} \\\\"]
            before = ""
            for column, *others in rows:
                if column != before:
                    lines.append("\\midrule")
                name, *figures = map(for_latex, others)
                cells = ["" if column == before else for_latex(column), name, *map(_minus, figures)]
                lines.append(f"{' & '.join(cells)} \\\\")
                before = column
            lines += ["\\bottomrule", "\\end{tabular}}", "\\end{table}"]
        return "\n".join(lines) + "\n"

    def _latex_rows(self) -> Iterator[str]:
        """The figures of a model, and its intervals in a line below."""
        best = [self.best(number) for number in range(len(self.columns))]
        for model, name in self.models.items():
            figures, intervals = [for_latex(name)], [""]
            for number in range(len(self.columns)):
                figure, interval = map(for_latex, _texts(self.cells.get((model, number))))
                figure = f"\\textbf{{{figure}}}" if model in best[number] else figure
                figures.append(figure + ("$^{*}$" if self._mark(model, number) else ""))
                intervals.append(interval and f"\\scriptsize {_minus(interval)}")
            yield " & ".join(figures) + " \\\\"
            if any(intervals):
                yield " & ".join(intervals) + " \\\\[2pt]"

    def csv(self) -> str:
        """Every figure, one a row."""
        header = [
            "model",
            "test",
            "metric",
            "value",
            "low",
            "high",
            "interval",
            "n",
            f"difference from {self.against or 'none'}",
        ]
        pair_header = ["difference low", "difference high", "p", "paired by", "p (Holm)", "difference interval"]
        rows: list[list[object]] = [[*header, *pair_header]]
        for (model, number), metric in self.cells.items():
            column, pair = self.columns[number], self.paired.get((model, number))
            row: list[object] = [model, column.test, column.metric, metric.value, metric.low, metric.high]
            row += [metric.interval, metric.n]
            rows.append(row + ([None] * 7 if pair is None else list(astuple(pair))))
        return csv_rows(rows)

    def write(self, folder: Path, title: str) -> str:
        """Write ``suite.md``, ``suite.csv``, ``table.tex``, ``page.tex``, and ``suite.png``, ``.svg`` and ``.pdf``.

        Returns:
            The page of Markdown.

        Raises:
            DataError: a file cannot be written.
        """
        from diptych.results.dotplot import Panel, draw
        from diptych.results.sheet import FORMATS

        text = self.markdown(title)
        replace_text(folder / "suite.md", text)
        replace_text(folder / "suite.csv", self.csv())
        replace_text(folder / "table.tex", self.latex())
        replace_text(folder / "page.tex", _PAGE)
        panels = []
        for number, column in enumerate(self.columns):
            cells = {
                name: self.cells[model, number] for model, name in self.models.items() if (model, number) in self.cells
            }
            means = {name: Summary(m.value, m.low, m.high, 1, int(math.isnan(m.value))) for name, m in cells.items()}
            panels.append(Panel(column.name, means, {}, whole=True))
        key = {"mean": "value", "bar": "95 % interval over patients"}
        for kind in FORMATS:
            draw(panels, list(self.models.values()), folder / f"suite.{kind}", key)
        return text


_PAGE = r"""\documentclass{article}
\usepackage[a4paper,landscape,margin=15mm]{geometry}
\usepackage{booktabs}
\usepackage{graphicx}
\begin{document}
\input{table}
\end{document}
"""
"""A document around the table, to look at it alone."""


def _minus(text: str) -> str:
    """Figures in LaTeX with a minus in place of a hyphen.

    >>> print(_minus("-0.1 to +0.2"))
    $-$0.1 to +0.2
    """
    return re.sub(r"(?<![\w-])-(?=\d)", "$-$", text)


def _small(notes: Sequence[str]) -> list[str]:
    """Notes below a table in LaTeX."""
    if not notes:
        return []
    return ["\\par\\medskip", f"\\parbox{{\\textwidth}}{{\\footnotesize\\raggedright {for_latex(' '.join(notes))}}}"]


def _texts(metric: Metric | None) -> tuple[str, str]:
    """A figure and its interval, with its name where it is not the column's."""
    if metric is None:
        return "-", ""
    if math.isnan(metric.low):
        return show(metric.value), metric.interval
    return show(metric.value), ", ".join(filter(None, (f"{show(metric.low)} to {show(metric.high)}", metric.interval)))


def _ends(groups: Sequence[tuple[str, int]]) -> list[tuple[int, int]]:
    """First and last column of each group, counted from 1, where the first column holds the models."""
    ends, last = [], 1
    for _, number in groups:
        ends.append((last + 1, last + number))
        last += number
    return ends
