"""``diptych check-data``: is a release complete and readable, before days are spent on it.

It first looks for missing files, without torch. Then it reads the tables as ``fit`` does, and images through the reader.

- Exit code 0: the release is complete and readable.
- Exit code 1: something is missing or unreadable. The report names all of it.
- Exit code 2: the release cannot be read at all.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from diptych.checks import check_number
from diptych.data.splits import assert_disjoint, split_hash
from diptych.errors import ConfigError, DataError
from diptych.files import replace_picture, replace_text
from diptych.plugins import DATAMODULES, find
from diptych.version import __version__
from diptych_datamodules.releases.facts import OBTAIN, RELEASES, Facts

if TYPE_CHECKING:
    from diptych.data.datamodule import RadiographDataModule
    from diptych.data.dataset import RadiographDataset, Split

__all__ = ["main", "spread"]

TILES = 24
_LABELS = (("present", 1), ("absent", 0), ("uncertain", -1))
_EXAMPLES = 5  # of missing or unreadable images that are printed. The written files have all
_LISTED, _SHEET = "dropped.csv", "sheet.png"

Json = dict[str, Any]


def spread(sizes: Mapping[Split, int], number: int, seed: int) -> dict[Split, list[int]]:
    """Indices of ``number`` random images, evenly over all splits.

    >>> spread({"train": 6, "test": 2}, 8, seed=0)
    {'train': [0, 1, 2, 3, 4, 5], 'test': [0, 1]}
    """
    total = sum(sizes.values())
    edges = np.linspace(0, total, min(number, total) + 1).astype(int)
    rng = np.random.default_rng(seed)
    places = [int(rng.integers(low, high)) for low, high in pairwise(edges)]
    chosen: dict[Split, list[int]] = {}
    start = 0
    for split, size in sizes.items():
        chosen[split] = [index - start for index in places if start <= index < start + size]
        start += size
    return chosen


def _parts(facts: Facts, root: Path, options: Mapping[str, str]) -> list[Json]:
    """Every part of a release: its paths, and whether these options need it."""
    rows = []
    for part in facts.parts:
        paths = [str(path.relative_to(root)) for path in part.paths(root)]
        needed = part.is_needed(options, options.get("split", facts.split))
        only = part.option.replace("=", ": ") or " or ".join(part.splits)
        rows.append(
            {"name": part.title, "holds": part.holds, "found": paths, "needed": needed, "only": only}
            | {"obtain": OBTAIN[part.obtain]}
        )
    return rows


def _all_options(facts: Facts | None, root: Path | None, rest: Sequence[str]) -> list[str]:
    """The reader's options: those that read the whole release, then the user's own."""
    if facts is None or root is None:
        return list(rest)
    options = _pairs(rest)
    whole: list[str] = []
    if options.get("split", facts.split) == facts.split:
        whole = ["--split", facts.split]
        for key, value in facts.whole.items():
            parts = [part for part in facts.parts if part.option == f"{key}={value}"]
            if all(part.paths(root) for part in parts):
                whole += [f"--{key}", value]
    return [*whole, *rest]


def _pairs(options: Sequence[str]) -> dict[str, str]:
    """Options by name, without ``--`` and ``data.``. The last of a name counts."""
    values = {}
    for i, word in enumerate(options):
        if word.startswith("--"):
            name, equals, value = word.removeprefix("--").removeprefix("data.").partition("=")
            after = options[i + 1] if i + 1 < len(options) else ""
            values[name] = value if equals else after
    return values


def _parser(target: Any, name: str) -> Any:
    """The reader's own options, as ``fit`` has them."""
    import jsonargparse

    parser = jsonargparse.ArgumentParser(prog=f"diptych check-data {name}", exit_on_error=False)
    parser.add_class_arguments(target, "data", skip={"tokenizer", "loading", "percent", "strict"})
    return parser


def _reader(name: str, options: Sequence[str]) -> RadiographDataModule:
    """The datamodule with these options.

    Raises:
        ConfigError: an option or its value is unknown.
    """
    import jsonargparse

    parser = _parser(_target(name), name)
    words = [re.sub(r"^--(?!data\.)", "--data.", word) for word in options]
    try:
        parsed = parser.parse_args(words)
        module: RadiographDataModule = parser.instantiate_classes(parsed).data
    except (jsonargparse.ArgumentError, TypeError, ValueError) as error:
        message = " ".join(str(error).split())
        raise ConfigError(
            f"check-data {name}: {message}; `diptych check-data {name} --help` lists the options"
        ) from error
    return module


def _target(name: str) -> Any:
    """The class of a data set.

    Raises:
        ConfigError: it does not read files by a table.
    """
    from diptych_datamodules.releases.base import Release

    target = find(DATAMODULES, name).load()
    if name != "tabular" and not (isinstance(target, type) and issubclass(target, Release)):
        raise ConfigError(f"check-data: '{name}' is neither a release nor a table; known: {', '.join(_names())}")
    return target


def _names() -> list[str]:
    return [*sorted(RELEASES), "tabular"]


def _splits(module: RadiographDataModule) -> dict[Split, RadiographDataset]:
    """The splits of the reader, and empty ones too."""
    datasets = module.build()
    if not module.leaky:
        patients = {str(split): dataset.patients for split, dataset in datasets.items()}
        assert_disjoint(patients, source=module.protocol)
    return datasets


def _label_vectors(dataset: RadiographDataset) -> list[NDArray[np.float32]]:
    """The labels of all images, from the tables."""
    rows = getattr(dataset, "records", None) or getattr(dataset, "rows", [])
    return [row.labels for row in rows if row.labels is not None]


def _split_report(dataset: RadiographDataset, findings: Sequence[str]) -> Json:
    """Images, patients, reports and labels of one split."""
    rows: Json = {
        "images": len(dataset),
        "patients": len(set(dataset.patients)),
        "reports": len(list(dataset.texts())),
    }
    vectors = _label_vectors(dataset)
    if vectors:
        table = np.stack(vectors)
        counts = {}
        for finding, column in zip(findings, table.T, strict=True):
            known = {word: int((column == value).sum()) for word, value in _LABELS}
            counts[finding] = known | {"not mentioned": int(np.isnan(column).sum())}
        rows["labels"] = counts
    return rows


def _read(
    datasets: Mapping[Split, RadiographDataset], sample: int | None, seed: int, workers: int
) -> tuple[Json, list[tuple[Split, int, str]]]:
    """Read all images, or a sample.

    Returns:
        The section ``read`` of the report. And split, index and rule of each image: the rule is empty, if it is usable.
    """
    from diptych.data.dataset import Subset
    from diptych.data.unusable import unusable_images

    sizes = {split: len(dataset) for split, dataset in datasets.items()}
    chosen = spread(sizes, sum(sizes.values()) if sample is None else sample, seed)
    parts = {split: Subset(datasets[split], set(range(sizes[split])) - set(chosen[split])) for split in sizes}
    # As fit does.
    bad, noted = unusable_images({k: part for k, part in parts.items() if len(part)}, workers, "fork", None)
    rules = {(split, parts[split].kept[index]): rule for split, index, rule, _ in bad}
    by_rule: dict[str, list[Json]] = {}
    for split, index, rule, message in bad:
        by_rule.setdefault(rule, []).append({"id": parts[split].ids[index], "split": split, "message": message})
    notes: dict[str, list[str]] = {}
    for split, index, texts in noted:
        for note in texts:
            notes.setdefault(note, []).append(parts[split].ids[index])
    read = [(split, index, rules.get((split, index), "")) for split, picked in chosen.items() for index in picked]
    return {"images": len(read), "of": sum(sizes.values()), "unusable": by_rule, "notes": notes}, read


def _check(name: str, args: argparse.Namespace, report: Json) -> None:
    """Read tables and images, and add their content to the report."""
    from diptych_datamodules.releases.base import Release

    module = _reader(name, args.options)
    datasets = _splits(module)
    counts = module.dropped.counts()
    missing = [key for rule, key, _ in module.dropped.rows if rule == "missing image"]
    there = sum(map(len, datasets.values())) + sum(
        counts.get(rule, 0) for rule in ("empty report", "no report", "missing patient")
    )
    report["protocol"] = module.protocol
    report["split_hash"] = split_hash({str(split): dataset.ids for split, dataset in datasets.items()})
    facts = RELEASES.get(name)
    if facts is not None and isinstance(module, Release):
        report["table"] = {"unit": facts.unit, "counted": module.counted, "total": facts.total}
    report["images"] = {"listed": there + len(missing), "there": there, "missing": len(missing)}
    report["images"]["first"] = missing[:_EXAMPLES]
    report["left_out"] = counts
    report["splits"] = {split: _split_report(dataset, module.findings) for split, dataset in datasets.items()}
    report["read"], read = _read(datasets, None if args.all_images else args.sample, args.seed, args.workers)
    module.dropped.write(args.out / _LISTED)
    if read:
        from diptych_datamodules.releases.contact_sheet import contact_sheet

        at = np.linspace(0, len(read) - 1, min(TILES, len(read))).astype(int)
        replace_picture(args.out / _SHEET, contact_sheet(datasets, [read[i] for i in at], module.findings))


def _faults(report: Json, part: bool) -> list[str]:
    """A line for each thing that is missing or unreadable."""
    faults = [f"{row['name']} is missing" for row in report["files"] if row["needed"] and not row["found"]]
    if "images" not in report:
        return faults
    table = report.get("table")
    if table is not None and table["counted"] != table["total"] and not part:
        faults.append(
            f"the tables hold {table['counted']:,} {table['unit']}, the release {table['total']:,}"
            " (--part where that is meant)"
        )
    elif "(a part" in report["protocol"] and not part:
        faults.append(f"another table is not the release's: {report['protocol']} (--part where that is meant)")
    if not report["images"]["there"]:
        faults.append("no image is there")
    if report["images"]["missing"]:
        faults.append(f"{report['images']['missing']:,} image(s) have no file")
    if report["left_out"].get("no report"):
        faults.append(f"{report['left_out']['no report']:,} image(s) have no report")
    faults += [f"{len(rows):,} of {report['read']['images']:,} images read: {rule}"
              for rule, rows in report["read"]["unusable"].items()]  # fmt: skip
    return faults


def _text(report: Json, out: Path) -> Iterator[str]:
    """The report as lines to be printed."""
    yield f"{report['name']}: {report.get('protocol', report['root'])}"
    for row in report["files"]:
        only = f", only for {row['only']}" if row["only"] else ""
        if row["found"]:
            yield f"  found    {' and '.join(row['found'])} ({row['holds']})"
        elif row["needed"]:
            yield f"  MISSING  {row['name']} ({row['holds']}{only}); {row['obtain']}"
        else:
            yield f"  not read {row['name']} ({row['holds']}{only or ', given elsewhere'})"
    if "images" not in report:
        yield "tables and images are not read until all of this is there"
    else:
        yield from _counts(report, out)
    for fault in report["faults"]:
        yield f"NOT COMPLETE: {fault}"
    if not report["faults"]:
        every = report["read"]["images"] == report["read"]["of"]
        yield f"complete{', and every image can be read' if every else '; the images read can be used'}"


def _counts(report: Json, out: Path) -> Iterator[str]:
    images, read = report["images"], report["read"]
    if total := report.get("table"):
        share = "the whole release" if total["counted"] == total["total"] else "not the whole release"
        yield f"tables: {total['counted']:,} of {total['total']:,} {total['unit']}, {share}"
    first = (
        f": {', '.join(images['first'])}{', ...' if images['missing'] > _EXAMPLES else ''}" if images["first"] else ""
    )
    yield f"images: {images['there']:,} of {images['listed']:,} are there, {images['missing']:,} missing{first}"
    if report["left_out"]:
        counted = ", ".join(f"{number:,} {rule}" for rule, number in report["left_out"].items())
        yield f"left out: {counted} ({out / _LISTED} lists them)"
    unusable = sum(map(len, read["unusable"].values()))
    yield f"read: {read['images']:,} of {read['of']:,} images, {unusable:,} unusable"
    for rule, rows in read["unusable"].items():
        yield f"  {len(rows):,} {rule}"
        yield from (f"    {row['split']}: {row['message']}" for row in rows[:_EXAMPLES])
    for note, keys in read["notes"].items():
        yield f"  noted {len(keys):,}: {note}: {', '.join(keys[:_EXAMPLES])}{', ...' if len(keys) > _EXAMPLES else ''}"
    splits = report["splits"]
    for split, rows in splits.items():
        reports = f", {rows['reports']:,} with a report" if rows["reports"] else ""
        yield f"{split}: {rows['images']:,} images of {rows['patients']:,} patients{reports}"
    labelled = [split for split in splits if "labels" in splits[split]]
    if labelled:
        table = [["labels: 1 / 0 / -1 / not mentioned", *labelled]]
        for finding in splits[labelled[0]]["labels"]:
            columns = [splits[split]["labels"][finding].values() for split in labelled]
            table.append([f"  {finding}", *(" / ".join(f"{n:,}" for n in numbers) for numbers in columns)])
        wide = [max(map(len, column)) for column in zip(*table, strict=True)]
        for head, *cells in table:
            yield head.ljust(wide[0]) + "".join(f"  {cell:>{w}}" for cell, w in zip(cells, wide[1:], strict=True))
    if read["images"]:
        yield f"contact sheet: {out / _SHEET}"


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="diptych check-data NAME",
        description="Say whether a data set is complete and readable. Exit code 0: it is; 1: something is missing or "
        "unreadable, and the report names it; 2: it cannot be read at all.",
        epilog=f"NAME: {', '.join(_names())}. Options of the data set (--split ...) are those of fit, `data.` may be "
        "left out; without any, all that the release holds is checked. `check-data NAME --help` lists them.",
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("--root", help="the folder of the release")
    parser.add_argument("--sample", type=int, default=200, metavar="N", help="images to read (default: %(default)s)")
    parser.add_argument("--all-images", action="store_true", help="read every image")
    parser.add_argument("--part", action="store_true", help="the tables are a part of the release, and meant to be")
    parser.add_argument(
        "--out", type=Path, help="folder of report.json, sheet.png, dropped.csv (default: runs/check-NAME)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the sample (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="processes that read images (default: %(default)s)")
    parser.add_argument("-h", "--help", action="store_true", help="print this")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``diptych check-data``. ``argv`` is what follows that word on the command line.

    Raises:
        ConfigError: an unknown set or option.
        DataError: the set cannot be read at all, or the report cannot be written.
        SystemExit: with code 1, if something is missing or unreadable. Else with code 0.
    """
    words = list(sys.argv[2:] if argv is None else argv)
    name = words.pop(0) if words and not words[0].startswith("-") else ""
    args, rest = _arguments().parse_known_args(words)
    if args.help:
        print(_arguments().format_help() + (f"\n{_parser(_target(name), name).format_help()}" if name else ""))
        return
    if not name:
        if words:
            raise ConfigError(f"check-data: '{words[0]}' stands where the data set's name belongs; write it first")
        print("diptych check-data NAME --root DIR\n")
        print("\n".join(f"  {known:12} {facts.total:,} {facts.unit}" for known, facts in sorted(RELEASES.items())))
        print(f"  {'tabular':12} your own table: --table FILE\n\n`diptych check-data --help` explains the options.")
        return
    facts = RELEASES.get(name)
    if facts is None and name != "tabular":
        _target(name)  # it may be of another package
    for option, least in (("sample", 1), ("workers", 0)):
        check_number(f"check-data: --{option}", getattr(args, option), least=least, whole=True)
    root = None if args.root is None else Path(args.root)
    if root is None and name != "tabular":
        raise ConfigError(f"check-data {name}: --root is missing; give the folder of the release")
    if root is not None and not root.is_dir():
        raise DataError(f"{root}: no such folder; give that of the release as --root")
    if root is not None and (root / "packed.json").is_file():
        raise ConfigError(
            f"{root}: packed; check what it was made of, or run `diptych prepare {name} --out {root} --verify`"
        )
    args.out = args.out or Path("runs") / f"check-{name}"
    args.options = [*_all_options(facts, root, rest), *([] if root is None else ["--root", str(root)])]
    options = _pairs(args.options)
    report: Json = {"name": name, "root": str(root or ""), "options": options, "diptych": __version__}
    report["files"] = [] if facts is None or root is None else _parts(facts, root, options)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        for old in (_LISTED, _SHEET):
            (args.out / old).unlink(missing_ok=True)
        if all(row["found"] for row in report["files"] if row["needed"]):
            _check(name, args, report)
        report["faults"] = _faults(report, args.part)
        report["exit_code"] = int(bool(report["faults"]))
        replace_text(args.out / "report.json", json.dumps(report, indent=1) + "\n")
    except OSError as error:
        where = error.filename or args.out
        raise DataError(f"{where}: cannot be read or written ({error.strerror or error}); see to its rights") from error
    print("\n".join(_text(report, args.out)))
    sys.exit(report["exit_code"])
