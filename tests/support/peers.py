"""Peers' modules, built again from libraries with random weights, and state dicts under the peers' names."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torchvision
from torch import nn
from torch.nn.functional import normalize
from transformers import BertConfig, BertModel, BertTokenizerFast

import diptych
from diptych.model.converting import convert

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["left", "right", "effusion", "small", "no", "pneumo", "##thorax", "the", "heart", "is", "large", ".", ","]
TEXTS = ["Small left effusion.", "No pneumothorax, the heart is large."]


def tokenizer_folder(path: Path) -> str:
    path.mkdir(parents=True)
    (path / "vocab.txt").write_text("\n".join([*SPECIAL, *WORDS]))
    BertConfig(vocab_size=len(SPECIAL) + len(WORDS)).save_pretrained(path)
    return str(path)


def pieces(folder: str, text: str) -> dict[str, torch.Tensor]:
    """One text as transformers' own tokenizer reads it, so that no padding is there."""
    return dict(BertTokenizerFast(f"{folder}/vocab.txt", do_lower_case=True)([text], return_tensors="pt"))


def seeded(module: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights of a sensible size, and running statistics that are not 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    if next(module.parameters()).is_meta:  # shapes alone
        return module.eval()
    for name, value in module.state_dict().items():
        if name.endswith("running_mean"):
            value.copy_(0.1 * torch.randn(value.shape, generator=generator))
        elif name.endswith("running_var"):
            value.copy_(0.5 + torch.rand(value.shape, generator=generator))
        elif value.is_floating_point() and value.ndim == 1:
            value.add_(0.1 * torch.randn(value.shape, generator=generator))
    return module.eval()


def bert(layers: int = 4, pooler: bool = True, positions: int = 260) -> BertModel:
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=128,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=96,
        max_position_embeddings=positions,
        initializer_range=0.1,
    )
    return seeded(BertModel(config, add_pooling_layer=pooler))


def resnet(depth: int = 18) -> nn.Module:
    torch.manual_seed(2)
    return seeded(getattr(torchvision.models, f"resnet{depth}")(weights=None))


def maps(tower: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Layer 3 and layer 4 of torchvision's ResNet."""
    x = tower.maxpool(tower.relu(tower.bn1(tower.conv1(x))))
    third = tower.layer3(tower.layer2(tower.layer1(x)))
    return third, tower.layer4(third)


def named(prefix: str, module: nn.Module, without: str = "") -> dict[str, torch.Tensor]:
    return {
        f"{prefix}{name}": value.clone()
        for name, value in module.state_dict().items()
        if not without or not name.startswith(without)
    }


def pictures(size: int, number: int = 2) -> torch.Tensor:
    return torch.randint(0, 256, (number, 1, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


def coloured(grey: torch.Tensor, mean: object, std: object) -> torch.Tensor:
    """Grey as three channels, as peers normalise them."""
    x = grey.float().div(255).expand(-1, 3, -1, -1)
    return (x - torch.as_tensor(mean).reshape(-1, 1, 1)) / torch.as_tensor(std).reshape(-1, 1, 1)


def unit(x: torch.Tensor) -> torch.Tensor:
    return normalize(x, dim=-1)


def converted(peer, state, path, folder=None, **options):
    """The converted model, and the report. The file is as ``torch.save`` writes it."""
    torch.save(state, path / "peer.pt")
    done = convert(
        type(peer).__name__.lower(), peer, [path / "peer.pt"], path / "run.ckpt", tokenizer=folder, **options
    )
    report = json.loads(done.report.read_text())
    assert not report["missing"]
    assert not report["unexpected"]
    return diptych.load(path / "run.ckpt"), report


@torch.no_grad()
def check(model, images, image_vectors, text_vectors, tolerance=1e-5):
    """Vectors of the model's head against those of the peer, all of length 1, and the scores."""
    mine = model.module.embed_image(images)
    torch.testing.assert_close(mine.pooled, unit(image_vectors), atol=tolerance, rtol=0)
    for text, vector in zip(TEXTS, text_vectors, strict=True):
        torch.testing.assert_close(model.embed_text(text).pooled[0], unit(vector), atol=tolerance, rtol=0)
    assert len(unit(image_vectors).round(decimals=3).unique(dim=0)) == len(images)  # the peer tells them apart
    return mine


def mgca_projector(inputs, outputs, convolution=False):
    """The published projection. A Conv1d of one place stands for a linear layer where tokens are projected."""

    def layer(a, b):
        return nn.Conv1d(a, b, 1) if convolution else nn.Linear(a, b)

    parts = [
        layer(inputs, 40),
        nn.BatchNorm1d(40),
        nn.ReLU(),
        layer(40, outputs),
        nn.BatchNorm1d(outputs, affine=False),
    ]
    return seeded(nn.Sequential(*parts), seed=inputs)


def mgca_towers(tower, texts):
    """Image tower and text tower as MGCA's code names them. Its BERT has attention to pictures, and no types of tokens."""
    state = named("img_encoder_q.model.", tower, without="fc.")
    state |= named("text_encoder_q.model.", texts, without="embeddings.token_type")
    state["text_encoder_q.model.embeddings.position_ids"] = torch.arange(260)[None]
    state["text_encoder_q.model.encoder.layer.0.crossattention.self.query.weight"] = torch.zeros(128, 128)
    texts.embeddings.token_type_embeddings.weight.zero_()
    return state


OLD_SWIN = {
    ".attention.q_proj": ".attention.self.query",
    ".attention.k_proj": ".attention.self.key",
    ".attention.v_proj": ".attention.self.value",
    ".attention.o_proj": ".attention.output.dense",
    ".attention.relative_position_bias.relative": ".attention.self.relative",
    ".mlp.fc1": ".intermediate.dense",
    ".mlp.fc2": ".output.dense",
}
"""Names of transformers 5 on the left; those of version 4, with which the weights were published, on the right."""


CLIP_NAMES = (
    ("visual.class_embedding", "vision_model.embeddings.class_embedding"),
    ("visual.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
    ("visual.conv1.weight", "vision_model.embeddings.patch_embedding.weight"),
    ("visual.ln_pre.weight", "vision_model.pre_layrnorm.weight"),
    ("visual.ln_pre.bias", "vision_model.pre_layrnorm.bias"),
    ("visual.ln_post.weight", "vision_model.post_layernorm.weight"),
    ("visual.ln_post.bias", "vision_model.post_layernorm.bias"),
    ("token_embedding.weight", "text_model.embeddings.token_embedding.weight"),
    ("positional_embedding", "text_model.embeddings.position_embedding.weight"),
    ("ln_final.weight", "text_model.final_layer_norm.weight"),
    ("ln_final.bias", "text_model.final_layer_norm.bias"),
)


def openai(model, layers=2):
    """transformers' CLIP under the names of OpenAI's code."""
    theirs = model.state_dict()
    state = {name: theirs[other].clone() for name, other in CLIP_NAMES}
    for tower, start in (("vision_model", "visual.transformer"), ("text_model", "transformer")):
        for i in range(layers):
            layer, block = f"{tower}.encoder.layers.{i}", f"{start}.resblocks.{i}"
            for part in ("weight", "bias"):
                thirds = [theirs[f"{layer}.self_attn.{letter}_proj.{part}"] for letter in "qkv"]
                state[f"{block}.attn.in_proj_{part}"] = torch.cat(thirds)
                state[f"{block}.attn.out_proj.{part}"] = theirs[f"{layer}.self_attn.out_proj.{part}"]
                for own, other in (("ln_1", "layer_norm1"), ("ln_2", "layer_norm2")):
                    state[f"{block}.{own}.{part}"] = theirs[f"{layer}.{other}.{part}"]
                for own, other in (("c_fc", "fc1"), ("c_proj", "fc2")):
                    state[f"{block}.mlp.{own}.{part}"] = theirs[f"{layer}.mlp.{other}.{part}"]
    state["visual.proj"] = theirs["visual_projection.weight"].T.contiguous()
    state["text_projection"] = theirs["text_projection.weight"].T.contiguous()
    return state | {"logit_scale": theirs["logit_scale"]}
