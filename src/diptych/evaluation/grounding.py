"""Zero-shot grounding: where a head sees a phrase, against the boxes or masks of the finding."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diptych import distributed
from diptych.data.dataset import Sample
from diptych.errors import ConfigError, DataError
from diptych.evaluation import scoring
from diptych.evaluation.base import EmbedText, Evaluator
from diptych.evaluation.prompts import Entry, PromptSet, label_columns, load_prompts
from diptych.head import AlignmentHead, Grounds
from diptych.metrics.bootstrap import Metric
from diptych.metrics.localisation import MEASURES
from diptych.metrics.regions import at_pixels, in_picture, region_measures, region_metrics, regions_of
from diptych.types import Batch, Embedding

__all__ = ["Grounding", "Phrase", "Picture", "map_of"]

Head = AlignmentHead[Any]


@dataclass(frozen=True)
class Phrase:
    """A text and which of its words name the finding."""

    text: str
    words: tuple[int, ...]
    """Their places among the words of the text."""
    length: int
    """Words of the text."""

    @classmethod
    def parse(cls, marked: str) -> Phrase:
        """Read a text that has the finding's words in braces. Without braces all its words count.

        >>> Phrase.parse("There is a {nodule}.")
        Phrase(text='There is a nodule.', words=(3,), length=4)
        """
        text, words, length = "", [], 0
        for i, part in enumerate(re.split(r"[{}]", marked)):
            text += part
            number = len(re.findall(r"\w+", part))
            words += [*range(length, length + number)] if i % 2 else []
            length += number
        return cls(text, tuple(words) or tuple(range(length)), length)


@dataclass(frozen=True)
class Picture:
    """What is drawn of an image and a finding."""

    index: int
    """Of the image in the data set."""
    name: str
    sample: Sample
    """The network's input with the region."""
    title: str
    heat: NDArray[np.float32]
    """``[H,V]``."""


def map_of(heat: Tensor, phrase: Phrase, head: str = "the head") -> Tensor:
    """The map ``[B,N_regions]`` of a phrase: the mean of those of its marked words.

    Args:
        heat: ``[B,N_words,N_regions]`` as ``Grounds.heatmap`` gives it; zero at padding.
        phrase: the phrase.
        head: its name, for the message.

    Raises:
        ConfigError: the text tower divides the phrase into other words.
    """
    real = int((heat != 0).any(dim=2).any(dim=0).sum())
    if real != phrase.length:
        raise ConfigError(
            f"the phrase '{phrase.text}' has {phrase.length} words, and {head} has maps for {real}; write phrases of three or "
            "more plain words, without hyphens"
        )
    return heat[:, list(phrase.words)].mean(dim=1)


class Grounding(Evaluator):
    """Zero-shot grounding: the map of a phrase for a finding against its boxes, or its mask.

    Every image is evaluated on each finding of which it has boxes (or a mask that is not empty). The map is what the head's
    ``heatmap`` gives for the marked words of the phrase, averaged over words and then over the finding's phrases, and
    brought to the pixels of the network's input (bilinear). The black bars of a letterbox are left out. Metrics, each a mean
    over images, by finding and as ``macro``: ``pointing`` (the peak is inside), ``cnr`` (contrast to noise, signed), ``miou``
    and ``dice`` (means over thresholds 0.1 to 0.5 of the map stretched to 0..1), ``auroc`` of the pixels inside against those
    outside. Equations: :mod:`diptych.metrics.localisation`. The bootstrap draws patients.

    Args:
        prompts: the phrases: name of a shipped prompt set or path of a YAML file; of its entries those that the data set
            labels are used. Words in braces are those whose maps are taken.
        pictures: images to draw into the run's folder, the first of the set; none where ``figures.pairs`` is 0.
        name: first part of the metrics' names.
        resamples: bootstrap resamples for the intervals; 0 for none.
        seed: of the bootstrap.
    """

    def __init__(
        self,
        prompts: str = "grounding",
        pictures: int = 8,
        name: str = "grounding",
        resamples: int = 1000,
        seed: int = 0,
    ) -> None:
        super().__init__(name, resamples, seed)
        self.prompts: PromptSet = load_prompts(prompts)
        if pictures < 0:
            raise ConfigError(f"{name}: pictures is {pictures}; give 0 (none) or more")
        self._wanted = pictures
        self.pictures: list[Picture] = []
        """Of this process's first images; known after the pass."""
        self.findings: Sequence[str] = ()
        """Those of the data set."""

    def start(self, embed_text: EmbedText, findings: Sequence[str], intervals: bool = True) -> None:
        """Begin a pass: find the columns that label each prompt entry, and embed its phrases.

        Raises:
            ConfigError: the prompt set names none of the data set's findings.
        """
        super().start(embed_text, findings, intervals)
        self.findings = tuple(findings)
        self.pictures = []
        self._columns = label_columns(self.prompts, findings, self.name, partly=True) if findings else {}
        self._phrases: dict[Entry, list[tuple[Phrase, Embedding]]] = {}
        for entry in self._columns:
            phrases = [Phrase.parse(text) for text in entry.positive]
            self._phrases[entry] = [(phrase, embed_text([phrase.text])) for phrase in phrases]
        self._values: list[Tensor] = []
        self._counts = torch.zeros(3, dtype=torch.int64)  # without regions, with boxes, without pixels in or out
        self._facts = dict(self.prompts.facts)

    @torch.no_grad()
    def update(self, batch: Batch, image: Embedding, text: Embedding | None, head: Head) -> None:
        """Measure the maps of the valid images against the regions of each finding.

        Raises:
            ConfigError: the head cannot ground words.
            DataError: a mask does not say which of several findings it is of.
        """
        if not isinstance(head, Grounds):
            raise ConfigError(
                f"{self.name}: the head {type(head).__name__} has no heatmap, so it grounds no phrase; train one with word "
                "matchings, as local_pooling, or leave this evaluator out"
            )
        rows = self._samples.add(batch)
        if not self._columns or len(rows) == 0:
            return
        values = torch.full((len(rows), len(self._columns), len(MEASURES) + 1), torch.nan, dtype=torch.float64)
        self._values.append(values)
        if batch.boxes is None and batch.masks is None:
            self._counts[0] += len(rows)
            return
        self._counts[1] += 0 if batch.boxes is None else len(rows)
        inputs = batch.image[rows].cpu()
        pictured = [in_picture(one) for one in inputs]
        for j, (entry, columns) in enumerate(self._columns.items()):
            regions = regions_of(batch, rows, columns, self.findings, self.name)  # [n,H,V]
            shown = regions.flatten(1).any(dim=1).nonzero().flatten()
            for i, heat in zip(shown.tolist(), self._maps(entry, image, rows[shown], inputs, head), strict=True):
                found = region_measures(heat, regions[i], pictured[i])
                if found is None:
                    self._counts[2] += 1
                    continue
                values[i, j] = torch.tensor(found, dtype=torch.float64)
                if self._wanted and (
                    len(self.pictures) < self._wanted or batch.index[rows[i]] < self.pictures[-1].index
                ):
                    self.pictures.append(self._picture(batch, int(rows[i]), entry, regions[i], heat, values[i, j, :-1]))
                    self.pictures = sorted(self.pictures, key=lambda picture: picture.index)[: self._wanted]

    def _maps(self, entry: Entry, image: Embedding, rows: Tensor, inputs: Tensor, head: Grounds[Any]) -> Tensor:
        """The finding's maps of images ``rows``, at their pixels, ``[n,H,V]`` on the CPU."""
        parts = [torch.zeros(0, *inputs.shape[-2:])]
        for start in range(0, len(rows), scoring.IMAGES):
            # Filled up with the first images: products of one shape round alike, whatever the batch.
            chosen = rows[torch.arange(start, start + scoring.IMAGES) % len(rows)]
            some = image.select(chosen)
            maps = []
            for phrase, text in self._phrases[entry]:
                heat = head.heatmap(some, text.select(torch.zeros(len(chosen), dtype=torch.int64))).double()
                maps.append(map_of(heat, phrase, type(head).__name__))
            whole = torch.stack(maps).mean(dim=0)[: len(rows) - start]
            parts.append(at_pixels(whole, *inputs.shape[-2:]).float().cpu())  # float hides the last bits
        return torch.cat(parts)

    def _picture(self, batch: Batch, i: int, entry: Entry, region: Tensor, heat: Tensor, values: Tensor) -> Picture:
        boxes = None
        if batch.boxes is not None:
            own = [box for box in batch.boxes[i].cpu().numpy() if int(box[4]) in self._columns[entry]]
            boxes = np.stack(own)
        said = ", ".join(f"{name} {value:.2f}" for name, value in zip(MEASURES, values.tolist(), strict=True))
        text = f"{batch.ids[i]}, {entry.name}: {said}"
        sample = Sample(batch.image[i, 0].cpu().numpy(), text=text, boxes=boxes, mask=region.numpy())
        index = int(batch.index[i])
        return Picture(index, f"{index}-{entry.name.lower().replace(' ', '_')}", sample, entry.name, heat.numpy())

    def compute(self, head: Head) -> dict[str, Metric]:
        """Means of the measures by finding, over the whole set. Collective."""
        weights = self._weights()
        if not self._columns:
            self._facts["skipped"] = "the data set names no findings"
            return {}
        without, boxed, full = distributed.sum_over_processes(self._counts.to(self._device)).tolist()
        if without == self.count:
            self._facts["skipped"] = "the data set has neither boxes nor masks"
            return {}
        if without:
            raise DataError(f"{self.name}: {without} of {self.count} images have neither boxes nor masks; drop these")
        number = len(self._columns)
        none = torch.zeros(0, number, len(MEASURES) + 1, dtype=torch.float64)
        table = self._samples.values(torch.cat([none, *self._values])).numpy()
        found, facts = region_metrics(table, [entry.name for entry in self._columns], weights)
        self._facts |= {
            "region": "union of the boxes" if boxed else "mask",
            "map": "heatmap of the words in braces, mean over words and phrases, bilinear to the network's input",
            "picture": "the rectangle of pixels that are not black; the bars of a letterbox are left out",
            "measures": "cnr signed; miou and dice at 0.1, 0.2, 0.3, 0.4, 0.5 of the map stretched to 0..1; ties miss",
            "excluded": {"the region fills the picture": full},
            **facts,
        }
        return found
