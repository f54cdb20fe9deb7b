"""Reports to word pieces, with the whole word and the sentence of every piece. Runs in the loader's workers."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import repeat
from typing import NamedTuple

import torch
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from diptych.checks import check_number
from diptych.errors import ConfigError, shown
from diptych.reports.text import sentence_spans, text_hash
from diptych.types import TextBatch

__all__ = ["Tokenizer", "learn_vocabulary"]

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_LOOSE = re.compile(r"(?<=\w) ?([-/]) ?(?=\w)|(?<=\d)(\.) (?=\d)")  # "left - sided", "1. 5"
_NUMBER = re.compile(r"\d{3}")
_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"
_LARGEST_STATE = 100_000_000  # letters, where a vocabulary of 250,000 pieces has some 17 million
_SMALLEST = len(_SPECIAL) + 2 * len(_ALPHABET)


class _Report(NamedTuple):
    ids: list[int]
    word_of_piece: list[int]
    spans: list[tuple[int, int]]
    sentences: list[int]
    hashes: list[int]
    cut: bool


def learn_vocabulary(
    texts: Iterable[str], size: int, *, patients: Iterable[str | None] | None = None, least: int = 5
) -> Backend:
    """A lower-casing word-piece backend whose vocabulary is the reports' own, the same in every process.

    The pieces are five special tokens, the letters a-z and the digits. Then come the reports' words and other characters,
    by falling count and ties by alphabet, until ``size`` is reached. A word outside the vocabulary is spelled in
    characters. (The trainers of the tokenizers library give another vocabulary in each process.)

    Checkpoints hold the vocabulary, so words that could tell of a patient are left out of it. Those are words in the
    reports of fewer than ``least`` patients, and words with three digits in a row, as record numbers and dates have.

    >>> backend = learn_vocabulary(["Small effusion.", "Large effusion."], 100, least=2)
    >>> backend.encode("A large effusion.").tokens
    ['[CLS]', 'a', 'l', '##a', '##r', '##g', '##e', 'effusion', '.', '[SEP]']

    Args:
        texts: training reports.
        size: most pieces, at least 77.
        patients: the patient of each report, or None where that is not known. Without a patient, each different report
            counts as one.
        least: how many patients must share a word.
    """
    normalizer = normalizers.BertNormalizer(lowercase=True)
    splitter = pre_tokenizers.BertPreTokenizer()
    counts: Counter[str] = Counter()
    users: dict[str, set[tuple[str, bool]]] = {}
    for text, patient in zip(texts, repeat(None) if patients is None else patients, strict=patients is not None):
        plain = normalizer.normalize_str(text)
        user = (patient, True) if patient else (" ".join(plain.split()), False)
        words = [word for word, _ in splitter.pre_tokenize_str(plain)]
        counts.update(words)
        for word in words:
            if len(sharers := users.setdefault(word, set())) < least:
                sharers.add(user)
    shared = [word for word, sharers in users.items() if len(sharers) >= least and not _NUMBER.search(word)]
    ranked = sorted(set(shared) - set(_ALPHABET), key=lambda word: (-counts[word], word))
    pieces = [*_SPECIAL, *_ALPHABET, *("##" + c for c in _ALPHABET), *ranked]
    vocabulary = {piece: number for number, piece in enumerate(pieces[:size])}
    backend = Backend(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    backend.normalizer = normalizer
    backend.pre_tokenizer = splitter
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    backend.add_special_tokens(list(_SPECIAL))
    return backend


class Tokenizer:
    """Makes a :class:`diptych.types.TextBatch` of reports.

    A **whole word** is a run that the backend's pre-tokenizer keeps together, without the pieces that hold no letter and
    no digit. (BERT's splits at white space and punctuation.) A report of more than ``max_tokens`` pieces loses its last
    sentences. If the first one is already too long, it is cut before a whole word.

    A tokenizer holds no tensor, and can be pickled to worker processes. Its whole state is one JSON string.

    Args:
        backend: a tokenizer of the tokenizers library, or None if it is still to be learned or loaded.
        max_tokens: most word pieces of a report, with special tokens.
        vocabulary: most pieces to learn. With 0 nothing is learned.
        least_patients: a word is learned if the reports of so many patients share it (:func:`learn_vocabulary`).
        pad_id: number of the padding piece.
    """

    def __init__(
        self, backend: Backend | None, max_tokens: int, *, vocabulary: int = 0, least_patients: int = 5, pad_id: int = 0
    ) -> None:
        check_number("max_tokens", max_tokens, least=8, whole=True)
        if vocabulary:
            remedy = f"a whole number of {_SMALLEST} or more, for the special tokens and characters"
            check_number("vocabulary", vocabulary, least=_SMALLEST, whole=True, remedy=remedy)
        remedy = "a whole number of 1 (every word is learned) or more"
        check_number("least_patients", least_patients, least=1, whole=True, remedy=remedy)
        self.max_tokens = max_tokens
        self.vocabulary, self.least_patients = vocabulary, least_patients
        self.rewrite: Callable[[str], str] | None = None
        """What is done to each report before all else. A published protocol sets it. It must be picklable."""
        self._backend: Backend | None = None
        if backend is not None:
            backend.no_truncation()  # ours is at a sentence boundary
            backend.enable_padding(pad_id=pad_id)  # to the longest, so a single text is not padded
            self._backend = backend

    @property
    def learnable(self) -> bool:
        """Whether the vocabulary comes from the training reports."""
        return self.vocabulary > 0

    @property
    def learned(self) -> bool:
        """Whether there is a vocabulary."""
        return self._backend is not None

    @property
    def size(self) -> int:
        """How many different pieces there are."""
        return int(self._ready().get_vocab_size())

    @property
    def pad_id(self) -> int:
        """Number of the padding piece."""
        return int((self._ready().padding or {"pad_id": 0})["pad_id"])

    @property
    def lower_case(self) -> bool | None:
        """Whether case is folded. None where the backend does not tell."""
        normalizer = self._ready().normalizer
        return bool(normalizer.lowercase) if isinstance(normalizer, normalizers.BertNormalizer) else None

    def learn(self, texts: Iterable[str], patients: Iterable[str | None] | None = None, *, force: bool = False) -> None:
        """Learn the vocabulary from the training reports. The same reports give the same vocabulary in any process.

        Nothing happens where it is already learned, unless ``force``: a run that resumes must keep its vocabulary. The
        arguments are those of :func:`learn_vocabulary`.

        Raises:
            ConfigError: this tokenizer belongs to a pretrained tower.
        """
        if not self.learnable:
            raise ConfigError("the vocabulary of a pretrained text tower cannot be learned; use ScratchText for that")
        if self._backend is None or force:
            backend = learn_vocabulary(texts, self.vocabulary, patients=patients, least=self.least_patients)
            backend.enable_padding(pad_id=0)
            self._backend = backend

    def state(self) -> str:
        """Everything it has learned or loaded, as JSON. It is empty before that."""
        return "" if self._backend is None else str(self._backend.to_str())

    def load(self, state: str, most: int | None = None) -> None:
        """Take over what :meth:`state` gave. An empty string changes nothing.

        Args:
            state: a text from a checkpoint.
            most: how many pieces the tower knows.

        Raises:
            ConfigError: it is damaged, or holds other pieces than the tower.
        """
        if not state:
            return
        where = "the stored tokenizer is refused"
        if not isinstance(state, str) or len(state) > _LARGEST_STATE:
            raise ConfigError(f"{where}: it is no text of at most {_LARGEST_STATE:,} letters")
        try:
            backend = Backend.from_str(state)
            padding = backend.padding or {}
            backend.no_truncation()
            backend.enable_padding(pad_id=int(padding.get("pad_id", 0)))  # to the longest, whatever the state says
            numbers = [*backend.get_vocab().values(), *backend.encode("A 1.").ids]
        except Exception as error:  # the library's own errors are bare Exceptions
            raise ConfigError(f"{where}: {shown(str(error))}") from error
        except BaseException as error:  # a panic of the library's Rust code, which is no Exception
            if type(error).__name__ != "PanicException":
                raise
            raise ConfigError(f"{where}: the tokenizers library fails on it") from error
        if most is not None and max([int(padding.get("pad_id", 0)), *numbers]) >= most:
            raise ConfigError(f"{where}: it has pieces numbered up to {max(numbers)}, and the text tower has {most}")
        self._backend = backend

    def __call__(self, texts: Sequence[str], *, to_max: bool = False) -> TextBatch:
        """Tokenise reports.

        Args:
            texts: ``B`` reports, empty ones allowed.
            to_max: pad pieces, words and sentences to ``max_tokens``, since all processes of a job must have one shape.
                Otherwise they are padded to the longest, rounded up to a multiple of 8.
        """
        texts = list(texts) if self.rewrite is None else [self.rewrite(text) for text in texts]
        reports = [self._read(text) for text in texts]
        rows = len(reports)
        longest = max((len(r.ids) for r in reports), default=0)
        most_words = max((len(r.spans) for r in reports), default=0)
        pieces = self.max_tokens if to_max else min(self.max_tokens, _round_up(longest))
        words = self.max_tokens if to_max else min(self.max_tokens, _round_up(most_words))
        most_sentences = words if to_max else max((len(r.hashes) for r in reports), default=0)
        input_ids = torch.full((rows, pieces), self.pad_id, dtype=torch.int64)
        attention_mask = torch.zeros(rows, pieces, dtype=torch.bool)
        word_of_piece = torch.full((rows, pieces), -1, dtype=torch.int64)
        mask = torch.zeros(rows, words, dtype=torch.bool)
        sentences = torch.full((rows, words), -1, dtype=torch.int64)
        # Each sentence has a word, so there are no more sentences than words.
        sentence_hash = torch.full((rows, min(words, _round_up(most_sentences))), -1, dtype=torch.int64)
        for row, report in enumerate(reports):
            input_ids[row, : len(report.ids)] = torch.tensor(report.ids)
            attention_mask[row, : len(report.ids)] = True
            word_of_piece[row, : len(report.ids)] = torch.tensor(report.word_of_piece)
            mask[row, : len(report.spans)] = True
            sentences[row, : len(report.spans)] = torch.tensor(report.sentences, dtype=torch.int64)
            hashes = torch.tensor(report.hashes[: sentence_hash.shape[1]], dtype=torch.int64)
            sentence_hash[row, : len(hashes)] = hashes
        return TextBatch(
            input_ids=input_ids,
            attention_mask=attention_mask,
            word_of_piece=word_of_piece,
            mask=mask,
            sentences=sentences,
            hash=torch.tensor([text_hash(text) for text in texts], dtype=torch.int64),
            cut=torch.tensor([r.cut for r in reports], dtype=torch.bool),
            raw=list(texts),
            sentence_hash=sentence_hash,
        )

    def ids_that_are_no_words(self, rows: int) -> list[int]:
        """Numbers below ``rows`` that a generator must not write: special tokens except [SEP], and what is not learned."""
        special = [self._ready().token_to_id(token) for token in _SPECIAL if token != "[SEP]"]
        return [*special, *range(self.size, rows)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of word pieces up to the first [SEP]. Case and spacing are the vocabulary's."""
        backend = self._ready()
        tokens = [backend.id_to_token(number) or "[UNK]" for number in ids]
        end = tokens.index("[SEP]") if "[SEP]" in tokens else len(tokens)
        text: str = decoders.WordPiece().decode([token for token in tokens[:end] if token not in _SPECIAL])
        return _LOOSE.sub(r"\1\2", text)

    def word_spans(self, text: str) -> list[tuple[int, int]]:
        """Character spans of the whole words, in the order of the mask. A report too long is cut first."""
        return self._read(text).spans

    def words(self, text: str) -> list[str]:
        """The whole words as written, in the order of the mask."""
        return [text[start:end] for start, end in self.word_spans(text)]

    def _ready(self) -> Backend:
        if self._backend is None:
            raise ConfigError(
                "the text tower has no vocabulary yet: run fit first, or give a trained checkpoint with --ckpt_path"
            )
        return self._backend

    def _read(self, text: str) -> _Report:
        encoding = self._ready().encode(text)  # one by one, so that no threads start inside a worker
        ids, unit = encoding.ids, encoding.word_ids
        inner = [i for i, special in enumerate(encoding.special_tokens_mask) if not special]
        first, end = (inner[0], inner[-1] + 1) if inner else (len(ids), len(ids))
        spans = [_trim(text, *offsets) for offsets in encoding.offsets]
        sentence_bounds = sentence_spans(text)
        starts = [start for start, _ in sentence_bounds]
        sentence = [max(bisect_right(starts, start) - 1, 0) for start, _ in spans]

        last = end
        room = self.max_tokens - (len(ids) - (end - first))
        cut = end - first > room
        if cut:
            fits = first + room
            bounds = range(fits, first, -1)
            last = next((i for i in bounds if sentence[i] != sentence[i - 1]), first)
            if last == first:
                last = next((i for i in bounds if unit[i] is None or unit[i] != unit[i - 1]), fits)

        word_of_piece = [-1] * len(ids)
        words: list[tuple[int, int]] = []
        word_sentences: list[int] = []
        open_unit: int | None = None
        for i in range(first, last):
            start, stop = spans[i]
            if not any(c.isalnum() for c in text[start:stop]):
                open_unit = None
            elif unit[i] is not None and unit[i] == open_unit:
                words[-1] = (words[-1][0], stop)
                word_of_piece[i] = len(words) - 1
            else:
                open_unit = unit[i]
                words.append((start, stop))
                word_sentences.append(sentence[i])
                word_of_piece[i] = len(words) - 1
        used_bounds = sentence_bounds[: max(word_sentences, default=-1) + 1]
        return _Report(
            ids=ids[:last] + ids[end:],
            word_of_piece=word_of_piece[:last] + word_of_piece[end:],
            spans=words,
            sentences=word_sentences,
            hashes=[text_hash(text[start:stop].rstrip(" .?!")) for start, stop in used_bounds],
            cut=cut,
        )


def _trim(text: str, start: int, end: int) -> tuple[int, int]:
    """The span without white space at its ends. Byte-level backends count the space before a word."""
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, end


def _round_up(n: int) -> int:
    return max(8, -(-n // 8) * 8)
