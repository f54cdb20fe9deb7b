"""Image towers of transformers against the library's own processor and model, from tiny random folders."""

import json
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SiglipConfig,
    SiglipModel,
    SiglipVisionModel,
    ViTConfig,
    ViTModel,
)

from diptych.errors import ConfigError
from diptych.towers.transformers_image import TransformersImage

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
WIDE = {**SMALL, "intermediate_size": 64}
RAD_DINO = {"image_processor_type": "BitImageProcessor", "do_center_crop": True, "do_normalize": True}
RAD_DINO |= {"do_rescale": True, "rescale_factor": 1 / 255, "do_resize": True, "do_convert_rgb": True}
RAD_DINO |= {"image_mean": [0.5307, 0.5307, 0.5307], "image_std": [0.2583, 0.2583, 0.2583], "resample": 3}
RAD_DINO |= {"size": {"shortest_edge": 518}, "crop_size": {"height": 518, "width": 518}}
SIGLIP = {"image_processor_type": "SiglipImageProcessor", "do_normalize": True, "do_rescale": True, "do_resize": True}
SIGLIP |= {"rescale_factor": 1 / 255, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2}
SIGLIP |= {"size": {"height": 448, "width": 448}}
VIT = {**SIGLIP, "image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}
VIT |= {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}  # differs between colours
TEXT = {**WIDE, "vocab_size": 50, "max_position_embeddings": 64}

MADE = {
    "rad-dino": (Dinov2Model, Dinov2Config(**SMALL, image_size=518, patch_size=14), RAD_DINO, 518),
    "registers": (
        Dinov2WithRegistersModel,
        Dinov2WithRegistersConfig(**SMALL, image_size=28, patch_size=7, num_register_tokens=4),
        VIT,
        28,
    ),
    "medsiglip": (
        SiglipModel,
        SiglipConfig(text_config=TEXT, vision_config={**WIDE, "image_size": 448, "patch_size": 14}),
        SIGLIP,
        448,
    ),
    "vit": (ViTModel, ViTConfig(**WIDE, image_size=32, patch_size=8), VIT, 32),
    "clip": (CLIPVisionModel, CLIPVisionConfig(**WIDE, image_size=32, patch_size=8), VIT, 32),
}
BEFORE = {"rad-dino": 1, "registers": 5, "medsiglip": 0, "vit": 1, "clip": 1}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}
    for name, (kind, config, preset, _) in MADE.items():
        torch.manual_seed(1)
        made[name] = tmp_path_factory.mktemp(name)
        model = kind(config)
        with torch.no_grad():
            for parameter in model.parameters():  # the library starts many at 0 or 1
                parameter.add_(torch.randn_like(parameter) * 0.05)
        model.save_pretrained(made[name])
        (made[name] / "preprocessor_config.json").write_text(json.dumps(preset))
    return made


def grey(side, seed=0):
    """Smooth noise, so that bicubic and bilinear scaling by 1 are exact."""
    return np.random.default_rng(seed).integers(0, 256, (side, side)).astype(np.uint8)


@pytest.mark.parametrize("name", MADE)
def test_vectors_are_those_of_the_librarys_own_processor_and_model(name, folders):
    """Its processor makes three channels of a colour picture, crops, scales and normalises by its own code."""
    side = MADE[name][3]
    picture = grey(side)
    processor = AutoImageProcessor.from_pretrained(folders[name])
    at_own_size = {"do_resize": False, "do_center_crop": False}  # registers: its preset is of another size
    inputs = processor(images=Image.fromarray(picture).convert("RGB"), return_tensors="pt", **at_own_size)
    kind = SiglipVisionModel if name == "medsiglip" else MADE[name][0]
    own = kind.from_pretrained(folders[name]).eval()
    tower = TransformersImage(str(folders[name])).eval()
    with torch.no_grad():
        theirs = own(**inputs)
        ours = tower(torch.from_numpy(picture)[None, None])
        tokens = theirs.last_hidden_state
        pooled = tokens[:, 0] if name in ("vit", "rad-dino", "registers") else theirs.pooler_output
        tokens = own.post_layernorm(tokens) if name == "clip" else tokens
    torch.testing.assert_close(ours.pooled, pooled, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.tokens, tokens[:, BEFORE[name] :], rtol=1e-4, atol=1e-5)
    assert ours.tokens.shape == (1, ours.grid[0] * ours.grid[1], 32)
    assert (tower.width, tower.token_width, tower.num_layers) == (32, 32, 2)
    assert ours.mask.all()
    assert ours.pixels.shape == (1, 1, side, side)


@pytest.mark.parametrize(("name", "size", "grid"), [("rad-dino", 518, 37), ("medsiglip", 448, 32)])
def test_size_and_normalisation_come_from_the_models_own_configuration(name, size, grid, folders):
    with patch("diptych.towers.colour.rank_zero_info") as told:
        tower = TransformersImage(str(folders[name])).eval()
        with torch.no_grad():
            assert tower(torch.zeros(1, 1, size, size, dtype=torch.uint8)).grid == (grid, grid)
        assert not told.called
    preset = MADE[name][2]
    origin = tower.origin
    assert origin["input_size"] == size
    assert origin["mean"] == pytest.approx(preset["image_mean"], abs=1e-6)
    assert origin["std"] == pytest.approx(preset["image_std"], abs=1e-6)
    assert len(origin["sha256"]) == 64
    given = TransformersImage(str(folders[name]), mean=0.4, std=[0.1, 0.2, 0.3])
    torch.testing.assert_close(given.mean, torch.full((3,), 0.4))
    torch.testing.assert_close(given.std, torch.tensor([0.1, 0.2, 0.3]))


@pytest.mark.parametrize("name", ["rad-dino", "vit"])
def test_interpolated_positions_are_said_once_and_other_sizes_refused(name, folders):
    tower = TransformersImage(str(folders[name])).eval()
    side = {"rad-dino": 56, "vit": 48}[name]
    places = {"rad-dino": 4, "vit": 6}[name]
    plain = torch.full((1, 1, side, side), 90, dtype=torch.uint8)
    with patch("diptych.towers.colour.rank_zero_info") as told, torch.no_grad():
        for _ in range(2):
            out = tower(plain)
    (call,) = told.call_args_list
    assert f"interpolated to {places}x{places}" in call.args[0]
    assert f"data.loading.image_size: {tower.input_size}" in call.args[0]
    assert out.grid == (places, places)
    assert (out.tokens - out.tokens[:, :1]).abs().max() > 1e-3  # a constant picture: the places alone differ
    with pytest.raises(
        ConfigError, match=f"of 50x50: its patches have [0-9]+ pixels; set data.loading.image_size: {tower.input_size}$"
    ):
        tower(torch.zeros(1, 1, 50, 50))


def test_names_of_older_files_are_translated(folders, tmp_path):
    """As RAD-DINO's file has them: ``encoder.layer.0.attention.attention.query.weight``."""
    state = load_file(folders["rad-dino"] / "model.safetensors")
    renames = {
        "attention.q_proj.": "attention.attention.query.",
        "attention.k_proj.": "attention.attention.key.",
        "attention.v_proj.": "attention.attention.value.",
        "attention.o_proj.": "attention.output.dense.",
    }
    old = {}
    for key, value in state.items():
        new = key
        for ours, theirs in renames.items():
            new = new.replace(ours, theirs)
        old[new] = value
    assert "encoder.layer.0.attention.attention.query.weight" in old
    for file in ("config.json", "preprocessor_config.json"):
        (tmp_path / file).write_text((folders["rad-dino"] / file).read_text())
    save_file(old, tmp_path / "model.safetensors", {"format": "pt"})
    one, other = TransformersImage(str(folders["rad-dino"])), TransformersImage(str(tmp_path))
    for key, value in one.model.state_dict().items():
        assert torch.equal(other.model.state_dict()[key], value), key


def test_what_is_lacking_is_refused(folders, tmp_path):
    with pytest.raises(ConfigError, match=r"could not be loaded .*preprocessor_config.json"):
        TransformersImage(str(tmp_path))
    for file in ("config.json", "preprocessor_config.json"):
        (tmp_path / file).write_text((folders["vit"] / file).read_text())
    state = load_file(folders["vit"] / "model.safetensors")
    gone = next(key for key in state if key.endswith("mlp.fc1.weight") or "intermediate.dense.weight" in key)
    save_file({k: v for k, v in state.items() if k != gone}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match="weights are missing"):
        TransformersImage(str(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    bad = {"weight": torch.zeros(1), "class": np.float64}
    torch.save(bad, tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="hold objects other than tensors"):
        TransformersImage(str(tmp_path))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**VIT, "rescale_factor": 1.0}))
    with pytest.raises(ConfigError, match=r"scales by 1\.0"):
        TransformersImage(str(tmp_path), pretrained=False)
    TransformersImage(str(tmp_path), pretrained=False, mean=0.5, std=0.5)
    headless = json.dumps({"model_type": "siglip_vision_model", "vision_use_head": False, **WIDE})
    with pytest.raises(ConfigError, match="no pooling of its own"):
        TransformersImage("x", pretrained=False, architecture=headless)
    with pytest.raises(ConfigError, match="no image tower"):
        TransformersImage("x", pretrained=False, architecture='{"model_type": "bert"}')


@pytest.mark.parametrize("name", ["rad-dino", "medsiglip", "vit", "clip"])
def test_training_reaches_what_is_trained_and_layers_are_numbered(name, folders):
    tower = TransformersImage(str(folders[name]), freeze_layers=2, gradient_checkpointing=name == "vit").train()
    out = tower(torch.zeros(2, 1, 56, 56, dtype=torch.uint8))
    (out.pooled.square().sum() + out.tokens.square().sum()).backward()
    for key, parameter in tower.named_parameters():
        layer = tower.layer_of(key)
        assert 0 <= layer <= 2
        assert parameter.requires_grad == (layer == 2), key
        assert (parameter.grad is not None) == (layer == 2), key
    frozen = TransformersImage(str(folders[name]), frozen=True).train()
    assert not any(module.training for module in frozen.model.modules())


def test_pyramid_has_the_strides_of_a_decoder(folders):
    tower = TransformersImage(str(folders["vit"])).eval()
    image = torch.from_numpy(grey(32))[None, None]
    with torch.no_grad():
        levels = tower.pyramid(image)
        out = tower(image)
        hidden = tower.model(pixel_values=tower._normalise(image), output_hidden_states=True).hidden_states
    assert [tuple(level.shape) for level in levels] == [(1, 32, 8, 8), (1, 32, 4, 4), (1, 32, 2, 2), (1, 32, 1, 1)]
    places = out.tokens.transpose(1, 2).unflatten(2, out.grid)  # of the last of two blocks
    torch.testing.assert_close(levels[3], torch.nn.functional.interpolate(places, (1, 1), mode="bilinear"))
    inner = tower.model.layernorm(hidden[1])[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
    torch.testing.assert_close(levels[1], inner)


def test_a_checkpoint_builds_it_again_without_the_folder(folders, tmp_path):
    tower = TransformersImage(str(folders["rad-dino"])).eval()
    extra = tower.get_extra_state()
    again = TransformersImage("gone", **TransformersImage.rebuild_args(extra)).eval()
    again.load_state_dict(tower.state_dict())
    image = torch.from_numpy(grey(28))[None, None]
    with torch.no_grad():
        assert torch.equal(again(image).pooled, tower(image).pooled)
    assert again.origin == tower.origin
    assert again.input_size == 518
    with pytest.raises(ConfigError, match="refused"):
        TransformersImage("x", pretrained=False, architecture='{"model_type": "vit", "auto_map": "evil.py"}')
