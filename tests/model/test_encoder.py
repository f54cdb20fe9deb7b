from __future__ import annotations

from unittest.mock import patch

import pytest
import torch

from diptych.model.encoder import DualEncoder
from diptych.towers.image import TimmImage
from diptych.towers.text import ScratchText
from diptych.types import Dims

REPORTS = ["No pneumothorax. The heart is normal.", "Left effusion.", "", "Cardiomegaly. No focal consolidation."]
SMALL = {
    "resnet18": {"channels": [8, 16, 24, 32], "layers": [1, 1, 1, 1]},
    "vit_tiny_patch16_224": {"embed_dim": 32, "depth": 2, "num_heads": 2},
}


def encoder(name="resnet18", stage=-1, **text):
    torch.manual_seed(0)
    image = TimmImage(name, pretrained=False, stage=stage, model_args=SMALL[name])
    model = DualEncoder(
        image, ScratchText(**{"width": 16, "depth": 2, "heads": 2, "vocabulary": 150, "max_tokens": 32, **text})
    )
    model.tokenizer.learn(REPORTS)
    return model


@pytest.mark.parametrize(
    ("name", "stage", "dims"),
    [("resnet18", 3, Dims(32, 16, 24, 16)), ("vit_tiny_patch16_224", -1, Dims(32, 16, 32, 16))],
)
def test_dims_are_what_comes_out(name, stage, dims):
    model = encoder(name, stage).eval()
    assert model.dims == dims
    image, text = model(torch.zeros(4, 1, 64, 96, dtype=torch.uint8), model.tokenizer(REPORTS))
    assert Dims(image.pooled.shape[1], text.pooled.shape[1], image.tokens.shape[2], text.tokens.shape[2]) == dims
    assert image.grid == (4, 6)
    assert image.tokens.shape[1] == image.mask.shape[1] == 24
    assert text.tokens.shape[:2] == text.mask.shape == text.sentences.shape


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
@pytest.mark.parametrize("last_layers", [1, 2])
def test_a_step_reads_nothing_back_to_the_host(name, last_layers):
    model = encoder(name, last_layers=last_layers).train()
    image = torch.randint(0, 256, (4, 1, 64, 64), dtype=torch.uint8)
    text = model.tokenizer(REPORTS)
    reads = ("__bool__", "__int__", "__float__", "__index__", "item", "tolist", "numpy", "cpu", "nonzero", "unique")

    def refuse(self, *args, **kwargs):
        raise AssertionError("a value was read back to the host")

    with patch.multiple(torch.Tensor, **dict.fromkeys(reads, refuse)):
        with pytest.raises(AssertionError, match="read back"):
            bool(text.mask.any())  # the trap works
        seen, read = model(image, text)
        (seen.pooled.sum() + seen.tokens.sum() + read.pooled.sum() + read.tokens.sum()).backward()
    unused = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not unused  # or a distributed job would wait for them


def test_towers_work_in_half_precision_autocast():
    model = encoder("vit_tiny_patch16_224").train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        image, text = model(torch.zeros(4, 1, 64, 64, dtype=torch.uint8), model.tokenizer(REPORTS))
    assert torch.isfinite(image.tokens).all()
    assert torch.isfinite(text.tokens).all()


def test_state_of_both_towers_round_trips_weights_only(tmp_path):
    model = encoder(stage=3).eval()
    torch.save(model.state_dict(), tmp_path / "encoder.ckpt")
    state = torch.load(tmp_path / "encoder.ckpt", weights_only=True)
    image = TimmImage("gone", stage=3, **TimmImage.rebuild_args(state["image._extra_state"]))
    again = DualEncoder(image, ScratchText(width=16, depth=2, heads=2, vocabulary=150, max_tokens=32)).eval()
    again.load_state_dict(state)
    pictures = torch.randint(0, 256, (4, 1, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        for one, other in zip(
            model(pictures, model.tokenizer(REPORTS)), again(pictures, again.tokenizer(REPORTS)), strict=True
        ):
            assert torch.equal(one.pooled, other.pooled)
            assert torch.equal(one.tokens, other.tokens)
