"""The catalogue: names in YAML and on the command line, other people's packages, and what is imported when."""

import configparser
import importlib
import inspect
import json
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import inprocess
import jsonargparse._typehints
import pytest
import yaml
from mini import ROOT, config, diptych, write_pairs

import diptych as package
from diptych import plugins
from diptych.data.datamodule import RadiographDataModule
from diptych.errors import ConfigError
from diptych.evaluation.base import Evaluator
from diptych.head import AlignmentHead
from diptych.model import building
from diptych.model.module import AlignmentModule
from diptych.names import PUBLIC
from diptych.plugins import DATAMODULES, EVALUATORS, HEADS, TASKS
from diptych.tasks.base import Task

KEYS = ["name", "class", "distribution", "paper", "needs", "gathers"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plugins")
    path = folder / "run.yaml"
    path.write_text(config(write_pairs(folder / "data"), epochs=1))
    return path


def resolved(recipe, *options):
    """The whole configuration after every file and option."""
    done = inprocess.diptych("fit", "-c", str(recipe), *options, "--print_config")
    assert done.returncode == 0, done.stderr
    return yaml.safe_load(done.stdout)


def variant(recipe, tmp_path, **model_or_data):
    """The recipe with ``head=`` or ``data=`` replaced."""
    described = yaml.safe_load(recipe.read_text())
    described["model"] |= {k: v for k, v in model_or_data.items() if k == "head"}
    described["data"] |= model_or_data.get("data", {})
    (tmp_path / "variant.yaml").write_text(yaml.safe_dump(described))
    return tmp_path / "variant.yaml"


# -- the catalogue and the files ---------------------------------------------------------------------------------------


def registered(section):
    """Lines of setup.cfg."""
    catalogue = configparser.ConfigParser()
    catalogue.read(ROOT / "setup.cfg")
    lines = (line.partition("=") for line in catalogue["options.entry_points"][section].strip().split("\n"))
    return {name.strip(): path.strip().replace(":", ".") for name, _, path in lines}


@pytest.mark.parametrize("group", [HEADS, DATAMODULES, TASKS, EVALUATORS, plugins.COMMANDS])
def test_the_installed_catalogue_is_that_of_setup_cfg(group):
    ours = {plugin.name: plugin.path for plugin in plugins.plugins(group) if plugin.distribution == "diptych"}
    assert ours == registered(group), "setup.cfg has changed since the install: run `make install`"


@pytest.mark.parametrize(
    ("folder", "base", "group"),
    [
        ("heads/diptych_heads", AlignmentHead, HEADS),
        ("datamodules/diptych_datamodules", RadiographDataModule, DATAMODULES),
    ],
)
def test_no_file_is_forgotten_in_the_catalogue(folder, base, group):
    paths = set()
    for file in sorted((ROOT / folder).rglob("*.py")):
        inner = file.relative_to(ROOT / folder).with_suffix("").parts
        name = ".".join([Path(folder).name, *(part for part in inner if part != "__init__")])
        for value in vars(importlib.import_module(name)).values():
            own = inspect.isclass(value) and issubclass(value, base) and value.__module__ == name
            if own and not inspect.isabstract(value):
                paths.add(f"{name}.{value.__qualname__}")
    assert paths
    assert paths == set(registered(group).values())


@pytest.mark.parametrize(("command", "group"), [("heads", HEADS), ("datamodules", DATAMODULES)])
def test_the_lists_have_their_keys(command, group):
    rows = json.loads(inprocess.diptych(command, "--json").stdout)
    assert [row["name"] for row in rows] == [plugin.name for plugin in plugins.plugins(group)]
    for row in rows:
        assert list(row) == [*KEYS, *(["holds"] if group == DATAMODULES else [])]
        assert row["distribution"] == "diptych"
        assert row["paper"]
    table = inprocess.diptych(command).stdout
    assert all(row["name"] in table and row["paper"] in table for row in rows)


@pytest.mark.parametrize(("command", "group"), [("tasks", TASKS), ("evaluators", EVALUATORS)])
def test_tasks_and_evaluators_are_listed(command, group):
    rows = json.loads(inprocess.diptych(command, "--json").stdout)
    assert {row["name"] for row in rows} == set(registered(group))
    base = Task if group == TASKS else Evaluator
    classes = [getattr(package, name) for name in PUBLIC if inspect.isclass(getattr(package, name))]
    bases = {"Task", "TrainedTask", "PyramidTask", "Evaluator"}
    concrete = {c.__name__ for c in classes if issubclass(c, base)} - bases
    assert {row["class"].rpartition(".")[2] for row in rows} == concrete, "one is forgotten in setup.cfg or names.py"
    table = inprocess.diptych(command).stdout
    assert all(row["summary"] and row["summary"] in table for row in rows)


@pytest.mark.parametrize(("base", "group"), [(Task, TASKS), (Evaluator, EVALUATORS)])
def test_a_recipe_names_a_task_or_an_evaluator_by_its_entry_point(base, group):
    for name, path in registered(group).items():
        public = f"diptych.{path.rpartition('.')[2]}"
        assert building._resolve_with_catalogue(base, name) == building._resolve_with_catalogue(base, public) == public


def test_a_broken_evaluator_is_reported_and_breaks_nothing_else(install, recipe, tmp_path):
    install("broken-package", "broken = broken_evaluator:Mine", "1 / 0", group=EVALUATORS)
    rows = {row["name"]: row for row in json.loads(inprocess.diptych("evaluators", "--json").stdout)}
    assert "ZeroDivisionError" in rows["broken"]["error"]
    assert [name for name, row in rows.items() if row.get("error")] == ["broken"]
    described = yaml.safe_load(recipe.read_text())
    for name, code in (("retrieval", 0), ("broken", 2)):
        described["model"]["evaluators"] = [{"class_path": name}]
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(described))
        done = inprocess.diptych("fit", "-c", str(tmp_path / "run.yaml"), "--print_config")
        assert done.returncode == code, done.stderr
    assert "the evaluator 'broken' of the package 'broken-package' cannot be imported" in done.stderr
    assert done.stderr.count("\n") == 1


def test_heads_say_what_they_gather():
    rows = {row["name"]: row for row in json.loads(inprocess.diptych("heads", "--json").stdout)}
    assert rows["global"]["gathers"] == ["text.pooled"]
    assert "text.tokens" in rows["local_pooling"]["gathers"]


# -- names -------------------------------------------------------------------------------------------------------------

LOCAL = "diptych_heads.local_pooling.LocalPooling"
TABULAR = "diptych_datamodules.tabular.Tabular"


@pytest.mark.parametrize("name", ["local_pooling", "LocalPooling", LOCAL])
def test_a_head_by_any_of_its_names_with_its_options(recipe, tmp_path, name):
    head = resolved(recipe, "--model.head", name, "--model.head.pooling", "mean", "--model.head.init_args.width", "16")[
        "model"
    ]["head"]
    assert (head["class_path"], head["init_args"]["pooling"], head["init_args"]["width"]) == (LOCAL, "mean", 16)
    in_yaml = variant(recipe, tmp_path, head={"class_path": name, "init_args": {"pooling": "max"}})
    head = resolved(in_yaml)["model"]["head"]
    assert (head["class_path"], head["init_args"]["pooling"]) == (LOCAL, "max")
    assert resolved(variant(recipe, tmp_path, head=name))["model"]["head"]["class_path"] == LOCAL


@pytest.mark.parametrize("name", ["tabular", "Tabular", TABULAR])
def test_a_datamodule_by_any_of_its_names_with_its_options(recipe, tmp_path, name):
    in_yaml = variant(recipe, tmp_path, data={"class_path": name})
    data = resolved(in_yaml, "--data.loading.batch_size", "8")["data"]
    assert (data["class_path"], data["init_args"]["loading"]["batch_size"]) == (TABULAR, 8)
    data = resolved(recipe, "--data", name, "--data.init_args.strict", "true")["data"]
    assert (data["class_path"], data["init_args"]["strict"]) == (TABULAR, True)


def test_options_of_what_the_recipe_names(recipe):
    options = {"head.temperature": 0.05, "image.stage": 2, "text.depth": 3}
    words = [word for key, value in options.items() for word in (f"--model.{key}", str(value))]
    model = resolved(recipe, *words)["model"]
    for key, value in options.items():
        part, name = key.split(".")
        assert model[part]["init_args"][name] == value


def test_another_head_drops_the_options_it_does_not_know(recipe, tmp_path):
    in_yaml = variant(
        recipe, tmp_path, head={"class_path": "local_pooling", "init_args": {"pooling": "max", "width": 16}}
    )
    head = resolved(in_yaml, "--model.head", "global")["model"]["head"]
    assert head["class_path"] == "diptych_heads.global_.Global"
    assert head["init_args"]["width"] == 16
    assert "pooling" not in head["init_args"]


def test_overrides_reach_the_trained_model(recipe, tmp_path):
    options = ["--model.head", "local_pooling", "--model.head.pooling", "mean", "--model.image.stage", "2"]
    done = inprocess.diptych(
        "fit", "-c", str(recipe), *options, "--run", str(tmp_path / "run"), "--data.loading.batch_size", "8"
    )
    assert done.returncode == 0, done.stderr
    from diptych.model.checkpoint import read_checkpoint
    from diptych.model.inference import load_module

    best = tmp_path / "run" / "checkpoints" / "best.ckpt"
    module = load_module(best)
    assert (module.head.pooling, module.encoder.image.stage) == ("mean", 2)
    assert read_checkpoint(best)["global_step"] == 16 // 8


@pytest.mark.parametrize(
    ("group", "name", "first", "last"),
    [
        (HEADS, "locl_pool", "local_pooling", "global"),
        (DATAMODULES, "phantm", "phantom", None),
        (HEADS, "globl", "global", None),
    ],
)
def test_an_unknown_name_lists_the_known_ones_nearest_first(group, name, first, last):
    with pytest.raises(ConfigError) as caught:
        plugins.find(group, name)
    told = str(caught.value)
    assert f"'{name}'" in told
    listed = told.split("nearest first: ")[1].split(" (")[0].split(", ")
    assert listed[0] == first
    assert sorted(listed) == [plugin.name for plugin in plugins.plugins(group)]


def test_unknown_commands_are_told_the_known_ones():
    done = inprocess.diptych("hedas")
    assert done.returncode == 2
    assert "unknown command 'hedas'; known, nearest first: heads," in done.stderr


def test_jsonargparse_still_asks_where_the_names_are_hooked_in(monkeypatch):
    """Names are resolved through a private function of jsonargparse; this fails where an upgrade moves or bypasses it."""
    original = building._resolve
    assert original.__module__ == "jsonargparse._typehints"
    assert original.__name__ == "resolve_class_path_by_name"
    assert list(inspect.signature(original).parameters) == ["cls", "name"]
    building.register_names()
    assert jsonargparse._typehints.resolve_class_path_by_name is building._resolve_with_catalogue
    asked = []
    hook = building._resolve_with_catalogue

    def listen(cls, name):
        asked.append(name)
        return hook(cls, name)

    with monkeypatch.context() as patched:
        patched.setattr(building, "_resolve_with_catalogue", listen)
        building.register_names()
        parser = jsonargparse.ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(AlignmentModule, "model")
        image = {"class_path": "TimmImage", "init_args": {"name": "resnet10t", "pretrained": False}}
        model = {"image": image, "text": {"class_path": "ScratchText"}, "head": {"class_path": "local_pooling"}}
        parser.parse_object({"model": model})
    building.register_names()
    assert {"local_pooling", "TimmImage", "ScratchText"} <= set(asked)


# -- other packages ----------------------------------------------------------------------------------------------------


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Puts a distribution on the path as an installer would, for this process alone."""

    def put(name, point, source=None, group=HEADS):
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{group}]\n{point}\n")
        if source is not None:
            (tmp_path / f"{point.partition('= ')[2].partition(':')[0]}.py").write_text(source)
        plugins.plugins.cache_clear()

    monkeypatch.syspath_prepend(str(tmp_path))
    yield put
    plugins.plugins.cache_clear()


@pytest.mark.parametrize("source", ["import nowhere_to_be_found", "Head: 1 +", "1 / 0", "", "Head = 3"])
def test_a_broken_plugin_is_reported_and_breaks_nothing_else(install, recipe, source):
    install("broken-package", "broken = broken_head:Head", source)
    sys.modules.pop("broken_head", None)
    done = inprocess.diptych("heads", "--json")
    assert done.returncode == 0
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert set(rows) == {"broken", *registered(HEADS)}
    assert [name for name, row in rows.items() if row.get("error")] == ["broken"]
    assert rows["broken"]["distribution"] == "broken-package"
    assert resolved(recipe, "--model.head", "local_pooling")["model"]["head"]["class_path"] == LOCAL
    chosen = inprocess.diptych("fit", "-c", str(recipe), "--model.head", "broken")
    assert chosen.returncode == 2
    assert "broken" in chosen.stderr
    assert chosen.stderr.count("\n") == 1


def test_one_name_from_two_packages_is_an_error(install):
    install("other-package", "global = other_head:Other")
    done = inprocess.diptych("heads")
    assert done.returncode == 2
    for part in ("'global'", "twice", "diptych", "other-package", "other_head.Other", "uninstall"):
        assert part in done.stderr


def test_one_class_name_from_two_packages_is_ambiguous(install):
    install("other-package", "mine = other_head:Global")
    assert plugins.find(HEADS, "mine").path == "other_head.Global"
    assert plugins.find(HEADS, "global").path == "diptych_heads.global_.Global"
    with pytest.raises(ConfigError, match=r"'Global' is ambiguous.*global .*mine "):
        plugins.find(HEADS, "Global")


# The head of another package: the one that `diptych new-head` writes, under another name.
EXAMPLE = (ROOT / "src" / "diptych" / "templates" / "head" / "mine.py").read_text().replace("Mine", "Example")

PYPROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "diptych-example-head"
version = "1.0"
[project.entry-points."diptych.heads"]
example = "example_head:Example"
[tool.setuptools]
py-modules = ["example_head"]
"""

LOAD = """
import sys
import numpy as np
import diptych
from diptych.cli.main import main

best, *sys.argv[1:] = sys.argv[1:]
main()
model = diptych.load(best)
head = model.module.head
scores = model.similarity(np.zeros((32, 32), np.uint8), ["There is no effusion.", "There is a nodule."])
print(type(head).__module__, type(head).__name__, head.temperature, tuple(scores.shape))
"""


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """A new environment with the example package in it, and everything of this one in sight."""
    folder = tmp_path_factory.mktemp("elsewhere")
    source = folder / "source"
    source.mkdir()
    (source / "pyproject.toml").write_text(PYPROJECT)
    (source / "example_head.py").write_text(EXAMPLE)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    offline = ["--no-index", "--no-deps"]
    quiet = {"check": True, "timeout": 120, "capture_output": True}
    wheel = [*pip, "wheel", *offline, "--no-build-isolation", "--wheel-dir", str(folder), str(source)]
    subprocess.run(wheel, **quiet)
    venv.create(folder / "env", with_pip=False)
    python = folder / "env" / "bin" / "python"
    (built,) = folder.glob("diptych_example_head-*.whl")
    subprocess.run(
        [*pip, "--python", str(python), "install", *offline, str(built)], check=True, timeout=120, capture_output=True
    )
    (packages,) = (folder / "env").glob("lib/python3*/site-packages")
    # addsitedir, unlike a bare path, also reads that folder's .pth files: diptych may be installed through one.
    (packages / "beside.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    return folder, [str(python), "-c", "from diptych.cli.main import main; main()"]


@pytest.mark.slow
def test_a_head_from_another_package_trains_and_tests(elsewhere, recipe):
    folder, command = elsewhere
    run = folder / "run"

    def ask(*arguments):
        done = subprocess.run(
            [*command, *arguments], capture_output=True, text=True, timeout=240, check=False, cwd=folder
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    rows = {row["name"]: row for row in json.loads(ask("heads", "--json"))}
    assert set(rows) == {"example", *registered(HEADS)}
    assert rows["example"]["class"] == "example_head.Example"
    assert rows["example"]["distribution"] == "diptych-example-head"
    assert rows["global"]["distribution"] == "diptych"
    ask("fit", "-c", str(recipe), "--model.head", "example", "--model.head.temperature", "0.2", "--run", str(run))
    ask("test", "-c", str(run / "config.yaml"), "--run", str(run), "--ckpt_path", "best")
    results = json.loads((run / "results.json").read_text())
    assert results["head"] == "Example"
    assert results["metrics"]["test/retrieval/r@5"]["n"] == 4
    best = run / "checkpoints" / "best.ckpt"
    by_class = [
        "fit",
        "-c",
        str(recipe),
        "--model.head",
        "Example",
        "--trainer.fast_dev_run",
        "true",
        "--run",
        str(folder / "dev"),
    ]
    words = [command[0], "-c", LOAD, str(best), *by_class]
    loaded = subprocess.run(words, capture_output=True, text=True, timeout=240, check=False)
    assert loaded.stdout.splitlines()[-1:] == ["example_head Example 0.2 (1, 2)"], loaded.stderr
    # Here, where that package is not installed, the same checkpoint says which one is missing.
    with pytest.raises(ConfigError, match="example_head"):
        package.load(best)


# -- what is imported --------------------------------------------------------------------------------------------------

HEAVY = "[m for m in ('torch', 'lightning', 'jsonargparse', 'transformers', 'timm') if m in sys.modules]"


def imported(statement):
    code = f"import sys; sys.argv = ['diptych', *sys.argv[1:]]\n{statement}\nprint('imported', {HEAVY})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout.rpartition("imported ")[2].strip()


def test_importing_the_package_imports_no_torch():
    assert imported("import diptych, diptych.cli.main, diptych.plugins; diptych.__version__") == "[]"
    assert "torch" in imported("import diptych; diptych.load")


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_quick_answers_import_nothing_heavy(option):
    assert imported(f"from diptych.cli.main import main; sys.argv.append('{option}'); main()") == "[]"


def test_listing_the_heads_imports_no_lightning():
    found = imported("from diptych.cli.main import main; sys.argv += ['heads', '--json']; main()")
    assert "lightning" not in found
    assert "transformers" not in found


def test_the_installed_command_answers():
    done = diptych("--version")
    assert (done.returncode, done.stdout) == (0, f"diptych {package.__version__}\n")


def test_help_says_what_every_command_is_for():
    lines = diptych("--help").stdout.splitlines()
    for command in plugins.plugins(plugins.COMMANDS):
        assert command.summary
        assert f"  {command.name:12} {command.summary}" in lines
