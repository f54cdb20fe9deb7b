from __future__ import annotations

import json
from unittest.mock import patch

import pytest
import timm
import torch
from torch import nn

from diptych.errors import ConfigError
from diptych.towers.image import TimmImage

RESNET = {"channels": [8, 16, 24, 32], "layers": [1, 1, 1, 1]}
VIT = {"embed_dim": 32, "depth": 3, "num_heads": 2}


def tower(name="resnet18", *, args=None, seed=0, **options):
    torch.manual_seed(seed)
    default = VIT if name.startswith(("vit", "deit")) else RESNET
    return TimmImage(name, pretrained=False, model_args=default if args is None else args, **options)


def radiographs(*size, rows=2, seed=1):
    return torch.randint(0, 256, (rows, 1, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("size", "stage", "grid", "width"), [(224, 3, 14, 24), (224, 4, 7, 32), (224, -1, 7, 32), (299, 3, 19, 24)]
)
def test_resnet_stage_gives_the_grid(size, stage, grid, width):
    model = tower(stage=stage).eval()
    with torch.no_grad():
        out = model(radiographs(size, size))
    assert out.grid == (grid, grid)
    assert out.tokens.shape == (2, grid * grid, width)
    assert model.token_width == width
    assert out.pooled.shape == (2, model.width) == (2, 32)
    assert out.mask.shape == (2, grid * grid)
    assert out.mask.all()


def test_real_resnet50_has_the_widths_it_announces():
    model = TimmImage("resnet50", pretrained=False, stage=3).eval()
    with torch.no_grad():
        out = model(radiographs(299, 299, rows=1))
    assert (model.width, model.token_width) == (2048, 1024)
    assert out.grid == (19, 19)
    assert out.tokens.shape == (1, 361, 1024)
    assert out.pooled.shape == (1, 2048)


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("resnet18", RESNET),
        ("vit_tiny_patch16_224", VIT),
        ("vit_small_patch14_reg4_dinov2", {**VIT, "img_size": 224}),
        ("convnext_atto", {"dims": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}),
        ("mobilenetv3_small_050", {}),
    ],
)
def test_pooled_is_what_timm_gives_without_a_classifier(name, args):
    model = tower(name, args=args).eval()
    image = radiographs(224, 224)
    with torch.no_grad():
        out = model(image)
        plain = model.backbone(out.pixels)  # num_classes=0: timm's own pooled vector
    torch.testing.assert_close(out.pooled, plain)
    assert out.tokens.shape == (2, out.grid[0] * out.grid[1], model.token_width)


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_tokens_lie_in_row_major_order(name):
    model = tower(name, stage=3 if name == "resnet18" else -1).eval()
    height, width = 160, 192  # not square, or rows and columns could be exchanged
    rows, columns = height // 16, width // 16
    plain = torch.full((1, 1, height, width), 128, dtype=torch.uint8)
    for row, column in [(0, columns - 1), (rows - 1, 0), (3, 7)]:
        marked = plain.clone()
        marked[..., 16 * row : 16 * row + 16, 16 * column : 16 * column + 16] = 255
        with torch.no_grad():
            before, after = model(plain), model(marked)
        assert before.grid == (rows, columns)
        change = (after.tokens - before.tokens).norm(dim=2)[0]
        assert int(change.argmax()) == row * columns + column


@pytest.mark.parametrize(("name", "prefix"), [("vit_tiny_patch16_224", 1), ("deit_tiny_distilled_patch16_224", 2)])
def test_vit_prefix_tokens_are_no_regions(name, prefix):
    model = tower(name).eval()
    for height, width in [(224, 224), (160, 192)]:
        image = radiographs(height, width)
        with torch.no_grad():
            out = model(image)
            everything = model.backbone.forward_features(out.pixels)
        assert model.backbone.num_prefix_tokens == prefix
        assert out.grid == (height // 16, width // 16)
        torch.testing.assert_close(out.tokens, everything[:, prefix:])


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(
    ("name", "args", "prefix"),
    [
        ("vit_tiny_patch16_224", {}, 1),
        ("vit_tiny_patch16_224", {"qk_norm": True}, 1),
        ("deit_tiny_distilled_patch16_224", {}, 2),
        ("vit_small_patch14_reg4_dinov2", {"img_size": 56}, 5),
    ],
)
def test_attention_of_the_class_token(name, args, prefix, fused):
    """Whether timm's attention is fused or not, it is the soft-max of the last block's products, by hand."""
    model = tower(name, args={**VIT, **args}).eval()
    for block in model.backbone.blocks:
        block.attn.fused_attn = fused
    image = radiographs(112, 112)
    assert model.gives_attention
    with torch.no_grad():
        before = model(image)
        assert before.attention is None
        model.attention = True
        out = model(image)
        x = model.backbone.norm_pre(model.backbone._pos_embed(model.backbone.patch_embed(out.pixels)))
        for block in model.backbone.blocks[:-1]:
            x = block(x)
        last = model.backbone.blocks[-1]
        qkv = last.attn.qkv(last.norm1(x)).view(2, x.shape[1], 3, 2, 16)  # [B,tokens,3,heads,d]
        expected = torch.zeros(2, x.shape[1])
        for b in range(2):
            for head in range(2):
                query, keys = last.attn.q_norm(qkv[b, 0, 0, head]), last.attn.k_norm(qkv[b, :, 1, head])
                expected[b] += (keys @ query / 16**0.5).softmax(0) / 2
    torch.testing.assert_close(out.attention, expected[:, prefix:])
    assert out.attention.shape == out.mask.shape
    torch.testing.assert_close(out.tokens, before.tokens, rtol=0, atol=0)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_attention_leaves_training_as_it_is(checkpointing):
    gradients = []
    for attention in (False, True):
        model = tower("vit_tiny_patch16_224", gradient_checkpointing=checkpointing).train()
        model.attention = attention
        out = model(radiographs(64, 64))
        (out.pooled.square().sum() + out.tokens.square().sum()).backward()
        gradients.append({k: p.grad for k, p in model.named_parameters()})
    assert not out.attention.requires_grad
    for key, gradient in gradients[0].items():
        assert torch.equal(gradients[1][key], gradient), key


@pytest.mark.parametrize(
    ("name", "args"),
    [("resnet18", RESNET), ("vit_tiny_patch16_224", {**VIT, "class_token": False, "global_pool": "avg"})],
)
def test_without_a_class_token_there_is_no_attention(name, args):
    assert not tower(name, args=args).gives_attention


def test_other_sizes_resample_the_positions():
    model = tower("vit_tiny_patch16_224").eval()
    image = torch.full((1, 1, 160, 192), 90, dtype=torch.uint8)
    with torch.no_grad():
        nn.init.zeros_(model.backbone.pos_embed)
        flat = model(image).tokens[0]
        model.backbone.pos_embed.normal_()
        placed = model(image).tokens[0]
    assert (flat - flat[0]).abs().max() < 1e-5  # a constant image, no positions: all regions alike
    assert (placed - placed[0]).abs().max() > 1e-2


def test_normalisation():
    model = tower().eval()
    image = radiographs(64, 64)
    preset = model.backbone.pretrained_cfg
    mean, std = sum(preset["mean"]) / 3, sum(preset["std"]) / 3
    with torch.no_grad():
        whole, real = model(image), model(image.float() / 255)
    torch.testing.assert_close(whole.pixels, (image.float() / 255 - mean) / std)
    torch.testing.assert_close(whole.pixels, real.pixels)
    torch.testing.assert_close(whole.pooled, real.pooled)


def test_local_weights_are_loaded_and_colours_summed(tmp_path):
    torch.manual_seed(3)
    colour = timm.create_model("resnet18", pretrained=False, num_classes=5, **RESNET)
    torch.save(colour.state_dict(), tmp_path / "weights.pth")
    model = TimmImage("resnet18", weights=str(tmp_path / "weights.pth"), model_args=RESNET)
    torch.testing.assert_close(model.backbone.conv1.weight, colour.conv1.weight.sum(dim=1, keepdim=True))
    torch.testing.assert_close(model.backbone.layer4[0].conv2.weight, colour.layer4[0].conv2.weight)


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_frozen_moves_nothing(name):
    model = tower(name, frozen=True)
    before = {k: v.clone() for k, v in model.state_dict().items() if isinstance(v, torch.Tensor)}
    model.train()
    out = model(radiographs(64, 64))
    assert not out.pooled.requires_grad
    assert not any(module.training for module in model.backbone.modules())
    for key, value in before.items():
        assert torch.equal(value, model.state_dict()[key]), key


def test_freezing_the_lowest_layers_keeps_their_statistics_only():
    model = tower(freeze_layers=2).train()
    model(radiographs(64, 64)).pooled.sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (model.layer_of(name) < 2), name
    moved = {k for k, v in model.named_buffers() if k.endswith("running_mean") and v.abs().sum() > 0}
    assert moved == {
        k
        for k, _ in model.named_buffers()
        if k.endswith("running_mean") and k.startswith(("backbone.layer2", "backbone.layer3", "backbone.layer4"))
    }


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "densenet121"])
def test_every_parameter_has_a_layer_and_depth_rises(name):
    model = tower(name, args={"growth_rate": 4, "block_config": [1, 2, 1, 1]} if name == "densenet121" else None)
    layers = [model.layer_of(key) for key, _ in model.named_parameters()]
    assert sorted(set(layers)) == list(range(model.num_layers + 1))
    order = [
        layer
        for key, layer in zip(dict(model.named_parameters()), layers, strict=True)
        if "block" in key or "layer" in key
    ]
    assert order == sorted(order)
    assert layers[0] == 0
    assert layers[-1] == model.num_layers


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_gradient_checkpointing_recomputes_and_gives_the_same_gradients(name):
    image = radiographs(64, 64)
    gradients, calls = [], []
    for checkpointing in (False, True):
        model = tower(name, gradient_checkpointing=checkpointing).double().train()
        block = model.backbone.blocks[1] if name.startswith("vit") else model.backbone.layer2[0]
        seen: list[int] = []
        block.register_forward_pre_hook(lambda *_, seen=seen: seen.append(1))
        out = model(image)
        (out.pooled.square().sum() + out.tokens.sum()).backward()
        gradients.append({k: p.grad for k, p in model.named_parameters()})
        calls.append(len(seen))
    assert calls == [1, 2]
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], gradient)


def test_rebuilt_from_its_checkpoint_without_the_name():
    model = tower("vit_tiny_patch16_224", stage=1).eval()
    extra = model.get_extra_state()
    assert json.loads(extra["architecture"])["model_args"] == VIT
    again = TimmImage("local-dir:/gone", **{"stage": 1, **TimmImage.rebuild_args(extra)}).eval()
    again.load_state_dict(model.state_dict())
    image = radiographs(64, 64)
    with torch.no_grad():
        assert torch.equal(model(image).pooled, again(image).pooled)
        assert torch.equal(model(image).tokens, again(image).tokens)


def test_reads_a_local_folder(tmp_path):
    torch.manual_seed(0)
    source = timm.create_model("resnet18", num_classes=3, **RESNET)
    torch.save(source.state_dict(), tmp_path / "pytorch_model.bin")
    config = {
        "architecture": "resnet18",
        "num_classes": 3,
        "model_args": RESNET,
        "pretrained_cfg": {
            "mean": [0.5, 0.5, 0.5],
            "std": [0.25, 0.25, 0.25],
            "first_conv": "conv1",
            "classifier": "fc",
            "num_classes": 3,
        },
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = TimmImage(f"local-dir:{tmp_path}").eval()
    assert float(model.mean) == 0.5
    torch.testing.assert_close(model.backbone.layer4[0].conv2.weight, source.layer4[0].conv2.weight)
    again = TimmImage("x", **TimmImage.rebuild_args(model.get_extra_state())).eval()
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(model(radiographs(64, 64)).pooled, again(radiographs(64, 64)).pooled)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet5O", {}, "nearest: .*resnet50"),
        ("resnet50.nosuch_tag", {}, "known tags: .*a1_in1k"),
        ("resnet18", {"stage": 7}, "resnet18.*stage is 7; .*from 0 to 4.*5 feature maps"),
        ("resnet18", {"model_args": {"colour": 3}}, "model_args.*colour"),
        ("resnet18", {"freeze_layers": 40}, "freeze_layers is 40; .*from 0 to"),
        ("resnet18", {"layer_decay": 0.0}, "layer_decay is 0.0; give a number above 0 and up to 1"),
        ("resnet18", {"pretrained": True, "architecture": "{}"}, "set pretrained: false"),
        ("resnet18", {"weights": "/no/such/file.pth"}, "weights could not be loaded.*`weights`"),
    ],
)
def test_errors_name_the_remedy(name, options, message):
    with pytest.raises(ConfigError, match=message) as caught:
        TimmImage(name, **{"pretrained": False, **options})
    assert "\n" not in str(caught.value)


def test_weights_out_of_reach():
    with (
        patch("timm.models._builder.load_state_dict_from_hf", side_effect=OSError),
        pytest.raises(ConfigError, match=r"pretrained: false.*local-dir:"),
    ):
        TimmImage("resnet18.a1_in1k")


def test_an_image_that_does_not_fit():
    model = tower("vit_tiny_patch16_224")
    with pytest.raises(ConfigError, match="cannot take images of 100x64"):
        model(radiographs(100, 64))
