"""Files of weights as others write them: loaded whole into the image tower, or refused in one line."""

from __future__ import annotations

import argparse
import json
import logging
from unittest.mock import patch

import inprocess
import pytest
import safetensors.torch
import timm
import torch
import yaml
from mini import SHIPPED, config, write_pairs
from timm.models import vision_transformer

from diptych.errors import ConfigError
from diptych.files import sha256
from diptych.towers.image import TimmImage

RESNET = {"channels": [8, 8, 16, 16], "layers": [1, 1, 1, 1]}
VIT = {"embed_dim": 16, "depth": 2, "num_heads": 2}


def backbone(name="resnet18", seed=3, **args):
    torch.manual_seed(seed)
    sizes = VIT if "vit" in name else RESNET
    return timm.create_model(name, pretrained=False, **{"num_classes": 5, **sizes, **args})


def bare(model):
    """Its weights without the classifier."""
    return {name: value for name, value in model.state_dict().items() if not name.startswith(("fc.", "head."))}


def below(prefix, state):
    return {prefix + name: value for name, value in state.items()}


def loaded(content, tmp_path, name="resnet18", suffix=".pth", args=None, **options):
    file = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        safetensors.torch.save_file(content, file)
    else:
        torch.save(content, file)
    default = VIT if "vit" in name else RESNET
    return TimmImage(name, weights=str(file), model_args={**default, **(args or {})}, **options)


def equals(tower, source, first="conv1.weight"):
    """Every weight of a colour backbone is in the tower, its first layer summed over colours."""
    own = tower.backbone.state_dict()
    for name, value in own.items():
        wanted = source.state_dict()[name]
        torch.testing.assert_close(value, wanted.sum(1, keepdim=True) if name == first else wanted)
    return True


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: below("module.", s),
        lambda s: {"state_dict": below("img_encoder_q.model.", s)},
        lambda s: {
            "state_dict": below("gloria.img_encoder.model.", s),
            "epoch": 3,
            "lr": [0.1],
            "optimizer_states": [],
        },
        lambda s: {"model_state_dict": below("backbone.", s)},
        lambda s: {"model": {"net": below("a.b.c.d.", s)}},
        lambda s: below("visual.trunk.", s) | {"text.transformer.layer1.0.conv1.weight": torch.zeros(8, 8, 3, 3)},
        lambda s: {k: v for k, v in below("x.", s).items() if "num_batches_tracked" not in k},
        lambda s: below("teacher1.", s) | {"student1." + k: v for k, v in list(s.items())[:40]},
        lambda s: below("q.", s) | below("k.", bare(backbone(channels=[4, 4, 8, 8]))),  # only one has the shapes
    ],
    ids=range(10),
)
def test_a_prefix_is_found_whatever_it_is(wrap, tmp_path):
    source = backbone()
    assert equals(loaded(wrap(source.state_dict()), tmp_path), source)


def test_safetensors_half_precision_and_another_prefix(tmp_path):
    source = backbone()
    state = {name: value.half() if value.is_floating_point() else value for name, value in bare(source).items()}
    tower = loaded(below("encoder.", state), tmp_path, suffix=".safetensors")
    torch.testing.assert_close(tower.backbone.layer4[0].conv2.weight, source.layer4[0].conv2.weight, atol=1e-3, rtol=0)
    assert tower.backbone.layer4[0].conv2.weight.dtype == torch.float32


def test_what_was_loaded_is_told_and_in_the_origin(tmp_path, caplog):
    state = below("img_encoder.model.", backbone().state_dict()) | {"projector.weight": torch.zeros(2)}
    with caplog.at_level(logging.INFO):
        tower = loaded(state, tmp_path)
    number = sum(value.is_floating_point() for value in tower.backbone.state_dict().values())
    assert f"loaded {number} of {number} weights from" in caplog.text
    assert "prefix 'img_encoder.model.'; left over: 3 (fc.weight, fc.bias, projector.weight)" in caplog.text
    file = tmp_path / "weights.pth"
    origin = {"name": "resnet18", "weights": str(file), "sha256": sha256(file), "prefix": "img_encoder.model."}
    assert tower.origin == {**origin, "mean": 0.449, "std": 0.226}


def test_twice_in_a_file_must_be_chosen(tmp_path):
    one, other = backbone(seed=1), backbone(seed=2)
    state = {"state_dict": below("encoder_q.", one.state_dict()) | below("encoder_k.", other.state_dict())}
    with pytest.raises(ConfigError, match=r"below 'state_dict.encoder_q.' and 'state_dict.encoder_k.'.*weights_prefix"):
        loaded(state, tmp_path)
    assert equals(loaded(state, tmp_path, weights_prefix="state_dict.encoder_k"), other)
    assert equals(loaded(state, tmp_path, weights_prefix="state_dict.encoder_q."), one)
    both = one.state_dict() | below("ema.", other.state_dict())
    with pytest.raises(ConfigError, match=r"more than once, below '' and 'ema.'"):
        loaded(both, tmp_path)
    assert equals(loaded(both, tmp_path, weights_prefix=""), one)
    with pytest.raises(ConfigError, match=r"none of its .* weights below the prefix 'nosuch\.'"):
        loaded(both, tmp_path, weights_prefix="nosuch")


def without(*names):
    return {name: value for name, value in bare(backbone()).items() if not name.startswith(names)}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (without("layer3.0.conv1"), r"holds 64 of its 65 weights; 1 weights are missing \(layer3.0.conv1.weight\)"),
        (
            below("m.", without("bn1.running_mean")),
            r"below the prefix 'm\.'; 1 weights are missing \(bn1.running_mean\)",
        ),
        (without("layer"), r"60 weights are missing \(layer1.0.conv1.weight, .*, \.\.\.\)"),
        (
            bare(backbone(channels=[8, 8, 16, 24])),
            r"other shape: .*layer4.0.conv1.weight \[24, 16, 3, 3\] for \[16, 16, 3, 3\]",
        ),
        (bare(backbone("vit_tiny_patch16_224")), "none of its 65 weights; the file has .*cls_token"),
        (bare(backbone(layers=[1, 2, 1, 1])), r"of a deeper model; .*layer2.1.conv1.weight"),
        ({"fc.weight": torch.zeros(5, 16)}, "none of its 65 weights"),
        ({}, "hold no tensor"),
        ({"epoch": 3, "best": 0.5}, "hold no tensor"),
        ([1, 2], "hold no tensor"),
        (bare(backbone()) | {"conv1.weight": torch.full((64, 3, 7, 7), torch.nan)}, "NaN or infinite .*conv1.weight"),
        (bare(backbone()) | {"bn1.running_var": torch.full((64,), torch.inf)}, "NaN or infinite .*bn1.running_var"),
        (
            bare(backbone()) | {"bn1.weight": torch.ones(64, dtype=torch.int8)},
            "no floating-point.*bn1.weight torch.int8",
        ),
        (
            {"state_dict": bare(backbone()), "args": argparse.Namespace(lr=1)},
            "objects other than tensors.*argparse.Namespace",
        ),
    ],
    ids=range(14),
)
def test_a_file_that_does_not_hold_the_backbone(state, message, tmp_path):
    with pytest.raises(ConfigError, match=message) as caught:
        loaded(state, tmp_path)
    assert "\n" not in str(caught.value)
    assert "weights.pth" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"weights", b"\x80\x02."])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_damaged_files(content, suffix, tmp_path):
    (tmp_path / f"w{suffix}").write_bytes(content)
    with pytest.raises(ConfigError, match=f"w{suffix}' ") as caught:
        TimmImage("resnet18", weights=str(tmp_path / f"w{suffix}"), model_args=RESNET)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="is a folder"):
        TimmImage("resnet18", weights=str(tmp_path), model_args=RESNET)


def test_a_prefix_without_a_file():
    with pytest.raises(ConfigError, match=r"weights_prefix is 'model'.*no file"):
        TimmImage("resnet18", pretrained=False, weights_prefix="model")


def test_one_grey_channel_is_left_as_it_is(tmp_path):
    source = backbone(in_chans=1)
    assert equals(loaded(source.state_dict(), tmp_path), source, first="")


@pytest.mark.parametrize("prefix", ["", "img_encoder_q.model."])
def test_position_codes_of_another_size_are_resampled_as_timm_does(prefix, tmp_path):
    source = backbone("vit_tiny_patch16_224", img_size=64)
    tower = loaded(below(prefix, source.state_dict()), tmp_path, "vit_tiny_patch16_224", args={"img_size": 96})
    assert tower.backbone.pos_embed.shape == (1, 37, 16)
    wanted = vision_transformer.checkpoint_filter_fn(dict(bare(source)), tower.backbone)["pos_embed"]
    torch.testing.assert_close(tower.backbone.pos_embed.data, wanted)
    torch.testing.assert_close(tower.backbone.blocks[1].mlp.fc1.weight, source.blocks[1].mlp.fc1.weight)


def test_a_format_that_timm_converts_is_found_below_a_prefix(tmp_path):
    """ConvNeXt's authors name layers otherwise; timm knows how."""
    sizes = {"dims": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}
    torch.manual_seed(0)
    source = timm.create_model("convnext_atto", num_classes=0, conv_mlp=False, **sizes)
    foreign = {}
    for name, value in source.state_dict().items():
        name = name.replace("stem.0", "downsample_layers.0.0").replace("stem.1", "downsample_layers.0.1")
        for stage in range(4):
            name = name.replace(f"stages.{stage}.blocks.0.conv_dw", f"stages.{stage}.0.dwconv")
            name = name.replace(f"stages.{stage}.blocks.0.mlp.fc", f"stages.{stage}.0.pwconv")
            name = name.replace(f"stages.{stage}.blocks.0", f"stages.{stage}.0")
            name = name.replace(f"stages.{stage}.downsample", f"downsample_layers.{stage}")
        foreign[name.replace("head.norm", "norm")] = value
    file = _saved(below("visual.", foreign), tmp_path)
    tower = TimmImage("convnext_atto", weights=file, model_args={**sizes, "conv_mlp": False})
    loaded, wanted = (model.stages[3].blocks[0].mlp.fc1.weight for model in (tower.backbone, source))
    torch.testing.assert_close(loaded, wanted)
    assert tower.origin["prefix"] == "visual."


def _saved(content, tmp_path):
    torch.save(content, tmp_path / "weights.pth")
    return str(tmp_path / "weights.pth")


def local_dir(tmp_path, state):
    torch.save(state, tmp_path / "pytorch_model.bin")
    card = {"mean": [0.5] * 3, "std": [0.25] * 3, "first_conv": "conv1", "classifier": "fc", "num_classes": 5}
    card = {"architecture": "resnet18", "num_classes": 5, "model_args": RESNET, "pretrained_cfg": card}
    (tmp_path / "config.json").write_text(json.dumps(card))
    return f"local-dir:{tmp_path}"


def test_a_folder_loads_whole_too(tmp_path):
    source = backbone()
    name = local_dir(tmp_path, below("encoder.", source.state_dict()))
    tower = TimmImage(name)
    assert equals(tower, source)
    assert tower.origin["sha256"] == sha256(tmp_path / "pytorch_model.bin")
    assert (tower.origin["mean"], tower.origin["std"]) == (0.5, 0.25)
    local_dir(tmp_path, without("layer4"))
    with pytest.raises(ConfigError, match=r"pytorch_model.bin' holds 50 of its 65.*15 weights are missing \(layer4"):
        TimmImage(name)
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(ConfigError, match=r"holds no weights; it should have model\.safetensors"):
        TimmImage(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: {k: v for k, v in s.items() if not k.startswith("layer2")},
            r"'a1_in1k' holds .* 15 weights are missing \(layer2",
        ),
        (lambda s: below("model.", s), "'a1_in1k' holds 0 of its"),
        (lambda s: s | {"layer1.1.conv1.weight": torch.zeros(8, 8, 3, 3)}, "deeper model"),
        (lambda s: s | {"bn1.weight": torch.full((64,), torch.nan)}, "NaN or infinite"),
        (lambda s: s | {"bn1.weight": torch.zeros(9)}, "bn1.weight"),
    ],
    ids=range(5),
)
def test_weights_of_the_hub_load_whole(change, message):
    """As if the hub gave a file of another backbone: timm alone takes what fits, and says nothing."""
    source = backbone(num_classes=1000)
    with (
        patch("timm.models._builder.load_state_dict_from_hf", return_value=change(source.state_dict())),
        pytest.raises(ConfigError, match=message) as caught,
    ):
        TimmImage("resnet18.a1_in1k", model_args=RESNET)
    assert "\n" not in str(caught.value)
    with patch("timm.models._builder.load_state_dict_from_hf", return_value=source.state_dict()):
        tower = TimmImage("resnet18", model_args=RESNET)
    assert equals(tower, source)
    assert tower.origin["weights"] == "a1_in1k"


def test_origins_tell_random_from_file_after_a_checkpoint_too(tmp_path):
    file = loaded(below("m.", backbone().state_dict()), tmp_path, mean=[0.4, 0.5, 0.6], std=0.3)
    random = TimmImage("resnet18", pretrained=False, model_args=RESNET)
    assert random.origin == {"name": "resnet18", "weights": "random", "mean": 0.449, "std": 0.226}
    for tower in (file, random):
        torch.save(tower.state_dict(), tmp_path / "tower.ckpt")
        state = torch.load(tmp_path / "tower.ckpt", weights_only=True)
        again = TimmImage("resnet18", **TimmImage.rebuild_args(state["_extra_state"]))
        again.load_state_dict(state)
        assert again.origin == tower.origin
    assert (file.origin["mean"], file.origin["std"]) == (0.5, 0.3)
    for damage in ("not json", "[1]", "[" * 100_000):
        with pytest.raises(ConfigError, match="origin"):
            file.set_extra_state({"architecture": "{}", "origin": damage})


def test_mean_and_std_are_arguments():
    image = torch.randint(0, 256, (2, 1, 32, 32), dtype=torch.uint8)
    tower = TimmImage("resnet18", pretrained=False, model_args=RESNET, mean=0.5863, std=[0.2795]).eval()
    torch.testing.assert_close(tower(image).pixels, (image / 255 - 0.5863) / 0.2795)
    for wrong in ({"mean": 123.7}, {"mean": []}, {"std": 0}, {"std": [0.2, 58.4, 0.2]}, {"mean": float("nan")}):
        with pytest.raises(ConfigError, match=f"{next(iter(wrong))} is .*from 0 to 1"):
            TimmImage("resnet18", pretrained=False, model_args=RESNET, **wrong)


def test_the_result_says_where_weights_were_from_and_null_is_null(tmp_path):
    """Through the command: a peer's file, a test from the checkpoint, and `weights: null` for a downstream task."""
    table = write_pairs(tmp_path / "data")
    (tmp_path / "fit.yaml").write_text(config(table, epochs=1))
    args = {"channels": [8, 8, 16, 16], "stem_width": 8}
    torch.manual_seed(0)
    source = timm.create_model("resnet10t", pretrained=False, num_classes=3, **args)
    file = _saved({"state_dict": below("gloria.img_encoder.model.", source.state_dict())}, tmp_path)
    weights = ("--model.image.weights", file, "--model.image.mean", "0.5")
    results = inprocess.fit_and_test(tmp_path / "fit.yaml", tmp_path / "run", *weights)
    image = results["protocol"]["towers"]["image"]
    assert image["weights"] == file
    assert (image["sha256"], image["mean"]) == (sha256(file), 0.5)
    assert image["prefix"] == "state_dict.gloria.img_encoder.model."
    torch.save({"state_dict": below("x.", without("conv1"))}, file)
    done = inprocess.diptych(
        "fit", "-c", str(tmp_path / "fit.yaml"), "--run", str(tmp_path / "b"), *weights, *inprocess.QUIET
    )
    assert done.returncode == 2
    assert "weights.pth" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("of", ["fit", "task"])
@pytest.mark.parametrize(
    ("option", "value", "parsed"),
    [
        ("weights", "null", None),
        ("weights", "a.pth", "a.pth"),
        ("model_args", '{"a": null, "b": [null, true]}', {"a": None, "b": [None, True]}),
    ],
)
def test_null_on_the_command_line_is_null(of, option, value, parsed):
    words = (
        ["-c", str(SHIPPED / "pretrain" / "phantom.yaml")]
        if of == "fit"
        else ["-c", str(SHIPPED / "evaluate" / "nih_probe.yaml")]
    )
    done = inprocess.diptych(
        of.replace("task", "test"),
        *words,
        "--model.image",
        "TimmImage",
        f"--model.image.{option}",
        value,
        "--print_config",
    )
    assert done.returncode == 0, done.stderr
    model = yaml.safe_load(done.stdout)["model"]
    assert (model["init_args"] if of == "task" else model)["image"]["init_args"][option] == parsed
