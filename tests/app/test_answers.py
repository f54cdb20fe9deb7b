"""What the page is told equals what the loaded model gives in Python."""

from __future__ import annotations

import base64

import cv2
import hostile
import numpy as np
import pytest

import diptych
from diptych.app.answers import Warm, answer
from diptych.errors import ConfigError, DataError
from diptych.radiographs.intensity import Intensity
from diptych.radiographs.read import radiograph_of_bytes, read_radiograph
from diptych.results.attention import draw_seen, full_colour_of, overlay, panel_of

PHRASE = "There is an effusion."


def decoded(address):
    head, _, code = address.partition(";base64,")
    assert head.startswith("data:image/")
    return cv2.imdecode(np.frombuffer(base64.b64decode(code), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


@pytest.fixture(scope="module")
def models(world):
    reports = (world / "reports.txt").read_text().splitlines()
    return [Warm(name, diptych.load(world / name), reports=reports) for name in ("local", "whole")]


@pytest.mark.parametrize("file", ["pairs/000.png", "scan"])
def test_values_are_those_of_the_loaded_model(world, models, file):
    path, reports = world / file, (world / "reports.txt").read_text().splitlines()
    said = answer(models, path.read_bytes(), PHRASE)
    grey = read_radiograph(path)
    for one, warm in zip(said["models"], models, strict=True):
        model = warm.model
        assert one["score"] == pytest.approx(float(model.similarity(path, PHRASE)), abs=1e-5)
        table = model.zero_shot(path, prompts="rsna")
        assert [name for name, _ in one["zero_shot"]] == list(table.findings)
        np.testing.assert_allclose([value for _, value in one["zero_shot"]], table.probabilities[0], atol=1e-6)
        assert one["how"].endswith("; uncalibrated.")
        best = model.retrieve(path, reports)
        assert [text for text, _ in one["nearest"]] == [report.report for report in best]
        np.testing.assert_allclose([score for _, score in one["nearest"]], [b.score for b in best], atol=1e-5)
        assert one["shape"] == grey.shape
        assert np.abs(decoded(one["picture"]).astype(int) - grey[..., None]).mean() < 4  # JPEG


def test_the_map_is_that_of_the_word_and_of_the_scale(world, models):
    path = world / "pairs" / "000.png"
    raw, grey = path.read_bytes(), read_radiograph(path)
    seen = models[0].model.look(path, PHRASE)
    assert seen.peaks.max() > 2, "these maps are flat, so nothing can be told from them"
    for start, chosen in ((0, "There"), (PHRASE.index("effusion"), "effusion"), (None, "effusion")):
        said = answer(models, raw, PHRASE, start)
        one, other = said["models"]
        i = seen.words.index(chosen)
        full = full_colour_of(float(seen.peaks[i]))
        expected = overlay(grey, panel_of(seen, seen.regions[i], "", "").map, full)
        assert np.abs(decoded(one["map"]).astype(int) - expected).mean() < 6
        assert np.abs(expected.astype(int) - grey[..., None]).mean() > 6
        assert (one["word"], one["seen"]["word"]) == (PHRASE.index(chosen), chosen)
        assert one["seen"]["peak"] == pytest.approx(float(seen.peaks[i]))
        assert said["bar"]["marks"][-1] == (1.0, f"{full:g}")
        assert other["map"] is None
        assert other["without"].startswith("The head Global has no maps.")
    assert [word for _, word in one["words"]] == ["effusion"]
    assert draw_seen(seen, most=1).width > 0  # the same pieces that `model.show` draws


def test_a_file_is_read_once_as_in_training_and_its_notes_are_told(models):
    raw = hostile.dicom("ExplicitVRLittleEndian", PatientOrientation=["R", "F"])
    model, before = models[0].model, models[0].model.intensity
    try:
        model.intensity = Intensity((5, 60))  # a picture that has been read must not be stretched again
        (one,) = answer(models[:1], raw, PHRASE)["models"]
        grey = radiograph_of_bytes(raw, source="picture", intensity=model.intensity)
        seen = model.look(raw, PHRASE)
    finally:
        model.intensity = before
    assert np.abs(decoded(one["picture"]).astype(int) - grey[..., None]).mean() < 4
    assert one["seen"]["peak"] == pytest.approx(float(seen.peaks[seen.words.index("effusion")]))
    assert len(one["notes"]) == 1
    assert "orientation" in one["notes"][0].lower()


def test_another_phrase_asks_the_reports_once(world, models, monkeypatch):
    first, second = ((world / "pairs" / f"{name}.png").read_bytes() for name in ("000", "001"))
    before = answer(models[:1], first, "")["models"][0]
    monkeypatch.setattr(models[0], "_values", Counting(models[0]._values))
    again = answer(models[:1], first, PHRASE, 0)["models"][0]
    other = answer(models[:1], second, PHRASE)["models"][0]
    assert models[0]._values.asked == 1
    assert (again["nearest"], again["zero_shot"]) == (before["nearest"], before["zero_shot"])
    assert other["nearest"] != before["nearest"]


class Counting:
    """Values that count how often they are computed."""

    def __init__(self, values):
        self.values, self.asked = values, 0
        self.columns, self.about = values.columns, values.about

    def of(self, images):
        self.asked += 1
        return self.values.of(images)


def test_two_models_have_one_scale(world, models):
    raw = (world / "pairs" / "001.png").read_bytes()
    flat = Warm("flat", diptych.load(world / "flat"))
    alone, (sharp, dull) = answer([flat], raw, PHRASE), answer([models[0], flat], raw, PHRASE)["models"]
    both = answer([models[0], flat], raw, PHRASE)["bar"]
    assert dull["seen"]["peak"] < 1.1 < sharp["seen"]["peak"]
    assert both["marks"][-1][1] == f"{full_colour_of(sharp['seen']['peak']):g}"
    assert alone["bar"]["marks"][-1][1] == "5"


def test_without_a_phrase_or_a_set_there_is_less(world):
    warm = Warm("mine", diptych.load(world / "local"))
    warm.model.prompt_sets = []
    bare = Warm("bare", warm.model)
    raw = (world / "pairs" / "000.png").read_bytes()
    (one,) = answer([bare], raw, "  ")["models"]
    assert (one["score"], one["map"]) == (None, None)
    assert not {"zero_shot", "nearest", "seen", "without"} & set(one)
    (one,) = answer([warm], raw, "of the 2")["models"]
    assert one["map"] is None
    assert "names nothing" in one["without"]
    assert warm.about == {"name": "mine", "head": "LocalPooling", "maps": True, "prompts": "rsna", "reports": None}


def test_wrong_questions_are_named(world, models):
    raw = (world / "pairs" / "000.png").read_bytes()
    with pytest.raises(ConfigError, match="shorten it to 4,000"):
        answer(models, raw, "a" * 4001)
    for phrase in ("", PHRASE):
        with pytest.raises(DataError, match=r"picture: .*text file"):
            answer(models, b"no picture, but a text that is long enough", phrase)
    with pytest.raises(ConfigError, match="no prompt set is called 'mine'"):
        Warm("mine", models[0].model, prompts="mine")


def test_a_checkpoint_names_the_shipped_sets_that_its_tests_ask(world):
    assert diptych.load(world / "whole").prompt_sets == ["rsna"]
