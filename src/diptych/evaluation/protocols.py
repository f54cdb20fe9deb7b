"""Zero-shot classification as published: how the scores of prompts become the score of a finding or a class.

A finding of a binary set has two sides, its positive and its negative prompts. A class of a multi-class set has one. A
protocol reduces the scores of each side's prompts to one value, and then makes a score of the sides.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as nn_functional

from diptych.checks import check_number
from diptych.errors import ConfigError
from diptych.evaluation.prompts import Entry, PromptSet
from diptych.metrics.measures import TIE

__all__ = [
    "PROTOCOLS", "TEMPERATURE", "Protocol", "ProtocolName", "check_prompts", "draw_prompts", "join_sides", "mean_vector",
    "reduce_side", "z_scores",
]  # fmt: skip

ProtocolName = Literal["diptych", "chexzero", "gloria", "biovil", "convirt"]
TEMPERATURE = 0.1
"""Of ConVIRT's soft-max (MLHC 2022, section 3)."""


@dataclass(frozen=True)
class Protocol:
    """What a protocol does, and who published it."""

    source: str
    rule: str
    """The score, in words, for ``results.json``."""
    pooled: bool = False
    """Whether it takes the cosine of the pooled vectors. Otherwise it takes the head's score."""
    pairs: bool = False
    """Whether it needs findings with positive and negative prompts."""
    single: bool = False
    """Whether each side has one prompt, unless text vectors are averaged."""
    averages: bool = False
    """Whether it averages the text vectors of each side."""
    draws: int = 0
    """How many prompts of each side are drawn. 0 takes all."""
    transductive: bool = False
    """Whether an image's score depends on the other images of the test set."""
    probability: bool = False
    """Whether the score of a finding is the logit of a published probability."""


PROTOCOLS: dict[ProtocolName, Protocol] = {
    "diptych": Protocol(
        "diptych", "mean score over the positive prompts, minus that over the negative ones; of a class, the mean"
    ),
    "chexzero": Protocol(
        "CheXzero (Tiu et al., Nature Biomedical Engineering 2022), rajpurkarlab/CheXzero zero_shot.py",
        "soft-max without temperature of two cosines, with the averaged vectors of positive and of negative prompts",
        pooled=True,
        pairs=True,
        averages=True,
        probability=True,
    ),
    "gloria": Protocol(
        "GLoRIA (Huang et al., ICCV 2021), marshuang80/gloria gloria.py",
        "highest score among drawn prompts, then z-score of each class over the images of the test set; of a finding, "
        "that of the positive prompts minus that of the negative ones",
        draws=5,
        transductive=True,
    ),
    "biovil": Protocol(
        "BioViL (Boecking et al., ECCV 2022)",
        "soft-max of two cosines, with one positive and one negative prompt",
        pooled=True,
        pairs=True,
        single=True,
        probability=True,
    ),
    "convirt": Protocol(
        "ConVIRT (Zhang et al., MLHC 2022), eq. 2; the paper itself classifies nothing without labels",
        f"image-to-text probability: soft-max of cosines over {TEMPERATURE}, among the prompts of both sides of a finding or "
        "of all classes, summed over a side",
        pooled=True,
        probability=True,
    ),
}
"""The protocols by name."""


def check_prompts(name: ProtocolName, prompts: PromptSet, averages: bool, evaluator: str) -> None:
    """Refuse a prompt set that the protocol cannot ask.

    Args:
        name: the protocol.
        prompts: the prompt set.
        averages: whether text vectors are averaged.
        evaluator: name of the evaluator, for messages.

    Raises:
        ConfigError: the protocol is not known, or the set is of the other kind, or has too many prompts a side.
    """
    if name not in PROTOCOLS:
        raise ConfigError(f"{evaluator}: protocol is {name!r}; known are {', '.join(get_args(ProtocolName))}")
    protocol = PROTOCOLS[name]
    if protocol.pairs and prompts.kind != "binary":
        raise ConfigError(
            f"{evaluator}: protocol {name} asks for pairs, and prompt set '{prompts.name}' has classes; give a set with "
            "findings, or protocol gloria, convirt or diptych"
        )
    for entry in prompts.entries if protocol.single and not averages else ():
        most = max(len(entry.positive), len(entry.negative))
        if most > 1:
            raise ConfigError(
                f"{evaluator}: protocol {name} takes one prompt a side, and '{entry.name}' of prompt set '{prompts.name}' "
                f"has {most}; give a set with pairs, as biovil, or average_prompts: true"
            )


def draw_prompts(prompts: PromptSet, number: int, seed: int, evaluator: str) -> PromptSet:
    """The prompt set with ``number`` prompts of each side, drawn without replacement.

    What is drawn for a side depends on the seed, the number, and the entry's name and prompts alone.

    >>> from diptych.evaluation.prompts import load_prompts
    >>> [len(entry.positive) for entry in draw_prompts(load_prompts("gloria"), 5, 0, "zero_shot").entries]
    [5, 5, 5, 5, 5]

    Args:
        prompts: the whole set.
        number: how many are drawn, 1 or more.
        seed: of the draw.
        evaluator: name of the evaluator, for messages.

    Raises:
        ConfigError: a side has fewer prompts.
    """
    check_number(f"{evaluator}: drawn_prompts", number, least=1, whole=True, remedy="1 or more (GLoRIA's is 5)")

    def drawn(entry: Entry, side: Literal["positive", "negative"]) -> tuple[str, ...]:
        texts: tuple[str, ...] = getattr(entry, side)
        if texts and len(texts) < number:
            raise ConfigError(
                f"{evaluator}: {number} prompts are to be drawn for '{entry.name}' of prompt set '{prompts.name}', which has "
                f"{len(texts)} ({side}); give drawn_prompts: {len(texts)} or less, or more prompts"
            )
        return tuple(random.Random(f"{seed}/{side}/{entry.name}").sample(texts, number)) if texts else ()

    entries = (
        replace(entry, positive=drawn(entry, "positive"), negative=drawn(entry, "negative"))
        for entry in prompts.entries
    )
    return replace(prompts, entries=tuple(entries))


def mean_vector(vectors: Tensor) -> Tensor:
    """The mean of vectors ``[K,E]`` of length 1, made to have length 1 again, ``[E]``. This is prompt ensembling.

    >>> mean_vector(torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
    tensor([0.7071, 0.7071])
    """
    return nn_functional.normalize(nn_functional.normalize(vectors, dim=1).mean(dim=0), dim=0)


def reduce_side(name: ProtocolName, scores: Tensor) -> Tensor:
    """The value ``[n]`` of a side, from the scores ``[n,K]`` of its prompts.

    ``gloria`` takes the highest. ``convirt`` takes the logarithm of the sum of ``exp(score / 0.1)``. All others take the
    mean.

    >>> reduce_side("gloria", torch.tensor([[0.2, 0.6]]))
    tensor([0.6000])
    """
    if name == "gloria":
        return scores.amax(dim=1)
    return (scores / TEMPERATURE).logsumexp(dim=1) if name == "convirt" else scores.mean(dim=1)


def z_scores(values: Tensor) -> Tensor:
    """Each column of ``[n,S]``, minus its mean and over its standard deviation, as GLoRIA does over the test set.

    One image is left as it is, as there. A column without spread becomes 0.

    >>> z_scores(torch.tensor([[1.0, 7.0], [3.0, 7.0]]))
    tensor([[-1.,  0.],
            [ 1.,  0.]])
    """
    if len(values) < 2:
        return values
    spread = values.std(dim=0, correction=0)
    flat = spread <= TIE * values.abs().amax(dim=0)
    return (values - values.mean(dim=0)).masked_fill(flat, 0.0) / spread.masked_fill(flat, 1.0)


def join_sides(name: ProtocolName, sides: Tensor, lengths: Sequence[int]) -> Tensor:
    """The scores ``[n,L]`` of entries, from the values ``[n,S]`` of their sides.

    A finding's score is its positive side's value minus its negative side's. It is the logit of the pair's soft-max. A
    class has one side, whose value is its score. In ``convirt`` that becomes the logarithm of the class's probability.

    >>> join_sides("chexzero", torch.tensor([[0.5, 0.25]]), [2])
    tensor([[0.2500]])

    Args:
        name: the protocol.
        sides: values, entry by entry, the positive side first.
        lengths: number of sides of each entry, 1 or 2.
    """
    if name == "convirt" and set(lengths) == {1}:
        return sides.log_softmax(dim=1)
    columns, at = [], 0
    for length in lengths:
        columns.append(sides[:, at] - sides[:, at + 1] if length == 2 else sides[:, at])
        at += length
    return torch.stack(columns, dim=1)
