"""A recipe names classes: no function that it names is called."""

import logging
import sys

import inprocess
import pytest
import yaml
from lightning.pytorch import seed_everything
from mini import config, write_pairs
from refusing import COMMAND
from watched import watched

from diptych.cli.messages import tidy_console


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("head", COMMAND),
        ("head", "os.system"),
        ("head", {"class_path": "made.make"}),
        ("head", "made.make"),
        ("head", "made.typed"),
        ("head", {"class_path": "composite", "init_args": {"heads": ["global", "made.typed"]}}),
        ("head", {"class_path": "composite", "init_args": {"heads": ["global", COMMAND]}}),
        ("image", COMMAND),
        ("image", {"class_path": "made.tower"}),
        ("image", "made.tower"),
        ("text", {"class_path": "subprocess.getoutput", "init_args": {"cmd": "id"}}),
        ("evaluators", [COMMAND]),
        ("evaluators", ["made.evaluator"]),
    ],
)
def test_a_recipe_builds_classes_of_their_base_and_calls_no_function(tmp_path, monkeypatch, where, value):
    (tmp_path / "made.py").write_text(
        "from diptych.head import AlignmentHead\nfrom diptych.towers.image import ImageTower\n"
        "from diptych.evaluation.base import Evaluator\n"
        "def make(dims):\n    raise SystemExit('called')\n"
        "def typed(dims) -> AlignmentHead:\n    raise SystemExit('called')\n"
        "def tower() -> ImageTower:\n    raise SystemExit('called')\n"
        "def evaluator() -> Evaluator:\n    raise SystemExit('called')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("made", None)
    described = yaml.safe_load(config(write_pairs(tmp_path / "data", n=6)))
    described["model"][where] = value
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(described))
    started = []
    with watched() as seen:
        done = inprocess.diptych("fit", "-c", str(tmp_path / "recipe.yaml"), "--run", str(tmp_path / "run"))
        started += [event for event in seen if event.startswith(("os.system", "subprocess", "os.exec"))]
    # jsonargparse looks for the stubs of a function's module, which asks Python for its path
    started = [event for event in started if "json.dumps(sys.path)" not in event]
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert "called" not in done.stderr
    assert not started


def test_what_imported_lightning_first_does_not_change_the_commands_output(monkeypatch):
    """Its fabric, which tells the seed, has a handler if a conftest came first, and none if a test did."""

    def seeding():
        tidy_console()
        seed_everything(1)

    monkeypatch.setattr(inprocess, "main", seeding)
    handler = logging.StreamHandler()
    logging.getLogger("lightning.fabric").addHandler(handler)
    try:
        assert inprocess.diptych("fit").stderr == ""
    finally:
        logging.getLogger("lightning.fabric").removeHandler(handler)
