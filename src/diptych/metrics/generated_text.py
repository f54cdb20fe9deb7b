"""Metrics of generated text against one reference each, as pure functions of words.

Each gives a value, or sums that can be added up, for every sample, so that a bootstrap over patients is one matrix product;
``weights`` are those of :mod:`diptych.metrics.measures`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diptych.errors import ConfigError
from diptych.metrics import measures as metrics

__all__ = ["FACTS", "bleu", "bleu_counts", "cider", "meteor", "need_nltk", "rouge_l", "scores", "words"]

Floats = NDArray[np.float64]
Texts = Sequence[Sequence[str]]
"""``n`` texts as words."""

ORDERS = 4
"""n-grams of up to so many words."""

FACTS = {
    "words": "lower case, runs of letters and digits; punctuation is left out",
    "bleu": "corpus BLEU-1 to -4, no smoothing, as sacrebleu's on these words",
    "meteor": "nltk's, exact and Porter-stem matches, no WordNet; alpha 0.9, beta 3, gamma 0.5",
    "rouge_l": "F of the longest common subsequence with beta 1.2, as COCO's caption evaluation",
    "cider": "arXiv 1411.5726, words not stemmed; document frequencies of the split's references, one document an image; "
    "cider/d: counts, clipped, Gaussian of length, x 10, as COCO's caption evaluation",
}
"""What the figures are, for the protocol."""

_WORD = re.compile(r"[^\W_]+")


def words(text: str) -> list[str]:
    """Lower-case runs of letters and digits."""
    return _WORD.findall(text.lower())


def _grams(text: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(text[i:] for i in range(n)), strict=False))


def bleu_counts(candidates: Texts, references: Texts) -> Floats:
    """What BLEU (Papineni et al., ACL 2002) adds up: ``[n,10]``.

    Clipped matches of 1- to 4-grams, their number in the candidate, and the words of candidate and reference.
    """
    rows = []
    for candidate, reference in zip(candidates, references, strict=True):
        grams = [(_grams(candidate, n), _grams(reference, n)) for n in range(1, ORDERS + 1)]
        matches = [(found & wanted).total() for found, wanted in grams]
        rows.append([*matches, *(found.total() for found, _ in grams), len(candidate), len(reference)])
    return np.array(rows, np.float64).reshape(-1, 2 * ORDERS + 2)


def bleu(sums: Floats, order: int) -> Floats:
    """Corpus BLEU of n-grams up to ``order`` from sums ``[R,10]`` of :func:`bleu_counts`: ``[R]``, 0 to 1, no smoothing."""
    matches, totals = sums[:, :order], sums[:, ORDERS : ORDERS + order]
    length, wanted = sums[:, -2], sums[:, -1]
    logs = np.log(matches / np.maximum(totals, 1), out=np.full(matches.shape, -np.inf), where=matches > 0)
    brevity = np.minimum(0.0, 1 - wanted / np.maximum(length, 1))
    return np.asarray(np.exp(logs.mean(axis=1) + brevity))


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest common subsequence, a row of the table as the bits of one number (Hyyrö, 2004)."""
    places: dict[str, int] = {}
    for i, word in enumerate(one):
        places[word] = places.get(word, 0) | 1 << i
    full = row = (1 << len(one)) - 1
    for word in other:
        both = row & places.get(word, 0)
        row = ((row + both) | (row - both)) & full
    return len(one) - row.bit_count()


def rouge_l(candidates: Texts, references: Texts, beta: float = 1.2) -> Floats:
    """ROUGE-L (Lin, 2004): ``(1 + beta^2) P R / (R + beta^2 P)`` of the longest common subsequence; ``[n]``."""
    values = []
    for candidate, reference in zip(candidates, references, strict=True):
        common = _common(candidate, reference)
        precision, recall = common / max(1, len(candidate)), common / max(1, len(reference))
        values.append((1 + beta**2) * precision * recall / (recall + beta**2 * precision) if common else 0.0)
    return np.array(values, np.float64)


class _Stemmer:
    """nltk's Porter stemmer with a memory."""

    def __init__(self) -> None:
        from nltk.stem.porter import PorterStemmer

        self.stem = cache(PorterStemmer().stem)


class _NoWordNet:
    """Stands in for WordNet, which would have to be downloaded: no word has a synonym."""

    @staticmethod
    def synsets(word: str) -> list[Any]:
        return []


def need_nltk() -> None:
    """Say early that METEOR cannot be computed.

    Raises:
        ConfigError: nltk is not installed.
    """
    try:
        import_module("nltk.translate.meteor_score")
    except ImportError as error:
        raise ConfigError("Generate needs nltk for METEOR: pip install 'diptych[report]', or nltk itself") from error


def meteor(candidates: Texts, references: Texts) -> Floats:
    """METEOR (Banerjee and Lavie, 2005) of nltk with exact and Porter-stem matches: ``[n]``."""
    from nltk.translate.meteor_score import single_meteor_score

    stemmer, none = _Stemmer(), _NoWordNet()
    pairs = zip(candidates, references, strict=True)
    return np.array(
        [single_meteor_score(list(right), list(said), stemmer=stemmer, wordnet=none) for said, right in pairs],
        np.float64,
    )


def cider(candidates: Texts, references: Texts, *, d: bool = False) -> Floats:
    """CIDEr (arXiv 1411.5726): mean over 1- to 4-grams of the cosine of TF-IDF vectors; ``[n]``, 0 to 1.

    Document frequencies are those of ``references``, all of them.

    Args:
        candidates: ``n`` texts.
        references: one for each.
        d: CIDEr-D as COCO's caption evaluation has it: term counts, the candidate's weights clipped to the reference's, times a
            Gaussian (sigma 6) of the difference in length, times 10; 0 to 10.
    """
    values = np.zeros(len(candidates))
    for n in range(1, ORDERS + 1):
        wanted = [_grams(text, n) for text in references]
        documents = Counter(gram for grams in wanted for gram in grams)
        everything = math.log(max(1, len(references)))

        def weighted(
            grams: Counter[tuple[str, ...]], documents: Counter[tuple[str, ...]] = documents, top: float = everything
        ) -> tuple[dict[tuple[str, ...], float], float]:
            vector = {gram: count * (top - math.log(max(1, documents[gram]))) for gram, count in grams.items()}
            return vector, math.sqrt(sum(value**2 for value in vector.values()))

        for i, (candidate, reference) in enumerate(zip(candidates, references, strict=True)):
            (ours, length), (theirs, norm) = weighted(_grams(candidate, n)), weighted(wanted[i])
            if length == 0 or norm == 0:
                continue
            dot = sum((min(v, theirs[g]) if d else v) * theirs[g] for g, v in ours.items() if g in theirs)
            penalty = 10 * math.exp(-((len(candidate) - len(reference)) ** 2) / (2 * 6.0**2)) if d else 1.0
            values[i] += penalty * dot / (length * norm) / ORDERS
    return values


def scores(
    candidates: Sequence[str], references: Sequence[str], weights: NDArray[Any] | None = None
) -> dict[str, Floats]:
    """All of these metrics of ``n`` generated texts, each ``[R]``, by name; :data:`FACTS` says what they are."""
    said, right = [words(text) for text in candidates], [words(text) for text in references]
    sums = metrics.sums(bleu_counts(said, right), weights)
    found = {f"bleu/{order}": bleu(sums, order) for order in range(1, ORDERS + 1)}
    found["meteor/exact+stem"] = metrics.mean(meteor(said, right), weights)
    found["rouge_l"] = metrics.mean(rouge_l(said, right), weights)
    found["cider"] = metrics.mean(cider(said, right), weights)
    found["cider/d"] = metrics.mean(cider(said, right, d=True), weights)
    return found
