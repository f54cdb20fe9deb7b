"""The benchmark for a GPU runs on a CPU too, in tiny sizes: every line of it that a CPU can."""

import subprocess
import sys

import pytest
from mini import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def run(*arguments):
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--device", "cpu", "--small", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_every_head_is_checked_timed_and_compared():
    done = run("--minutes", "20", "--heads", "global", "local_pooling, raw", "reclf")  # values are checked of all
    assert done.returncode == 0, done.stderr
    assert "values: within" in done.stdout
    assert "DDP of one process by gloo: 3 steps" in done.stdout
    rows = [line.split("|")[1:-1] for line in done.stdout.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 2 * 3
    for name, precision, eager, _, share, compiled, loop in rows:
        assert precision.strip() in ("float32", "bf16")
        assert float(eager) > 0
        assert float(compiled) > 0
        assert share.strip().endswith("%")
        assert loop.strip().endswith("x)") == name.strip().startswith(("local_pooling", "reclf"))


def test_what_does_not_fit_the_time_is_said_to_be_skipped():
    done = run("--minutes", "0", "--heads", "global")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("skipped") == 10
