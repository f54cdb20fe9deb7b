"""Key maps at the peers' true sizes, on torch's ``meta`` device: every weight of the towers is there, in its shape."""

import pytest
import timm
import torch
import torchvision
from peers import OLD_SWIN, mgca_projector, mgca_towers, named, openai
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_MAPPING,
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    SwinConfig,
    SwinModel,
)

from diptych.peer import Weights
from diptych_heads.peers.chexzero import Chexzero
from diptych_heads.peers.gloria import Gloria
from diptych_heads.peers.medclip import Medclip
from diptych_heads.peers.mgca import Mgca
from diptych_heads.peers.openclip import Openclip
from diptych_heads.peers.xrv import Xrv


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


def medclip():
    tower = SwinModel(SwinConfig(image_size=224))  # Swin-T
    state = named("text_model.model.", clinical_bert())
    for name, value in named("vision_model.model.", tower).items():
        for new, old in OLD_SWIN.items():
            name = name.replace(new, old)
        state[name] = value
    state |= named("vision_model.projection_head.", nn.Linear(768, 512, bias=False))
    state |= named("text_model.projection_head.", nn.Linear(768, 512, bias=False))
    return state | {"logit_scale": torch.empty(())}


def biomedclip():
    state = named("visual.trunk.", timm.create_model("vit_base_patch16_224", num_classes=0))
    state |= named("visual.head.proj.", nn.Linear(768, 512, bias=False))
    state |= named("text.transformer.", clinical_bert(words=30522))
    text = nn.Sequential(nn.Linear(768, 640, bias=False), nn.GELU(), nn.Linear(640, 512, bias=False))
    return state | named("text.proj.", text) | {"logit_scale": torch.empty(())}


def xrv():
    tower = torchvision.models.densenet121(num_classes=18)
    tower.features.conv0 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    return named("", tower)


PEERS = {
    "gloria": (Gloria, gloria),
    "mgca": (Mgca, mgca),
    "chexzero": (Chexzero, chexzero),
    "medclip": (Medclip, medclip),
    "biomedclip": (Openclip, biomedclip),
    "xrv": (Xrv, xrv),
}


def shapes(state, prefix=""):
    return {
        name.removeprefix(prefix): tuple(value.shape)
        for name, value in state.items()
        if name.startswith(prefix) and value.is_floating_point()
    }


@torch.no_grad()
@pytest.mark.parametrize("name", PEERS)
def test_every_weight_of_the_towers_is_there(name):
    peer, make = PEERS[name]
    with torch.device("meta"):
        weights = Weights(make(), name)
        made = peer().convert(weights)
        assert not weights.remaining()
        model_args = made.image.get("model_args", {})
        image = timm.create_model(made.image["name"], num_classes=0, in_chans=1, **model_args)
        assert shapes(made.state, "encoder.image.backbone.") == shapes(image.state_dict())
        if made.text is None:
            return
        config = CONFIG_MAPPING[made.text_config["model_type"]](**made.text_config)
        bare = {"add_pooling_layer": False} if config.model_type == "bert" else {}
        text = MODEL_MAPPING[type(config)](config, **bare)
        assert shapes(made.state, "encoder.text.model.") == shapes(text.state_dict())
        assert config.num_attention_heads == {"chexzero": 8}.get(name, 12)
        assert made.image_size == (299 if name == "gloria" else 224)
