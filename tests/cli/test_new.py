"""``diptych new-head`` and its like, and the page that shows the way from nothing to a head that trains."""

import ast
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import inprocess
import pytest
import yaml
from mini import ROOT

from diptych.plugins import DATAMODULES, EVALUATORS, HEADS, TASKS

KINDS = {"head": HEADS, "dataset": DATAMODULES, "task": TASKS, "evaluator": EVALUATORS}
PAGE = ROOT / "docs/first_head.md"
every_kind = pytest.mark.parametrize("kind", KINDS)


def new(kind, name, out):
    return inprocess.diptych(f"new-{kind}", name, "--out", str(out))


@every_kind
def test_what_is_written_is_a_package(kind, tmp_path):
    done = new(kind, "word_margin", tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "word_margin"
    names = {"README.md", "pyproject.toml", "test_word_margin.py", "word_margin.py", "word_margin.yaml"}
    assert {file.name for file in folder.iterdir()} == names
    for file in folder.iterdir():
        assert not re.search(r"(?<![A-Za-z])[mM]ine", file.read_text()), f"{file.name} has the template's name"
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    (path,) = project["entry-points"][KINDS[kind]].values()
    module, _, name = path.partition(":")
    code = ast.parse((folder / f"{module}.py").read_text())
    assert name in {node.name for node in code.body if isinstance(node, ast.ClassDef)}
    assert "word_margin" in str(yaml.safe_load((folder / "word_margin.yaml").read_text()))
    commands = re.search(r"```sh\n(.+?)```", (folder / "README.md").read_text(), re.S)
    assert len(commands[1].strip().split("\n")) == 4


@every_kind
def test_what_is_written_passes_ruff(kind, tmp_path):
    assert new(kind, "word_margin", tmp_path).returncode == 0
    for check in (["check"], ["format", "--check"]):
        ruff = [sys.executable, "-m", "ruff", *check, "--config", str(ROOT / "pyproject.toml"), str(tmp_path)]
        done = subprocess.run(ruff, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_what_is_written_passes_mypy(tmp_path):
    files = []
    for kind in KINDS:
        assert new(kind, f"own_{kind}", tmp_path).returncode == 0
        files.append(str(tmp_path / f"own_{kind}" / f"own_{kind}.py"))
    mypy = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), *files]
    done = subprocess.run(mypy, capture_output=True, text=True, check=False, timeout=1200, cwd=ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Word", "'Word' cannot be the name of a module; use lower-case letters"),
        ("word-margin", "cannot be the name of a module"),
        ("../word", "cannot be the name of a module"),
        ("class", "cannot be the name of a module"),
        ("pcma", r"'pcma' is taken: diptych has pcma \(diptych_heads"),
        ("zero_shot", "'zero_shot' is taken: diptych has zero_shot"),
        ("loading", "'loading' is taken: diptych has a class Loading"),
        ("json", "'json' is taken: there is a module of this name"),
        ("torch", "'torch' is taken: there is a module of this name"),
    ],
)
def test_a_name_that_cannot_be_is_refused(name, message, tmp_path):
    done = new("head", name, tmp_path)
    assert done.returncode == 2
    assert re.search(message, done.stderr), done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_is_left_alone(tmp_path):
    (tmp_path / "word_margin").mkdir()
    (tmp_path / "word_margin" / "word_margin.py").write_text("mine")
    done = new("task", "word_margin", tmp_path)
    assert done.returncode == 2
    assert "is there already; choose another name or --out, or remove it" in done.stderr
    assert (tmp_path / "word_margin" / "word_margin.py").read_text() == "mine"


def test_the_templates_are_in_the_wheel():
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["diptych"]
    held = {file for pattern in data for file in (ROOT / "src/diptych").glob(pattern)}
    assert {file for file in (ROOT / "src/diptych/templates").rglob("*.*") if "__pycache__" not in file.parts} <= held


def environment(folder: Path) -> dict[str, str]:
    """As of a user whose pip installs into ``folder``, without a network."""
    target, commands = folder / "installed", Path(sys.executable).parent
    before = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    return {
        **os.environ,
        "PATH": os.pathsep.join([str(commands), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join([str(target), *before]),
        "PIP_TARGET": str(target),
        "PIP_NO_INDEX": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "OMP_NUM_THREADS": "1",
    }


@pytest.mark.slow
def test_the_commands_of_the_page_lead_to_a_head_that_trains(tmp_path):
    (block,) = re.findall(r"```sh\n(.+?)```", PAGE.read_text(), re.S)
    commands = block.strip().split("\n")
    assert len(commands) == 4
    for command in commands:
        done = subprocess.run(
            shlex.split(command), cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    assert (tmp_path / "runs/word_margin/checkpoints/best.ckpt").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dataset", "task", "evaluator"])
def test_what_is_written_is_installed_tested_and_trained(kind, tmp_path):
    name = f"own_{kind}"
    assert new(kind, name, tmp_path).returncode == 0
    commands = [f"pip install --no-build-isolation --no-deps ./{name}", f"python -m pytest {name}"]
    if kind == "dataset":
        commands.append(f"python {name}/test_{name}.py data/{name}")
    commands.append(
        f"diptych fit -c {name}/{name}.yaml --run runs/{name} --trainer.max_epochs 1 --trainer.limit_train_batches 2"
    )
    for command in commands:
        done = subprocess.run(
            shlex.split(command), cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    assert (tmp_path / f"runs/{name}/checkpoints/best.ckpt").is_file()
