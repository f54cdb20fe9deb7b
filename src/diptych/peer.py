"""A peer: another project's model, whose checkpoint becomes one of diptych (docs/peers.md).

A peer says what its weights are called here, and sets what its files do not say: normalisation, size of the input, pooling. It
is one file, with one line in a package's entry points under ``diptych.peers``.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from diptych.errors import ConfigError

__all__ = ["Converted", "Peer", "Weights"]


class Weights:
    r"""The tensors of a peer's files. Each is taken once, under a new name, or left out with a reason.

    >>> import torch
    >>> weights = Weights({"fc.weight": torch.ones(2, 3), "step": torch.tensor(1)}, "a.pt")
    >>> sorted(weights.move(r"fc[.](.*)", r"head.\1"))
    ['head.weight']
    >>> weights.remaining()
    ['step']

    Args:
        tensors: by their names.
        source: the files, for messages.
    """

    def __init__(self, tensors: Mapping[str, Tensor], source: str) -> None:
        self.source = source
        self._tensors = dict(tensors)
        self._open = dict.fromkeys(tensors)
        self.mapped: dict[str, list[str]] = {}
        """The new names of each tensor that was taken."""
        self.left_out: dict[str, str] = {}
        """Why a tensor was not taken."""
        self.set: dict[str, str] = {}
        """New weights that are in no file, and what they are."""

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def remaining(self) -> list[str]:
        """The names of the tensors that were neither taken nor left out."""
        return list(self._open)

    def matching(self, pattern: str) -> list[re.Match[str]]:
        """All names that match a regular expression as a whole."""
        return [match for name in self._tensors if (match := re.fullmatch(pattern, name))]

    def has(self, pattern: str) -> bool:
        """Whether a name matches a regular expression as a whole."""
        return bool(self.matching(pattern))

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, which is not yet taken.

        Raises:
            ConfigError: there is none of this name.
        """
        if name not in self._tensors:
            raise ConfigError(
                f"{self.source}: lacks '{name}', which this peer's checkpoints have; give such a checkpoint, whole"
            )
        return tuple(self._tensors[name].shape)

    def take(self, name: str, *targets: str) -> Tensor:
        """A tensor, in float32 if it is of floating point.

        Args:
            name: of the tensor.
            targets: the new names of the weights that it becomes, or a part of.

        Raises:
            ConfigError: there is none of this name.
        """
        self.shape(name)
        self._open.pop(name, None)
        self.mapped.setdefault(name, []).extend(targets)
        value = self._tensors[name]
        return value.float() if value.is_floating_point() else value

    def move(self, pattern: str, template: str, change: Callable[[Tensor], Tensor] | None = None) -> dict[str, Tensor]:
        r"""The tensors whose names match a regular expression as a whole, under new names. Those left out stay so.

        Args:
            pattern: the expression.
            template: the new name, in which ``\1`` is the first group.
            change: what is done to each tensor.
        """
        moved = {}
        for match in self.matching(pattern):
            if match[0] in self.left_out:
                continue
            target = match.expand(template)
            value = self.take(match[0], target)
            moved[target] = value if change is None else change(value)
        return moved

    def leave(self, pattern: str, why: str) -> None:
        """Leave out the tensors whose names match. They may be absent."""
        for match in self.matching(pattern):
            if match[0] in self._open:
                self._open.pop(match[0])
                self.left_out[match[0]] = why

    def fill(self, target: str, value: Tensor, why: str) -> dict[str, Tensor]:
        """A new weight that is in no file, and why it has this value."""
        self.set[target] = why
        return {target: value}


@dataclass(frozen=True)
class Converted:
    """What a peer's weights become."""

    image: dict[str, Any]
    """Arguments of ``TimmImage``, with ``name`` and ``model_args``."""
    head: str
    """Name of the head."""
    image_size: int
    """Side of the input in pixels."""
    state: dict[str, Tensor]
    """The weights, by their names in an ``AlignmentModule``."""
    head_args: dict[str, Any] = field(default_factory=dict)
    """Arguments of the head."""
    text: dict[str, Any] | None = None
    """Arguments of ``TransformersText``. None where the peer has no text tower."""
    text_config: dict[str, Any] = field(default_factory=dict)
    """The shape of the text model: fields of its transformers configuration, with ``model_type``."""
    untrained: dict[str, str] = field(default_factory=dict)
    """Beginnings of names of weights that the peer does not have, and why. They stay random."""


class Peer(ABC):
    """Base of every peer."""

    paper: ClassVar[str]
    """Where the model is described."""
    licence: ClassVar[str]
    """What is known of the terms of its weights."""
    inferred: ClassVar[tuple[str, ...]] = ()
    """What the weights do not say, and where it was taken from."""
    tokenizer: ClassVar[str | None] = None
    """Name on the hub of the tokenizer that it was trained with. None without a text tower."""
    lower_case: ClassVar[bool | None] = None
    """Whether its tokenizer folds case. None leaves it as it is."""

    @abstractmethod
    def convert(self, weights: Weights) -> Converted:
        """The towers, the head and their weights.

        Raises:
            ConfigError: the weights are of no such model, or of a variant that cannot be converted.
        """
