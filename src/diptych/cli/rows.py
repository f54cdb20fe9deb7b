"""The models, tests and columns of a suite, read from YAML and checked."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from diptych.checks import check_choice
from diptych.cli.variants import read_mapping
from diptych.errors import ConfigError, shown
from diptych.plugins import PEERS, find
from diptych.results.wide import Column

__all__ = ["Model", "Suite", "Test", "read_suite"]

_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")
_PLACE = re.compile(r"\$\{(\w+)\}")
_SOURCES = ("run", "peer", "config", "image")


@dataclass(frozen=True)
class Model:
    """A row: where a model comes from.

    It is one of four: a run of ``diptych fit`` (``run``), a peer's files (``peer``), an untrained model (``config``), or an
    image tower alone (``image``).
    """

    name: str
    title: str
    run: Path | None = None
    """Folder of a run, or a checkpoint with its ``config.yaml`` in the folder above or beside it."""
    peer: str | None = None
    files: tuple[Path, ...] = ()
    tokenizer: str | None = None
    config: Path | None = None
    """A recipe with its ``model``. Its text tower must bring its own vocabulary, as those of the hub do."""
    image: Mapping[str, Any] | None = None
    """``class_path`` and ``init_args`` of a tower."""
    texts: bool = True
    """False for a peer or run whose texts are not to be tested, as one without a text tower."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of ``diptych test``, as ``data.loading.image_size``."""

    @property
    def whole(self) -> bool:
        """Whether it has texts too, so that it can be tested without training."""
        return self.texts and self.image is None

    def with_config(self, config: Path) -> Model:
        """The same with a recipe."""
        return replace(self, config=config)


@dataclass(frozen=True)
class Test:
    """A group of columns: what ``diptych test`` is called with."""

    name: str
    title: str
    configs: tuple[Path, ...]
    image: bool = False
    """Whether it takes the image tower alone, as a probe does."""
    models: tuple[str, ...] | None = None
    """Names of the models that take it. None for all that can: one without texts cannot take a test of texts."""
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Suite:
    """What a table is made of."""

    models: Sequence[Model]
    tests: Sequence[Test]
    columns: Sequence[Column]
    against: str | None = None

    def pairs(self) -> list[tuple[Model, Test]]:
        """Each model with each test that it takes."""
        pairs = [(model, test) for model in self.models for test in self.tests if test.image or model.whole]
        return [(model, test) for model, test in pairs if test.models is None or model.name in test.models]

    def with_models(self, models: Sequence[Model]) -> Suite:
        """The same with other models."""
        return replace(self, models=models)


def _filled(path: Path, value: Any, words: Mapping[str, str]) -> Any:
    """The same with every ``${NAME}`` of a text replaced."""
    if isinstance(value, dict):
        return {key: _filled(path, one, words) for key, one in value.items()}
    if isinstance(value, list):
        return [_filled(path, one, words) for one in value]
    if not isinstance(value, str):
        return value
    if lacking := [name for name in _PLACE.findall(value) if name not in words]:
        raise ConfigError(f"{path}: {value}: {lacking[0]} is not set; add --set {lacking[0]}=VALUE")
    return _PLACE.sub(lambda match: words[match[1]], value)


def read_suite(path: Path, words: Mapping[str, str] | None = None, only: Sequence[str] | None = None) -> Suite:
    """Read a suite. Relative paths in it are seen from the folder that the command is called in.

    Args:
        path: the YAML file.
        words: what stands for each ``${NAME}`` in it.
        only: names of the models that are read. None reads all.

    Raises:
        ConfigError: something in it is wrong. The message names the file, the key and the remedy.
    """
    content = read_mapping(path)
    _keys(f"{path}", content, {"models", "tests", "columns"}, {"against"})
    rows = _mapping(path, content, "models")
    for name in only or ():
        check_choice(f"--models: {path}: models", name, list(rows))
    content = _filled(
        path, {**content, "models": {n: row for n, row in rows.items() if only is None or n in only}}, words or {}
    )
    models = [_model(f"{path}: models.{name}", name, entry) for name, entry in content["models"].items()]
    names = [model.name for model in models]
    tests = [
        _test(f"{path}: tests.{key}", key, entry, list(rows)) for key, entry in _mapping(path, content, "tests").items()
    ]
    titles = {test.name: test.title for test in tests}
    entries = content["columns"]
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"{path}: columns is {shown(entries)}; write a list of {{test: NAME, metric: NAME}}")
    columns = [_column(f"{path}: columns[{i}]", entry, titles) for i, entry in enumerate(entries)]
    taken = {test.name for _, test in Suite(models, tests, columns).pairs()}
    if not taken & {column.test for column in columns}:
        raise ConfigError(
            f"{path}: no column has a test that {', '.join(names)} takes; choose other models, or other tests"
        )
    against = content.get("against")
    if against is not None:
        check_choice(f"{path}: against", against, list(rows))
        against = against if against in names else None
    return Suite(models, tests, [column for column in columns if column.test in taken], against)


def _mapping(path: Path, content: Mapping[str, Any], key: str) -> dict[str, Any]:
    entries = content[key]
    if not isinstance(entries, dict) or not entries:
        raise ConfigError(f"{path}: {key} is {shown(entries)}; write a mapping of names")
    for name in entries:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ConfigError(f"{path}: {key}: {shown(name)} cannot name a folder; use letters, digits, and _ . + -")
    return entries


def _keys(where: str, entry: Any, needed: set[str], others: set[str]) -> None:
    if not isinstance(entry, dict):
        raise ConfigError(f"{where} is {shown(entry)}; write a mapping with {', '.join(sorted(needed | others))}")
    if unknown := [key for key in entry if key not in needed | others]:
        raise ConfigError(f"{where}: {shown(unknown[0])} is unknown; there are {', '.join(sorted(needed | others))}")
    if lacking := sorted(needed - entry.keys()):
        raise ConfigError(f"{where} has no {lacking[0]}; add it")


def _options(where: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    options = entry.get("options") or {}
    if not isinstance(options, dict) or not all(isinstance(key, str) for key in options):
        raise ConfigError(f"{where}: options is {shown(options)}; write a mapping as {{data.root: DIR}}")
    for key in options:
        if key.split(".")[0] in ("run", "ckpt_path", "config", "c"):
            raise ConfigError(f"{where}: options: {key} is set by this command; leave it out")
    return options


def _files(where: str, value: Any) -> tuple[Path, ...]:
    values = value if isinstance(value, list) else [value]
    if not values or not all(isinstance(one, str) for one in values):
        raise ConfigError(f"{where} is {shown(value)}; write a path, or a list of paths")
    paths = tuple(Path(one) for one in values)
    if absent := [one for one in paths if not one.exists()]:
        raise ConfigError(f"{where}: there is no {absent[0]}; paths are seen from the folder of the command")
    return paths


def _model(where: str, name: str, entry: Any) -> Model:
    _keys(where, entry, set(), {"title", "options", "files", "tokenizer", "texts", *_SOURCES})
    if type(texts := entry.get("texts", True)) is not bool:
        raise ConfigError(f"{where}: texts is {shown(texts)}; write false for a model without texts, or leave it out")
    sources = [key for key in _SOURCES if key in entry]
    if len(sources) != 1:
        there = " and ".join(sources) or "none of them"
        raise ConfigError(f"{where} has {there}; give one of {', '.join(_SOURCES)}")
    model = Model(name, str(entry.get("title", name)), texts=texts, options=_options(where, entry))
    if sources != ["peer"] and (extra := {"files", "tokenizer"} & entry.keys()):
        raise ConfigError(f"{where}: {min(extra)} is of a peer; leave it out")
    if "peer" in entry:
        find(PEERS, entry["peer"])
        files = _files(f"{where}: files", entry.get("files") or [])
        return replace(model, peer=entry["peer"], files=files, tokenizer=entry.get("tokenizer"))
    if "image" in entry:
        _keys(f"{where}: image", entry["image"], {"class_path"}, {"init_args"})
        return replace(model, image=entry["image"])
    (path,) = _files(f"{where}: {sources[0]}", entry[sources[0]])[:1]
    if "config" in entry:
        if not isinstance(read_mapping(path).get("model"), dict):
            raise ConfigError(f"{where}: {path} has no model; give a recipe with one")
        return replace(model, config=path)
    folders = [path, path.parent, path.parent.parent]
    configs = [folder / "config.yaml" for folder in folders if (folder / "config.yaml").is_file()]
    if not configs:
        raise ConfigError(f"{where}: {path} has no config.yaml in its folder or above; give the folder of a run")
    return replace(model, run=path, config=configs[0])


def _test(where: str, name: str, entry: Any, models: Sequence[str]) -> Test:
    _keys(where, entry, {"config"}, {"title", "options", "image", "models"})
    if type(image := entry.get("image", False)) is not bool:
        raise ConfigError(f"{where}: image is {shown(image)}; write true for a test of the image tower alone, or false")
    taking = entry.get("models")
    if taking is not None:
        if not isinstance(taking, list) or not taking:
            raise ConfigError(f"{where}: models is {shown(taking)}; write a list of names, or leave it out for all")
        for one in taking:
            check_choice(f"{where}: models", one, models)
    configs = _files(f"{where}: config", entry["config"])
    chosen = None if taking is None else tuple(taking)
    return Test(name, str(entry.get("title", name)), configs, image, chosen, _options(where, entry))


def _column(where: str, entry: Any, tests: Mapping[str, str]) -> Column:
    _keys(where, entry, {"test", "metric"}, {"title", "best", "group"})
    check_choice(f"{where}: test", entry["test"], list(tests))
    metric = str(entry["metric"])
    metric = metric if metric.startswith("test/") else f"test/{metric}"
    if metric.count("/") < 2:
        raise ConfigError(f"{where}: metric is {shown(entry['metric'])}; write it as in results.json, EVALUATOR/METRIC")
    best = entry.get("best", "highest")
    check_choice(f"{where}: best", best, ["highest", "lowest", ""])
    title = str(entry.get("title", metric.removeprefix("test/")))
    return Column(entry["test"], metric, str(entry.get("group", tests[entry["test"]])), title, best)
