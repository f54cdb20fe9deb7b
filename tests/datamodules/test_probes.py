"""The probes on phantoms: what each pair differs in, and what readers of known ability get."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import partial
from itertools import permutations
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from diptych.errors import DataError
from diptych.metrics.localisation import flatness
from diptych.types import Embedding, TokenEmbedding
from diptych_datamodules.phantoms import KINDS, probes, render, retrieval_probes
from diptych_datamodules.phantoms.plan import plan_phantom
from diptych_datamodules.phantoms.wording import FILLER_SENTENCES

SEEN = ["Lung Opacity", "Consolidation", "Pleural Effusion", "Pneumothorax", "Cardiomegaly"]
MIX = dict.fromkeys(SEEN, 1.0)
SIZE = 32


class Reader:
    """A model that recognises each picture and knows its impression; it compares what ``view`` makes of the two texts."""

    image_size = SIZE

    def __init__(self, view, monkeypatch, limit=1000):
        self.impressions: dict[bytes, str] = {}
        self.texts: list[str] = []

        def render_and_note(plan, size):
            phantom = render(plan, size)
            self.impressions[phantom.image.tobytes()] = plan.report.impression
            return phantom

        for module in (probes, retrieval_probes):
            monkeypatch.setattr(module, "render", render_and_note)
        self.view = view
        self.module = SimpleNamespace(
            head=SimpleNamespace(similarity=self.similarity),
            tokenizer=lambda texts: SimpleNamespace(cut=torch.tensor([words(t).total() > limit for t in texts])),
        )

    def encode_image(self, pictures):
        return self.encode_text([self.impressions[picture.tobytes()] for picture in pictures])

    def encode_text(self, texts):
        """A vector is the place of its text among all that were read."""
        self.texts += texts
        return Embedding(torch.arange(len(self.texts) - len(texts), len(self.texts))[:, None])

    def similarity(self, image, text, view=None):
        view = view or self.view
        images, texts = ([view(self.texts[i]) for i in panel.pooled.flatten().tolist()] for panel in (image, text))
        return torch.tensor([[float((i & t).total()) for t in texts] for i in images])


def words(text):
    return Counter(re.findall(r"[a-z]+", text.lower()))


def whole(text):
    return Counter(text.rstrip(".").split(". "))


def without_filler(text):
    return Counter({s: 1 for s in whole(text) if f"{s}." not in FILLER_SENTENCES})


def nothing(text):
    return Counter()


@pytest.mark.parametrize("make", [probes.pairs_of_sides, probes.pairs_of_zones, probes.swaps])
def test_a_pair_differs_in_places_alone(make):
    pairs = make(16, SEEN, 7)
    assert len(pairs) == 16
    assert len({a.patient for a, _ in pairs}) == 16
    for a, b in pairs:
        assert (a.patient, a.index, a.seed, a.sex, a.view) == (b.patient, b.index, b.seed, b.sex, b.view)
        assert [s.name for s in a.specs] == [s.name for s in b.specs]
        assert [s.severity for s in a.specs] == [s.severity for s in b.specs]
        assert a.report.text != b.report.text
        same_words = words(a.report.text) == words(b.report.text)
        changed = [(s.side != t.side, s.zone != t.zone) for s, t in zip(a.specs, b.specs, strict=True)]
        if make is probes.swaps:
            assert changed == [(True, False)] * 2
            assert same_words
        else:
            assert changed == [(make is probes.pairs_of_sides, make is probes.pairs_of_zones)]
            assert not same_words
        left, right = render(a, SIZE).image, render(b, SIZE).image
        assert (left != right).mean() > 0.05
    assert {s.name for a, _ in pairs for s in a.specs} <= {n for n in SEEN if KINDS[n].sided}


@pytest.mark.parametrize("make", [probes.pairs_of_sides, probes.pairs_of_zones])
def test_mild_pairs_are_the_same_pairs_with_less_to_see(make):
    for pair, mild in zip(pairs := make(12, SEEN, 7), probes.mildest_pairs(pairs), strict=True):
        for plan, less in zip(pair, mild, strict=True):
            spec, mild_spec = plan.specs[0], less.specs[0]
            assert (plan.index, spec.side, spec.zone) == (less.index, mild_spec.side, mild_spec.zone)
            assert mild_spec.grade == 0 < spec.grade
        # The two of a pair differ by less.
        gap, mild_gap = (
            np.abs(np.subtract(*(render(p, 64).image.astype(float) for p in two))).sum() for two in (pair, mild)
        )
        assert 0 < mild_gap < gap


def test_a_reader_of_words_tells_pairs_apart_and_swaps_not(monkeypatch):
    reader = Reader(words, monkeypatch)
    assert probes.choice_accuracy(reader, probes.pairs_of_sides(12, SEEN, 7), "impression") == {"": 1}
    assert probes.choice_accuracy(reader, probes.pairs_of_zones(12, SEEN, 7), "impression") == {"": 1}
    # All are ties, which count as wrong.
    assert probes.choice_accuracy(reader, probes.swaps(12, SEEN, 7), "impression") == {"": 0}
    assert probes.choice_accuracy(Reader(whole, monkeypatch), probes.swaps(12, SEEN, 7), "impression") == {"": 1}


def test_filler_is_what_is_added_in_the_share_that_was_asked_for():
    plan = next(iter(probes.pairs_of_sides(1, SEEN, 3)))[0]
    rng = np.random.default_rng(0)
    number = plan.report.impression.count(".")
    for share in retrieval_probes.FILLER_SHARES:
        text = retrieval_probes.pad_with_filler(plan, share, rng)
        sentences = [s + "." for s in text.rstrip(".").split(". ")]
        filler = [s for s in sentences if s in FILLER_SENTENCES]
        assert len(filler) == round(number * share / (1 - share))
        assert " ".join(s for s in sentences if s not in FILLER_SENTENCES) == plan.report.impression


def test_a_reader_of_filler_is_distracted(monkeypatch):
    def recalls(view):
        return retrieval_probes.distractor_probes(Reader(view, monkeypatch), 24, MIX, 5)

    knows, reads, is_blind = map(recalls, (without_filler, Counter, nothing))
    assert knows["distractor/0.0"] == knows["distractor/0.8"] == knows["distractor"] > 0.9
    assert reads["distractor/0.0"] > reads["distractor/0.8"] + 0.3  # of letters
    assert is_blind["distractor/0.0"] == 0
    assert "matchings/own" not in knows  # the reader has no local score


def test_long_reports_have_60_words_and_say_what_was_cut(monkeypatch):
    plans, texts, column = retrieval_probes.long_reports(24, MIX, 5)
    assert len(plans) == len(column) == 24
    assert len(texts) == len(set(column.tolist())) > 12
    for text in texts:
        sentences = [f"{s}." for s in text.rstrip(".").split(". ")]
        assert 60 <= len(text.split()) <= 90
        assert 4 * sum(s not in FILLER_SENTENCES for s in sentences) == sum(s in FILLER_SENTENCES for s in sentences)
    for plan, i in zip(plans, column.tolist(), strict=True):
        assert without_filler(texts[i]) == without_filler(plan.report.impression)
    knows = retrieval_probes.long_probe(Reader(without_filler, monkeypatch), 24, MIX, 5)
    assert knows["long"] > 0.9 > 0.6 > knows["long/chance"] > 5 / 24
    assert set(knows) == {"long", "long/chance"}
    lengths = sorted(words(text).total() for text in texts)
    some_cut = retrieval_probes.long_probe(Reader(whole, monkeypatch, limit=lengths[0]), 24, MIX, 5)
    assert 0 < some_cut["long/cut"] == sum(n > lengths[0] for n in lengths) / len(texts)
    monkeypatch.setattr(retrieval_probes, "LONG", (400, 500))  # no report is so long
    assert np.isnan(retrieval_probes.long_probe(Reader(whole, monkeypatch), 2, MIX, 5)["long"])


@dataclass(frozen=True)
class Nested(Embedding):
    """A panel within a panel, as of ``composite``."""

    members: dict[str, TokenEmbedding]


def test_parts_of_images_are_exchanged_however_deep_they_are():
    tokens, mask = torch.arange(6.0).view(3, 2, 1), torch.tensor([[True, False], [True, True], [False, True]])
    own = Nested(torch.eye(3), {"a": TokenEmbedding(-torch.eye(3), tokens, mask)})
    other = torch.tensor([2, 0, 1])
    regions, vectors = (retrieval_probes.exchanged(own, other, pooled) for pooled in (False, True))
    assert torch.equal(regions.pooled, own.pooled)
    assert torch.equal(regions.members["a"].pooled, own.members["a"].pooled)
    assert torch.equal(regions.members["a"].tokens, tokens[other])
    assert torch.equal(regions.members["a"].mask, mask[other])
    assert torch.equal(vectors.pooled, own.pooled[other])
    assert torch.equal(vectors.members["a"].pooled, own.members["a"].pooled[other])
    assert torch.equal(vectors.members["a"].tokens, tokens)


def test_every_image_gets_another_ones_part_once():
    rng = np.random.default_rng(0)
    for _ in range(50):
        column = torch.from_numpy(rng.integers(0, 6, 17))
        other = retrieval_probes.another(column)
        if int(column.bincount().max()) > 8:
            assert other is None
        else:
            assert sorted(other.tolist()) == list(range(17))
            assert not (column[other] == column).any()
    assert retrieval_probes.another(torch.tensor([0, 0, 1])) is None


def test_the_chance_of_recall_is_that_of_all_orders():
    column = torch.tensor([0, 1, 1, 2, 3, 3, 3])
    hits = [
        [min(order.index(i) for i in (column == t).nonzero()) < 5 for t in range(4)] for order in permutations(range(7))
    ]
    # Four reports: each image finds its own among the first five.
    assert retrieval_probes.recall_chance(column) == pytest.approx((1 + np.mean(hits)) / 2)
    assert retrieval_probes.recall_chance(torch.arange(50)) == pytest.approx(0.1)


@pytest.mark.parametrize("reads", ["tokens", "pooled"])
def test_a_local_score_is_unmasked_by_the_parts_of_other_images(reads, monkeypatch):
    """One stand-in knows the words of a report from the tokens, the other from the pooled vector alone."""
    reader, vocabulary = Reader(words, monkeypatch), {}

    def embed(panel):
        vector = torch.zeros(len(panel.pooled), 1, 300)
        for row, i in zip(vector[:, 0], panel.pooled.flatten().tolist(), strict=True):
            for word, number in without_filler(reader.texts[i]).items():
                row[vocabulary.setdefault(word, len(vocabulary))] = number
        return TokenEmbedding(vector[:, 0], vector, torch.ones(len(vector), 1, dtype=torch.bool))

    def local_scores(image, text):
        if reads == "pooled":
            return image.pooled @ text.pooled.T
        return image.tokens[:, 0] @ text.tokens[:, 0].T

    head = SimpleNamespace(similarity=local_scores, local_scores=local_scores)
    model = SimpleNamespace(
        image_size=SIZE,
        module=SimpleNamespace(head=head),
        encode_image=lambda pictures: embed(reader.encode_image(pictures)),
        encode_text=lambda texts: embed(reader.encode_text(texts)),
    )
    found = retrieval_probes.distractor_probes(model, 40, MIX, 5)
    falls, stays = ("regions", "pooled") if reads == "tokens" else ("pooled", "regions")
    assert found["matchings/own"] == found["matchings/distractor/0.4"] == found[f"matchings/other_{stays}"] > 0.9
    assert found[f"matchings/other_{falls}"] < found[f"matchings/other_{falls}/chance"] < 0.4


def test_the_matchings_are_probed_by_themselves(monkeypatch):
    reader = Reader(nothing, monkeypatch)
    reader.module.head.local_scores = partial(reader.similarity, view=words)
    assert probes.choice_accuracy(reader, probes.pairs_of_sides(6, SEEN, 7), "impression") == {"": 0, "matchings/": 1}


@pytest.mark.parametrize("knows", [True, False])
def test_attention_is_judged_by_boxes_and_weights_by_what_words_do(knows, monkeypatch):
    radiographs = {}

    def draw(plan, size):
        radiograph = render(plan, size)
        radiographs[radiograph.image.tobytes()] = radiograph
        return radiograph

    def spans(text):
        return [match.span() for match in re.finditer(r"[\w-]+", text)]

    def links(picture, text):
        radiograph = radiographs[picture.tobytes()]
        start = len(radiograph.report.findings) + 1
        assert radiograph.report.text[start:] == text
        for a, b in spans(text):
            yield next((k for k in radiograph.report.links if k.start <= start + a and start + b <= k.end), None)

    def heatmap(picture, text):
        maps = np.zeros((len(spans(text)), SIZE, SIZE), np.float32)
        for heat, link in zip(maps, links(picture, text), strict=True):
            x, y = 0, 0
            if knows and link is not None and link.role == "finding":
                x0, y0, x1, y1 = radiographs[picture.tobytes()].findings[link.finding].box
                x, y = int(x0 + x1) // 2, int(y0 + y1) // 2
            heat[y, x] = 1
        return maps

    def importance(picture, text):
        return np.array([float(knows and link is not None and link.role == "finding") for link in links(picture, text)])

    def look(picture, text):
        """In each word, the weight of the first of four regions is that of the picture."""
        first = float(picture.mean()) / 255
        attention = np.tile([first, *[(1 - first) / 3] * 3], (len(spans(text)), 1))
        return SimpleNamespace(
            native=heatmap(picture, text), entropy=flatness(attention), weights=importance(picture, text)
        )

    monkeypatch.setattr(probes, "render", draw)
    head = SimpleNamespace(heatmap=look, importance=importance, weighs_words=True)
    module = SimpleNamespace(head=head, tokenizer=SimpleNamespace(word_spans=spans))
    model = SimpleNamespace(image_size=SIZE, module=module, look=look)
    results = probes.word_probes(model, 12, MIX, "impression", 5)
    assert results["grounding/pointing"] == knows
    assert results["importance/rank_biserial"] == knows
    assert 0.02 < results["grounding/pointing/chance"] < 0.4
    if knows:
        assert results["grounding/over_chance"] == pytest.approx(1 / results["grounding/pointing/chance"])
    flat = []
    for radiograph in radiographs.values():
        first = float(radiograph.image.mean()) / 255
        entropy = -first * np.log(first) - (1 - first) * np.log((1 - first) / 3)
        impression = [link for link in links(radiograph.image, radiograph.report.impression) if link is not None]
        flat += [entropy / np.log(4) for _ in {link.finding for link in impression if link.role == "finding"}]
    assert results["grounding/entropy"] == pytest.approx(np.mean(flat), abs=1e-6)


def test_pictures_are_drawn_once_and_then_read(tmp_path, monkeypatch):
    plans = [plan_phantom(i, seed=5) for i in range(3)]
    plain = retrieval_probes.pictures(plans, 32, None)
    assert np.array_equal(retrieval_probes.pictures(plans, 32, tmp_path / "cache"), plain)
    monkeypatch.setattr(retrieval_probes, "render", None)  # nothing can be drawn any more
    assert np.array_equal(retrieval_probes.pictures(plans, 32, tmp_path / "cache"), plain)
    for other in ((plans[:2], 32), (plans, 33)):
        with pytest.raises(TypeError):
            retrieval_probes.pictures(*other, tmp_path / "cache")
    assert [file.suffix for file in (tmp_path / "cache").iterdir()] == [".npy"]


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"data\.cache: .*cannot be written"):
        retrieval_probes.pictures([plan_phantom(0, seed=5)], 32, tmp_path / "file")
