"""Each peer's own modules, built again from libraries with random weights, give what the converted checkpoint gives."""

from __future__ import annotations

import pytest
import torch
import torchvision
from peers import (
    TEXTS,
    bert,
    check,
    coloured,
    converted,
    maps,
    mgca_projector,
    mgca_towers,
    named,
    pictures,
    pieces,
    resnet,
    seeded,
    tokenizer_folder,
    unit,
)
from torch import nn

import diptych
from diptych.errors import ConfigError
from diptych.model.converting import convert
from diptych_heads.peers.biovil import Biovil
from diptych_heads.peers.convirt import Convirt
from diptych_heads.peers.gloria import Gloria
from diptych_heads.peers.mgca import Mgca
from diptych_heads.peers.xrv import Xrv

HALF = (0.5, 0.5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tokenizer_folder(tmp_path_factory.mktemp("peers") / "tokenizer")


@torch.no_grad()
def test_gloria(tmp_path, folder):
    tower, texts = resnet(50), bert(5)
    globally = seeded(nn.Linear(2048, 128))
    locally = nn.Conv2d(1024, 128, 1, bias=False)
    state = named("gloria.img_encoder.model.", tower, without="fc.") | named("gloria.text_encoder.model.", texts)
    state |= named("gloria.img_encoder.global_embedder.", globally)
    state |= named("gloria.img_encoder.local_embedder.", locally)
    model, report = converted(Gloria(), {"epoch": 3, "state_dict": state}, tmp_path, folder)
    assert model.image_size == 299
    x = pictures(96)
    third, last = maps(tower, coloured(x, *HALF))
    hidden = [texts(**pieces(folder, text), output_hidden_states=True).hidden_states for text in TEXTS]
    summed = [torch.stack(layers[-4:]).sum(0)[0] for layers in hidden]  # [P,D]: with [CLS] and [SEP]
    mine = check(model, x, globally(last.mean((2, 3))), [pieces_.mean(0) for pieces_ in summed])
    regions = locally(third).flatten(2).transpose(1, 2)
    torch.testing.assert_close(mine.tokens, regions, atol=1e-5 * float(regions.abs().max()), rtol=1e-5)
    # "No pneumothorax, the heart is large.": the second word has two pieces, and punctuation is no word here
    words = model.embed_text(TEXTS[1]).tokens[0]
    torch.testing.assert_close(words[1], summed[1][2] + summed[1][3], atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(words[2], summed[1][5], atol=1e-4, rtol=1e-5)
    assert report["mapped"]["gloria.img_encoder.model.conv1.weight"] == ["encoder.image.backbone.conv1.weight"]
    assert report["left_out"]["gloria.text_encoder.model.pooler.dense.weight"].startswith("the pooler")
    assert set(report["mapped"]) | set(report["left_out"]) == set(state)  # nothing is silent
    assert {"head.text_projection.weight", "head.scale.log_scale"} <= set(report["set"])


@torch.no_grad()
@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_mgca(tmp_path, folder, kind):
    import timm

    texts = bert(2, pooler=False)
    torch.manual_seed(0)
    if kind == "resnet":
        tower, size = resnet(18), 96
        third, last = maps(tower, coloured(pictures(size), *HALF))
        pooled, tokens = last.mean((2, 3)), third.flatten(2).transpose(1, 2)
    else:
        size = 48
        tower = timm.create_model("vit_base_patch16_224", img_size=size, embed_dim=64, depth=2, num_heads=1)
        tower = seeded(tower)
        both = tower.forward_features(coloured(pictures(size), *HALF))
        pooled, tokens = both[:, 0], both[:, 1:]
    state = mgca_towers(tower, texts)
    heads = {
        "img_encoder_q.global_embed": mgca_projector(pooled.shape[1], 24),
        "img_encoder_q.local_embed": mgca_projector(tokens.shape[2], 24, convolution=True),
        "text_encoder_q.global_embed": mgca_projector(128, 24),
        "text_encoder_q.local_embed": mgca_projector(128, 24, convolution=True),
    }
    for name, head in heads.items():
        state |= named(f"{name}.head.", head)
    state["prototype_layer.weight"] = unit(torch.randn(7, 24))
    state["patch_local_atten_layer.in_proj_weight"] = torch.zeros(72, 24)
    model, report = converted(Mgca(), {"state_dict": state}, tmp_path, folder)
    hidden = [texts(**pieces(folder, text)).last_hidden_state[0] for text in TEXTS]
    reports = [heads["text_encoder_q.global_embed"](pieces_[:1])[0] for pieces_ in hidden]
    mine = check(model, pictures(size), heads["img_encoder_q.global_embed"](pooled), reports)
    regions = unit(heads["img_encoder_q.local_embed"](tokens.transpose(1, 2)).transpose(1, 2))
    torch.testing.assert_close(mine.tokens, regions, atol=1e-5, rtol=0)
    word = heads["text_encoder_q.local_embed"]((hidden[1][2] + hidden[1][3])[None, :, None])[0, :, 0]
    torch.testing.assert_close(model.embed_text(TEXTS[1]).tokens[0, 1], unit(word), atol=1e-5, rtol=0)
    assert torch.equal(model.module.head.prototypes, state["prototype_layer.weight"])
    assert set(report["mapped"]) | set(report["left_out"]) == set(state)
    assert report["set"]["encoder.text.model.embeddings.token_type_embeddings.weight"].startswith("zeros")


class TextProjection(nn.Module):
    """CXR-BERT's, from its names: dense, GELU, norm, dense."""

    def __init__(self):
        super().__init__()
        self.dense_to_hidden = nn.Linear(128, 20)
        self.LayerNorm = nn.LayerNorm(20, eps=1e-12)
        self.dense_to_output = nn.Linear(20, 20)

    def forward(self, x):
        return self.dense_to_output(self.LayerNorm(nn.functional.gelu(self.dense_to_hidden(x))))


@torch.no_grad()
def test_biovil(tmp_path, folder):
    tower, texts, text_head = resnet(50), bert(2, pooler=False), seeded(TextProjection())
    torch.manual_seed(5)
    parts = [nn.Conv2d(2048, 30, 1, bias=False), nn.BatchNorm2d(30), nn.ReLU(), nn.Conv2d(30, 20, 1)]
    projector = seeded(nn.Sequential(*parts))
    torch.save(named("encoder.encoder.", tower) | named("projector.model.", projector), tmp_path / "image.pt")
    state = named("bert.", texts) | named("cls_projection_head.", text_head)
    state |= {"cls.predictions.bias": torch.zeros(18), "cls.predictions.transform.dense.bias": torch.zeros(128)}
    torch.save(state, tmp_path / "text.bin")
    files = [tmp_path / "image.pt", tmp_path / "text.bin"]
    done = convert("biovil", Biovil(), files, tmp_path / "run.ckpt", tokenizer=folder)
    model, x = diptych.load(done.checkpoint), pictures(96)
    last = maps(tower, coloured(x, (0.0,), (1.0,)))[1]
    hidden = [texts(**pieces(folder, text)).last_hidden_state[0, 0] for text in TEXTS]
    check(model, x, projector(last).mean((2, 3)), [text_head(vector) for vector in hidden])
    assert model.image_size == 480
    with pytest.raises(ConfigError, match="lacks"):
        convert("biovil", Biovil(), files[:1], tmp_path / "run.ckpt", tokenizer=folder)
    with pytest.raises(ConfigError, match="give each file once"):
        convert("biovil", Biovil(), [*files, files[0]], tmp_path / "run.ckpt", tokenizer=folder)


@torch.no_grad()
def test_convirt_of_convirt_pytorch(tmp_path, folder):
    tower, texts = resnet(18), bert(2)
    torch.manual_seed(6)
    layers = {
        "res_l1": nn.Linear(512, 512),
        "res_l2": nn.Linear(512, 16),
        "bert_l1": nn.Linear(128, 128),
        "bert_l2": nn.Linear(128, 16),
    }
    features = nn.Sequential(*list(tower.children())[:-1])
    state = named("res_features.", features) | named("bert_model.", texts)
    for name, layer in layers.items():
        state |= named(f"{name}.", layer)
    model, report = converted(Convirt(), state, tmp_path, folder)
    x = pictures(96)
    image = layers["res_l2"](layers["res_l1"](features(coloured(x, *HALF)).flatten(1)).relu())
    hidden = [texts(**pieces(folder, text)).last_hidden_state[0].mean(0) for text in TEXTS]
    check(model, x, image, [layers["bert_l2"](layers["bert_l1"](vector).relu()) for vector in hidden])
    assert report["mapped"]["res_features.4.0.conv1.weight"] == ["encoder.image.backbone.layer1.0.conv1.weight"]
    assert set(report["mapped"]) | set(report["left_out"]) == set(state)


@torch.no_grad()
def test_convirt_of_mgca(tmp_path, folder):
    tower, texts = resnet(18), bert(2, pooler=False)
    state = {name.replace("_encoder_q", "_encoder"): value for name, value in mgca_towers(tower, texts).items()}
    heads = {"img": mgca_projector(512, 24), "text": mgca_projector(128, 24)}
    for panel, head in heads.items():
        state |= named(f"{panel}_encoder.global_embed.head.", head)
        state |= named(f"{panel}_encoder.local_embed.head.", mgca_projector(64, 24, convolution=True))
    model, _ = converted(Convirt(), {"state_dict": state}, tmp_path, folder)
    x = pictures(96)
    last = maps(tower, coloured(x, *HALF))[1]
    hidden = [texts(**pieces(folder, text)).last_hidden_state[0, :1] for text in TEXTS]
    check(model, x, heads["img"](last.mean((2, 3))), [heads["text"](vector)[0] for vector in hidden])


@torch.no_grad()
def test_xrv(tmp_path):
    torch.manual_seed(7)
    tower = torchvision.models.densenet121(weights=None)
    tower.features.conv0 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    tower = seeded(tower)
    state = named("", tower) | {"op_threshs": torch.full((18,), torch.nan)}
    model, report = converted(Xrv(), state, tmp_path)
    x = pictures(64)
    scaled = (2 * x.float() / 255 - 1) * 1024  # torchxrayvision.datasets.normalize
    expected = tower.features(scaled).relu()
    features = model.module.encoder.encode_image(x)
    torch.testing.assert_close(unit(features.pooled), unit(expected.mean((2, 3))), atol=1e-5, rtol=0)
    assert report["left_out"] == {
        "classifier.weight": "a classifier of findings",
        "classifier.bias": "a classifier of findings",
        "op_threshs": "thresholds of the classifier",
    }
    assert all("random" in why for name, why in report["set"].items() if name.startswith(("head.", "encoder.text.")))
    with pytest.raises(ConfigError, match="no vocabulary"):
        model.embed_text("Effusion.")
    from diptych import TrainedImage

    assert TrainedImage(str(tmp_path / "run.ckpt")).width == 1024
