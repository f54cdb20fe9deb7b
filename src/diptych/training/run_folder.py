"""The folder of one run: what lies in it, who may write to it, and which checkpoint a run goes on from."""

from __future__ import annotations

import fcntl
import json
import os
import re
import socket
import zipfile
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import IO

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from diptych.errors import ConfigError
from diptych.model.checkpoint import read_checkpoint

__all__ = ["RemoveFiles", "RunLock", "earlier", "first_process", "lies_in", "newest", "run_files"]

_RANKS = ("RANK", "SLURM_PROCID", "NODE_RANK", "LOCAL_RANK")
"""The variables in which launchers give a process its place. A launcher sets some of them."""
_SLURM = "hpc_ckpt_*.ckpt"
"""Checkpoints that Lightning itself saved when SLURM's signal came."""
_RESULTS = ("results*.json", "predictions.csv", "predictions.parquet")
_REST = (
    "config-*.yaml", "dropped.csv", "hparams.yaml", "diverged.json", "events.out.tfevents.*",
    "curves-*.png", "curves-*.svg", "curves-*.pdf",
)  # fmt: skip
_FIGURE = re.compile(r"((epoch\d+|test)-.+|(few_shot|detection|segmentation)\d+)\.(png|svg|pdf)")


def first_process() -> bool:
    """Whether this is the first process of its job, the one that writes."""
    return all(os.environ.get(name, "0") in ("", "0") for name in _RANKS)


def lies_in(path: Path, folder: Path) -> bool:
    """Whether a file is in a folder, whatever links and relative parts their paths have."""
    return path.resolve().is_relative_to(folder.resolve())


def earlier(run: Path, checkpoints: Path) -> list[Path]:
    """Checkpoints and results that a run has left in its folder."""
    files = [*run.glob(_SLURM), *checkpoints.glob("*.ckpt")]
    for pattern in _RESULTS:
        files += run.glob(pattern)
    return sorted(files)


def run_files(run: Path, checkpoints: Path, best: str) -> list[Path]:
    """The files that an earlier run wrote: checkpoints, results, figures and logs. The new run replaces the recipe anyway.

    Args:
        run: the folder.
        checkpoints: where its checkpoints are.
        best: the name of the best checkpoint, without its suffix. Fields in braces stand for any text.
    """
    name = "".join(".*" if part.startswith("{") else re.escape(part) for part in re.split(r"(\{.*?\})", best))
    saved = re.compile(rf"(last|{name})(-v\d+)?\.ckpt(\.part.*)?")
    files = [path for path in checkpoints.glob("*.ckpt*") if saved.fullmatch(path.name)]
    files += [path for path in (run / "figures").glob("*.*") if _FIGURE.fullmatch(path.name)]
    for pattern in (_SLURM, *_RESULTS, *_REST):
        files += run.glob(pattern)
    return files


class RemoveFiles(Callback):
    """Removes files when a run has read all its data and is about to begin. A run that cannot begin removes nothing.

    Args:
        files: those of an earlier run.
    """

    def __init__(self, files: list[Path]) -> None:
        self.files = files

    @rank_zero_only
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the files."""
        for path in self.files:
            path.unlink(missing_ok=True)


def newest(run: Path, checkpoints: Path, *, best: bool) -> Path:
    """The newest whole checkpoint of a run, by its time of change. A message names damaged ones, which are left out.

    Args:
        run: the folder, with the checkpoints that Lightning saved for SLURM.
        checkpoints: the folder of the others.
        best: whether to take ``best.ckpt`` if no other is whole.

    Raises:
        ConfigError: there is none.
    """
    files = sorted([*run.glob(_SLURM), *checkpoints.glob("last*.ckpt")], key=lambda path: path.stat().st_mtime_ns)
    files.reverse()
    if best:
        files += checkpoints.glob("best.ckpt")
    for path in files:
        if (damage := _damage(path)) is None:
            if path.name != "last.ckpt":
                rank_zero_info(f"--ckpt_path last: {path} is the newest whole checkpoint of this run")
            return path
        rank_zero_info(f"--ckpt_path last: passed over, as it is damaged: {damage}")
    have = ", ".join(sorted(path.name for path in {*files, *checkpoints.glob("*.ckpt")}))
    raise ConfigError(
        f"--ckpt_path last: {checkpoints / 'last.ckpt'} does not exist or is damaged (there: {have or 'nothing'}); train "
        "with the same --run first, or give a file's path"
    )


def _damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None. Its checksums are compared, which torch does not do."""
    try:
        read_checkpoint(path)
        with zipfile.ZipFile(path) as file:
            bad = file.testzip()
    except ConfigError as error:
        return str(error)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        return f"{path}: {error}"
    return None if bad is None else f"{path}: {bad} is not what was written"


class RunLock:
    """Lets one job at a time write to a run folder.

    The lock belongs to the operating system. It ends with the process that holds it, however that process ends. Many network
    file systems know locks, and then it works between hosts. On others a message says that nothing is locked.
    """

    def __init__(self) -> None:
        self._file: IO[str] | None = None
        self._path = Path()
        self._process = os.getpid()

    def take(self, run: Path) -> None:
        """Lock a folder, for the life of this process or until ``release``.

        Raises:
            ConfigError: another process holds it.
        """
        self._path = run / "run.lock"
        while self._file is None:
            file = self._path.open("a+")
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not flock: a loader's worker would inherit it
            except (BlockingIOError, PermissionError):
                raise ConfigError(
                    f"--run {run}: another run is writing there ({_holder(file)}); wait for its end, or give another --run"
                ) from None
            except OSError as error:
                file.close()
                rank_zero_info(
                    f"--run {run}: its file system knows no locks ({error.strerror}); start no second run there"
                )
                return
            if _same(file, self._path):  # else its holder has just removed it
                self._file = file
        self._file.truncate(0)
        started = datetime.now().astimezone().isoformat(timespec="seconds")
        json.dump({"host": socket.gethostname(), "process": os.getpid(), "since": started}, self._file)
        self._file.flush()

    def release(self) -> None:
        """Unlock it."""
        if self._file is not None and os.getpid() == self._process:  # not in a forked process
            self._path.unlink(missing_ok=True)
            self._file.close()
            self._file = None


def _same(file: IO[str], path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False


def _holder(file: IO[str]) -> str:
    """Who holds a lock, as its file says. Closes the file."""
    with file:
        file.seek(0)
        text = file.read(1000)
    with suppress(ValueError, KeyError, TypeError):
        holder = json.loads(text)
        return f"host {holder['host']}, process {holder['process']}, since {holder['since']}"
    return "it has not said which"
