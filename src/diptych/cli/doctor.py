"""``diptych doctor``: whether this installation works, and what a bug report needs.

It reads versions, devices, extras, plug-ins and folders, and trains every head for one step. Nothing is downloaded or kept.
The output holds no user name, no host name, and no path under the home folder but with ``~``.
"""

from __future__ import annotations

import argparse
import contextlib
import getpass
import json
import os
import platform
import re
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from diptych.errors import ConfigError

__all__ = ["Line", "extras", "main", "packages", "plain_path", "public"]

_VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "HF_HUB_OFFLINE",
    "HF_HOME",
    "NCCL_DEBUG",
    "OMP_NUM_THREADS",
    "SLURM_JOB_ID",
    "SLURM_NTASKS",
    "WORLD_SIZE",
)
"""Environment variables that change what a run does. Tokens are not among them."""
_LEAST_SHARED = 1 << 30
"""Bytes of /dev/shm below which loader workers of large pictures fail. A container often has 64 MB."""


@dataclass(frozen=True)
class Line:
    """One thing that was looked at."""

    about: str
    name: str
    value: str
    state: Literal["fine", "note", "wrong"] = "fine"
    remedy: str = ""


def plain_path(path: str | Path) -> str:
    """A path that may be pasted in public: the home folder is ``~``.

    >>> plain_path(Path.home() / "runs")
    '~/runs'
    """
    text, home = str(path), str(Path.home())
    return "~" + text[len(home) :] if text == home or text.startswith(home.rstrip("/") + "/") else text


def public(text: str) -> str:
    """A text without the names of the user, the host and the home folder."""
    names = {str(Path.home()): "~", socket.gethostname(): "HOST"}
    with contextlib.suppress(KeyError, OSError):  # a container may have no entry for its user
        names[getpass.getuser()] = "USER"
    for name, instead in names.items():
        text = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", instead, text)
    return text


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _asked(extra: str = "") -> list[Requirement]:
    """What diptych's metadata asks for: always, or with an extra."""
    found = [Requirement(text) for text in requires("diptych") or []]
    always = [need for need in found if need.marker is None or need.marker.evaluate({"extra": ""})]
    if not extra:
        return always
    return [need for need in found if need not in always and need.marker and need.marker.evaluate({"extra": extra})]


def packages() -> Iterator[Line]:
    """Each dependency with its version, and whether diptych was made for that version."""
    for need in _asked():
        has = _installed(need.name)
        if has is None:
            yield Line("packages", need.name, "missing", "wrong", f"pip install '{need.name}{need.specifier}'")
        elif not need.specifier.contains(has, prereleases=True):
            remedy = f"diptych asks for {need.specifier}: pip install '{need.name}{need.specifier}'"
            yield Line("packages", need.name, has, "wrong", remedy)
        else:
            yield Line("packages", need.name, has)


def extras() -> Iterator[Line]:
    """Each extra of diptych, and what it lacks."""
    for extra in sorted(metadata("diptych").get_all("Provides-Extra") or []):
        needs = _asked(extra)
        has = {need.name: _installed(need.name) for need in needs}
        missing = sorted(name for name, found in has.items() if found is None)
        wrong = sorted(
            f"{need.name} {found} (asked: {need.specifier})"
            for need in needs
            if (found := has[need.name]) and not need.specifier.contains(found, prereleases=True)
        )
        remedy = f"pip install 'diptych[{extra}]'"
        if wrong:
            yield Line("extras", extra, "; ".join(wrong), "wrong", remedy)
        elif missing:
            yield Line("extras", extra, f"without {', '.join(missing)}", "note", remedy)
        else:
            yield Line("extras", extra, "complete")


def _machine() -> Iterator[Line]:
    import torch

    yield Line("machine", "diptych", f"{_installed('diptych')} in {plain_path(Path(__file__).parents[1])}")
    yield Line("machine", "python", f"{platform.python_version()} in {plain_path(sys.prefix)}")
    yield Line("machine", "system", f"{platform.system()} {platform.release()} {platform.machine()}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Line("machine", "cores", f"{cores} of {os.cpu_count()}, torch uses {torch.get_num_threads()}")
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        yield Line("machine", "memory", f"{memory / 2**30:.1f} GiB")
    for name in _VARIABLES:
        if name in os.environ:
            yield Line("machine", name, plain_path(os.environ[name]))


def _devices() -> Iterator[Line]:
    import torch

    from diptych.distributed import backends

    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        major = torch.cuda.get_device_capability(index)[0]
        bf16 = "bf16" if major >= 8 else "no bf16: --trainer.precision 16-mixed"
        yield Line("devices", f"cuda:{index}", f"{card.name}, {card.total_memory / 2**30:.0f} GiB, {bf16}")
    cuda = torch.version.cuda
    if not torch.cuda.is_available():
        built = f"torch is built for CUDA {cuda}, and finds no GPU" if cuda else "torch is built without CUDA"
        yield Line("devices", "cuda", built, "note", "training runs on the CPU; with a GPU, look at its driver")
    if torch.backends.mps.is_available():
        yield Line("devices", "mps", "available")
    able = backends()
    remedy = "" if able else "several processes cannot train: install another build of torch"
    yield Line("devices", "processes", " ".join(able) or "neither nccl nor gloo", "fine" if able else "wrong", remedy)


def _folders() -> Iterator[Line]:
    cache = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    models = len(list((cache / "hub").glob("models--*")))
    yield Line("folders", "model hub's cache", f"{plain_path(cache)}, {models} models")
    for name, folder in (("temporary files", Path(tempfile.gettempdir())), ("here", Path.cwd())):
        free = shutil.disk_usage(folder).free
        value = f"{plain_path(folder)}, {free / 2**30:.0f} GiB free"
        if not os.access(folder, os.W_OK):
            yield Line("folders", name, value, "note", "it cannot be written: give --run a folder that can")
        else:
            yield Line("folders", name, value)
    shared = Path("/dev/shm")
    if shared.is_dir():
        size = shutil.disk_usage(shared).total
        value = f"{plain_path(shared)}, {size / 2**30:.2f} GiB"
        small = size < _LEAST_SHARED
        remedy = "loader workers may fail: docker run --shm-size 8g, or --data.loading.workers 0" if small else ""
        yield Line("folders", "shared memory", value, "note" if small else "fine", remedy)


def _catalogues() -> Iterator[Line]:
    """What is registered. A plug-in that cannot be imported is wrong, whoever brings it."""
    from diptych.plugins import COMMANDS, DATAMODULES, EVALUATORS, HEADS, PEERS, TASKS, plugins

    for group in (HEADS, DATAMODULES, TASKS, EVALUATORS, PEERS, COMMANDS):
        names, about = [], group.partition(".")[2]
        for plugin in plugins(group):
            foreign = "" if plugin.distribution == "diptych" else f" ({plugin.distribution})"
            try:
                plugin.load()
            except ConfigError as error:
                yield Line("plug-ins", plugin.name, str(error), "wrong", "repair or uninstall that package")
            else:
                names.append(plugin.name + foreign)
        yield Line("plug-ins", about, ", ".join(names))


def _steps() -> Iterator[Line]:
    """One step of training of every head, on each device."""
    import torch

    from diptych.cli.trial import try_head
    from diptych.plugins import HEADS, plugins

    devices = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    for device in devices:
        for plugin in plugins(HEADS):
            try:
                value = try_head(plugin, device)
            except Exception as error:  # whatever a head or a driver does, the next is looked at
                reason = f"{type(error).__name__}: {error}".partition("\n")[0]
                yield Line("a step on " + device, plugin.name, reason, "wrong", f"report it to {plugin.distribution}")
            else:
                yield Line("a step on " + device, plugin.name, value)


_PARTS: tuple[Callable[[], Iterator[Line]], ...] = (
    _machine,
    packages,
    extras,
    _devices,
    _folders,
    _catalogues,
    _steps,
)


def main(arguments: Sequence[str]) -> None:
    """``diptych doctor [--json]``: exit code 1 if something is wrong."""
    parser = argparse.ArgumentParser(
        "diptych doctor",
        description="Looks at versions, devices, extras, folders and plug-ins, and trains each head for one step. "
        "Paste the output into a bug report: it holds no user name and no host name.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    lines: list[Line] = []
    about = ""
    for part in _PARTS:
        for line in part():
            line = replace(line, value=public(line.value), remedy=public(line.remedy))
            lines.append(line)
            if options.json:
                continue
            if line.about != about:
                print(f"{line.about}:")
                about = line.about
            print(f"  {line.name:20} {line.value}" + ("" if line.state == "fine" else f"  <- {line.state}"))
    wrong = [line for line in lines if line.state != "fine"]
    if options.json:
        print(json.dumps([asdict(line) for line in lines], indent=2))
    else:
        for line in sorted(wrong, key=lambda line: line.state, reverse=True):
            print(f"{line.state}: {line.name}: {line.value}" + (f"; {line.remedy}" if line.remedy else ""))
        print("something is wrong" if any(line.state == "wrong" for line in lines) else "all works")
    if any(line.state == "wrong" for line in lines):
        sys.exit(1)
