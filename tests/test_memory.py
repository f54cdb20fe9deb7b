"""What the benchmarks call the most memory of a process is its own."""

import subprocess
import sys

import pytest
from mini import ROOT

_CHILD = """
import resource, sys
sys.path.insert(0, sys.argv[1])
from memory import peak, reset_peak
first = peak()
held = bytearray(b"x" * (100 << 20))
grown = peak()
del held
try:
    reset_peak()
    after = peak()
except OSError:
    after = -1
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, first, grown, after)
"""
_PARENT = """
import subprocess, sys
held = bytearray(b"x" * (400 << 20))
subprocess.run([sys.executable, "-c", *sys.argv[1:]], check=True)
"""


@pytest.fixture(scope="module")
def readings():
    command = [sys.executable, "-c", _PARENT, _CHILD, str(ROOT / "benchmarks")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [float(word) for word in done.stdout.split()]


def test_a_child_does_not_begin_at_what_its_parent_had(readings):
    usage, first, grown, _ = readings
    assert usage > 0.39  # the parent's 400 MiB, as the kernel counts it for the child
    assert first < 0.1
    assert 0.09 < grown - first < 0.3


def test_it_can_begin_anew(readings):
    after = readings[3]
    if after < 0:
        pytest.skip("this machine does not let a process reset its peak")
    assert after < readings[2] - 0.05


def test_no_benchmark_reads_the_other_figure():
    files = [path for path in (ROOT / "benchmarks").glob("*.py") if path.name != "memory.py"]
    assert not [path.name for path in files if "ru_maxrss" in path.read_text()]
