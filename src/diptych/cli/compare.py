"""``diptych compare``: heads trained alike over several seeds, tested, probed, and compared in a table with intervals."""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from diptych.checks import check_number
from diptych.cli.children import Child, call, cores, run_all, warm
from diptych.cli.made_with import changed_parts
from diptych.cli.variants import Variant, read_mapping, read_variants
from diptych.errors import ConfigError
from diptych.files import replace_text
from diptych.plugins import DATAMODULES, find
from diptych.results.comparison import Comparison, Outcome, plain
from diptych.version import __version__

if TYPE_CHECKING:
    from diptych.data.datamodule import RadiographDataModule

__all__ = ["Run", "main", "outcome"]

_OWN = ("--run", "--seed_everything", "--ckpt_path")
"""Options of ``diptych fit`` that this command sets itself."""
_LOG = "train/seconds_per_step"


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

    def lacking(self) -> str:
        """The file of predictions that its test should have left, and that is not there. Empty if there is nothing to miss."""
        content = json.loads(self.results.read_text(encoding="utf-8"))
        if "predictions" not in content:  # of a release before
            return "predictions.csv"
        name = (content["predictions"] or {}).get("file", "")  # a private run has none
        return name if name and not (self.folder / name).is_file() else ""

    @property
    def last(self) -> Path:
        """The last checkpoint."""
        return self.folder / "checkpoints" / "last.ckpt"

    @property
    def probes(self) -> Path:
        """The file that is written last of all."""
        return self.folder / "probes.json"

    def changed(self) -> list[str] | None:
        """The parts of the description that have changed since the folder was made, or None if there is no folder.

        Raises:
            ConfigError: the folder was made by something else.
        """
        return changed_parts(self.folder, "run.json", self.description)

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

    def todo(self) -> str:
        """What is to be done, in the words of when it is done. Empty if all figures are there, and are what they would be now.

        Raises:
            ConfigError: the folder was made by something else.
        """
        changed = self.changed()
        if changed is None:
            return "made"
        if changed:
            return f"made again, for its {', '.join(changed)} changed"
        if self.results.is_file():
            lacking = self.lacking()
            return f"tested again, for its {lacking} is missing" if lacking else self.unprobed()
        return "taken up where it was interrupted" if self.last.is_file() else "made"


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
    model = load(run.last, device="cuda" if torch.cuda.is_available() else "cpu")
    facts = _facts(run, model.module) | {"steps": float(read_checkpoint(run.last)["global_step"])}
    figures = data.probes(model, options, run.pairs)
    _write(run.probes, {"probes": figures, "facts": facts, "made_with": run.probing})


def carry_out(run: Run, recipe: Path, extra: Sequence[str]) -> str:
    """Train, test and probe a run as far as that is missing, and say what was done.

    Raises:
        ConfigError: training, testing or probing failed.
    """
    summary = run.todo()
    if not summary:
        return "there already"
    if run.changed():
        shutil.rmtree(run.folder)
    run.folder.mkdir(parents=True, exist_ok=True)
    _write(run.folder / "run.json", run.description)
    if not run.results.is_file():
        override = run.folder / "variant.yaml"
        replace_text(override, yaml.safe_dump({"model": run.variant.model}))
        command = ["fit", "-c", str(recipe), *extra, "-c", str(override), "--run", str(run.folder)]
        command += ["--seed_everything", str(run.seed), "--data.loading.seed", str(run.seed)]
        # An interrupted run may have left files before its first checkpoint.
        command += ["--ckpt_path", "last"] if run.last.is_file() else ["--overwrite"]
        call(command, run.folder / "fit.log", f"{run.name}: diptych fit")
    if not run.results.is_file() or run.lacking():
        command = ["test", "-c", str(run.folder / "config.yaml"), "--run", str(run.folder), "--ckpt_path", "last"]
        call(command, run.folder / "test.log", f"{run.name}: diptych test")
    _probe(run)
    return summary


class _Progress:
    """Prints a line for each run, and keeps the messages of those that failed.

    A run that fails does not stop the others, unless there is none that succeeded: then the fault may be in all of them.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self.failed: list[str] = []
        self._place = {run.name: f"[{i}/{len(runs)}] {run.name}" for i, run in enumerate(runs, 1)}
        self._succeeded = False

    def begins(self, name: str) -> None:
        """A run begins."""
        print(self._place[name], "begins", flush=True)

    def ends(self, name: str, summary: str, error: str = "") -> None:
        """A run has ended.

        Raises:
            ConfigError: it failed, and none has succeeded.
        """
        print(self._place[name], "...", "failed" if error else summary, flush=True)
        self._succeeded |= not error
        if error:
            self.failed.append(error)
            if not self._succeeded:
                raise ConfigError(error)


def _one_by_one(runs: Sequence[Run], recipe: Path, extra: Sequence[str], progress: _Progress) -> None:
    """Carry out runs in this process."""
    for run in runs:
        if run.todo():
            progress.begins(run.name)
        try:
            summary, error = carry_out(run, recipe, extra), ""
        except ConfigError as failure:
            summary, error = "", str(failure)
        progress.ends(run.name, summary, error)


def _several(runs: Sequence[Run], jobs: int, command: Sequence[str], extra: Sequence[str], progress: _Progress) -> None:
    """Carry out ``jobs`` runs at a time, each by a ``diptych compare`` of its own, which has its share of the cores.

    Args:
        runs: the runs.
        jobs: how many at a time.
        command: the words of ``diptych compare`` that all of them share.
        extra: options of every fit.
        progress: is told of each run.
    """
    summaries, children, of = dict[str, str](), [], {run.name: run for run in runs}
    for run in runs:
        summaries[run.name] = run.todo()
        if not summaries[run.name]:
            progress.ends(run.name, "there already")
            continue
        run.folder.parent.mkdir(parents=True, exist_ok=True)
        own = ["--only", run.variant.name, "--seeds", str(run.seed), "--runs-only", "--", *extra]
        children.append(Child(run.name, (*command, *own), run.folder.with_suffix(".log")))

    def ended(child: Child, error: str) -> None:
        error = error.replace(
            f"{child.name} failed: {child.name}: ", f"{child.name}: ", 1
        )  # its own message names it too
        if not error and of[child.name].todo():
            error = f"{child.name}: the recipe or the variants have changed since the comparison began; start it again"
        if not error:
            child.log.unlink()
        progress.ends(child.name, summaries[child.name], error)

    share = {"OMP_NUM_THREADS": str(max(1, cores() // jobs))}
    run_all(children, jobs, ended, lambda child: progress.begins(child.name), share)


def outcome(run: Run) -> Outcome:
    """The figures of a complete run."""
    from diptych.results.record import read_results
    from diptych.results.tested import read_tested

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
    return Outcome(run.variant.name, run.seed, metrics, probes["facts"], chance, read_tested(run.results))


def _runs(
    variants: Sequence[Variant], seeds: Sequence[int], root: Path, recipe: Path, extra: Sequence[str], pairs: int | None
) -> list[Run]:
    files = [Path(option.rpartition("=")[2]) for option in extra]
    options = [path.read_text() if path.is_file() else option for path, option in zip(files, extra, strict=True)]
    common = {"recipe": read_mapping(recipe), "options": options, "version": __version__}
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
    parser.add_argument(
        "--against", metavar="NAME", help="variant that the others are compared with (default: the first)"
    )
    parser.add_argument("--run", type=Path, default=Path("runs/compare"), help="folder (default: %(default)s)")
    parser.add_argument("--probe-pairs", type=int, help="pairs of phantoms in each probe (default: the probes' own)")
    parser.add_argument(
        "--jobs", type=int, default=1, help="runs at a time, which share the cores (default: %(default)s)"
    )
    parser.add_argument("--runs-only", action="store_true", help="make the runs, and write no table")
    args = parser.parse_args(words[:split])
    check_number("--jobs", args.jobs, least=1, whole=True)
    if own := [option for option in extra if option.split("=")[0] in _OWN]:
        raise ConfigError(f"{own[0]} after -- is set by this command for every run; leave it out")
    source = args.variants or args.config.with_name("variants.yaml")
    variants = read_variants(source, args.config)
    names = [variant.name for variant in variants]
    if unknown := [name for name in args.only or () if name not in names]:
        raise ConfigError(f"--only {unknown[0]}: not in {source}, which has {', '.join(names)}")
    if args.against not in (None, *names):
        raise ConfigError(f"--against {args.against}: not in {source}, which has {', '.join(names)}")
    runs = _runs(variants, list(dict.fromkeys(args.seeds)), args.run, args.config, extra, args.probe_pairs)
    todo = [run for run in runs if args.only is None or run.variant.name in args.only]
    for run in todo:
        run.changed()  # a folder that something else has made is found now, not after hours
    progress = _Progress(todo)
    with warm():
        if args.jobs == 1:
            _one_by_one(todo, args.config, extra, progress)
        else:
            command = ["compare", "-c", str(args.config), "--variants", str(source), "--run", str(args.run)]
            command += [] if args.probe_pairs is None else ["--probe-pairs", str(args.probe_pairs)]
            _several(todo, args.jobs, command, extra, progress)
    if not args.runs_only:
        complete = [run for run in runs if not run.todo()]
        title = f"{args.config.name}, {source.name}, diptych {__version__}"
        missing = [run.name for run in runs if run not in complete]
        notes = {variant.name: variant.note for variant in variants}
        Comparison(title, notes, [outcome(run) for run in complete], missing, args.against).write(args.run)
    if progress.failed:
        others = f"{len(progress.failed)} runs failed, the first: " if progress.failed[1:] else ""
        raise ConfigError(f"{others}{progress.failed[0]}")
