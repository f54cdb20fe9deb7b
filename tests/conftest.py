"""Shared by all tests: no network, few threads, the process pool, and the folder of real data where there is one."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

for _name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "NO_ALBUMENTATIONS_UPDATE"):
    os.environ[_name] = "1"
_THREADS = 1 if "PYTEST_XDIST_WORKER" in os.environ else 2  # `make test` has a worker a core
if _THREADS == 1:
    os.environ["OMP_NUM_THREADS"] = "1"  # of commands that tests start
sys.path.insert(
    0, str(Path(__file__).parent / "support")
)  # helper modules are imported by name, here and in the pool's processes

import pytest  # noqa: E402  # after the environment is set
import torch  # noqa: E402  # as above
from gloo import gloo2, gloo4, processes  # noqa: E402  # after its folder can be found
from refusing import evil  # noqa: E402  # as above
from texts import minilm, minilm_folder  # noqa: E402  # as above

__all__ = ["evil", "gloo2", "gloo4", "minilm", "minilm_folder", "one_thread", "processes", "shared_data"]

torch.set_num_threads(_THREADS)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first: started last, one of them would keep a single worker busy at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For loops over small values, where threads wait for each other longer than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data: ``data`` in ``$DIPTYCH_SHARED``, or in ``shared`` beside the repository."""
    beside = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("DIPTYCH_SHARED", beside)) / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is not a folder; name its parent in DIPTYCH_SHARED")
    return folder
