"""``cce`` and ``composite``: the term, its control, its randomness, and heads side by side."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pcma_twins as twins
import pytest
import torch
from mini import IMAGE, TEXT
from pcma_twins import DIMS, Step, raw_batch
from torch import nn

from diptych.errors import ConfigError
from diptych.head import Grounds, Observes, ScoresMatchings, WeighsWords, tell_step
from diptych.model.module import AlignmentModule
from diptych.model.stored import build_module
from diptych.nn.functional import sine_code
from diptych.towers.image import TimmImage
from diptych.towers.text import ScratchText
from diptych.types import Features, Pairs
from diptych_heads.cce import Cce, correlation_loss, draw_patches, patch_views
from diptych_heads.composite import Composite
from diptych_heads.global_ import Global
from diptych_heads.local_pooling import LocalPooling
from diptych_heads.mgca import MGCA
from diptych_heads.pcma import Pcma
from diptych_heads.reclf import Reclf

pytestmark = pytest.mark.usefixtures("one_thread")


def close(a, b, tolerance=1e-9):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


# The term ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [1.0, 0.2])
def test_the_loss_equals_its_twin_in_value_and_gradient(beta):
    g = torch.Generator().manual_seed(0)
    predicted = torch.randn(3, 6, 4, generator=g, dtype=torch.float64, requires_grad=True)
    vectors = torch.randn(3, 6, 5, generator=g, dtype=torch.float64)
    masked = draw_patches(torch.arange(3), 6, 0.5, 0)
    loss = correlation_loss(predicted, patch_views(vectors), masked, beta)
    expected = twins.correlation_loss(predicted, vectors, masked, beta)
    close(loss, expected)
    close(torch.autograd.grad(loss, predicted)[0], torch.autograd.grad(expected, predicted)[0])


def test_patches_are_drawn_evenly_and_by_pair_and_step_alone():
    rows = torch.arange(500)
    masked = draw_patches(rows, 49, 0.5, step=7)
    assert (masked.sum(1) == 24).all()
    assert (masked.float().mean(0) - 24 / 49).abs().max() < 0.1  # every place alike: four standard errors
    together = masked.double().T @ masked.double() / 500  # and any two of them
    assert (together - together.diagonal().mean() * 23 / 48)[~torch.eye(49, dtype=torch.bool)].abs().max() < 0.1
    assert torch.equal(draw_patches(rows[100:200], 49, 0.5, step=7), masked[100:200])
    for other in (draw_patches(rows, 49, 0.5, step=8), draw_patches(rows + 1, 49, 0.5, step=7)):
        assert 0.4 < (other == masked).float().mean() < 0.6
    assert draw_patches(rows, 4, 0.01, 0).sum(1).unique().tolist() == [1]
    assert draw_patches(rows, 4, 0.99, 0).sum(1).unique().tolist() == [3]


def test_places_have_codes_of_their_own():
    place = torch.arange(49)
    codes = sine_code(torch.stack([place // 7, place % 7], 1)[None].double(), 16)[0]
    assert codes.shape == (49, 16)
    assert (torch.cdist(codes, codes) + torch.eye(49)).min() > 0.1
    close(codes[0], torch.tensor([0.0] * 4 + [1.0] * 4 + [0.0] * 4 + [1.0] * 4, dtype=torch.float64))


def features(images=2, size=24, grid=(4, 4), dtype=torch.float32):
    g = torch.Generator().manual_seed(1)
    n = grid[0] * grid[1]
    pixels = torch.randn(images, 1, size, size, generator=g, dtype=dtype)
    everywhere = torch.ones(images, n, dtype=torch.bool)
    tokens = torch.randn(images, n, DIMS.image_tokens, generator=g, dtype=dtype)
    return Features(torch.randn(images, DIMS.image, generator=g, dtype=dtype), tokens, everywhere, grid, pixels=pixels)


def test_targets_are_cosines_of_centred_patches():
    image = features()
    views = Cce(DIMS, detail=6).embed_image(image).views  # 24 pixels, 4x4 patches: the pixels themselves
    patches = torch.stack(
        [image.pixels[:, 0, 6 * r : 6 * r + 6, 6 * c : 6 * c + 6].flatten(1) for r in range(4) for c in range(4)], 1
    )
    centred = patches - patches.mean(1, keepdim=True)
    close(
        views @ views.transpose(1, 2),
        nn.functional.cosine_similarity(centred[:, :, None], centred[:, None], dim=-1),
        1e-5,
    )
    own = Cce(DIMS, detail=6, centre="patch").embed_image(image).views
    close((own @ own.transpose(1, 2))[0], torch.corrcoef(patches[0]), 1e-5)
    tokens = Cce(DIMS, source="detached").embed_image(image).views
    close(tokens, patch_views(image.tokens))
    odd = Cce(DIMS).embed_image(features(size=37, grid=(3, 5))).views  # a grid that does not divide the picture
    assert odd.shape == (2, 15, 64)


def test_targets_have_no_gradient_and_the_teacher_follows():
    image = features()
    image.tokens.requires_grad_()
    head = Cce(DIMS, source="ema", decay=0.9)
    assert not head.embed_image(image).views.requires_grad
    before = head.teacher.weight.clone()
    with torch.no_grad():
        head.patches.weight.add_(1.0)
    head.start_step(0, 5, 100)
    head.start_step(0, 5, 100)  # a second batch of the same step
    close(head.teacher.weight, before + 0.1, 1e-6)
    head.start_step(0, 6, 100)
    close(head.teacher.weight, before + 0.19, 1e-6)
    assert "teacher.weight" in head.state_dict()


def test_the_weight_rises_over_the_first_tenth():
    head = Cce(DIMS, weight=2.0)
    weights = []
    for step in range(30):
        head.start_step(0, step, 200)
        weights.append(head.weights["cce"])
    assert weights[:3] == pytest.approx([0.1, 0.2, 0.3])
    assert weights[18:] == pytest.approx([1.9] + [2.0] * 11)
    assert head.weights["cce_shuffled"] == 0
    pcma = Step({"cce_warmup": 0.5}).head
    tell_step(pcma, 0, 0, 10)
    assert pcma.weights["cce"] == pytest.approx(0.2)
    assert pcma.weights["inter"] == 1
    off = Cce(DIMS, warmup=0.0)
    off.start_step(0, 0, 10)
    assert off.weights["cce"] == 1


def test_the_control_reads_a_neighbours_report_and_is_not_trained():
    step, raw = Step({"warmup": 0.0}, "composite").double(), raw_batch(pairs=5)
    terms = step.terms(raw)
    assert not terms["cce.cce_shuffled"].requires_grad
    order = torch.tensor([1, 0, 3, 2, 0])
    swapped = replace(raw, text=raw.text[order], mask=raw.mask[order], sentences=raw.sentences[order])
    close(step.terms(swapped)["cce.cce"], terms["cce.cce_shuffled"], 1e-12)
    assert terms["cce.cce"] != terms["cce.cce_shuffled"]
    one = step.terms(raw.rows(slice(0, 1)))
    close(one["cce.cce"], one["cce.cce_shuffled"], 1e-12)
    assert "cce.cce_shuffled" not in Step({"control": False}, "composite").terms(raw_batch(dtype=torch.float32))


def test_hidden_patches_are_hidden():
    head, image = Cce(DIMS, width=16, heads=2).double(), features(dtype=torch.float64)
    text = head.embed_text(
        Features(image.pooled, torch.randn(2, 3, DIMS.text_tokens).double(), torch.ones(2, 3, dtype=torch.bool))
    )
    rows = torch.tensor([4, 9])
    masked = draw_patches(rows, 16, 0.5, 0)
    changed = replace(image, tokens=torch.where(masked.unsqueeze(-1), 7.0, image.tokens))
    expected = head.terms(head.embed_image(image), text, rows)["cce"]
    close(head.terms(head.embed_image(changed), text, rows)["cce"], expected, 1e-12)
    changed = replace(image, tokens=torch.where(masked.unsqueeze(-1), image.tokens, image.tokens.flip(2)))
    assert head.terms(head.embed_image(changed), text, rows)["cce"] != expected


def test_the_report_lowers_the_loss_where_it_knows_more_than_the_visible_patches():
    """One of four quadrants is bright; the report names it. Half of the patches are hidden, so that it is worth reading."""
    torch.manual_seed(0)
    head = Cce(DIMS, width=32, heads=2, warmup=0.0)
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-3)
    vocabulary = torch.randn(4, DIMS.text_tokens)
    late = []
    for step in range(150):
        quadrant = torch.randint(4, (32,))
        pixels = 0.3 * torch.randn(32, 1, 16, 16)
        for b, q in enumerate(quadrant.tolist()):
            pixels[b, 0, 8 * (q // 2) : 8 * (q // 2) + 8, 8 * (q % 2) : 8 * (q % 2) + 8] += 2
        silent = torch.zeros(32, 16, DIMS.image_tokens)  # the tower's vectors tell nothing: only the report can
        image = Features(
            torch.ones(32, DIMS.image), silent, torch.ones(32, 16, dtype=torch.bool), (4, 4), pixels=pixels
        )
        words = vocabulary[quadrant].unsqueeze(1)
        text = Features(torch.ones(32, DIMS.text), words, torch.ones(32, 1, dtype=torch.bool))
        head.start_step(0, step, 150)
        terms = head.terms(head.embed_image(image), head.embed_text(text), torch.arange(32))
        optimizer.zero_grad()
        terms["cce"].backward()
        optimizer.step()
        if step >= 140:
            late.append([terms["cce"].item(), terms["cce_shuffled"].item()])
    own, shuffled = torch.tensor(late).mean(0).tolist()
    assert own < 0.6 * shuffled


def test_cce_alone_scores_nothing_and_says_what_to_do():
    head, image = Cce(DIMS), features()
    with pytest.raises(ConfigError, match=r"scores no pair; train it beside one, as composite"):
        head.similarity(head.embed_image(image), head.embed_image(image))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 1.0}, "share is 1.0; give a number above 0 and below 1"),
        ({"width": 6}, "width is 6"),
        ({"beta": 0.0}, "beta is 0.0"),
        ({"warmup": 2.0}, "warmup is 2.0; give a number from 0 to 1"),
    ],
)
def test_values_out_of_range_are_named(options, message):
    with pytest.raises(ConfigError, match=f"head cce: {message}"):
        Cce(DIMS, **options)


# Heads side by side --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [2, 4])
def test_a_head_with_the_term_equals_one_process(processes, world):
    twins.equal_on_processes(processes, world, {}, "composite", raw_batch(), 100)


def test_a_composite_is_the_weighted_sum_of_its_members():
    factories = [
        lambda dims: Global(dims, width=16),
        lambda dims: LocalPooling(dims, width=16),
        lambda dims: Global(dims, width=8),
    ]
    head = Composite(DIMS, heads=factories, shares=[1.0, 0.5, 2.0]).double()
    assert list(head.members) == ["global", "local_pooling", "global2"]
    assert head.weights == {
        "global.global": 1,
        "local_pooling.global": 0.5,
        "local_pooling.local": 0.5,
        "local_pooling.attention_entropy": 0,
        "global2.global": 2,
    }
    assert head.gathers >= {"text.members.global.pooled", "text.members.local_pooling.tokens"}
    assert isinstance(head, Grounds)
    step, raw = Step({}, "composite").double(), raw_batch()
    step.head = head
    image, text = step.embed(raw)
    terms = step.terms(raw)
    scores = []
    for name, member in head.members.items():
        parts = [member.embed_image(step.features(raw)[0]), member.embed_text(step.features(raw)[1])]
        own = Pairs(*parts, torch.arange(8), raw.hash)
        for term, value in member.losses(own, own).items():
            close(terms[f"{name}.{term}"], value)
        scores.append(head.shares[name] * member.similarity(*parts))
    close(head.similarity(image, text), sum(scores) / 3.5)
    close(head.similarity(image.select(torch.tensor([2, 0])), text), (sum(scores) / 3.5)[[2, 0]])
    close(head.heatmap(image, text).sum(-1), raw.mask.double())
    close(head.temperature, head.members["global"].temperature)


def test_a_composite_is_asked_as_its_first_member_that_can_answer():
    plain = partial(Reclf, width=8, matching_width=4, mode="none")  # weighs no words
    head = Composite(DIMS, heads=[Global, plain, partial(Reclf, width=16, matching_width=4)]).double()
    assert isinstance(head, ScoresMatchings)
    assert isinstance(head, WeighsWords)
    assert head.weighs_words
    step, raw = Step({}, "composite").double(), raw_batch()
    image, text = step.features(raw)
    asked = [head.embed_image(image), head.embed_text(text)]
    for member, method in (("reclf", "local_scores"), ("reclf", "heatmap"), ("reclf2", "importance")):
        own = head.members[member]
        close(getattr(head, method)(*asked), getattr(own, method)(own.embed_image(image), own.embed_text(text)))
    assert not isinstance(Composite(DIMS, heads=[Global, plain]), WeighsWords)
    assert not Composite(DIMS, heads=[Global, plain]).weighs_words
    assert not isinstance(Composite(DIMS, heads=[Global]), ScoresMatchings)


def test_a_composite_wants_what_its_members_want():
    head = Composite(DIMS, heads=[MGCA, Cce, Pcma])
    assert head.needs == MGCA.needs | Cce.needs | Pcma.needs
    assert head.wants == MGCA.wants
    assert isinstance(head, Grounds)
    assert isinstance(head, Observes)
    tell_step(head, 2, 4, 100)
    assert head.members["mgca"].epoch == 2
    assert head.weights["cce.cce"] == head.weights["pcma.cce"] == pytest.approx(0.5)


def test_a_term_alone_is_refused_before_training():
    module = AlignmentModule(TimmImage(**IMAGE), ScratchText(**TEXT), Cce)
    with pytest.raises(ConfigError, match="the head Cce scores no pairs, so there would be nothing to evaluate"):
        module.setup("fit")


def test_a_composite_that_cannot_rank_or_ground_says_so():
    with pytest.raises(ConfigError, match=r"none of \['cce'\] scores pairs"):
        Composite(DIMS, heads=[Cce])
    with pytest.raises(ConfigError, match="one number above 0 for each of 2 heads"):
        Composite(DIMS, heads=[Global, Cce], shares=[1.0])
    with pytest.raises(ConfigError, match=r"head composite: shares\[1\] is -1.0; give a number above 0"):
        Composite(DIMS, heads=[Global, Cce], shares=[1.0, -1.0])
    head = Composite(DIMS, heads=[Global, Cce])
    assert not isinstance(head, Grounds)
    assert head.needs == Cce.needs


def test_a_configuration_names_the_members():
    members = [
        {"class_path": "pcma", "init_args": {"width": 16, "cce": 0.0}},
        {"class_path": "cce", "init_args": {"layers": 2}},
    ]
    module = build_module(
        {
            "image": {"class_path": "TimmImage", "init_args": IMAGE},
            "text": {"class_path": "ScratchText", "init_args": TEXT},
            "head": {"class_path": "composite", "init_args": {"heads": members, "shares": [1.0, 0.5]}},
        }
    )
    assert list(module.head.members) == ["pcma", "cce"]
    assert len(module.head.members["cce"].layers) == 2
    assert module.head.weights["cce.cce"] == 0.5
