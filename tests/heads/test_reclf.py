"""``reclf`` against a slow twin written from the equations, its properties, and what its byte budget may change: nothing."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import head_contract
import mini
import numpy as np
import pytest
import torch
import twins
from head_contract import close
from reclf_twins import (
    compare,
    contexts,
    every_variant,
    importance,
    reason,
    same,
    some_variants,
    step,
    twin,
    twin_global,
    unit,
    value_and_gradients,
)
from torch import nn

from diptych.data.datamodule import Sample
from diptych.errors import ConfigError
from diptych.head import Grounds
from diptych.model.inference import TrainedModel
from diptych.model.module import AlignmentModule
from diptych.nn import functional
from diptych.towers.image import TimmImage
from diptych.towers.text import ScratchText
from diptych.types import TokenEmbedding
from diptych_heads.reclf import Reclf


@every_variant
def test_scores_and_every_gradient_equal_the_slow_twin(options):
    model, raw = step(options), twins.raw_batch(pairs=5)
    actual = value_and_gradients(model, model.head.local_scores(*model.embed(raw)))
    expected = value_and_gradients(model, twin(dict(model.head.named_parameters()), options, *model.embed(raw)))
    assert actual[0].std() > 1e-3
    same(actual, expected, 1e-9)
    image, text = model.embed(raw)
    pooled = twin_global(dict(model.head.named_parameters()), options, image, text)
    close(model.head.similarity(image, text), pooled + expected[0])
    terms = head_contract.losses(model, raw)
    close(terms["local"], twins.info_nce(model.head.scale() * expected[0], raw.hash, 0.5))
    close(terms["global"], twins.info_nce(model.head.scale() * pooled, raw.hash, 0.5))
    actual = value_and_gradients(model, model.head.global_scores(*model.embed(raw)))
    expected = value_and_gradients(model, twin_global(dict(model.head.named_parameters()), options, *model.embed(raw)))
    same(actual, expected, 1e-9)


@every_variant
def test_local_scores_read_no_pooled_vector(options):
    """Another image's pooled vector changes nothing, and another image's regions change every score."""
    model, raw = step(options), twins.raw_batch()
    image, text = model.embed(raw)
    scores, other = model.head.local_scores(image, text), torch.arange(8).roll(1)
    exchanged = replace(image, pooled=image.pooled[other]), replace(text, pooled=text.pooled[other])
    assert torch.equal(model.head.local_scores(*exchanged), scores)
    assert not torch.isclose(model.head.local_scores(replace(image, tokens=image.tokens[other]), text), scores).any()


def test_mode_none_is_the_mean_of_the_matchings():
    model, raw = step({"mode": "none", "global_node": False, "cosine_scale": 0.0}), twins.raw_batch(pairs=3)
    image, text = model.embed(raw)
    head, (v, t) = model.head, (image.tokens[1], text.tokens[2][text.mask[2]])
    local = head.local_matching.weight, head.local_matching.bias
    seen = contexts(v, t, "softmax", head.attention_scale())
    plain = sum(compare(x, w, *local, "sqdiff") for x, w in zip(seen, t, strict=True))
    close(head.local_scores(image, text)[1, 2], torch.dot(head.score.weight[0], unit(plain / len(t))))


# What every head must hold to ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("holds", head_contract.PROPERTIES, ids=lambda holds: holds.__name__)
@every_variant
def test_what_every_head_must_hold_to(holds, options):
    holds("reclf", options)


@every_variant
def test_one_word_and_no_word_in_a_batch_by_themselves(options):
    model, raw = step(options), twins.raw_batch()
    for words in (1, 0):
        raw = replace(raw, mask=torch.arange(6).expand(8, 6) < words)
        total = sum(head_contract.losses(model, raw).values())
        model.zero_grad()
        total.backward()
        assert total.isfinite()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@every_variant
def test_bfloat16_autocast_stays_near_float32(options):
    raw, model = twins.raw_batch(dtype=torch.float32), step(options, torch.float32)
    plain, (image, text) = head_contract.losses(model, raw), model.embed(raw)
    scores = model.head.local_scores(image, text)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = head_contract.losses(model, raw)
        assert torch.equal(model.head.local_scores(image, text), scores)  # float32 whatever autocast says
        assert model.head.similarity(*model.embed(raw)).dtype == torch.float32
    sum(mixed.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    for term, value in plain.items():
        assert mixed[term].dtype == torch.float32
        assert abs(mixed[term].item() - value.item()) < 1e-2 * value.item(), term


def test_equal_reports_are_not_negatives_of_each_other():
    model, raw = step({}), twins.raw_batch()
    everyone = replace(raw, hash=torch.arange(8))
    assert head_contract.losses(model, everyone)["local"] > head_contract.losses(model, raw)["local"]
    one = replace(raw, hash=torch.zeros(8, dtype=torch.int64))
    assert head_contract.losses(model, one)["local"].item() == 0


# Processes -----------------------------------------------------------------------------------------------------------


POOLED = {"image.weight", "image.bias", "text.weight", "text.bias", "head.global_score.weight"}
POOLED |= {
    f"head.{part}.{name}"
    for part in ("image_projection", "text_projection", "global_matching", "global_score")
    for name in ("weight", "bias")
}


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("term", ["global", "local"])
@some_variants
def test_each_term_and_every_gradient_equal_one_process(processes, world, term, options):
    raw = twins.raw_batch()
    other = {"global": "local_weight", "local": "global_weight"}[term]
    options = {"matching_width": 12, **options, other: 0.0}
    loss, expected = twins.gradients(twins.Step("reclf", options).double(), raw)
    results = processes.run(world, twins.task_gradients, "reclf", options, raw)
    assert sum(value for value, _ in results) / world == pytest.approx(loss, rel=1e-10)
    for _, gradients in results:
        assert gradients.keys() == expected.keys()
        for name, gradient in expected.items():
            assert (gradients[name] - gradient).norm() <= 1e-9 * gradient.norm() + 1e-13, name
    exercised = {name for name, gradient in expected.items() if gradient.norm() > 1e-9}
    if term == "global":
        assert not {name for name in exercised if "region" in name or "word" in name or "semantic" in name}
    else:
        unread = expected.keys() & POOLED
        if not options.get("readout_norm", True):  # the last norm then adds the same to all scores
            unread |= {f"head.semantic.{options.get('steps', 3) - 1}.norm.bias"}
        assert expected.keys() - exercised == unread


def test_each_pair_is_scored_once_over_the_job(gloo2):
    assert sum(gloo2(twins.task_pairs_scored, "reclf", {}, twins.raw_batch())) == 8 * 8


# Grounding and importance --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["unit", "scan"])
def test_words_are_grounded(attention):
    model, raw = step({"attention": attention}), twins.raw_batch()
    assert isinstance(model.head, Grounds)
    image, text = model.embed(raw)
    heatmap = model.head.heatmap(image, text)
    assert heatmap.shape == (8, 6, 9)
    close(heatmap.sum(-1), raw.mask.double())
    mapped = [unit(a @ image.tokens[2]) for a in heatmap[2][raw.mask[2]]]
    close(torch.stack(mapped), torch.stack(contexts(image.tokens[2], text.tokens[2][raw.mask[2]], attention)))


def test_the_older_name_of_the_attention():
    assert Reclf(twins.DIMS, attention="gloria").attention == "unit"


@pytest.mark.parametrize("mode", ["cascade", "parallel", "irm"])
def test_importance_is_the_weight_that_a_word_has_in_the_score(mode):
    model, raw = step({"mode": mode}), twins.raw_batch()
    image, text = model.embed(raw)
    weights = model.head.importance(image, text)
    assert weights.shape == (8, 6)
    assert torch.all(weights[~raw.mask] == 0)
    assert torch.all(weights[raw.mask] > 0)
    p, v, t = dict(model.head.named_parameters()), image.tokens[2], text.tokens[2][raw.mask[2]]
    local = p["local_matching.weight"], p["local_matching.bias"]
    seen = contexts(v, t, "softmax", model.head.attention_scale())
    nodes = [compare(x, w, *local, "sqdiff") for x, w in zip(seen, t, strict=True)]
    for index in range(3) if mode == "cascade" else ():
        nodes = reason(nodes, p, f"semantic.{index}", None)
    gate = (p[f"importance_gate.{name}"] for name in ("gate.weight", "gain", "shift"))
    close(weights[2][raw.mask[2]], importance(nodes, *gate))
    close(weights.sum(1), torch.ones(8, dtype=torch.float64))


@pytest.mark.parametrize("mode", ["srm", "none"])
def test_a_mode_without_importance_says_so(mode):
    model, raw = step({"mode": mode}), twins.raw_batch()
    with pytest.raises(ConfigError, match=f"head reclf: mode {mode} weighs no words"):
        model.head.importance(*model.embed(raw))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention": "unit", "region_scale": 50.0}, "region_scale is 50.0.*up to 20"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"steps": 0}, "steps is 0; give 1 or more, or mode irm or none"),
        ({"cosine_scale": -1.0}, "cosine_scale is -1.0"),
        ({"byte_budget": -1}, "byte_budget is -1"),
    ],
)
def test_values_out_of_range_are_named(options, message):
    with pytest.raises(ConfigError, match=f"head reclf: {message}"):
        twins.HEADS["reclf"](twins.DIMS, **options)


@pytest.mark.parametrize("residual", [True, False])
def test_only_with_the_residual_nodes_stay_apart(residual):
    """Why ``residual`` is the default: without it nothing is left to weigh after two steps."""
    torch.manual_seed(0)
    head = twins.HEADS["reclf"](twins.DIMS, width=32, matching_width=64, residual=residual)
    image, text = (functional.unit(torch.randn(6, 20, 32)) for _ in range(2))
    everywhere = torch.ones(6, 20, dtype=torch.bool)
    weights = head.importance(
        TokenEmbedding(image[:, 0], image, everywhere), TokenEmbedding(text[:, 0], text, everywhere)
    )
    assert (weights.std(1) / weights.mean(1) > 0.1).all() == residual
    assert (weights.std(1) / weights.mean(1) < 1e-3).all() != residual


# What the modules are for --------------------------------------------------------------------------------------------


def test_the_gate_learns_which_words_count():
    """Reports of one telling word among fillers that look alike everywhere: the IRM learns to weigh the telling one."""
    torch.manual_seed(0)
    head = twins.HEADS["reclf"](
        twins.DIMS._replace(image_tokens=12, text_tokens=12), width=12, matching_width=16, mode="irm", global_node=False
    )
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.02)
    things, fillers = torch.eye(12)[:6], torch.eye(12)[6:]

    def draw():
        """Eight distinct pairs: an image shows one thing in noise, its report names it at a random place."""
        which = torch.randint(6, (8,), generator=generator)
        regions = 0.1 * torch.randn(8, 4, 12, generator=generator)
        regions[:, 1] += things[which]
        words = fillers[torch.randint(6, (8, 5), generator=generator)]
        place = torch.randint(5, (8,), generator=generator)
        words[torch.arange(8), place] = things[which]
        pooled = nn.functional.normalize(torch.ones(8, 12), dim=-1)
        image = TokenEmbedding(pooled, nn.functional.normalize(regions, dim=-1), torch.ones(8, 4, dtype=torch.bool))
        return image, TokenEmbedding(pooled, words, torch.ones(8, 5, dtype=torch.bool)), which, place

    for _ in range(150):
        image, text, which, _ = draw()
        scores = 14.0 * head.local_scores(image, text)
        loss = functional.info_nce(scores, which)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    image, text, _, place = draw()
    weights = head.importance(image, text)
    telling = torch.zeros_like(weights, dtype=torch.bool)
    telling[torch.arange(8), place] = True
    above = (weights[telling].unsqueeze(1) > weights[~telling]).double().mean()
    assert 2 * above - 1 >= 0.5  # rank-biserial correlation


def test_words_are_seen_with_their_weights():
    torch.manual_seed(0)
    text = ScratchText(**mini.TEXT)
    text.tokenizer.learn(["There is an effusion. No nodule is seen."])
    heads = {mode: partial(Reclf, width=16, matching_width=8, mode=mode) for mode in ("cascade", "none")}
    weighing, plain = (
        TrainedModel(AlignmentModule(TimmImage(**mini.IMAGE, stage=2), text, head), 32) for head in heads.values()
    )
    sample = Sample(np.random.default_rng(0).integers(0, 255, (48, 40)).astype(np.uint8), "There is an effusion.")
    weights = weighing.importance(sample.image, sample.text)
    assert weights.shape == (4,)
    assert weights.sum() == pytest.approx(1)
    assert np.array_equal(weighing.look(sample.image, sample.text).weights, weights)
    assert plain.look(sample.image, sample.text).weights is None
    with pytest.raises(ConfigError, match="the head Reclf weighs no words"):
        plain.importance(sample.image, sample.text)
