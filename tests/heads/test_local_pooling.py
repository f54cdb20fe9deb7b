"""``local_pooling`` against plain twins, and what must not change it: padding, order, blocks, budgets, number formats."""

from __future__ import annotations

import pytest
import torch
import twins
from head_contract import close, losses

from diptych.head import Grounds
from diptych.nn import blockwise
from diptych.nn import functional as F
from diptych.nn.blockwise import bytes_kept
from diptych_heads.equations import local_pooling as equations

POOLINGS = ["logsumexp", "mean", "max"]


def grid(images=4, texts=5, regions=9, words=6, width=8, dtype=torch.float64, seed=0):
    """Unit regions and words of ragged reports, as leaves with gradients."""
    generator = torch.Generator().manual_seed(seed)
    v = F.unit(torch.randn(images, regions, width, generator=generator, dtype=dtype))
    mask = torch.arange(words) < torch.tensor([1 + (4 * c + 5) % words for c in range(texts)]).unsqueeze(1)
    t = F.unit(torch.randn(texts, words, width, generator=generator, dtype=dtype), mask)
    return v.requires_grad_(), t.requires_grad_(), mask


def value_and_gradients(function, v, t):
    """A weighted sum of the scores, so that every one has a gradient of its own."""
    scores = function()
    weights = torch.linspace(-1.0, 2.0, scores.numel(), dtype=scores.dtype).view_as(scores)
    return scores, *torch.autograd.grad((weights * scores).sum(), [v, t])


@pytest.mark.parametrize("pooling", POOLINGS)
def test_scores_equal_the_slow_twin_in_value_and_gradient(pooling):
    v, t, mask = grid()
    actual = value_and_gradients(lambda: equations.local_scores(v, t, mask, pooling=pooling), v, t)
    expected = value_and_gradients(lambda: twins.local_scores(v, t, mask, pooling), v, t)
    for a, b in zip(actual, expected, strict=True):
        close(a, b)


def test_the_hand_written_backward_is_the_numerical_one():
    v, t, mask = grid(images=2, texts=3, regions=4, words=3, width=5)
    for budget in (0, 2**30):
        torch.autograd.gradcheck(lambda v, t, b=budget: equations.local_scores(v, t, mask, byte_budget=b), (v, t))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_padding_changes_nothing(pooling):
    v, t, mask = grid()
    expected = value_and_gradients(lambda: equations.local_scores(v, t, mask, pooling=pooling), v, t)
    wide = torch.cat([t, torch.zeros(5, 7, 8, dtype=t.dtype)], 1)
    wide_mask = torch.cat([mask, torch.zeros(5, 7, dtype=torch.bool)], 1)
    padded = value_and_gradients(lambda: equations.local_scores(v, wide, wide_mask, pooling=pooling), v, t)
    for a, b in zip(padded, expected, strict=True):
        close(a, b, 1e-12)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_words_may_stand_anywhere(pooling):
    v, t, mask = grid()
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    close(
        equations.local_scores(v, t[:, order], mask[:, order], pooling=pooling),
        equations.local_scores(v, t, mask, pooling=pooling),
        1e-12,
    )


@pytest.mark.parametrize("pooling", POOLINGS)
def test_order_and_batches_change_no_score(pooling):
    v, t, mask = grid()
    whole = equations.local_scores(v, t, mask, pooling=pooling)
    rows, columns = torch.tensor([2, 0, 3, 1]), torch.tensor([4, 1, 0, 3, 2])
    close(equations.local_scores(v[rows], t[columns], mask[columns], pooling=pooling), whole[rows][:, columns], 1e-12)
    for i in range(4):
        for c in range(5):
            one = equations.local_scores(v[i : i + 1], t[c : c + 1], mask[c : c + 1], pooling=pooling)
            close(one[0, 0], whole[i, c], 1e-12)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_blocks_change_nothing_and_without_gradients_neither(pooling, monkeypatch):
    v, t, mask = grid(images=4, texts=5, regions=6)
    whole = value_and_gradients(lambda: equations.local_scores(v, t, mask, pooling=pooling), v, t)
    for block in (1, 600, 2000):  # bytes: single pairs; a column or a few of them
        monkeypatch.setattr(equations, "block_bytes", lambda *_, b=block: b)
        for budget in (0, 1500, 2**30):
            call = lambda b=budget: equations.local_scores(v, t, mask, pooling=pooling, byte_budget=b)  # noqa: E731  # a thunk
            for a, b in zip(value_and_gradients(call, v, t), whole, strict=True):
                close(a, b, 1e-12)
    with torch.no_grad():
        close(equations.local_scores(v, t, mask, pooling=pooling), whole[0].detach(), 1e-12)
    with torch.inference_mode():
        close(equations.local_scores(v, t, mask, pooling=pooling), whole[0].detach(), 1e-12)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_blocks_that_are_not_cut_as_on_a_gpu_change_nothing(pooling, monkeypatch):
    v, t, mask = grid(images=4, texts=5, regions=6)
    whole = value_and_gradients(lambda: equations.local_scores(v, t, mask, pooling=pooling), v, t)
    monkeypatch.setattr(blockwise, "_on_cpu", lambda _: False)
    monkeypatch.setattr(equations, "block_bytes", lambda *_: 2000)
    for a, b in zip(
        value_and_gradients(lambda: equations.local_scores(v, t, mask, pooling=pooling), v, t), whole, strict=True
    ):
        close(a, b, 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["logsumexp", "max"])
def test_the_pair_scores_compile_as_one_graph(pooling, monkeypatch):
    """With the written backward; as on a GPU, since the CPU's cutting reads the lengths of the reports."""
    monkeypatch.setattr(blockwise, "_on_cpu", lambda x: False)
    v, t, mask = grid(dtype=torch.float32)

    def scores(v, t):
        return equations.local_scores(v, t, mask, pooling=pooling)

    compiled = torch.compile(scores, fullgraph=True)
    expected = value_and_gradients(lambda: scores(v, t), v, t)
    for a, b in zip(value_and_gradients(lambda: compiled(v, t), v, t), expected, strict=True):
        close(a, b, 1e-5)


def test_a_large_set_is_scored_in_tiles_of_both_sides():
    v, t, mask = grid(images=300, texts=520, regions=4, words=3, width=4)
    largest = 0
    products = equations._products

    def watch(regions, words):
        nonlocal largest
        largest = max(largest, len(regions) * len(words))
        return products(regions, words)

    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(equations, "_products", watch)
        scores = equations.local_scores(v, t, mask)
    assert largest <= 256 * 256
    for i, c in ((0, 0), (299, 519), (255, 256), (256, 255)):
        close(scores[i, c], twins.local_score(v[i], t[c][mask[c]], "logsumexp").detach())


def test_padding_is_not_computed():
    v, t, mask = grid(images=2, texts=40, words=30)
    computed = 0
    products = equations._products

    def count(regions, words):
        nonlocal computed
        computed += words.shape[0] * words.shape[1]
        return products(regions, words)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(equations, "_products", count)
        patch.setattr(equations, "block_bytes", lambda *_: 2 * 9 * 8 * 60)  # two long reports or a few short ones
        equations.local_scores(v, t, mask)
    assert mask.sum() <= computed < 1.1 * mask.sum() < 0.7 * mask.numel()


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_report_without_words_scores_zero_without_gradient(pooling):
    v, t, mask = grid()
    mask[2] = False
    with torch.no_grad():
        t[2] = 0.0
    for budget in (0, 2**30):
        call = lambda b=budget: equations.local_scores(v, t, mask, pooling=pooling, byte_budget=b)  # noqa: E731  # a thunk
        scores, grad_v, grad_t = value_and_gradients(call, v, t)
        assert torch.all(scores[:, 2] == 0)
        assert torch.all(grad_t[2] == 0)
        assert grad_v.isfinite().all()
        assert scores[:, [0, 1, 3, 4]].abs().min() > 0


def test_regions_may_come_as_a_transposed_view():
    v, t, mask = grid()
    channels_first = v.detach().transpose(1, 2).contiguous().requires_grad_()
    expected = value_and_gradients(lambda: equations.local_scores(v, t, mask), v, t)
    actual = value_and_gradients(
        lambda: equations.local_scores(channels_first.transpose(1, 2), t, mask), channels_first, t
    )
    close(actual[0], expected[0], 1e-12)
    close(actual[1].transpose(1, 2), expected[1], 1e-12)


def test_regions_that_are_all_zero_or_cancel_give_finite_gradients():
    v, t, mask = grid(images=2, regions=2)
    with torch.no_grad():
        v[0] = 0.0
        v[1, 1] = -v[1, 0]
    scores, grad_v, grad_t = value_and_gradients(lambda: equations.local_scores(v, t, mask), v, t)
    assert scores.isfinite().all()
    assert grad_v.isfinite().all()
    assert grad_t.isfinite().all()


@pytest.mark.parametrize("pooling", POOLINGS)
def test_scores_are_float32_under_autocast(pooling):
    v, t, mask = grid(dtype=torch.float32)
    expected = value_and_gradients(lambda: equations.local_scores(v, t, mask, pooling=pooling), v, t)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = equations.local_scores(v, t, mask, pooling=pooling)
        assert F.dot_products(v[:, 0], t[:, 0]).dtype == torch.float32
    actual = value_and_gradients(lambda: scores, v, t)
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == torch.float32
        close(a, b, 1e-6)


def test_the_byte_budget_bounds_what_is_kept():
    v, t, mask = grid(images=16, texts=24, regions=49, words=20, width=8, dtype=torch.float32)
    grid_bytes = 2 * 16 * 49 * 4 * int(mask.sum())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(equations, "block_bytes", lambda *_: 2**16)
        nothing, half, everything = (
            bytes_kept(lambda b=budget: equations.local_scores(v, t, mask, byte_budget=b))
            for budget in (0, grid_bytes // 2, 2**30)
        )
    assert grid_bytes <= everything - nothing < 1.2 * grid_bytes
    assert 0.3 * grid_bytes < half - nothing <= 0.5 * grid_bytes
    assert nothing < 0.25 * grid_bytes  # the arguments and one number a word


def test_region_attention_is_the_published_one():
    v, t, mask = grid(images=5)
    attention = equations.region_attention(v, t, mask)
    assert attention.shape == (5, 6, 9)
    for b in range(5):
        s = t[b][mask[b]] @ v[b].T
        close(attention[b][mask[b]], (4.0 * s.softmax(0)).softmax(1))
    assert torch.all(attention[~mask] == 0)
    close(attention.sum(-1), mask.double())


# The head -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", POOLINGS)
def test_the_head_trains_and_ranks_by_the_published_scores(pooling):
    step, raw = twins.Step("local_pooling", {"pooling": pooling}).double(), twins.raw_batch()
    image, text = step.embed(raw)
    local = twins.local_scores(image.tokens, text.tokens, text.mask, pooling)
    cosine = image.pooled @ text.pooled.T
    terms = losses(step, raw)
    close(terms["local"], twins.info_nce(10 * 5 * local, raw.hash, 0.5), 1e-6)
    close(terms["global"], twins.info_nce(10 * cosine, raw.hash, 0.5), 1e-6)
    close(step.head.similarity(image, text), (cosine + local) / 2)


def test_the_head_grounds_words():
    step, raw = twins.Step("local_pooling", {}).double(), twins.raw_batch()
    assert isinstance(step.head, Grounds)
    assert not isinstance(twins.Step("global", {}).head, Grounds)
    heatmap = step.head.heatmap(*step.embed(raw))
    assert heatmap.shape == (8, 6, 9)
    close(heatmap.sum(-1), raw.mask.double())
