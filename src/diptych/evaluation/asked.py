"""What images score with the prompts of findings or classes, by a protocol."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as nn_functional

from diptych.evaluation import scoring
from diptych.evaluation.prompts import Entry
from diptych.evaluation.protocols import PROTOCOLS, ProtocolName, join_sides, mean_vector, reduce_side
from diptych.head import AlignmentHead
from diptych.types import Embedding

__all__ = ["Asked"]


class Asked:
    """The prompts of some entries. Each different one is embedded once.

    A finding has two sides, its positive and its negative prompts. A class has one.

    Args:
        entries: the entries, ``L`` of them.
        embed_text: embeds texts in the head's space.
        protocol: what becomes of the prompts' scores.
        averages: whether the text vectors of each side are averaged. Some protocols always do so.
        device: where the head is.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        embed_text: Callable[[list[str]], Embedding],
        protocol: ProtocolName,
        averages: bool,
        device: torch.device,
    ) -> None:
        rule = PROTOCOLS[protocol]
        self.protocol, self.device = protocol, device
        self.averages = averages or rule.averages
        self.pooled = rule.pooled or self.averages
        self.lengths = [1 + bool(entry.negative) for entry in entries]
        sides = [side for entry in entries for side in (entry.positive, entry.negative) if side]
        texts = list(dict.fromkeys(text for side in sides for text in side))
        place = {text: i for i, text in enumerate(texts)}
        self._sides = [torch.tensor([place[text] for text in side]) for side in sides]
        self._prompts = embed_text(texts).to("cpu")
        if self.pooled:
            self._vectors = nn_functional.normalize(self._prompts.pooled.double(), dim=1)
        if self.averages:
            self._vectors = torch.stack([mean_vector(self._vectors[side]) for side in self._sides])
            self._sides = [torch.tensor([i]) for i in range(len(sides))]

    def prompt_scores(self, image: Embedding, head: AlignmentHead[Any]) -> Tensor:
        """The scores ``[n,P]``, in float64, of images with every different text."""
        if self.pooled:
            vectors = nn_functional.normalize(image.pooled.cpu().double(), dim=1)
            return vectors @ self._vectors.T
        return torch.cat([block for _, block in scoring.blocks(head, image, self._prompts, self.device)]).double()

    def sides(self, scores: Tensor) -> Tensor:
        """The value ``[n,S]`` of each side, from the prompts' scores ``[n,P]``."""
        return torch.stack([reduce_side(self.protocol, scores[:, side]) for side in self._sides], dim=1)

    def entry_scores(self, scores: Tensor) -> Tensor:
        """The score ``[n,L]`` of each entry, from the prompts' scores ``[n,P]``. The protocol must not be transductive."""
        return join_sides(self.protocol, self.sides(scores), self.lengths)
