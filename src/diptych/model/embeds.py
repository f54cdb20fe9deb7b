"""What every trained model does with pictures and texts: it reads them, embeds them and scores them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diptych.checks import check_number
from diptych.errors import ConfigError
from diptych.evaluation.rows import stack
from diptych.evaluation.scoring import blocks
from diptych.model.inputs import each_picture, each_text, grey_picture, in_range, is_many
from diptych.plugins import nearest
from diptych.radiographs.intensity import Intensity
from diptych.radiographs.letterbox import letterbox
from diptych.reports.tokenizer import Tokenizer
from diptych.types import Embedding, TextBatch

if TYPE_CHECKING:
    from diptych.model.module import AlignmentModule

__all__ = ["Embeds", "device_of"]


class Embeds:
    """A model on a device, for pictures and strings: what they are read as, their embeddings and their scores.

    A part of :class:`diptych.model.inference.TrainedModel`, which sets what stands here.
    """

    module: AlignmentModule
    device: torch.device
    image_size: int
    intensity: Intensity

    def to(self, device: str | torch.device) -> Self:
        """The same model, moved to another device.

        Raises:
            ConfigError: there is no such device.
        """
        self.device = device_of(device)
        self.module.to(self.device)
        return self

    @property
    def tokenizer(self) -> Tokenizer:
        """What the text tower reads texts with: ``model.tokenizer(["No effusion."])`` gives a ``TextBatch``.

        :meth:`encode_text` takes strings too, so it is seldom needed.
        """
        tokenizer: Tokenizer = self.module.tokenizer
        return tokenizer

    def preprocess(self, pictures: Any, *, value_range: tuple[float, float] | None = None) -> Tensor:
        """Pictures as the image tower takes them: uint8 ``[1,S,S]`` of one, ``[B,1,S,S]`` of a list or a batch, on the CPU.

        A picture is read as in training and fitted into a black square of side ``image_size``. :meth:`encode_image` reads
        pictures itself. It takes these tensors as they are.

        Args:
            pictures: one or many, of any kind.
            value_range: the values of arrays that are black and white, as ``(0, 1)`` or ``(0, 4095)``. Values beyond are
                cut. If not given, uint8 is taken as it is, and other types are stretched over their own range.

        Raises:
            ConfigError: a value is no picture, or ``value_range`` is given for a file or does not rise.
        """
        several = is_many(pictures)
        many = each_picture(pictures)
        if value_range is not None:
            many = [in_range(picture, f"pictures[{i}]", value_range) for i, picture in enumerate(many)]
        squares = [self._square(picture, f"pictures[{i}]") for i, picture in enumerate(many)]
        size = self.image_size
        whole = torch.from_numpy(np.stack(squares)) if squares else torch.zeros(0, size, size, dtype=torch.uint8)
        return whole[:, None] if several else whole

    def _square(self, picture: Any, where: str) -> NDArray[np.uint8]:
        """One picture as the tower's input ``[S,S]``."""
        return letterbox(grey_picture(picture, where, self.intensity), self.image_size)[0]

    def batches(self, pictures: Any, batch_size: int) -> Iterator[Tensor]:
        """Pictures as the tower's input ``[B,1,S,S]`` on the model's device, ``batch_size`` at a time.

        Raises:
            ConfigError: a value is no picture, or ``batch_size`` is below 1.
        """
        check_number("batch_size", batch_size, least=1, whole=True)
        if _is_prepared(pictures, self.image_size):
            ready = pictures.reshape(-1, 1, self.image_size, self.image_size)
            yield from (part.to(self.device) for part in ready.split(batch_size) if len(part))
            return
        many = each_picture(pictures)
        for start in range(0, len(many), batch_size):
            part = enumerate(many[start : start + batch_size], start)
            squares = np.stack([self._square(picture, f"pictures[{i}]") for i, picture in part])
            yield torch.from_numpy(squares)[:, None].to(self.device)

    @torch.no_grad()
    def embed_image(self, pictures: Any, *, batch_size: int = 32) -> Embedding:
        """The embedding of ``I`` pictures. Its ``pooled`` is ``[I,E]``, L2-normalised.

        Args:
            pictures: one or many, or none.
            batch_size: how many are read and go through the tower at a time.
        """
        parts = [self.module.embed_image(batch) for batch in self.batches(pictures, batch_size)]
        if not parts:
            black = torch.zeros(1, 1, self.image_size, self.image_size, dtype=torch.uint8, device=self.device)
            return self.module.embed_image(black).select(torch.arange(0, device=self.device))
        return stack(parts)

    @torch.no_grad()
    def embed_text(self, texts: str | Sequence[str] | TextBatch, *, batch_size: int = 64) -> Embedding:
        """The embedding of ``T`` texts. Its ``pooled`` is ``[T,E]``, L2-normalised.

        Args:
            texts: one or many, or none; or what :attr:`tokenizer` made of them.
            batch_size: how many go through the tower at a time.
        """
        check_number("batch_size", batch_size, least=1, whole=True)
        if isinstance(texts, TextBatch):
            return self.module.embed_text(texts.to(self.device))
        many = each_text(texts)
        if not many:
            return self.module.embed_prompts([""]).select(torch.arange(0, device=self.device))
        return self.module.embed_prompts(many, batch_size)

    encode_image, encode_text = embed_image, embed_text
    """The names that the README uses."""

    @torch.no_grad()
    def similarity(self, pictures: Any, texts: str | Sequence[str] | TextBatch, *, batch_size: int = 32) -> Tensor:
        """The head's score ``[I,T]`` of every picture with every text. Training optimised it, and testing ranks by it.

        Args:
            pictures: one or many, or none.
            texts: one or many, or none.
            batch_size: how many pictures are read, encoded and scored at a time.
        """
        images, reports = self.embed_image(pictures, batch_size=batch_size), self.embed_text(texts)
        scores = torch.zeros(len(images.pooled), len(reports.pooled), device=self.device)
        if scores.numel():
            for rows, block in blocks(
                self.module.head, images, reports, self.device, min(batch_size, len(images.pooled))
            ):
                scores[rows.to(self.device)] = block.to(self.device)
        return scores

    def __call__(self, pictures: Any, texts: str | Sequence[str] | TextBatch) -> Tensor:
        """The same as :meth:`similarity`."""
        return self.similarity(pictures, texts)

    def eval(self) -> Self:
        """The model itself, which never trains."""
        return self

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Say what a name of other libraries is called here."""
            if name in _ELSEWHERE:
                raise AttributeError(f"a trained model has no '{name}'; {_ELSEWHERE[name]}")
            raise AttributeError(f"a trained model has no '{name}'; it has {', '.join(_names(type(self), name))}")


_MODULE = "take it of model.module, the Lightning module"
_ELSEWHERE = {
    "cuda": 'call model.to("cuda")',
    "cpu": 'call model.to("cpu")',
    "half": "call model.module.half()",
    "float": "call model.module.float()",
    "train": "it never trains; give model.module to a Trainer",
    "forward": "call model.similarity(images, texts)",
    "logit_scale": "the head's whole score is model.similarity(images, texts)",
    "forward_features": "the image tower is model.module.encoder.image, and model.encode_image(images) embeds",
    "predict": "call model.zero_shot(images, findings=[...])",
    "predict_proba": "call model.zero_shot(images, findings=[...]).probabilities",
    "classify": "call model.zero_shot(images, findings=[...])",
    "encode": "call model.encode_image(images) or model.encode_text(texts)",
    "get_image_features": "call model.encode_image(images).pooled",
    "get_text_features": "call model.encode_text(texts).pooled",
    "transform": "it is model.preprocess",
    "transforms": "it is model.preprocess",
    "processor": "pictures go through model.preprocess, and texts through model.tokenizer",
    "tokenize": "it is model.tokenizer",
    "search": "call model.retrieve(image, reports, k)",
    "attention": "call model.look(image, text), or model.show(image, text)",
    **dict.fromkeys(("parameters", "named_parameters", "state_dict", "modules", "requires_grad_", "compile"), _MODULE),
}
"""Names that users of timm, open_clip, transformers and scikit-learn would try, and what to do instead."""


def _names(kind: type, name: str) -> list[str]:
    """The public names of a class, the most similar first."""
    return nearest(name, [one for one in dir(kind) if not one.startswith("_")])[:5]


def _is_prepared(pictures: Any, size: int) -> bool:
    """Whether these are tensors as ``preprocess`` gives them."""
    if not isinstance(pictures, Tensor) or pictures.dtype != torch.uint8 or pictures.ndim not in (3, 4):
        return False
    return tuple(pictures.shape[-3:]) == (1, size, size)


def device_of(name: str | torch.device) -> torch.device:
    """The device of this name.

    Raises:
        ConfigError: it cannot be used here.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:  # each kind of device has its own
        reason = (str(error).strip().splitlines() or ["it does not answer"])[0][:160]
        have = "cpu, cuda" if torch.cuda.is_available() else "cpu"
        raise ConfigError(f"device '{name}' cannot be used here ({reason}); choose among: {have}") from error
    return device
