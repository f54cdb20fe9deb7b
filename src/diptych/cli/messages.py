"""What the command says to people: errors in one line, and Lightning's console without what nobody can use."""

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

__all__ = ["Parser", "own_message", "refused_by_lightning", "tidy_console", "trainer_message"]

_UNUSABLE = (
    "litlogger",  # adverts
    "litmodels",
    "💡",
    "Tip:",
    "`weights_only` was not set",  # about saving, where it has no meaning for a user
    "TPU available",
    "HPU available",
    "IPU available",
    "Trainer already configured with model summary callbacks",  # ours
)
"""Parts of Lightning's lines that nobody can act on."""

_IGNORED = (
    "does not have many workers",
    "Found .* module.* in eval mode",
    "The number of training batches .* is smaller than the logging interval",
    "treespec, LeafSpec",
    "on epoch level in distributed setting",  # evaluators have synchronised
    "Checkpoint directory .* exists and is not empty",  # every resumed run
    "Detected pickle protocol",  # what follows says it better
)
"""Warnings about choices that are made on purpose here."""

_PLAIN = (
    (r"^`Trainer\.fit` stopped: `(\w+)=(\d+)` reached\.$", r"training ends: trainer.\1 is \2"),
    (
        r"^GPU available but not used\..*",
        "there is a GPU, and it is not used; add -c experiments/machine/gpu.yaml (or --trainer.accelerator gpu)",
    ),
    (r"^`max_epochs` was not set\. Setting it to (\d+) epochs\..*", r"trainer.max_epochs is not given: \1 epochs"),
)
"""Lightning's words, and ours."""


_SPEAKERS = (
    "lightning.fabric.utilities.rank_zero",
    "lightning.pytorch",
    "lightning.pytorch.trainer.connectors.checkpoint_connector",
    "lightning.pytorch.utilities.rank_zero",
)


def _plain_words(text: str) -> str:
    for theirs, ours in _PLAIN:
        text = re.sub(theirs, ours, text)
    return text


class _Readable(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        record.msg, record.args = _plain_words(text), ()
        return not any(part in text for part in _UNUSABLE)


_READABLE = _Readable()


class _ToStderr(logging.Handler):
    """Writes where standard error is now: above the progress bar while there is one, not into it."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)


_TO_STDERR = _ToStderr()


def _one_line_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning as one line, with the package it is from unless it is Lightning's or ours."""
    _, installed, path = filename.rpartition("site-packages/")
    package = path.partition("/")[0] if installed else ""
    source = f" ({package})" if package not in {"", "diptych", "lightning"} else ""
    return f"warning{source}: {_plain_words(' '.join(str(message).split()))}\n"


def tidy_console() -> None:
    """Leave out lines that nobody can use, and print the others plainly. Errors and warnings that matter stay."""
    for text in _IGNORED:
        warnings.filterwarnings("ignore", message=f".*{text}.*")
    if "SLURM_JOB_ID" not in os.environ:  # within a job it matters that srun was forgotten
        warnings.filterwarnings("ignore", message=".*`srun` command is available.*")
    warnings.formatwarning = _one_line_warning
    for name in _SPEAKERS:  # a logger's filter does not see what its children say
        logging.getLogger(name).addFilter(_READABLE)
    for name in ("lightning.fabric", "lightning.pytorch"):
        logger = logging.getLogger(name)
        for handler in [one for one in logger.handlers if type(one) is logging.StreamHandler]:  # Lightning's own
            logger.removeHandler(handler)
            logger.addHandler(_TO_STDERR)


class Parser(LightningArgumentParser):
    """One line that says what is wrong, not 57 lines of usage before it."""

    command = "fit"

    def parse_args(self, args: Sequence[str] | None = None, **options: Any) -> Any:  # type: ignore[override]  # as given
        """Parse; what jsonargparse hands on to the parser of an inner class is Python's ``None``, where YAML has null."""
        if args is not None and not self.exit_on_error:
            args = [_as_yaml(word) for word in args]
        return super().parse_args(args, **options)

    def format_help(self, formatter: HelpFormatter | None = None) -> str:
        """Our own groups of options first, the trainer's last, under titles that say what they are."""
        self.formatter_class = Help
        names = {id(group): name for name, group in (self.groups or {}).items()}
        if "trainer" in names.values():  # the command's own help, not that of one class
            names[id(self._optionals)] = ""
            for group in self._action_groups:
                group.title = GROUPS.get(names.get(id(group), ""), group.title)
                if any(action.dest == "ckpt_path" for action in group._group_actions):
                    group.title, names[id(group)] = "checkpoint to go on from", "ckpt_path"
            order = ["", "ckpt_path", *list(GROUPS)[:-1], "others", "trainer"]
            named = {place: name if name in order else "others" for place, name in names.items()}
            self._action_groups = sorted(
                self._action_groups, key=lambda group: order.index(named.get(id(group), "others"))
            )
        return super().format_help(formatter)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise what jsonargparse has to say. It wraps reasons in reasons; ours, if one is inside, is the clearest."""
        if not (clear := own_message(ex)):
            clear = self._clear(message, ex)
            if self.exit_on_error:  # not in the inner parser of one class, whose options the help does not list
                clear += f" (`diptych {self.command} --help` lists every option)"
        raise ConfigError(clear) from None

    def _clear(self, message: str, ex: Exception | None) -> str:
        parser = getattr(ex, "subcommand_parser", None) or self
        of = "" if self.exit_on_error else f" of {next(iter(self.groups or {}), 'it')}"
        message = " ".join(message.split())
        if found := re.search(r"(?:Group '(.+?)' does not accept option|accept option|^Option) '(.+?)'", message):
            key = ".".join(part for part in found.groups() if part)
        elif found := re.match(r"unrecognized arguments: -*([^ =]+)", message):
            key = found[1]
        elif found := re.match(r'Parser key "(.+?)": (.*)', message):
            return f"option '{found[1]}'{of}{_plain(found[2])}"
        elif found := re.match(r"the following arguments are required: (.*)", message):
            missing = found[1].replace(f"{self.command}.", "")
            return f"missing: {missing}{of}; give a recipe that has it (-c FILE), or the option"
        else:
            return message.replace('"<unicode string>"', "a file given with -c")
        known = [dest for action in parser._actions if (dest := action.dest) != "config" and not dest.endswith("help")]
        return f"unknown option '{key}'{of}; nearest: {', '.join(nearest(key, known)[:5])}"


def _as_yaml(word: str) -> str:
    """``--key=value`` where the value is Python's None, a list or a dictionary, as YAML reads it."""
    key, equals, value = word.partition("=")
    try:
        parsed = ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return word
    return f"{key}={json.dumps(parsed)}" if equals and (parsed is None or isinstance(parsed, list | dict)) else word


def _plain(reason: str) -> str:
    """What jsonargparse says of types and values, shorter."""
    value = ""
    if found := re.match(r"(.*?)[. ]*(?:Got value|Given value type: .* Given value): (.*)", reason):
        reason, value = found.groups()
        named = re.match(r"Namespace\(class_path='(.+?)'", value)
        value = f" is '{(named[1] if named else value)[:80]}'"
    reason = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", reason)
    reason = re.sub(r"(?:typing\.)?Literal\[(.*?)\]", r"\1", reason).replace("NoneType", "null")
    reason = re.sub(
        r"^Does not validate against any of the Union subtypes Subtypes: \[(.*?)\].*", r"Expected \1", reason
    )
    reason = re.sub(r"^.*Type .* expects a function or a callable class: ", "", reason)
    return f"{value}: {reason[:1].lower()}{reason[1:300]}".replace("expected a ", "expected ")


def own_message(error: BaseException | None) -> str | None:
    """The first message of this package among the causes of an error."""
    while error is not None:
        if isinstance(error, DiptychError):
            return str(error)
        error = error.__cause__ or error.__context__
    return None


def refused_by_lightning(error: BaseException) -> str | None:
    """One line for a class of Lightning (a logger, say) that could not be made, as of a package that is missing."""
    text = str(error)
    named = re.findall(r"class_path='lightning(?:\.\w+)*\.(\w+)'", text)
    if not named:
        return None
    if found := re.search(r"Requirement '([\w.-]+)[^']*' not met", text):
        wanting = re.findall(r"class_path '(?:\w+\.)*(\w+)'", text[: found.start()])
        who = wanting[-1] if wanting else named[0]
        return f"{who} needs the package {found[1]}, which is not installed: pip install {found[1]}"
    found = re.search(r"Errors:\s+- (.*?)\s+- Expected ", text, re.DOTALL)
    return None if found is None else f"{named[0]}: {' '.join(found[1].split())[:400]}"


def trainer_message(text: str, config: Mapping[str, Any]) -> str:
    """Why Lightning refuses a trainer, in one line with the remedy where a machine lacks what is asked for."""
    text = " ".join(text.split())
    if re.search("No supported gpu backend|can not run on your system", text):
        asked = config.get("accelerator")
        built = torch.version.cuda or torch.version.hip
        build = "" if built else f"; PyTorch {torch.__version__} is built for CPUs only"
        return (
            f"accelerator is '{asked}', but PyTorch sees none here{build}; to train without it add "
            "-c experiments/machine/cpu.yaml after the other recipes"
        )
    if found := re.search(r"You requested gpu: (\[.*?\]) But your machine only has: (\[.*?\])", text):
        return (
            f"devices asks for GPUs {found[1]}, but PyTorch sees {found[2]} here; give trainer.devices: auto, or fewer"
        )
    return text


def restoring(error: BaseException) -> bool:
    """Whether an error came up while Lightning took over the state of a checkpoint."""
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if code.co_filename.endswith("checkpoint_connector.py") and code.co_name.lstrip("_").startswith(("re", "load")):
            return True
        trace = trace.tb_next
    return False
