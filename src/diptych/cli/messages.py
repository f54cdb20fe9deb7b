"""The messages of the command: errors in one line, and Lightning's output without lines that nobody can use."""

from __future__ import annotations

import ast
import json
import logging
import os
import re
import sys
import warnings
from argparse import HelpFormatter
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import torch
from lightning.pytorch.cli import LightningArgumentParser

from diptych.cli.help import GROUPS, Help
from diptych.errors import ConfigError, DiptychError
from diptych.plugins import nearest

__all__ = ["Parser", "is_restoring", "lightning_message", "own_message", "tidy_console", "trainer_message"]

_UNUSABLE = (
    "litlogger",  # adverts
    "litmodels",
    "💡",
    "Tip:",
    "`weights_only` was not set",  # it is about saving, where a user cannot set it
    "TPU available",
    "HPU available",
    "IPU available",
    "Trainer already configured with model summary callbacks",  # diptych's
)
"""Parts of Lightning's lines that nobody can act on."""

_IGNORED = (
    "does not have many workers",
    "Found .* module.* in eval mode",
    "The number of training batches .* is smaller than the logging interval",
    "treespec, LeafSpec",
    "on epoch level in distributed setting",  # evaluators synchronise
    "Checkpoint directory .* exists and is not empty",  # every resumed run
    "Detected pickle protocol",  # the error that follows is clearer
)
"""Warnings about choices that diptych makes on purpose."""

_PLAIN = (
    (r"^`Trainer\.fit` stopped: `(\w+)=(\d+)` reached\.$", r"training ends: trainer.\1 is \2"),
    (
        r"^GPU available but not used\..*",
        "there is a GPU, and it is not used; add -c experiments/machine/gpu.yaml (or --trainer.accelerator gpu)",
    ),
    (r"^`max_epochs` was not set\. Setting it to (\d+) epochs\..*", r"trainer.max_epochs is not given: \1 epochs"),
)
"""Patterns of Lightning's messages, and the words in their place."""

_LOGGERS = (
    "lightning.fabric.utilities.rank_zero",
    "lightning.pytorch",
    "lightning.pytorch.trainer.connectors.checkpoint_connector",
    "lightning.pytorch.utilities.rank_zero",
)


def _plain_words(text: str) -> str:
    for theirs, ours in _PLAIN:
        text = re.sub(theirs, ours, text)
    return text


class _PlainFilter(logging.Filter):
    """Drops log records that nobody can use, and words the others plainly."""

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        record.msg, record.args = _plain_words(text), ()
        return not any(part in text for part in _UNUSABLE)


_PLAIN_FILTER = _PlainFilter()


class _ToStderr(logging.Handler):
    """Writes to the standard error of the moment. So a line stands above the progress bar, not in it."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)


_TO_STDERR = _ToStderr()


def _one_line_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning as one line. It names the package, unless that is Lightning or diptych."""
    _, installed, path = filename.rpartition("site-packages/")
    package = path.partition("/")[0] if installed else ""
    source = f" ({package})" if package not in {"", "diptych", "lightning"} else ""
    return f"warning{source}: {_plain_words(' '.join(str(message).split()))}\n"


def tidy_console() -> None:
    """Drop console lines that nobody can use, and print the others plainly. Errors and warnings that matter stay."""
    for text in _IGNORED:
        warnings.filterwarnings("ignore", message=f".*{text}.*")
    if "SLURM_JOB_ID" not in os.environ:  # in a SLURM job, srun was forgotten
        warnings.filterwarnings("ignore", message=".*`srun` command is available.*")
    warnings.formatwarning = _one_line_warning
    for name in _LOGGERS:  # a logger's filter does not see the records of its children
        logging.getLogger(name).addFilter(_PLAIN_FILTER)
    for name in ("lightning.fabric", "lightning.pytorch"):
        logger = logging.getLogger(name)
        for handler in [one for one in logger.handlers if type(one) is logging.StreamHandler]:  # Lightning's own
            logger.removeHandler(handler)
            logger.addHandler(_TO_STDERR)


class Parser(LightningArgumentParser):
    """A parser whose errors are one line, without the usage before it."""

    command = "fit"

    def parse_args(self, args: Sequence[str] | None = None, **options: Any) -> Any:  # type: ignore[override]  # options: all others
        """Parse arguments. jsonargparse gives the parser of an inner class Python's ``None``, which becomes YAML's null."""
        if args is not None and not self.exit_on_error:
            args = [_as_yaml(word) for word in args]
        return super().parse_args(args, **options)

    def format_help(self, formatter: HelpFormatter | None = None) -> str:
        """The help, with diptych's groups of options first and the trainer's last. Each group has a title."""
        self.formatter_class = Help
        names = {id(group): name for name, group in (self.groups or {}).items()}
        if "trainer" in names.values():  # the command's own help, not that of one class
            names[id(self._optionals)] = ""
            for group in self._action_groups:
                group.title = GROUPS.get(names.get(id(group), ""), group.title)
                if any(action.dest == "ckpt_path" for action in group._group_actions):
                    group.title, names[id(group)] = "checkpoint to go on from", "ckpt_path"
            order = ["", "ckpt_path", *list(GROUPS)[:-1], "others", "trainer"]
            places = {group: order.index(name if name in order else "others") for group, name in names.items()}
            self._action_groups = sorted(
                self._action_groups, key=lambda group: places.get(id(group), order.index("others"))
            )
        return super().format_help(formatter)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise an error of jsonargparse as one line. If an error of diptych is among its causes, that one is the clearest."""
        if not (clear := own_message(ex)):
            clear = self._clear(message, ex)
            if self.exit_on_error:  # the inner parser of one class has no help of its own
                clear += f" (`diptych {self.command} --help` lists every option)"
        raise ConfigError(clear) from None

    def _clear(self, message: str, ex: Exception | None) -> str:
        parser = getattr(ex, "subcommand_parser", None) or self
        of = "" if self.exit_on_error else f" of {next(iter(self.groups or {}), 'it')}"
        message = " ".join(message.split())
        if match := re.search(r"(?:Group '(.+?)' does not accept option|accept option|^Option) '(.+?)'", message):
            key = ".".join(part for part in match.groups() if part)
        elif match := re.match(r"unrecognized arguments: -*([^ =]+)", message):
            key = match[1]
        elif match := re.match(r'Parser key "(.+?)": (.*)', message):
            return f"option '{match[1]}'{of}{_plain(match[2])}"
        elif match := re.match(r"the following arguments are required: (.*)", message):
            missing = match[1].replace(f"{self.command}.", "")
            return f"missing: {missing}{of}; give a recipe that has it (-c FILE), or the option"
        else:
            return message.replace('"<unicode string>"', "a file given with -c")
        known = [dest for action in parser._actions if (dest := action.dest) != "config" and not dest.endswith("help")]
        return f"unknown option '{key}'{of}; nearest: {', '.join(nearest(key, known)[:5])}"


def _as_yaml(word: str) -> str:
    """``--key=value`` with the value as YAML writes it, where it is Python's None, a list or a dictionary.

    >>> _as_yaml("--model.head=None")
    '--model.head=null'
    """
    key, equals, value = word.partition("=")
    try:
        parsed = ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return word
    return f"{key}={json.dumps(parsed)}" if equals and (parsed is None or isinstance(parsed, list | dict)) else word


def _plain(reason: str) -> str:
    """A shorter wording of jsonargparse's message on a type or a value."""
    value = ""
    if match := re.match(r"(.*?)[. ]*(?:Got value|Given value type: .* Given value): (.*)", reason):
        reason, value = match.groups()
        class_path = re.match(r"Namespace\(class_path='(.+?)'", value)
        value = f" is '{(class_path[1] if class_path else value)[:80]}'"
    reason = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", reason)
    reason = re.sub(r"(?:typing\.)?Literal\[(.*?)\]", r"\1", reason).replace("NoneType", "null")
    reason = re.sub(
        r"^Does not validate against any of the Union subtypes Subtypes: \[(.*?)\].*", r"Expected \1", reason
    )
    reason = re.sub(r"^.*Type .* expects a function or a callable class: ", "", reason)
    return f"{value}: {reason[:1].lower()}{reason[1:300]}".replace("expected a ", "expected ")


def own_message(error: BaseException | None) -> str | None:
    """The message of the first error of diptych among the causes of an error, or None."""
    while error is not None:
        if isinstance(error, DiptychError):
            return str(error)
        error = error.__cause__ or error.__context__
    return None


def lightning_message(error: BaseException) -> str | None:
    """One line that says why a class of Lightning, such as a logger, could not be made. None if the error is another."""
    text = str(error)
    classes = re.findall(r"class_path='lightning(?:\.\w+)*\.(\w+)'", text)
    if not classes:
        return None
    if match := re.search(r"Requirement '([\w.-]+)[^']*' not met", text):
        before = re.findall(r"class_path '(?:\w+\.)*(\w+)'", text[: match.start()])
        name = (before or classes[:1])[-1]
        return f"{name} needs the package {match[1]}, which is not installed: pip install {match[1]}"
    match = re.search(r"Errors:\s+- (.*?)\s+- Expected ", text, re.DOTALL)
    return None if match is None else f"{classes[0]}: {' '.join(match[1].split())[:400]}"


def trainer_message(text: str, config: Mapping[str, Any]) -> str:
    """One line that says why Lightning refuses a trainer. It has the remedy where the machine lacks a device."""
    text = " ".join(text.split())
    if re.search("No supported gpu backend|can not run on your system", text):
        accelerator = config.get("accelerator")
        built = torch.version.cuda or torch.version.hip
        build = "" if built else f"; PyTorch {torch.__version__} is built for CPUs only"
        return (
            f"accelerator is '{accelerator}', but PyTorch sees none here{build}; to train without it add "
            "-c experiments/machine/cpu.yaml after the other recipes"
        )
    if match := re.search(r"You requested gpu: (\[.*?\]) But your machine only has: (\[.*?\])", text):
        return (
            f"devices asks for GPUs {match[1]}, but PyTorch sees {match[2]} here; give trainer.devices: auto, or fewer"
        )
    return text


def is_restoring(error: BaseException) -> bool:
    """Whether an error was raised while Lightning loaded the state of a checkpoint."""
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if code.co_filename.endswith("checkpoint_connector.py") and code.co_name.lstrip("_").startswith(("re", "load")):
            return True
        trace = trace.tb_next
    return False
