"""What the command says to people: errors in one line, and Lightning's console without what nobody can use."""

from __future__ import annotations

import ast
import json
import logging
import re
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser

from diptych.errors import ConfigError, DiptychError
from diptych.plugins import nearest

__all__ = ["Parser", "own_message"]

# Lightning's adverts, and warnings about choices that are made on purpose here.
warnings.filterwarnings("ignore", message=".*does not have many workers.*")
warnings.filterwarnings("ignore", message=".*Found .* module.* in eval mode.*")
warnings.filterwarnings("ignore", message=".*The number of training batches .* is smaller than the logging interval.*")
warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")
warnings.filterwarnings("ignore", message=".*on epoch level in distributed setting.*")  # evaluators have synchronised
warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")  # every resumed run
warnings.filterwarnings("ignore", message=".*Detected pickle protocol.*")  # what follows says it better


class _NoAdverts(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return not any(word in record.getMessage() for word in ("litlogger", "litmodels", "💡", "Tip:"))


for _name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch", "lightning.fabric.utilities.rank_zero"):
    logging.getLogger(_name).addFilter(_NoAdverts())


class Parser(LightningArgumentParser):
    """One line that says what is wrong, not 57 lines of usage before it."""

    command = "fit"

    def parse_args(self, args: Sequence[str] | None = None, **options: Any) -> Any:  # type: ignore[override]  # as given
        """Parse; what jsonargparse hands on to the parser of an inner class is Python's ``None``, where YAML has null."""
        if args is not None and not self.exit_on_error:
            args = [_as_yaml(word) for word in args]
        return super().parse_args(args, **options)

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
