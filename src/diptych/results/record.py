"""The results of a test: the file ``results.json``, and the table that is printed."""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diptych.errors import ConfigError, shown
from diptych.escaping import one_line
from diptych.files import replace_text
from diptych.metrics.bootstrap import Metric
from diptych.plain import check_plain

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["metric_table", "plain", "print_table", "read_results", "versions", "write_results"]

_MOST = 60
"""With more figures than these, those of single findings are not printed."""
_PACKAGES = ("diptych", "torch", "lightning", "transformers", "timm", "numpy")


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that figures depend on. One that is not installed has None."""
    numbers: dict[str, str | None] = {"python": platform.python_version()}
    for package in _PACKAGES:
        numbers[package] = None
        with contextlib.suppress(metadata.PackageNotFoundError):
            numbers[package] = metadata.version(package)
    return numbers


def write_results(
    path: str | os.PathLike[str],
    *,
    metrics: Mapping[str, Metric],
    protocol: Mapping[str, Any],
    split_hash: str | None,
    seed: int | None,
    checkpoint: str | os.PathLike[str] | None,
    checkpoint_sha256: str | None,
    head: Mapping[str, Any] | str,
    data: Mapping[str, Any] | str,
    predictions: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write the results of a test, all or nothing.

    Args:
        path: the JSON file. Its folder is made.
        metrics: figures by name. NaN is written as null. ``interval`` is written where it is not the protocol's.
        protocol: how they were made, as ``{evaluator.name: evaluator.protocol}``.
        split_hash: hash of the data set's split, if it has one.
        seed: the run's seed.
        checkpoint: file of the weights, or None if they are in memory alone.
        checkpoint_sha256: the file's :func:`diptych.files.sha256`.
        head: name or configuration of the head.
        data: name or configuration of the data.
        predictions: ``file`` with what the model said of each sample, and ``of``, which says how figures follow from it.

    Returns:
        The content of the file.

    Raises:
        DataError: the file cannot be written.
    """
    content = {
        "metrics": {
            name: {"value": metric.value, "low": metric.low, "high": metric.high, "n": metric.n}
            | ({"interval": metric.interval} if metric.interval else {})
            for name, metric in metrics.items()
        },
        "protocol": protocol,
        "split_hash": split_hash,
        "seed": seed,
        "checkpoint": None if checkpoint is None else {"path": os.fspath(checkpoint), "sha256": checkpoint_sha256},
        "head": head,
        "data": data,
        "predictions": predictions,
        "versions": versions(),
    }
    written: dict[str, Any] = plain(content)
    replace_text(
        path,
        json.dumps(written, indent=2, allow_nan=False) + "\n",
        "make room, or give another --run with --ckpt_path FILE, and test again",
    )
    return written


def read_results(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what :func:`write_results` wrote. Its ``metrics`` become ``{name: Metric}``.

    Raises:
        ConfigError: there is no such file, or it holds no results.
    """
    try:
        content: Any = json.loads(Path(path).read_text(encoding="utf-8"))
        check_plain(content, os.fspath(path), most=1_000_000)
    except OSError as error:
        raise ConfigError(f"'{os.fspath(path)}' cannot be read: {error.strerror}; give a results.json") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"'{os.fspath(path)}' is not JSON ({one_line(str(error))}); give a results.json") from None
    rows = content.get("metrics") if isinstance(content, dict) else None
    if not isinstance(rows, dict):
        raise ConfigError(f"'{os.fspath(path)}' holds no 'metrics'; give a results.json written by 'diptych test'")
    metrics = {name: _metric(row, f"{os.fspath(path)}: metrics.{name}") for name, row in rows.items()}
    return {**content, "metrics": metrics}


def metric_table(metrics: Mapping[str, Metric], title: str | None = None) -> Table:
    """The metrics as a table for the terminal. Lines part groups, whose names are equal but for their last part."""
    from rich.table import Table
    from rich.text import Text  # names are no markup: rich would read [left] as a style and leave it out

    view = Table(title=None if title is None else Text(one_line(title)))
    view.add_column("metric")
    for name in ("value", "95 % interval", "n"):
        view.add_column(name, justify="right")
    last = None
    for name, metric in metrics.items():
        group = name.rpartition("/")[0]
        if last is not None and group != last:
            view.add_section()
        last = group
        figures = (metric.value, metric.low, metric.high)
        digits = 3 if all(math.isnan(figure) or abs(figure) <= 1 for figure in figures) else 1  # ranks are above 1
        value, low, high = ("-" if math.isnan(figure) else f"{figure:.{digits}f}" for figure in figures)
        ends = metric.interval or "-" if low == high == "-" else f"{low} - {high}"
        ends += f" ({metric.interval})" if metric.interval and ends != metric.interval else ""
        view.add_row(Text(one_line(name)), value, Text(one_line(ends)), str(metric.n))
    return view


def print_table(metrics: Mapping[str, Metric], title: str | None = None) -> None:
    """Print :func:`metric_table` to standard output. Of many figures the parts of each ``macro`` are left out."""
    from rich import get_console
    from rich.console import Console

    console = (
        get_console() if sys.stdout.isatty() else Console(width=120)
    )  # a terminal's console knows of the progress bar
    shown_here = metrics
    if len(metrics) > _MOST:
        shown_here = {
            name: metric
            for name, metric in metrics.items()
            if name.endswith(("/macro", "/micro")) or f"{name.rpartition('/')[0]}/macro" not in metrics
        }
    console.print(metric_table(shown_here, title))
    if len(shown_here) < len(metrics):
        console.print(f"and {len(metrics) - len(shown_here)} figures of single findings")


def _metric(row: object, where: str) -> Metric:
    if not isinstance(row, dict) or not {"value", "low", "high", "n"} <= row.keys():
        raise ConfigError(f"'{where}' must have value, low, high and n; give a results.json written by 'diptych test'")
    for key in ("value", "low", "high", "n"):
        figure = row[key]
        if isinstance(figure, bool) or not isinstance(figure, int | float | None if key != "n" else int):
            raise ConfigError(f"'{where}.{key}' is {shown(figure)}, and must be a number; test the run anew")
    value, low, high = (float("nan") if row[key] is None else float(row[key]) for key in ("value", "low", "high"))
    name = row.get("interval", "")
    if not isinstance(name, str):
        raise ConfigError(f"'{where}.interval' is {shown(name)}, and must be a name; test the run anew")
    return Metric(value, low, high, row["n"], name)


def plain(value: Any) -> Any:
    """A value as strict JSON knows it. NaN and infinity become None, sets become lists, and other objects become their text.

    >>> plain({"value": float("nan"), "ks": (1, 5), "path": Path("a.ckpt")})
    {'value': None, 'ks': [1, 5], 'path': 'a.ckpt'}
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in (sorted(value, key=str) if isinstance(value, set | frozenset) else value)]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)
