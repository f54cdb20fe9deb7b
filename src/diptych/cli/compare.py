"""``diptych compare``: heads trained alike over several seeds, tested, probed, and set side by side with intervals."""

from __future__ import annotations

import argparse
import json
import math
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from diptych.errors import ConfigError
from diptych.files import replace_text
from diptych.plugins import DATAMODULES, find
from diptych.results.comparison import Comparison, Outcome, plain
from diptych.version import __version__

if TYPE_CHECKING:
    from diptych.data.datamodule import RadiographDataModule

__all__ = ["Run", "Variant", "main", "outcome", "read_variants"]

_OWN = ("--run", "--seed_everything", "--ckpt_path")
"""Options of ``diptych fit`` that this command sets itself."""
_LOG = "train/seconds_per_step"


@dataclass(frozen=True)
class Variant:
    """One row of the comparison."""

    name: str
    model: dict[str, Any]
    """What replaces parts of the recipe's ``model``."""
    note: str = ""


@dataclass(frozen=True)
class Run:
    """One variant with one seed, in a folder of its own."""

    variant: Variant
    seed: int
    folder: Path
    description: dict[str, Any]
    """All that decides the run's figures, as JSON knows it."""

    @property
    def name(self) -> str:
        """As it is called in messages."""
        return f"{self.variant.name} seed {self.seed}"

    @property
    def results(self) -> Path:
        """Written last by ``diptych test``."""
        return self.folder / "results.json"

    @property
    def probes(self) -> Path:
        """Written last of all."""
        return self.folder / "probes.json"

    def changed(self) -> list[str] | None:
        """Parts of the description that are not those the folder was made with; None if there is no folder.

        Raises:
            ConfigError: the folder holds something that was not made here.
        """
        if not self.folder.is_dir() or not any(self.folder.iterdir()):
            return None
        try:
            before = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise ConfigError(
                f"{self.folder} was not made by this command (no readable run.json); give another --run, or remove it"
            ) from None
        return [key for key, value in self.description.items() if before.get(key) != value]

    def complete(self) -> bool:
        """All its figures are there, made as they would be made now."""
        return self.changed() == [] and self.results.is_file() and self.probes.is_file()


def _mapping(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping, its keys distinct."""
    try:
        text = path.read_text(encoding="utf-8")
        content, node = yaml.safe_load(text), yaml.compose(text)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; name a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or not content:
        raise ConfigError(f"{path} holds no mapping of names; see experiments/compare for one of each kind")
    keys = [str(key.value) for key, _ in node.value] if node is not None else []
    if twice := sorted({key for key in keys if keys.count(key) > 1}):
        raise ConfigError(f"{path}: {twice[0]} is there twice; the first would be lost, so rename one")
    return {str(key): value for key, value in content.items()}


def read_variants(path: Path, recipe: Path) -> list[Variant]:
    """The variants of a file in its order, each checked against the constructors it would configure.

    Args:
        path: YAML, ``name: {head: NAME, ARGUMENT: VALUE, ...}`` or ``name: {model: {...}}``, each with ``note`` if wanted.
        recipe: what they are variants of.

    Raises:
        ConfigError: one line naming the file, the variant, the key and the remedy.
    """
    base = _mapping(recipe).get("model")
    if not isinstance(base, dict):
        raise ConfigError(f"{recipe} has no model; give a recipe of `diptych fit`, as experiments/compare/phantom.yaml")
    if isinstance(base.get("head"), dict) and base["head"].get("init_args"):
        raise ConfigError(
            f"{recipe}: model.head has init_args, which variants of the same head would inherit; give them in {path}"
        )
    variants = []
    for name, given in _mapping(path).items():
        if not re.fullmatch(r"[A-Za-z0-9][\w.+-]*", name):
            raise ConfigError(f"{path}: '{name}' cannot name a folder; use letters, digits, and _ . + -")
        rest = dict(given) if isinstance(given, dict) else {}
        note = str(rest.pop("note", "") or "")
        if isinstance(rest.get("model"), dict) and len(rest) == 1:
            model = dict(rest["model"])
        elif isinstance(rest.get("head"), str) and "model" not in rest:
            model = {"head": {"class_path": rest.pop("head"), "init_args": rest}}
        else:
            raise ConfigError(
                f"{path}: {name} is {str(given)[:80]}; write {{head: NAME, ARGUMENT: VALUE}} or {{model: {{KEY: VALUE}}}}"
            )
        variants.append(Variant(name, model, note))
    _check(variants, base, path, recipe)
    return variants


def _check(variants: Sequence[Variant], base: dict[str, Any], path: Path, recipe: Path) -> None:
    """Parse all of them now; the last would otherwise fail after hours."""
    import jsonargparse

    from diptych.model.building import register_names
    from diptych.model.module import AlignmentModule

    register_names()
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(AlignmentModule, "model")

    def parse(model: dict[str, Any], where: str, over: Any = None) -> Any:
        try:
            return parser.parse_object({"model": model}, cfg_base=over)
        except (jsonargparse.ArgumentError, ConfigError, TypeError, ValueError) as error:
            message = re.sub(r"Type \S*Callable\[.*?\] expects .*?: (?=\w)|\. Got value: Namespace.*", "", str(error))
            raise ConfigError(f"{where}: {' '.join(message.split())}") from None

    recipe_model = parse(base, str(recipe))
    for variant in variants:
        parse(variant.model, f"{path}: {variant.name}", recipe_model)


def _call(command: Sequence[str], log: Path, what: str) -> None:
    """Run ``diptych`` with its output in a file. A signal goes on to it, so that a run in training saves itself first.

    Raises:
        ConfigError: it failed; with its own message and the file.
    """
    from diptych.training.interruption import ENDING

    told: list[int] = []
    with log.open("w", encoding="utf-8") as file:
        child = subprocess.Popen([sys.executable, "-m", "diptych", *command], stdout=file, stderr=subprocess.STDOUT)

        def pass_on(number: int, frame: object) -> None:
            told.append(number)
            child.send_signal(number)

        before = {
            number: signal.signal(number, pass_on) for number in ENDING if signal.getsignal(number) != signal.SIG_IGN
        }
        try:
            code = child.wait()
        finally:
            child.kill()  # if an error has come between
            for number, handler in before.items():
                signal.signal(number, handler)
    if told:
        sys.exit(128 + told[0])
    if code:
        lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
        said = [line.partition("diptych: error: ")[2] for line in lines if line.startswith("diptych: error: ")]
        last = (said or [line for line in lines if line] or ["it said nothing"])[-1]
        if code < 0:
            last = f"ended by {signal.Signals(-code).name}"
        raise ConfigError(f"{what} failed: {last} (log: {log})")


def _write(path: Path, content: dict[str, Any]) -> None:
    """JSON, whole or not at all; NaN as null."""
    replace_text(path, json.dumps(plain(content), indent=2, allow_nan=False) + "\n")


def _facts(run: Run, module: Any) -> dict[str, float]:
    """What a head costs, and how long it was trained."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    facts = {"head_parameters": float(sum(p.numel() for p in module.head.parameters()))}
    events = EventAccumulator(str(run.folder), size_guidance={"scalars": 0})
    events.Reload()
    if _LOG in events.Tags()["scalars"]:
        rates = sorted(event.value for event in events.Scalars(_LOG))
        facts["seconds_per_step"] = rates[len(rates) // 2]  # the median: start-up and a busy moment do not count
    return facts


def _data(run: Run) -> tuple[type[RadiographDataModule], dict[str, Any]]:
    """The datamodule of a run, and the arguments it was built with."""
    data = yaml.safe_load((run.folder / "config.yaml").read_text(encoding="utf-8"))["data"]
    return find(DATAMODULES, data["class_path"].rpartition(".")[2]).load(), data["init_args"]


def _probe(run: Run, pairs: int | None) -> None:
    """Put the trained model to the probes, with the findings and the part of the report that it was trained on."""
    import torch

    from diptych.model.checkpoint import read_checkpoint
    from diptych.model.inference import load

    data, options = _data(run)
    checkpoint = run.folder / "checkpoints" / "last.ckpt"
    model = load(checkpoint, device="cuda" if torch.cuda.is_available() else "cpu")
    facts = _facts(run, model.module) | {"steps": float(read_checkpoint(checkpoint)["global_step"])}
    _write(run.probes, {"probes": data.probes(model, options, pairs), "facts": facts})


def carry_out(run: Run, recipe: Path, extra: Sequence[str], pairs: int | None) -> str:
    """Do what is missing of a run, and say what that was.

    Raises:
        ConfigError: training, testing or probing failed.
    """
    changed = run.changed()
    if changed:
        shutil.rmtree(run.folder)
    elif run.complete():
        return "there already"
    run.folder.mkdir(parents=True, exist_ok=True)
    _write(run.folder / "run.json", run.description)
    said = f"made again, for its {', '.join(changed)} changed" if changed else "made"
    if not run.results.is_file():
        override = run.folder / "variant.yaml"
        replace_text(override, yaml.safe_dump({"model": run.variant.model}))
        command = ["fit", "-c", str(recipe), *extra, "-c", str(override), "--run", str(run.folder)]
        command += ["--seed_everything", str(run.seed), "--data.loading.seed", str(run.seed)]
        if (run.folder / "checkpoints" / "last.ckpt").is_file():
            command += ["--ckpt_path", "last"]
            said = "taken up where it was interrupted"
        else:
            command.append("--overwrite")  # what an interrupted run has left before it could save itself
        _call(command, run.folder / "fit.log", f"{run.name}: diptych fit")
        command = ["test", "-c", str(run.folder / "config.yaml"), "--run", str(run.folder), "--ckpt_path", "last"]
        _call(command, run.folder / "test.log", f"{run.name}: diptych test")
    elif changed is not None:
        said = "probed"
    _probe(run, pairs)
    return said


def outcome(run: Run) -> Outcome:
    """The figures of a complete run."""
    from diptych.results.record import read_results

    results = read_results(run.results)
    probed = json.loads(run.probes.read_text(encoding="utf-8"))
    tested = {name.removeprefix("test/"): metric.value for name, metric in results["metrics"].items()}
    metrics, chance = {}, {"zero_shot/auroc/macro": 0.5, "grounding/over_chance": 1.0, **_data(run)[0].probe_chances}
    if "retrieval/r@5" in tested:
        ranks = [tested[f"retrieval/{side}/median_rank"] for side in ("image_to_text", "text_to_image")]
        metrics = {"retrieval/r@5": tested["retrieval/r@5"], "retrieval/median_rank": sum(ranks) / 2}
        # A text has images / texts of the images on average, so both directions have the same, to first order.
        chance["retrieval/r@5"] = min(1.0, 5 / results["protocol"]["retrieval"]["texts"])
    metrics |= {name: value for name, value in tested.items() if name.endswith("/auroc/macro")}
    metrics |= {name: math.nan if value is None else value for name, value in probed["probes"].items()}
    if "grounding/chance" in metrics:
        chance["grounding/pointing"] = metrics.pop("grounding/chance")
    return Outcome(run.variant.name, run.seed, metrics, probed["facts"], chance)


def _runs(
    variants: Sequence[Variant], seeds: Sequence[int], root: Path, recipe: Path, extra: Sequence[str], pairs: int | None
) -> list[Run]:
    files = [Path(option.rpartition("=")[2]) for option in extra]
    options = [path.read_text() if path.is_file() else option for path, option in zip(files, extra, strict=True)]
    common = {"recipe": _mapping(recipe), "options": options, "probe_pairs": pairs, "version": __version__}
    found = []
    for variant in variants:
        for seed in seeds:
            description = {**common, "variant": variant.model, "seed": seed}
            plain = json.loads(json.dumps(description, default=str))
            found.append(Run(variant, seed, root / variant.name / f"seed{seed}", plain))
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``diptych compare``; ``argv`` is what follows that word on the command line.

    Raises:
        ConfigError: a file, a name or a run is wrong.
    """
    given = list(sys.argv[2:] if argv is None else argv)
    split = given.index("--") if "--" in given else len(given)
    extra = given[split + 1 :]
    parser = argparse.ArgumentParser(
        prog="diptych compare",
        description="Train variants of a recipe on phantoms alike, over several seeds; test, probe, compare.",
        epilog="what follows -- goes to every `diptych fit`, as: -- -c experiments/machine/gpu.yaml",
    )
    parser.add_argument("-c", "--config", type=Path, required=True, help="recipe that all variants share")
    parser.add_argument("--variants", type=Path, help="YAML of variants (default: variants.yaml beside the recipe)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(default: 0 1 2)")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help="train these variants now; the table has all there are"
    )
    parser.add_argument("--run", type=Path, default=Path("runs/compare"), help="folder (default: %(default)s)")
    parser.add_argument("--probe-pairs", type=int, help="pairs of phantoms in each probe (default: the probes' own)")
    args = parser.parse_args(given[:split])
    if own := [option for option in extra if option.split("=")[0] in _OWN]:
        raise ConfigError(f"{own[0]} after -- is set by this command for every run; leave it out")
    source = args.variants or args.config.with_name("variants.yaml")
    variants = read_variants(source, args.config)
    names = [variant.name for variant in variants]
    if unknown := [name for name in args.only or () if name not in names]:
        raise ConfigError(f"--only {unknown[0]}: not in {source}, which has {', '.join(names)}")
    runs = _runs(variants, list(dict.fromkeys(args.seeds)), args.run, args.config, extra, args.probe_pairs)
    chosen = [run for run in runs if args.only is None or run.variant.name in args.only]
    for i, run in enumerate(chosen):
        print(f"[{i + 1}/{len(chosen)}] {run.name} ...", end=" ", flush=True)
        print(carry_out(run, args.config, extra, args.probe_pairs), flush=True)
    there = [run for run in runs if run.complete()]
    title = f"{args.config.name}, {source.name}, diptych {__version__}"
    missing = [run.name for run in runs if run not in there]
    Comparison(title, {v.name: v.note for v in variants}, [outcome(run) for run in there], missing).write(args.run)
