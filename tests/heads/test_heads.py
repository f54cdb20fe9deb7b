"""What every head must hold to, and what is each one's own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import twins
from head_contract import PROPERTIES, close, losses

from diptych.errors import ConfigError
from diptych_heads.global_ import Global
from diptych_heads.local_pooling import LocalPooling

VARIANTS = [
    ("global", {}),
    ("global", {"loss": "sigmoid", "projection": "mlp"}),
    ("global", {"image_pooling": "query"}),
    ("local_pooling", {"learn_scale": True}),
    ("local_pooling", {"pooling": "mean", "learn_scale": True}),
    ("local_pooling", {"pooling": "max", "learn_scale": True}),
    ("local_pooling", {"pooling": "mean", "attention": "softmax", "learn_scale": True}),
    ("local_pooling", {"pooling": "logmeanexp", "attention": "raw", "learn_scale": True}),
    ("local_pooling", {"pooling": "best_word", "attention": "scan", "learn_scale": True}),
]
NAMES = [f"{head}-{'-'.join(map(str, options.values()))}" for head, options in VARIANTS]
every_head = pytest.mark.parametrize(("name", "options"), VARIANTS, ids=NAMES)


@pytest.mark.parametrize("holds", PROPERTIES, ids=lambda holds: holds.__name__)
@every_head
def test_what_every_head_must_hold_to(holds, name, options):
    holds(name, options)


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
    actual = torch.cat([p.grad.flatten() for p in step.parameters() if p.grad is not None])
    expected = torch.cat([g.flatten() for g in gradients.values()])
    assert (actual - expected).norm() < 0.05 * expected.norm()


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


def test_a_query_knows_where_a_region_is():
    step, raw = twins.Step("global", {"image_pooling": "query"}).double(), twins.raw_batch()
    image, _ = step.features(raw)
    other = replace(image, tokens=image.tokens.flip(1))
    assert (step.head.embed_image(other).pooled - step.head.embed_image(image).pooled).norm() > 1e-3
    plain = twins.Step("global", {}).double()
    close(plain.head.embed_image(other).pooled, plain.head.embed_image(image).pooled)


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


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("global", {"temperature": 0.0}, "temperature is 0.0"),
        ("global", {"image_weight": 1.5}, "image_weight is 1.5"),
        ("local_pooling", {"attention": "unit", "region_scale": 50.0}, "region_scale is 50.0.*up to 20"),
        ("local_pooling", {"scale": 0.0}, "scale is 0.0"),
        ("local_pooling", {"byte_budget": -1}, "byte_budget is -1"),
    ],
)
def test_values_out_of_range_are_named(name, options, message):
    with pytest.raises(ConfigError, match=f"head {name}: {message}"):
        twins.HEADS[name](twins.DIMS, **options)
