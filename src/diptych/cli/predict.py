"""``diptych predict``: vectors, probabilities and nearest reports of many images, in one file."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, get_args

from diptych.checks import check_number
from diptych.errors import ConfigError, DiptychError

if TYPE_CHECKING:
    from diptych.data.datamodule import RadiographDataModule
    from diptych.data.dataset import Split

__all__ = ["device_named", "main", "read_reports"]

_EPILOG = """\
Everything that begins with --data is as `diptych fit` has it, as --data.table and --data.loading.workers.
An interrupted command is given again, and goes on. docs/predict.md has more.
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"predict: {message} (`diptych predict --help` lists every option)")


def _parser() -> _Parser:
    parser = _Parser(
        prog="diptych predict",
        description="What a trained model says of many images, in one file.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "-c",
        "--config",
        action="append",
        default=[],
        metavar="YAML",
        help="recipe whose data are read: RUN/config.yaml",
    )
    parser.add_argument("--run", metavar="RUN", help="folder of the run (default: that of the recipe)")
    parser.add_argument(
        "--ckpt", default="best", metavar="FILE", help="checkpoint: best, last, or a file (default: best)"
    )
    parser.add_argument("--trust", action="append", default=[], metavar="CLASS", help="import path that it may name")
    parser.add_argument("--data", metavar="NAME", help="data set (`diptych datamodules`), in place of the recipe's")
    parser.add_argument("--folder", metavar="DIR", help="every picture below a folder, in place of the recipe's data")
    parser.add_argument(
        "--split", nargs="+", default=["test"], choices=["train", "val", "test", "all"], help="splits (default: test)"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="file to write: .parquet, .npy or .csv")
    parser.add_argument("--overwrite", action="store_true", help="remove what --out was before")
    parser.add_argument(
        "--what",
        nargs="+",
        default=["pooled"],
        choices=["pooled", "regions", "zero_shot", "nearest"],
        help="vectors of images, of their regions, probabilities of findings, nearest reports (default: pooled)",
    )
    parser.add_argument("--prompts", metavar="SET", help="zero_shot: name or YAML of a prompt set")
    parser.add_argument("--protocol", default="diptych", help="zero_shot: how prompts are scored (default: diptych)")
    parser.add_argument("--reports", type=Path, metavar="FILE", help="nearest: .txt with a report a line, or a table")
    parser.add_argument("--column", default="text", help="nearest: the table's column of reports (default: text)")
    parser.add_argument("--k", type=int, default=5, help="nearest: how many reports of each image (default: 5)")
    parser.add_argument("--batch-size", type=int, default=64, help="images that go through the model at a time (64)")
    parser.add_argument(
        "--per-part", type=int, default=1024, help="images of a part, as read and kept at a time (1024)"
    )
    parser.add_argument("--share", type=_share, metavar="i/n", help="this is process i of n, from 0 (torchrun's own)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 ... (default: a GPU if there is one)")
    return parser


def _share(text: str) -> tuple[int, int]:
    index, _, number = text.partition("/")
    if not (index.isdigit() and number.isdigit() and int(index) < int(number)):
        raise ConfigError(f"--share is '{text}'; write i/n with i from 0 to n-1, as 0/2 and 1/2")
    return int(index), int(number)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``diptych predict``. ``arguments`` are the words after that on the command line.

    Raises:
        ConfigError: an option is wrong, or the output is of something else.
        DataError: data cannot be read, or no image can be used.
    """
    options, rest = _parser().parse_known_args(list(sys.argv[2:] if arguments is None else arguments))
    for option, value in (("--batch-size", options.batch_size), ("--per-part", options.per_part)):
        check_number(option, value, least=1, whole=True)
    recipes = _recipes(options)
    checkpoint = _checkpoint(options, recipes)
    share = options.share or (int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))
    if options.overwrite and share[1] > 1:
        raise ConfigError(
            f"--overwrite: {share[1]} processes would remove each other's parts; remove {options.out} and what "
            f"begins with its name first"
        )

    from diptych.evaluation.protocols import PROTOCOLS
    from diptych.model.inference import load
    from diptych.model.stored import weights_hash
    from diptych.predict.parts import Prediction, parts_of, rows_hash
    from diptych.predict.values import Values
    from diptych.predict.writers import check_format
    from diptych.version import __version__

    if options.protocol not in PROTOCOLS:
        raise ConfigError(f"--protocol is '{options.protocol}'; known are {', '.join(PROTOCOLS)}")
    model = load(checkpoint, device_named(options.device), trust=options.trust)
    reports = None if options.reports is None else read_reports(options.reports, options.column)
    values = Values(model, options.what, options.prompts, options.protocol, reports, options.k)
    check_format(options.out, values.columns)
    datamodule, options_hash = _datamodule(options, recipes, rest)
    changed: dict[str, Any] = {"image_size": model.image_size, "intensity": model.intensity}
    for name, value in changed.items():
        if getattr(datamodule.loading, name) != value and not (options.folder or options.data):
            print(f"data.loading.{name} is that of the model's training, {value}", flush=True)
    # One pass reads the images, and tells those that cannot be used: no check goes before it.
    datamodule.loading = replace(
        datamodule.loading, **changed, check_images=False, eval_batch_size=options.batch_size, augment=None
    )
    model.module.encoder.image.check_images(1 + datamodule.others)
    datamodule.prepare_data()
    datamodule.setup("predict")
    splits = _splits(options.split, datamodule)
    batches = max(1, options.per_part // options.batch_size)
    parts = parts_of({name: len(datamodule.datasets[name]) for name in splits}, options.batch_size, batches)
    description = {
        "diptych": __version__,
        "weights": weights_hash(model.module),
        "image_size": model.image_size,
        "intensity": model.intensity.plain(),
        "data": datamodule.protocol,
        "splits": splits,
        "data options": options_hash,
        "private": datamodule.loading.private,
        "rows": rows_hash(datamodule, splits),
        **values.about,
        "batch_size": options.batch_size,
        "batches_a_part": batches,
        "device": model.device.type,
    }

    def say(line: str) -> None:
        print(line, flush=True)

    prediction = Prediction(options.out, description, parts, values, datamodule, say)
    if options.overwrite:
        prediction.discard()
    if prediction.done:
        say(f"{options.out} is whole already")
        return
    if not prediction.begin():
        say(f"{options.out} is whole already")
        return
    prediction.run(share)
    prediction.finish()
    datamodule.teardown("predict")


def _recipes(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The contents of the recipes. With ``--run`` alone it is the run's own."""
    import yaml

    files = [Path(file) for file in options.config]
    if not files and options.run and not options.data and not options.folder:
        files = [Path(options.run) / "config.yaml"]
    contents = []
    for file in files:
        try:
            content = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            reason = " ".join(str(getattr(error, "strerror", None) or error).split())[:160]
            raise ConfigError(f"-c {file}: cannot be read ({reason}); give a recipe, as RUN/config.yaml") from error
        if not isinstance(content, dict):
            raise ConfigError(f"-c {file}: no recipe; give a YAML with keys, as RUN/config.yaml")
        contents.append(content)
    if not files and not options.data and not options.folder:
        raise ConfigError("which images? Give -c RUN/config.yaml, --data NAME with its options, or --folder DIR")
    return contents


def _checkpoint(options: argparse.Namespace, recipes: Sequence[dict[str, Any]]) -> Path:
    """The checkpoint, or the folder of the run, of which the best checkpoint is taken."""
    if options.ckpt not in {"best", "last"}:
        return Path(options.ckpt)
    run = options.run
    if run is None:
        beside = [Path(file).parent for file in options.config if (Path(file).parent / "checkpoints").is_dir()]
        said = [content["run"] for content in recipes if isinstance(content.get("run"), str)]
        run = (beside or said or [None])[0]
    if run is None:
        raise ConfigError("which model? Give --run RUN, or --ckpt FILE")
    return Path(run) if options.ckpt == "best" else Path(run) / "checkpoints" / "last.ckpt"


def device_named(name: str) -> str:
    """The device of an option ``--device``. ``auto`` is this process's GPU if there is one, else the CPU."""
    if name != "auto":
        return name
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"


def read_reports(file: Path, column: str) -> list[str]:
    """The reports of a file: a line each of a ``.txt``, or a column of a table.

    Raises:
        ConfigError, DataError: the file cannot be read, or lacks the column.
    """
    from diptych.data.tables import read_table

    if file.suffix.lower() != ".txt":
        return [text for row in read_table(file, [column]).rows() if (text := row.text([column]))]
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"--reports {file}: cannot be read ({' '.join(str(error).split())}); give text in UTF-8"
        ) from error


def _datamodule(
    options: argparse.Namespace, recipes: Sequence[dict[str, Any]], rest: list[str]
) -> tuple[RadiographDataModule, str]:
    """The data that recipes and options name, as ``diptych fit`` reads them, and a hash of all but how they are loaded.

    Reports are not read.
    """
    from diptych.cli.messages import Parser, own_message, tidy_console
    from diptych.data.datamodule import RadiographDataModule
    from diptych.model.building import refuse_functions, register_names

    register_names()
    tidy_console()
    Parser.command = "predict"
    if options.folder and options.data not in (None, "folder"):
        raise ConfigError(f"--folder is for --data folder, and --data is {options.data}; leave one of them out")
    name = "folder" if options.folder else options.data
    words = [f"--data={json.dumps(content['data'])}" for content in recipes if content.get("data")]
    words += [f"--data={name}"] if name else []
    words += [f"--data.folder={options.folder}"] if options.folder else []
    if wrong := [word for word in rest if word.startswith("-") and not word.startswith("--data.")]:
        raise ConfigError(f"predict: unknown option '{wrong[0]}' (`diptych predict --help` lists every option)")
    if not words:
        raise ConfigError("the recipe names no data; give --data NAME with its options, or --folder DIR")
    parser = Parser()
    parser.add_lightning_class_args(RadiographDataModule, "data", subclass_mode=True)
    try:
        config = parser.parse_args([*words, *rest, "--data.tokenizer=null"])
        refuse_functions(config.data, "data")
        datamodule: RadiographDataModule = parser.instantiate_classes(config).data
    except DiptychError:
        raise
    except Exception as error:  # jsonargparse wraps errors in many types
        if message := own_message(error):
            raise ConfigError(message) from error
        raise
    said = {key: value for key, value in config.data.init_args.as_dict().items() if key not in ("loading", "tokenizer")}
    return datamodule, hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _splits(asked: Sequence[str], datamodule: RadiographDataModule) -> list[Split]:
    from diptych.data.dataset import Split

    every = [name for name in get_args(Split) if name in datamodule.datasets]
    if "all" in asked:
        return every
    if unknown := [name for name in asked if name not in every]:
        raise ConfigError(f"--split {unknown[0]}: the data have {', '.join(every)}; give one of them, or all")
    return [name for name in every if name in asked]
