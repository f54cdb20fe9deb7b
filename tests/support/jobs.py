"""The command on two processes, as a user launches it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import inprocess
import pytest
from mini import ROOT

# What ddp.yaml says about CPU processes; bfloat16 would hide what is compared here.
GLOO = ["--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy.process_group_backend", "gloo"]


def launch(*arguments, timeout=500):
    """Run the command in a session of its own, and see that no process of it is left."""
    process = subprocess.Popen(
        [str(Path(sys.executable).with_name("diptych")), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "tests" / "support")},
    )
    try:
        out, err = process.communicate(timeout=timeout)
        until = time.monotonic() + 20  # a loader's workers look for their parent every 5 s
        while _alive(process.pid):
            assert time.monotonic() < until, f"processes of {arguments} are left"
            time.sleep(0.1)
    finally:
        if _alive(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def two_give(metrics, file, run, *options):
    """Tested on two processes, the figures are ``metrics``, those of one."""
    done = launch("test", "-c", file, *GLOO, "--run", str(run), *options)
    assert done.returncode == 0, done.stderr
    found = inprocess.results_of(run)["metrics"]
    assert found.keys() == metrics.keys()
    for name, value in metrics.items():
        assert found[name] == pytest.approx(value, abs=1e-6), name


def _alive(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
