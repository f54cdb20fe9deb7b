"""What every head must hold to, and what is each one's own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import twins
from torch import nn

from diptych.errors import ConfigError
from diptych.head import Grounds, gather_pairs
from diptych.types import Pairs
from diptych_heads.global_ import Global
from diptych_heads.local_pooling import LocalPooling

VARIANTS = [
    ("global", {}),
    ("global", {"loss": "sigmoid", "projection": "mlp"}),
    ("local_pooling", {"learn_scale": True}),
    ("local_pooling", {"pooling": "mean", "learn_scale": True}),
    ("local_pooling", {"pooling": "max", "learn_scale": True}),
]
NAMES = [f"{head}-{'-'.join(map(str, options.values()))}" for head, options in VARIANTS]
every_head = pytest.mark.parametrize(("name", "options"), VARIANTS, ids=NAMES)


def close(a, b, tolerance=1e-9):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def losses(step, raw):
    image, text = step.embed(raw)
    here = Pairs(image, text, torch.arange(len(raw.hash)), raw.hash)
    return step.head.losses(here, gather_pairs(step.head, here))


@every_head
def test_terms_have_weights_and_shapes_are_as_promised(name, options):
    step, raw = twins.Step(name, options).double(), twins.raw_batch()
    terms = losses(step, raw)
    assert terms.keys() == step.head.weights.keys()
    assert all(term.shape == () and term > 0 for term in terms.values())
    image, text = step.embed(raw)
    assert step.head.similarity(image, text.select(torch.arange(3))).shape == (8, 3)
    close(image.pooled.norm(dim=-1), torch.ones(8, dtype=torch.float64))
    assert step.head.paper


@every_head
def test_padding_changes_neither_losses_nor_similarity(name, options):
    step, raw = twins.Step(name, options).double(), twins.raw_batch()
    padding = torch.randn(8, 5, 3, dtype=torch.float64)
    padded = replace(raw, text=torch.cat([raw.text, padding], 1), mask=nn.functional.pad(raw.mask, (0, 5)))
    assert padded.mask.shape == (8, 11)
    for term, value in losses(step, raw).items():
        close(losses(step, padded)[term], value, 1e-12)
    close(step.head.similarity(*step.embed(padded)), step.head.similarity(*step.embed(raw)), 1e-12)


@every_head
def test_order_and_batches_change_no_similarity(name, options):
    step, raw = twins.Step(name, options).double(), twins.raw_batch()
    image, text = step.embed(raw)
    whole = step.head.similarity(image, text)
    order = torch.tensor([5, 2, 7, 0, 1, 6, 3, 4])
    close(step.head.similarity(image.select(order), text), whole[order], 1e-12)
    close(step.head.similarity(image, text.select(order)), whole[:, order], 1e-12)
    parts = [
        torch.cat([step.head.similarity(image.select(i), text.select(c)) for c in torch.arange(8).split(3)], 1)
        for i in torch.arange(8).split(5)
    ]
    close(torch.cat(parts), whole, 1e-12)
    with torch.no_grad():
        close(step.head.similarity(image, text), whole.detach(), 1e-12)


@every_head
def test_the_temperature_learns_is_shown_and_is_clamped(name, options):
    step, raw = twins.Step(name, options).double(), twins.raw_batch()
    sum(losses(step, raw).values()).backward()
    assert step.head.scale.log_scale.grad.abs() > 1e-4
    with torch.no_grad():
        step.head.scale.log_scale.fill_(50.0)
    assert all(term.isfinite() for term in losses(step, raw).values())
    assert step.head.temperature.item() == pytest.approx(0.01)
    assert not step.head.temperature.requires_grad


@every_head
def test_one_pair(name, options):
    step = twins.Step(name, options).double()
    raw = twins.raw_batch().rows(slice(0, 1))
    total = sum(losses(step, raw).values())
    total.backward()
    assert total.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in step.parameters())


@every_head
def test_reports_without_words_or_of_one_do_no_harm(name, options):
    for report, words in ((3, 0), (slice(None), 1), (slice(None), 0)):
        step, raw = twins.Step(name, options).double(), twins.raw_batch()
        raw.mask[report, words:] = False
        total = sum(losses(step, raw).values())
        total.backward()
        assert total.isfinite()
        assert all(p.grad is None or p.grad.isfinite().all() for p in step.parameters())


@every_head
def test_bfloat16_autocast_stays_near_float32(name, options):
    raw = twins.raw_batch(dtype=torch.float32)
    step = twins.Step(name, options)
    plain = sum(losses(step, raw).values())
    plain.backward()
    gradients = {n: p.grad.clone() for n, p in step.named_parameters() if p.grad is not None}
    step.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = sum(losses(step, raw).values())
        assert step.head.similarity(*step.embed(raw)).dtype == torch.float32
    mixed.backward()
    assert mixed.dtype == torch.float32
    assert abs(mixed.item() - plain.item()) < 1e-2 * plain.item()
    found = torch.cat([p.grad.flatten() for p in step.parameters() if p.grad is not None])
    expected = torch.cat([g.flatten() for g in gradients.values()])
    assert (found - expected).norm() < 0.05 * expected.norm()


@every_head
def test_undeclared_fields_are_empty_in_the_world_on_one_process_too(name, options):
    step, raw = twins.Step(name, options).double(), twins.raw_batch()
    image, text = step.embed(raw)
    world = gather_pairs(step.head, Pairs(image, text, torch.arange(8), raw.hash, labels=torch.zeros(8, 2)))
    for panel, embedding in (("image", world.image), ("text", world.text)):
        for field in vars(embedding):
            declared = f"{panel}.{field}" in step.head.gathers
            assert (getattr(embedding, field).numel() > 0) == declared, field
    assert world.targets.tolist() == list(range(8))
    assert world.labels.shape == (8, 2)


def test_a_head_that_forgets_to_declare_a_field_fails_on_one_process(monkeypatch):
    monkeypatch.setattr(LocalPooling, "gathers", frozenset({"text.pooled", "text.mask"}))
    step, raw = twins.Step("local_pooling", {}).double(), twins.raw_batch()
    with pytest.raises((RuntimeError, IndexError)):
        losses(step, raw)


def test_a_head_that_declares_a_field_it_lacks_is_named(monkeypatch):
    monkeypatch.setattr(Global, "gathers", frozenset({"text.tokens"}))
    step, raw = twins.Step("global", {}).double(), twins.raw_batch()
    with pytest.raises(ConfigError, match=r"head Global: gathers names text\.tokens"):
        losses(step, raw)


def test_equal_reports_are_not_negatives_of_each_other():
    step, raw = twins.Step("global", {}).double(), twins.raw_batch()
    image, text = step.embed(raw)
    logits = image.pooled @ text.pooled.T / 0.07
    close(losses(step, raw)["global"], twins.info_nce(logits, raw.hash, 0.5), 1e-6)
    alone = replace(raw, hash=torch.arange(8))
    close(losses(step, alone)["global"], twins.info_nce(logits, torch.arange(8), 0.5), 1e-6)
    assert losses(step, alone)["global"] > losses(step, raw)["global"]


def test_global_weighs_directions_and_sigmoid_has_a_bias():
    raw = twins.raw_batch()
    step = twins.Step("global", {"image_weight": 0.75, "temperature": 0.1}).double()
    image, text = step.embed(raw)
    close(losses(step, raw)["global"], twins.info_nce(image.pooled @ text.pooled.T / 0.1, raw.hash, 0.75), 1e-6)
    step = twins.Step("global", {"loss": "sigmoid"}).double()
    image, text = step.embed(raw)
    logits = step.head.scale() * image.pooled @ text.pooled.T - 10
    close(losses(step, raw)["global"], twins.sigmoid_loss(logits, raw.hash))
    assert step.head.temperature.item() == pytest.approx(0.1)


@pytest.mark.parametrize("pooling", ["logsumexp", "mean", "max"])
def test_local_pooling_trains_and_ranks_by_the_published_scores(pooling):
    step, raw = twins.Step("local_pooling", {"pooling": pooling}).double(), twins.raw_batch()
    image, text = step.embed(raw)
    local = twins.local_scores(image.tokens, text.tokens, text.mask, pooling)
    cosine = image.pooled @ text.pooled.T
    found = losses(step, raw)
    close(found["local"], twins.info_nce(10 * 5 * local, raw.hash, 0.5), 1e-6)
    close(found["global"], twins.info_nce(10 * cosine, raw.hash, 0.5), 1e-6)
    close(step.head.similarity(image, text), (cosine + local) / 2)


def test_local_pooling_grounds_words():
    step, raw = twins.Step("local_pooling", {}).double(), twins.raw_batch()
    assert isinstance(step.head, Grounds)
    assert not isinstance(twins.Step("global", {}).head, Grounds)
    heatmap = step.head.heatmap(*step.embed(raw))
    assert heatmap.shape == (8, 6, 9)
    close(heatmap.sum(-1), raw.mask.double())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("global", {"temperature": 0.0}, "temperature is 0.0"),
        ("global", {"image_weight": 1.5}, "image_weight is 1.5"),
        ("local_pooling", {"region_scale": 50.0}, "region_scale is 50.0.*up to 20"),
        ("local_pooling", {"scale": 0.0}, "scale is 0.0"),
        ("local_pooling", {"byte_budget": -1}, "byte_budget is -1"),
    ],
)
def test_values_out_of_range_are_named(name, options, message):
    with pytest.raises(ConfigError, match=f"head {name}: {message}"):
        twins.HEADS[name](twins.DIMS, **options)
