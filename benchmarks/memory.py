"""The most memory that this very process had.

``ru_maxrss`` does not say it: a child begins at what its parent had, since the kernel carries the figure over from the
memory that ``exec`` replaces.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["peak", "reset_peak"]


def peak() -> float:
    """GiB resident at most, since the process began or since :func:`reset_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**20


def reset_peak() -> None:
    """Begin anew, at what is resident now; older kernels and some containers do not allow it.

    Raises:
        OSError: not allowed here.
    """
    Path("/proc/self/clear_refs").write_text("5")
