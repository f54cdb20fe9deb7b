"""``diptych app``: a local page that shows what a trained model says of a radiograph. Not for clinical use."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from diptych.errors import ConfigError

__all__ = ["main"]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"app: {message} (`diptych app --help` lists every option)")


def _parser() -> _Parser:
    parser = _Parser(
        prog="diptych app",
        description="A page on this machine: a radiograph, a phrase, and what one model or two say of them. "
        "Not for clinical use.",
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", metavar="[NAME=]RUN", help="a run, a .ckpt or a shared model; one or two")
    parser.add_argument(
        "--prompts", metavar="SET", help="prompt set of the findings (default: that of the run's tests)"
    )
    parser.add_argument("--reports", type=Path, metavar="FILE", help="reports to search: .txt, a line each, or a table")
    parser.add_argument("--column", default="text", help="the table's column of reports (default: text)")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1 (default: a free one)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 ... (default: a GPU if there is one)")
    parser.add_argument("--trust", action="append", default=[], metavar="CLASS", help="import path that a run may name")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``diptych app`` until Ctrl-C or SIGTERM. ``arguments`` are the words after it on the command line.

    Raises:
        ConfigError: an option is wrong, or a model cannot be loaded.
    """
    options = _parser().parse_args(list(sys.argv[2:] if arguments is None else arguments))
    if len(options.runs) > 2:
        raise ConfigError(f"app: {len(options.runs)} runs are given; the page has room for two")
    if not 0 <= options.port < 1 << 16:
        raise ConfigError(f"--port is {options.port}; give 0 to 65535")
    named = [_named(run) for run in options.runs]
    if len({name for name, _ in named}) < len(named):
        raise ConfigError(f"both runs are called '{named[0][0]}'; write NAME=RUN")

    from diptych.app.answers import Warm, answer
    from diptych.app.server import MOST_BYTES, Page, Server
    from diptych.cli.predict import device_named, read_reports
    from diptych.model.inference import load

    device = device_named(options.device)
    reports = None if options.reports is None else read_reports(options.reports, options.column)
    models = [
        Warm(name, load(path, device, trust=options.trust), prompts=options.prompts, reports=reports)
        for name, path in named
    ]
    about = {"models": [model.about for model in models], "most_bytes": MOST_BYTES}

    def reply(raw: bytes, phrase: str, word: int | None) -> dict[str, Any]:
        return answer(models, raw, phrase, word)

    with Server(Page(about, reply), options.port) as server:
        signal.signal(signal.SIGTERM, _end)
        print(server.address)
        print("Open this address in a browser on this machine. Ctrl-C ends it. Not for clinical use.", flush=True)
        try:
            server.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            server.page.close()  # a thread within torch aborts the process, if Python ends under it
            print("closed", flush=True)


def _end(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _named(argument: str) -> tuple[str, str]:
    """The name and the path of an argument ``[NAME=]RUN``. Without a name it is the last part of the path."""
    name, _, path = argument.partition("=")
    if path and not Path(argument).exists():
        return name, path
    return Path(argument).name or argument, argument
