"""The loss of labels: each finding on its own, or classes of which a study has one. Classes may be weighted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from diptych.checks import check_choice
from diptych.errors import ConfigError

__all__ = [
    "ClassWeights",
    "Classes",
    "LabelLoss",
    "balanced_weights",
    "check_classes",
    "known_bce",
    "known_ce",
    "one_class",
]

Classes = Literal["independent", "exclusive"]
"""``independent``: a study may have any of the findings. ``exclusive``: it has one of them, as in COVIDx."""
ClassWeights = Literal["none", "balanced"]
"""``balanced``: present and absent (or each of the exclusive classes) count alike, however many samples there are of each."""


def one_class(labels: Tensor) -> Tensor:
    """Which samples ``[n]`` of labels ``[n,L]`` have exactly one class.

    >>> one_class(torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, -1.0]])).tolist()
    [True, False, False]
    """
    return (labels == 1).sum(1) == 1


def known_bce(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The sum of the binary cross-entropy of ``[n,L]`` over the known labels (1 and 0), and how many are known.

    Args:
        logits: ``[n,L]``
        labels: ``[n,L]``. Labels other than 1 and 0 are left out.
        weights: ``[2,L]``, of each finding's absent and present labels.
    """
    known = (labels == 0) | (labels == 1)
    terms = nn.functional.binary_cross_entropy_with_logits(logits, labels.where(known, 0.0), reduction="none")
    if weights is not None:
        terms = terms * torch.where(labels == 1, weights[1], weights[0])
    return (terms * known).sum(), known.sum()


def known_ce(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The sum of the soft-max cross-entropy of ``[n,L]`` over the samples with exactly one class, and how many these are.

    Args:
        logits: ``[n,L]``
        labels: ``[n,L]``. 1 is the sample's class.
        weights: ``[L]``, of each class.
    """
    known, true = one_class(labels), (labels == 1).float().argmax(1)
    terms = nn.functional.cross_entropy(logits, true, reduction="none")
    if weights is not None:
        terms = terms * weights[true]
    return (terms * known).sum(), known.sum()


def balanced_weights(labels: Tensor, classes: Classes) -> Tensor:
    """Weights with which each class has the same share of the loss: ``n / (K n_c)``, as in scikit-learn.

    ``n`` is the number of known labels, ``n_c`` that of the class, and ``K`` the number of classes. For a finding the classes
    are absent and present. The ratio of their weights is that of CheXNet (arXiv 1711.05225). The mean weight of a known label
    is 1, so a learning rate keeps its meaning. A class without a label has weight 0.

    >>> balanced_weights(torch.tensor([[1.0], [0.0], [0.0], [0.0]]), "independent").T
    tensor([[0.6667, 2.0000]])

    Args:
        labels: ``[n,L]`` of the training images.
        classes: whether a sample has one class.

    Returns:
        ``[2,L]``, of absent and present. Of exclusive classes ``[L]``.
    """
    if classes == "exclusive":
        counts = (labels[one_class(labels)] == 1).sum(0)
    else:
        counts = torch.stack([(labels == 0).sum(0), (labels == 1).sum(0)])
    weights = counts.sum(0) / (len(counts) * counts.clamp_min(1))
    return torch.where(counts > 0, weights, 0.0)


def check_classes(task: str, classes: Classes, class_weights: ClassWeights) -> None:
    """Refuse values that are none of :data:`Classes` and :data:`ClassWeights`.

    Raises:
        ConfigError: they are none.
    """
    check_choice(f"{task}: classes", classes, ["independent", "exclusive"])
    check_choice(f"{task}: class_weights", class_weights, ["none", "balanced"])


def check_exclusive(task: str, classes: Classes, findings: Sequence[str]) -> None:
    """Refuse exclusive classes of which there is one only.

    Raises:
        ConfigError: it is so.
    """
    if classes == "exclusive" and len(findings) < 2:
        raise ConfigError(
            f"{task}: classes is 'exclusive', and the data have one finding, {findings[0]}; give classes: independent"
        )


@dataclass(frozen=True)
class LabelLoss:
    """A loss of logits ``[n,L]`` against labels ``[n,L]``."""

    classes: Classes = "independent"
    weights: Tensor | None = None
    """As :func:`balanced_weights` gives them."""

    @classmethod
    def of(cls, labels: Tensor, classes: Classes, class_weights: ClassWeights) -> LabelLoss:
        """The loss for training labels ``[n,L]``."""
        return cls(classes, balanced_weights(labels, classes) if class_weights == "balanced" else None)

    def total(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The sum over the known labels, and how many there are."""
        loss = known_ce if self.classes == "exclusive" else known_bce
        return loss(logits, labels, None if self.weights is None else self.weights.to(logits))

    def mean(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean over the known labels. It is 0 where none is known.

        >>> LabelLoss().mean(torch.zeros(1, 3), torch.tensor([[1.0, -1.0, torch.nan]]))
        tensor(0.6931)
        """
        total, known = self.total(logits, labels)
        return total / known.clamp_min(1)
