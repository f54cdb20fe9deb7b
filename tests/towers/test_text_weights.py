"""Files of weights of text towers, and models that a text tower cannot be made of as it is asked."""

from __future__ import annotations

import json
import logging

import lightning.pytorch as pl
import pytest
import safetensors.torch
import torch
from lightning.pytorch.strategies import DDPStrategy
from mini import IMAGE, write_pairs
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    FNetConfig,
    GPT2Config,
    LlamaConfig,
    LongformerConfig,
    OPTConfig,
)

from diptych.data.loading import Loading
from diptych.errors import ConfigError
from diptych.files import sha256
from diptych.model.module import AlignmentModule
from diptych.towers.base import unused_parameters
from diptych.towers.image import TimmImage
from diptych.towers.text import ScratchText, TransformersText
from diptych_datamodules.tabular import Columns, Tabular
from diptych_heads.global_ import Global

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "heart"]


def bert(seed=0, **changes):
    torch.manual_seed(seed)
    return BertModel(BertConfig(vocab_size=len(WORDS), **{**SIZES, **changes}), add_pooling_layer=False)


def folder_of(path, content, **changes):
    """A folder as of the hub, with this state dict."""
    path.mkdir(exist_ok=True)
    bert(**changes).config.save_pretrained(path)
    (path / "vocab.txt").write_text("\n".join(WORDS))
    torch.save(content, path / "pytorch_model.bin")
    return str(path)


def below(prefix, state):
    return {prefix + name: value for name, value in state.items()}


def equals(tower, source):
    return all(torch.equal(value, source.state_dict()[name]) for name, value in tower.model.state_dict().items())


WRAPS = [
    lambda s: s,
    lambda s: below("bert.", s),
    lambda s: below("text_encoder.model.", s),
    lambda s: {"state_dict": below("module.bert.", s), "epoch": 1},
    lambda s: below(
        "x.",
        {
            k.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v
            for k, v in s.items()
        },
    ),
    lambda s: (
        below("m.", s) | {"m.embeddings.position_ids": torch.arange(512)[None], "m.pooler.dense.bias": torch.zeros(16)}
    ),
]


@pytest.mark.parametrize("wrap", WRAPS, ids=range(len(WRAPS)))
@pytest.mark.parametrize("where", ["folder", "file"])
def test_a_prefix_is_found_whatever_it_is(wrap, where, tmp_path):
    source = bert(seed=5)
    content = wrap(source.state_dict())
    if where == "folder":
        tower = TransformersText(folder_of(tmp_path / "bert", content))
    else:
        torch.save(content, tmp_path / "peer.ckpt")
        name = folder_of(tmp_path / "bert", bert(seed=1).state_dict())
        tower = TransformersText(name, weights=str(tmp_path / "peer.ckpt"))
        assert tower.origin["sha256"] == sha256(tmp_path / "peer.ckpt")
    assert equals(tower, source)


def test_what_was_loaded_is_told(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        TransformersText(folder_of(tmp_path / "a", BertForMaskedLM(BertConfig(vocab_size=7, **SIZES)).state_dict()))
        TransformersText(folder_of(tmp_path / "b", below("q.", bert().state_dict()) | {"p.weight": torch.zeros(1)}))
    one, other = [record.getMessage() for record in caplog.records if "loaded" in record.getMessage()]
    assert "loaded 37 of 37 weights from" in one
    assert "cls.predictions" in one
    assert "prefix 'q.'; left over: 1 (p.weight)" in other


def test_shards_are_read_together(tmp_path):
    source = bert(seed=5)
    name = folder_of(tmp_path / "bert", {})
    (tmp_path / "bert" / "pytorch_model.bin").unlink()
    parts = list(below("text_encoder.model.", source.state_dict()).items())
    index = {}
    for part, rows in enumerate((parts[:9], parts[9:])):
        file = f"model-{part}.safetensors"
        safetensors.torch.save_file(dict(rows), tmp_path / "bert" / file)
        index |= {key: file for key, _ in rows}
    (tmp_path / "bert" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    tower = TransformersText(name)
    assert equals(tower, source)
    assert len(tower.origin["sha256"]) == 2
    for damage in ("{", "[]", '{"weight_map": {"a": "../../x"}}', '{"weight_map": {"a": 3}}'):
        (tmp_path / "bert" / "model.safetensors.index.json").write_text(damage)
        with pytest.raises(ConfigError, match="no index of weights"):
            TransformersText(name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {k: v for k, v in bert().state_dict().items() if "layer.1" not in k},
            r"16 weights are missing \(encoder.layer.1",
        ),
        (
            below("a.", bert().state_dict()) | below("b.", bert(1).state_dict()),
            r"below 'a.' and 'b.'; choose one with weights_prefix",
        ),
        (
            bert(intermediate_size=24).state_dict(),
            r"other shape: .*intermediate.dense.weight \[24, 16\] for \[32, 16\]",
        ),
        (bert(num_hidden_layers=3).state_dict(), r"deeper model.*encoder.layer.2"),
        (below("bert.", bert(num_hidden_layers=3).state_dict()), r"deeper model.*encoder.layer.2"),
        (bert().state_dict() | {"embeddings.LayerNorm.bias": torch.full((16,), torch.nan)}, "NaN or infinite"),
        ({"fc": torch.zeros(3)}, "none of its 37 weights"),
        (["no", "weights"], "hold no tensor"),
    ],
    ids=range(8),
)
def test_a_folder_that_does_not_hold_the_model(content, message, tmp_path):
    with pytest.raises(ConfigError, match=message) as caught:
        TransformersText(folder_of(tmp_path / "bert", content))
    assert "\n" not in str(caught.value)


def test_damaged_and_missing_files(tmp_path):
    name = folder_of(tmp_path / "bert", bert().state_dict())
    for content in (b"", b"PK\x03\x04 cut"):
        (tmp_path / "bert" / "pytorch_model.bin").write_bytes(content)
        with pytest.raises(ConfigError, match=r"pytorch_model.bin' are cut off or damaged|are no weights"):
            TransformersText(name)
    (tmp_path / "bert" / "pytorch_model.bin").unlink()
    with pytest.raises(ConfigError, match="holds no weights"):
        TransformersText(name)
    with pytest.raises(ConfigError, match=r"nowhere.pth' does not exist"):
        TransformersText(name, weights=str(tmp_path / "nowhere.pth"))
    with pytest.raises(ConfigError, match="weights_prefix is 'a'"):
        TransformersText(name, pretrained=False, weights_prefix="a")


def test_twice_in_a_folder_can_be_chosen(tmp_path):
    name = folder_of(tmp_path / "bert", below("a.", bert(1).state_dict()) | below("b.", bert(2).state_dict()))
    assert equals(TransformersText(name, weights_prefix="b"), bert(2))


def test_origins_tell_random_from_file_after_a_checkpoint_too(tmp_path):
    name = folder_of(tmp_path / "bert", bert().state_dict())
    file = TransformersText(name)
    assert file.origin["weights"] == str(tmp_path / "bert" / "pytorch_model.bin")
    random = TransformersText(name, pretrained=False)
    assert random.origin == {"name": name, "weights": "random"}
    assert ScratchText().origin == {"name": "ScratchText", "weights": "random"}
    again = TransformersText("gone", **TransformersText.rebuild_args(file.get_extra_state()))
    again.load_state_dict(file.state_dict())
    assert again.origin == file.origin


GPT2 = GPT2Config(vocab_size=60, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
SMALL = {"vocab_size": 60, **SIZES}


@pytest.mark.parametrize(
    "causal",
    [
        GPT2,
        BertConfig(is_decoder=True, **SMALL),
        LlamaConfig(**SMALL),
        OPTConfig(
            vocab_size=60,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            ffn_dim=32,
            word_embed_proj_dim=16,
        ),
    ],
    ids=lambda config: config.model_type,
)
def test_causal_models_are_not_pooled_by_their_first_piece(causal):
    options = {"pretrained": False, "architecture": causal.to_json_string(), "max_tokens": 16}
    with pytest.raises(ConfigError, match=rf"causal \('{causal.model_type}'\).*set pool: mean"):
        TransformersText("x", **options)
    tower = TransformersText("x", pool="mean", **options).eval()
    tower.tokenizer = ScratchText(vocabulary=80, max_tokens=16).tokenizer
    tower.tokenizer.learn(["no effusion", "no nodule"])
    batch = tower.tokenizer(["no effusion", "no nodule"])
    batch.input_ids.remainder_(59)
    with torch.no_grad():
        pooled = tower(batch).pooled
    assert not torch.allclose(pooled[0], pooled[1])


@pytest.mark.parametrize("family", [BertConfig, LongformerConfig, FNetConfig])
def test_models_that_see_both_ways_are(family):
    sizes = {key: value for key, value in SMALL.items() if family is not FNetConfig or key != "num_attention_heads"}
    extra = {"attention_window": [4, 4]} if family is LongformerConfig else {}
    TransformersText("x", pretrained=False, architecture=family(**sizes, **extra).to_json_string(), max_tokens=16)


def test_no_gradient_checkpointing_is_said_in_one_line(monkeypatch):
    monkeypatch.setattr(BertModel, "supports_gradient_checkpointing", False)
    with pytest.raises(
        ConfigError, match=r"text tower 'ScratchText' \('bert'\) has no gradient checkpointing"
    ) as caught:
        ScratchText(gradient_checkpointing=True)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="image tower 'dla34' has no gradient checkpointing") as caught:
        TimmImage("dla34", pretrained=False, model_args={"channels": [8, 8, 8, 8, 8, 8]}, gradient_checkpointing=True)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------- what no gradient reaches


def test_longformers_global_attention_is_found_unused():
    architecture = LongformerConfig(attention_window=[4, 4], **SMALL).to_json_string()
    tower = TransformersText("x", pretrained=False, architecture=architecture, max_tokens=16).train()
    tower.tokenizer = ScratchText(vocabulary=80, max_tokens=16).tokenizer
    tower.tokenizer.learn(["no effusion"])
    batch = tower.tokenizer(["no effusion"])
    batch.input_ids.remainder_(59)
    unused = unused_parameters(tower, lambda: tower(batch))
    assert len(unused) == 12
    assert all("_global" in name for name in unused)
    assert tower.training
    assert all(parameter.grad is None for parameter in tower.parameters())
    tower.freeze()
    assert unused_parameters(tower, lambda: tower(batch)) == []


class Idle(ScratchText):
    """With a parameter that it does not use."""

    def __init__(self):
        super().__init__(width=16, depth=1, heads=2, vocabulary=120, max_tokens=16)
        self.idle = torch.nn.Parameter(torch.zeros(3))


@pytest.mark.parametrize(("processes", "finds"), [(1, False), (2, False), (2, True)])
def test_setup_names_what_is_not_used(processes, finds, tmp_path, monkeypatch, caplog):
    """Two processes would wait for its gradient, unless the strategy looks for such."""
    module = AlignmentModule(TimmImage(**IMAGE), Idle(), Global)
    module.tokenizer.learn(["no effusion"])
    strategy = DDPStrategy(find_unused_parameters=finds) if processes > 1 else "auto"
    trainer = pl.Trainer(
        accelerator="cpu", devices=processes, strategy=strategy, logger=False, use_distributed_sampler=False
    )
    data = Tabular(
        str(write_pairs(tmp_path)), columns=Columns(), loading=Loading(image_size=32, batch_size=4, workers=0)
    )
    trainer.datamodule = data
    monkeypatch.setattr(module, "_trainer", trainer)
    if processes > 1 and not finds:
        with pytest.raises(ConfigError, match=r"1 \(idle\) of the towers'.*ddp_find_unused_parameters_true"):
            module.setup("fit")
        return
    with caplog.at_level(logging.INFO):
        module.setup("fit")
    assert "1 (idle) of the towers' parameters take no part" in caplog.text
