"""Metrics of generated text against one reference each, as pure functions of words.

Each metric gives a value for every sample, or sums that can be added up. So a bootstrap over patients is one matrix product.
``weights`` ``[R,n]`` says how often each sample counts, as in :mod:`diptych.metrics.measures`.
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

__all__ = ["BLANKS", "FACTS", "bleu", "bleu_counts", "cider", "meteor", "need_nltk", "rouge_l", "scores", "words"]

Floats = NDArray[np.float64]
Texts = Sequence[Sequence[str]]
"""``n`` texts, each as its words."""

ORDERS = 4
"""The longest n-grams have so many words."""

FACTS = {
    "words": "lower case, runs of letters and digits; punctuation is left out",
    "bleu": "corpus BLEU-1 to -4, no smoothing, as sacrebleu's on these words",
    "meteor": "nltk's, exact and Porter-stem matches, no WordNet; alpha 0.9, beta 3, gamma 0.5",
    "rouge_l": "F of the longest common subsequence with beta 1.2, as COCO's caption evaluation",
    "cider": "arXiv 1411.5726, words not stemmed; document frequencies of the split's references, one document an image; "
    "cider/d: counts, clipped, Gaussian of length, x 10, as COCO's caption evaluation, whose figure papers call CIDEr",
}
"""How each figure is defined, for the protocol."""

BLANKS = "between blanks, after the cleaning of the rules; a full stop is a word"
"""What words are in texts that published rules have cleaned."""

_WORD = re.compile(r"[^\W_]+")


def words(text: str) -> list[str]:
    """The words of a text: runs of letters and digits, in lower case.

    >>> words("No effusion; T4-T5 intact.")
    ['no', 'effusion', 't4', 't5', 'intact']
    """
    return _WORD.findall(text.lower())


def _grams(text: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(text[i:] for i in range(n)), strict=False))


def bleu_counts(candidates: Texts, references: Texts) -> Floats:
    """Counts ``[n,10]`` that BLEU (Papineni et al., ACL 2002) adds up over the set.

    The columns are: clipped matches of 1- to 4-grams, 1- to 4-grams in the candidate, words in the candidate, words in the
    reference.

    >>> bleu_counts([["clear", "lungs"]], [["clear", "lungs", "now"]]).astype(int).tolist()
    [[2, 1, 0, 0, 2, 1, 0, 0, 2, 3]]
    """
    rows = []
    for candidate, reference in zip(candidates, references, strict=True):
        grams = [(_grams(candidate, n), _grams(reference, n)) for n in range(1, ORDERS + 1)]
        matches = [(own & expected).total() for own, expected in grams]
        rows.append([*matches, *(own.total() for own, _ in grams), len(candidate), len(reference)])
    return np.array(rows, np.float64).reshape(-1, 2 * ORDERS + 2)


def bleu(sums: Floats, order: int) -> Floats:
    """Corpus BLEU ``[R]`` of n-grams up to ``order``, from 0 to 1 and without smoothing.

    >>> bleu(bleu_counts([["clear", "lungs"]], [["clear", "lungs"]]), 2).tolist()
    [1.0]

    Args:
        sums: ``[R,10]``, those of :func:`bleu_counts` over a set.
        order: the longest n-grams that count.
    """
    matches, totals = sums[:, :order], sums[:, ORDERS : ORDERS + order]
    length, expected = sums[:, -2], sums[:, -1]
    logs = np.log(matches / np.maximum(totals, 1), out=np.full(matches.shape, -np.inf), where=matches > 0)
    brevity = np.minimum(0.0, 1 - expected / np.maximum(length, 1))
    return np.asarray(np.exp(logs.mean(axis=1) + brevity))


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest common subsequence. Each row of its table is held as the bits of one number (Hyyrö, 2004)."""
    places: dict[str, int] = {}
    for i, word in enumerate(one):
        places[word] = places.get(word, 0) | 1 << i
    full = row = (1 << len(one)) - 1
    for word in other:
        both = row & places.get(word, 0)
        row = ((row + both) | (row - both)) & full
    return len(one) - row.bit_count()


def rouge_l(candidates: Texts, references: Texts, beta: float = 1.2) -> Floats:
    """ROUGE-L (Lin, 2004) ``[n]``: ``(1 + beta^2) P R / (R + beta^2 P)`` of the longest common subsequence.

    >>> rouge_l([["clear", "lungs"]], [["the", "lungs", "are", "clear"]], beta=1).round(3).tolist()
    [0.333]
    """
    values = []
    for candidate, reference in zip(candidates, references, strict=True):
        common = _common(candidate, reference)
        precision, recall = common / max(1, len(candidate)), common / max(1, len(reference))
        values.append((1 + beta**2) * precision * recall / (recall + beta**2 * precision) if common else 0.0)
    return np.array(values, np.float64)


class _Stemmer:
    """nltk's Porter stemmer, which remembers its stems."""

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
    """METEOR (Banerjee and Lavie, 2005) ``[n]``, as nltk has it with exact and Porter-stem matches."""
    from nltk.translate.meteor_score import single_meteor_score

    stemmer, none = _Stemmer(), _NoWordNet()
    pairs = zip(candidates, references, strict=True)
    return np.array(
        [single_meteor_score(list(right), list(ours), stemmer=stemmer, wordnet=none) for ours, right in pairs],
        np.float64,
    )


def cider(candidates: Texts, references: Texts, *, d: bool = False) -> Floats:
    """CIDEr (arXiv 1411.5726) ``[n]``: the cosine of TF-IDF vectors, averaged over 1- to 4-grams. It is from 0 to 1.

    Document frequencies are those of all ``references``.

    >>> texts = [["clear", "lungs"], ["large", "effusion"]]
    >>> cider([texts[0], texts[0]], texts).tolist()  # no 3- and 4-grams in these
    [0.5, 0.0]

    Args:
        candidates: ``n`` texts.
        references: one for each.
        d: CIDEr-D as COCO's caption evaluation has it. The candidate's weights are clipped to the reference's. A Gaussian
            (sigma 6) of the difference in length and a factor of 10 follow. It is from 0 to 10.
    """
    values = np.zeros(len(candidates))
    for n in range(1, ORDERS + 1):
        expected = [_grams(text, n) for text in references]
        documents = Counter(gram for grams in expected for gram in grams)
        everything = math.log(max(1, len(references)))

        def tf_idf(
            grams: Counter[tuple[str, ...]], documents: Counter[tuple[str, ...]] = documents, top: float = everything
        ) -> tuple[dict[tuple[str, ...], float], float]:
            vector = {gram: count * (top - math.log(max(1, documents[gram]))) for gram, count in grams.items()}
            return vector, math.sqrt(sum(value**2 for value in vector.values()))

        for i, (candidate, reference) in enumerate(zip(candidates, references, strict=True)):
            (ours, length), (theirs, norm) = tf_idf(_grams(candidate, n)), tf_idf(expected[i])
            if length == 0 or norm == 0:
                continue
            dot = sum((min(v, theirs[g]) if d else v) * theirs[g] for g, v in ours.items() if g in theirs)
            penalty = 10 * math.exp(-((len(candidate) - len(reference)) ** 2) / (2 * 6.0**2)) if d else 1.0
            values[i] += penalty * dot / (length * norm) / ORDERS
    return values


def scores(
    candidates: Sequence[str], references: Sequence[str], weights: NDArray[Any] | None = None, *, blanks: bool = False
) -> dict[str, Floats]:
    """All metrics of this module, each ``[R]``, by name. :data:`FACTS` defines them.

    Args:
        candidates: ``n`` texts.
        references: one for each.
        weights: ``[R,n]``, how often each counts.
        blanks: words are what stands between blanks, as in texts that published rules have cleaned.
    """
    split = str.split if blanks else words
    ours, right = [split(text) for text in candidates], [split(text) for text in references]
    sums = metrics.sums(bleu_counts(ours, right), weights)
    by_name = {f"bleu/{order}": bleu(sums, order) for order in range(1, ORDERS + 1)}
    by_name["meteor/exact+stem"] = metrics.mean(meteor(ours, right), weights)
    by_name["rouge_l"] = metrics.mean(rouge_l(ours, right), weights)
    by_name["cider"] = metrics.mean(cider(ours, right), weights)
    by_name["cider/d"] = metrics.mean(cider(ours, right, d=True), weights)
    return by_name
