"""The probes on phantoms: what each pair differs in, and what readers of known ability get."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from diptych_datamodules.phantoms import KINDS, probes, render
from diptych_datamodules.phantoms.wording import FILLER_SENTENCES

SEEN = ["Lung Opacity", "Consolidation", "Pleural Effusion", "Pneumothorax", "Cardiomegaly"]
MIX = dict.fromkeys(SEEN, 1.0)
SIZE = 32


@dataclass
class Panel:
    """What the stand-in model makes of pictures or texts."""

    items: list[Any]


class Reader:
    """A model that recognises each picture and knows its impression; it compares what ``view`` makes of the two texts."""

    image_size = SIZE

    def __init__(self, view, monkeypatch):
        self.impressions: dict[bytes, str] = {}

        def render_and_note(plan, size):
            phantom = render(plan, size)
            self.impressions[phantom.image.tobytes()] = plan.report.impression
            return phantom

        monkeypatch.setattr(probes, "render", render_and_note)
        self.view = view
        self.module = SimpleNamespace(head=SimpleNamespace(similarity=self.similarity))

    def encode_image(self, pictures):
        return Panel([self.impressions[picture.tobytes()] for picture in pictures])

    def encode_text(self, texts):
        return Panel(list(texts))

    def similarity(self, image, text, view=None):
        view = view or self.view
        views = [view(t) for t in text.items]
        return torch.tensor([[float((view(i) & v).total()) for v in views] for i in image.items])


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
    for share in probes.FILLER_SHARES:
        text = probes.pad_with_filler(plan, share, rng)
        sentences = [s + "." for s in text.rstrip(".").split(". ")]
        filler = [s for s in sentences if s in FILLER_SENTENCES]
        assert len(filler) == round(number * share / (1 - share))
        assert " ".join(s for s in sentences if s not in FILLER_SENTENCES) == plan.report.impression


def test_a_reader_of_filler_is_distracted(monkeypatch):
    def recall(view, share):
        return probes.distractor_recall(Reader(view, monkeypatch), 24, MIX, share, 5)[""]

    assert recall(without_filler, 0.0) == recall(without_filler, 0.8) > 0.9
    assert recall(Counter, 0.0) > recall(Counter, 0.8) + 0.3  # of letters
    assert recall(nothing, 0.0) == 0


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
        return [], maps

    def importance(picture, text):
        return np.array([float(knows and link is not None and link.role == "finding") for link in links(picture, text)])

    monkeypatch.setattr(probes, "render", draw)
    head = SimpleNamespace(heatmap=heatmap, importance=importance, weighs_words=True)
    module = SimpleNamespace(head=head, tokenizer=SimpleNamespace(word_spans=spans))
    model = SimpleNamespace(image_size=SIZE, module=module, heatmap=heatmap, importance=importance)
    results = probes.word_probes(model, 12, MIX, "impression", 5)
    assert results["grounding/pointing"] == knows
    assert results["importance/rank_biserial"] == knows
    assert 0.02 < results["grounding/chance"] < 0.4
    if knows:
        assert results["grounding/over_chance"] == pytest.approx(1 / results["grounding/chance"])
