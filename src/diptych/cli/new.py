"""``diptych new-head`` and its like: write an installable package to begin with.

The templates are real files in the folder ``templates``, a package called ``mine``. Its name is replaced throughout.
"""

from __future__ import annotations

import argparse
import keyword
import re
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from diptych.errors import ConfigError
from diptych.files import replace_text
from diptych.names import PUBLIC
from diptych.plugins import DATAMODULES, EVALUATORS, HEADS, TASKS, plugins

__all__ = ["camel", "new_dataset", "new_evaluator", "new_head", "new_task", "renamed"]

_TEMPLATES = Path(__file__).resolve().parent.parent / "templates"
_KINDS = {"head": HEADS, "dataset": DATAMODULES, "task": TASKS, "evaluator": EVALUATORS}


def new_head(arguments: Sequence[str]) -> None:
    """``new-head NAME``: write an installable package with an alignment head, its test and a recipe."""
    _new("head", arguments)


def new_dataset(arguments: Sequence[str]) -> None:
    """``new-dataset NAME``: write an installable package with a data set, its test and a recipe."""
    _new("dataset", arguments)


def new_task(arguments: Sequence[str]) -> None:
    """``new-task NAME``: write an installable package with a downstream task, its test and a recipe."""
    _new("task", arguments)


def new_evaluator(arguments: Sequence[str]) -> None:
    """``new-evaluator NAME``: write an installable package with an evaluator, its test and a recipe."""
    _new("evaluator", arguments)


def camel(name: str) -> str:
    """The class name that goes with a module name.

    >>> camel("word_margin")
    'WordMargin'
    """
    return "".join(part[:1].upper() + part[1:] for part in name.split("_"))


def renamed(text: str, name: str) -> str:
    """A text of a template with another name than ``mine``.

    >>> renamed("from mine import Mine, MineData  # test_mine, undermined", "word_margin")
    'from word_margin import WordMargin, WordMarginData  # test_word_margin, undermined'
    """
    text = re.sub(r"(?<![A-Za-z0-9])mine(?![A-Za-z0-9])", name, text)
    return re.sub(r"\bMine(?=Data\b|\b)", camel(name), text)


def _check_name(kind: str, name: str) -> None:
    """Refuse a name that cannot be a module's, or that something has.

    Raises:
        ConfigError: so it is.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) or keyword.iskeyword(name):
        raise ConfigError(
            f"new-{kind}: '{name}' cannot be the name of a module; use lower-case letters, digits and single underscores, a "
            "letter first, and no word of Python's, as word_margin"
        )
    for group in _KINDS.values():
        for plugin in plugins(group):
            if plugin.name == name or plugin.class_name == camel(name):
                owner = f"{plugin.distribution} has {plugin.name} ({plugin.path})"
                raise ConfigError(f"new-{kind}: '{name}' is taken: {owner}; choose another name")
    if camel(name) in PUBLIC:
        raise ConfigError(f"new-{kind}: '{name}' is taken: diptych has a class {camel(name)}; choose another name")
    if name in sys.stdlib_module_names or find_spec(name) is not None:
        raise ConfigError(f"new-{kind}: '{name}' is taken: there is a module of this name; choose another name")
    template = (_TEMPLATES / kind / "mine.py").read_text(encoding="utf-8")
    if re.search(rf"\b(?:{camel(name)}|{name})\b", re.sub(r'""".*?"""', "", template, flags=re.S)):
        raise ConfigError(f"new-{kind}: '{name}' is taken: the template uses this name; choose another name")


def _new(kind: str, arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        f"diptych new-{kind}",
        description=f"Write an installable package with a {kind}: code, test, recipe, README. It works at once.",
    )
    parser.add_argument("name", help="of the module, the entry point and the folder, as word_margin")
    parser.add_argument(
        "--out", type=Path, default=Path(), metavar="DIR", help="where the folder is put (default: here)"
    )
    options = parser.parse_args(arguments)
    _check_name(kind, options.name)
    folder: Path = options.out / options.name
    if folder.exists():
        raise ConfigError(f"new-{kind}: {folder} is there already; choose another name or --out, or remove it")
    for file in sorted((_TEMPLATES / kind).iterdir()):
        if file.is_file():
            replace_text(
                folder / renamed(file.name, options.name), renamed(file.read_text(encoding="utf-8"), options.name)
            )
            print(folder / renamed(file.name, options.name))
    print(
        f"next: pip install -e {folder} --no-build-isolation, python -m pytest {folder}; {folder / 'README.md'} goes on"
    )
