"""Prompt sets for zero-shot classification: YAML files, shipped (``prompt_sets/``) or the user's own.

A binary set asks of each finding whether it is there::

    name: rsna
    version: 1
    source: where the wording is from
    findings:
      Pneumonia:
        positive: [Findings suggesting pneumonia.]
        negative: [No evidence of pneumonia.]

An entry such as "Abnormal" may have no label of its own in the data set. With ``any_of: [A, B]`` it is positive where any
of these findings is labelled 1.

A multi-class set asks which of several classes it is. It has ``classes`` in place of ``findings``. Each class has
``prompts: [...]`` or ``combine: [[...], [...]]``. The latter is a list of phrases for each place in the sentence, and every
combination of them is a prompt.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from diptych.errors import ConfigError, shown
from diptych.escaping import one_line
from diptych.plain import read_yaml

__all__ = ["Entry", "PromptSet", "label_columns", "load_prompts", "shipped_prompts"]

_SET_KEYS = ("name", "version", "source", "findings", "classes")
_MOST_PROMPTS = 10_000
_ENTRY_KEYS = {"findings": ("positive", "negative", "any_of"), "classes": ("prompts", "combine", "any_of")}


@dataclass(frozen=True)
class Entry:
    """A finding or class with its prompts."""

    name: str
    positive: tuple[str, ...]
    """Prompts that say it is there."""
    negative: tuple[str, ...] = ()
    """Prompts that say it is not there. Empty in a multi-class set."""
    any_of: tuple[str, ...] = ()
    """Findings any of which makes the entry positive, where the data set does not label ``name`` itself."""


@dataclass(frozen=True)
class PromptSet:
    """A validated prompt set."""

    name: str
    version: str
    source: str
    kind: Literal["binary", "multiclass"]
    entries: tuple[Entry, ...]

    @property
    def facts(self) -> dict[str, str]:
        """Its name, version and hash, for ``results.json``."""
        return {"prompts": f"{self.name} {self.version}", "prompts_hash": self.hash}

    @property
    def hash(self) -> str:
        """Sixteen hexadecimal digits that change with any name, prompt or rule, and with nothing else."""
        content = [self.kind, [[entry.name, entry.positive, entry.negative, entry.any_of] for entry in self.entries]]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def shipped_prompts() -> list[str]:
    """Names of the prompt sets that come with the package.

    >>> "rsna" in shipped_prompts()
    True
    """
    folder = resources.files("diptych.evaluation") / "prompt_sets"
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def load_prompts(prompts: str) -> PromptSet:
    """Read a prompt set, by name or path.

    >>> load_prompts("rsna").entries[0].name
    'Pneumonia'

    Args:
        prompts: name of a shipped set, or path of a YAML file. A path has a ``/``, or ends in .yaml or .yml.

    Raises:
        ConfigError: there is no such set, or the file is none. The message names the file and the key.
    """
    if "/" in prompts or prompts.endswith((".yaml", ".yml")):
        where, path = prompts, Path(prompts).expanduser()
        if not path.is_file():
            raise ConfigError(f"prompts: there is no file '{prompts}'; shipped sets are {', '.join(shipped_prompts())}")
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"prompts: '{where}' cannot be read ({one_line(str(error))}); give a YAML file") from None
    else:
        known = shipped_prompts()
        if prompts not in known:
            near = difflib.get_close_matches(prompts.lower(), known, n=len(known), cutoff=0.0)
            raise ConfigError(
                f"prompts: no prompt set is called '{prompts}'; shipped are {', '.join(near)}; or give a path"
            )
        where = f"{prompts}.yaml"
        text = (resources.files("diptych.evaluation") / "prompt_sets" / where).read_text(encoding="utf-8")
    return _parse(read_yaml(text, f"prompts: '{where}'"), where)


def label_columns(
    prompts: PromptSet, findings: Sequence[str], evaluator: str, partly: bool = False
) -> dict[Entry, list[int]]:
    """The columns of a data set's labels that answer each entry. Entries without such a column are left out.

    >>> list(label_columns(load_prompts("rsna"), ["Edema", "Pneumonia"], "zero_shot").values())
    [[1]]

    Args:
        prompts: the prompt set.
        findings: findings of the data set, in the order of its labels.
        evaluator: name of the evaluator, for messages.
        partly: whether some of the classes of a multi-class set are enough.

    Raises:
        ConfigError: the data set labels none of the findings, or not every class.
    """
    columns = {}
    for entry in prompts.entries:
        names = [entry.name] if entry.name in findings else [name for name in entry.any_of if name in findings]
        if names:
            columns[entry] = [list(findings).index(name) for name in names]
    if not columns or (prompts.kind == "multiclass" and not partly and len(columns) < len(prompts.entries)):
        entries = ", ".join(entry.name for entry in prompts.entries)
        raise ConfigError(
            f"{evaluator}: prompt set '{prompts.name}' asks for {entries}; the data set labels "
            f"{', '.join(findings)}; choose another prompt set, or rename its entries to the data set's findings"
        )
    return columns


def _parse(data: object, where: str) -> PromptSet:
    top = _mapping(data, _SET_KEYS, where)
    for key in ("name", "version", "source"):
        value = top.get(key)
        long = isinstance(value, int) and abs(value) > 2**63
        if long or not isinstance(value, str | int | float) or not str(value).strip():
            raise ConfigError(f"prompts: '{where}' has no '{key}'; add a line '{key}: ...'")
    kinds = [key for key in _ENTRY_KEYS if key in top]
    if len(kinds) != 1:
        raise ConfigError(f"prompts: '{where}' must have either 'findings' (binary) or 'classes' (multi-class)")
    kind = kinds[0]
    if not isinstance(top[kind], Mapping) or not top[kind]:
        raise ConfigError(f"prompts: '{where}': '{kind}' must map names to prompts and is {_show(top[kind])}")
    entries = tuple(_entry(name, value, kind, where) for name, value in top[kind].items())
    if kind == "classes" and len(entries) < 2:
        raise ConfigError(f"prompts: '{where}': 'classes' needs at least two classes and has {len(entries)}")
    return PromptSet(
        str(top["name"]),
        str(top["version"]),
        str(top["source"]),
        "binary" if kind == "findings" else "multiclass",
        entries,
    )


def _entry(name: object, value: object, kind: str, where: str) -> Entry:
    if not isinstance(name, str):
        raise ConfigError(f"prompts: '{where}': the name {_show(name)} in '{kind}' is no text; put it in quotes")
    at = f"{where}: {kind}.{name}"
    keys = _mapping(value, _ENTRY_KEYS[kind], at)
    any_of = _texts(keys["any_of"], f"{at}.any_of") if "any_of" in keys else ()
    if kind == "findings":
        positive, negative = (_texts(keys.get(key), f"{at}.{key}") for key in ("positive", "negative"))
        return Entry(name, positive, negative, any_of)
    if ("prompts" in keys) == ("combine" in keys):
        raise ConfigError(f"prompts: '{at}' must have either 'prompts' or 'combine'")
    if "prompts" in keys:
        return Entry(name, _texts(keys["prompts"], f"{at}.prompts"), (), any_of)
    places = keys["combine"]
    if not isinstance(places, list) or not places:
        raise ConfigError(f"prompts: '{at}.combine' must be a list of lists and is {_show(places)}")
    lists = [_texts(place, f"{at}.combine", empty=True) for place in places]
    if (number := math.prod(map(len, lists))) > _MOST_PROMPTS:
        raise ConfigError(f"prompts: '{at}.combine' makes {number:,} prompts; give at most {_MOST_PROMPTS:,}")
    phrases = [" ".join(" ".join(words).split()) for words in itertools.product(*lists)]
    return Entry(name, _texts(phrases, f"{at}.combine"), (), any_of)


def _mapping(value: object, known: tuple[str, ...], where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"prompts: '{where}' must have the keys {', '.join(known)} and is {_show(value)}")
    for key in value:
        if key not in known:
            raise ConfigError(f"prompts: '{where}' has the unknown key '{key}'; known are {', '.join(known)}")
    return value


def _texts(value: object, where: str, empty: bool = False) -> tuple[str, ...]:
    """A list of different texts. If ``empty`` is true, one of them may be the empty text."""
    if not isinstance(value, list) or not value:
        raise ConfigError(f"prompts: '{where}' must be a list of at least one text and is {_show(value)}")
    for text in value:
        if not isinstance(text, str) or (not text.strip() and not empty):
            raise ConfigError(
                f"prompts: '{where}' holds {_show(text)} where a text is expected (quote it if it is one)"
            )
    if twice := [text for text, number in Counter(value).items() if number > 1]:
        raise ConfigError(f"prompts: '{where}' holds {_show(twice[0])} twice; delete one")
    return tuple(value)


def _show(value: object) -> str:
    return "missing or empty" if value is None else shown(value)
