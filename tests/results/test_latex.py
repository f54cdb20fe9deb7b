"""Tables in LaTeX: readable names, and the best in bold."""

import json

from diptych.results.latex import readable, tabular
from diptych.results.runs import read_run, tables
from diptych.results.table import View, latex


def test_names_are_those_of_papers():
    assert readable("macro_f1") == "macro f1"
    assert readable("f1/macro") == "F1 (macro)"
    assert readable("text_to_image/r@10") == "text to image R@10"


def test_only_the_figure_is_bold_and_signs_are_escaped():
    tex = tabular("a & b", ["run", "R@5"], [["x_y", "0.700 (0.600 to 0.800)"], ["z", "0.500"]], bold=[(0, 1)])
    assert r"x\_y & \textbf{0.700} (0.600 to 0.800) \\" in tex
    assert r"\caption{a \& b}" in tex
    assert [tex.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [1, 1, 1]


def run(folder, **figures):
    metrics = {
        f"test/zero_shot/{name}": {"value": value, "low": None, "high": None, "n": 9} for name, value in figures.items()
    }
    folder.mkdir()
    content = {"metrics": metrics, "protocol": {"data": "phantom", "zero_shot": {}}, "head": folder.name, "seed": 0}
    (folder / "results.json").write_text(json.dumps(content | {"split_hash": "ab12"}))
    return read_run(str(folder))


def test_the_best_of_the_chosen_columns_is_bold(tmp_path):
    runs = [
        run(tmp_path / "a", auroc=0.9, brier=0.3, accuracy=0.5),
        run(tmp_path / "b", auroc=0.8, brier=0.1, accuracy=0.5),
    ]
    view = View(["auroc", "brier"])
    tex = latex(tables(runs), view)
    assert "run & AUROC & Brier score \\\\" in tex
    assert r"a & \textbf{0.900} & 0.300 \\" in tex
    assert r"b & 0.800 & \textbf{0.100} \\" in tex  # less is better
    assert "Bold: the best figure of a column." in tex
    assert "Bold" not in latex(tables(runs), View(["accuracy"]))  # a tie of all
    runs = [run(tmp_path / "c", **{"radeval/radcliq_v1": 0.5}), run(tmp_path / "d", **{"radeval/radcliq_v1": 2.5})]
    assert r"c & \textbf{0.500} \\" in latex(tables(runs), View([]))
