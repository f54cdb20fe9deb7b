"""Peers and a foundation tower with random weights of their true shapes, and tokenizers to go with them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from peers import SPECIAL, mgca_projector, mgca_towers, named, openai
from tokenizers import pre_tokenizers
from torch import nn
from transformers import BertConfig, BertModel, CLIPConfig, CLIPModel, CLIPTokenizerFast, Dinov2Config, Dinov2Model

from diptych.evaluation.prompts import load_prompts


def clinical_bert(layers=12, words=28996):
    return BertModel(BertConfig(vocab_size=words, num_hidden_layers=layers))


def gloria():
    state = named("img_encoder.model.", torchvision.models.resnet50(), without="fc.")
    state |= named("img_encoder.global_embedder.", nn.Linear(2048, 768))
    state |= named("img_encoder.local_embedder.", nn.Conv2d(1024, 768, 1, bias=False))
    return state | named("text_encoder.model.", clinical_bert())


def mgca():
    state = mgca_towers(timm.create_model("vit_base_patch16_224"), clinical_bert(6))
    for panel in ("img", "text"):
        state |= named(f"{panel}_encoder_q.global_embed.head.", mgca_projector(768, 128))
        state |= named(f"{panel}_encoder_q.local_embed.head.", mgca_projector(768, 128, convolution=True))
    return state | {"prototype_layer.weight": torch.empty(500, 128)}


def chexzero():
    config = CLIPConfig()  # that of ViT-B/32
    return openai(CLIPModel(config), layers=12)


SETS = ("chexpert5x200", "rsna", "siim", "nih")
PEERS = {"gloria": gloria, "mgca": mgca, "chexzero": chexzero}


def wordpiece(path: Path) -> None:
    """A tokenizer of BERT whose pieces are the words of prompts, and letters."""
    path.mkdir(parents=True)
    letters = [chr(code) for code in range(33, 127)]
    prompts = (f"{entry.positive} {entry.negative}" for name in SETS for entry in load_prompts(name).entries)
    words = sorted({word for text in prompts for word in re.findall("[a-z]{2,}", text.lower())})
    pieces = [*SPECIAL, *letters, *(f"##{letter}" for letter in letters), *words]
    (path / "vocab.txt").write_text("\n".join(pieces))
    BertConfig(vocab_size=len(pieces)).save_pretrained(path)


def byte_pairs(path: Path) -> None:
    """A tokenizer of CLIP whose pieces are single bytes."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    CLIPTokenizerFast(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[]).save_pretrained(path)


def foundation(path: Path) -> None:
    """DINOv2-S, whose images are normalised as ImageNet's."""
    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=384, num_attention_heads=6, image_size=518, patch_size=14)
    Dinov2Model(config).save_pretrained(path)
    preset: dict[str, Any] = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    preset |= {"image_processor_type": "BitImageProcessor", "crop_size": {"height": 224, "width": 224}}
    (path / "preprocessor_config.json").write_text(json.dumps(preset))
