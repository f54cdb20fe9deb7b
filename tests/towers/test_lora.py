"""Adapters around towers: equal before training, alone in training, equal when merged, whole in a checkpoint."""

import copy
from unittest.mock import patch

import pytest
import torch
from mini import IMAGE, TEXT
from transformers import Dinov2Config

from diptych.errors import ConfigError
from diptych.model.optim import parameter_groups
from diptych.model.stored import build_module, build_stored, load_weights
from diptych.towers.image import TimmImage
from diptych.towers.lora import LoraImage, LoraText
from diptych.towers.text import ScratchText
from diptych.towers.transformers_image import TransformersImage

pytest.importorskip("peft", reason="pip install 'diptych[peft]'")

VIT = {"embed_dim": 32, "depth": 3, "num_heads": 2, "img_size": 32, "patch_size": 8}
DINO = Dinov2Config(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=32, patch_size=8)
REPORTS = ["Small left effusion.", "No pneumothorax is seen."]


def image_tower(kind):
    torch.manual_seed(0)
    if kind == "dinov2":
        return TransformersImage("x", pretrained=False, architecture=DINO.to_json_string(use_diff=False))
    return TimmImage("vit_tiny_patch16_224", pretrained=False, model_args=VIT)


def text_tower():
    torch.manual_seed(0)
    tower = ScratchText(**TEXT, dropout=0.0)
    tower.tokenizer.learn(REPORTS * 5)
    return tower


def pictures(rows=2):
    return torch.randint(0, 256, (rows, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def made(kind):
    """A tower, its adapted twin, and their input."""
    if kind == "text":
        tower = text_tower()
        return tower, LoraText(copy.deepcopy(tower), rank=4, alpha=8), tower.tokenizer(REPORTS)
    tower = image_tower(kind)
    return tower, LoraImage(copy.deepcopy(tower), rank=4, alpha=8), pictures()


def train(tower, data, steps=3):
    optimizer = torch.optim.SGD([p for p in tower.parameters() if p.requires_grad], lr=0.5)
    for _ in range(steps):
        optimizer.zero_grad()
        out = tower.train()(data)
        (out.pooled.square().mean() + (out.tokens - 1).square().mean()).backward()
        optimizer.step()
    return tower.eval()


KINDS = {"timm": (["qkv"], 3), "dinov2": (["q_proj", "v_proj"], 6), "text": (["query", "value"], 2)}


@pytest.mark.parametrize("kind", KINDS)
def test_equal_before_training_alone_in_training_and_equal_when_merged(kind):
    with patch("diptych.towers.lora.rank_zero_info") as told:
        plain, adapted, data = made(kind)
    names, layers = KINDS[kind]
    trained = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    assert set(trained) == {name for name, _ in adapted.named_parameters() if ".lora_" in name}
    assert len(trained) == 2 * layers
    number = sum(p.numel() for p in trained.values())
    total = sum(p.numel() for p in plain.parameters()) + number
    assert f"{number:,} of {total:,} parameters are trained" in told.call_args.args[0]
    by_hand = layers * 4 * (32 + (96 if kind == "timm" else 32))  # A is [rank,in], and B is [out,rank]
    assert number == by_hand
    lora = {"rank": 4, "alpha": 8, "targets": names, "layers": layers, "trained": number, "of": total}
    assert adapted.origin["lora"] == lora

    with torch.no_grad():
        before, same = plain.eval()(data), adapted.eval()(data)
    assert torch.equal(same.pooled, before.pooled)
    assert torch.equal(same.tokens, before.tokens)

    frozen = {name: p.clone() for name, p in adapted.named_parameters() if not p.requires_grad}
    train(adapted, data)
    for name, parameter in adapted.named_parameters():
        if name in frozen:
            assert torch.equal(parameter, frozen[name]), name
    with torch.no_grad():
        after = adapted(data)
        assert (after.pooled - before.pooled).abs().max() > 1e-3
        state = {name: value.clone() for name, value in adapted.state_dict().items() if ".lora_" in name}
        merged = adapted.merge().eval()
        torch.testing.assert_close(merged(data).pooled, after.pooled, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(merged(data).tokens, after.tokens, rtol=1e-4, atol=1e-5)
    assert {name for name, _ in merged.named_parameters()} == {name for name, _ in plain.named_parameters()}
    own = dict(plain.named_parameters())
    for name, parameter in merged.named_parameters():
        key = f"{'text' if kind == 'text' else 'image'}.{name.removesuffix('.weight')}"
        if f"{key}.lora_A.default.weight" in state:  # W + alpha / rank * B A, as the paper has it
            change = 8 / 4 * state[f"{key}.lora_B.default.weight"] @ state[f"{key}.lora_A.default.weight"]
            torch.testing.assert_close(parameter, own[name] + change)
        else:
            assert torch.equal(parameter, own[name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_layers_are_those_of_what_is_adapted(kind):
    plain, adapted, _ = made(kind)
    for name, _ in plain.named_parameters():
        prefix = "text" if kind == "text" else "image"
        head, _, last = name.rpartition(".")
        here = [n for n, _ in adapted.named_parameters() if n.startswith(f"{prefix}.{head}.") and n.endswith(last)]
        assert here
        assert {adapted.layer_of(one) for one in here if "lora" not in one or last == "weight"} == {
            plain.layer_of(name)
        }


def test_targets_are_layers_of_the_tower():
    tower = LoraImage(image_tower("timm"), rank=2, targets=["qkv", "fc1"])
    assert tower.origin["lora"]["layers"] == 6
    with pytest.raises(ConfigError, match=r"no layer 'query'; there are .*fc1.*qkv"):
        LoraImage(image_tower("timm"), targets=["query"])
    with pytest.raises(ConfigError, match="none of the usual layers"):
        LoraImage(TimmImage(**IMAGE))
    with pytest.raises(ConfigError, match="rank"):
        LoraImage(image_tower("timm"), rank=0)
    with patch.dict("sys.modules", {"peft": None}), pytest.raises(ConfigError, match=r"diptych\[peft\]"):
        LoraImage(image_tower("timm"))


def test_a_convolution_may_be_adapted_and_attention_is_passed_on():
    tower = LoraImage(TimmImage(**IMAGE), targets=["conv2"], rank=2).eval()
    assert tower.origin["lora"]["layers"] > 1
    with torch.no_grad():
        out = tower(pictures())
        vit = LoraImage(image_tower("timm")).eval()
        vit.attention = True
        assert vit(pictures()).attention.shape == (2, 16)
    torch.testing.assert_close(tower.merge()(pictures()).pooled, out.pooled)


CONFIG = {
    "image": {
        "class_path": "LoraImage",
        "init_args": {
            "image": {
                "class_path": "TimmImage",
                "init_args": {"name": "vit_tiny_patch16_224", "pretrained": False, "model_args": VIT},
            },
            "rank": 2,
        },
    },
    "text": {
        "class_path": "LoraText",
        "init_args": {"text": {"class_path": "ScratchText", "init_args": {**TEXT, "dropout": 0.0}}, "targets": ["key"]},
    },
    "head": {"class_path": "global", "init_args": {"width": 16}},
}


def test_a_checkpoint_holds_towers_and_adapters_and_is_built_again():
    module = build_module(CONFIG)
    module.tokenizer.learn(REPORTS * 5)
    train(module.encoder.image, pictures())
    train(module.encoder.text, module.tokenizer(REPORTS))
    state = copy.deepcopy(module.state_dict())
    stored = copy.deepcopy(CONFIG)
    stored["image"]["init_args"]["image"]["init_args"] |= {"name": "local-dir:/gone", "pretrained": True}
    again = build_stored(stored, state, "a.ckpt")
    load_weights(again, state, "a.ckpt")
    module.eval(), again.eval()
    with torch.no_grad():
        assert torch.equal(again.embed_image(pictures()).pooled, module.embed_image(pictures()).pooled)
        texts = [m.embed_text(m.tokenizer(REPORTS)).pooled for m in (module, again)]
    assert torch.equal(*texts)
    assert again.encoder.text.tokenizer is again.encoder.text.text.tokenizer
    assert again.encoder.image.origin == module.encoder.image.origin
    bare = {name: value for name, value in state.items() if name != "encoder.image.image._extra_state"}
    with pytest.raises(ConfigError, match="architecture is not in the checkpoint"):  # or it would be fetched
        build_stored(stored, bare, "a.ckpt")
    with pytest.raises(ConfigError, match=r"model\.image\.image: refused"):
        build_stored(
            stored | {"image": {"class_path": "LoraImage", "init_args": {"image": "TimmImage"}}}, state, "a.ckpt"
        )
    stored["image"]["init_args"]["image"]["class_path"] = "os.system"
    with pytest.raises(ConfigError, match=r"model\.image\.image\.class_path: refused"):
        build_stored(stored, state, "a.ckpt")


def test_the_optimiser_gets_adapters_and_head_alone():
    module = build_module(CONFIG)
    names = {name for group in parameter_groups(module, lr=1e-3, weight_decay=0.1) for name in group["names"]}
    assert names
    assert all(".lora_" in name or name.startswith("head.") for name in names)
