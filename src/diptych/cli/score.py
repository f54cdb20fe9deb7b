"""``diptych score``: the figures of a test, computed from its file of predictions, or from that of another project."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from diptych.checks import check_number
from diptych.data.about import ABOUT
from diptych.errors import ConfigError
from diptych.metrics.bootstrap import Metric, as_metrics, interval_name
from diptych.metrics.classification import VAL, Threshold
from diptych.metrics.curves import AT
from diptych.metrics.radeval import RADEVAL, USUAL
from diptych.predictions.base import Predictions
from diptych.predictions.kinds import RESAMPLES, Figures, val_thresholds
from diptych.predictions.reading import Tested, read_predictions
from diptych.predictions.reports import with_radeval, write_rexrank
from diptych.predictions.subgroups import BANDS, NOT_DIVIDED, age_band, by_group
from diptych.results.class_curves import write_curves
from diptych.results.record import print_table, read_results, write_results
from diptych.results.tested import settings_of

__all__ = ["main"]

_OPTIONS = {
    "threshold": ("binary", "seeds"),
    "at": ("binary", "seeds"),
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
    if args.at is not None:
        check_number("--at", args.at, least=0, most=1)
    if args.val is not None and args.threshold not in VAL:
        raise ConfigError("--val is for --threshold val_f1, val_youden and val_mcc; give one of them, or leave it out")
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
    tested = _with_options(read_predictions(args.file, settings, truth), args, settings)
    version = ""
    if args.radeval is not None:
        tested, version, lines = with_radeval(tested, args.radeval or USUAL, download=args.download)
        print(*lines, sep="\n", end="\n" if lines else "")
    elif args.download:
        raise ConfigError("--download fetches models of --radeval; give --radeval with it")
    if args.rexrank is not None:
        print(f"written: {args.rexrank[1]}, {write_rexrank(tested, *args.rexrank)} studies")
    every = tested.figures()
    metrics: dict[str, Metric] = {}
    for start, (figures, _) in every.items():
        metrics |= as_metrics(figures, f"test/{start}/")
    groups = _subgroups(tested, args)
    of_groups = {
        name: metric
        for start, (figures, _) in groups.items()
        for name, metric in as_metrics(figures, f"test/{start}/").items()
    }
    print_table(metrics | of_groups)
    before = {} if results is None else read_results(results)
    if own and not _overrides(args):
        _compare(metrics, before["metrics"], results)
    metrics |= of_groups
    if args.curves is not None:
        for path in write_curves(args.curves, tested.predictions):
            print(f"written: {path}")
    if args.write is not None:
        protocol = _protocol(tested, {start: facts for start, (_, facts) in every.items()}, before, args)
        for start, (_, facts) in groups.items():
            name, _, part = start.partition("/")
            protocol[name][part] = facts
        for name, kept in tested.predictions.items():
            if version and kept.kind == "reports":
                protocol[name.partition("/")[0]]["radeval"] = version
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
        choices=get_args(Threshold),
        help="the score above which a finding counts as present (default: zero, of probabilities half)",
    )
    parser.add_argument(
        "--val",
        type=Path,
        metavar="FILE",
        help="predictions of the same model on val, for --threshold val_f1 and so on",
    )
    parser.add_argument(
        "--at", type=float, help=f"specificity at which the sensitivity is measured, and the reverse (default: {AT})"
    )
    parser.add_argument(
        "--by", nargs="+", choices=ABOUT, default=[], help="figures of subgroups, and the gap between them"
    )
    parser.add_argument(
        "--bands",
        type=int,
        nargs="+",
        metavar="AGE",
        help=f"ages at which a new band begins (default: {' '.join(map(str, BANDS))})",
    )
    parser.add_argument(
        "--curves", type=Path, metavar="FOLDER", help="draw ROC, precision-recall and reliability there"
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
        "--radeval",
        nargs="*",
        metavar="METRIC",
        choices=list(RADEVAL),
        help=f"metrics of radeval of written reports: {', '.join(RADEVAL)} (without a name: {' '.join(USUAL)})",
    )
    parser.add_argument("--download", action="store_true", help="let radeval fetch the models it lacks")
    parser.add_argument(
        "--rexrank",
        nargs=2,
        type=Path,
        metavar=("STUDIES", "JSON"),
        help="write reports as the leaderboard ReXrank reads them; STUDIES is its json of the test set",
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
    return args.classes or any(getattr(args, name) is not None for name in (*_OPTIONS, "resamples", "seed", "radeval"))


def _subgroups(tested: Tested, args: argparse.Namespace) -> dict[str, Figures]:
    """Figures of subgroups and facts, by the beginning of their names.

    Raises:
        ConfigError: the file has no such column, or no predictions whose figures can be divided.
    """
    bands = BANDS if args.bands is None else args.bands
    if list(bands) != sorted(set(bands)):
        raise ConfigError(f"--bands is {list(bands)}; give ages that rise, as 40 60 80")
    found: dict[str, Figures] = {}
    for attribute in args.by:
        if not any(tested.about.get(attribute, ())):
            raise ConfigError(
                f"--by {attribute}: {args.file} has no column '{attribute}' with values; add it, or leave --by out"
            )
        values = tested.about[attribute]
        values = [age_band(value, bands) for value in values] if attribute == "age" else values
        for name, kept in tested.predictions.items():
            if kept.kind not in NOT_DIVIDED:
                found[f"{name}/by/{attribute}"] = by_group(kept, tested.group, values)
    if args.by and not found:
        raise ConfigError(f"--by: the figures of {args.file} rank all images against each other; leave --by out")
    return found


def _on_val(kept: Predictions, name: str, args: argparse.Namespace, settings: Mapping[str, Mapping[str, Any]]) -> Any:
    """The thresholds that are best on the predictions of ``--val``.

    Raises:
        ConfigError: it is not given, or has no such predictions.
    """
    if args.val is None:
        raise ConfigError(f"--threshold {args.threshold}: give the model's predictions on val, as --val FILE")
    of_val = read_predictions(args.val, settings).predictions.get(name)
    if of_val is None or of_val.kind != kept.kind:
        raise ConfigError(f"--val {args.val}: no scores named '{name}', as {args.file} has; name its columns alike")
    return val_thresholds(of_val, args.threshold)


def _with_options(tested: Tested, args: argparse.Namespace, settings: Mapping[str, Mapping[str, Any]]) -> Tested:
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
        if set_here.get("threshold") in VAL:
            set_here["thresholds"] = _on_val(kept, name, args, settings)
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
