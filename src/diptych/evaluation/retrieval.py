"""Retrieval of reports by images and of images by reports."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from diptych import distributed
from diptych.checks import check_choice
from diptych.errors import ConfigError, DataError
from diptych.evaluation import scoring
from diptych.evaluation.base import NO_ROWS, EmbedText, Evaluator, Head
from diptych.evaluation.rows import gather_embedding, gather_rows, stack
from diptych.metrics.bootstrap import Metric
from diptych.predictions.base import Chosen, Column
from diptych.types import Batch, Embedding

__all__ = ["Retrieval"]

Duplicates = Literal["folded", "kept"]
_MEANT = {
    "folded": "equal reports (case and white space folded) count as one text; a text's best image counts",
    "kept": "each image has a text of its own; an equal report of another image is wrong, and ties",
}


class Retrieval(Evaluator):
    """Image-report retrieval over the whole set, in both directions.

    ``duplicates`` says what becomes of equal reports. With ``folded`` they count as one text. The rank of an image's own text
    is taken among the different texts. The rank of a text is that of the best of its images, among all images. With
    ``kept`` each image has a text of its own. No other is right, be it equal.

    Scores that tie with the right one count against it, so a constant score is the worst and not the best. With ``kept`` the
    copies of a report tie, so a report that is there ``m`` times has rank ``m`` at best.

    The metrics are ``image_to_text/r@k``, ``text_to_image/r@k``, their mean ``r@k``, and the ``median_rank`` of each
    direction. The bootstrap draws patients and keeps the ranks. A text is drawn with the patient of its first image.

    Args:
        ks: cut-offs of R@k.
        resamples: number of bootstrap resamples for the intervals. 0 gives none.
        seed: seed of the bootstrap.
        keep_bytes: ranks need two passes over the scores. They are held in memory between the passes if they take no more
            bytes than this. Otherwise they are computed twice.
        duplicates: ``folded`` or ``kept``.
        name: first part of the metrics' names. Give different ones to evaluate both.
    """

    def __init__(
        self,
        ks: Sequence[int] = (1, 5, 10),
        resamples: int = 1000,
        seed: int = 0,
        keep_bytes: int = 2**30,
        duplicates: Duplicates = "folded",
        name: str = "retrieval",
    ) -> None:
        super().__init__(name, resamples, seed)
        check_choice(f"{name}: duplicates", duplicates, get_args(Duplicates))
        if not ks or min(ks) < 1:
            raise ConfigError(f"Retrieval: ks is {list(ks)}; it must hold at least one cut-off, each 1 or more")
        self._duplicates = duplicates
        self._ks, self._keep_bytes = tuple(ks), keep_bytes

    def start(self, embed_text: EmbedText, findings: Sequence[str], intervals: bool = True) -> None:
        """Begin a pass, with no images and reports yet."""
        super().start(embed_text, findings, intervals)
        self._images: list[Embedding] = []
        self._texts: list[Embedding] = [self._example.to("cpu").select(NO_ROWS)]
        self._codes: list[Tensor] = [NO_ROWS]

    def update(self, batch: Batch, image: Embedding, text: Embedding | None, head: Head) -> None:
        """Keep the embeddings of the valid images and reports, and a code of each report. Equal codes are one text."""
        rows = self._samples.add(batch)
        if batch.text is None or text is None or len(rows) == 0:
            return
        self._images.append(image.select(rows).to("cpu"))
        self._texts.append(text.select(rows).to("cpu"))
        codes = batch.text.hash if self._duplicates == "folded" else batch.index
        self._codes.append(codes[rows].cpu())

    @torch.no_grad()
    def compute(self, head: Head) -> dict[str, Metric]:
        """Recalls and median ranks in both directions, over the whole set. Collective."""
        device = self._device
        self._gather()
        own, order = self._samples.own, self._samples.order
        total = int(distributed.sum_over_processes(torch.tensor(sum(map(len, self._codes)), device=device)))
        if total == 0:
            self._facts["skipped"] = "the data set has no reports"
            return {}
        if total != self.count:
            raise DataError(f"{self.name}: only {total} of {self.count} samples have a report; drop the others")
        here = torch.cat(self._codes)
        unique, first = np.unique(self._samples.values(here).numpy(), return_index=True)
        texts = gather_embedding(stack(self._texts).select(own), device)
        texts = texts.select(order[torch.from_numpy(first)])
        column = torch.searchsorted(torch.from_numpy(unique), here[own])

        images = stack(self._images).select(own) if self._images else None

        def own_blocks() -> Iterator[tuple[Tensor, Tensor]]:
            if images is not None:
                for rows, scores in scoring.blocks(head, images, texts, device, min(self.count, 4 * scoring.IMAGES)):
                    yield column[rows], scores

        keep = len(own) * len(unique) * 4 <= self._keep_bytes
        passes: Iterable[tuple[Tensor, Tensor]] = list(own_blocks()) if keep else own_blocks()
        image_ranks, text_ranks, best = scoring.ranks(passes, passes if keep else own_blocks(), len(unique), device)
        image_ranks, best = (gather_rows(x, device)[order] for x in (image_ranks, best))
        self._facts |= {
            "images": self.count,
            "texts": len(unique),
            "duplicates": f"{self._duplicates}: {_MEANT[self._duplicates]}",
            "ties": f"count against the model; scores within {scoring.TIE:g} of the largest are tied",
            "resampling": "ranks are held; a text goes with the patient of its first image",
        }
        self.doubt = ""
        if certain := [f"r@{k}" for k in self._ks if k >= len(unique)]:
            kinds = "different reports" if self._duplicates == "folded" else "reports"
            self.doubt = (
                f"{self.name}: {self.count} pairs hold {len(unique)} {kinds}, so image_to_text/"
                f"{', '.join(certain)} is 1 whatever the model; give more pairs, or Retrieval smaller ks"
            )
        at_first = np.full(self.count, np.nan)
        at_first[first] = text_ranks.numpy()
        columns: dict[str, Column] = {
            "image_rank": image_ranks.numpy(),
            "text_rank": at_first,  # at the first image of each text
            "top10": Chosen(self._samples.index.numpy()[first][best.numpy()]),
        }
        return self._figures("retrieval", columns, ks=list(self._ks), duplicates=self._duplicates)[0]
