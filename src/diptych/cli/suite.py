"""``diptych suite``: many models through many tests, and one table of all, as a paper prints it."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from diptych.checks import check_number
from diptych.cli.children import Child, cores, run_all, warm
from diptych.cli.made_with import changed_parts
from diptych.cli.rows import Model, Suite, Test, read_suite
from diptych.errors import ConfigError
from diptych.files import replace_text, sha256
from diptych.results.runs import RunResults, read_run
from diptych.results.wide import WideTable
from diptych.version import __version__

__all__ = ["Cell", "main"]


@dataclass(frozen=True)
class _Checkpoint:
    """The weights of a model. What all its tests ask of them is read once."""

    path: Path

    @cached_property
    def digest(self) -> str:
        """Its hash."""
        return sha256(self.path)

    @cached_property
    def image_size(self) -> int | None:
        """The size of the input that it names."""
        from diptych.model.checkpoint import read_checkpoint

        report = self.path.with_suffix(".convert.json")
        if report.is_file():
            size = json.loads(report.read_text(encoding="utf-8")).get("image_size")
        else:
            size = read_checkpoint(self.path)["diptych"].get("image_size")
        return size if isinstance(size, int) else None


@dataclass(frozen=True)
class Cell:
    """One model in one test, with a folder of its own."""

    model: Model
    test: Test
    folder: Path

    @property
    def name(self) -> str:
        """Its name in messages."""
        return f"{self.model.name} in {self.test.name}"

    def description(self, checkpoint: _Checkpoint | None) -> dict[str, Any]:
        """All that the figures depend on but the data, in the types of JSON."""
        files = [*self.test.configs, *([] if self.model.config is None else [self.model.config])]
        content = {
            "checkpoint": None if checkpoint is None else checkpoint.digest,
            "image": self.model.image,
            "configs": [file.read_text(encoding="utf-8") for file in files],
            "options": [self.test.options, self.model.options],
            "version": __version__,
        }
        plain: dict[str, Any] = json.loads(json.dumps(content, default=str))
        return plain

    def changed(self, description: dict[str, Any]) -> list[str] | None:
        """The parts of the description that have changed since the test was made. None if there is none.

        Raises:
            ConfigError: the folder was made by something else.
        """
        parts = changed_parts(self.folder, "cell.json", description)
        return parts if parts or (self.folder / "results.json").is_file() else None

    def command(self, checkpoint: _Checkpoint | None) -> list[str]:
        """The words after ``diptych``."""
        files = [str(file) for file in self.test.configs]
        if self.test.image:
            replace_text(
                self.folder / "image.yaml", yaml.safe_dump({"model": {"init_args": {"image": self._image(checkpoint)}}})
            )
            words = ["test", *_each("-c", [*files, str(self.folder / "image.yaml")])]
        else:
            config = self.model.config
            words = ["test", *_each("-c", [*([] if config is None else [str(config)]), *files])]
            words += ["--ckpt_path", "none" if checkpoint is None else str(checkpoint.path)]
        size = None if checkpoint is None else checkpoint.image_size
        options = {
            **({} if size is None else {"data.loading.image_size": size}),
            **self.test.options,
            **self.model.options,
        }
        words += [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in options.items()]
        return [*words, "--run", str(self.folder)]

    def _image(self, checkpoint: _Checkpoint | None) -> Any:
        """The image tower for a test of that alone."""
        if self.model.image is not None:
            return self.model.image
        if checkpoint is not None:
            return {"class_path": "TrainedImage", "init_args": {"checkpoint": str(checkpoint.path)}}
        config = self.model.config
        model = {} if config is None else yaml.safe_load(config.read_text(encoding="utf-8")).get("model") or {}
        image = model.get("init_args", model).get("image")
        if image is None:
            raise ConfigError(f"{config} has no model.image, which the test {self.test.name} needs; name one")
        return image


def _each(option: str, values: Sequence[str]) -> list[str]:
    return [word for value in values for word in (option, value)]


def _convert(models: Sequence[Model], folder: Path, jobs: int) -> dict[str, Path]:
    """Convert the peers that are not yet there, or whose files have changed, and give the checkpoint of each."""
    paths, children, descriptions = dict[str, Path](), list[Child](), dict[str, tuple[Path, str]]()
    for model in models:
        if model.peer is None:
            continue
        out = folder / f"{model.name}.ckpt"
        paths[model.name] = out
        hashes = [sha256(file) if file.is_file() else str(file) for file in model.files]
        text = json.dumps([model.peer, hashes, model.tokenizer, __version__])
        stamp = out.with_suffix(".made_with.json")
        if out.is_file() and stamp.is_file() and stamp.read_text(encoding="utf-8") == text:
            continue
        folder.mkdir(parents=True, exist_ok=True)
        words = ["convert", model.peer, *map(str, model.files), "--out", str(out)]
        words += [] if model.tokenizer is None else ["--tokenizer", model.tokenizer]
        children.append(Child(f"{model.name}: diptych convert", words, folder / f"{model.name}.log"))
        descriptions[children[-1].name] = (stamp, text)

    def ended(child: Child, error: str) -> None:
        if error:
            raise ConfigError(error)
        stamp, text = descriptions[child.name]
        replace_text(stamp, text)
        print(f"{child.name} ... done", flush=True)

    run_all(children, jobs, ended)
    return paths


def _test(cells: Sequence[Cell], checkpoints: dict[str, _Checkpoint], jobs: int) -> list[str]:
    """Make the tests that are missing, ``jobs`` at a time, and give the messages of those that failed."""
    children, failed, begun, starts = list[Child](), list[str](), dict[str, str](), dict[str, float]()
    for number, cell in enumerate(cells, 1):
        place, checkpoint = f"[{number}/{len(cells)}] {cell.name}", checkpoints.get(cell.model.name)
        description = cell.description(checkpoint)
        changed = cell.changed(description)
        if changed == []:
            print(place, "... there already", flush=True)
            continue
        if cell.folder.is_dir():
            shutil.rmtree(cell.folder)
        cell.folder.mkdir(parents=True)
        replace_text(cell.folder / "cell.json", json.dumps(description, indent=1) + "\n")
        again = f"made again, for its {', '.join(changed)} changed" if changed else "made"
        begun[cell.name] = f"{place} ... {again}"
        children.append(Child(cell.name, cell.command(checkpoint), cell.folder / "test.log"))

    def started(child: Child) -> None:
        starts[child.name] = time.monotonic()

    def ended(child: Child, error: str) -> None:
        said = begun[child.name].replace("... made", "... failed") if error else begun[child.name]
        print(f"{said} ({time.monotonic() - starts[child.name]:.0f} s)", flush=True)
        if error:
            failed.append(error)

    share = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, cores() // jobs)))}
    run_all(children, jobs, ended, started, environment=share)
    return failed


def _results(cells: Sequence[Cell]) -> dict[tuple[str, str], RunResults]:
    there = [cell for cell in cells if (cell.folder / "results.json").is_file()]
    return {(cell.model.name, cell.test.name): read_run(f"{cell.model.name}={cell.folder}") for cell in there}


def _checkpoints(suite: Suite, run: Path, jobs: int) -> tuple[Suite, dict[str, _Checkpoint]]:
    """The checkpoint of each model that has one, and the models with the recipes of converted peers."""
    from diptych.model.checkpoint import checkpoint_in

    paths = _convert(suite.models, run / "models", jobs)
    models = []
    for model in suite.models:
        if model.run is not None:
            paths[model.name] = Path(checkpoint_in(str(model.run)))
        if model.peer is not None:
            model = model.with_config(paths[model.name].with_suffix(".yaml"))
        models.append(model)
    return suite.with_models(models), {name: _Checkpoint(path) for name, path in paths.items()}


def _words(pairs: Sequence[str]) -> dict[str, str]:
    for pair in pairs:
        if "=" not in pair:
            raise ConfigError(f"--set {pair}: write NAME=VALUE")
    return {name: value for name, _, value in (pair.partition("=") for pair in pairs)}


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``diptych suite``. ``argv`` are the words after that on the command line.

    Raises:
        ConfigError: the suite is wrong, or a conversion or a test failed.
    """
    parser = argparse.ArgumentParser(
        prog="diptych suite",
        description="Many models through many tests: one table, with intervals and paired tests, as Markdown, LaTeX, csv, PNG.",
        allow_abbrev=False,
    )
    parser.add_argument("-c", "--config", type=Path, required=True, help="YAML of models, tests and columns")
    parser.add_argument("--run", type=Path, default=Path("runs/suite"), help="folder (default: %(default)s)")
    parser.add_argument(
        "--jobs", type=int, default=1, help="tests at a time, which share the cores (default: %(default)s)"
    )
    parser.add_argument("--models", nargs="+", metavar="NAME", help="these rows alone")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="what stands for ${NAME} in the YAML"
    )
    args = parser.parse_args(list(sys.argv[2:] if argv is None else argv))
    check_number("--jobs", args.jobs, least=1, whole=True)
    suite = read_suite(args.config, _words(args.set), args.models)
    with warm():
        suite, checkpoints = _checkpoints(suite, args.run, args.jobs)
        cells = [Cell(model, test, args.run / model.name / test.name) for model, test in suite.pairs()]
        failed = _test(cells, checkpoints, args.jobs)
    if failed:
        others = f"{len(failed)} tests failed, the first: " if failed[1:] else ""
        raise ConfigError(f"{others}{failed[0]}")
    titles = {model.name: model.title for model in suite.models}
    table = WideTable(titles, suite.columns, _results(cells), suite.against)
    print(table.write(args.run, f"{args.config.name}, diptych {__version__}"), end="", flush=True)
