"""Processes that load samples."""

from __future__ import annotations

import os
import signal
import threading

__all__ = ["leave_to_parent"]


def leave_to_parent(worker: int) -> None:
    """Begin a loader's worker: signals to a whole group or job are the main process's to act on, which still needs data.

    SIGTERM from the main process itself ends the worker, as always.
    """
    parent = os.getppid()
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True, name="sigterm").start()
