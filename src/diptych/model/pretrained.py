"""Models that others share, and that others may read: functions beside the methods of :class:`diptych.TrainedModel`."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from diptych.model.inference import TrainedModel, load
from diptych.sharing.hub import HUB

if TYPE_CHECKING:
    import torch

__all__ = ["from_pretrained", "push_to_hub", "save_pretrained"]


def from_pretrained(
    name: Path | str, device: str | torch.device = "cpu", *, trust: Collection[str] = ()
) -> TrainedModel:
    """A model that :func:`save_pretrained` or :func:`push_to_hub` has shared. Nothing of it is run but diptych and heads.

    Args:
        name: a path (of a run too), or ``owner/name`` of the Hugging Face Hub. ``owner/name@revision`` is one of its
            branches, tags or commits. An existing path comes first.
        device: where to put it.
        trust: as for :func:`diptych.load`.

    Raises:
        ConfigError: there is none, it cannot be fetched, or it is refused.
    """
    here = Path(name).exists() or str(name).startswith(HUB)
    return load(name if here else f"{HUB}{name}", device, trust=trust)


def save_pretrained(model: TrainedModel | Path | str, folder: Path | str, *, licence: str | None = None) -> Path:
    """:meth:`diptych.TrainedModel.save_pretrained` of a model, or of the path of a run or checkpoint."""
    return _loaded(model).save_pretrained(folder, licence=licence)


def push_to_hub(
    model: TrainedModel | Path | str, repository: str, *, private: bool = True, licence: str | None = None
) -> str:
    """:meth:`diptych.TrainedModel.push_to_hub` of a model, or of the path of a run or checkpoint."""
    return _loaded(model).push_to_hub(repository, private=private, licence=licence)


def _loaded(model: TrainedModel | Path | str) -> TrainedModel:
    return model if isinstance(model, TrainedModel) else load(model)
