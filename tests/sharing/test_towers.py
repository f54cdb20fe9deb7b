"""The image tower in timm and the text tower in transformers give the same features."""

import json

import pytest
import timm
import torch
from mini import IMAGE
from sharing import REPORTS, trained
from transformers import AutoModel, AutoTokenizer

from diptych.errors import ConfigError
from diptych.sharing.towers import write_timm, write_transformers
from diptych.towers.image import TimmImage
from diptych.towers.text import TransformersText

VIT = {
    "name": "vit_tiny_patch16_224",
    "pretrained": False,
    "mean": 0.3,
    "model_args": {"img_size": 32, "depth": 2, "embed_dim": 16, "num_heads": 2, "patch_size": 8},
}


@pytest.fixture(scope="module")
def model():
    return trained("local_pooling")


@pytest.mark.parametrize("args", [{**IMAGE, "stage": 2, "mean": 0.4, "std": 0.3}, VIT], ids=["resnet", "vit"])
@torch.inference_mode()
def test_timm_makes_the_same_tower(tmp_path, args):
    torch.manual_seed(0)
    tower = TimmImage(**args).eval()
    write_timm(tower, 32, tmp_path / "tower")
    read = timm.create_model(f"local-dir:{tmp_path / 'tower'}", pretrained=True).eval()
    picture = torch.randint(0, 255, (3, 1, 32, 32), dtype=torch.uint8)
    own = tower(picture)
    assert torch.equal(read(own.pixels), own.pooled)
    _, (regions,) = read.forward_intermediates(own.pixels, indices=[tower.stage], norm=True)
    assert torch.equal(regions.flatten(2).transpose(1, 2), own.tokens)
    data = timm.data.resolve_model_data_config(read)
    assert list(data["input_size"]) == [1, 32, 32]
    assert list(data["mean"]) == pytest.approx([float(tower.mean)])
    again = TimmImage(f"local-dir:{tmp_path / 'tower'}", stage=args.get("stage", -1)).eval()  # and so does diptych
    assert torch.allclose(again(picture).pooled, own.pooled, atol=1e-6)


@torch.inference_mode()
def test_transformers_makes_the_same_tower(model, tmp_path):
    tower = model.module.encoder.text
    write_transformers(tower, tmp_path / "first")
    tokens = AutoTokenizer.from_pretrained(tmp_path / "first")(REPORTS, padding=True, return_tensors="pt")
    read = AutoModel.from_pretrained(tmp_path / "first").eval()(**tokens).last_hidden_state
    longest = read.shape[1]
    text = tower.tokenizer(REPORTS)
    own = tower.model(input_ids=text.input_ids, attention_mask=text.attention_mask.long()).last_hidden_state
    real = text.attention_mask[:, :longest]
    assert torch.allclose(read[real], own[:, :longest][real], atol=1e-6)
    again = TransformersText(str(tmp_path / "first"), pool="mean", max_tokens=64).eval()
    features = again(again.tokenizer(REPORTS))
    assert torch.allclose(features.pooled, tower(text).pooled, atol=1e-6)
    write_transformers(again, tmp_path / "second")  # a tower of transformers too
    assert "tmp" not in json.dumps(json.loads((tmp_path / "second" / "config.json").read_text()))
    third = TransformersText(str(tmp_path / "second"), pool="mean", max_tokens=64).eval()
    assert torch.allclose(third(third.tokenizer(REPORTS)).pooled, features.pooled, atol=1e-6)


def test_other_towers_are_refused_by_name(tmp_path):
    pytest.importorskip("peft")
    from diptych.towers.lora import LoraImage, LoraText

    model = trained("global")
    with pytest.raises(ConfigError, match=r"image tower LoraImage is no backbone of timm; merge its adapters"):
        write_timm(LoraImage(TimmImage(**VIT)), 32, tmp_path / "a")
    with pytest.raises(ConfigError, match=r"text tower LoraText is no model of transformers; merge its adapters"):
        write_transformers(LoraText(model.module.encoder.text), tmp_path / "a")
    assert not (tmp_path / "a").exists()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds other files"):
        write_timm(TimmImage(**VIT), 32, tmp_path / "b")
