"""Zero-shot grounding: the map of a phrase is compared with the boxes or the mask of its finding."""

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
from diptych.checks import check_number
from diptych.data.dataset import Sample
from diptych.errors import ConfigError, DataError
from diptych.evaluation import scoring
from diptych.evaluation.base import EmbedText, Evaluator, Head
from diptych.evaluation.prompts import Entry, PromptSet, label_columns, load_prompts
from diptych.head import Compares, Grounds
from diptych.metrics.bootstrap import Metric
from diptych.metrics.localisation import MEASURES, flatness
from diptych.metrics.regions import at_pixels, in_picture, region_measures, regions_of
from diptych.predictions.kinds import named_regions
from diptych.types import Batch, Embedding

__all__ = ["Grounding", "Phrase", "Picture", "map_of", "word_weights"]

_FIXED = (
    "iou@c and dice@c: the mask is where the cosine is above c; mean over the same words as the map, bilinear to the network's "
    "input (after RadZero, arXiv 2504.07416)"
)


@dataclass(frozen=True)
class Phrase:
    """A text, and which of its words name the finding."""

    text: str
    words: tuple[int, ...]
    """Positions, among the words of the text, of those that name the finding."""
    length: int
    """Number of words of the text."""

    @classmethod
    def parse(cls, marked: str) -> Phrase:
        """Read a text whose words for the finding are in braces. Without braces all its words are taken.

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
    """The picture of an image and a finding that is to be drawn."""

    index: int
    """Index of the image in the data set."""
    name: str
    sample: Sample
    """The network's input with the region of the finding."""
    title: str
    heat: NDArray[np.float32]
    """The map ``[H,V]`` of the finding, in multiples of the mean region."""


def map_of(heat: Tensor, phrase: Phrase, head: str = "the head") -> Tensor:
    """The map ``[B,N_regions]`` of a phrase: the mean over the maps of its marked words.

    >>> map_of(torch.tensor([[[0.2, 0.8], [1.0, 0.0]]]), Phrase.parse("left {nodule}"))
    tensor([[1., 0.]])

    Args:
        heat: maps ``[B,N_words,N_regions]`` of all words, as ``Grounds.heatmap`` returns them, zero at padding.
        phrase: the phrase.
        head: name of the head, for the message.

    Raises:
        ConfigError: the text tower divides the phrase into other words.
    """
    words = int((heat != 0).any(dim=2).any(dim=0).sum())
    if words != phrase.length:
        raise ConfigError(
            f"the phrase '{phrase.text}' has {phrase.length} words, and {head} has maps for {words}; write phrases of three or "
            "more plain words, without hyphens"
        )
    return heat[:, list(phrase.words)].mean(dim=1)


def word_weights(heat: Tensor) -> Tensor:
    """The weight ``[B,N_words]`` of each word in the mean over a whole text. Padding has none.

    >>> word_weights(torch.tensor([[[0.5, 0.5], [1.0, 0.0]], [[0.0, 1.0], [0.0, 0.0]]])).tolist()
    [[0.5, 0.5], [1.0, 0.0]]

    Args:
        heat: maps ``[B,N_words,N_regions]``, as ``Grounds.heatmap`` returns them, zero at padding.
    """
    words = (heat != 0).any(dim=2).to(heat)
    return words / words.sum(dim=1, keepdim=True).clamp(min=1)


class Grounding(Evaluator):
    """Zero-shot grounding: compares the map of a finding's phrases with its boxes or its mask.

    An image is evaluated on each finding of which it has a box or a mask that is not empty. The head's ``heatmap`` gives a
    map for each word of a phrase. The maps of the marked words are averaged, then those of the finding's phrases. The result
    is interpolated to the pixels of the network's input. The black bars of a letterbox are left out.

    Each metric is a mean over images, for each finding and as ``macro``. The equations are in
    :mod:`diptych.metrics.localisation`. The bootstrap draws patients.

    - ``pointing``: whether the highest pixel of the map lies in the region.
    - ``cnr``: the contrast-to-noise ratio, signed.
    - ``miou`` and ``dice``: means over the thresholds 0.1 to 0.5 of the map, stretched to 0..1.
    - ``auroc``: of the pixels in the region against the others.
    - ``entropy``: of the marked words' attention over the regions, before any mean, over the logarithm of their number. 0 is a
      single region, 1 is all alike.
    - ``iou@c`` and ``dice@c``: of the pixels where the cosine of words and regions is above ``c``, for each of ``cosines``. So
      a mask needs no stretching, and may be empty (RadZero, arXiv 2504.07416).

    Args:
        prompts: the phrases, by the name of a shipped prompt set or the path of a YAML file. Entries that the data set does
            not label are left out. The maps of the words in braces are taken.
        pictures: number of the first images of the set that are drawn into the run's folder. None are where ``figures.pairs``
            is 0.
        name: first part of the metrics' names.
        resamples: number of bootstrap resamples for the intervals. 0 gives none.
        seed: seed of the bootstrap.
        cosines: fixed thresholds of the cosine, each from -1 to 1. The head must have ``cosines``. None are empty.
        texts: look for each image's own text in place of the prompts, where a data set pairs phrases with boxes. All its words
            are taken. It is held against the boxes of every finding that the image has.
    """

    def __init__(
        self,
        prompts: str = "grounding",
        pictures: int = 8,
        name: str = "grounding",
        resamples: int = 1000,
        seed: int = 0,
        cosines: Sequence[float] = (),
        texts: bool = False,
    ) -> None:
        super().__init__(name, resamples, seed)
        self.prompts: PromptSet = load_prompts(prompts)
        check_number(f"{name}: pictures", pictures, least=0, whole=True, remedy="0 (none) or more")
        self._wanted = pictures
        for threshold in cosines:
            check_number(f"{name}: cosines", threshold, least=-1, most=1)
        self._cosines = tuple(dict.fromkeys(cosines))
        fixed = [f"{measure}@{threshold:g}" for threshold in self._cosines for measure in ("iou", "dice")]
        self._measures = (*MEASURES, *fixed, "entropy")
        self._texts = texts
        self.pictures: list[Picture] = []
        """Pictures of this process's first images, known after the pass."""
        self.findings: Sequence[str] = ()
        """The findings of the data set."""

    def start(self, embed_text: EmbedText, findings: Sequence[str], intervals: bool = True) -> None:
        """Begin a pass: find the columns that label each prompt entry, and embed its phrases.

        Raises:
            ConfigError: the prompt set names none of the data set's findings.
        """
        super().start(embed_text, findings, intervals)
        self.findings = tuple(findings)
        self.pictures = []
        if self._texts:
            self._columns = {Entry(finding, ()): [i] for i, finding in enumerate(findings)}
        else:
            self._columns = label_columns(self.prompts, findings, self.name, partly=True) if findings else {}
        self._phrases: dict[Entry, list[tuple[Phrase, Embedding]]] = {}
        for entry in self._columns:
            phrases = [Phrase.parse(text) for text in entry.positive]
            self._phrases[entry] = [(phrase, embed_text([phrase.text])) for phrase in phrases]
        self._values: list[Tensor] = []
        self._counts = torch.zeros(3, dtype=torch.int64)  # images: without regions, with boxes, filled by a region
        self._facts = {"prompts": "each image's own text"} if self._texts else dict(self.prompts.facts)

    @torch.no_grad()
    def update(self, batch: Batch, image: Embedding, text: Embedding | None, head: Head) -> None:
        """Compare the maps of the valid images with the regions of each finding.

        Raises:
            ConfigError: the head cannot ground words, or there is no text where ``texts`` is set.
            DataError: a mask does not say which of several findings it is of.
        """
        if not isinstance(head, Grounds):
            raise ConfigError(
                f"{self.name}: the head {type(head).__name__} has no heatmap, so it grounds no phrase; train one with word "
                "matchings, as local_pooling, or leave this evaluator out"
            )
        if self._cosines and not isinstance(head, Compares):
            raise ConfigError(
                f"{self.name}: the head {type(head).__name__} has no cosines of words and regions, so no fixed threshold "
                "fits it; leave cosines out, or train one that has them, as local_pooling"
            )
        if self._texts and text is None:
            raise ConfigError(
                f"{self.name}: texts is true, and the data set has no texts; leave it out, and name prompts"
            )
        rows = self._samples.add(batch)
        if not self._columns or len(rows) == 0:
            return
        values = torch.full((len(rows), len(self._columns), len(self._measures) + 1), torch.nan, dtype=torch.float64)
        self._values.append(values)
        if batch.boxes is None and batch.masks is None:
            self._counts[0] += len(rows)
            return
        self._counts[1] += 0 if batch.boxes is None else len(rows)
        inputs = batch.image[rows].cpu()
        picture_areas = [in_picture(image) for image in inputs]
        for j, (entry, columns) in enumerate(self._columns.items()):
            regions = regions_of(batch, rows, columns, self.findings, self.name)  # [n,H,V]
            present = regions.flatten(1).any(dim=1).nonzero().flatten()
            maps, levels, entropies, number = self._maps(entry, image, text, rows[present], inputs, head)
            for i, heat, level, entropy in zip(present.tolist(), maps, levels, entropies.tolist(), strict=True):
                measures = region_measures(heat, regions[i], picture_areas[i], level, self._cosines)
                if measures is None:
                    self._counts[2] += 1
                    continue
                values[i, j] = torch.tensor([*measures[:-1], entropy, measures[-1]], dtype=torch.float64)
                if self._wanted and (
                    len(self.pictures) < self._wanted or batch.index[rows[i]] < self.pictures[-1].index
                ):
                    self.pictures.append(
                        self._picture(batch, int(rows[i]), entry, regions[i], number * heat, values[i, j, :-1])
                    )
                    self.pictures = sorted(self.pictures, key=lambda picture: picture.index)[: self._wanted]

    def _maps(
        self, entry: Entry, image: Embedding, own: Embedding | None, rows: Tensor, inputs: Tensor, head: Grounds[Any]
    ) -> tuple[Tensor, Tensor, Tensor, int]:
        """A finding in some rows, on the CPU.

        Returns:
            Maps and cosines, each ``[n,H,V]`` over the network's input, entropies ``[n]``, and ``R``. Where no threshold is
            asked for, the maps stand for the cosines too.
        """
        none = torch.zeros(0, *inputs.shape[-2:])
        parts, levels, entropies, number = [none], [none], [torch.zeros(0)], 0
        for start in range(0, len(rows), scoring.IMAGES):
            # A block is filled up with the first images. Products of one shape round alike, whatever the batch.
            block = rows[torch.arange(start, start + scoring.IMAGES) % len(rows)]
            images = image.select(block)
            maps, cosines, flat = [], [], []
            for phrase, text in self._phrases[entry]:
                texts = text.select(torch.zeros(len(block), dtype=torch.int64))
                heat = head.heatmap(images, texts).double()
                maps.append(map_of(heat, phrase, type(head).__name__))
                if self._cosines and isinstance(head, Compares):
                    cosines.append(head.cosines(images, texts)[:, list(phrase.words)].double().mean(dim=1))
                flat.append(flatness(heat[:, list(phrase.words)].cpu().numpy()).mean(axis=1))
            if self._texts and own is not None:
                texts = own.select(block)
                heat = head.heatmap(images, texts).double()
                weights = word_weights(heat)
                maps.append((weights[..., None] * heat).sum(dim=1))
                if self._cosines and isinstance(head, Compares):
                    cosines.append((weights[..., None] * head.cosines(images, texts).double()).sum(dim=1))
                flat.append((weights.cpu().numpy() * flatness(heat.cpu().numpy())).sum(axis=1))
            whole = torch.stack(maps).mean(dim=0)[: len(rows) - start]
            number = whole.shape[1]
            parts.append(at_pixels(whole, *inputs.shape[-2:]).float().cpu())  # float hides the last bits
            if cosines:
                level = torch.stack(cosines).mean(dim=0)[: len(rows) - start]
                levels.append(at_pixels(level, *inputs.shape[-2:]).float().cpu())
            entropies.append(torch.from_numpy(np.mean(flat, axis=0))[: len(rows) - start].float())
        whole = torch.cat(parts)
        return whole, torch.cat(levels) if self._cosines else whole, torch.cat(entropies), number

    def _picture(self, batch: Batch, i: int, entry: Entry, region: Tensor, heat: Tensor, values: Tensor) -> Picture:
        boxes = None
        if batch.boxes is not None:
            own = [box for box in batch.boxes[i].cpu().numpy() if int(box[4]) in self._columns[entry]]
            boxes = np.stack(own)
        measures = ", ".join(f"{name} {value:.2f}" for name, value in zip(self._measures, values.tolist(), strict=True))
        text = f"{batch.ids[i]}, {entry.name}: {measures}"
        sample = Sample(batch.image[i, 0].cpu().numpy(), text=text, boxes=boxes, mask=region.numpy())
        index = int(batch.index[i])
        return Picture(
            index, f"{index}-{re.sub(r'[^a-z0-9]+', '_', entry.name.lower())}", sample, entry.name, heat.numpy()
        )

    def compute(self, head: Head) -> dict[str, Metric]:
        """The mean of each measure over the whole set, for each finding. Collective."""
        self._gather()
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
        none = torch.zeros(0, number, len(self._measures) + 1, dtype=torch.float64)
        table = self._samples.values(torch.cat([none, *self._values])).numpy()
        columns = named_regions([entry.name for entry in self._columns], table, self._measures)
        results, facts = self._figures("regions", columns)
        self._facts |= {
            "region": "union of the boxes" if boxed else "mask",
            "map": f"heatmap of {'all words' if self._texts else 'the words in braces'}, mean over words"
            f"{'' if self._texts else ' and phrases'}, bilinear to the network's input",
            "picture": "the rectangle of pixels that are not black; the bars of a letterbox are left out",
            "measures": "cnr signed; miou and dice at 0.1, 0.2, 0.3, 0.4, 0.5 of the map stretched to 0..1; ties miss",
            "excluded": {"the region fills the picture": full},
            **({"cosines": _FIXED} if self._cosines else {}),
            **facts,
        }
        return results
