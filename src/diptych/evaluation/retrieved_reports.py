"""Reports by retrieval: the training report that the head scores highest, measured as a written one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from diptych.checks import check_choice, check_number
from diptych.errors import ConfigError, DataError
from diptych.evaluation import scoring
from diptych.evaluation.base import EmbedText, Evaluator, Head
from diptych.evaluation.rows import gather_rows, stack
from diptych.metrics import generated_text as nlg
from diptych.metrics.bootstrap import Metric, as_metrics
from diptych.metrics.radeval import USUAL, check_names
from diptych.predictions.kinds import with_draws
from diptych.predictions.reports import compared
from diptych.reports.labeller import Labeller, Rules
from diptych.reports.r2gen import R2GEN, R2GenText
from diptych.reports.text import text_hash
from diptych.types import Batch, Embedding

__all__ = ["RetrievedReports"]


class RetrievedReports(Evaluator):
    """The nearest training report of each image, by the head's score, as if it were written for the image.

    This is the baseline of report generation: it needs no decoder, and each of its reports is one that a radiologist wrote.
    Figures and their names are those of the task ``Generate``. Equal reports count once, and of equal scores the report that
    comes first in training is taken. Nothing is computed within training, where all training reports would be embedded each
    time.

    Args:
        protocol: what is done to texts, as in ``Generate``: ``diptych``, ``r2gen/openi`` or ``r2gen/mimic_cxr``.
        radeval: metrics of the package radeval, of :data:`diptych.metrics.radeval.RADEVAL`.
        labeller: what reads findings in reports. The default is the rules of :mod:`diptych.reports.labeller`.
        uncertain: whether an uncertain finding counts as present in the clinical metrics. Otherwise it counts as absent.
        texts: training reports that are embedded and scored at a time.
        resamples: number of bootstrap resamples for the intervals. 0 gives none.
        seed: seed of the bootstrap.

    Raises:
        ConfigError: an argument is out of its range, or nltk is not installed.
    """

    def __init__(
        self,
        *,
        protocol: str = "diptych",
        radeval: Sequence[str] = USUAL,
        labeller: Labeller | None = None,
        uncertain: bool = False,
        texts: int = 1024,
        resamples: int = 1000,
        seed: int = 0,
    ) -> None:
        super().__init__("generate", resamples, seed)
        nlg.need_nltk()
        check_choice("RetrievedReports: protocol", protocol, ["diptych", *R2GEN])
        check_names("RetrievedReports: radeval", radeval)
        check_number("RetrievedReports: texts", texts, least=1, whole=True)
        self._protocol, self._radeval, self._texts = protocol, tuple(radeval), texts
        self._labeller, self._uncertain = labeller or Rules(), uncertain

    def start(self, embed_text: EmbedText, findings: Sequence[str], intervals: bool = True) -> None:
        """Begin a pass, with no images and reports yet."""
        super().start(embed_text, findings, intervals)
        self._embed_text, self._within_training = embed_text, not intervals
        self._images: list[Embedding] = []
        self._references: list[str] = []

    def update(self, batch: Batch, image: Embedding, text: Embedding | None, head: Head) -> None:
        """Keep the embeddings of the valid images, and their reports."""
        rows = self._samples.add(batch)
        if self._within_training or not len(rows):
            return
        if batch.text is None:
            raise DataError("RetrievedReports: the data set has no reports to compare with; leave this evaluator out")
        self._images.append(image.select(rows).to("cpu"))
        self._references += [batch.text.raw[row] for row in rows.tolist()]

    def _nearest(self, head: Head, images: Embedding | None, reports: Sequence[str]) -> Tensor:
        """The number of the best of the reports for each image of this process, ``[n]``."""
        n = 0 if images is None else len(images.pooled)
        best, which = torch.full((n,), -torch.inf), torch.zeros(n, dtype=torch.int64)
        for start in range(0, len(reports), self._texts):
            texts = (self.embed_reports or self._embed_text)(list(reports[start : start + self._texts]))
            if images is None:
                continue  # the text tower may wait for all processes
            for rows, scores in scoring.blocks(head, images, texts.to("cpu"), self._device):
                top, column = scores.nan_to_num(nan=-torch.inf).max(dim=1)
                better = top > best[rows]
                best[rows] = torch.where(better, top, best[rows])
                which[rows] = torch.where(better, column + start, which[rows])
        return which

    @torch.no_grad()
    def compute(self, head: Head) -> dict[str, Metric]:
        """The figures of the retrieved reports over the whole set. Collective.

        Raises:
            ConfigError: the data have no training reports.
        """
        self._gather()
        if self._within_training:
            self._facts["skipped"] = "not computed within training"
            return {}
        every = [] if self.training_reports is None else self.training_reports()
        training = [(patient, text) for patient, text in every if text.strip()]
        reports = list({text_hash(text): text for _, text in reversed(training)}.values())[::-1]
        if not reports:
            raise ConfigError(
                "RetrievedReports: there are no training reports to choose from; give data whose 'train' split has some"
            )
        own = self._samples.own
        images = stack(self._images).select(own) if self._images else None
        chosen = gather_rows(self._nearest(head, images, reports), self._device)[self._samples.order]
        references = self._samples.texts(self._references)
        kept, how, untold = compared(
            [reports[i] for i in chosen.tolist()],
            references,
            self._labeller,
            uncertain=self._uncertain,
            resamples=self._resamples_here,
            seed=self._seed,
            rules=None if self._protocol == "diptych" else R2GenText(self._protocol, training),
            radeval=self._radeval,
        )
        for line in untold:
            rank_zero_info(f"generate: {line}")
        self.predictions = kept
        figures, facts = with_draws(kept, self._group)
        self._facts |= {
            "reports": f"the nearest of {len(reports)} different training reports, by the head's score",
            **how,
            **facts,
        }
        return as_metrics(figures)
