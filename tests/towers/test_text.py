from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from texts import REPORT, REPORTS, SPECIAL, learned
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    ElectraConfig,
    ElectraModel,
    ModernBertConfig,
    ModernBertModel,
    RobertaConfig,
    RobertaModel,
    T5Config,
)

from diptych.errors import ConfigError
from diptych.towers.text import ScratchText, TransformersText, sum_pieces


@pytest.fixture(scope="module")
def scratch():
    torch.manual_seed(0)
    tower = ScratchText(width=32, depth=2, heads=2, vocabulary=200, max_tokens=64)
    tower.tokenizer.learn(REPORTS)
    return tower.eval()


def folder_of(path, model, vocabulary):
    """A folder as Bio_ClinicalBERT's: config.json, weights and vocab.txt, no word about case."""
    model.save_pretrained(path)
    (path / "vocab.txt").write_text("\n".join(vocabulary))
    return str(path)


def tiny_bert(path, words, **changes):
    vocabulary = [*SPECIAL, *words]
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    return folder_of(path, BertModel(BertConfig(vocab_size=len(vocabulary), **sizes, **changes)), vocabulary)


# ------------------------------------------------------------------------------------------------------------- case


def test_a_cased_vocabulary_keeps_case(tmp_path):
    folder = tiny_bert(tmp_path, ["The", "the", "heart", "Heart", "."])
    assert AutoTokenizer.from_pretrained(folder).backend_tokenizer.normalizer.lowercase  # what the library would do
    tower = TransformersText(folder)
    assert tower.tokenizer.lower_case is False
    ids = tower.tokenizer(["The Heart"]).input_ids[0, :4].tolist()
    assert ids == [2, 5, 8, 3]
    again = TransformersText(folder, **TransformersText.rebuild_args(tower.get_extra_state()))
    again.set_extra_state(tower.get_extra_state())
    assert again.tokenizer(["The Heart"]).input_ids[0, :4].tolist() == ids
    assert TransformersText(folder, lower_case=True).tokenizer(["The Heart"]).input_ids[0, :4].tolist() == [2, 6, 7, 3]


def test_an_uncased_vocabulary_folds_case(tmp_path):
    folder = tiny_bert(tmp_path, ["the", "heart"])
    assert TransformersText(folder).tokenizer.lower_case is True
    cased = TransformersText(folder, lower_case=False).tokenizer(["The heart"])
    assert cased.input_ids[0, :4].tolist() == [2, 1, 6, 3]  # The is unknown


# ------------------------------------------------------------------------------------------------------------ vectors


def test_word_vectors_are_sums_of_pieces_and_of_layers(minilm, minilm_folder):
    batch = minilm.tokenizer(REPORTS)
    reference = AutoModel.from_pretrained(minilm_folder).eval()
    with torch.no_grad():
        out = minilm(batch)
        plain = reference(batch.input_ids, attention_mask=batch.attention_mask.long(), output_hidden_states=True)
    layers = sum(plain.hidden_states[-4:])
    expected = torch.zeros_like(out.tokens)
    for b in range(len(REPORTS)):
        for p in range(batch.input_ids.shape[1]):
            if (word := int(batch.word_of_piece[b, p])) >= 0:
                expected[b, word] += layers[b, p]
    torch.testing.assert_close(out.tokens, expected, atol=2e-5, rtol=1e-5)
    mean = [plain.last_hidden_state[b][batch.attention_mask[b]].mean(dim=0) for b in range(len(REPORTS))]
    torch.testing.assert_close(out.pooled, torch.stack(mean), atol=1e-5, rtol=1e-5)
    assert out.grid is None
    assert torch.equal(out.sentences, batch.sentences)
    assert (out.tokens[~batch.mask] == 0).all()


def test_minilm_knows_what_sentences_mean(minilm):
    texts = ["no pneumothorax", "there is no collapsed lung", "the cat sleeps on the sofa"]
    with torch.no_grad():
        pooled = torch.nn.functional.normalize(minilm(minilm.tokenizer(texts)).pooled, dim=1)
    alike = pooled @ pooled.T
    assert alike[0, 1] > alike[0, 2] + 0.2


def test_cls_pooling_is_the_first_piece(minilm_folder):
    tower = TransformersText(minilm_folder).eval()
    batch = tower.tokenizer(REPORTS)
    with torch.no_grad():
        last = tower.model(batch.input_ids, attention_mask=batch.attention_mask.long()).last_hidden_state
        torch.testing.assert_close(tower(batch).pooled, last[:, 0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_padding_changes_nothing(scratch, pool):
    tower = copy.deepcopy(scratch)
    tower.pool = pool
    short, full = tower.tokenizer(REPORTS), tower.tokenizer(REPORTS, to_max=True)
    with torch.no_grad():
        a, b = tower(short), tower(full)
        alone = tower(tower.tokenizer(REPORTS[1:2]))
    torch.testing.assert_close(a.pooled, b.pooled)
    torch.testing.assert_close(a.tokens, b.tokens[:, : a.tokens.shape[1]])
    words = int(alone.mask.sum())
    torch.testing.assert_close(alone.pooled[0], a.pooled[1])
    torch.testing.assert_close(alone.tokens[0, :words], a.tokens[1, :words])


def test_sum_pieces_against_a_loop_and_its_gradient():
    generator = torch.Generator().manual_seed(0)
    pieces = torch.randn(3, 9, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    owner = torch.randint(-1, 5, (3, 9), generator=generator)
    expected = torch.zeros(3, 5, 4, dtype=torch.float64)
    for b in range(3):
        for p in range(9):
            if owner[b, p] >= 0:
                expected[b, owner[b, p]] = expected[b, owner[b, p]] + pieces[b, p]
    assert torch.equal(sum_pieces(pieces, owner, 5).detach(), expected.detach())
    assert torch.autograd.gradcheck(lambda x: sum_pieces(x, owner, 5), (pieces,))


SMALL = {"vocab_size": 60, "num_attention_heads": 2, "num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 32}


encoders = pytest.mark.parametrize(
    "model",
    [
        BertModel(BertConfig(**SMALL), add_pooling_layer=False),
        RobertaModel(RobertaConfig(**SMALL), add_pooling_layer=False),
        ElectraModel(ElectraConfig(embedding_size=8, **SMALL)),
        DistilBertModel(DistilBertConfig(vocab_size=60, dim=16, n_heads=2, n_layers=2, hidden_dim=32)),
        ModernBertModel(ModernBertConfig(local_attention=8, pad_token_id=1, cls_token_id=0, sep_token_id=2, **SMALL)),
    ],
    ids=lambda model: model.config.model_type,
)


def tower_and_batch(model, **options):
    tower = TransformersText(
        "x", pretrained=False, architecture=model.config.to_json_string(), max_tokens=48, **options
    ).eval()
    tower.model.load_state_dict(model.state_dict())
    tower.tokenizer = learned(REPORTS, 77)
    batch = tower.tokenizer([REPORT[:40], REPORTS[1][:15]])
    return tower, replace(batch, input_ids=batch.input_ids.clamp(max=59))


@encoders
def test_families_of_encoders_give_what_the_library_gives(model):
    tower, batch = tower_and_batch(model, last_layers=2)
    ids = batch.input_ids
    with torch.no_grad():
        out = tower(batch)
        plain = model.eval()(ids, attention_mask=batch.attention_mask.long(), output_hidden_states=True)
    torch.testing.assert_close(out.pooled, plain.last_hidden_state[:, 0])
    torch.testing.assert_close(
        out.tokens, sum_pieces(sum(plain.hidden_states[-2:]), batch.word_of_piece, batch.mask.shape[1])
    )
    assert {tower.layer_of(name) for name, _ in tower.named_parameters()} == {0, 1, 2}


@encoders
@pytest.mark.parametrize("padded", [True, False])
def test_attention_of_the_class_token_is_the_librarys(model, padded):
    """Fused attention gives what the library's plain attention returns; a word has the sum of its pieces."""
    tower, batch = tower_and_batch(model)
    batch = batch if padded else batch.select(torch.tensor([0]))
    if not padded:  # the library then drops the mask
        names = ("input_ids", "attention_mask", "word_of_piece")
        batch = replace(batch, **{name: getattr(batch, name)[:, : int(batch.attention_mask.sum())] for name in names})
        assert batch.attention_mask.all()
    assert tower.model.config._attn_implementation == "sdpa"
    assert tower.gives_attention
    assert tower(batch).attention is None
    plain = copy.deepcopy(model).eval()
    plain.set_attn_implementation("eager")
    with torch.no_grad():
        before = tower(batch)
        tower.attention = True
        out = tower(batch)
        rows = plain(batch.input_ids, attention_mask=batch.attention_mask.long(), output_attentions=True).attentions[-1]
    expected = torch.zeros_like(out.attention)
    for b in range(len(batch.raw)):
        for p in range(batch.input_ids.shape[1]):
            if (word := int(batch.word_of_piece[b, p])) >= 0:
                expected[b, word] += rows[b, :, 0, p].mean()
    torch.testing.assert_close(out.attention, expected)
    assert (out.attention[~batch.mask] == 0).all()
    if model.config.model_type != "modernbert":  # whose last layer here looks no farther than four pieces
        assert (out.attention[batch.mask] > 0).all()
    assert (batch.word_of_piece >= 0).sum() > batch.mask.sum()  # some words are in pieces
    torch.testing.assert_close(out.tokens, before.tokens, rtol=0, atol=0)
    assert tower.model.config._attn_implementation == "sdpa"
    assert all("first_row" not in vars(module) for module in tower.modules())
    assert all(m.config._attn_implementation == "sdpa" for m in tower.modules() if hasattr(m, "config"))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_attention_leaves_training_as_it_is(checkpointing):
    gradients = []
    for attention in (False, True):
        torch.manual_seed(0)
        tower = ScratchText(
            width=16, heads=2, vocabulary=120, dropout=0.0, gradient_checkpointing=checkpointing
        ).train()
        tower.tokenizer.learn(REPORTS)
        tower.attention = attention
        out = tower(tower.tokenizer(REPORTS))
        (out.pooled.square().sum() + out.tokens.square().sum()).backward()
        gradients.append({k: p.grad for k, p in tower.named_parameters()})
    assert not out.attention.requires_grad
    for key, gradient in gradients[0].items():
        assert torch.equal(gradients[1][key], gradient), key
    assert copy.deepcopy(tower)(tower.tokenizer(REPORTS)).attention.shape == out.attention.shape


def test_attention_knows_no_dropout_and_fits_bfloat16(scratch):
    tower = copy.deepcopy(scratch).train()
    tower.attention = True
    tower.model.embeddings.dropout.p = 0.0
    for layer in tower.model.encoder.layer[:-1]:
        for module in layer.modules():
            module.training = False
    batch = tower.tokenizer(REPORTS)
    first = tower(batch).attention
    assert torch.equal(tower(batch).attention, first)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = tower(batch).attention
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, first, rtol=0.05, atol=1e-3)


# ----------------------------------------------------------------------------------------- freezing, depth, checkpoints


def test_every_parameter_has_a_layer_and_depth_rises(minilm):
    layers = [minilm.layer_of(name) for name, _ in minilm.named_parameters()]
    assert layers == sorted(layers)
    assert set(layers) == set(range(minilm.num_layers + 1)) == set(range(7))


def test_frozen_and_partly_frozen(tmp_path):
    folder = tiny_bert(tmp_path, ["the", "heart"])
    frozen = TransformersText(folder, frozen=True).train()
    batch = frozen.tokenizer(["the heart", "heart"])
    assert not frozen(batch).tokens.requires_grad
    assert torch.equal(frozen(batch).pooled, frozen(batch).pooled)  # no dropout
    partly = TransformersText(folder, freeze_layers=2).train()
    partly(batch).pooled.sum().backward()
    for name, parameter in partly.named_parameters():
        assert (parameter.grad is None) == (partly.layer_of(name) < 2), name
    assert not partly.model.encoder.layer[0].training
    assert partly.model.encoder.layer[1].training


def test_gradient_checkpointing_recomputes_and_gives_the_same_gradients():
    gradients, calls = [], []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        tower = (
            ScratchText(width=16, heads=2, vocabulary=120, dropout=0.0, gradient_checkpointing=checkpointing)
            .double()
            .train()
        )
        tower.tokenizer.learn(REPORTS)
        seen: list[int] = []
        tower.model.encoder.layer[0].attention.register_forward_pre_hook(lambda *_, seen=seen: seen.append(1))
        out = tower(tower.tokenizer(REPORTS))
        (out.pooled.square().sum() + out.tokens.square().sum()).backward()
        gradients.append({k: p.grad for k, p in tower.named_parameters()})
        calls.append(len(seen))
    assert calls == [1, 2]
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], gradient)


def test_a_checkpoint_rebuilds_the_tower_without_its_files(tmp_path):
    folder = tiny_bert(tmp_path / "model", ["The", "heart", "##s"])
    tower = TransformersText(folder, last_layers=2).eval()
    torch.save(tower.state_dict(), tmp_path / "tower.ckpt")
    state = torch.load(tmp_path / "tower.ckpt", weights_only=True)
    again = TransformersText("gone/away", last_layers=2, **TransformersText.rebuild_args(state["_extra_state"])).eval()
    again.load_state_dict(state)
    batch, twin = tower.tokenizer(["The hearts"]), again.tokenizer(["The hearts"])
    assert torch.equal(batch.input_ids, twin.input_ids)
    with torch.no_grad():
        assert torch.equal(tower(batch).tokens, again(twin).tokens)


def test_a_scratch_checkpoint_carries_its_vocabulary(scratch, tmp_path):
    torch.save(scratch.state_dict(), tmp_path / "tower.ckpt")
    again = ScratchText(width=32, depth=2, heads=2, vocabulary=200, max_tokens=64).eval()
    again.load_state_dict(torch.load(tmp_path / "tower.ckpt", weights_only=True))
    assert ScratchText.rebuild_args(scratch.get_extra_state()) == {}
    with torch.no_grad():
        assert torch.equal(scratch(scratch.tokenizer(REPORTS)).pooled, again(again.tokenizer(REPORTS)).pooled)


def test_scratch_has_one_row_for_each_possible_piece(scratch):
    assert scratch.model.embeddings.word_embeddings.weight.shape[0] == 200
    assert scratch.tokenizer.size <= 200


# ------------------------------------------------------------------------------------------------------------- errors


def test_weights_that_are_not_there_are_not_made_up(tmp_path):
    folder = tiny_bert(tmp_path, ["the"])
    (tmp_path / "config.json").write_text(
        (tmp_path / "config.json").read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 3')
    )
    with pytest.raises(ConfigError, match=r"16 weights are missing.*layer.2"):
        TransformersText(folder)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("no-such/model", {}, "no-such/model.*local folder.*HF_HUB_OFFLINE"),
        ("/no/such/folder", {}, "/no/such/folder.*local folder"),
        ("x", {"architecture": "{}"}, "pretrained: false"),
    ],
)
def test_errors_name_the_remedy(name, options, message):
    with pytest.raises(ConfigError, match=message) as caught:
        TransformersText(name, **options)
    assert "\n" not in str(caught.value)


def test_arguments_that_do_not_fit(minilm_folder):
    with pytest.raises(ConfigError, match=r"last_layers is 7; .*from 1 to 6.*6 layers"):
        TransformersText(minilm_folder, last_layers=7)
    with pytest.raises(ConfigError, match=r"max_tokens is 600; give 512 or less"):
        TransformersText(minilm_folder, max_tokens=600)
    with pytest.raises(ConfigError, match=r"freeze_layers is 8; .*from 0 to 7"):
        TransformersText(minilm_folder, freeze_layers=8)
    with pytest.raises(ConfigError, match="'t5' is not a text encoder"):
        TransformersText("x", pretrained=False, architecture=T5Config().to_json_string())
    with pytest.raises(ConfigError, match="width=10"):
        ScratchText(width=10)
    with pytest.raises(
        ConfigError, match="vocabulary is 50; give a whole number of 77 or more, for the special tokens"
    ):
        ScratchText(vocabulary=50)
    with pytest.raises(ConfigError, match="max_tokens is 4; give a whole number of 8 or more"):
        ScratchText(max_tokens=4)


# ---------------------------------------------------------------------------------------------------- published poolings


@torch.no_grad()
def test_the_last_piece_and_the_mean_of_layers_ignore_padding(tmp_path):
    folder = tiny_bert(tmp_path, ["the", "heart", "is", "large", "."])
    texts = ["The heart is large.", "Heart."]
    for options in ({"pool": "last"}, {"pool": "mean", "pool_layers": [0, -1]}, {"pool": "last", "pool_layers": [1]}):
        tower = TransformersText(folder, **options).eval()
        both = tower(tower.tokenizer(texts)).pooled
        for row, text in enumerate(texts):
            batch = tower.tokenizer([text])
            pieces = batch.input_ids[:, batch.attention_mask[0]]
            hidden = tower.model(input_ids=pieces, output_hidden_states=True).hidden_states
            mean = torch.stack([hidden[layer][0] for layer in options.get("pool_layers", [-1])]).mean(0)
            expected = mean[-1] if options["pool"] == "last" else mean.mean(0)
            torch.testing.assert_close(both[row], expected, atol=1e-6, rtol=1e-5)


def test_layers_that_are_not_there_are_refused(tmp_path):
    folder = tiny_bert(tmp_path, ["the", "heart", "."])
    with pytest.raises(ConfigError, match=r"pool_layers.*3.*from -3 to 2"):
        TransformersText(folder, pool_layers=[3])
