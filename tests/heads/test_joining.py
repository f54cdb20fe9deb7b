"""``joining``: how the global and the local score become one, for every head that has both."""

from __future__ import annotations

import head_contract
import pytest
import torch
import twins
from head_contract import close

from diptych.errors import ConfigError
from diptych.head import ScoresMatchings

HEADS = {
    "local_pooling": {"pooling": "mean", "attention": "softmax"},
    "reclf": {"matching_width": 12, "attention": "softmax", "global_node": True},
    "pcma": {"cce": 0.0, "least_words": 2},
}
every_head = pytest.mark.parametrize("head", HEADS)
both_learned = pytest.mark.parametrize("joining", ["learned", "joint"])


def step(head, joining, **options):
    made = twins.Step(head, HEADS[head] | options | {"joining": joining}).double()
    if joining != "sum":
        with torch.no_grad():
            made.head.join.local_scale.log_scale.fill_(3.0)  # neither the start nor the scale of the head
    return made


def parts(made, raw):
    image, text = made.embed(raw)
    near = made.head.global_scores(image, text) if hasattr(made.head, "global_scores") else image.pooled @ text.pooled.T
    return near, made.head.local_scores(image, text)


@every_head
def test_sum_adds_the_parts_and_contrasts_each(head):
    made, raw = step(head, "sum"), twins.raw_batch()
    near, local = parts(made, raw)
    close(made.head.similarity(*made.embed(raw)), near + local)
    assert "whole" not in head_contract.losses(made, raw)
    assert made.head.join.local_scale is None


@every_head
@both_learned
def test_a_learned_weight_is_the_ratio_of_the_scales(head, joining):
    made, raw = step(head, joining), twins.raw_batch()
    near, local = parts(made, raw)
    scale, local_scale = made.head.scale().detach(), torch.tensor(3.0, dtype=torch.float64).exp()
    assert isinstance(made.head, ScoresMatchings)
    close(made.head.similarity(*made.embed(raw)), near + local_scale / scale * local)
    terms = head_contract.losses(made, raw)
    if joining == "joint":
        close(terms["whole"], twins.info_nce(scale * near + local_scale * local, raw.hash, 0.5))
        assert made.head.weights["whole"] == 1
        assert not terms.keys() & {"global", "local", "inter"}
    else:
        close(terms["global"], twins.info_nce(scale * near, raw.hash, 0.5))
        close(terms["inter" if head == "pcma" else "local"], twins.info_nce(local_scale * local, raw.hash, 0.5))
    made.zero_grad()
    sum(made.head.weights[name] * term for name, term in terms.items()).backward()
    assert made.head.join.local_scale.log_scale.grad.abs() > 1e-6


@every_head
@both_learned
@pytest.mark.parametrize("holds", head_contract.PROPERTIES, ids=lambda holds: holds.__name__)
def test_what_every_head_must_hold_to(holds, head, joining):
    options = HEADS[head] | {"joining": joining}
    if head == "local_pooling":
        options["learn_scale"] = True
    holds(head, options)


@pytest.mark.parametrize("world", [2, 4])
@every_head
@both_learned
def test_every_gradient_equals_one_process(processes, world, head, joining):
    raw, options = twins.raw_batch(), HEADS[head] | {"joining": joining}
    loss, expected = twins.gradients(twins.Step(head, options).double(), raw)
    results = processes.run(world, twins.task_gradients, head, options, raw)
    assert sum(value for value, _ in results) / world == pytest.approx(loss, rel=1e-10)
    for _, gradients in results:
        assert gradients.keys() == expected.keys()
        for name, gradient in expected.items():
            assert (gradients[name] - gradient).norm() <= 1e-9 * gradient.norm() + 1e-13, name


@every_head
def test_an_unknown_joining_is_refused(head):
    with pytest.raises(ConfigError, match=f"head {head}: joining is 'mean'; choose among: sum, learned, joint"):
        twins.HEADS[head](twins.DIMS, joining="mean")
