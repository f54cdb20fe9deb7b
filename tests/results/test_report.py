"""One page of several runs: it stands alone, runs nothing, and says what the tables say."""

import json
import re
import shutil
from html.parser import HTMLParser

import inprocess
import numpy as np
import pytest
import yaml
from mini import config, write_pairs

from diptych.errors import ConfigError, DataError
from diptych.predictions.base import Predictions
from diptych.predictions.reading import Tested
from diptych.results.failures import wrong_findings
from diptych.results.html import Pictures, document, table_of
from diptych.results.report import main
from diptych.results.training_curves import draw_lines, read_scalars


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two runs of heads with maps, tested with zero-shot classification."""
    folder = tmp_path_factory.mktemp("report")
    table = write_pairs(folder / "data")
    for seed in (0, 1):
        described = yaml.safe_load(config(table, head="local_pooling", epochs=2)) | {"seed_everything": seed}
        zero_shot = {"class_path": "ZeroShot", "init_args": {"prompts": "nih", "resamples": 50}}
        described["model"]["evaluators"] = [{"class_path": "Retrieval"}, zero_shot]
        described["figures"] = {"pairs": 1}
        (folder / f"{seed}.yaml").write_text(yaml.safe_dump(described))
        inprocess.fit_and_test(folder / f"{seed}.yaml", folder / f"run{seed}")
    return folder


class Words(HTMLParser):
    """Texts, tags and links of a page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.links, self.texts = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href") and value]
        assert not any(name.startswith("on") for name, _ in attrs)

    def handle_data(self, data):
        self.texts.append(data)


def test_a_page_of_two_runs_stands_alone(trained, capsys):
    out = trained / "page.html"
    main([str(trained / "run0"), f"second={trained / 'run1'}", "--against", "run0", "--out", str(out)])
    assert "2 runs" in capsys.readouterr().out
    page = out.read_text()
    words = Words(page)
    assert "script" not in words.tags
    assert all(link.startswith(("data:", "#")) for link in words.links)
    assert out.stat().st_size < 5e6
    text = " ".join(words.texts)
    for title in ("Figures", "Classification", "Training", "What the head sees", "Failures", "Configuration"):
        assert title in text
    results = json.loads((trained / "run0" / "results.json").read_text())["metrics"]
    assert f"{results['test/retrieval/r@5']['value']:.3f}" in text
    assert "Holm" in text
    assert "train/loss" in text
    assert sum(link.startswith("data:image") for link in words.links) >= 4
    assert page.count("class=best") >= 1


def test_ids_can_be_left_out_and_pictures_have_a_budget(trained, tmp_path):
    out = tmp_path / "page.html"
    main([str(trained / "run0"), "--out", str(out), "--no-ids", "--megabytes", "0"])
    words = Words(out.read_text())
    assert not any(link.startswith("data:") for link in words.links)
    text = " ".join(words.texts)
    assert "left out" in text
    assert "names images and patients" not in text
    rows = (trained / "run0" / "predictions.csv").read_text().splitlines()[1:]
    assert not any(row.split(",")[0] in re.findall(r"[\w.-]+", text) for row in rows)


def test_a_hostile_name_stays_a_text(trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained / "run0", run)
    evil = "<script>alert(1)</script><b>bold</b>"
    (run / "config.yaml").write_text(f"# {evil}\n")
    main([f"{evil}={run}", "--out", str(tmp_path / "page.html")])
    words = Words((tmp_path / "page.html").read_text())
    assert not {"script", "b"} & set(words.tags)
    assert any(evil in text for text in words.texts)
    assert "default-src 'none'" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--against", "third"], "--against names 'third'"),
        (["--megabytes", "-1"], "--megabytes"),
    ],
)
def test_wrong_options_are_named(trained, tmp_path, options, reason):
    with pytest.raises(ConfigError, match=reason):
        main([str(trained / "run0"), "--out", str(tmp_path / "p.html"), *options])
    with pytest.raises(ConfigError, match="two runs are called 'run0'"):
        main([str(trained / "run0"), f"run0={trained / 'run1'}", "--out", str(tmp_path / "p.html")])


def test_a_run_that_was_not_tested_or_is_damaged_is_named(trained, tmp_path):
    with pytest.raises(ConfigError, match=r"results\.json"):
        main([str(tmp_path), "--out", str(tmp_path / "p.html")])
    run = tmp_path / "run"
    shutil.copytree(trained / "run0", run)
    picture = sorted((run / "figures").glob("test-attention-*.png"))[0]
    picture.write_bytes(b"no picture" * 300000)
    with pytest.raises(DataError, match=re.escape(picture.name)):
        main([str(run), "--out", str(tmp_path / "p.html")])


def test_failures_are_those_of_a_loop():
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=30), rng.integers(2, size=30).astype(float)
    labels[3] = np.nan  # not known: no failure
    ids = [f"i{n}" for n in range(30)]
    tested = Tested(ids, ids, {"zero_shot": Predictions("binary", {"score/Edema": scores, "label/Edema": labels})})
    ((name, rows),) = wrong_findings(tested)
    assert name == "zero_shot"
    expected = []
    for label, word in ((1, "present"), (0, "absent")):
        wrong = []
        for i in range(30):
            beaten = sum((scores[j] > scores[i]) == bool(label) and scores[j] != scores[i]
                         for j in range(30) if labels[j] == 1 - label)  # fmt: skip
            if labels[i] == label and beaten:
                wrong.append((-beaten, scores[i] * (1 if label else -1), ids[i], beaten))
        expected += [(word, one[2], one[3]) for one in sorted(wrong)[:5]]
    assert [(row[1], row[2], int(row[5].split()[0])) for row in rows] == expected
    perfect = {"score/Edema": np.array([0.0, 1.0]), "label/Edema": np.array([0.0, 1.0])}
    assert not list(wrong_findings(Tested(["a", "b"], ["a", "b"], {"x": Predictions("binary", perfect)})))


def test_curves_leave_out_what_is_not_finite_and_are_thinned():
    drawing = draw_lines("loss", {"a": [(s, float(s)) for s in range(5000)], "b": [(0, float("nan")), (5, 2.0)]})
    (points, _) = re.findall(r'points="([^"]*)"', drawing)
    assert len(points.split()) == 400
    assert "nan" not in drawing
    assert draw_lines("loss", {"a": [(0, float("inf"))]}) == ""
    colour = re.compile(r'stroke="(#\w+)"')
    both = colour.findall(draw_lines("loss", {"a": [(0, 1.0), (1, 2.0)], "b": [(0, 1.0), (1, 3.0)]}))
    alone = draw_lines("loss", {"a": [], "b": [(0, 1.0), (1, 3.0)]})
    assert colour.findall(alone) == both[1:], "a run has one colour on a page, whichever others have the curve"
    assert "b &nbsp;" in alone
    assert "<b>" not in draw_lines("<b>", {"<i>": [(0, 1.0), (1, 1.0)]})


def test_a_folder_without_events_has_no_scalars(tmp_path):
    assert read_scalars(tmp_path) == {}


def test_pieces_are_escaped(tmp_path):
    assert "<b>" not in table_of(["<b>"], [["<b>"]])
    assert "<b>" not in document("<b>", [("<b>", "")])
    with pytest.raises(DataError, match="gone"):
        Pictures(100).of(tmp_path / "gone.png", "")
