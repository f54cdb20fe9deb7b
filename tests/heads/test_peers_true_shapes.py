"""Key maps at the peers' true sizes, on torch's ``meta`` device: every weight of the towers is there, in its shape."""

import pytest
import timm
import torch
import torchvision
from peers import OLD_SWIN, named
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_MAPPING,
    SwinConfig,
    SwinModel,
)
from true_shapes import chexzero, clinical_bert, gloria, mgca

from diptych.peer import Weights
from diptych_heads.peers.chexzero import Chexzero
from diptych_heads.peers.gloria import Gloria
from diptych_heads.peers.medclip import Medclip
from diptych_heads.peers.mgca import Mgca
from diptych_heads.peers.openclip import Openclip
from diptych_heads.peers.xrv import Xrv


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
