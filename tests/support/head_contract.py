"""The rules of ``diptych.testing`` for heads by name and options, and what only heads of this project must hold to."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import twins

from diptych.head import gather_pairs
from diptych.testing import heads as contract
from diptych.types import Pairs


def close(a, b, tolerance=1e-9):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def losses(step, raw):
    image, text = step.embed(raw)
    here = Pairs(image, text, torch.arange(len(raw.hash)), raw.hash)
    return step.head.losses(here, gather_pairs(step.head, here))


def case(name, options):
    """The head, for a rule of the contract."""
    return contract.HeadCase(partial(twins.HEADS[name], **{"width": 16, **options}), name)


def _kept(rule):
    def holds(name, options):
        rule(case(name, options))

    holds.__name__ = rule.name.replace(" ", "_")
    return holds


def the_temperature_learns_is_shown_and_is_clamped(name, options):
    step, raw = twins.Step(name, options).double(), twins.raw_batch()
    sum(losses(step, raw).values()).backward()
    assert step.head.scale.log_scale.grad.abs() > 1e-4
    with torch.no_grad():
        step.head.scale.log_scale.fill_(50.0)
    assert all(term.isfinite() for term in losses(step, raw).values())
    assert step.head.temperature.item() == pytest.approx(0.01)
    assert not step.head.temperature.requires_grad


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
    *(
        _kept(rule)
        for rule in (
            contract.shapes,
            contract.padding,
            contract.batch_independence,
            contract.equal_reports,
            contract.small_inputs,
        )
    ),
    the_temperature_learns_is_shown_and_is_clamped,
    undeclared_fields_are_empty_in_the_world_on_one_process_too,
]
