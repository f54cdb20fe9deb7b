"""Class-level retrieval on sets such as 5x200, where every candidate of the query's class is right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from diptych import distributed
from diptych.errors import ConfigError, DataError
from diptych.evaluation import scoring
from diptych.evaluation.base import NO_ROWS, Array, EmbedText, Evaluator, Head
from diptych.evaluation.prompts import Entry, PromptSet, label_columns, load_prompts
from diptych.evaluation.rows import gather_embedding, gather_rows, stack
from diptych.metrics.bootstrap import Metric
from diptych.metrics.class_retrieval import shares_of
from diptych.predictions.base import Column
from diptych.types import Batch, Embedding

__all__ = ["ClassRetrieval", "Leaders", "hits_at"]

_DEFINED = {
    "reports": "image_to_text as in GLoRIA (ICCV 2021): each image against the reports of all images of the set, its own "
    "among them and equal reports each counted; text_to_image is its mirror",
    "prompts": "text_to_image as in ConVIRT (MLHC 2022): each prompt against all images; image_to_text is its mirror",
}


class Leaders:
    """The best right and the best wrong scores of each query so far, ``[Q,k]`` falling. Precision at k needs no more.

    A score that is not a number counts as the lowest of a right candidate, and as the highest of a wrong one.
    """

    def __init__(self, queries: int, k: int) -> None:
        self.k = k
        self.right = torch.full((queries, k), -torch.inf)
        self.wrong = torch.full((queries, k), -torch.inf)

    def add(self, scores: Tensor, relevant: Tensor) -> None:
        """Add candidates, by their scores ``[Q,c]`` and whether they are right (``relevant``, ``[Q,c]`` bool)."""
        low = scores.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf).masked_fill(~relevant, -torch.inf)
        high = scores.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf).masked_fill(relevant, -torch.inf)
        self.merge(low, high)

    def merge(self, right: Tensor, wrong: Tensor) -> None:
        """Add scores ``[Q,c]`` of right and of wrong candidates. -inf stands for no candidate."""
        self.right = torch.cat([self.right, right], dim=1).topk(self.k, dim=1).values
        self.wrong = torch.cat([self.wrong, wrong], dim=1).topk(self.k, dim=1).values


def hits_at(right: Tensor, wrong: Tensor, ks: Sequence[int], slack: float) -> Tensor:
    """The number of right candidates among the first ``k`` of a ranking, ``[Q,len(ks)]``. Ties count against the model.

    A right candidate ranks behind every wrong one that is not more than ``slack`` below it.

    >>> hits_at(torch.tensor([[0.9, 0.5]]), torch.tensor([[0.5, 0.1]]), ks=(1, 2, 3), slack=0.0)
    tensor([[1, 1, 2]])

    Args:
        right: scores ``[Q,K]`` of right candidates, falling. -inf stands for no candidate.
        wrong: scores ``[Q,K]`` of wrong candidates, likewise. ``K`` is the largest of ``ks``, or less if that is all.
        ks: cut-offs.
        slack: scores closer than this are tied.
    """
    # searchsorted needs a rising sequence, so all signs are turned.
    before = torch.searchsorted(-wrong.contiguous(), -(right - slack).contiguous(), right=True)
    place = torch.arange(1, right.shape[1] + 1) + before
    return torch.stack([((place <= k) & (right > -torch.inf)).sum(dim=1) for k in ks], dim=1)


class ClassRetrieval(Evaluator):
    """Retrieval among images and texts of several classes. A candidate is right if it has the query's class.

    The texts are the reports of the set, or the prompts of the classes. Reports are retrieved by images in GLoRIA and MGCA,
    on CheXpert 5x200 (1,000 images, 1,000 reports). Images are retrieved by prompts in ConVIRT. Both directions are
    measured in either case. Only samples with exactly one of the classes are used.

    The metrics are means over the queries. Ties count against the model, as in ``Retrieval``. A class without images is
    listed as ``absent``, and is no query.

    - ``image_to_text/p@k`` and ``text_to_image/p@k`` are the share of the first ``k`` candidates that is right.
    - ``image_to_text/hit@k`` and ``text_to_image/hit@k`` are the share of queries with a right one among the first ``k``.

    The bootstrap draws patients. Reports are ranked once, and a query is drawn with its patient. With prompts, each
    resampled set of images is ranked anew. Scores are computed by blocks. Only the best of each query are kept, but with
    prompts all are.

    Args:
        prompts: name of a shipped multi-class prompt set, or path of a YAML file. It names the classes.
        texts: the texts that are retrieved, ``reports`` or ``prompts``.
        precision: cut-offs of P@k.
        hits: cut-offs of Hit@k.
        name: first part of the metrics' names. Give different ones to evaluate both kinds of texts.
        resamples: number of bootstrap resamples for the intervals. 0 gives none.
        seed: seed of the bootstrap.

    Raises:
        ConfigError: the prompt set is not multi-class, or a cut-off is below 1.
    """

    def __init__(
        self,
        prompts: str,
        texts: Literal["reports", "prompts"] = "reports",
        precision: Sequence[int] = (5, 10, 100),
        hits: Sequence[int] = (1, 5, 10),
        name: str = "class_retrieval",
        resamples: int = 1000,
        seed: int = 0,
    ) -> None:
        super().__init__(name, resamples, seed)
        self.prompts: PromptSet = load_prompts(prompts)
        if self.prompts.kind != "multiclass":
            raise ConfigError(
                f"{name}: prompt set '{prompts}' has findings, not classes; give one such as chexpert5x200"
            )
        if not precision or not hits or min(*precision, *hits) < 1:
            raise ConfigError(
                f"{name}: precision is {list(precision)} and hits {list(hits)}; each must hold at least one cut-off, 1 or more"
            )
        self._texts, self._precision, self._hits = texts, tuple(precision), tuple(hits)
        self._ks = (*self._precision, *self._hits)

    def start(self, embed_text: EmbedText, findings: Sequence[str], intervals: bool = True) -> None:
        """Begin a pass: find the columns that label each class, and embed the prompts where they are the texts.

        Raises:
            ConfigError: the data set does not label every class.
        """
        super().start(embed_text, findings, intervals)
        self._columns: dict[Entry, list[int]] = {}
        self._images: list[Embedding] = []
        self._reports: list[Embedding] = [self._example.to("cpu").select(NO_ROWS)]
        self._classes: list[Tensor] = [NO_ROWS]
        self._facts = {"texts": self._texts, "definition": _DEFINED[self._texts]}
        self._facts |= self.prompts.facts
        self._without = 0
        if findings:
            self._columns = label_columns(self.prompts, findings, self.name)
        if self._columns and self._texts == "prompts":
            texts = [text for entry in self._columns for text in entry.positive]
            self._prompts = embed_text(texts).to("cpu")
            owners = [len(entry.positive) for entry in self._columns]
            self._owner = torch.arange(len(owners)).repeat_interleave(torch.tensor(owners))

    def update(self, batch: Batch, image: Embedding, text: Embedding | None, head: Head) -> None:
        """Keep the embeddings of the valid images and reports, and the class of each image. -1 is none or several."""
        rows = self._samples.add(batch)
        if not self._columns or len(rows) == 0:
            return
        labels = self._labels_of(batch, rows)
        positive = torch.stack([(labels[:, columns] == 1).any(dim=1) for columns in self._columns.values()], dim=1)
        single = positive.sum(dim=1) == 1
        self._classes.append(torch.where(single, positive.int().argmax(dim=1), -1))
        self._images.append(image.select(rows).to("cpu"))
        if text is None:
            self._without += len(rows)
        else:
            self._reports.append(text.select(rows).to("cpu"))

    @torch.no_grad()
    def compute(self, head: Head) -> dict[str, Metric]:
        """P@k and Hit@k in both directions, over the whole set. Collective."""
        device = self._device
        self._gather()
        own, order = self._samples.own, self._samples.order
        without = int(distributed.sum_over_processes(torch.tensor(self._without, device=device)))
        skipped = None if self._columns else "the data set has no labels"
        if self._columns and self._texts == "reports" and without == self.count:
            skipped = "the data set has no reports"
        if skipped:
            self._facts["skipped"] = skipped
            return {}
        if self._texts == "reports" and without:
            raise DataError(
                f"{self.name}: only {self.count - without} of {self.count} samples have a report; drop the others"
            )
        here = torch.cat(self._classes)
        classes, here = self._samples.values(here), here[own]
        used, own = classes >= 0, own[here >= 0]
        here, place = here[here >= 0], order[used]
        # `place` ranks the used rows of all processes, in the order in which they are gathered.
        if self._texts == "reports":
            texts = gather_embedding(stack(self._reports).select(own), device).select(_ranks(place))
            candidates = classes[used]
        else:
            texts, candidates = self._prompts, self._owner
        images = stack(self._images).select(own) if self._images else None
        n, width, k = int(used.sum()), len(candidates), max(self._ks)
        of_images, of_texts = Leaders(0, min(k, width)), Leaders(width, min(k, max(n, 1)))
        own_scores, largest = [torch.zeros(0, width)], torch.zeros(1)
        blocks = (
            () if images is None else scoring.blocks(head, images, texts, device, min(max(n, 1), 4 * scoring.IMAGES))
        )
        rights, wrongs = [of_images.right], [of_images.wrong]
        for rows, scores in blocks:
            relevant = here[rows, None] == candidates
            largest = torch.cat([largest, scores[scores.isfinite()].abs()]).amax(dim=0, keepdim=True)
            block = Leaders(len(rows), of_images.k)
            block.add(scores, relevant)
            rights.append(block.right)
            wrongs.append(block.wrong)
            if self._texts == "reports":
                of_texts.add(scores.T, relevant.T)
            else:
                own_scores.append(scores)
        slack = scoring.TIE * float(distributed.max_over_processes(largest.to(device)))
        of_image = gather_rows(hits_at(torch.cat(rights), torch.cat(wrongs), self._ks, slack), device)
        of_image = of_image[_ranks(place)]
        sizes = classes[used].bincount(minlength=len(self._columns)).numpy()
        self._describe(sizes, candidates.bincount(minlength=len(self._columns)).numpy(), n)
        names = [*(f"p@{k}" for k in self._precision), *(f"hit@{k}" for k in self._hits)]
        entries = [entry.name for entry in self._columns]
        columns: dict[str, Column] = {"class": [entries[c] if c >= 0 else "" for c in classes.tolist()]}

        def add(values: Sequence[Array], start: str, names: Sequence[str]) -> None:
            """Columns with the values of the used images, and NaN at the others."""
            for name, value in zip(names, values, strict=True):
                whole = np.full(len(used), np.nan, value.dtype)
                whole[used.numpy()] = value
                columns[f"{start}/{name}"] = whole

        add(shares_of(of_image.numpy(), names), "image_to_text", names)
        if self._texts == "reports":
            self._merge(of_texts, device)
            of_text = hits_at(of_texts.right, of_texts.wrong, self._ks, slack)
            add(shares_of(of_text.numpy(), names), "text_to_image", names)
        else:
            table = gather_rows(torch.cat(own_scores), device)[_ranks(place)].numpy()
            prompts = [f"{j}/{entries[c]}" for j, c in enumerate(candidates.tolist())]
            add(list(table.T), "prompt", prompts)
        return self._figures("class_retrieval", columns)[0]

    def _merge(self, leaders: Leaders, device: torch.device) -> None:
        """Merge the leaders of all processes into these. Collective."""
        gathered = gather_rows(torch.stack([leaders.right, leaders.wrong])[None], device)  # [W,2,T,k]
        leaders.right, leaders.wrong = leaders.right[:, :0], leaders.wrong[:, :0]
        flat = gathered.permute(1, 2, 0, 3).flatten(2)  # [2,T,W*k]
        leaders.merge(flat[0], flat[1])

    def _describe(self, images: Array, texts: Array, n: int) -> None:
        """Note the set in the protocol: what is absent, the value of chance, and the highest P@k where that is below 1."""
        names = [entry.name for entry in self._columns]
        asked = images > 0
        sides = {"image_to_text": (images, texts), "text_to_image": (texts * asked, images)}
        self._facts |= {
            "images": {name: int(number) for name, number in zip(names, images, strict=True)},
            "candidates": {name: int(number) for name, number in zip(names, texts, strict=True)},
            "absent": [name for name, number in zip(names, images, strict=True) if number == 0],
            "excluded": {"none of the classes or several": self.count - n},
            "ties": f"count against the model; scores within {scoring.TIE:g} of the largest are tied",
            "ceiling": {
                f"{side}/p@{k}": float((queries * np.minimum(right, k) / k).sum() / queries.sum())
                for side, (queries, right) in sides.items()
                for k in self._precision
                if queries.sum() and (right[queries > 0] < k).any()
            },
            "chance": {
                side: float((queries * right).sum() / (queries.sum() * right.sum()))
                for side, (queries, right) in sides.items()
                if queries.sum() and right.sum()
            },
        }


def _ranks(x: Tensor) -> Tensor:
    """The ranks ``[n]`` of distinct numbers. The smallest has 0."""
    return x.argsort().argsort()
