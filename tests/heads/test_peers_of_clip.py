"""As test_peers.py, for the peers with one linear projection or with CLIP's towers."""

from __future__ import annotations

import pytest
import torch
from peers import (
    OLD_SWIN,
    TEXTS,
    bert,
    check,
    coloured,
    converted,
    maps,
    named,
    openai,
    pictures,
    pieces,
    resnet,
    seeded,
    tokenizer_folder,
    unit,
)
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast, SwinConfig, SwinModel

from diptych.errors import ConfigError
from diptych.types import Dims
from diptych_heads.global_ import Global
from diptych_heads.peers.chexzero import Chexzero
from diptych_heads.peers.cxr_clip import CxrClip
from diptych_heads.peers.medclip import Medclip
from diptych_heads.peers.openclip import Openclip
from diptych_heads.peers.parts import one_level

OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tokenizer_folder(tmp_path_factory.mktemp("peers") / "tokenizer")


def medclip_text(texts, head, folder):
    """The mean over all pieces of layers 1, 2 and the last, projected."""
    vectors = []
    for text in TEXTS:
        layers = texts(**pieces(folder, text), output_hidden_states=True).hidden_states
        vectors.append(head(torch.stack([layers[1], layers[2], layers[-1]]).mean((0, 2))[0]))
    return vectors


@torch.no_grad()
def test_medclip_with_a_resnet(tmp_path, folder):
    tower, texts = resnet(18), bert(3)
    tower.fc = nn.Linear(512, 16, bias=False)
    head = nn.Linear(128, 16, bias=False)
    state = named("vision_model.model.", tower) | named("text_model.model.", texts)
    state |= named("text_model.projection_head.", head) | {"logit_scale": torch.tensor(2.5)}
    model, _ = converted(Medclip(), state, tmp_path, folder)
    x = pictures(96)
    level = ((0.5862785803043838,), (0.27950088968644304,))
    check(model, x, tower(coloured(x, *level)), medclip_text(texts, head, folder))
    assert float(model.module.head.temperature) == pytest.approx(1 / torch.tensor(2.5).exp())


@torch.no_grad()
def test_medclip_with_a_swin(tmp_path, folder):
    torch.manual_seed(1)
    config = SwinConfig(image_size=224, embed_dim=32, depths=[2, 2], num_heads=[1, 2], initializer_range=0.1)
    tower = seeded(SwinModel(config))
    texts, image_head, head = bert(3), nn.Linear(64, 16, bias=False), nn.Linear(128, 16, bias=False)
    state = {}
    for name, value in named("vision_model.model.", tower).items():
        for new, old in OLD_SWIN.items():
            name = name.replace(new, old)
        state[name] = value
    state["vision_model.model.encoder.layers.0.blocks.0.attention.self.relative_position_index"] = torch.zeros(49, 49)
    state |= named("vision_model.projection_head.", image_head) | named("text_model.model.", texts)
    state |= named("text_model.projection_head.", head) | {"logit_scale": torch.tensor(2.5)}
    model, report = converted(Medclip(), state, tmp_path, folder)
    x = pictures(224)
    seen = tower(pixel_values=coloured(x, (0.5862785803043838,), (0.27950088968644304,))).pooler_output
    check(model, x, image_head(seen), medclip_text(texts, head, folder))
    assert set(report["mapped"]) | set(report["left_out"]) == set(state)


@torch.no_grad()
def test_cxr_clip(tmp_path, folder):
    tower, texts = resnet(18), bert(2)
    torch.manual_seed(2)
    heads = {"image": nn.Linear(512, 16), "text": nn.Linear(128, 16)}
    state = named("image_encoder.resnet.", tower, without="fc.") | named("text_encoder.text_encoder.", texts)
    for panel, layer in heads.items():
        state |= named(f"{panel}_projection.projection.", layer)
    state["logit_scale"] = torch.tensor(2.6)
    file = {"model": state, "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}}, "epoch": 3}
    model, report = converted(CxrClip(), file, tmp_path, folder)
    x = pictures(96)
    expected = unit(heads["image"](maps(tower, coloured(x, *IMAGENET))[1].mean((2, 3))))
    vectors = [heads["text"](texts(**pieces(folder, text)).last_hidden_state[0, -1]) for text in TEXTS]
    # the border of the first layer sees zeros of each colour, which one number cannot be
    mine = model.module.embed_image(x).pooled
    assert (mine * expected).sum(1).min() > 0.999
    check(model, x, mine, vectors)
    assert report["left_out"]["optimizer.state.0.exp_avg"] == "the state of training"
    with pytest.raises(ConfigError, match="no ResNet"):
        converted(CxrClip(), {"image_encoder.image_encoder.layernorm.weight": torch.ones(3)}, tmp_path, folder)


@torch.no_grad()
def test_one_level_is_exact_where_no_padding_is_seen():
    torch.manual_seed(0)
    filters, x = torch.randn(4, 3, 5, 5), pictures(20)
    mean, std, mixed, added = one_level(filters, *OPENAI)
    expected = nn.functional.conv2d(coloured(x, *OPENAI), filters)
    mine = nn.functional.conv2d((x.float() / 255 - mean) / std, mixed) + added[:, None, None]
    torch.testing.assert_close(mine, expected, atol=1e-4, rtol=1e-4)
    assert (nn.functional.conv2d((x.float() / 255 - mean) / std, mixed) - expected).abs().max() > 0.1


def byte_pairs(path):
    """A tokenizer as CLIP's: byte-level pairs, a token at the beginning and one at the end, which is the highest number."""
    letters = pre_tokenizers.ByteLevel.alphabet()
    vocabulary = {letter: number for number, letter in enumerate(sorted(letters))}
    begin, end = len(vocabulary), len(vocabulary) + 1
    vocabulary |= {"<|startoftext|>": begin, "<|endoftext|>": end}
    backend = Tokenizer(models.BPE(vocabulary, [], unk_token="<|endoftext|>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.post_processor = processors.TemplateProcessing(
        single="<|startoftext|> $A <|endoftext|>",
        special_tokens=[("<|startoftext|>", begin), ("<|endoftext|>", end)],
    )
    backend.add_special_tokens(["<|startoftext|>", "<|endoftext|>"])
    wrapper = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<|endoftext|>", eos_token="<|endoftext|>")
    wrapper.save_pretrained(path)
    return str(path), backend, len(vocabulary)


@torch.no_grad()
@pytest.mark.parametrize("peer", [Chexzero(), Openclip()], ids=["chexzero", "openclip"])
def test_clip(tmp_path, peer):
    tokenizer, backend, size = byte_pairs(tmp_path / "tokenizer")
    act = "quick_gelu" if isinstance(peer, Chexzero) else "gelu"
    torch.manual_seed(4)
    shape = {"num_hidden_layers": 2, "hidden_act": act, "initializer_factor": 3.0}
    config = CLIPConfig(
        text_config={
            **shape,
            "hidden_size": 64,
            "num_attention_heads": 1,
            "intermediate_size": 256,
            "vocab_size": size,
            "max_position_embeddings": 77,
            "eos_token_id": size - 1,
            "bos_token_id": size - 2,
        },
        vision_config={
            **shape,
            "hidden_size": 128,
            "num_attention_heads": 2,
            "intermediate_size": 512,
            "image_size": 64,
            "patch_size": 16,
        },
        projection_dim=24,
    )
    clip = seeded(CLIPModel(config))
    state = openai(clip)
    model, report = converted(peer, state, tmp_path, tokenizer)
    assert set(report["mapped"]) == set(state)
    x = pictures(64)
    level = ((101.48761 / 255,), (83.43944 / 255,)) if isinstance(peer, Chexzero) else OPENAI
    seen = clip.vision_model(pixel_values=coloured(x, *level)).pooler_output
    read = [clip.text_model(input_ids=torch.tensor([backend.encode(text).ids])).pooler_output[0] for text in TEXTS]
    check(model, x, clip.visual_projection(seen), [clip.text_projection(vector) for vector in read])
    assert model.image_size == 64
    assert float(model.module.head.scale()) == pytest.approx(float(state["logit_scale"].exp()), rel=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("layers", [1, 2])
def test_biomedclip(tmp_path, folder, layers):
    import timm

    torch.manual_seed(5)
    tower = timm.create_model("vit_base_patch16_224", img_size=48, embed_dim=64, depth=2, num_heads=1, num_classes=0)
    tower, texts, image_head = seeded(tower), bert(2, pooler=False), nn.Linear(64, 24, bias=False)
    two = [nn.Linear(128, 40, bias=False), nn.GELU(), nn.Linear(40, 24, bias=False)]
    head = nn.Sequential(*two) if layers == 2 else nn.Linear(128, 24, bias=False)
    state = named("visual.trunk.", tower) | named("visual.head.proj.", image_head) | named("text.transformer.", texts)
    state |= named("text.proj.", head) | {"logit_scale": torch.tensor(4.0)}
    model, report = converted(Openclip(), state, tmp_path, folder)
    assert set(report["mapped"]) == set(state)
    x = pictures(48)
    hidden = [texts(**pieces(folder, text)).last_hidden_state[0, 0] for text in TEXTS]
    check(model, x, image_head(tower(coloured(x, *OPENAI))), [head(vector) for vector in hidden])
    with pytest.raises(ConfigError, match="UniMed-CLIP"):
        converted(Openclip(), named("text.transformer.", texts), tmp_path, folder)


def test_hidden_widths_of_global_are_checked():
    dims = Dims(8, 6, 8, 6)
    head = Global(dims, width=4, projection="mlp", hidden=[5, 3])
    assert [head.image_projection[0].out_features, head.text_projection[0].out_features] == [5, 3]
    for hidden in (0, [], [1, 2, 3]):
        with pytest.raises(ConfigError, match="hidden"):
            Global(dims, projection="mlp", hidden=hidden)
