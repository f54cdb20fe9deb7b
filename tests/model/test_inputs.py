"""What people hand to a trained model: lists, batches, colours, tensors, nothing, folders and devices."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from mini import IMAGE, TEXT
from PIL import Image

import diptych
from diptych.errors import ConfigError, DiptychError
from diptych.model.inference import TrainedModel
from diptych.model.inputs import each_picture, grey_picture
from diptych.model.stored import build_module
from diptych.tasks.trained_image import TrainedImage

CONFIG = {
    "image": {"class_path": "diptych.towers.image.TimmImage", "init_args": IMAGE},
    "text": {"class_path": "diptych.towers.text.ScratchText", "init_args": TEXT},
    "head": "local_pooling",
}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    module = build_module(CONFIG)
    module.tokenizer.learn(["a small left effusion", "no nodule is seen"])
    return TrainedModel(module, 32)


def pictures(n=5, *size):
    return np.random.default_rng(0).integers(0, 256, (n, *(size or (24, 30))), dtype=np.uint8)


def same(one, other):
    return torch.allclose(one.pooled, other.pooled, atol=1e-5) and torch.allclose(one.tokens, other.tokens, atol=1e-5)


GREY = pictures()
COLOUR = pictures(5, 24, 30, 3)


@pytest.mark.parametrize(
    "images",
    [
        GREY,
        GREY[:, None],
        GREY[..., None],
        torch.from_numpy(GREY),
        torch.from_numpy(GREY)[:, None],
        tuple(GREY),
        iter(GREY),
        [Image.fromarray(grey) for grey in GREY],
        [GREY[0], Image.fromarray(GREY[1]), torch.from_numpy(GREY[2]), GREY[3][None], GREY[4][None, None]],
        np.repeat(GREY[..., None], 3, axis=3),
        np.repeat(GREY[:, None], 3, axis=1),
        [np.repeat(grey[..., None], 4, axis=2) | np.array([0, 0, 0, 255], np.uint8) for grey in GREY],
    ],
    ids=range(12),
)
def test_pictures_of_any_kind_are_the_same_pictures(model, images):
    assert same(model.encode_image(images), model.encode_image(list(GREY)))


def test_colours_are_weighed_alike_whatever_their_type(model):
    wanted = [grey_picture(Image.fromarray(colour), "x") for colour in COLOUR]
    for batch in (COLOUR, np.moveaxis(COLOUR, 3, 1), torch.from_numpy(COLOUR)):
        np.testing.assert_array_equal([grey_picture(p, "x") for p in each_picture(batch)], wanted)
    real = grey_picture(each_picture(COLOUR / 255.0)[0], "x").astype(int)
    stretched = np.rint((wanted[0] - wanted[0].min()) / np.ptp(wanted[0].astype(int)) * 255)
    assert np.abs(real - stretched).max() <= 2
    for half in (torch.rand(24, 30, dtype=torch.bfloat16), torch.rand(24, 30, requires_grad=True)):
        assert model.encode_image(half).pooled.shape[0] == 1


def test_lists_go_through_the_tower_in_batches(model, monkeypatch):
    sizes = []
    embed = type(model.module).embed_image

    def count(self, images):
        sizes.append(len(images))
        return embed(self, images)

    monkeypatch.setattr(type(model.module), "embed_image", count)
    many = [*GREY] * 7
    embedding = model.encode_image(many)
    assert sizes == [32, 3]
    sizes.clear()
    assert same(model.encode_image(many, batch_size=4), embedding)
    assert max(sizes) == 4
    texts = [f"a small effusion {i}" for i in range(3)]
    scores = model.similarity(many, texts)
    assert scores.shape == (35, 3)
    whole = model.module.head.similarity(embedding, model.encode_text(texts))
    torch.testing.assert_close(scores, whole, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model.similarity(many, texts, batch_size=7), whole, atol=1e-5, rtol=1e-4)
    for call in (model.encode_image, lambda p, **o: model.encode_text("a", **o)):
        with pytest.raises(ConfigError, match="batch_size is 0"):
            call(many, batch_size=0)


def test_a_probe_can_be_trained_on_what_it_gives(model):
    for vectors in (
        model.encode_image(GREY).pooled,
        model.encode_text(["a", "b"]).pooled,
        model.similarity(GREY, ["a"]),
    ):
        assert not vectors.requires_grad
        probe = torch.nn.Linear(vectors.shape[1], 1)
        probe(vectors).sum().backward()
        assert probe.weight.grad.abs().sum() > 0


def test_nothing_gives_nothing(model):
    for none in ([], (), GREY[:0], torch.zeros(0, 1, 24, 30)):
        assert model.encode_image(none).pooled.shape == (0, model.encode_image(GREY[0]).pooled.shape[1])
        assert model.similarity(none, ["a", "b"]).shape == (0, 2)
    assert model.encode_text([]).pooled.shape[0] == 0
    assert model.similarity(GREY, []).shape == (5, 0)
    assert model.similarity([], []).shape == (0, 0)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "a NoneType is none"),
        (3, "a int is none"),
        (b"png", r"pictures\[0\]"),
        ({"a": GREY[0]}, "a dict is none"),
        ([GREY[0], None], r"pictures\[1\]: a NoneType is no picture"),
        ([GREY[0], [GREY[1]]], r"pictures\[1\]: a list is no picture"),
        ([GREY[0], GREY], r"pictures\[1\]: a ndarray holds 5 pictures"),
        (GREY[0, 0], r"shape \[30\]"),
        (np.zeros((2, 2, 9, 9), np.uint8), r"shape \[2, 2, 9, 9\]"),
        (np.zeros((9, 9, 2), np.uint8), r"shape \[9, 9, 2\]"),
        (np.zeros((0, 9), np.uint8), r"\[0, 9\]"),
        (GREY[0] * 1j, "complex128"),
        ([GREY[0], np.full((9, 9), np.nan)], r"pictures\[1\].*not numbers"),
        ([GREY[0], "/no/such.png"], "/no/such.png"),
        (["/no/such.png", GREY[0]], "/no/such.png"),
    ],
    ids=range(15),
)
def test_what_is_no_picture_is_refused_in_one_line(model, value, message):
    with pytest.raises(DiptychError, match=message) as caught:
        model.encode_image(value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [None, 3, b"text", {"a": 1}, ["a", None], ["a", ["b"]]])
def test_what_is_no_text_is_refused(model, value):
    with pytest.raises(ConfigError, match="text"):
        model.similarity(GREY, value)


@pytest.mark.parametrize(
    ("picture", "text", "message"),
    [
        ([GREY[0], GREY[1]], "an effusion", "heatmap takes one picture, and here are 2"),
        (GREY[:2], "an effusion", "heatmap takes one picture, and here are 2"),
        ([], "an effusion", "heatmap takes one picture, and here are 0"),
        (GREY[0], ["an effusion", "a nodule"], "heatmap takes one text, and here are 2"),
    ],
)
def test_a_heatmap_is_of_one_picture_and_one_text(model, picture, text, message):
    with pytest.raises(ConfigError, match=message):
        model.heatmap(picture, text)
    words, maps = model.heatmap([GREY[1]], ["an effusion"])
    assert words == ["an", "effusion"]
    np.testing.assert_array_equal(maps, model.heatmap(GREY[1], "an effusion")[1])


@pytest.mark.parametrize("device", ["cuda", "cuda:3", "nonsense", "cpu:x", "meta", torch.device("cuda", 2)])
def test_a_device_that_is_not_there(model, device, tmp_path):
    if torch.cuda.is_available() and "cuda" in str(device):
        pytest.skip("there is one")
    with pytest.raises(ConfigError, match=f"device '{device}' cannot be used here .*; choose among") as caught:
        TrainedModel(model.module, 32, device=device)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="device"):  # before a large file is read
        diptych.load(tmp_path, device=device)


def write_checkpoint(model, file: Path, seed: int = 0):
    file.parent.mkdir(parents=True, exist_ok=True)
    state = {"state_dict": model.module.state_dict(), "epoch": seed}
    torch.save({**state, "diptych": {"config": CONFIG, "head": "local_pooling", "image_size": 32}}, file)


def test_a_run_folder_is_loaded_by_its_best_checkpoint_or_its_last(model, tmp_path, caplog):
    run = tmp_path / "run"
    for folder in (tmp_path, run / "nothing"):
        folder.mkdir(exist_ok=True, parents=True)
        with pytest.raises(ConfigError, match=r"checkpoints/best\.ckpt or last\.ckpt"):
            diptych.load(folder)
    write_checkpoint(model, run / "checkpoints" / "last.ckpt")
    with caplog.at_level(logging.INFO):
        last = diptych.load(run)
    assert f"no best checkpoint, so the last, {run / 'checkpoints' / 'last.ckpt'}" in caplog.text
    assert same(last.encode_image(GREY), model.encode_image(GREY))
    write_checkpoint(model, run / "checkpoints" / "best.ckpt")
    for folder in (run, run / "checkpoints"):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            diptych.load(folder)
        assert f"the best, {run / 'checkpoints' / 'best.ckpt'}" in caplog.text
    origin = TrainedImage(str(run)).origin
    assert origin["checkpoint"] == str(run / "checkpoints" / "best.ckpt")
    assert origin["tower"]["weights"] == "random"


def test_a_trained_model_embeds_by_either_name(model):
    picture = np.zeros((1, 32, 32), np.uint8)
    expected = model.module.embed_image(torch.zeros(1, 1, 32, 32, dtype=torch.uint8)).pooled
    for embedded in (model.embed_image(picture), model.encode_image(picture)):
        torch.testing.assert_close(embedded.pooled, expected)
    torch.testing.assert_close(model.embed_text("No effusion.").pooled, model.encode_text("No effusion.").pooled)
