"""The equations of ``pcma`` against slow twins, and what must not change them."""

from __future__ import annotations

from dataclasses import replace

import pcma_twins as twins
import pytest
import torch
from head_contract import close

from diptych.nn import functional as F
from diptych.nn.blockwise import bytes_kept
from diptych.types import Features
from diptych_heads.equations import pcma as matching
from diptych_heads.equations.pcma import MatchingRule

pytestmark = pytest.mark.usefixtures("one_thread")
every_kind = pytest.mark.parametrize("kind", ["soft", "hungarian", "sinkhorn", "max"])


def grid(images=4, texts=6, observations=5, sentences=4, width=8, dtype=torch.float64):
    """Unit observations and sentences of ragged reports, as leaves with gradients."""
    g = torch.Generator().manual_seed(0)
    v = F.unit(torch.randn(images, observations, width, generator=g, dtype=dtype))
    mask = torch.arange(sentences) < torch.tensor([1 + (3 * c + 2) % sentences for c in range(texts)]).unsqueeze(1)
    t = F.unit(torch.randn(texts, sentences, width, generator=g, dtype=dtype), mask)
    return v.requires_grad_(), t.requires_grad_(), mask


def value_and_gradients(scores, v, t):
    weights = torch.linspace(-1.0, 2.0, scores.numel(), dtype=scores.dtype).view_as(scores)
    return scores, *torch.autograd.grad((weights * scores).sum(), [v, t])


def test_sentences_of_too_few_words_are_dropped_unless_there_are_no_others():
    sentences = torch.tensor([[0, 0, 1, 1, 1, 2, 2, 2, 2], [0, 0, 1, 1, -1, -1, -1, -1, -1], [-1] * 9])
    mask = sentences >= 0
    hashes = torch.tensor([[7, 8, 9], [10, 11, -1], [-1, -1, -1]])
    text = Features(torch.zeros(3, 1), torch.zeros(3, 9, 1), mask, sentences=sentences, sentence_hash=hashes)
    slots, real, hashes = matching.sentence_slots(text, 3)
    assert slots.tolist() == [[-1, -1, 0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 0, -1, -1, -1, -1, -1], [-1] * 9]
    assert real.tolist() == [[True, True, False], [True, False, False], [False] * 3]
    assert hashes.tolist() == [[8, 9, -1], [21, -1, -1], [-1, -1, -1]]
    slots, real, hashes = matching.sentence_slots(replace(text, sentences=None, sentence_hash=None), 3)
    assert slots.max() == 0  # a report is one sentence, and equals none
    assert real.sum(1).tolist() == [1, 1, 0]
    assert (hashes == -1).all()


@every_kind
def test_scores_equal_the_slow_twin_in_value_and_gradient(kind):
    v, t, mask = grid()
    scores, blank = matching.pair_scores(v, t, mask, rule=MatchingRule(kind))
    expected = torch.stack(
        [torch.stack([twins.pair_score(x, y[m], m[m], kind) for y, m in zip(t, mask, strict=True)]) for x in v]
    )
    for a, b in zip(value_and_gradients(scores, v, t), value_and_gradients(expected, v, t), strict=True):
        close(a, b)
    assert not blank.any()


@every_kind
def test_more_sentences_than_observations(kind):
    v, t, mask = grid(observations=2)
    scores, _ = matching.pair_scores(v, t, mask, rule=MatchingRule(kind))
    for i, c in ((0, 0), (1, 1), (3, 4)):
        close(scores[i, c], twins.pair_score(v[i], t[c][mask[c]], mask[c][mask[c]], kind))


@every_kind
def test_weights_of_a_sentence_sum_to_one_and_transport_is_even(kind):
    v, t, mask = grid(observations=6)
    s = t[:4] @ v.transpose(1, 2)
    w = matching.match_weights(s, mask[:4], MatchingRule(kind, rounds=200))
    close(w.sum(-1)[mask[:4]], torch.ones(int(mask[:4].sum()), dtype=torch.float64), 1e-6)
    if kind == "sinkhorn":
        for row, real in zip(w, mask[:4], strict=True):
            close(row[real].sum(0), torch.full((6,), int(real.sum()) / 6, dtype=torch.float64), 1e-4)
    if kind == "hungarian":
        assert all((row[real].sum(0) <= 1).all() for row, real in zip(w, mask[:4], strict=True))


@every_kind
def test_blocks_and_budgets_change_nothing(kind, monkeypatch):
    v, t, mask = grid()
    whole = value_and_gradients(matching.pair_scores(v, t, mask, rule=MatchingRule(kind))[0], v, t)
    monkeypatch.setattr(matching, "block_bytes", lambda *_: 2000)  # two or three reports
    for budget in (0, 5000, 2**30):
        blocks = value_and_gradients(
            matching.pair_scores(v, t, mask, rule=MatchingRule(kind), byte_budget=budget)[0], v, t
        )
        for a, b in zip(blocks, whole, strict=True):
            close(a, b, 1e-12)
    with torch.inference_mode():
        close(matching.pair_scores(v, t, mask, rule=MatchingRule(kind))[0], whole[0].detach(), 1e-12)


def test_the_byte_budget_bounds_what_is_kept(monkeypatch):
    v, t, mask = grid(images=16, texts=40, observations=16, sentences=8, width=8, dtype=torch.float32)
    monkeypatch.setattr(matching, "block_bytes", lambda *_: 2**15)

    def bytes_at(budget):
        return bytes_kept(lambda: matching.pair_scores(v, t, mask, byte_budget=budget))

    everything, nothing = bytes_at(2**30), bytes_at(0)
    cosines = 16 * 40 * 8 * 16 * 4
    assert everything - nothing > 2 * cosines
    assert nothing < everything / 5
    assert everything <= nothing + matching.GRIDS * cosines


@every_kind
def test_a_report_without_sentences_scores_zero_without_harm(kind):
    v, t, mask = grid()
    mask[2] = False
    scores, grad_v, grad_t = value_and_gradients(matching.pair_scores(v, t, mask, rule=MatchingRule(kind))[0], v, t)
    assert (scores[:, 2] == 0).all()
    assert grad_v.isfinite().all()
    assert grad_t.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["soft", "sinkhorn", "max"])
def test_a_block_compiles_to_the_same_values(kind):
    v, t, mask = grid(dtype=torch.float32)
    counted = mask.expand(len(v), -1, -1)
    expected = value_and_gradients(matching.block_scores(v, t, mask, counted, MatchingRule(kind)), v, t)
    backend = "inductor" if kind == "soft" else "aot_eager"  # the graphs of both directions, run as they are
    compiled = torch.compile(matching.block_scores, fullgraph=True, backend=backend)
    actual = value_and_gradients(compiled(v, t, mask, counted, MatchingRule(kind)), v, t)
    for a, b in zip(actual, expected, strict=True):
        close(a, b, 1e-5)
