"""Random interruptions: a run is killed at any moment and goes on, again and again. It is compared with an undisturbed one.

    .venv/bin/python benchmarks/kills.py [CYCLES] [SEED]

A cycle is one kill and one start after it. The moment of a kill is drawn from the time that a start takes. So kills fall
into training, validation, the writing of checkpoints, and the start itself. Each run is killed several times. Both
checkpoints are compared with all that they hold (weights, optimiser, schedule, counters, callbacks), and so is every
validation.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import tempfile
import time
from multiprocessing import get_context
from multiprocessing.context import ForkProcess
from pathlib import Path

import torch
import yaml

from diptych.cli.run import run as run_command

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

from chains import differences, left_by
from mini import config, write_pairs

KILLS = 10  # of one run


def _fit(folder: Path, run: Path) -> None:
    """``diptych fit``, in a process of its own that has the parent's imports."""
    log = os.open(folder / "log.txt", os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    torch.set_num_threads(1)
    resume = ["--ckpt_path", "last"] if (run / "checkpoints" / "last.ckpt").exists() else []
    sys.argv = ["diptych", "fit", "-c", str(folder / "run.yaml"), "--run", str(run), *resume]
    run_command("fit")


def _start(folder: Path, run: Path) -> ForkProcess:
    process = get_context("fork").Process(target=_fit, args=(folder, run))
    process.start()
    return process


def _finish(folder: Path, run: Path) -> float:
    """Let a run end. Returns the seconds that this takes."""
    begun = time.monotonic()
    process = _start(folder, run)
    process.join()
    assert process.exitcode == 0, (folder / "log.txt").read_text()[-3000:]
    return time.monotonic() - begun


def main(cycles: int, seed: int) -> None:
    """Kill, go on, compare, and print."""
    draw = random.Random(seed)
    folder = Path(tempfile.mkdtemp(prefix="kills"))
    recipe = yaml.safe_load(config(write_pairs(folder / "data", n=36), epochs=4))
    recipe["trainer"]["callbacks"] = [{"class_path": "EMAWeightAveraging", "init_args": {"decay": 0.9}}]
    recipe["trainer"]["val_check_interval"] = 0.5
    recipe["recovery"] = {"every_n_train_steps": 1}
    (folder / "run.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "log.txt").touch()
    seconds = _finish(folder, folder / "whole")
    whole = left_by(folder / "whole")
    kills = ended = runs = different = parts = 0
    steps: list[int] = []
    while kills < cycles:
        run = folder / f"run{runs}"
        runs += 1
        for _ in range(KILLS):
            if kills == cycles:
                break
            before = set(run.rglob("*.part"))
            process = _start(folder, run)
            process.join(draw.uniform(0.0, seconds / 2))
            if not process.is_alive():
                ended += 1  # it was over before its kill
                break
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            kills += 1
            parts += bool(set(run.rglob("*.part")) - before)
        _finish(folder, run)
        left = left_by(run)
        changes = differences(left, whole)
        steps.append(left["last"]["global_step"])  # type: ignore[index]  # a checkpoint
        different += bool(changes)
        print(
            f"run {runs}: {kills} kills so far, step {steps[-1]}, {len(changes)} differences {changes[:3]}", flush=True
        )
        shutil.rmtree(run)
    print(
        f"{kills} kills over {runs} runs (seed {seed}); {parts} while a checkpoint was written; {ended} runs ended before a "
        f"kill; {different} runs differ from the uninterrupted one; all end at step {sorted(set(steps))}"
    )
    shutil.rmtree(folder)
    sys.exit(different > 0)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200, int(sys.argv[2]) if len(sys.argv) > 2 else 0)
