"""What a head sees in a picture: maps over the regions with their figures, and which words of a report are drawn."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diptych.metrics.localisation import flatness
from diptych.radiographs.letterbox import Letterbox
from diptych.reports.labeller import Mention, mentions
from diptych.reports.text import names_nothing, sentence_spans

__all__ = ["Maps", "Seen", "choose_words"]


@dataclass(frozen=True)
class Maps:
    """Maps over the regions of a picture, in multiples of the mean region: attention times ``R``. 1 everywhere is flat."""

    image: NDArray[np.uint8]
    """The picture as it was read, ``[h,v]``."""
    regions: NDArray[np.float32]
    """``[n,rows,columns]``, over the square input."""
    place: Letterbox
    """Where the picture lies in the square input."""
    size: int
    """Side of the square input."""

    @property
    def native(self) -> NDArray[np.float32]:
        """The maps at the picture's own size, ``[n,h,v]``."""
        return self.place.heat(self.regions, self.image.shape, self.size)

    @property
    def entropy(self) -> NDArray[np.float64]:
        """How flat each map is, ``[n]``: its entropy over ``log R``. 0 is one region, 1 is all alike."""
        flat = self.regions.reshape(len(self.regions), self.regions.shape[1] * self.regions.shape[2]).astype(np.float64)
        return np.asarray(flatness(flat / np.maximum(flat.sum(axis=1, keepdims=True), 1e-300)))

    @property
    def peaks(self) -> NDArray[np.float32]:
        """The highest region of each map, ``[n]``."""
        return np.asarray(self.regions.max(axis=(1, 2), initial=0.0))


@dataclass(frozen=True)
class Seen(Maps):
    """What a head sees of a text in a picture (:meth:`diptych.model.inference.TrainedModel.look`): a map for each word."""

    text: str
    spans: list[tuple[int, int]]
    """The words: first letter, and place after the last."""
    score: float
    """Of the picture with the text, as evaluation ranks by it."""
    local: float | None = None
    """Its local part. None where the head has none."""
    weights: NDArray[np.float32] | None = None
    """Share of each word in the score, ``[words]``. None where the head weighs no words."""

    @property
    def words(self) -> list[str]:
        """The words as written."""
        return [self.text[start:end] for start, end in self.spans]


def choose_words(
    seen: Seen, most: int, wanted: Sequence[str] | None = None, reported: bool = True
) -> list[tuple[list[int], float | None]]:
    """The words that are drawn: for each panel the numbers of its words, and what the report says of their finding.

    First come the words of findings that are present or in doubt, then of those that are absent, then all others. Within
    these, a finding's strongest word comes first, and the others follow by strength. The strength is the weight in the
    score where the head weighs words, else how concentrated the attention is. Words that name nothing are left out, and a
    word that occurs again too. Words of a sentence that have one map, as some heads give it, share a panel.

    Args:
        seen: what the head sees.
        most: most panels.
        wanted: these words alone, in this order. Case does not matter.
        reported: whether to look for findings. Without, strength alone counts.
    """
    words = [word.lower() for word in seen.words]
    strength = -seen.entropy if seen.weights is None else seen.weights
    named: dict[int, Mention] = {}
    for mention in mentions(seen.text) if reported else ():
        for i, (start, end) in enumerate(seen.spans):
            if start < mention.end and mention.start < end:
                named.setdefault(i, mention)
    drawn = [i for i, word in enumerate(words) if not names_nothing(word)]
    rank: dict[int, tuple[float, ...]] = {}
    places: dict[Mention, int] = {}
    for i in sorted(drawn, key=lambda i: (-strength[i], i)):
        if i in named:
            places[named[i]] = place = places.get(named[i], -1) + 1
            rank[i] = (named[i].value == 0, place, named[i].start)
        else:
            rank[i] = (2, -float(strength[i]), i)
    if wanted is not None:
        order = [word.lower() for word in wanted]
        rank = {i: (order.index(word), i) for i, word in enumerate(words) if word in order}
    starts = [start for start, _ in sentence_spans(seen.text)]
    sentence = [bisect_right(starts, start) for start, _ in seen.spans]
    panels: list[tuple[list[int], float | None]] = []
    taken: set[str] = set()
    for i in sorted(rank, key=rank.__getitem__):
        if words[i] in taken:
            continue
        value = named[i].value if i in named else None
        here, heat = sentence[i], seen.regions[i]
        twin = next(
            (p for p in panels if sentence[p[0][0]] == here and np.array_equal(seen.regions[p[0][0]], heat)), None
        )
        if twin is None and len(panels) < most:
            panels.append(([i], value))
            taken.add(words[i])
        elif twin is not None and twin[1] == value and len(twin[0]) < 3:
            twin[0].append(i)
            taken.add(words[i])
    return [(sorted(numbers), value) for numbers, value in panels]
