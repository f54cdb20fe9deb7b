"""``diptych score``: the figures of a test, computed from its file of predictions, or from that of another project."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from diptych.checks import check_number
from diptych.errors import ConfigError
from diptych.metrics.bootstrap import Metric, as_metrics, interval_name
from diptych.predictions.kinds import RESAMPLES
from diptych.predictions.reading import Tested, read_predictions
from diptych.results.record import print_table, read_results, write_results
from diptych.results.tested import settings_of

__all__ = ["main"]

_OPTIONS = {
    "threshold": ("binary",),
    "ks": ("retrieval",),
    "confidence": ("boxes",),
    "uncertain": ("reports",),
}
"""Options that set something, and the kinds of predictions that they are of."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``diptych score``. ``argv`` are the words after that on the command line.

    Raises:
        ConfigError: an option or a file of results is wrong.
        DataError: a column is missing or unknown, or a cell is not what it must be.
    """
    args = _parser().parse_args(list(sys.argv[2:] if argv is None else argv))
    if args.resamples is not None:
        check_number("--resamples", args.resamples, least=0, whole=True)
    if args.ks is not None and min(args.ks) < 1:
        raise ConfigError(f"--ks is {args.ks}; give whole numbers of 1 or more")
    if args.confidence is not None:
        check_number("--confidence", args.confidence, least=0, most=1)
    results, own = _results(args.file, args.run)
    if args.write is not None and results is not None and args.write.resolve() == results.resolve():
        raise ConfigError(f"--write {args.write}: it holds the results of the run itself; name another file")
    settings: dict[str, dict[str, Any]] = {}
    truth = None
    if results is not None:
        name, settings = settings_of(results)
        truth = None if own or name is None else results.parent / name
    tested = _with_options(read_predictions(args.file, settings, truth), args)
    every = tested.figures()
    metrics: dict[str, Metric] = {}
    for start, (figures, _) in every.items():
        metrics |= as_metrics(figures, f"test/{start}/")
    print_table(metrics)
    before = {} if results is None else read_results(results)
    if own and not _overrides(args):
        _compare(metrics, before["metrics"], results)
    if args.write is not None:
        protocol = _protocol(tested, {start: facts for start, (_, facts) in every.items()}, before, args)
        checkpoint = before.get("checkpoint") if own else None
        write_results(
            args.write,
            metrics=metrics,
            protocol=protocol,
            split_hash=before.get("split_hash"),
            seed=before.get("seed") if own else None,
            checkpoint=checkpoint.get("path") if isinstance(checkpoint, Mapping) else None,
            checkpoint_sha256=checkpoint.get("sha256") if isinstance(checkpoint, Mapping) else None,
            head=args.title or (before.get("head") if own else None) or args.file.stem,
            data=before.get("data", "not said"),
            predictions={
                "file": os.path.relpath(args.file, args.write.parent),
                "of": {name: {"kind": kept.kind, **kept.settings} for name, kept in tested.predictions.items()},
            },
        )
        print(f"written: {args.write}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="diptych score",
        description="Compute the figures of a test from its predictions, or from those of another project.",
        epilog="docs/evaluation.md lists the columns of a file of predictions",
        allow_abbrev=False,
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="predictions, as csv or parquet")
    parser.add_argument(
        "--run",
        type=Path,
        help="a run, or its results.json, on the same test set: it says how figures are made, and gives patients and labels "
        "that FILE lacks (default: the results.json beside FILE)",
    )
    parser.add_argument("--write", type=Path, metavar="JSON", help="write the figures, for `diptych table`")
    parser.add_argument("--title", metavar="NAME", help="the model's name in --write (default: the name of FILE)")
    parser.add_argument(
        "--threshold",
        choices=("zero", "half", "best_f1"),
        help="the score above which a finding counts as present (default: zero, of probabilities half)",
    )
    parser.add_argument("--classes", action="store_true", help="each image has one of the scored classes")
    parser.add_argument("--ks", type=int, nargs="+", metavar="K", help="cut-offs of R@k (default: 1 5 10)")
    parser.add_argument(
        "--confidence", type=float, help="lowest confidence of a box in challenge, false_alarms and missed"
    )
    parser.add_argument(
        "--uncertain", action="store_true", default=None, help="an uncertain finding of a report counts as present"
    )
    parser.add_argument(
        "--resamples", type=int, help=f"draws of the bootstrap (default: {RESAMPLES}); 0 gives no interval"
    )
    parser.add_argument("--seed", type=int, help="seed of the draws (default: 0)")
    return parser


def _results(file: Path, run: Path | None) -> tuple[Path | None, bool]:
    """The ``results.json`` that says how figures are made, and whether it is that of the file's own test."""
    if run is not None:
        results = run / "results.json" if run.is_dir() else run
        name, _ = settings_of(results)
        return results, name is not None and (results.parent / name).resolve() == file.resolve()
    beside = file.parent / "results.json"
    if beside.is_file() and settings_of(beside)[0] == file.name:
        return beside, True
    return None, False


def _overrides(args: argparse.Namespace) -> bool:
    return args.classes or any(getattr(args, name) is not None for name in (*_OPTIONS, "resamples", "seed"))


def _with_options(tested: Tested, args: argparse.Namespace) -> Tested:
    """The predictions with what the options set.

    Raises:
        ConfigError: an option is of a kind that the file has not.
    """
    kinds = {kept.kind for kept in tested.predictions.values()}
    for option, of in _OPTIONS.items():
        if getattr(args, option) is not None and not kinds & set(of):
            raise ConfigError(f"--{option} is for predictions that {args.file} has not; leave it out")
    if args.classes and "binary" not in kinds:
        raise ConfigError(f"--classes is for scores of findings, and {args.file} has none; leave it out")
    changed = {}
    for name, kept in tested.predictions.items():
        options = {option: getattr(args, option) for option, of in _OPTIONS.items() if kept.kind in of}
        options |= {option: getattr(args, option) for option in ("resamples", "seed")}
        set_here = {option: value for option, value in options.items() if value is not None}
        kind = "classes" if args.classes and kept.kind == "binary" else kept.kind
        changed[name] = replace(kept, kind=kind, settings={**kept.settings, **set_here})
    return replace(tested, predictions=changed)


def _compare(metrics: Mapping[str, Metric], before: Mapping[str, Metric], results: Path | None) -> None:
    """Say whether the figures are those of the test itself."""
    odd = [name for name, value in metrics.items() if repr(value) != repr(before.get(name))]
    if odd:
        print(
            f"{len(odd)} of {len(metrics)} figures are not those of {results}, the first {odd[0]}: {metrics[odd[0]]}, there "
            f"{before.get(odd[0])}"
        )
    else:
        print(f"all {len(metrics)} figures are those of {results}, with every digit")


def _protocol(
    tested: Tested, facts: Mapping[str, Mapping[str, Any]], before: Mapping[str, Any], args: argparse.Namespace
) -> dict[str, Any]:
    """How the figures were made. What a run of the same test set says of that is taken over."""
    theirs = before.get("protocol")
    theirs = theirs if isinstance(theirs, Mapping) else {}
    protocol: dict[str, Any] = {"data": theirs.get("data", "not said"), "scored_from": args.file.name}
    for name, kept in tested.predictions.items():
        first = name.partition("/")[0]
        resamples = kept.settings.get("resamples", RESAMPLES)
        own = {
            "interval": f"{interval_name(resamples)}, seed {kept.settings.get('seed', 0)}",
            "samples": len(tested.ids),
        }
        known = theirs.get(first)
        if isinstance(known, Mapping):
            drawn = args.resamples is not None or args.seed is not None
            own = {**known, **({"interval": own["interval"]} if drawn else {})}
            found = {key: value for key, value in facts[name].items() if key in known and name == first}
            protocol[first] = {**own, **found, **protocol.get(first, {})}
        else:
            protocol[first] = {**protocol.get(first, {}), **own, **facts[name]}
    return protocol
