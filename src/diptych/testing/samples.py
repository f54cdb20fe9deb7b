"""A made-up set of samples with embeddings, and two heads, on which an evaluator makes its passes without a model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from diptych.evaluation.base import Evaluator
from diptych.head import AlignmentHead
from diptych.metrics.bootstrap import Metric
from diptych.types import Batch, Embedding, TextBatch, TokenEmbedding

__all__ = ["FINDINGS", "Cosine", "Samples", "Words", "embed_image", "embed_text", "evaluate", "vectors"]

WIDTH = 8
FINDINGS = ("Edema", "Mass", "Nodule", "Hernia")
_RATES = (0.5, 0.3, 0.1, 0.0)
"""How often each of these is present. The last never is."""


class Cosine(AlignmentHead[Any]):
    """A head of pooled vectors, ten times their cosine."""

    def embed_image(self, image: Any) -> NoReturn:
        """Nothing is embedded by this head."""
        raise NotImplementedError

    def embed_text(self, text: Any) -> NoReturn:
        """Nothing is embedded by this head."""
        raise NotImplementedError

    def losses(self, here: Any, world: Any) -> NoReturn:
        """This head is not trained."""
        raise NotImplementedError

    def similarity(self, image: Any, text: Any) -> Tensor:
        """``[I,T]``."""
        return 10 * image.pooled @ text.pooled.T  # type: ignore[no-any-return]  # embeddings of any kind


class Words(Cosine):
    """A head of tokens: mean over real words of the best region."""

    def similarity(self, image: Any, text: Any) -> Tensor:
        """``[I,T]``."""
        best = torch.einsum("ire,twe->itwr", image.tokens, text.tokens).amax(dim=3)
        mask = text.mask.float()
        return (best * mask).sum(dim=2) / mask.sum(dim=1)  # type: ignore[no-any-return]  # embeddings of any kind


def vectors(text: str, n: int) -> Tensor:
    """Unit vectors ``[n,E]`` that depend on a text alone."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
    return normalize(torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(seed)), dim=-1)


def embed_text(texts: list[str]) -> TokenEmbedding:
    """Token embeddings padded to the longest of these texts, with garbage in the padding."""
    words = [vectors(text, len(text.split()) + 1) for text in texts]
    tokens = torch.full((len(texts), max(map(len, words)), WIDTH), 99.0)
    mask = torch.zeros(tokens.shape[:2], dtype=torch.bool)
    for i, vector in enumerate(words):
        tokens[i, : len(vector)], mask[i, : len(vector)] = vector, True
    return TokenEmbedding(torch.stack([vector[0] for vector in words]), tokens, mask)


def embed_image(pictures: Tensor) -> TokenEmbedding:
    """Token embeddings of uint8 pictures ``[B,1,H,V]``, each from its own values alone."""
    regions = torch.stack([vectors(str(picture.tolist()), 5) for picture in pictures.cpu()])
    return TokenEmbedding(regions[:, 0], regions, torch.ones(len(pictures), 5, dtype=torch.bool))


class Samples:
    """A set of ``n`` samples with duplicate reports, several images a patient, and gaps in the labels.

    Args:
        n: number of samples.
        reports: number of reports among which theirs are drawn.
        seed: of the draw.
        findings: names of the labels.
    """

    def __init__(self, n: int = 83, reports: int = 50, seed: int = 0, findings: Sequence[str] = FINDINGS) -> None:
        rng = np.random.default_rng(seed)
        rates = _RATES if tuple(findings) == FINDINGS else (0.4,) * len(findings)
        self.n, self.findings = n, tuple(findings)
        self.texts = [" ".join(["word"] * (r % 6 + 1)) + f" {r}" for r in rng.integers(0, reports, n)]
        self.group = torch.from_numpy(rng.integers(0, n // 2, n)) * 11
        noise = torch.randn(n, 5, WIDTH, generator=torch.Generator().manual_seed(seed))
        self.regions = normalize(embed_text(self.texts).pooled[:, None] + 0.6 * noise, dim=-1)
        labels = (rng.random((n, len(findings))) < rates).astype(np.float32)
        labels[rng.random(labels.shape) < 0.1] = -1
        labels[rng.random(labels.shape) < 0.1] = np.nan
        never = [i for i, rate in enumerate(rates) if rate == 0]
        labels[:, never] = np.where(labels[:, never] == 1, 0, labels[:, never])
        self.labels = torch.from_numpy(labels)

    def hashes(self, rows: Sequence[int]) -> Tensor:
        """``[B]``."""
        return torch.tensor([int(hashlib.sha256(self.texts[i].encode()).hexdigest()[:12], 16) for i in rows])

    def image(self, rows: Sequence[int]) -> TokenEmbedding:
        """The embedded images of some rows."""
        rows = list(rows)
        return TokenEmbedding(self.regions[rows, 0], self.regions[rows], torch.ones(len(rows), 5, dtype=torch.bool))

    def batches(
        self, rows: Sequence[int], size: int, fill: int = 0, texts: bool = True, labels: bool = True
    ) -> Iterator[tuple[Batch, Embedding, Embedding | None]]:
        """Batches of the rows with their embeddings. ``fill`` rows that do not count are put in front of the last one's."""
        parts = [list(rows[i : i + size]) for i in range(0, len(rows), size)]
        for part in parts:
            extra = [0] * fill if part is parts[-1] else []
            rows = extra + part
            empty = torch.zeros(len(rows), 1, dtype=torch.int64)
            reports = [self.texts[i] for i in rows]
            text = TextBatch(empty, empty > 0, empty, empty > 0, empty, self.hashes(rows), empty[:, 0] > 0, reports)
            index = torch.tensor(rows)
            image = torch.zeros(len(rows), 1, 2, 2, dtype=torch.uint8)
            batch = Batch(
                image=image,
                text=text if texts else None,
                index=index,
                valid=torch.tensor([False] * len(extra) + [True] * len(part)),
                labels=self.labels[rows] if labels else None,
                group=self.group[rows],
                boxes=None,
                ids=[str(i) for i in rows],
            )
            yield batch, self.image(rows), embed_text(reports) if texts else None


def evaluate(
    evaluator: Evaluator,
    data: Samples,
    head: AlignmentHead[Any],
    rows: Sequence[int] | None = None,
    size: int = 16,
    findings: Sequence[str] | None = None,
    intervals: bool = True,
    **options: Any,
) -> dict[str, Metric]:
    """The metrics of one pass over some rows of the data."""
    evaluator.start(embed_text, data.findings if findings is None else findings, intervals)
    for batch, image, text in data.batches(range(data.n) if rows is None else rows, size, **options):
        evaluator.update(batch, image, text, head)
    return evaluator.compute(head)
