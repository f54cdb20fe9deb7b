"""``composite``: several heads, and terms beside them, trained on one encoder."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from diptych.checks import check_number
from diptych.errors import ConfigError
from diptych.head import (
    AlignmentHead,
    Compares,
    Extracts,
    Grounds,
    HeadFactory,
    Observes,
    ScoresMatchings,
    WeighsWords,
)
from diptych.types import Dims, Embedding, Features, Pairs

__all__ = ["Composite", "MemberEmbeddings"]


@dataclass(frozen=True)
class MemberEmbeddings(Embedding):
    """A panel as each member embeds it. ``pooled`` is that of the first member that ranks."""

    members: dict[str, Embedding]


class Composite(AlignmentHead[MemberEmbeddings]):
    """Heads side by side. The loss is the weighted sum of their losses, and the score is the weighted mean of their scores.

    Each member keeps its own projections and temperature. A member that ranks nothing, as ``cce``, takes part in the loss
    only. Terms are named ``<head>.<term>``. A further method, as ``heatmap``, is that of the first member that has it.

    Args:
        dims: widths of the towers.
        heads: the members, each as ``model.head`` would name it.
        shares: one weight a member, above 0; 1 if not given.

    Raises:
        ConfigError: no member ranks, or the shares do not fit.
    """

    paper: ClassVar[str] = "those of its members"

    heatmap: Callable[[MemberEmbeddings, MemberEmbeddings], Tensor]
    cosines: Callable[[MemberEmbeddings, MemberEmbeddings], Tensor]
    observations: Callable[[MemberEmbeddings], Tensor]
    extracts: Callable[[MemberEmbeddings], Tensor]
    local_scores: Callable[[MemberEmbeddings, MemberEmbeddings], Tensor]
    importance: Callable[[MemberEmbeddings, MemberEmbeddings], Tensor]
    weighs_words: bool

    def __init__(self, dims: Dims, *, heads: list[HeadFactory], shares: list[float] | None = None) -> None:
        super().__init__()
        shares = [1.0] * len(heads) if shares is None else shares
        if len(shares) != len(heads):
            raise ConfigError(
                f"head composite: shares is {shares}; give one number above 0 for each of {len(heads)} heads"
            )
        for place, share in enumerate(shares):
            check_number(f"head composite: shares[{place}]", share, above=0)
        self.members = nn.ModuleDict()
        self.shares: dict[str, float] = {}
        for build, share in zip(heads, shares, strict=True):
            head = build(dims)
            stem = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(head).__name__).lower()
            name = next(n for i in range(1, 99) if (n := stem if i == 1 else f"{stem}{i}") not in self.members)
            self.members[name] = head
            self.shares[name] = share
        self._heads = cast("Mapping[str, AlignmentHead[Any]]", self.members)
        self.ranking = [name for name, head in self._heads.items() if head.ranks]
        if not self.ranking:
            raise ConfigError(
                f"head composite: none of {list(self.members)} scores pairs; add one that does, as global"
            )
        # These belong to this combination, not to the class.
        self.needs = frozenset[str]().union(*(head.needs for head in self._heads.values()))
        self.wants = frozenset[str]().union(*(head.wants for head in self._heads.values())) - self.needs
        self.gathers = frozenset(
            f"{panel}.members.{name}.{field}"
            for name, head in self._heads.items()
            for panel, field in (declared.split(".", 1) for declared in head.gathers)
        )
        self.weighs_words = False
        for name, head in reversed(list(self._heads.items())):  # reversed: the first member is set last, and stays
            if isinstance(head, Grounds):
                self.heatmap = partial(_answer, head.heatmap, name)
            if isinstance(head, Compares):
                self.cosines = partial(_answer, head.cosines, name)
            if isinstance(head, Observes):
                self.observations = partial(_answer, head.observations, name)
            if isinstance(head, Extracts):
                self.extracts = partial(_answer, head.extracts, name)
            if isinstance(head, ScoresMatchings):
                self.local_scores = partial(_answer, head.local_scores, name)
            if isinstance(head, WeighsWords) and head.weighs_words:
                self.importance = partial(_answer, head.importance, name)
                self.weighs_words = True
        self._weigh()

    @property
    def temperature(self) -> Tensor | None:
        """The first ranking member's, if it has one."""
        temperature: Tensor | None = getattr(self._heads[self.ranking[0]], "temperature", None)
        return temperature

    def start_step(self, epoch: int, step: int, total_steps: int) -> None:
        """Take over the members' weights, which may have changed."""
        self._weigh()

    def embed_image(self, image: Features) -> MemberEmbeddings:
        """The embedding of every member, by its name."""
        return self._embedding({name: head.embed_image(image) for name, head in self._heads.items()})

    def embed_text(self, text: Features) -> MemberEmbeddings:
        """The embedding of every member, by its name."""
        return self._embedding({name: head.embed_text(text) for name, head in self._heads.items()})

    def similarity(self, image: MemberEmbeddings, text: MemberEmbeddings) -> Tensor:
        """The mean of the ranking members' scores ``[I,T]``, weighted by their shares."""
        scores = [
            self.shares[name] * self._heads[name].similarity(image.members[name], text.members[name])
            for name in self.ranking
        ]
        return torch.stack(scores).sum(0) / sum(self.shares[name] for name in self.ranking)

    def losses(self, here: Pairs[MemberEmbeddings], world: Pairs[MemberEmbeddings]) -> dict[str, Tensor]:
        """Every member's terms, as ``<head>.<term>``."""
        terms = {}
        for name, head in self._heads.items():
            for term, value in head.losses(_pairs(here, name), _pairs(world, name)).items():
                terms[f"{name}.{term}"] = value
        return terms

    def _weigh(self) -> None:
        self.weights = {
            f"{name}.{term}": self.shares[name] * weight
            for name, head in self._heads.items()
            for term, weight in head.weights.items()
        }

    def _embedding(self, members: dict[str, Embedding]) -> MemberEmbeddings:
        return MemberEmbeddings(members[self.ranking[0]].pooled, members)


def _answer(method: Callable[..., Tensor], name: str, *panels: MemberEmbeddings) -> Tensor:
    """What a member's method gives for its own embeddings."""
    return method(*(panel.members[name] for panel in panels))


def _pairs(pairs: Pairs[MemberEmbeddings], name: str) -> Pairs[Embedding]:
    image, text = pairs.image.members[name], pairs.text.members[name]
    return Pairs(image, text, pairs.targets, pairs.hash, pairs.labels)
