"""A head, a data set, a task, an evaluator and a command are each one file, here outside the project, which stays as it is."""

import json
import sys

import inprocess
import pytest
import yaml
from mini import IMAGE, ROOT, config, write_pairs, write_recipe

import diptych as package
from diptych import plugins
from diptych.cli.new import renamed
from diptych.plugins import COMMANDS, DATAMODULES, EVALUATORS, HEADS, TASKS

OWN = ("own_head", "own_data", "own_task", "own_evaluator", "own_command")


def example(name: str) -> str:
    """The classes of a script of examples/, without the run at its end."""
    return (ROOT / "examples" / f"{name}.py").read_text().partition("\nparser = ")[0]


def template(kind: str, name: str) -> str:
    """What ``diptych new-...`` writes."""
    return renamed((ROOT / "src/diptych/templates" / kind / "mine.py").read_text(), name)


@pytest.fixture
def add(tmp_path, monkeypatch):
    """Puts one file on the path, and where it is registered by an entry point a distribution beside it, as pip would."""

    def put(name, source, group=None, point=None):
        (tmp_path / f"{name}.py").write_text(source)
        if group is not None:
            info = tmp_path / f"{name}-1.0.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
            (info / "entry_points.txt").write_text(f"[{group}]\n{point}\n")
        plugins.plugins.cache_clear()

    monkeypatch.syspath_prepend(str(tmp_path))
    yield put
    plugins.plugins.cache_clear()
    for name in OWN:
        sys.modules.pop(name, None)


def changed(tmp_path, **parts):
    """The smallest recipe with parts of its model or data replaced."""
    recipe = yaml.safe_load(config(write_pairs(tmp_path / "pairs"), epochs=1))
    for part, values in parts.items():
        recipe[part] = values if "class_path" in values else recipe[part] | values
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(recipe))
    return tmp_path / "run.yaml"


def test_a_head(add, tmp_path, one_thread):
    add("own_head", example("own_head"), HEADS, "margin = own_head:Margin")
    rows = {row["name"]: row for row in json.loads(inprocess.diptych("heads", "--json").stdout)}
    assert rows["margin"]["class"] == "own_head.Margin"
    results = inprocess.fit_and_test(
        changed(tmp_path), tmp_path / "run", "--model.head", "margin", "--model.head.margin", "0.3"
    )
    assert results["head"] == "Margin"
    assert results["metrics"]["test/retrieval/r@5"]["n"] == 4
    best = tmp_path / "run" / "checkpoints" / "best.ckpt"
    assert package.load(best).module.head.margin == 0.3


def test_a_data_set(add, tmp_path, one_thread):
    add("own_data", example("own_data"), DATAMODULES, "squares = own_data:SquareData")
    loading = {"image_size": 32, "batch_size": 8, "workers": 0}
    data = {"class_path": "squares", "init_args": {"train": 32, "loading": loading}}
    results = inprocess.fit_and_test(changed(tmp_path, data=data), tmp_path / "run")
    assert results["data"] == "SquareData"
    assert results["metrics"]["test/retrieval/r@5"]["n"] == 16


def test_a_task(add, tmp_path, one_thread):
    add("own_task", template("task", "own_task"), TASKS, "own_task = own_task:OwnTask")
    table = write_pairs(tmp_path / "pairs")
    columns = {"patient": "patient", "split": "split"}
    loading = {"image_size": 32, "batch_size": 4, "workers": 0}
    data = ("tabular", {"table": str(table), "columns": columns, "tokenizer": None, "loading": loading})
    image = {"class_path": "TimmImage", "init_args": IMAGE}
    recipe = write_recipe(tmp_path / "task.yaml", ("own_task", {"image": image}), data, max_epochs=2)
    results = inprocess.fit_and_test(recipe, tmp_path / "run")
    error = results["metrics"]["test/own_task/error"]
    assert error["n"] == 4
    assert 0 < error["low"] <= error["value"] <= error["high"] < 1


def test_an_evaluator(add, tmp_path, one_thread):
    add("own_evaluator", template("evaluator", "own_evaluator"), EVALUATORS, "own = own_evaluator:OwnEvaluator")
    own = {"class_path": "own", "init_args": {"sentence": "There is no nodule."}}
    recipe = changed(tmp_path, model={"evaluators": [{"class_path": "Retrieval"}, own]})
    results = inprocess.fit_and_test(recipe, tmp_path / "run")
    gap = results["metrics"]["test/own_evaluator/gap"]
    assert gap["n"] == 4
    assert gap["low"] <= gap["value"] <= gap["high"]
    assert results["protocol"]["own_evaluator"]["sentence"] == "There is no nodule."
    assert package.load(tmp_path / "run").module.head is not None  # the checkpoint names it, as it may


COMMAND = '''
"""Say how many arguments there are."""


def main(arguments):
    print(len(arguments))
'''


def test_a_command(add):
    add("own_command", COMMAND, COMMANDS, "count = own_command:main")
    assert "Say how many arguments there are." in inprocess.diptych("--help").stdout
    done = inprocess.diptych("count", "one", "two")
    assert (done.returncode, done.stdout) == (0, "2\n")
