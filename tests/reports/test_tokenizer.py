"""Reports to word pieces: words, sentences, hashes, and a vocabulary that is learned."""

from __future__ import annotations

import copy
import multiprocessing
import pickle

import pytest
import torch
from texts import REPORT, REPORTS, SPECIAL, learned
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, processors

from diptych.errors import ConfigError
from diptych.reports.text import text_hash
from diptych.reports.tokenizer import Tokenizer, learn_vocabulary
from diptych.towers.text import ScratchText, TransformersText


def test_pneumothorax_is_one_word(minilm):
    tokenizer = minilm.tokenizer
    batch = tokenizer(["No pneumothorax."])
    pieces = batch.word_of_piece[0].tolist()
    assert tokenizer.words("No pneumothorax.") == ["No", "pneumothorax"]
    assert pieces[:2] == [-1, 0]
    assert pieces.count(1) > 1  # the tokenizer knows no such word
    assert set(pieces) == {-1, 0, 1}
    assert batch.mask[0].tolist() == [True, True] + [False] * 6


def test_mask_leaves_out_special_tokens_punctuation_and_padding(minilm):
    batch = minilm.tokenizer(REPORTS)
    for row, text in enumerate(REPORTS):
        words = minilm.tokenizer.words(text)
        assert int(batch.mask[row].sum()) == len(words)
        assert all(any(c.isalnum() for c in word) for word in words)
        wordless = batch.input_ids[row][batch.attention_mask[row] & (batch.word_of_piece[row] < 0)]
        pieces = [minilm.tokenizer._backend.id_to_token(int(i)) for i in wordless]
        assert all(piece in SPECIAL or not any(c.isalnum() for c in piece) for piece in pieces)
        assert sorted(set(batch.word_of_piece[row].tolist()) - {-1}) == list(range(len(words)))
        assert (batch.word_of_piece[row][~batch.attention_mask[row]] == -1).all()
        assert (batch.sentences[row] >= 0).equal(batch.mask[row])


def test_words_and_their_sentences(minilm):
    words = minilm.tokenizer.words(REPORT)
    assert words[:8] == ["FINDINGS", "No", "pneumothorax", "The", "heart", "size", "is", "1"]
    spans = minilm.tokenizer.word_spans(REPORT)
    assert [REPORT[a:b] for a, b in spans] == words
    assert REPORT[slice(*spans[-1])] == "change"
    batch = minilm.tokenizer([REPORT])
    of = dict(zip(words, batch.sentences[0].tolist(), strict=False))
    assert [of[w] for w in ("pneumothorax", "cm", "Smith", "IMPRESSION", "cardiomegaly", "change")] == [
        0,
        1,
        1,
        2,
        2,
        3,
    ]


def test_shapes_hash_and_empty_texts(minilm):
    tokenizer = minilm.tokenizer
    batch = tokenizer(REPORTS)
    assert batch.input_ids.shape[1] % 8 == 0
    assert batch.mask.shape[1] % 8 == 0
    assert batch.hash.tolist() == [text_hash(text) for text in REPORTS]
    assert batch.raw == REPORTS
    assert not batch.mask[4].any()
    assert int(batch.attention_mask[4].sum()) == 2
    full = tokenizer(REPORTS, to_max=True)
    assert full.input_ids.shape == full.mask.shape == full.sentences.shape == (5, tokenizer.max_tokens)
    assert tokenizer([]).input_ids.shape == (0, 8)


def test_long_reports_are_cut_at_a_sentence(minilm_folder):
    tokenizer = TransformersText(minilm_folder, max_tokens=24).tokenizer
    long = "The heart is normal. No effusion is seen. " * 9
    batch = tokenizer([long, "The heart is normal."])
    assert batch.cut.tolist() == [True, False]
    assert batch.input_ids.shape[1] == 24
    whole_sentences = "The heart is normal. No effusion is seen. The heart is normal."
    assert tokenizer.words(long) == whole_sentences.replace(".", "").split()
    pieces = batch.input_ids[0][batch.attention_mask[0]].tolist()
    whole = tokenizer._backend.encode(whole_sentences).ids
    assert pieces == whole  # exactly what the shorter report would give


def test_a_first_sentence_too_long_is_cut_at_a_word(minilm_folder):
    tokenizer = TransformersText(minilm_folder, max_tokens=8).tokenizer
    batch = tokenizer(["pneumothorax pneumothorax pneumothorax", "cardiomegaly " * 3, "a b c d e f"])
    assert batch.cut.tolist() == [True, True, False]
    assert int(batch.attention_mask.sum(dim=1).max()) <= 8
    assert tokenizer.words("a pneumothorax b") == ["a"]  # the long word does not fit whole
    assert int(batch.mask[0].sum()) == 1  # a word that fills the room alone keeps its first pieces


def byte_level(texts):
    """A byte-level BPE backend as RoBERTa's, spaces belonging to the words after them."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: i for i, piece in enumerate(["<s>", "<pad>", "</s>", *letters, "ef", "us", "ion", "efus"])}
    backend = Backend(models.BPE(vocabulary, [("e", "f"), ("u", "s"), ("ef", "us")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    backend.add_special_tokens(["<s>", "<pad>", "</s>"])
    return backend


def test_byte_level_words_and_sentences():
    tokenizer = Tokenizer(byte_level(REPORTS), 64, pad_id=1)
    text = "No effusion. A naïve  nodule, 5 cm."
    assert tokenizer.words(text) == ["No", "effusion", "A", "naïve", "nodule", "5", "cm"]
    batch = tokenizer([text, ""])
    assert batch.sentences[0][:7].tolist() == [0, 0, 1, 1, 1, 1, 1]
    assert batch.input_ids[1][2:].eq(1).all()


def test_learns_the_same_in_another_process_and_works_there(monkeypatch):
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    tokenizer = learned(REPORTS)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(learn_vocabulary, (REPORTS, 200)).to_str() == learn_vocabulary(REPORTS, 200).to_str()
        assert pool.apply(tokenizer.words, (REPORT,)) == tokenizer.words(REPORT)
    assert learned(REPORTS).state() == learned(REPORTS[::-1]).state()


def test_short_words_are_learned_though_the_alphabet_spells_them():
    """``no`` lies in ``mnop``, and ``12`` in ``0123``: a search in the string of the alphabet had left them out."""
    backend = learn_vocabulary(["There is no effusion, hi 12.", "I see no nodule, hi 12."], 200, least=2)
    assert backend.encode("No 12, hi").tokens == ["[CLS]", "no", "12", ",", "hi", "[SEP]"]
    vocabulary = backend.get_vocab()
    assert sorted(vocabulary.values()) == list(range(len(vocabulary)))  # a letter is no word twice


def test_learned_vocabulary_is_bounded_and_prefers_frequent_words():
    texts = ["effusion effusion nodule", "effusion zebra"]
    assert learned(REPORTS, 90).size == 90
    small = learned(texts, 79)
    assert {"effusion", "nodule"} <= set(small._backend.get_vocab())
    assert "zebra" not in small._backend.get_vocab()
    batch = small(["zebra effusion"])
    assert batch.word_of_piece[0].tolist()[:7] == [-1, 0, 0, 0, 0, 0, 1]  # spelled, yet one word
    assert small.words("Zebra EFFUSION") == ["Zebra", "EFFUSION"]
    assert small.lower_case is True


def test_learning_twice_keeps_the_first_vocabulary_unless_forced():
    tokenizer = learned(REPORTS)
    before = tokenizer.state()
    tokenizer.learn(["other words"])
    assert tokenizer.state() == before
    tokenizer.learn(["other words"], force=True)
    assert tokenizer.state() != before


NAMED = "Reported to Zaphod of MRN 7654321. The effusion is small."
COMMON = [f"The effusion of case {i} is small." for i in range(6)]


@pytest.mark.parametrize(
    ("texts", "patients", "learned"),
    [
        ([*COMMON, NAMED], None, {"effusion", "small"}),
        ([*COMMON, NAMED, NAMED + " Again."], ["a", "b", "c", "d", "e", "f", "z", "z"], {"effusion", "small"}),
        ([*COMMON, *[f"{NAMED} {i}" for i in range(9)]], [*"abcdef", *["z"] * 9], {"effusion", "small"}),
        ([*COMMON, *[NAMED] * 9], None, {"effusion", "small"}),  # nine images of one report
        ([NAMED] * 5, [*"abcde"], {"effusion", "small", "zaphod"}),  # of five patients: a word as others
    ],
    ids=["one report", "two of one patient", "nine of one patient", "one report of nine images", "five patients"],
)
def test_the_vocabulary_holds_no_word_of_few_patients_and_no_long_number(texts, patients, learned):
    tokenizer = Tokenizer(None, 64, vocabulary=200)
    tokenizer.learn(texts, patients)
    words = set(tokenizer._backend.get_vocab())
    assert {"effusion", "small", "zaphod"} & words == learned
    assert "zaphod" in learned or "zaphod" not in tokenizer.state()
    assert "765" not in tokenizer.state()
    assert tokenizer.words(NAMED) == [
        "Reported",
        "to",
        "Zaphod",
        "of",
        "MRN",
        "7654321",
        "The",
        "effusion",
        "is",
        "small",
    ]  # spelled
    assert tokenizer([NAMED]).word_of_piece.max() == 9


def test_how_many_patients_can_be_said():
    tokenizer = Tokenizer(None, 64, vocabulary=200, least_patients=2)
    tokenizer.learn(["A wedge.", "A wedge and a nodule."], ["a", "b"])
    words = set(tokenizer._backend.get_vocab())
    assert "wedge" in words
    assert "nodule" not in words
    with pytest.raises(
        ConfigError, match=r"least_patients is 0; give a whole number of 1 \(every word is learned\) or more"
    ):
        Tokenizer(None, 64, vocabulary=200, least_patients=0)


def same(one, other):
    a, b = one(REPORTS), other(REPORTS)
    return (
        torch.equal(a.input_ids, b.input_ids)
        and torch.equal(a.word_of_piece, b.word_of_piece)
        and one.words(REPORT) == other.words(REPORT)
    )


def test_state_pickle_and_copy_round_trip(minilm):
    for tokenizer in (learned(REPORTS), minilm.tokenizer):
        empty = Tokenizer(None, tokenizer.max_tokens)
        empty.load(tokenizer.state())
        assert same(tokenizer, empty)
        assert same(tokenizer, pickle.loads(pickle.dumps(tokenizer)))
        assert same(tokenizer, copy.deepcopy(tokenizer))


def test_unlearned_and_unlearnable(minilm):
    tokenizer = ScratchText().tokenizer
    assert tokenizer.learnable
    assert not tokenizer.learned
    assert tokenizer.state() == ""
    with pytest.raises(ConfigError, match=r"run fit first.*--ckpt_path"):
        tokenizer(["text"])
    assert not minilm.tokenizer.learnable
    with pytest.raises(ConfigError, match="ScratchText"):
        minilm.tokenizer.learn(REPORTS)


def test_sentences_have_hashes_that_fold_what_does_not_matter(minilm):
    tokenizer = minilm.tokenizer
    batch = tokenizer(
        ["No effusion. The heart is\nnormal.", "the heart is normal. Lungs are clear", "Lungs are clear!", ""]
    )
    assert batch.sentence_hash.shape == (4, 8)
    first, second, third, empty = batch.sentence_hash.tolist()
    assert first[1] == second[0] == text_hash("The heart is normal")
    assert second[1] == third[0]
    assert len({first[0], first[1], second[1]}) == 3
    assert [row.count(-1) for row in (first, second, third, empty)] == [6, 6, 7, 8]
    full = tokenizer(["No effusion."], to_max=True)
    assert full.sentence_hash.shape == full.mask.shape  # of one shape on every process
    assert torch.equal(minilm(batch).sentence_hash, batch.sentence_hash)


def test_a_cut_report_has_hashes_of_what_is_left(minilm_folder):
    tokenizer = TransformersText(minilm_folder, max_tokens=24).tokenizer
    batch = tokenizer(["The heart is normal. No effusion is seen. " * 9])
    assert int((batch.sentence_hash != -1).sum()) == int(batch.sentences.max()) + 1
