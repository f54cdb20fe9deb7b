"""``local_pooling`` against plain twins, and what must not change it: padding, order, blocks, budgets, number formats."""

from __future__ import annotations

import math

import pytest
import torch
import twins
from head_contract import close, losses

from diptych.errors import ConfigError
from diptych.head import Grounds
from diptych.nn import blockwise
from diptych.nn import functional as F
from diptych.nn.blockwise import bytes_kept
from diptych_heads.equations import local_pooling as equations
from diptych_heads.equations.attention import SHARPNESS, attention_entropy, region_attention

POOLINGS = ["logsumexp", "logmeanexp", "mean", "best_word", "max"]
FORMS = [{"pooling": pooling} for pooling in POOLINGS]
FORMS += [
    {"pooling": "mean", "attention": form, "region_scale": SHARPNESS[form]} for form in ("raw", "softmax", "scan")
]
SCALES = {"unit": {}, "scan": {}, "raw": {}, "softmax": {"attention_temperature": 0.05, "region_scale": None}}
every_form = pytest.mark.parametrize("options", FORMS, ids=lambda options: "-".join(map(str, options.values())))


def grid(options=FORMS[0], images=4, texts=5, regions=9, words=6, width=8, dtype=torch.float64):
    """Regions and words of ragged reports, as leaves with gradients. Their length is what the attention reads."""
    generator = torch.Generator().manual_seed(0)
    v = F.unit(torch.randn(images, regions, width, generator=generator, dtype=dtype))
    mask = torch.arange(words) < torch.tensor([1 + (4 * c + 5) % words for c in range(texts)]).unsqueeze(1)
    t = F.unit(torch.randn(texts, words, width, generator=generator, dtype=dtype), mask)
    if options.get("attention") == "raw":
        v, t = (x * torch.linspace(0.5, 8.0, x.shape[1], dtype=dtype).unsqueeze(1) for x in (v, t))
    if options.get("attention") == "softmax":
        t = 10 * t
    return v.requires_grad_(), t.requires_grad_(), mask


def twin_of(options):
    """The arguments of the twin."""
    return options["pooling"], options.get("attention", "unit"), options.get("region_scale", 4.0)


def value_and_gradients(function, v, t):
    """A weighted sum of the scores, so that every one has a gradient of its own."""
    scores = function()
    weights = torch.linspace(-1.0, 2.0, scores.numel(), dtype=scores.dtype).view_as(scores)
    return scores, *torch.autograd.grad((weights * scores).sum(), [v, t])


@every_form
def test_scores_equal_the_slow_twin_in_value_and_gradient(options):
    v, t, mask = grid(options)
    actual = value_and_gradients(lambda: equations.local_scores(v, t, mask, **options), v, t)
    expected = value_and_gradients(lambda: twins.local_scores(v, t, mask, *twin_of(options)), v, t)
    for a, b in zip(actual, expected, strict=True):
        close(a, b)


def test_the_hand_written_backward_is_the_numerical_one():
    v, t, mask = grid(images=2, texts=3, regions=4, words=3, width=5)
    for budget in (0, 2**30):
        torch.autograd.gradcheck(lambda v, t, b=budget: equations.local_scores(v, t, mask, byte_budget=b), (v, t))


@every_form
def test_padding_changes_nothing(options):
    v, t, mask = grid(options)
    expected = value_and_gradients(lambda: equations.local_scores(v, t, mask, **options), v, t)
    wide = torch.cat([t, torch.zeros(5, 7, 8, dtype=t.dtype)], 1)
    wide_mask = torch.cat([mask, torch.zeros(5, 7, dtype=torch.bool)], 1)
    padded = value_and_gradients(lambda: equations.local_scores(v, wide, wide_mask, **options), v, t)
    for a, b in zip(padded, expected, strict=True):
        close(a, b, 1e-12)


@every_form
def test_words_may_stand_anywhere(options):
    v, t, mask = grid(options)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    close(
        equations.local_scores(v, t[:, order], mask[:, order], **options),
        equations.local_scores(v, t, mask, **options),
        1e-12,
    )


@every_form
def test_order_and_batches_change_no_score(options):
    v, t, mask = grid(options)
    whole = equations.local_scores(v, t, mask, **options)
    rows, columns = torch.tensor([2, 0, 3, 1]), torch.tensor([4, 1, 0, 3, 2])
    close(equations.local_scores(v[rows], t[columns], mask[columns], **options), whole[rows][:, columns], 1e-12)
    for i in range(4):
        for c in range(5):
            one = equations.local_scores(v[i : i + 1], t[c : c + 1], mask[c : c + 1], **options)
            close(one[0, 0], whole[i, c], 1e-12)


@every_form
def test_blocks_change_nothing_and_without_gradients_neither(options, monkeypatch):
    v, t, mask = grid(options, images=4, texts=5, regions=6)
    whole = value_and_gradients(lambda: equations.local_scores(v, t, mask, **options), v, t)
    for block in (1, 600, 2000):  # bytes: single pairs; a column or a few of them
        monkeypatch.setattr(equations, "block_bytes", lambda *_, b=block: b)
        for budget in (0, 1500, 2**30):
            call = lambda b=budget: equations.local_scores(v, t, mask, **options, byte_budget=b)  # noqa: E731  # a thunk
            for a, b in zip(value_and_gradients(call, v, t), whole, strict=True):
                close(a, b, 1e-12)
    with torch.no_grad():
        close(equations.local_scores(v, t, mask, **options), whole[0].detach(), 1e-12)
    with torch.inference_mode():
        close(equations.local_scores(v, t, mask, **options), whole[0].detach(), 1e-12)


@every_form
def test_blocks_that_are_not_cut_as_on_a_gpu_change_nothing(options, monkeypatch):
    v, t, mask = grid(options, images=4, texts=5, regions=6)
    whole = value_and_gradients(lambda: equations.local_scores(v, t, mask, **options), v, t)
    monkeypatch.setattr(blockwise, "on_cpu", lambda _: False)
    monkeypatch.setattr(equations, "block_bytes", lambda *_: 2000)
    for a, b in zip(
        value_and_gradients(lambda: equations.local_scores(v, t, mask, **options), v, t), whole, strict=True
    ):
        close(a, b, 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("options", [FORMS[i] for i in (0, 4, 5, 6, 7)], ids=lambda o: "-".join(map(str, o.values())))
def test_the_pair_scores_compile_as_one_graph(options, monkeypatch):
    """With the written backward; as on a GPU, since the CPU's cutting reads the lengths of the reports.

    To code that runs in one form, and else to the graphs of both directions, which are run as they are.
    """
    monkeypatch.setattr(blockwise, "on_cpu", lambda x: False)
    v, t, mask = grid(options, dtype=torch.float32)

    def scores(v, t):
        return equations.local_scores(v, t, mask, **options)

    backend = "inductor" if options == FORMS[0] else "aot_eager"
    compiled = torch.compile(scores, fullgraph=True, backend=backend)
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


@every_form
def test_a_report_without_words_scores_zero_without_gradient(options):
    v, t, mask = grid(options)
    mask[2] = False
    with torch.no_grad():
        t[2] = 0.0
    for budget in (0, 2**30):
        call = lambda b=budget: equations.local_scores(v, t, mask, **options, byte_budget=b)  # noqa: E731  # a thunk
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


@every_form
def test_scores_are_float32_under_autocast(options):
    v, t, mask = grid(options, dtype=torch.float32)
    expected = value_and_gradients(lambda: equations.local_scores(v, t, mask, **options), v, t)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = equations.local_scores(v, t, mask, **options)
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


@pytest.mark.parametrize("form", ["unit", "raw", "softmax", "scan"])
def test_region_attention_is_the_one_that_scores(form):
    v, t, mask = grid({"attention": form}, images=5)
    attention = region_attention(v, t, mask, SHARPNESS[form], form)
    assert attention.shape == (5, 6, 9)
    for b in range(5):
        close(attention[b][mask[b]], twins.attend(t[b][mask[b]] @ v[b].T, form, SHARPNESS[form]))
    assert torch.all(attention[~mask] == 0)
    close(attention.sum(-1), mask.double())


def test_unit_attention_cannot_be_sharp_and_the_others_can():
    """With cosines, the soft-max over 60 words leaves the most attended region at most 1.55 times the least."""
    v = torch.eye(8).unsqueeze(0)
    t = torch.eye(8)[torch.arange(60) % 8].unsqueeze(0)
    mask = torch.ones(1, 60, dtype=torch.bool)
    flat = region_attention(v, t, mask)
    assert flat.max() / flat.min() < 1.55
    assert attention_entropy(flat, mask) > 0.99
    assert attention_entropy(region_attention(v, 10 * t, mask, 1.0, "softmax"), mask) < 0.01
    assert attention_entropy(region_attention(v, 40 * t, mask, 20.0, "raw"), mask) < 0.99 * attention_entropy(
        flat, mask
    )


def test_entropy_is_that_of_real_words():
    attention = torch.tensor([[[0.25] * 4, [1.0, 0, 0, 0], [0.0] * 4], [[0.5, 0.5, 0, 0], [0.0] * 4, [0.0] * 4]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert attention_entropy(attention, mask).item() == pytest.approx(0.5)  # the reports' means are both 1/2
    assert attention_entropy(attention, torch.zeros_like(mask)).item() == 0
    assert attention_entropy(torch.ones(1, 1, 1), torch.ones(1, 1, dtype=torch.bool)).item() == 0


def test_logmeanexp_does_not_count_words():
    v, t, mask = grid()
    once = equations.local_scores(v, t, mask, pooling="logmeanexp")
    twice = equations.local_scores(v, t.repeat(1, 2, 1), mask.repeat(1, 2), pooling="logsumexp", attention="softmax")
    softmax = equations.local_scores(v, t, mask, pooling="logsumexp", attention="softmax")
    close(twice - softmax, torch.full_like(once, math.log(2) / 5))
    close(equations.local_scores(v, t, mask) - once, mask.sum(1).double().log().expand_as(once) / 5)


# The head -------------------------------------------------------------------------------------------------------------


@every_form
def test_the_head_trains_and_ranks_by_the_published_scores(options):
    form = options.get("attention", "unit")
    step, raw = twins.Step("local_pooling", {"attention": form} | options | SCALES[form]).double(), twins.raw_batch()
    image, text = step.embed(raw)
    assert (text.tokens[raw.mask].norm(dim=-1) - 1).abs().max() < 1e-6 or form == "raw"
    words = text.tokens * {"raw": 1.0, "softmax": 20.0}.get(form, 1.0)
    local = twins.local_scores(image.tokens, words, text.mask, *twin_of(options))
    cosine = image.pooled @ text.pooled.T
    terms = losses(step, raw)
    close(terms["local"], twins.info_nce(10 * 5 * local, raw.hash, 0.5), 1e-6)
    close(terms["global"], twins.info_nce(10 * cosine, raw.hash, 0.5), 1e-6)
    close(step.head.similarity(image, text), cosine + local, 1e-6)


def test_evaluation_may_pool_otherwise():
    raw = twins.raw_batch()
    step = twins.Step("local_pooling", {"attention": "unit", "score_pooling": "best_word"}).double()
    image, text = step.embed(raw)
    best = equations.local_scores(image.tokens, text.tokens, text.mask, pooling="best_word")
    close(step.head.local_scores(image, text), best)
    close(step.head.similarity(image, text), image.pooled @ text.pooled.T + best)
    close(
        losses(step, raw)["local"],
        losses(twins.Step("local_pooling", {"attention": "unit"}).double(), raw)["local"],
        1e-12,
    )


@pytest.mark.parametrize("form", ["unit", "raw", "softmax", "scan"])
def test_the_head_grounds_words_and_says_how_flat_its_attention_is(form):
    step, raw = twins.Step("local_pooling", {"attention": form}).double(), twins.raw_batch()
    assert isinstance(step.head, Grounds)
    assert not isinstance(twins.Step("global", {}).head, Grounds)
    heatmap = step.head.heatmap(*step.embed(raw))
    assert heatmap.shape == (8, 6, 9)
    close(heatmap.sum(-1), raw.mask.double())
    entropy = losses(step, raw)["attention_entropy"]
    close(entropy, attention_entropy(heatmap, raw.mask))
    assert not entropy.requires_grad
    assert step.head.weights["attention_entropy"] == 0


@pytest.mark.parametrize(("form", "start"), [("softmax", 0.1), ("raw", 1.0)])
def test_the_temperature_of_the_attention_learns(form, start):
    step, raw = twins.Step("local_pooling", {"attention": form}).double(), twins.raw_batch()
    assert step.head.attention_scale.temperature.item() == pytest.approx(start)
    losses(step, raw)["local"].backward()
    assert step.head.attention_scale.log_scale.grad.abs() > 1e-4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention": "softmax", "region_scale": 4.0}, "attention softmax has not; set attention_temperature"),
        ({"attention": "unit", "attention_temperature": 0.1}, "attention unit has not"),
        ({"region_scale": 4.0}, "set attention_temperature, or attention: unit .the default of older releases."),
        ({"attention": "softmax", "attention_temperature": 0.0}, "attention_temperature is 0.0; give a number of 0.01"),
        ({"pooling": "max", "attention": "raw"}, "attention is raw, but pooling max has none"),
        ({"score_pooling": "max"}, "score_pooling is max and pooling logsumexp"),
    ],
)
def test_arguments_that_contradict_each_other_are_named(options, message):
    with pytest.raises(ConfigError, match=f"head local_pooling: .*{message}"):
        twins.HEADS["local_pooling"](twins.DIMS, **options)


def test_attention_can_be_sharp_unless_it_is_asked_to_be_flat():
    assert twins.HEADS["local_pooling"](twins.DIMS).attention == "softmax"
    assert twins.HEADS["local_pooling"](twins.DIMS, pooling="max").attention_scale is None  # max has no attention
