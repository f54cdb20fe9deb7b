"""What each head sees of a text, as numbers and as files."""

from __future__ import annotations

from functools import partial
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from mini import IMAGE, TEXT
from PIL import Image

from diptych.errors import ConfigError
from diptych.head import Grounds, ScoresMatchings, WeighsWords
from diptych.model.inference import TrainedModel
from diptych.model.module import AlignmentModule
from diptych.towers.image import TimmImage
from diptych.towers.text import ScratchText
from diptych_heads.cce import Cce
from diptych_heads.composite import Composite
from diptych_heads.global_ import Global
from diptych_heads.local_pooling import LocalPooling
from diptych_heads.mgca import MGCA
from diptych_heads.pcma import Pcma
from diptych_heads.reclf import Reclf

TEXT_SEEN = "There is a left effusion. No nodule is seen, the heart is small."
HEADS = {
    "local_pooling": partial(LocalPooling, width=16),
    "softmax": partial(LocalPooling, width=16, attention="softmax"),
    "reclf": partial(Reclf, width=16, matching_width=8),
    "mgca": partial(MGCA, prototypes=8),
    "pcma": partial(Pcma, width=16, queries=5),
    "composite": partial(Composite, heads=[Global, partial(Reclf, width=16, matching_width=8), Cce]),
}


@pytest.fixture(scope="module", params=list(HEADS))
def model(request):
    torch.manual_seed(0)
    text = ScratchText(**{**TEXT, "max_tokens": 128})
    text.tokenizer.learn([TEXT_SEEN])
    return TrainedModel(AlignmentModule(TimmImage(**IMAGE, stage=2), text, HEADS[request.param]), 32)


PICTURE = np.random.default_rng(0).integers(0, 255, (48, 40)).astype(np.uint8)


def test_figures_are_those_of_the_head(model):
    seen, head = model.look(PICTURE, TEXT_SEEN), model.module.head
    assert isinstance(head, Grounds)
    words, maps = model.heatmap(PICTURE, TEXT_SEEN)
    assert seen.words == words == TEXT_SEEN.replace(".", "").replace(",", "").split()
    number = seen.regions[0].size
    assert number == 16
    np.testing.assert_allclose(seen.native, maps * number, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(seen.regions.mean(axis=(1, 2)), 1, rtol=1e-4)  # attention sums to 1
    assert seen.score == pytest.approx(model.similarity(PICTURE, TEXT_SEEN).item(), abs=1e-4)
    assert (seen.local is None) == (not isinstance(head, ScoresMatchings))
    if isinstance(head, WeighsWords) and head.weighs_words:
        np.testing.assert_allclose(seen.weights, model.importance(PICTURE, TEXT_SEEN), atol=1e-6)
    else:
        assert seen.weights is None


def test_each_head_is_shown_in_each_kind_of_file(model, tmp_path):
    for kind in ("png", "svg", "pdf"):
        model.show(PICTURE, TEXT_SEEN, tmp_path / f"a.{kind}", most=3)
    words = [text.text for text in ElementTree.parse(tmp_path / "a.svg").iter("{http://www.w3.org/2000/svg}text")]
    assert "16 regions" in words
    assert any(word.endswith("(no finding)") for word in words)
    seen = model.look(PICTURE, TEXT_SEEN)
    different = len({heat.tobytes() for heat in seen.regions})  # the words of a sentence share a map in pcma
    assert sum("entropy" in word for word in words) == min(3, different)
    assert any(word.startswith(f"score of the pair {seen.score:.3f}") for word in words)
    assert ("all words" in words) == (seen.weights is not None)
    assert Image.open(tmp_path / "a.png").size[0] > 900
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")


def test_what_cannot_be_shown_is_refused_by_name(tmp_path):
    text = ScratchText(**{**TEXT, "max_tokens": 128})
    text.tokenizer.learn([TEXT_SEEN])
    blind, seeing = (
        TrainedModel(AlignmentModule(TimmImage(**IMAGE, stage=2), text, head), 32)
        for head in (Global, HEADS["local_pooling"])
    )
    file = tmp_path / "a.png"
    with pytest.raises(ConfigError, match="the head Global has no heatmap"):
        blind.show(PICTURE, TEXT_SEEN, file)
    with pytest.raises(ConfigError, match="most is 0; give a whole number of 1 or more"):
        seeing.show(PICTURE, TEXT_SEEN, file, most=0)
    with pytest.raises(ConfigError, match="full_colour is 1; give a number above 1"):
        seeing.show(PICTURE, TEXT_SEEN, file, full_colour=1)
    with pytest.raises(ConfigError, match="look takes one text, and here are 2"):
        seeing.show(PICTURE, [TEXT_SEEN, TEXT_SEEN], file)
    with pytest.raises(ConfigError, match=r"ends in '.gif'"):
        seeing.show(PICTURE, TEXT_SEEN, tmp_path / "a.gif")
    assert not list(tmp_path.iterdir())
    seeing.show(PICTURE, "", file)  # nothing is seen of no words
    assert file.is_file()
