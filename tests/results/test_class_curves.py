"""Pictures of classification: which curves they hold, and that they are written as PNG and SVG."""

from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score

from diptych.predictions.base import Predictions, named
from diptych.results.class_curves import draw_classification, scored, write_curves

NAMES = [f"Finding {i}" for i in range(16)]


def kept(kind="binary", probabilities=True):
    rng = np.random.default_rng(0)
    labels = (rng.random((90, 16)) < np.linspace(0.1, 0.6, 16)).astype(float)
    labels[::9], labels[:, 3] = np.nan, 0
    scores = rng.normal(size=(90, 16)) + np.nan_to_num(labels)
    columns = named("score", NAMES, scores) | named("label", NAMES, labels)
    return Predictions(
        kind, columns | (named("probability", NAMES, 1 / (1 + np.exp(-scores))) if probabilities else {})
    )


def curves_of(sheet, name):
    """The polylines of a sheet as SVG that are neither black nor grey, as fractions of a panel's side."""
    root = ElementTree.fromstring(sheet.svg())
    lines = [e for e in root.iter() if e.tag.endswith("polyline") and e.attrib["stroke"] == name]
    return [np.array([point.split(",") for point in line.attrib["points"].split()], float) for line in lines]


def test_the_drawn_curves_have_the_areas_of_their_figures():
    findings = scored(kept())[""][:2]
    sheet = draw_classification(findings, "run")
    for one, colour in zip(findings, ("#0072b2", "#d55e00"), strict=True):
        roc, pr = curves_of(sheet, colour)[:2]
        left, top, side = 52, 52, 230
        x, y = (roc[:, 0] - left) / side, 1 - (roc[:, 1] - top) / side
        assert np.trapezoid(y, x) == pytest.approx(roc_auc_score(one.labels, one.scores), abs=0.01)
        x, y = (pr[:, 0] - left - 304) / side, 1 - (pr[:, 1] - top) / side
        assert np.trapezoid(y, x) == pytest.approx(average_precision_score(one.labels, one.scores), abs=0.01)


def test_files_are_written_for_what_has_scores_of_findings(tmp_path):
    seeds = {f"10%/seed{k}/score/{name}": kept().columns[f"score/{name}"] for k in (0, 1) for name in NAMES}
    probe = Predictions(
        "seeds", {**seeds, **named("label", NAMES, np.stack([kept().columns[f"label/{n}"] for n in NAMES], 1))}
    )
    other = Predictions("overlap", {"dice": np.ones(3), "iou": np.ones(3), "pixels": np.ones(3)})
    paths = write_curves(
        tmp_path, {"zero_shot": kept(probabilities=False), "a/b": kept(), "probe": probe, "segment": other}
    )
    stems = ["curves-zero_shot", "curves-a-b", "curves-probe-10"]
    assert [path.name for path in paths] == [f"{stem}.{ending}" for stem in stems for ending in ("png", "svg", "pdf")]
    assert scored(other) == {}
    text = (tmp_path / "curves-a-b.svg").read_text()
    assert "14 of 15 findings, those with most positives" in text
    assert NAMES[3] not in [one.name for one in scored(kept())[""]]  # one class only
    assert "reliability" in text
    assert "reliability" not in (tmp_path / "curves-zero_shot.svg").read_text()
    assert "reliability" in (tmp_path / "curves-probe-10.svg").read_text()
    colours = Image.open(tmp_path / "curves-a-b.png").convert("RGB").getcolors(1 << 20)
    assert (0, 114, 178) in [colour for _, colour in colours]
