"""The ``diptych`` command. Commands that need no torch do not import it."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Sequence

from diptych.errors import ConfigError, DiptychError
from diptych.escaping import one_line
from diptych.files import WRITE_ERRORS

__all__ = ["main"]

_LISTS = {
    "heads": "diptych.heads",
    "datamodules": "diptych.datamodules",
    "tasks": "diptych.tasks",
    "evaluators": "diptych.evaluators",
}
"""Commands that print a catalogue."""
_COMMANDS = ("fit", "validate", "test", *_LISTS)

_USAGE = """\
usage: diptych COMMAND [options]

train and test (each has its own --help):
  fit          train:  diptych fit -c experiments/pretrain/phantom.yaml --run runs/first
  validate     evaluate on the validation split
  test         evaluate on the test split:  diptych test -c runs/first/config.yaml --run runs/first --ckpt_path best

look around:
  heads        the alignment heads that installed packages offer   [--json]
  datamodules  the data sets they offer                            [--json]
  tasks        the downstream tasks they offer                     [--json]
  evaluators   the evaluators they offer                           [--json]
{commands}
options:
  --version    print the version
  -h, --help   print this
"""


def _list(group: str, arguments: Sequence[str]) -> None:
    """Print a catalogue as a table, or as JSON."""
    from diptych.plugins import describe

    unknown = [argument for argument in arguments if argument != "--json"]
    if unknown:
        raise ConfigError(f"unknown option '{unknown[0]}'; there is only --json")
    rows = describe(group)
    if arguments:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        print(f"{row['name']:16} {row['class']}  ({row['distribution']})")
        print(f"{'':16} {row.get('error') or row.get('paper') or row.get('summary', '')}")
        for key in ("needs", "gathers", "holds"):
            if row.get(key):
                print(f"{'':16} {key}: {', '.join(row[key])}")


def _dispatch(arguments: list[str]) -> None:
    from diptych.plugins import COMMANDS, nearest, plugins

    command = arguments[0] if arguments else "--help"
    rest = arguments[1:]
    if command in {"--help", "-h", "help"}:
        commands = "".join(
            f"  {plugin.name:12} {plugin.summary or 'from ' + plugin.distribution}\n" for plugin in plugins(COMMANDS)
        )
        print(_USAGE.format(commands="\nmore commands:\n" + commands))
    elif command == "--version":
        from diptych.version import __version__

        print(f"diptych {__version__}")
    elif command in _LISTS:
        _list(_LISTS[command], rest)
    elif command in {"fit", "validate", "test"}:
        from diptych.cli.run import run

        run(command)
    else:
        others = {plugin.name: plugin for plugin in plugins(COMMANDS)}
        if command not in others:
            known = nearest(command, [*_COMMANDS, *others])
            raise ConfigError(f"unknown command '{command}'; known, nearest first: {', '.join(known)}")
        run_command: Callable[[Sequence[str]], None] = others[command].load()
        run_command(rest)


def _one_line(error: DiptychError) -> str:
    """The message of an error, in one line. An error from a loader's worker comes with a traceback, which is dropped."""
    text = str(error)
    return one_line(text.rsplit(f"{type(error).__name__}: ", 1)[-1] if "Original Traceback" in text else text)


def main() -> None:
    """Entry point. Errors a user can cause are printed in one line, with exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # the terminal's encoding may lack a letter of a name
    try:
        _dispatch(sys.argv[1:])
    except DiptychError as error:
        print(f"diptych: error: {_one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # `diptych heads | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno not in WRITE_ERRORS:
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(
            f"diptych: error: {where}cannot be read or written ({error.strerror}); make room or give rights, and start again",
            file=sys.stderr,
        )
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
