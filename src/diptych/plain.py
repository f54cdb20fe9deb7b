"""Plain values of a file from elsewhere: null, booleans, numbers, texts, lists and mappings, within limits."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

import yaml

from diptych.errors import ConfigError, shown
from diptych.escaping import one_line

__all__ = ["check_plain", "read_json", "read_yaml"]

MOST_VALUES = 20_000
"""Values of a stored configuration in all."""
DEEPEST = 24
"""How deep lists and mappings may lie within each other."""
LONGEST = 100_000
"""Letters of a text."""
LARGEST = 2**24
"""Largest whole number of an architecture. Some of these numbers become lengths of lists."""


def check_plain(value: object, where: str, most: int = MOST_VALUES) -> None:
    """Refuse a value that is not plain, holds one that is not, or is too large.

    Args:
        value: what a file holds.
        where: the place, for messages.
        most: values in all.

    Raises:
        ConfigError: the message names the place.
    """
    left = most

    def check(item: object, at: str, depth: int) -> None:
        nonlocal left
        left -= 1
        if left < 0 or depth > DEEPEST:
            raise ConfigError(
                f"{where}: refused: more than {most:,} values or {DEEPEST} levels, as no run of diptych writes"
            )
        if isinstance(item, dict):
            for key, inner in item.items():
                if not isinstance(key, str) or len(key) > 200 or not _encodable(key):
                    raise ConfigError(f"{at}: refused: the key {shown(key)} is no short text")
                check(inner, f"{at}.{one_line(key)}", depth + 1)
        elif isinstance(item, list | tuple):
            for inner in item:
                check(inner, at, depth + 1)
        elif isinstance(item, str):
            if len(item) > LONGEST or not _encodable(item):
                raise ConfigError(f"{at}: refused: a text of {len(item):,} letters; Unicode, at most {LONGEST:,}")
        elif isinstance(item, int):
            if abs(item) > 2**63:
                raise ConfigError(f"{at}: refused: a number of more than 64 bits")
        elif item is not None and type(item) is not float:
            raise ConfigError(f"{at}: refused: holds a {type(item).__name__}, which is no plain value")

    check(value, where, 0)


def read_json(text: object, where: str, *, longest: int = LONGEST, largest: int = LARGEST) -> dict[str, Any]:
    """The mapping that a stored JSON text holds.

    >>> read_json('{"depth": 2}', "here")
    {'depth': 2}

    Args:
        text: what is stored.
        where: the place, for messages.
        longest: most letters of the text.
        largest: largest whole number in it.

    Raises:
        ConfigError: it is no JSON, no mapping, or too large. The message names the place.
    """
    if not isinstance(text, str) or len(text) > longest:
        kind = f"a text of {len(text):,} letters" if isinstance(text, str) else shown(text)
        raise ConfigError(f"{where}: refused: it is {kind}, and must be JSON of at most {longest:,} letters")
    try:
        content = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: refused: it is not JSON ({shown(str(error))})") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{where}: refused: it is {shown(content)}, and must be a mapping")
    check_plain(content, where)
    _check_numbers(content, where, largest)
    return content


def read_yaml(text: str, where: str) -> Any:
    """The plain values of a YAML text. With its aliases (``*name``) written out, it must not be too large.

    >>> read_yaml("depth: [1, 2]", "here")
    {'depth': [1, 2]}

    Raises:
        ConfigError: it is no YAML, or too large. The message names the place.
    """
    if len(text) > 10 * LONGEST:
        raise ConfigError(f"{where}: refused: {len(text):,} letters; the most is {10 * LONGEST:,}")
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _count_nodes(node, {}) > MOST_VALUES:
            raise ConfigError(f"{where}: refused: its aliases (*name) stand for more than {MOST_VALUES:,} values")
        return loader.construct_document(node)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: is not YAML: {one_line(str(error))[:300]}") from None


def _count_nodes(node: yaml.Node, sizes: dict[int, int]) -> int:
    """How many nodes there are if each alias is a copy. An alias within itself counts as more than are allowed."""
    if id(node) not in sizes:
        sizes[id(node)] = MOST_VALUES + 1
        inner = node.value if isinstance(node, yaml.SequenceNode) else []
        if isinstance(node, yaml.MappingNode):
            inner = [part for pair in node.value for part in pair]
        sizes[id(node)] = 1 + sum(_count_nodes(part, sizes) for part in inner)
    return sizes[id(node)]


def _encodable(text: str) -> bool:
    """Whether the text can be printed: it has no half of a surrogate pair."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text) if not text.isascii() else True


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _check_numbers(value: object, where: str, largest: int) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            _check_numbers(item, f"{where}.{key}", largest)
    elif isinstance(value, list):
        for item in value:
            _check_numbers(item, where, largest)
    elif isinstance(value, int | float) and (abs(value) > largest if isinstance(value, int) else math.isinf(value)):
        raise ConfigError(f"{where}: refused: it is {shown(value)}; whole numbers are at most {largest:,}")
