"""Pictures of what a head sees: one scale with its bar, which words are drawn, their figures, and the sides."""

from __future__ import annotations

import base64
import io
import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from diptych.data.dataset import Sample
from diptych.radiographs.letterbox import letterbox
from diptych.results.attention import draw_seen, full_colour_of, overlay, scale_marks
from diptych.results.seen import Maps, Seen, choose_words

NAME = "{http://www.w3.org/2000/svg}"
LINK = "{http://www.w3.org/1999/xlink}href"
REPORT = (
    "The heart is normal in size. Large left effusion, hazy costophrenic sulcus. No pneumothorax. Possible pneumonia."
)


def seen(text=REPORT, *, peaks=None, weights=None, grid=(4, 4), shape=(64, 64), **facts):
    """Words whose attention has one high region each; ``peaks`` are in multiples of the mean region."""
    spans = [match.span() for match in re.finditer(r"\w+", text)]
    regions = np.ones((len(spans), math.prod(grid)), np.float32)
    for i, row in enumerate(regions):
        peak = 3.0 + i / 10 if peaks is None else peaks.get(text[slice(*spans[i])], 1.0)
        row[:] = (len(row) - peak) / (len(row) - 1)
        row[i % len(row)] = peak
    image = np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)
    share = None if weights is None else np.array([weights.get(text[a:b], 0.01) for a, b in spans], np.float32)
    place = letterbox(image, 64)[1]
    score = facts.get("score", 0.5)
    return Seen(image, regions.reshape(-1, *grid), place, 64, text, spans, score, facts.get("local"), share)


class Drawn:
    """The parts of a sheet, as its SVG has them."""

    def __init__(self, sheet):
        root = ElementTree.fromstring(sheet.svg())
        self.texts = [(e.text, float(e.get("x")), float(e.get("y"))) for e in root.iter(f"{NAME}text")]
        self.pictures = []
        for element in root.iter(f"{NAME}image"):
            file = base64.b64decode(element.get(LINK).partition(",")[2])
            box = [float(element.get(key)) for key in ("x", "y", "width", "height")]
            self.pictures.append((box, np.asarray(Image.open(io.BytesIO(file)))))
        self.outlines = [e.get("points") for e in root.iter(f"{NAME}polyline") if e.get("stroke") == "#40c8ff"]

    @property
    def words(self):
        return [text for text, _, _ in self.texts]

    @property
    def panels(self):
        """The maps, without the radiograph before and the colour bar after them."""
        return [pixels for _, pixels in self.pictures[1:-1]]


def titles(what, **options):
    """The panels' words, the radiograph's and all words' left out."""
    drawn = Drawn(draw_seen(what, **options))
    tops = {(box[0], box[1]) for box, _ in drawn.pictures[:-1]}
    found = [text for text, x, y in drawn.texts if any(x == a and 20 < b - y < 24 for a, b in tops)]
    return [title for title in found if title not in ("radiograph", "all words")]


# --- the scale


def test_flat_attention_gives_the_radiograph_itself():
    flat = seen(peaks={})
    flat.regions[:] += np.random.default_rng(0).normal(size=flat.regions.shape) * 1e-6  # rounding
    drawn = Drawn(draw_seen(flat))
    grey = np.repeat(flat.image[..., None], 3, axis=2)
    assert len(drawn.panels) == 4
    assert all(np.array_equal(pixels, grey) for _, pixels in drawn.pictures[:-1])
    assert "entropy 1.00, peak 1.0x" in drawn.words


def test_nearly_flat_attention_looks_nearly_flat():
    """Stretched to its own range it would be as red as any other."""
    image = np.full((8, 8), 90, np.uint8)
    heat = np.linspace(0.9, 1.1, 64, dtype=np.float32).reshape(8, 8)
    nearly, sharp = (np.abs(overlay(image, heat**power) - 90.0).max() for power in (1, 17))
    assert nearly < 16
    assert sharp > 100


def test_colour_follows_the_value_alone_and_rises_with_it():
    image, values = np.full((1, 7), 90, np.uint8), np.array([[0.0, 0.5, 1.0, 1.5, 2.0, 4.0, 9.0]], np.float32)
    colours = overlay(image, values, 5.0)[0].astype(int)
    assert (colours[:3] == 90).all()
    apart = np.abs(np.diff(colours[2:], axis=0)).sum(axis=1)
    assert (apart[:-1] > 10).all()
    assert np.array_equal(colours[6], overlay(image, np.full((1, 7), 5.0, np.float32), 5.0)[0, 0])  # the bar's end
    for i in range(7):  # whatever else is in the picture
        assert np.array_equal(overlay(image[:, i : i + 1], values[:, i : i + 1], 5.0)[0, 0], colours[i])


def test_all_panels_have_one_scale():
    what = seen(peaks={"effusion": 12.0, "pneumonia": 2.0}, weights={"effusion": 0.5, "sulcus": 0.4})
    drawn = Drawn(draw_seen(what))
    assert {"1 = flat", "2", "5", "10", "20"} <= set(drawn.words)
    whole, strong, weak = drawn.panels[:3]
    assert all(panel.shape == (64, 64, 3) for panel in (whole, strong, weak))
    for panel, word in ((strong, "effusion"), (weak, "pneumonia")):
        i = what.words.index(word)
        twin = overlay(what.image, what.native[i].clip(max=what.regions[i].max()), 20.0)
        assert np.array_equal(panel, twin)
        assert (panel != what.image[..., None]).any(axis=2).mean() < 0.3
    assert not np.array_equal(strong, weak)
    other = Drawn(draw_seen(seen(peaks={"pneumonia": 2.0}), full=20.0))
    assert "20" in other.words
    assert any(np.array_equal(panel, weak) for panel in other.panels)


@pytest.mark.parametrize(("peak", "full"), [(1.0, 5.0), (5.0, 5.0), (5.1, 10.0), (49.0, 50.0), (196.0, 200.0)])
def test_the_bar_shows_the_colours_at_its_marks(peak, full):
    assert full_colour_of(peak) == full
    what = seen(peaks={"effusion": peak}, grid=(14, 14))
    drawn = Drawn(draw_seen(what))
    (_, top, _, height), bar = drawn.pictures[-1]
    marks = {text: y for text, _, y in drawn.texts if re.fullmatch(r"\d+|1 = flat", text)}
    assert set(marks) == {text for _, text in scale_marks(full)}
    assert f"{full:g}" in marks
    for text, y in marks.items():
        value = float(text.partition(" ")[0])
        place = (y - 3.5 - top) / height  # from the top
        assert place == pytest.approx(1 - math.log(value) / math.log(full), abs=1e-4)
        row = bar[min(len(bar) - 1, round(place * (len(bar) - 1)))]
        twin = overlay(np.array([[20, 210]], np.uint8), np.full((1, 2), value, np.float32), full)[0]
        assert np.abs(row[[0, -1]].astype(int) - twin).max() <= 6
    gaps = np.diff(sorted(marks.values()))
    assert gaps.min() > 9  # numbers do not overlap
    assert {"attention,", "times the", "mean region"} <= set(drawn.words)


# --- the words


def test_findings_come_first_then_the_rest_by_weight():
    what = seen(weights={"left": 0.3, "hazy": 0.2, "the": 0.9, "effusion": 0.02, "heart": 0.1, "size": 0.05})
    assert titles(what, most=20) == [
        "effusion",
        "pneumonia (in doubt)",
        "heart (no finding)",
        "pneumothorax (no finding)",
        "normal (no finding)",  # of a finding that has had a word
        "left",
        "hazy",
        "size",
        "Large",
        "costophrenic",
        "sulcus",
        "Possible",
    ]
    assert titles(what, most=3) == ["effusion", "pneumonia (in doubt)", "heart (no finding)"]
    flat = {"left": 3.0, "hazy": 9.0, "Large": 6.0}
    assert titles(seen(peaks=flat), most=20)[4:7] == ["hazy", "Large", "left"]  # the most concentrated


def test_no_stop_word_no_number_and_no_word_twice():
    what = seen("There is an effusion of 3 cm, seen on the left. The Effusion is 12.")
    assert titles(what, most=20) == ["effusion", "left", "cm"]
    assert titles(seen("There is no 5."), most=4) == []


def test_words_that_are_asked_for_are_drawn_as_they_are():
    assert titles(seen(), words=["LEFT", "the", "effusion", "absent"]) == ["left", "The", "effusion"]


def test_words_with_one_map_share_a_panel():
    what = seen(
        "Large left pleural fluid. No pneumothorax, the apices are clear.", weights={"pleural": 0.2, "left": 0.5}
    )
    for first, last in ((0, 4), (4, 10)):
        what.regions[first:last] = what.regions[first]
    assert titles(what) == ["pleural fluid", "pneumothorax (no finding)"]
    assert [numbers for numbers, _ in choose_words(what, 4)] == [[2, 3], [5]]
    notes = [word for word in Drawn(draw_seen(what)).words if word.startswith("weight")]
    assert re.fullmatch(r"weight 21.0%, entropy 0\.9\d, peak 3.0x", notes[0])
    assert notes[1].startswith("weight 1.0%")


def test_entropy_is_that_of_a_slow_twin():
    regions = np.random.default_rng(0).random((5, 3, 3)).astype(np.float32) ** 4
    image = np.zeros((9, 9), np.uint8)
    for row, fast in zip(regions, Maps(image, regions, letterbox(image, 9)[1], 9).entropy, strict=True):
        share = [float(value) / float(row.sum()) for value in row.ravel()]
        assert fast == pytest.approx(-sum(p * math.log(p) for p in share) / math.log(9), rel=1e-5)
    ends = np.array([[[0, 2]], [[1, 1]]], np.float32)
    assert Maps(image, ends, letterbox(image, 9)[1], 9).entropy.tolist() == [0.0, 1.0]


def test_score_weights_and_peaks_are_written():
    drawn = Drawn(draw_seen(seen(score=0.6214, local=0.2131, peaks={"effusion": 7.25}, weights={"effusion": 0.123})))
    assert "score of the pair 0.621, its local part 0.213" in drawn.words
    assert "16 regions" in drawn.words
    note = next(word for word in drawn.words if word.startswith("weight 12.3%"))
    assert re.fullmatch(r"weight 12.3%, entropy 0\.\d\d, peak 7.2x", note)
    plain = Drawn(draw_seen(seen(score=-1.5)))
    assert "score of the pair -1.500" in plain.words
    assert not [word for word in plain.words if "weight" in word]


def test_the_weighed_map_is_the_weighted_mean():
    what = seen(weights={"effusion": 0.3, "left": 0.6})
    drawn = Drawn(draw_seen(what))
    mean = sum(float(w) * heat.astype(float) for w, heat in zip(what.weights, what.regions, strict=True))
    mean = (mean / float(what.weights.sum())).astype(np.float32)
    heat = what.place.heat(mean[None], what.image.shape, what.size)[0].clip(max=mean.max())
    assert np.abs(drawn.panels[0].astype(int) - overlay(what.image, heat, 5.0)).max() <= 1
    assert (drawn.panels[0] != what.image[..., None]).any()


# --- sides, boxes, the report


@pytest.mark.parametrize("shape", [(64, 64), (30, 200), (400, 20), (300, 250)])
def test_right_is_marked_on_the_left_of_every_panel(shape):
    drawn = Drawn(draw_seen(seen(shape=shape)))
    boxes = [box for box, _ in drawn.pictures[:-1]]
    for mark, near in (("R", 0), ("L", 1)):
        marks = [(x, y) for text, x, y in drawn.texts if text == mark]
        assert len(marks) == len(boxes) == 5
        for (x, y), (left, top, width, height) in zip(marks, boxes, strict=True):
            assert abs(x - (left + near * width)) < 20
            assert top < y < top + height
    assert not {"R", "L"} & set(Drawn(draw_seen(seen(shape=shape), sides=False)).words)


def test_boxes_or_the_mask_are_outlined_in_every_panel():
    what = seen()
    boxes = np.array([[10, 20, 30, 40, 1], [50, 0, 64, 9, 0]], np.float32)
    mask = np.zeros((64, 64), bool)
    mask[10:20, 10:20] = True
    drawn = Drawn(draw_seen(what, sample=Sample(what.image, boxes=boxes, mask=mask), findings=["Nodule", "Effusion"]))
    (left, top, width, _), _ = drawn.pictures[0]
    assert len(drawn.outlines) == 2 * 5
    corner = [float(value) for value in drawn.outlines[0].split()[0].split(",")]
    assert corner == pytest.approx([left + 10 * width / 64, top + 20 * width / 64])
    assert {"Nodule", "Effusion"} <= set(drawn.words)
    assert len(Drawn(draw_seen(what, sample=Sample(what.image, mask=mask))).outlines) == 5


def test_private_pictures_hold_no_word():
    what = seen(weights={"left": 0.4})
    drawn = Drawn(draw_seen(what, private=True, sample=Sample(what.image, text=REPORT)))
    left = " ".join(drawn.words).lower()
    assert not [word for word in what.words if len(word) > 3 and word.lower() in left]
    assert "finding" not in left
    assert "doubt" not in left
    assert "word 8" in drawn.words  # left, which weighs most
    assert "effusion" in Drawn(draw_seen(what, private=True, words=["effusion"])).words


def test_large_pictures_become_small_ones():
    sheet = draw_seen(seen(shape=(2500, 2000)), most=1)
    assert {pixels.shape for _, pixels in Drawn(sheet).pictures[:-1]} == {(960, 768, 3)}
    assert sheet.image().size[0] < 1100


def test_the_name_of_a_box_stands_inside_it_or_above_it_and_within_the_picture():
    what = seen(shape=(240, 240))
    boxes = np.array([[20, 60, 200, 200, 0], [200, 30, 240, 40, 1], [0, 0, 30, 8, 1]], np.float32)
    drawn = Drawn(draw_seen(what, sample=Sample(what.image, boxes=boxes), findings=["Nodule", "Effusion"]))
    (left, top, width, height), _ = drawn.pictures[0]
    names = [(text, x - left, y - top) for text, x, y in drawn.texts if text in ("Nodule", "Effusion")]
    assert [text for text, _, _ in names] == ["Nodule", "Effusion", "Effusion"]
    (_, x, y), (_, end, above), (_, start, low) = names
    assert 20 < x < 200
    assert 60 < y < 80  # inside the large box
    assert (end, above) == (237, 27)  # ends at the edge, above the small one
    assert 0 < start < 10
    assert 8 < low < height
    assert width == 240
