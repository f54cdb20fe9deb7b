"""What a trained model can do to be shared: the base of :class:`diptych.TrainedModel`."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from diptych.radiographs.intensity import Intensity
from diptych.sharing.card import model_card
from diptych.sharing.folder import write_folder
from diptych.sharing.hub import upload

__all__ = ["Shareable"]


class Shareable:
    """A trained model that can be written as a folder, and sent to the hub (docs/sharing.md)."""

    module: Any
    """The :class:`diptych.AlignmentModule`, with the configuration that it was built from."""
    image_size: int
    """Side of the square input, in pixels."""
    intensity: Intensity
    """How pictures were read in training."""
    file: Path | None
    """The checkpoint or the folder that it was loaded from. Configuration and results of a run are beside a checkpoint."""
    findings: list[str]
    """Findings of the training data, where they are known."""

    def save_pretrained(self, folder: Path | str, *, licence: str | None = None) -> Path:
        """Write a folder that :func:`diptych.from_pretrained` reads: weights, configuration, tokenizer, model card.

        Args:
            folder: a new one, or one to be replaced that this method wrote.
            licence: the hub's name of a licence, as ``cc-by-nc-4.0``. None leaves it open.

        Raises:
            ConfigError: the model was built in Python, the folder holds other files, or the licence is no name.
            DataError: it cannot be written.
        """
        return write_folder(self, folder, model_card(self, licence))

    def push_to_hub(self, repository: str, *, private: bool = True, licence: str | None = None) -> str:
        """Send what :meth:`save_pretrained` writes to the Hugging Face Hub, and give the address of the commit.

        Args:
            repository: ``owner/name``. It is made where there is none.
            private: whether a new repository is private.
            licence: as for :meth:`save_pretrained`.

        Raises:
            ConfigError: as :meth:`save_pretrained`, or the hub cannot be written.
        """
        with TemporaryDirectory() as folder:
            return upload(self.save_pretrained(folder, licence=licence), repository, private=private)
