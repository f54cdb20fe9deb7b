"""Dual encoders of open_clip against open_clip's own loading, pictures and tokenizers, from tiny random folders."""

import json
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BertConfig, BertTokenizerFast

from diptych.errors import ConfigError
from diptych.towers.open_clip import OpenClipImage, OpenClipText
from diptych.towers.open_clip_model import library

open_clip = pytest.importorskip("open_clip", reason="pip install 'diptych[openclip]'")

TEXTS = [
    "Small left pleural effusion. No pneumothorax.",
    "Normal.",
    "Don't miss the 5th rib's fracture; heart: enlarged!",
]
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
VIT = {"layers": 2, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 32}
CLIP_TEXT = {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
WORDS = (
    "small left pleural effusion . no pneumothorax normal don ' t miss the 5 ##th rib s fracture ; heart : enlarged !"
)


def save(model_cfg, folder, preset=None):
    """A folder as ``push_to_hf_hub`` writes it, with random weights in open_clip's own names."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"model_cfg": model_cfg, "preprocess_cfg": preset or {"mean": MEAN, "std": STD}}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    torch.manual_seed(1)
    kind = open_clip.CustomTextCLIP if "hf_model_name" in model_cfg["text_cfg"] else open_clip.CLIP
    model = kind(model_cfg["embed_dim"], model_cfg["vision_cfg"], model_cfg["text_cfg"])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.03)
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    return str(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    clip = save({"embed_dim": 24, "vision_cfg": VIT, "text_cfg": CLIP_TEXT}, root / "clip")
    bert = root / "biomed"
    bert.mkdir()
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(WORDS.split())]
    (bert / "vocab.txt").write_text("\n".join(names))
    BertTokenizerFast(vocab=str(bert / "vocab.txt")).save_pretrained(bert)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertConfig(vocab_size=len(names), max_position_embeddings=64, **shape).save_pretrained(bert)
    text = {"hf_model_name": str(bert), "hf_tokenizer_name": str(bert), "hf_proj_type": "mlp"}
    text |= {"hf_pooler_type": "cls_last_hidden_state_pooler", "context_length": 40, "hf_model_pretrained": False}
    vision = {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "", "timm_proj": "linear", "image_size": 224}
    return {"clip": clip, "biomed": save({"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}, bert)}


@pytest.mark.parametrize(("name", "side", "grid", "limit"), [("clip", 32, 4, 24), ("biomed", 224, 14, 40)])
def test_vectors_are_those_of_open_clip(name, side, grid, limit, folders):
    """Its factory loads the folder, its transform reads a colour picture, its tokenizer the texts."""
    own, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folders[name]}")
    own.eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folders[name]}")
    picture = np.random.default_rng(0).integers(0, 256, (side, side)).astype(np.uint8)
    image = OpenClipImage(folders[name]).eval()
    text = OpenClipText(folders[name]).eval()
    assert text.tokenizer.max_tokens == limit
    with torch.no_grad():
        theirs = own.encode_image(transform(Image.fromarray(picture).convert("RGB"))[None])
        ours = image(torch.from_numpy(picture)[None, None])
        their_texts = own.encode_text(tokenizer(TEXTS))
        our_texts = text(text.tokenizer(TEXTS))
    torch.testing.assert_close(ours.pooled, theirs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(our_texts.pooled, their_texts, rtol=1e-4, atol=1e-5)
    assert ours.grid == (grid, grid)
    assert ours.tokens.shape == (1, grid * grid, image.token_width)
    assert our_texts.tokens.shape[2] == text.token_width
    assert (image.width, text.width) == (24, 24)
    assert image.origin["input_size"] == side
    assert image.origin["mean"] == pytest.approx(MEAN, abs=1e-6)
    words = text.tokenizer.words(TEXTS[0])
    assert words == ["Small", "left", "pleural", "effusion", "No", "pneumothorax"]
    assert our_texts.mask[0].sum() == len(words)


def test_clips_own_byte_pairs_give_its_numbers(folders):
    ours = OpenClipText(folders["clip"], pretrained=False).tokenizer
    batch = ours(TEXTS)
    theirs = open_clip.SimpleTokenizer(context_length=24)(TEXTS)
    for row in range(len(TEXTS)):
        assert batch.input_ids[row][batch.attention_mask[row]].tolist() == theirs[row][theirs[row] > 0].tolist()
    with pytest.raises(ConfigError, match=r"max_tokens .*24 or less"):
        OpenClipText(folders["clip"], pretrained=False, max_tokens=77)
    assert OpenClipText(folders["clip"], pretrained=False, max_tokens=16).tokenizer.max_tokens == 16


@pytest.mark.parametrize("more", [{}, {"no_causal_mask": True, "pool_type": "last"}], ids=["clip", "siglip"])
def test_a_short_text_is_padded_to_the_context(more, tmp_path):
    """CLIP's mask has its size. SigLIP has no mask, and the last piece is the text's vector."""
    text_cfg = {**CLIP_TEXT, "context_length": 40, **more}
    folder = save({"embed_dim": 24, "vision_cfg": VIT, "text_cfg": text_cfg}, tmp_path / "siglip")
    own = open_clip.create_model(f"local-dir:{folder}").eval()
    text = OpenClipText(folder).eval()
    with torch.no_grad():
        theirs = own.encode_text(open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS[1:2]))
        ours = text(text.tokenizer(TEXTS[1:2]))
    torch.testing.assert_close(ours.pooled, theirs, rtol=1e-4, atol=1e-5)


def test_another_size_is_asked_for_and_told(folders):
    """open_clip's factory with ``force_image_size`` gives the same vectors."""
    image = torch.randint(0, 256, (1, 1, 48, 48), dtype=torch.uint8)
    with pytest.raises(
        ConfigError, match=r"48x48; set data\.loading\.image_size: 32, or give this tower image_size: 48"
    ):
        OpenClipImage(folders["clip"])(image)
    with patch("diptych.towers.open_clip.rank_zero_info") as told:
        tower = OpenClipImage(folders["clip"], image_size=48).eval()
        again = OpenClipImage("gone", **OpenClipImage.rebuild_args(tower.get_extra_state())).eval()
    (call,) = told.call_args_list
    assert "position codes for 32 px are interpolated to 48 px" in call.args[0]
    again.load_state_dict(tower.state_dict())
    own = open_clip.create_model(f"local-dir:{folders['clip']}", force_image_size=48).eval()
    with torch.no_grad():
        out = tower(image)
        torch.testing.assert_close(out.pooled, own.encode_image(tower._normalise(image)), rtol=1e-4, atol=1e-5)
        assert torch.equal(again(image).pooled, out.pooled)
    assert out.grid == (6, 6)
    assert again.origin == tower.origin


def test_a_vit_of_timm_gets_the_positions_of_448_pixels(folders):
    tower = OpenClipImage(folders["biomed"], image_size=448)
    assert tower.model.trunk.pos_embed.shape == (1, 1 + 28 * 28, 192)
    again = OpenClipImage("gone", **OpenClipImage.rebuild_args(tower.get_extra_state()))
    again.load_state_dict(tower.state_dict())
    assert (again.input_size, tower.input_size) == (448, 448)


def test_a_checkpoint_builds_texts_again_without_the_folder(folders):
    for folder in folders.values():
        tower = OpenClipText(folder).eval()
        again = OpenClipText("gone", **OpenClipText.rebuild_args(tower.get_extra_state())).eval()
        again.load_state_dict(tower.state_dict())
        with torch.no_grad():
            assert torch.equal(again(again.tokenizer(TEXTS)).pooled, tower(tower.tokenizer(TEXTS)).pooled)


def test_layers_and_freezing(folders):
    for name, folder in folders.items():
        image, text = OpenClipImage(folder, freeze_layers=1), OpenClipText(folder, freeze_layers=2)
        side = image.input_size
        for tower, out, frozen in (
            (image, image(torch.zeros(1, 1, side, side)), 1),
            (text, text(text.tokenizer(TEXTS)), 2),
        ):
            (out.pooled.square().sum() + out.tokens.square().sum()).backward()
            for key, parameter in tower.named_parameters():
                assert parameter.requires_grad == (tower.layer_of(key) >= frozen), (name, key)
                assert (parameter.grad is not None) == parameter.requires_grad, (name, key)


HOSTILE = [
    ({"timm_model_name": "hf-hub:evil/model"}, "refused"),
    ({"timm_model_pretrained": True}, "refused"),
    ({"unheard_of": 1}, "refused"),
]


@pytest.mark.parametrize(("more", "match"), HOSTILE)
def test_a_stored_architecture_fetches_nothing(more, match):
    stored = {"kind": "image", "embed_dim": 8, "shape": {**VIT, **more}, "quick_gelu": False, "text_config": None}
    with pytest.raises(ConfigError, match=match):
        OpenClipImage("x", pretrained=False, architecture=json.dumps(stored))


def test_what_is_lacking_is_told(folders, tmp_path):
    with pytest.raises(ConfigError, match=r"has no open_clip_config\.json"):
        OpenClipImage(str(tmp_path))
    config = json.loads((tmp_path.parent / folders["clip"] / "open_clip_config.json").read_text())
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="holds no weights"):
        OpenClipImage(str(tmp_path))
    torch.save({"visual.conv1.weight": torch.zeros(32, 3, 8, 8)}, tmp_path / "open_clip_pytorch_model.bin")
    with pytest.raises(ConfigError, match="weights are missing"):
        OpenClipImage(str(tmp_path))
    config["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"clean": "canonicalize"}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="canonicalize"):
        OpenClipText(str(tmp_path))
    with patch.dict("sys.modules", {"open_clip": None}), pytest.raises(ConfigError, match=r"diptych\[openclip\]"):
        library("it")


def test_a_head_that_projects_nothing_ranks_as_published(folders):
    from diptych.model.encoder import DualEncoder
    from diptych_heads.global_ import Global

    encoder = DualEncoder(OpenClipImage(folders["clip"]), OpenClipText(folders["clip"])).eval()
    with pytest.raises(ConfigError, match="set width: 24"):
        Global(encoder.dims, projection="none")
    head = Global(encoder.dims, projection="none", width=24)
    own = open_clip.create_model(f"local-dir:{folders['clip']}").eval()
    picture = torch.randint(0, 256, (2, 1, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        score = head.similarity(
            head.embed_image(encoder.encode_image(picture)),
            head.embed_text(encoder.encode_text(encoder.tokenizer(TEXTS))),
        )
        pixels = encoder.image._normalise(picture)
        texts = open_clip.get_tokenizer(f"local-dir:{folders['clip']}")(TEXTS)
        theirs = own.encode_image(pixels, normalize=True) @ own.encode_text(texts, normalize=True).T
    torch.testing.assert_close(score, theirs, rtol=1e-4, atol=1e-5)
