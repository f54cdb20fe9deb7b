"""``diptych suite``: from models and tests to one table, nothing twice, and wrong suites named before anything runs."""

import csv
import io
import json
import shlex
from pathlib import Path

import inprocess
import pytest
import yaml
from mini import config

from diptych.cli import suite as command
from diptych.cli.rows import read_suite
from diptych.errors import ConfigError
from diptych.results.runs import read_run


@pytest.fixture
def here(monkeypatch):
    """Children run in this process, which is the same command without its imports. Gives their words."""
    called = []

    def run_all(children, jobs, ended, started=lambda child: None, environment=None):
        for child in children:
            called.append(list(child.command))
            started(child)
            done = inprocess.diptych(*child.command)
            child.log.write_text(done.stdout + done.stderr)
            ended(child, child.error(done.returncode))

    monkeypatch.setattr(command, "run_all", run_all)
    return called


@pytest.fixture
def files(table, trained, tmp_path):
    """A suite of two trained heads and an image tower, in two tests."""
    data = yaml.safe_load(config(table))["data"]
    trainer = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False}
    (tmp_path / "whole.yaml").write_text(yaml.safe_dump({"data": data, "trainer": trainer}))
    probe = {"class_path": "Probe", "init_args": {"percents": [100], "seeds": 1, "epochs": 2}}
    (tmp_path / "probe.yaml").write_text(yaml.safe_dump({"model": probe, "data": data, "trainer": trainer}))
    image = yaml.safe_load(config(table))["model"]["image"]
    suite = {
        "models": {
            "one": {"run": str(trained / "global"), "title": "Global, ours"},
            "two": {"run": str(trained / "local_pooling")},
            "tower": {"image": image},
        },
        "tests": {
            "pairs": {"config": str(tmp_path / "whole.yaml"), "title": "Corners"},
            "probe": {"config": str(tmp_path / "probe.yaml"), "image": True},
        },
        "columns": [
            {"test": "pairs", "metric": "retrieval/r@5", "title": "R@5"},
            {"test": "pairs", "metric": "retrieval/text_to_image/median_rank", "best": "lowest"},
            {"test": "probe", "metric": "probe/100%/auroc/macro"},
        ],
        "against": "one",
    }

    def write(**changes):
        content = json.loads(json.dumps(suite))
        for key, value in changes.items():
            *parents, last = key.split("__")
            inner = content
            for parent in parents:
                inner = inner[parent]
            if value is None:
                inner.pop(last)
            else:
                inner[last] = value
        (tmp_path / "suite.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        return tmp_path / "suite.yaml"

    return write


def test_from_models_and_tests_to_one_table_and_nothing_twice(files, here, tmp_path, capsys):
    run = tmp_path / "out"
    command.main(["-c", str(files()), "--run", str(run)])
    printed = capsys.readouterr().out
    assert len(here) == 2 + 3  # a tower without texts takes the probe alone
    page = (run / "suite.md").read_text()
    assert page in printed
    rows = list(csv.DictReader(io.StringIO((run / "suite.csv").read_text())))
    assert len(rows) == 2 * 2 + 3
    for row in rows:
        figure = read_run(str(run / row["model"] / row["test"])).metrics[row["metric"]]
        assert float(row["value"]) == figure.value
        if row["model"] == "one" or row["difference interval"] == "too few":
            assert row["p"] == row["p (Holm)"] == ""
        else:
            assert float(row["p (Holm)"]) >= float(row["p"]) > 0
    assert "Global, ours" in page
    assert "## Differences" in page
    assert "--data.loading.image_size=32" in here[0]
    assert {path.name for path in run.glob("*.*")} == {
        "suite.md",
        "suite.csv",
        "suite.png",
        "suite.svg",
        "suite.pdf",
        "table.tex",
        "page.tex",
    }

    here.clear()
    command.main(["-c", str(files()), "--run", str(run)])
    assert not here
    assert (run / "suite.md").read_text() == page
    assert capsys.readouterr().out.count("there already") == 5

    path = files(tests__pairs__options={"data.loading.eval_batch_size": 2})
    command.main(["-c", str(path), "--run", str(run)])
    assert len(here) == 2
    assert capsys.readouterr().out.count("made again, for its options changed") == 2
    assert list(csv.DictReader(io.StringIO((run / "suite.csv").read_text()))) == rows  # another batch, the same figures


def test_a_test_that_fails_is_named_with_its_log_and_the_others_are_made(files, here, tmp_path, capsys):
    path = files(models__two__options={"data.table": "nowhere.csv"})
    with pytest.raises(ConfigError, match=r"2 tests failed, the first: two in pairs failed: .*nowhere.csv.*test.log"):
        command.main(["-c", str(path), "--run", str(tmp_path / "out")])
    assert len(here) == 5
    assert "tower in probe ... made" in capsys.readouterr().out
    assert not (tmp_path / "out" / "suite.md").exists()


def test_a_model_without_a_checkpoint_is_tested_as_it_is(files, table, tmp_path):
    (tmp_path / "model.yaml").write_text(config(table, epochs=1))
    suite = read_suite(
        files(models__plain={"config": str(tmp_path / "model.yaml"), "options": {"data.loading.workers": 0}})
    )
    model = suite.models[-1]
    whole, probe = (command.Cell(model, test, tmp_path / test.name).command(None) for test in suite.tests)
    assert whole[:5] == ["test", "-c", str(tmp_path / "model.yaml"), "-c", str(tmp_path / "whole.yaml")]
    assert whole[whole.index("--ckpt_path") + 1] == "none"
    assert "--data.loading.workers=0" in whole
    assert "--ckpt_path" not in probe
    image = yaml.safe_load((tmp_path / "probe" / "image.yaml").read_text())["model"]["init_args"]["image"]
    assert image == yaml.safe_load(config(table))["model"]["image"]


def test_a_test_may_be_of_some_models_alone(files):
    suite = read_suite(files(tests__probe__models=["tower", "two"], tests__pairs__models=["one", "tower"]))
    pairs = [(model.name, test.name) for model, test in suite.pairs()]
    assert pairs == [("one", "pairs"), ("two", "probe"), ("tower", "probe")]  # the tower has no texts


def test_chosen_models_meet_the_tests_that_take_some_alone(files, here, tmp_path):
    path = files(tests__probe__models=["tower", "two"], tests__pairs__models=["one", "tower"])
    for only, pairs, columns in (
        (["two", "one"], [("one", "pairs"), ("two", "probe")], {"pairs", "probe"}),
        (["two"], [("two", "probe")], {"probe"}),
        (["one"], [("one", "pairs")], {"pairs"}),
    ):
        suite = read_suite(path, only=only)
        assert [(model.name, test.name) for model, test in suite.pairs()] == pairs
        assert {column.test for column in suite.columns} == columns
        assert suite.against == ("one" if "one" in only else None)
    command.main(["-c", str(path), "--run", str(tmp_path / "out"), "--models", "two"])
    assert [words[words.index("--run") + 1] for words in here] == [str(tmp_path / "out" / "two" / "probe")]
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "suite.csv").read_text())))
    assert [(row["model"], row["test"], row["p"]) for row in rows] == [("two", "probe", "")]

    path = files(tests__probe__models=["one"])
    with pytest.raises(ConfigError, match="no column has a test that tower takes; choose other models, or other tests"):
        command.main(["-c", str(path), "--run", str(tmp_path / "none"), "--models", "tower"])
    assert not (tmp_path / "none").exists()


def test_a_checkpoint_is_read_once_for_all_its_tests(files, here, tmp_path, monkeypatch):
    read = []

    def reading(path):
        read.append(path)
        return {"diptych": {"image_size": 48}}

    def run_all(children, jobs, ended, started=None, environment=None):
        here.extend(child.command for child in children)

    monkeypatch.setattr("diptych.model.checkpoint.read_checkpoint", reading)
    monkeypatch.setattr(command, "run_all", run_all)
    with pytest.raises(ConfigError, match="no result"):  # no test was made
        command.main(["-c", str(files()), "--run", str(tmp_path / "out")])
    assert [path.parent.parent.name for path in read] == ["global", "local_pooling"]
    assert ["--data.loading.image_size=48" in words for words in here] == [True, True, True, True, False]


def test_a_foreign_folder_is_refused(files, here, tmp_path):
    (tmp_path / "out" / "one" / "pairs").mkdir(parents=True)
    (tmp_path / "out" / "one" / "pairs" / "mine.txt").write_text("kept")
    with pytest.raises(ConfigError, match="was not made by this command"):
        command.main(["-c", str(files()), "--run", str(tmp_path / "out")])
    assert (tmp_path / "out" / "one" / "pairs" / "mine.txt").read_text() == "kept"
    assert not here


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"columns": []}, "columns is \\[\\]; write a list"),
        ({"columns": [{"test": "pair", "metric": "a/b"}]}, r"columns\[0\]: test is 'pair'; choose among: pairs, probe"),
        ({"columns": [{"test": "pairs", "metric": "auroc"}]}, "metric is 'auroc'; write it as in results.json"),
        (
            {"columns": [{"test": "pairs", "metric": "a/b", "best": "most"}]},
            "best is 'most'; choose among: highest, lowest",
        ),
        ({"against": "three"}, "against is 'three'; choose among: one, two"),
        ({"models": {}}, "models is {}; write a mapping"),
        ({"models__one": {"run": "nowhere"}}, "models.one: run: there is no nowhere"),
        ({"models__one": {"title": "x"}}, "models.one has none of them; give one of run, peer, config, image"),
        ({"models__one": {"peer": "no_such", "files": ["."]}}, "no_such"),
        ({"models__one": {"image": {"class_path": "TimmImage"}, "files": ["."]}}, "files is of a peer; leave it out"),
        ({"models__a b": {"image": {"class_path": "TimmImage"}}}, "'a b' cannot name a folder"),
        ({"models__one__colour": "red"}, "models.one: 'colour' is unknown; there are config, files, image"),
        ({"tests__pairs__image": "yes"}, "tests.pairs: image is 'yes'; write true"),
        ({"tests__pairs__models": ["three"]}, "tests.pairs: models is 'three'; choose among: one, two, tower"),
        ({"tests__pairs__models": []}, "models is \\[\\]; write a list of names"),
        ({"tests__pairs__config": None}, "tests.pairs has no config; add it"),
        ({"tests__pairs__options": {"run": "x"}}, "options: run is set by this command"),
        ({"tests__pairs__options": ["a"]}, "options is \\['a'\\]; write a mapping"),
    ],
)
def test_a_wrong_suite_is_named_before_anything_runs(files, here, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        command.main(["-c", str(files(**changes)), "--run", str(tmp_path / "out")])
    assert not here


def test_words_are_set_and_rows_chosen(files, trained, here, tmp_path):
    path = files(models__one={"run": "${RUNS}/global"}, models__two={"run": "${NOWHERE}/x"}, against="two")
    suite = read_suite(path, {"RUNS": str(trained)}, ["tower", "one"])
    assert [model.name for model in suite.models] == ["one", "tower"]
    assert suite.models[0].run == trained / "global"
    assert suite.against is None  # the row is not there
    with pytest.raises(ConfigError, match=r"\$\{NOWHERE\}/x: NOWHERE is not set; add --set NOWHERE=VALUE"):
        read_suite(path, {"RUNS": str(trained)})
    for words, message in (
        (["--models", "three"], "--models: .*'three'; choose among: one, two, tower"),
        (["--set", "RUNS"], "--set RUNS: write NAME=VALUE"),
    ):
        with pytest.raises(ConfigError, match=message):
            command.main(["-c", str(path), "--run", str(tmp_path / "out"), *words])
    assert not here


def test_a_model_without_texts_takes_probes_alone(files, trained):
    suite = read_suite(files(models__two={"run": str(trained / "local_pooling"), "texts": False}))
    assert [test.name for model, test in suite.pairs() if model.name == "two"] == ["probe"]
    with pytest.raises(ConfigError, match="texts is 'no'; write false"):
        read_suite(files(models__two={"run": str(trained / "local_pooling"), "texts": "no"}))


def test_the_shipped_baselines_can_be_read(tmp_path):
    path = Path(__file__).resolve().parents[2] / "experiments" / "baselines" / "suite.yaml"
    for models in yaml.safe_load(path.read_text())["models"].values():
        for file in models.get("files", ()):
            (tmp_path / file.rpartition("/")[2]).touch()
    suite = read_suite(path, {"DATA": "DIR", "PEERS": str(tmp_path)})
    assert {"random", "imagenet", "rad_dino", "biomedclip", "gloria", "xrv"} <= {model.name for model in suite.models}
    assert [test.name for model, test in suite.pairs() if model.name == "xrv"] == ["probe"]
    few = read_suite(path, {"DATA": "DIR"} | {"PEERS": "none"}, ["random", "imagenet"])  # without any peer's file
    assert [model.name for model in few.models] == ["random", "imagenet"]
    assert {column.test for column in few.columns} == {"probe"}  # neither takes the other test


@pytest.mark.parametrize("name", ["paper"])
def test_the_shipped_suite_is_whole(name):
    path = Path(__file__).resolve().parents[2] / "experiments" / name / "suite.yaml"
    text = path.read_text()
    content = yaml.safe_load(text)
    assert {column["test"] for column in content["columns"]} == set(content["tests"])
    assert content["against"] in content["models"]
    for test in content["tests"].values():
        assert Path(path.parents[2] / test["config"]).is_file()
    called = next(line for line in text.splitlines() if "diptych suite" in line)
    assert shlex.split(called.lstrip("# "))[:2] == ["diptych", "suite"]
    with pytest.raises(ConfigError, match="there is no"):  # the places of your files
        read_suite(path)
