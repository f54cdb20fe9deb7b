"""The pictures of a run."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import inprocess
import pytest
from mini import config, write_pairs
from PIL import Image

from diptych.errors import ConfigError
from diptych.training.figures import Figures

NAME = "{http://www.w3.org/2000/svg}text"


def drawn(folder: Path, head: str, *options: str) -> dict[str, list[str]]:
    """A run trained and tested with pictures: the texts in each SVG."""
    recipe = folder / "recipe.yaml"
    recipe.write_text(config(write_pairs(folder / "pairs"), head=head, epochs=1, **{"private": "private" in options}))
    figures = ["--figures.pairs", "2", "--figures.matrix", "2", "--figures.formats", "[png, svg, pdf]"]
    more = [option for option in options if option != "private"]
    inprocess.fit_and_test(recipe, folder / "run", *figures, *more)
    files = sorted((folder / "run" / "figures").glob("*.svg"))
    return {file.stem: [text.text or "" for text in ElementTree.parse(file).iter(NAME)] for file in files}


def test_words_are_drawn_in_every_format(tmp_path):
    texts = drawn(tmp_path, "reclf", "--figures.words_per_pair", "2", "--figures.full_colour", "7.5")
    stems = {f"{stage}-attention-{index}" for stage in ("epoch000", "test") for index in (0, 3)}
    assert texts.keys() == stems | {"epoch000-similarity", "test-similarity"}
    assert "score of a picture (row) with a report (column)" in texts["test-similarity"]
    for stem in stems:
        file = tmp_path / "run" / "figures" / f"{stem}.png"
        assert Image.open(file).size[0] > 900
        assert file.with_suffix(".pdf").read_bytes().startswith(b"%PDF")
        assert {"all words", "7.5", "R", "L", "1 = flat"} <= set(texts[stem])
        assert sum("entropy" in text for text in texts[stem]) == 2
        assert any(text.startswith("score of the pair") for text in texts[stem])
        assert any("effusion" in text for text in texts[stem])
    assert (tmp_path / "run" / "figures" / "test-similarity.png").is_file()


@pytest.mark.slow
def test_queries_are_drawn_and_a_private_run_names_no_word(tmp_path):
    texts = drawn(tmp_path, "pcma", "private", "--figures.sides", "false")
    assert {stem.split("-")[1] for stem in texts} == {"attention", "queries", "similarity"}
    for words in texts.values():
        assert not {"R", "L"} & set(words)
        assert not any("effusion" in word or "nodule" in word or "finding" in word for word in words)
    assert "query 0" in texts["test-queries-0"]
    assert any(word.startswith("word ") for word in texts["test-attention-0"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"full_colour": 1.0}, "figures: full_colour is 1.0; give a number above 1"),
        ({"formats": ["png", "jpg"]}, "figures: formats is 'jpg'; choose among: png, svg, pdf"),
    ],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        Figures(**options)
