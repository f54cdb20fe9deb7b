"""A gallery of heads, each with one mistake of public code. They are a module, so that the pool's processes find them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diptych import distributed
from diptych.head import AlignmentHead
from diptych.nn import functional as F
from diptych.types import Dims, Embedding, Features, Pairs, TokenEmbedding


class Right(AlignmentHead[Embedding]):
    """InfoNCE of cosines, without a mistake."""

    gathers = frozenset({"text.pooled"})

    def __init__(self, dims: Dims, *, width: int = 16) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(dims.image, width), nn.Linear(dims.text, width)
        self.weights = {"pairs": 1.0}

    def embed_image(self, image: Features) -> Embedding:
        return Embedding(F.unit(self.image(image.pooled)))

    def embed_text(self, text: Features) -> Embedding:
        return Embedding(F.unit(self.text(text.pooled)))

    def similarity(self, image: Embedding, text: Embedding) -> Tensor:
        return F.dot_products(image.pooled, text.pooled)

    def logits(self, here: Pairs[Embedding], world: Pairs[Embedding]) -> Tensor:
        return self.similarity(here.image, world.text) / 0.1

    def losses(self, here: Pairs[Embedding], world: Pairs[Embedding]) -> dict[str, Tensor]:
        return {"pairs": F.info_nce(distributed.gather(self.logits(here, world)), world.hash)}


class EqualReportsAreWrong(Right):
    """CLIP's loss as it is published."""

    def losses(self, here, world):
        logits = distributed.gather(self.logits(here, world))
        return {"pairs": nn.functional.cross_entropy(logits, torch.arange(len(logits), device=logits.device))}


class FirstColumns(Right):
    """The right reports are taken to be the first ones of the gathered batch. On one process they are."""

    def losses(self, here, world):
        scores = self.logits(here, world)
        right = torch.arange(len(scores), device=scores.device)
        columns = torch.arange(scores.shape[1], device=scores.device)
        alike = (here.hash[:, None] == world.hash) & (right[:, None] != columns)
        return {"pairs": nn.functional.cross_entropy(scores.masked_fill(alike, -1e9), right)}


class OwnReportsOnly(Right):
    """Each process contrasts its own pairs."""

    def losses(self, here, world):
        return {"pairs": F.info_nce(self.logits(here, here), here.hash)}


class GathersWithoutGradient(Right):
    """Other processes' scores are numbers."""

    def losses(self, here, world):
        logits = self.logits(here, world)
        everyone = distributed.gather(logits.detach()).clone()
        everyone[distributed.rank() * len(logits) :][: len(logits)] = logits
        return {"pairs": F.info_nce(everyone, world.hash)}


class MeanOverPadding(Right):
    """The vector of a report is the mean of all its words, padding included."""

    def __init__(self, dims, *, width=16):
        super().__init__(dims, width=width)
        self.text = nn.Linear(dims.text_tokens, width)

    def embed_text(self, text):
        return Embedding(F.unit(self.text(text.tokens).mean(1)))


class ScoresPadding(Right):
    """Padded words are matched with the regions."""

    gathers = frozenset({"text.pooled", "text.tokens", "text.mask"})

    def __init__(self, dims, *, width=16):
        super().__init__(dims, width=width)
        self.regions, self.words = nn.Linear(dims.image_tokens, width), nn.Linear(dims.text_tokens, width)

    def embed_image(self, image):
        return TokenEmbedding(super().embed_image(image).pooled, F.unit(self.regions(image.tokens)), image.mask)

    def embed_text(self, text):
        return TokenEmbedding(super().embed_text(text).pooled, F.unit(self.words(text.tokens)), text.mask)

    def similarity(self, image, text):
        best = torch.einsum("ire,twe->itwr", image.tokens, text.tokens).amax(3)
        return super().similarity(image, text) + best.amax(2)


class Undeclared(ScoresPadding):
    """Words are read from ``world`` and not declared."""

    gathers = frozenset({"text.pooled"})


class MeanOfNoWord(ScoresPadding):
    """Padding stays out of the mean, and a report without words is divided by zero."""

    def similarity(self, image, text):
        best = torch.einsum("ire,twe->itwr", image.tokens, text.tokens).amax(3) * text.mask
        return F.dot_products(image.pooled, text.pooled) + best.sum(2) / text.mask.sum(1)


class NormalisedOverTheBatch(Right):
    """Batch normalisation of the scores."""

    def similarity(self, image, text):
        scores = super().similarity(image, text)
        return (scores - scores.mean(0)) / (scores.std(0, unbiased=False) + 1e-3)


class KnowsTheRow(Right):
    """A score has a bias of the row."""

    def losses(self, here, world):
        logits = self.logits(here, world)
        return {"pairs": F.info_nce(distributed.gather(logits * (1 + here.targets[:, None])), world.hash)}


class BlindToText(Right):
    """The text tower gets no gradient."""

    def embed_text(self, text):
        return Embedding(F.unit(self.text(text.pooled.detach())))


class Unused(Right):
    """A parameter that no loss reads."""

    def __init__(self, dims, *, width=16):
        super().__init__(dims, width=width)
        self.spare = nn.Linear(width, width)


class ForgetsItsCentre(Right):
    """A running centre of the images, which the state dict lacks."""

    def __init__(self, dims, *, width=16):
        super().__init__(dims, width=width)
        self.register_buffer("centre", torch.zeros(width), persistent=False)

    def embed_image(self, image):
        return Embedding(F.unit(self.image(image.pooled) - self.centre))

    def losses(self, here, world):
        with torch.no_grad():
            self.centre.lerp_(distributed.sum_over_processes(here.image.pooled.sum(0)) / len(world.hash), 0.5)
        return super().losses(here, world)


class Waits(Right):
    """A loss that asks the device for a number."""

    def losses(self, here, world):
        terms = super().losses(here, world)
        return terms if terms["pairs"].item() > 0 else {"pairs": terms["pairs"] * 0}


class WaitsForAnIndex(Right):
    """A loss that indexes by a condition."""

    def losses(self, here, world):
        logits = distributed.gather(self.logits(here, world))
        wrong = logits[world.hash[:, None] != world.hash].square().sum()
        return {"pairs": F.info_nce(logits, world.hash) + 1e-3 * wrong}


class ShortFloats(Right):
    """Scores in the precision of autocast."""

    def similarity(self, image, text):
        return image.pooled @ text.pooled.T


class NoWeight(Right):
    """A term that has no weight."""

    def losses(self, here, world):
        return {**super().losses(here, world), "more": here.image.pooled.sum()}


class LongVectors(Right):
    """``pooled`` is not of length 1."""

    def embed_image(self, image):
        return Embedding(self.image(image.pooled))


BROKEN = {
    EqualReportsAreWrong: "equal reports",
    FirstColumns: "processes",
    OwnReportsOnly: "processes",
    GathersWithoutGradient: "processes",
    MeanOverPadding: "padding",
    ScoresPadding: "padding",
    Undeclared: "shapes",
    MeanOfNoWord: "small inputs",
    NormalisedOverTheBatch: "batch independence",
    KnowsTheRow: "permutation",
    BlindToText: "gradients",
    Unused: "gradients",
    ForgetsItsCentre: "resume",
    Waits: "device",
    WaitsForAnIndex: "device",
    ShortFloats: "autocast",
    NoWeight: "shapes",
    LongVectors: "shapes",
}
"""Each head with the rule that it breaks."""
