"""The fusion of a study's images: what is absent changes nothing, and takes no gradient."""

import copy
from functools import cache
from itertools import product

import pytest
import torch
from torch import nn

from diptych.errors import ConfigError
from diptych.towers.fused import FusedImage, present_images
from diptych.towers.image import TimmImage

SMALL = {"channels": [8, 8, 16, 16], "stem_width": 8}
FUSIONS = ("concatenate", "attend")


@cache
def towers():
    """One tower without fusion weights, and the same as after some steps, by fusion."""
    torch.manual_seed(0)
    image, made = TimmImage("resnet10t", pretrained=False, model_args=SMALL), {}
    for fusion in FUSIONS:
        untrained = FusedImage(copy.deepcopy(image), fusion=fusion, heads=2)
        trained = copy.deepcopy(untrained)
        for name, parameter in trained.named_parameters():
            if not name.startswith("image.") and not parameter.any():
                nn.init.normal_(parameter, std=0.3)
        made[fusion] = untrained.eval(), trained.eval()
    return made


def fused(fusion, trained=True):
    return copy.deepcopy(towers()[fusion][trained])


def studies(rows=3, images=3, seed=1):
    return torch.randint(
        1, 256, (rows, images, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def without(image, *places):
    """Studies whose images at these (row, place) are absent."""
    image = image.clone()
    for place in places:
        image[place] = 0
    return image


def same(one, other):
    return all(torch.allclose(getattr(one, name), getattr(other, name), atol=1e-5) for name in ("pooled", "tokens"))


@pytest.mark.parametrize("fusion", FUSIONS)
def test_an_untrained_fusion_and_a_single_image_give_the_towers_own_features(fusion):
    image = studies()
    untrained, trained = fused(fusion, trained=False), fused(fusion)
    for tower, given in (
        (untrained, image),
        (trained, image[:, :1]),
        (trained, without(image, *((i, k) for i in range(3) for k in (1, 2)))),
    ):
        out, own = tower(given), tower.image(given[:, :1])
        assert same(out, own)
        assert out.grid == own.grid == (2, 2)
        assert torch.equal(out.pixels, own.pixels)
        assert out.mask.all()
    assert not same(trained(image), trained.image(image[:, :1]))


@pytest.mark.parametrize("fusion", FUSIONS)
def test_an_absent_image_may_be_black_or_not_given(fusion):
    tower, image = fused(fusion), studies(images=2)
    padded = torch.cat([image, torch.zeros_like(image[:, :1])], dim=1)
    assert same(tower(image), tower(padded))
    # What stands beside a study in the batch changes nothing, whichever of its images are there.
    mixed = without(studies(), (0, 1), (1, 2), (2, 1), (2, 2))
    rows = [tower(mixed[i : i + 1]) for i in range(3)]
    whole = tower(mixed)
    assert torch.allclose(whole.pooled, torch.cat([row.pooled for row in rows]), atol=1e-5)
    assert torch.allclose(whole.tokens, torch.cat([row.tokens for row in rows]), atol=1e-5)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_places_are_told_apart_and_each_image_counts(fusion):
    tower, image = fused(fusion), studies()
    swapped = image[:, [0, 2, 1]]
    out = tower(image)
    for other in (swapped, without(image, (0, 1), (1, 1), (2, 1)), without(image, (0, 2), (1, 2), (2, 2))):
        assert not same(out, tower(other))


def test_attention_against_a_loop_over_present_regions():
    """The slow twin: for each study, soft-max attention over the regions of the images that it has, head by head."""
    tower, image = fused("attend"), without(studies(), (0, 1), (1, 2))
    out, first = tower(image), tower.image(image[:, :1])
    layer, width = tower.to_regions, tower.token_width
    for i in range(3):
        there = [k for k in (1, 2) if image[i, k].any()]
        keys = torch.cat([tower.image(image[i : i + 1, k : k + 1]).tokens[0] + tower.places[k - 1] for k in there])
        wq, wk, wv = layer.in_proj_weight.chunk(3)
        for n, region in enumerate(first.tokens[i]):
            parts = []
            for head in range(2):
                rows = slice(head * width // 2, (head + 1) * width // 2)
                q, k, v = wq[rows] @ region, keys @ wk[rows].T, keys @ wv[rows].T
                parts.append(((k @ q) / (width // 2) ** 0.5).softmax(0) @ v)
            expected = region + layer.out_proj.weight @ torch.cat(parts)
            assert torch.allclose(out.tokens[i, n], expected, atol=1e-4)


def test_concatenation_against_a_sum_over_present_images():
    tower, image = fused("concatenate"), without(studies(), (0, 1), (2, 2))
    out, own = tower(image), tower.image(image[:, :1])
    for i in range(3):
        pooled, regions = own.pooled[i], own.tokens[i]
        for k in (1, 2):
            if image[i, k].any():
                vector = tower.image(image[i : i + 1, k : k + 1]).pooled[0]
                columns = slice((k - 1) * tower.width, k * tower.width)
                pooled = pooled + tower.to_pooled.weight[:, columns] @ vector
                regions = regions + tower.to_regions.weight[:, columns] @ vector
        assert torch.allclose(out.pooled[i], pooled, atol=1e-5)
        assert torch.allclose(out.tokens[i], regions, atol=1e-5)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_gradients_go_to_present_images_alone(fusion):
    tower = fused(fusion)
    image = without(studies(), (0, 1), (1, 2), (2, 1), (2, 2)).float().div(255).requires_grad_()
    out = tower(image)
    (out.pooled.square().sum() + out.tokens.square().sum()).backward()
    reached = image.grad.flatten(2).any(dim=2)
    assert reached.tolist() == [[True, False, True], [True, True, False], [True, False, False]]
    assert all(parameter.grad is not None for parameter in tower.parameters())
    tower.zero_grad()
    out = tower(image[:, :1])  # every parameter takes part, so that several processes wait for none
    (out.pooled.sum() + out.tokens.sum()).backward()
    own = {name for name, _ in tower.named_parameters() if not name.startswith("image.")}
    assert all(not tower.get_parameter(name).grad.any() for name in own)


def test_an_untrained_fusion_learns():
    for fusion in FUSIONS:
        tower = fused(fusion, trained=False)
        tower(studies()).pooled.square().sum().backward()
        last = tower.to_pooled if fusion == "concatenate" else tower.to_pooled.out_proj
        assert last.weight.grad.any()


@pytest.mark.parametrize("fusion", FUSIONS)
def test_batch_statistics_are_of_present_images_in_one_pass(fusion):
    """Processes that share statistics would wait for each other if one with other images made more passes."""
    tower, passes = fused(fusion).train(), []
    tower.image.register_forward_hook(lambda _module, inputs, _out: passes.append(len(inputs[0])))
    image = without(studies(), (0, 1), (1, 1), (1, 2), (2, 2))
    alone = without(studies(), *((i, k) for i in range(3) for k in (1, 2)))
    for given, present in ((image, 5), (alone, 3), (image[:, :1], 3)):
        twin = copy.deepcopy(tower)
        passes.clear()
        tower(given)
        assert passes == [present]
        there = [given[i, k] for k, i in product(range(given.shape[1]), range(3)) if given[i, k].any()]
        twin.image(torch.stack(there)[:, None])
        for (name, one), other in zip(tower.named_buffers(), twin.buffers(), strict=True):
            assert torch.allclose(one, other, rtol=1e-4, atol=1e-6), name


def test_present_images_and_bad_arguments():
    assert present_images(without(studies(), (0, 0), (0, 1))).tolist() == [[True, False, True], [True] * 3, [True] * 3]
    image = TimmImage("resnet10t", pretrained=False, model_args=SMALL)
    with pytest.raises(ConfigError, match="heads is 3, which does not divide the tower's width 16"):
        FusedImage(image, heads=3)
    with pytest.raises(ConfigError, match="others is 0"):
        FusedImage(image, others=0)
    with pytest.raises(ConfigError, match="fusion is 'add'; choose among: concatenate, attend"):
        FusedImage(image, fusion="add")
    with pytest.raises(ConfigError, match=r"give 3 images of a study .*, and FusedImage takes 2; .* others: 2"):
        FusedImage(image, others=1, heads=2)(studies())
    tower = FusedImage(image, heads=2)
    assert tower.layer_of("places") == tower.num_layers
    assert tower.layer_of("image.backbone.conv1.0.weight") == 0
    assert [level.shape[1] for level in tower.pyramid(studies())] == list(image.pyramid_widths)
