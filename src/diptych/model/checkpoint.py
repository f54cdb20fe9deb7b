"""Checkpoint files: written whole, read without running anything, refused where they do not fit."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from diptych.errors import ConfigError
from diptych.escaping import one_line
from diptych.files import replacing
from diptych.model.budget import check_weights
from diptych.sharing.folder import FILES, WEIGHTS, is_folder, read_folder
from diptych.sharing.hub import HUB, download
from diptych.towers.foreign import refuse_compressed
from diptych.towers.weights import some
from diptych.version import __version__

if TYPE_CHECKING:
    from diptych.data.datamodule import RadiographDataModule

__all__ = ["AtomicCheckpointIO", "check_fit", "checkpoint_in", "description", "read_checkpoint", "read_model"]


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and moves it there. A run that is killed while saving keeps the older one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint whole, or leave the file that was there.

        Raises:
            DataError: it cannot be written.
        """
        if storage_options is not None:
            raise TypeError("storage_options are for another CheckpointIO")
        with replacing(path, "make room, then go on with --ckpt_path last") as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:
                if isinstance(error.__context__, OSError):  # torch hides a full disk behind positions in its archive
                    raise error.__context__ from None
                raise

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """A checkpoint's contents. Whatever ``weights_only`` says, nothing that the file holds is run.

        Raises:
            ConfigError: it is not a checkpoint of a training run.
        """
        checkpoint = read_checkpoint(path)
        if "pytorch-lightning_version" not in checkpoint:
            raise ConfigError(f"{path}: not written by diptych; give a .ckpt below the checkpoints/ of a run")
        return checkpoint


def read_checkpoint(path: Path | str) -> dict[str, Any]:
    """A checkpoint's contents, read without running anything in it.

    Raises:
        ConfigError: the file is missing, cut off, not a checkpoint, or holds more than numbers and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path}: no such checkpoint file; give the path of a .ckpt below the run's checkpoints/")
    try:
        refuse_compressed(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch goes on to recommend weights_only=False, which would run what the file says
        foreign_class = re.search(r"GLOBAL (\S+)", str(error))
        raise ConfigError(
            f"{path}: refused: it is no checkpoint, or holds objects other than tensors and plain values"
            f"{f' ({foreign_class[1]})' if foreign_class else ''}; only load checkpoints that diptych wrote"
        ) from error
    except Exception as error:  # torch's reader fails in many ways
        raise ConfigError(
            f"{path}: the checkpoint is cut off or damaged, or is none "
            f"({type(error).__name__}: {' '.join(str(error).split())[:120]})"
        ) from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise ConfigError(f"{path}: not a training checkpoint (it has no state_dict); weights alone cannot be loaded")
    check_weights(checkpoint["state_dict"], str(path))
    return checkpoint


def description(config: dict[str, Any] | None, head: nn.Module, data: RadiographDataModule | None) -> dict[str, Any]:
    """What a checkpoint holds beside weights, in plain values: enough to build its module again.

    Args:
        config: the ``model:`` part of the recipe, or None of a module that was built in Python.
        head: the alignment head.
        data: what it was trained on, or None where it is not known.
    """
    return {
        "version": __version__,
        "config": config,
        "head": f"{type(head).__module__}.{type(head).__qualname__}",
        "findings": [] if data is None else list(data.findings),
        "image_size": None if data is None else data.loading.image_size,
        "intensity": None if data is None else data.loading.intensity.plain(),
    }


def check_fit(checkpoint: dict[str, Any], module: nn.Module, *, source: str) -> None:
    """Refuse weights that do not fit a module exactly.

    Raises:
        ConfigError: they do not. The message names the head that the checkpoint was trained with, and lists the weights
            that are missing, unexpected or of another shape.
    """
    have, want = checkpoint["state_dict"], module.state_dict()
    missing = sorted(set(want) - set(have))
    unexpected = sorted(set(have) - set(want))
    shapes = [
        f"{name} {list(have[name].shape)} for {list(want[name].shape)}"
        for name in sorted(set(want) & set(have))
        if isinstance(want[name], Tensor) and have[name].shape != want[name].shape
    ]
    if missing or unexpected or shapes:
        stored = checkpoint.get("diptych")
        trained = "not written by diptych"
        if isinstance(stored, dict) and (of := stored.get("task") or stored.get("head")):
            trained = f"trained {'for the task' if 'task' in stored else 'with the head'} {one_line(str(of))}"
        raise ConfigError(
            f"{source} does not fit this model; it was {trained}; missing: {some(missing, 4)}; unexpected: "
            f"{some(unexpected, 4)}; other shape: {some(shapes, 4)}; use the configuration it was trained with"
        )


def checkpoint_in(path: Path | str) -> Path:
    """The checkpoint file of a path. Of a run's folder it is the best checkpoint, else the last. A message says which.

    Raises:
        ConfigError: the folder holds neither.
    """
    path = Path(path)
    if not path.is_dir():
        return path
    for folder in (path / "checkpoints", path):
        for name in ("best.ckpt", "last.ckpt"):
            if (file := folder / name).is_file():
                rank_zero_info(
                    f"{path}: {'the best' if name == 'best.ckpt' else 'no best checkpoint, so the last'}, {file}"
                )
                return file
    raise ConfigError(
        f"{path}: a folder without checkpoints/best.ckpt or last.ckpt, and no shared model; give the folder of a run or of "
        "save_pretrained, or a .ckpt"
    )


def read_model(path: Path | str) -> tuple[Path, dict[str, Any]]:
    """The file and the contents of a checkpoint, of a run's checkpoint, or of a shared model, whose file is its weights.

    Args:
        path: a checkpoint, a run's folder, a folder that ``save_pretrained`` wrote, or ``hf-hub:owner/name`` of one.

    Raises:
        ConfigError: there is none, or it is refused.
    """
    if str(path).startswith(HUB):
        path = download(str(path).removeprefix(HUB), FILES)
    if is_folder(Path(path)):
        content = read_folder(path)
        check_weights(content["state_dict"], str(path))
        return Path(path) / WEIGHTS, content
    file = checkpoint_in(path)
    return file, read_checkpoint(file)
