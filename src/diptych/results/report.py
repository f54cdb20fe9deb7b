"""``diptych report``: runs on one page that stands alone, with tables, curves, maps and failures.

The page is one HTML file. It asks nothing of a network and runs no script. Pictures are inside it, within a budget of bytes.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from html import escape
from pathlib import Path

from diptych.checks import check_number
from diptych.errors import ConfigError
from diptych.files import replace_text
from diptych.results.against import Against
from diptych.results.failures import retrieval_failures, wrong_findings
from diptych.results.html import Pictures, details, document, table_of
from diptych.results.record import read_results
from diptych.results.runs import ResultsTable, RunResults, read_run, tables
from diptych.results.table import View, basis, draw_shares, titles
from diptych.results.tested import read_tested, settings_of
from diptych.results.training_curves import draw_lines, read_scalars

__all__ = ["main", "report"]

_MAPS = 4
"""Pictures of maps of each run."""
_MOST = 8
"""Pictures of curves of each run."""
_CURVES = ("train/loss", "train/gradient_norm", "val/")
"""Tags that are drawn begin so."""


def _figures(shown: Sequence[ResultsTable], view: View, against: Against | None) -> str:
    parts = []
    for table, title, different in titles(shown):
        header, *rows = view.cells(table)
        parts.append(f'<h3>{escape(title)}</h3><p class="note">{escape(basis(table, view))}</p>')
        if different:
            text = f"Not to be compared with the first table of {table.name}: {different}."
            parts.append(f'<p class="warn">{escape(text)}</p>')
        parts.append(table_of(header, rows, view.best(table)))
        doubts = [f"{run.label}: {run.doubt}." for run in table.runs if run.doubt]
        parts += [f'<p class="warn">{escape(text)}</p>' for text in doubts]
        if against is not None and (cells := against.cells(table, view.columns(table))):
            parts.append(f'<p class="note">{escape(against.note())}</p>{table_of(cells[0], cells[1:])}')
    return "\n".join(parts)


def _training(runs: Sequence[RunResults]) -> str:
    scalars = {run.label: read_scalars(run.file.parent) for run in runs}
    tags = sorted({tag for of in scalars.values() for tag in of if tag.startswith(_CURVES)})
    drawings = {tag: draw_lines(tag, {name: of.get(tag, []) for name, of in scalars.items()}) for tag in tags}
    first = "".join(drawing for tag, drawing in drawings.items() if not _is_detail(tag))
    rest = "".join(drawing for tag, drawing in drawings.items() if _is_detail(tag))
    if not first + rest:
        return "<p>No event files of TensorBoard lie beside these results.</p>"
    more = f'<details><summary>single findings and directions</summary><div class="many">{rest}</div></details>'
    return f'<div class="many">{first}</div>{more if rest else ""}'


def _is_detail(tag: str) -> bool:
    """Whether a curve is of one finding, or of one direction of retrieval: ``val/zero_shot/auroc/Edema``."""
    return tag.startswith("val/") and tag.count("/") > 2 and not tag.endswith("/macro")


def _shares(shown: Sequence[ResultsTable], view: View, pictures: Pictures) -> str:
    """The picture of label fractions, if a run has any."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "shares.png"
        try:
            draw_shares(shown, view, file)
        except ConfigError:  # no run trained on shares of the labels
            return ""
        return pictures.of(file, "Figures over the share of the labels")


def _pictures_of(runs: Sequence[RunResults], pattern: str, most: int, pictures: Pictures) -> str:
    files = [(run, file) for run in runs for file in sorted(run.file.parent.glob(pattern))[:most]]
    return "".join(pictures.of(file, f"{run.label}: {file.stem}") for run, file in files)


def _failures(runs: Sequence[RunResults]) -> str:
    parts = []
    for run in runs:
        name, _ = settings_of(run.file)
        tested = read_tested(run.file)
        if tested is None or name is None:
            parts.append(f"<p>{escape(run.label)}: the test wrote no predictions.</p>")
            continue
        for evaluator, rows in wrong_findings(tested):
            parts.append(f"<h3>{escape(run.label)}: {escape(evaluator)}</h3>")
            header = ["finding", "label", "image", "patient", "score", "images of the other label on the wrong side"]
            parts.append(table_of(header, rows))
        for evaluator, rows in retrieval_failures(tested, run.file.parent / name):
            parts.append(f"<h3>{escape(run.label)}: {escape(evaluator)}</h3>")
            parts.append(table_of(["image", "rank of its own report", "reports that came first"], rows))
    return "".join(parts)


def _configuration(runs: Sequence[RunResults]) -> str:
    parts = []
    for run in runs:
        recipe = run.file.parent / "config.yaml"
        if recipe.is_file():
            parts.append(details(f"{run.label}: config.yaml", recipe.read_text(encoding="utf-8", errors="replace")))
        content = read_results(run.file)
        facts = {
            key: content[key] for key in ("protocol", "checkpoint", "seed", "split_hash", "versions") if key in content
        }
        parts.append(details(f"{run.label}: protocol", json.dumps(facts, indent=2)))
    return "".join(parts)


def report(runs: Sequence[RunResults], *, against: Against | None, ids: bool = True, budget: int = 4_500_000) -> str:
    """The page of some runs.

    Args:
        runs: their results.
        against: differences from one of them, or None.
        ids: whether failures are listed, with ids of images and patients.
        budget: bytes that pictures may take.

    Raises:
        ConfigError, DataError: a file of a run cannot be read.
    """
    view, shown, pictures = View(), tables(runs), Pictures(budget)
    note = "Not for clinical use." + (" This page names images and patients." if ids else "")
    every = (
        ("Figures", f'<p class="note">{note}</p>{_figures(shown, view, against)}'),
        ("Share of labels", _shares(shown, view, pictures)),
        ("Classification", _pictures_of(runs, "curves-*.svg", _MOST, pictures)),
        ("Training", _training(runs)),
        ("What the head sees", _pictures_of(runs, "figures/test-attention-*.png", _MAPS, pictures)),
        ("Failures", _failures(runs) if ids else ""),
        ("Configuration", _configuration(runs)),
    )
    sections = [(title, content) for title, content in every if content]
    if pictures.left_out:
        names = ", ".join(f"{file.parent.name}/{file.name}" for file in pictures.left_out)
        text = f"Pictures beyond the budget (--megabytes) are left out: {names}."
        sections.append(("Left out", f"<p>{escape(text)}</p>"))
    return document(", ".join(run.label for run in runs), sections)


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``diptych report``. ``argv`` holds the words after it on the command line."""
    parser = argparse.ArgumentParser(
        prog="diptych report",
        description="Runs on one HTML page that stands alone: figures, paired tests, curves, maps, failures, configuration.",
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", metavar="[NAME=]RUN", help="the folder of a tested run, or its results.json")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE.html", help="the page")
    parser.add_argument("--against", metavar="NAME", help="the run that the others are compared with, paired by image")
    parser.add_argument("--no-ids", action="store_true", help="leave out failures, which name images and patients")
    parser.add_argument("--megabytes", type=float, default=4.5, help="what pictures may take (4.5)")
    args = parser.parse_args(list(sys.argv[2:] if argv is None else argv))
    check_number("--megabytes", args.megabytes, least=0, remedy="a number from 0")
    runs = [read_run(argument) for argument in args.runs]
    labels = [run.label for run in runs]
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise ConfigError(f"two runs are called '{twice[0]}'; write NAME=PATH")
    against = None
    if args.against is not None:
        base = next((run for run in runs if run.label == args.against), None)
        if base is None:
            raise ConfigError(f"--against names '{args.against}', which is none of the runs: {', '.join(labels)}")
        against = Against(base, runs)
    page = report(runs, against=against, ids=not args.no_ids, budget=int(args.megabytes * 1e6))
    replace_text(args.out, page)
    print(f"{args.out}: {len(page.encode()) / 1e6:.2f} MB, {len(runs)} runs")
