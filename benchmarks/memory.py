"""The most memory that this very process had.

``ru_maxrss`` is not that. A child begins with its parent's figure, since the kernel carries it over from the memory that
``exec`` replaces.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["peak", "reset_peak"]


def peak() -> float:
    """The most GiB resident since the process began, or since :func:`reset_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**20


def reset_peak() -> None:
    """Begin anew, at what is resident now.

    Raises:
        OSError: an older kernel or a container does not allow it.
    """
    Path("/proc/self/clear_refs").write_text("5")
