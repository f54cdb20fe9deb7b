"""Processes that load samples."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from typing import Any

from torch.utils.data import DataLoader

__all__ = ["Loader", "leave_to_parent"]

_ORDERS = {signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM}


class Loader(DataLoader[Any]):
    """A loader that blocks signals while its workers start. :func:`leave_to_parent` then decides what they heed."""

    def _get_iterator(self) -> Any:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _ORDERS)
        try:
            return super()._get_iterator()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_to_parent(worker: int) -> None:
    """Let a worker ignore signals that a whole group or job receives. The main process acts on them, and still needs data.

    SIGTERM from the main process itself ends the worker, as always.
    """
    main = multiprocessing.parent_process()
    assert main is not None
    parent = main.pid  # not its parent, where a fork server starts workers
    ignored = _ORDERS - {signal.SIGTERM}
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)  # drops what came while it was blocked
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ignored)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True, name="sigterm").start()
