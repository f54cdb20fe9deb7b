"""What the blocks and the byte budget of ``reclf`` may change: nothing but time and memory."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
import twins
from head_contract import close
from reclf_twins import every_variant, same, some_variants, step, value_and_gradients

from diptych.nn import blockwise
from diptych.nn.blockwise import bytes_kept


@some_variants
def test_blocks_and_budget_change_nothing(options, monkeypatch):
    model, raw = step(options), twins.raw_batch()
    whole = value_and_gradients(model, model.head.local_scores(*model.embed(raw)))
    calls: Counter[str] = Counter()

    def count(name):
        plain = getattr(model.head, name)

        def counts(image, text, *more):
            calls.update({name: 1, "words": len(image.pooled) * text.mask.numel()})
            return plain(image, text, *more)

        monkeypatch.setattr(model.head, name, counts)

    stages = "attend", "match", "pair_scores"
    for name in stages:
        count(name)
    monkeypatch.setattr(blockwise, "block_bytes", lambda *_: 2**12)
    matching = 8 * (12 + (model.head.cosine_scale is not None))  # bytes of a word
    attention = 8 * raw.image.shape[1] * (3 if model.head.attention == "scan" else 1)
    words, some = 0, 0.5  # "some" is above 0 and below 1
    for budget, again in (
        (lambda words: 2**40, (0, 0, 0)),
        (lambda words: words * (matching + attention) + 2**15, (0, some, some)),
        (lambda words: words * (matching + attention), (0, 1, 1)),
        (lambda words: words * (matching + 0.5 * attention), (some, 1, 1)),
        (lambda words: words * matching, (1, 1, 1)),
        (lambda words: 0, (1, 1, 1)),
    ):
        calls.clear()
        model.head.byte_budget = int(budget(words))
        scores = model.head.local_scores(*model.embed(raw))
        forward = dict(calls)
        words = forward["words"] // 3
        assert forward["attend"] == forward["match"] == forward["pair_scores"] > 4
        same(value_and_gradients(model, scores), whole, 1e-12)
        for name, expected in zip(stages, again, strict=True):
            share = calls[name] / forward[name] - 1
            assert (0 < share < 1) if expected == some else (share == expected)
    with torch.no_grad():
        close(model.head.local_scores(*model.embed(raw)), whole[0], 1e-12)
        image, text = (x.select(torch.arange(0)) for x in model.embed(raw))
        assert model.head.local_scores(image, model.embed(raw)[1]).shape == (0, 8)
        assert model.head.local_scores(model.embed(raw)[0], text).shape == (8, 0)


def test_where_the_matchings_are_kept_their_product_is_not_done_again(monkeypatch):
    model, raw = step({}), twins.raw_batch()
    done = 0
    addmm = torch.ops.aten.addmm.default

    class Count(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal done
            done += function is addmm and args[2].shape[1] == 13
            return function(*args, **(kwargs or {}))

    for budget, expected in ((0, 2), (8 * 8 * 6 * 13 * 8, 1)):
        done = 0
        model.head.byte_budget = budget
        with Count():
            model.head.local_scores(*model.embed(raw)).sum().backward()
        assert done == expected


@some_variants
def test_blocks_that_are_not_cut_as_on_a_gpu_change_nothing(options, monkeypatch):
    model, raw = step(options), twins.raw_batch()
    raw.mask[3] = False
    whole = value_and_gradients(model, model.head.local_scores(*model.embed(raw)))
    monkeypatch.setattr(blockwise, "on_cpu", lambda _: False)
    monkeypatch.setattr(blockwise, "block_bytes", lambda *_: 2**13)
    same(value_and_gradients(model, model.head.local_scores(*model.embed(raw))), whole, 1e-12)


@every_variant
def test_the_byte_budget_bounds_what_is_kept(options, monkeypatch):
    monkeypatch.setattr(blockwise, "block_bytes", lambda *_: 2**15)
    model = twins.Step("reclf", {**options, "matching_width": 16})
    image, text = model.embed(twins.raw_batch(pairs=24, words=20, regions=49, dtype=torch.float32))
    arguments = sum(x.nbytes for x in (*model.head.parameters(), *vars(image).values(), *vars(text).values()))

    def bytes_at(budget):
        model.head.byte_budget = budget
        return bytes_kept(lambda: model.head.local_scores(image, text))

    everything, nothing = bytes_at(2**30), bytes_at(0)
    assert nothing < arguments + 0.05 * everything
    half = bytes_at((everything - nothing) // 2)
    assert 0.3 * everything < half - nothing < 0.6 * everything
    assert bytes_at(int(1.2 * everything)) == everything


def test_padding_is_not_computed(monkeypatch):
    monkeypatch.setattr(blockwise, "block_bytes", lambda *_: 2**15)
    model = twins.Step("reclf", {})
    image, text = model.embed(twins.raw_batch(pairs=24, words=30, dtype=torch.float32))
    words = 0
    plain = model.head.match

    def count(image, text, *more):
        nonlocal words
        words += len(image.pooled) * text.mask.numel()
        return plain(image, text, *more)

    monkeypatch.setattr(model.head, "match", count)
    model.head.local_scores(image, text)
    assert 24 * text.mask.sum() <= words < 24 * 1.25 * text.mask.sum() < 24 * 0.8 * text.mask.numel()


@pytest.mark.slow
@some_variants
def test_the_pair_scores_compile_as_one_graph(options):
    """To code that runs in the default form, and else to the graphs of both directions, which are run as they are."""
    model, raw = step(options, torch.float32), twins.raw_batch(dtype=torch.float32)

    def score(image, text, fused):
        return model.head.pair_scores(image, text, model.head.match(image, text, model.head.attend(image, text)), fused)

    expected = value_and_gradients(model, score(*model.embed(raw), model.head.fuse()))
    compiled = torch.compile(score, fullgraph=True, backend="aot_eager" if options else "inductor")
    same(value_and_gradients(model, compiled(*model.embed(raw), model.head.fuse())), expected, 1e-4)
