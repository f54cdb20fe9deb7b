"""The alignment head: the interface of every method of pre-training.

A head has its own projections and temperature. It embeds images and reports, and scores how alike they are. Evaluation
ranks by this score (:meth:`AlignmentHead.similarity`). Training minimises losses that follow from it
(:meth:`AlignmentHead.losses`). A head knows no batch, no data set and no metric.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from typing import Any, ClassVar, Generic, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from diptych import distributed
from diptych.errors import ConfigError
from diptych.nn.functional import LogitScale
from diptych.types import Dims, E, Embedding, Features, Pairs, map_leaves

__all__ = [
    "AlignmentHead",
    "Compares",
    "Extracts",
    "FollowsTraining",
    "Grounds",
    "HeadFactory",
    "Observes",
    "ScaledHead",
    "ScoresMatchings",
    "WeighsWords",
    "gather_pairs",
    "tell_step",
]


E_contra = TypeVar("E_contra", bound=Embedding, contravariant=True)
"""An embedding that is only an argument of methods."""


class AlignmentHead(nn.Module, ABC, Generic[E]):
    """Base of every alignment head. A subclass is one file (CONTRIBUTING.md, "A head in one file").

    The constructor's first argument is ``dims: Dims``, which the towers fill in. All others are configuration.
    """

    needs: frozenset[str] = frozenset()
    """Optional fields of ``Features`` that the head requires, as ``"image.pixels"``. They are checked before training."""
    wants: frozenset[str] = frozenset()
    """Optional fields of ``Features`` that the head uses where the towers have them, as ``"image.attention"``."""
    gathers: frozenset[str] = frozenset()
    """Fields of the embeddings that ``losses`` reads from ``world``, as ``"text.pooled"``. All others are emptied.

    A nested field is named by its path, as ``"text.members.global.pooled"`` of ``composite``.
    """
    ranks: ClassVar[bool] = True
    """Whether it scores pairs. False for a term that is trained beside a head (``docs/heads/composite.md``)."""
    contrasts: ClassVar[bool] = True
    """Whether its losses have other reports as negatives. Then equal ones (``Pairs.hash``) must not be among them.

    A head without negatives says False. A term that does not rank is not asked.
    """
    paper: ClassVar[str] = ""
    """Where the method is described, as ``"ConVIRT, arXiv 2010.00747"``."""

    weights: dict[str, float]
    """The weight of each loss term. ``losses`` returns the terms without weights. A term of weight 0 is only logged."""

    @classmethod
    def former_arguments(cls, weights: Collection[str]) -> dict[str, Any]:
        """What arguments meant in older checkpoints that do not name them. So a default may change, and old runs stay.

        Args:
            weights: the names of all weights of the checkpoint's head.
        """
        return {}

    @abstractmethod
    def embed_image(self, image: Features) -> E:
        """Image features ``[I,...]`` in the shared space."""

    @abstractmethod
    def embed_text(self, text: Features) -> E:
        """Text features ``[T,...]`` in the shared space."""

    @abstractmethod
    def similarity(self, image: E, text: E) -> Tensor:
        """Scores ``[I,T]`` of every image with every text, float32. Higher is more alike. Rows do not depend on each other."""

    @abstractmethod
    def losses(self, here: Pairs[E], world: Pairs[E]) -> dict[str, Tensor]:
        """The loss terms, one scalar each. Their mean over processes is the objective of the whole batch.

        Args:
            here: the ``B`` pairs of this process.
            world: the ``B * W`` pairs of all processes in rank order, with gradients. Only the fields in ``gathers`` are
                filled.
        """


class ScaledHead(AlignmentHead[E]):
    """Base of heads whose scores are multiplied by one factor before the contrast. A subclass sets ``scale``."""

    scale: LogitScale

    @property
    def temperature(self) -> Tensor:
        """The current temperature, ``1 / scale``: a scalar without gradient."""
        return self.scale.temperature


@runtime_checkable
class Grounds(Protocol[E_contra]):
    """A head that shows in which regions of the image a word is seen."""

    def heatmap(self, image: E_contra, text: E_contra) -> Tensor:
        """Attention ``[B,N_words,N_regions]`` of each word over the regions of its own image. It sums to 1 over regions."""


@runtime_checkable
class Compares(Protocol[E_contra]):
    """A head whose words and regions are vectors of one space, so that their cosines are on a fixed scale."""

    def cosines(self, image: E_contra, text: E_contra) -> Tensor:
        """Cosine ``[B,N_words,N_regions]`` of each word with the regions of its own image. A padded word's is zero."""


@runtime_checkable
class ScoresMatchings(Protocol[E_contra]):
    """A head whose score has a local part, which compares words with regions or sentences with queries."""

    def local_scores(self, image: E_contra, text: E_contra) -> Tensor:
        """The local part of the score ``[I,T]``."""


@runtime_checkable
class WeighsWords(Protocol[E_contra]):
    """A head that gives each word of a report a weight in the score."""

    @property
    def weighs_words(self) -> bool:
        """Whether the head does so as it is configured."""

    def importance(self, image: E_contra, text: E_contra) -> Tensor:
        """Weight ``[B,N_words]`` of each word in the score of its own image; 0 at padding."""


@runtime_checkable
class FollowsTraining(Protocol):
    """A head, or a module in one, that changes in the course of training."""

    def start_step(self, epoch: int, step: int, total_steps: int) -> None:
        """Prepare for the next training step. It is called before each step, also after a resume within an epoch.

        A head may change its ``weights`` here, or what it draws at random. Its state must follow from the arguments and
        from its state dict alone. Then a resumed run goes on exactly.

        Args:
            epoch: number of the epoch, from 0.
            step: optimiser steps done so far. All batches whose gradients are accumulated have the same.
            total_steps: optimiser steps of the whole run.
        """


@runtime_checkable
class Observes(Protocol[E_contra]):
    """A head with learned queries, which attend to the image without a text."""

    def observations(self, image: E_contra) -> Tensor:
        """Attention ``[B,K,N_regions]`` of each query over the regions. It sums to 1 over regions."""


@runtime_checkable
class Extracts(Protocol[E_contra]):
    """A head whose queries turn an image into vectors. The decoder of reports can attend to them."""

    def extracts(self, image: E_contra) -> Tensor:
        """The vector of each query, ``[B,K,E]``."""


HeadFactory = Callable[[Dims], AlignmentHead]  # type: ignore[type-arg]
"""What a configuration makes of a head: a function of the towers' widths, with all other arguments set."""


def tell_step(head: nn.Module, epoch: int, step: int, total_steps: int) -> None:
    """Call ``start_step`` of the head and of every module in it that :class:`FollowsTraining`, inner ones first."""
    for module in reversed(list(head.modules())):
        if isinstance(module, FollowsTraining):
            module.start_step(epoch, step, total_steps)


def gather_pairs(head: AlignmentHead[E], here: Pairs[E]) -> Pairs[E]:
    """The pairs of the whole job, from this process's pairs, for :meth:`AlignmentHead.losses`.

    The fields in ``head.gathers``, the hashes and the labels are gathered, with gradients and in rank order. All other
    fields are emptied, also on one process. So a head that forgets to declare a field fails on a laptop, before it comes
    to eight GPUs.

    Args:
        head: the head that will read them.
        here: this process's pairs. Every process must have the same shapes (``drop_last``, reports of one length).

    Raises:
        ConfigError: the head declares a field that its embeddings lack.
    """
    known: set[str] = set()

    def gather_leaf(path: str, leaf: Any) -> Any:
        known.add(path)
        if not isinstance(leaf, Tensor):
            return leaf
        return distributed.gather(leaf) if path in head.gathers else leaf.new_empty(0)

    world = map_leaves(gather_leaf, {"image": here.image, "text": here.text})
    if unknown := head.gathers - known:
        raise ConfigError(
            f"head {type(head).__name__}: gathers names {', '.join(sorted(unknown))}, which its embeddings lack; "
            f"they have {', '.join(sorted(known))}"
        )
    return Pairs(
        image=world["image"],
        text=world["text"],
        targets=torch.arange(len(here.hash) * distributed.world_size(), device=here.hash.device),
        hash=distributed.gather(here.hash),
        labels=None if here.labels is None else distributed.gather(here.labels),
    )
