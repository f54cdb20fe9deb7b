"""``diptych compare``: heads trained alike over several seeds, tested, probed, and compared in a table with intervals."""

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
    """One row of the comparison: a name, and what differs from the recipe."""

    name: str
    model: dict[str, Any]
    """The parts of the recipe's ``model`` that it replaces."""
    note: str = ""


@dataclass(frozen=True)
class Run:
    """One variant with one seed, in a folder of its own."""

    variant: Variant
    seed: int
    folder: Path
    description: dict[str, Any]
    """All that the trained model depends on, in the types of JSON."""
    pairs: int | None = None
    """Pairs of phantoms in each probe. None takes the probes' own number."""

    @property
    def name(self) -> str:
        """Its name in messages."""
        return f"{self.variant.name} seed {self.seed}"

    @property
    def results(self) -> Path:
        """The file that ``diptych test`` writes last."""
        return self.folder / "results.json"

    @property
    def probes(self) -> Path:
        """The file that is written last of all."""
        return self.folder / "probes.json"

    def changed(self) -> list[str] | None:
        """The parts of the description that have changed since the folder was made, or None if there is no folder.

        Raises:
            ConfigError: the folder was made by something else.
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

    @property
    def probing(self) -> dict[str, Any]:
        """All that the probes' figures depend on, besides the trained model."""
        return {"probe_pairs": self.pairs, "probe_version": _data(self)[0].probe_version}

    def unprobed(self) -> str:
        """Why the probes are to be made, or made again. Empty if they are there, and are what they would be now."""
        if not self.probes.is_file():
            return "probed"
        before = json.loads(self.probes.read_text(encoding="utf-8")).get("made_with", {})
        changed = [key for key, value in self.probing.items() if before.get(key) != value]
        return f"probed again, for its {', '.join(changed)} changed" if changed else ""

    def complete(self) -> bool:
        """Whether all its figures are there, and are what they would be now."""
        return self.changed() == [] and self.results.is_file() and not self.unprobed()


def _mapping(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping with distinct keys."""
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
    """Read the variants of a file, in its order. Each is checked against the constructors that it configures.

    Args:
        path: a YAML file of ``name: {head: NAME, ARGUMENT: VALUE, ...}`` or ``name: {model: {...}}``. Each may have a ``note``.
        recipe: the recipe that they vary.

    Raises:
        ConfigError: a variant is wrong. The message names the file, the variant, the key and the remedy.
    """
    base = _mapping(recipe).get("model")
    if not isinstance(base, dict):
        raise ConfigError(f"{recipe} has no model; give a recipe of `diptych fit`, as experiments/compare/phantom.yaml")
    if isinstance(base.get("head"), dict) and base["head"].get("init_args"):
        raise ConfigError(
            f"{recipe}: model.head has init_args, which variants of the same head would inherit; give them in {path}"
        )
    variants = []
    for name, entry in _mapping(path).items():
        if not re.fullmatch(r"[A-Za-z0-9][\w.+-]*", name):
            raise ConfigError(f"{path}: '{name}' cannot name a folder; use letters, digits, and _ . + -")
        rest = dict(entry) if isinstance(entry, dict) else {}
        note = str(rest.pop("note", "") or "")
        if isinstance(rest.get("model"), dict) and len(rest) == 1:
            model = dict(rest["model"])
        elif isinstance(rest.get("head"), str) and "model" not in rest:
            model = {"head": {"class_path": rest.pop("head"), "init_args": rest}}
        else:
            raise ConfigError(
                f"{path}: {name} is {str(entry)[:80]}; write {{head: NAME, ARGUMENT: VALUE}} or {{model: {{KEY: VALUE}}}}"
            )
        variants.append(Variant(name, model, note))
    _check(variants, base, path, recipe)
    return variants


def _check(variants: Sequence[Variant], base: dict[str, Any], path: Path, recipe: Path) -> None:
    """Parse all variants now. Otherwise a wrong last one would be found after hours."""
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
    """Run ``diptych`` with its output in a file. Signals are passed on to it, so that a run in training saves itself.

    Raises:
        ConfigError: it failed. The message has its own last message, and names the file.
    """
    from diptych.training.interruption import ENDING

    received: list[int] = []
    with log.open("w", encoding="utf-8") as file:
        child = subprocess.Popen([sys.executable, "-m", "diptych", *command], stdout=file, stderr=subprocess.STDOUT)

        def pass_on(number: int, frame: object) -> None:
            received.append(number)
            child.send_signal(number)

        before = {
            number: signal.signal(number, pass_on) for number in ENDING if signal.getsignal(number) != signal.SIG_IGN
        }
        try:
            code = child.wait()
        finally:
            child.kill()  # an error here must leave no child behind
            for number, handler in before.items():
                signal.signal(number, handler)
    if received:
        sys.exit(128 + received[0])
    if code:
        lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
        errors = [line.partition("diptych: error: ")[2] for line in lines if line.startswith("diptych: error: ")]
        last = (errors or [line for line in lines if line] or ["it said nothing"])[-1]
        if code < 0:
            last = f"ended by {signal.Signals(-code).name}"
        raise ConfigError(f"{what} failed: {last} (log: {log})")


def _write(path: Path, content: dict[str, Any]) -> None:
    """Write JSON, whole or not at all. NaN becomes null."""
    replace_text(path, json.dumps(plain(content), indent=2, allow_nan=False) + "\n")


def _facts(run: Run, module: Any) -> dict[str, float]:
    """The number of a head's parameters, and the seconds of a training step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    facts = {"head_parameters": float(sum(p.numel() for p in module.head.parameters()))}
    events = EventAccumulator(str(run.folder), size_guidance={"scalars": 0})
    events.Reload()
    if _LOG in events.Tags()["scalars"]:
        rates = sorted(event.value for event in events.Scalars(_LOG))
        facts["seconds_per_step"] = rates[len(rates) // 2]  # the median leaves out start-up and busy moments
    return facts


def _data(run: Run) -> tuple[type[RadiographDataModule], dict[str, Any]]:
    """The datamodule of a run, and the arguments it was built with."""
    data = yaml.safe_load((run.folder / "config.yaml").read_text(encoding="utf-8"))["data"]
    return find(DATAMODULES, data["class_path"].rpartition(".")[2]).load(), data["init_args"]


def _probe(run: Run) -> None:
    """Run the datamodule's probes on the trained model, with the findings and report sections of its training."""
    import torch

    from diptych.model.checkpoint import read_checkpoint
    from diptych.model.inference import load

    data, options = _data(run)
    checkpoint = run.folder / "checkpoints" / "last.ckpt"
    model = load(checkpoint, device="cuda" if torch.cuda.is_available() else "cpu")
    facts = _facts(run, model.module) | {"steps": float(read_checkpoint(checkpoint)["global_step"])}
    figures = data.probes(model, options, run.pairs)
    _write(run.probes, {"probes": figures, "facts": facts, "made_with": run.probing})


def carry_out(run: Run, recipe: Path, extra: Sequence[str]) -> str:
    """Train, test and probe a run as far as that is missing, and say what was done.

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
    summary = f"made again, for its {', '.join(changed)} changed" if changed else "made"
    if not run.results.is_file():
        override = run.folder / "variant.yaml"
        replace_text(override, yaml.safe_dump({"model": run.variant.model}))
        command = ["fit", "-c", str(recipe), *extra, "-c", str(override), "--run", str(run.folder)]
        command += ["--seed_everything", str(run.seed), "--data.loading.seed", str(run.seed)]
        if (run.folder / "checkpoints" / "last.ckpt").is_file():
            command += ["--ckpt_path", "last"]
            summary = "taken up where it was interrupted"
        else:
            command.append("--overwrite")  # an interrupted run may have left files before its first checkpoint
        _call(command, run.folder / "fit.log", f"{run.name}: diptych fit")
        command = ["test", "-c", str(run.folder / "config.yaml"), "--run", str(run.folder), "--ckpt_path", "last"]
        _call(command, run.folder / "test.log", f"{run.name}: diptych test")
    elif changed is not None:
        summary = run.unprobed()
    _probe(run)
    return summary


def outcome(run: Run) -> Outcome:
    """The figures of a complete run."""
    from diptych.results.record import read_results

    results = read_results(run.results)
    probes = json.loads(run.probes.read_text(encoding="utf-8"))
    test = {name.removeprefix("test/"): metric.value for name, metric in results["metrics"].items()}
    metrics, chance = {}, {"zero_shot/auroc/macro": 0.5, "grounding/over_chance": 1.0, **_data(run)[0].probe_chances}
    if "retrieval/r@5" in test:
        ranks = [test[f"retrieval/{side}/median_rank"] for side in ("image_to_text", "text_to_image")]
        metrics = {"retrieval/r@5": test["retrieval/r@5"], "retrieval/median_rank": sum(ranks) / 2}
        # A text belongs to images / texts images on average, so chance is nearly the same in both directions.
        chance["retrieval/r@5"] = min(1.0, 5 / results["protocol"]["retrieval"]["texts"])
    metrics |= {name: value for name, value in test.items() if name.endswith("/auroc/macro")}
    for name, value in probes["probes"].items():
        known, _, last = name.rpartition("/")
        figures, key = (chance, known) if last == "chance" else (metrics, name)
        figures[key] = math.nan if value is None else value
    return Outcome(run.variant.name, run.seed, metrics, probes["facts"], chance)


def _runs(
    variants: Sequence[Variant], seeds: Sequence[int], root: Path, recipe: Path, extra: Sequence[str], pairs: int | None
) -> list[Run]:
    files = [Path(option.rpartition("=")[2]) for option in extra]
    options = [path.read_text() if path.is_file() else option for path, option in zip(files, extra, strict=True)]
    common = {"recipe": _mapping(recipe), "options": options, "version": __version__}
    runs = []
    for variant in variants:
        for seed in seeds:
            description = json.dumps({**common, "variant": variant.model, "seed": seed}, default=str)
            runs.append(Run(variant, seed, root / variant.name / f"seed{seed}", json.loads(description), pairs))
    return runs


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``diptych compare``. ``argv`` are the words after that on the command line.

    Raises:
        ConfigError: a file, a name or a run is wrong.
    """
    words = list(sys.argv[2:] if argv is None else argv)
    split = words.index("--") if "--" in words else len(words)
    extra = words[split + 1 :]
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
    args = parser.parse_args(words[:split])
    if own := [option for option in extra if option.split("=")[0] in _OWN]:
        raise ConfigError(f"{own[0]} after -- is set by this command for every run; leave it out")
    source = args.variants or args.config.with_name("variants.yaml")
    variants = read_variants(source, args.config)
    names = [variant.name for variant in variants]
    if unknown := [name for name in args.only or () if name not in names]:
        raise ConfigError(f"--only {unknown[0]}: not in {source}, which has {', '.join(names)}")
    runs = _runs(variants, list(dict.fromkeys(args.seeds)), args.run, args.config, extra, args.probe_pairs)
    todo = [run for run in runs if args.only is None or run.variant.name in args.only]
    for i, run in enumerate(todo):
        print(f"[{i + 1}/{len(todo)}] {run.name} ...", end=" ", flush=True)
        print(carry_out(run, args.config, extra), flush=True)
    complete = [run for run in runs if run.complete()]
    title = f"{args.config.name}, {source.name}, diptych {__version__}"
    missing = [run.name for run in runs if run not in complete]
    notes = {variant.name: variant.note for variant in variants}
    Comparison(title, notes, [outcome(run) for run in complete], missing).write(args.run)
