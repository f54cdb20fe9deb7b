"""What every head must hold to: each function takes a head's name and options."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import twins
from torch import nn

from diptych.head import gather_pairs
from diptych.types import Pairs


def close(a, b, tolerance=1e-9):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def losses(step, raw):
    image, text = step.embed(raw)
    here = Pairs(image, text, torch.arange(len(raw.hash)), raw.hash)
    return step.head.losses(here, gather_pairs(step.head, here))


def terms_have_weights_and_shapes_are_as_promised(name, options):
    step, raw = twins.Step(name, options).double(), twins.raw_batch()
    terms = losses(step, raw)
    assert terms.keys() == step.head.weights.keys()
    assert all(term.shape == () and term > 0 for term in terms.values())
    image, text = step.embed(raw)
    assert step.head.similarity(image, text.select(torch.arange(3))).shape == (8, 3)
    close(image.pooled.norm(dim=-1), torch.ones(8, dtype=torch.float64))
    assert step.head.paper


def padding_changes_neither_losses_nor_similarity(name, options):
    step, raw = twins.Step(name, options).double(), twins.raw_batch()
    padding = torch.randn(8, 5, 3, dtype=torch.float64)
    padded = replace(raw, text=torch.cat([raw.text, padding], 1), mask=nn.functional.pad(raw.mask, (0, 5)))
    assert padded.mask.shape == (8, 11)
    for term, value in losses(step, raw).items():
        close(losses(step, padded)[term], value, 1e-12)
    close(step.head.similarity(*step.embed(padded)), step.head.similarity(*step.embed(raw)), 1e-12)


def order_and_batches_change_no_similarity(name, options):
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


def the_temperature_learns_is_shown_and_is_clamped(name, options):
    step, raw = twins.Step(name, options).double(), twins.raw_batch()
    sum(losses(step, raw).values()).backward()
    assert step.head.scale.log_scale.grad.abs() > 1e-4
    with torch.no_grad():
        step.head.scale.log_scale.fill_(50.0)
    assert all(term.isfinite() for term in losses(step, raw).values())
    assert step.head.temperature.item() == pytest.approx(0.01)
    assert not step.head.temperature.requires_grad


def one_pair(name, options):
    step = twins.Step(name, options).double()
    raw = twins.raw_batch().rows(slice(0, 1))
    total = sum(losses(step, raw).values())
    total.backward()
    assert total.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in step.parameters())


def reports_without_words_or_of_one_do_no_harm(name, options):
    for report, words in ((3, 0), (slice(None), 1), (slice(None), 0)):
        step, raw = twins.Step(name, options).double(), twins.raw_batch()
        raw.mask[report, words:] = False
        total = sum(losses(step, raw).values())
        total.backward()
        assert total.isfinite()
        assert all(p.grad is None or p.grad.isfinite().all() for p in step.parameters())


def undeclared_fields_are_empty_in_the_world_on_one_process_too(name, options):
    step, raw = twins.Step(name, options).double(), twins.raw_batch()
    image, text = step.embed(raw)
    world = gather_pairs(step.head, Pairs(image, text, torch.arange(8), raw.hash, labels=torch.zeros(8, 2)))
    for panel, embedding in (("image", world.image), ("text", world.text)):
        for field in vars(embedding):
            declared = f"{panel}.{field}" in step.head.gathers
            value = getattr(embedding, field)
            assert (value is not None and value.numel() > 0) == declared, field
    assert world.targets.tolist() == list(range(8))
    assert world.labels.shape == (8, 2)


PROPERTIES = [
    terms_have_weights_and_shapes_are_as_promised,
    padding_changes_neither_losses_nor_similarity,
    order_and_batches_change_no_similarity,
    the_temperature_learns_is_shown_and_is_clamped,
    one_pair,
    reports_without_words_or_of_one_do_no_harm,
    undeclared_fields_are_empty_in_the_world_on_one_process_too,
]
