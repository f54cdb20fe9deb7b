"""The command without its six seconds of imports: ``main`` in this very process, as the console script calls it."""

import contextlib
import io
import json
import logging
import multiprocessing
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from diptych.cli.main import main
from diptych.cli.score import main as score

QUIET = ("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false")


def diptych(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Exit code and output of ``diptych`` with these arguments; an error that is not caught is raised here too.

    Lightning's fabric, which tells the seed, has a handler or none by what imported it first: a conftest, or a test. Here it
    has none, so that the output is the same in any company.
    """
    out, err = io.StringIO(), io.StringIO()
    code = 0
    before, threads = multiprocessing.active_children(), torch.get_num_threads()
    torch.set_num_threads(1)  # enough for the smallest model, and faster on a busy machine
    log = logging.StreamHandler(err)  # Lightning's own handlers hold the stream of their import
    fabric = logging.getLogger("lightning.fabric")
    with (
        patch.object(fabric, "handlers", []),
        patch.object(fabric, "propagate", False),
        patch.object(sys, "argv", ["diptych", *arguments]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        logging.getLogger("lightning.pytorch").addHandler(log)
        try:
            main()
        except SystemExit as exit_:
            code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
        finally:
            logging.getLogger("lightning.pytorch").removeHandler(log)
            torch.set_num_threads(threads)
            for worker in set(multiprocessing.active_children()) - set(before):  # of a loader that an error has left
                worker.terminate()  # not kill: torch would raise in the next test that a worker was killed
                worker.join(10)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def fit_and_test(file: Path | str, run: Path, *options: str) -> dict[str, Any]:
    """What ``results.json`` holds after both commands; ``options`` are of the first."""
    done = diptych("fit", "-c", str(file), "--run", str(run), *QUIET, *options)
    assert done.returncode == 0, done.stderr
    done = diptych("test", "-c", str(run / "config.yaml"), "--run", str(run), "--ckpt_path", "best")
    assert done.returncode == 0, done.stderr
    return rescored(run)


def rescored(run: Path) -> dict[str, Any]:
    """The results of a test, after ``diptych score`` has computed each figure from its predictions, with every digit."""
    results = results_of(run)
    if results["predictions"] is None:
        return results
    with contextlib.redirect_stdout(io.StringIO()):
        score([str(run / results["predictions"]["file"]), "--write", str(run / "again.json")])
    again = json.loads((run / "again.json").read_text())
    (run / "again.json").unlink()
    starts = tuple(f"test/{name}/" for name in results["predictions"]["of"])
    assert again["metrics"] == {name: value for name, value in results["metrics"].items() if name.startswith(starts)}
    for part in ("split_hash", "seed", "checkpoint", "head", "data"):
        assert again[part] == results[part], part
    for name in {name.partition("/")[0] for name in results["predictions"]["of"]}:
        assert again["protocol"][name] == results["protocol"][name], name
    return results


def results_of(run: Path) -> dict[str, Any]:
    """What a test left."""
    results: dict[str, Any] = json.loads((run / "results.json").read_text())
    return results
