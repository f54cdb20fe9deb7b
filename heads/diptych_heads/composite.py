"""``composite``: several heads, and terms beside them, trained on one encoder."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import field, fields, make_dataclass
from functools import cache, partial
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from diptych.errors import ConfigError
from diptych.head import AlignmentHead, Extracts, Grounds, HeadFactory, Observes, ScoresMatchings, WeighsWords
from diptych.types import Dims, Embedding, Features, Pairs

__all__ = ["Composite"]

_ABILITIES: dict[str, Callable[[object], bool]] = {
    "heatmap": lambda head: isinstance(head, Grounds),
    "observations": lambda head: isinstance(head, Observes),
    "extracts": lambda head: isinstance(head, Extracts),
    "local_scores": lambda head: isinstance(head, ScoresMatchings),
    "importance": lambda head: isinstance(head, WeighsWords) and head.weighs_words,
}
"""What a head may be able to do besides ranking, by the method that does it."""


class Composite(AlignmentHead[Embedding]):
    """Heads side by side: the loss is the weighted sum of theirs, the score the weighted mean of theirs.

    Each keeps its own projections and temperature. A head that ranks nothing, as ``cce``, takes part in the loss only.
    Terms are named ``<head>.<term>``. Words are seen, weighed and matched by the first head that can.

    Args:
        dims: widths of the towers.
        heads: the members, each as ``model.head`` would name it.
        shares: one weight a member, above 0; 1 if not given.

    Raises:
        ConfigError: no member ranks, or the shares do not fit.
    """

    paper: ClassVar[str] = "those of its members"

    def __init__(self, dims: Dims, *, heads: list[HeadFactory], shares: list[float] | None = None) -> None:
        super().__init__()
        shares = [1.0] * len(heads) if shares is None else shares
        if len(shares) != len(heads) or any(share <= 0 for share in shares):
            raise ConfigError(
                f"head composite: shares is {shares}; give one number above 0 for each of {len(heads)} heads"
            )
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
        # Of this combination, not of the class.
        self.needs = frozenset[str]().union(*(head.needs for head in self._heads.values()))
        self.wants = frozenset[str]().union(*(head.wants for head in self._heads.values())) - self.needs
        self.gathers = frozenset(
            f"{panel}.{name}__{part}"
            for name, head in self._heads.items()
            for panel, part in (declared.split(".") for declared in head.gathers)
        )
        # What no member can do, this head cannot either.
        self.weighs_words = False
        for method, can in _ABILITIES.items():
            if (able := next((name for name, head in self._heads.items() if can(head)), None)) is not None:
                setattr(self, method, partial(self._ask, able, method))
                self.weighs_words |= method == "importance"
        self._weigh()

    @property
    def temperature(self) -> Tensor | None:
        """The first ranking member's, if it has one."""
        found: Tensor | None = getattr(self._heads[self.ranking[0]], "temperature", None)
        return found

    def start_step(self, epoch: int, step: int, total_steps: int) -> None:
        """Take over the members' weights, which may have changed."""
        self._weigh()

    def embed_image(self, image: Features) -> Embedding:
        """Every member's embedding in one, field ``f`` of member ``m`` as ``m__f``; ``pooled`` is a ranking member's."""
        return self._join({name: head.embed_image(image) for name, head in self._heads.items()})

    def embed_text(self, text: Features) -> Embedding:
        """As :meth:`embed_image`."""
        return self._join({name: head.embed_text(text) for name, head in self._heads.items()})

    def similarity(self, image: Embedding, text: Embedding) -> Tensor:
        """The mean of the ranking members' scores ``[I,T]``, weighted by their shares."""
        scores = [
            self.shares[name] * self._heads[name].similarity(_part(image, name), _part(text, name))
            for name in self.ranking
        ]
        return torch.stack(scores).sum(0) / sum(self.shares[name] for name in self.ranking)

    def losses(self, here: Pairs[Embedding], world: Pairs[Embedding]) -> dict[str, Tensor]:
        """Every member's terms, as ``<head>.<term>``."""
        terms = {}
        for name, head in self._heads.items():
            for term, value in head.losses(_pairs(here, name), _pairs(world, name)).items():
                terms[f"{name}.{term}"] = value
        return terms

    def _ask(self, name: str, method: str, *panels: Embedding) -> Tensor:
        answer: Tensor = getattr(self._heads[name], method)(*(_part(panel, name) for panel in panels))
        return answer

    def _weigh(self) -> None:
        self.weights = {
            f"{name}.{term}": self.shares[name] * weight
            for name, head in self._heads.items()
            for term, weight in head.weights.items()
        }

    def _join(self, parts: dict[str, Embedding]) -> Embedding:
        values = {f"{name}__{f.name}": getattr(part, f.name) for name, part in parts.items() for f in fields(part)}
        joined = _joined(tuple((name, type(part)) for name, part in parts.items()))
        return joined(pooled=parts[self.ranking[0]].pooled, **values)


@cache
def _joined(members: tuple[tuple[str, type[Embedding]], ...]) -> type[Embedding]:
    """An embedding of the members' fields side by side: what is gathered and selected knows fields, not nesting."""
    names = [(f"{name}__{f.name}", Any, field(default=None)) for name, kind in members for f in fields(kind)]
    return make_dataclass("Joined", names, bases=(Embedding,), namespace={"members": dict(members)}, frozen=True)


def _part(joined: Any, name: str) -> Embedding:
    """The embedding of one member."""
    kind: type[Embedding] = joined.members[name]
    return kind(**{f.name: getattr(joined, f"{name}__{f.name}") for f in fields(kind)})


def _pairs(pairs: Pairs[Embedding], name: str) -> Pairs[Embedding]:
    return Pairs(_part(pairs.image, name), _part(pairs.text, name), pairs.targets, pairs.hash, pairs.labels)
