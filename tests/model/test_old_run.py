"""A run from before the modules were sorted into folders: it loads, is tested, goes on, and is listed.

``tests/data/old_run`` and ``old_probe`` were written by the code of that time, on phantoms. They name classes by files
that are gone, as ``diptych.image.TimmImage``.
"""

import inspect
import json
import re
import shutil
from importlib.util import find_spec
from pathlib import Path

import inprocess
import pytest
import torch
import yaml

import diptych
from diptych.cli.former import with_former_arguments
from diptych.model.arguments import known_class
from diptych.model.checkpoint import read_checkpoint
from diptych.model.stored import build_stored, load_weights
from diptych.names import PUBLIC

DATA = Path(__file__).resolve().parents[1] / "data"
RUN = DATA / "old_run"
CLASSES = {
    "chexbert": "Chexbert",
    "class_retrieval": "ClassRetrieval",
    "data": "Loading RadiographDataModule RadiographDataset Sample",
    "detect": "Detect",
    "encoder": "DualEncoder",
    "evaluation": "Evaluator Retrieval ZeroShot",
    "few_shot": "FewShot",
    "figures": "Figures",
    "finetune": "FineTune",
    "generate": "Generate",
    "grounding": "Grounding",
    "head": "AlignmentHead",
    "image": "ImageTower TimmImage",
    "labeller": "Labeller Rules",
    "loading": "AlignmentModel",
    "metrics": "Metric",
    "module": "AlignmentModule",
    "multi_resolution": "MultiResolution",
    "multiple_instance": "MultipleInstance",
    "norm": "GlobalBatchNorm",
    "probe": "Probe",
    "prompts": "PromptSet",
    "segment": "Segment",
    "tables": "Columns Fractions",
    "task": "Located Task Tuned",
    "text": "ScratchText TextTower TransformersText",
    "tokenizer": "Tokenizer",
    "tower": "Tower",
    "trained": "TrainedImage",
    "types": "Batch Dims Embedding Features Pairs TextBatch TokenEmbedding",
}
"""The public classes of that time, by the module that was part of their stored path."""


@pytest.fixture
def run(tmp_path):
    """A copy, as commands write into a run's folder."""
    return Path(shutil.copytree(RUN, tmp_path / "run"))


def paths_in(text):
    return set(re.findall(r"class_path: (diptych\.\S+)", text))


def test_every_stored_path_of_a_public_class_still_means_it():
    for module, names in CLASSES.items():
        for name in names.split():
            public = getattr(diptych, name)
            if not inspect.isabstract(public):
                assert known_class(f"diptych.{module}.{name}", object, "here") is public
    assert sum(find_spec(f"diptych.{module}") is None for module in CLASSES) > 20  # else nothing has moved


def test_the_trained_model_has_its_old_name_too():
    assert diptych.AlignmentModel is diptych.TrainedModel is type(diptych.load(RUN))


def test_every_public_name_is_in_the_face_for_type_checkers_too():
    text = Path(diptych.__file__).read_text()
    assert set(re.findall(r"^    from \S+ import (\w+) as \1$", text, re.MULTILINE)) == set(PUBLIC)
    assert all(getattr(diptych, name) is not None for name in PUBLIC)


def test_an_old_checkpoint_loads_and_scores():
    stored = read_checkpoint(RUN / "checkpoints" / "best.ckpt")["diptych"]["config"]
    assert stored["image"]["class_path"] == "diptych.image.TimmImage"  # as then
    model = diptych.load(RUN)
    assert type(model.module.encoder.text) is diptych.ScratchText
    scores = model.similarity(torch.zeros(2, 32, 32, dtype=torch.uint8), ["No effusion.", "A nodule."])
    assert scores.shape == (2, 2)
    assert scores.isfinite().all()


def test_an_old_run_is_tested_with_the_figures_of_then_and_listed(run):
    before = inprocess.results_of(run)
    done = inprocess.diptych("test", "-c", str(run / "config.yaml"), "--run", str(run), "--ckpt_path", "best")
    assert done.returncode == 0, done.stderr
    after = inprocess.results_of(run)
    assert before["metrics"].keys() <= after["metrics"].keys()
    for part, facts in before["protocol"].items():  # later releases say more
        now = after["protocol"][part]
        if isinstance(facts, dict):  # and say otherwise how duplicates are folded
            names = facts.keys() - {"duplicates"}
            now, facts = {name: now[name] for name in names}, {name: facts[name] for name in names}
        assert now == facts, part
    # Scores of some images are alike to 1e-8. On another processor rounding orders them otherwise, and AUROC changes.
    then = {name: one["value"] for name, one in before["metrics"].items() if "/auroc/" not in name}
    assert {name: after["metrics"][name]["value"] for name in then} == pytest.approx(then)
    assert len(then) > 20
    assert paths_in((run / "config-test.yaml").read_text()) == {
        *("diptych.TimmImage", "diptych.ScratchText", "diptych.Retrieval", "diptych.ZeroShot")
    }
    listed = inprocess.diptych("table", str(RUN), str(run))
    assert listed.returncode == 0, listed.stderr
    rows = [line.split("|")[1].strip() for line in listed.stdout.splitlines() if line.startswith("|")]
    assert {"old_run", "run"} <= set(rows)


def test_an_old_run_goes_on_and_stores_paths_that_do_not_move(run):
    done = inprocess.diptych(
        *("fit", "-c", str(run / "config.yaml"), "--run", str(run), "--ckpt_path", "last", "--trainer.max_epochs", "2")
    )
    assert done.returncode == 0, done.stderr
    checkpoint = read_checkpoint(run / "checkpoints" / "last.ckpt")
    assert checkpoint["epoch"] == 1
    config = checkpoint["diptych"]["config"]
    named = [config["image"], config["text"], *config["evaluators"]]
    assert [part["class_path"].rpartition(".")[0] for part in named] == ["diptych"] * 4


def test_an_old_task_of_an_old_checkpoint_is_tested(tmp_path, monkeypatch):
    monkeypatch.chdir(DATA)  # its recipe names the checkpoint from there
    recipe = DATA / "old_probe" / "config-test.yaml"
    assert "diptych.probe.Probe" in recipe.read_text()
    done = inprocess.diptych("test", "-c", str(recipe), "--run", str(tmp_path), "--model.init_args.epochs", "2")
    assert done.returncode == 0, done.stderr
    assert inprocess.results_of(recipe.parent)["metrics"].keys() <= inprocess.results_of(tmp_path)["metrics"].keys()
    assert paths_in((tmp_path / "config-test.yaml").read_text()) == {"diptych.Probe", "diptych.TrainedImage"}


def test_a_checkpoint_from_before_attention_had_a_name_keeps_the_attention_of_then():
    stored = read_checkpoint(RUN / "checkpoints" / "best.ckpt")
    assert "attention" not in stored["diptych"]["config"]["head"]["init_args"]
    assert diptych.load(RUN).module.head.attention == "unit"


@pytest.mark.parametrize(
    ("kind", "argument", "value"),
    [
        ("LocalPooling", "attention", "unit"),
        ("LocalPooling", "attention", "softmax"),
        ("Reclf", "attention", "unit"),
        ("Reclf", "attention", "softmax"),
        ("Pcma", "sentence_weights", "even"),
        ("Pcma", "sentence_weights", "learned"),
    ],
)
@pytest.mark.parametrize("inside", [False, True])
def test_what_a_checkpoint_leaves_out_is_told_by_its_weights(kind, argument, value, inside):
    def config(**named):
        head = {"class_path": kind, "init_args": {"width": 8, **named}}
        return then | {"head": {"class_path": "Composite", "init_args": {"heads": [head]}} if inside else head}

    checkpoint = read_checkpoint(RUN / "checkpoints" / "best.ckpt")
    then = checkpoint["diptych"]["config"] | {"evaluators": []}
    made = build_stored(config(**{argument: value}), checkpoint["state_dict"], "made")
    again = build_stored(config(), made.state_dict(), "again")
    assert again.state_dict().keys() == made.state_dict().keys()
    assert any("attention_scale" in name or "sentence_gate" in name for name in made.state_dict()) == (
        value in {"softmax", "learned"}
    )
    load_weights(again, made.state_dict(), "again")


def test_only_in_a_file_that_a_run_wrote_what_is_left_out_is_older_than_its_name(tmp_path):
    text = (RUN / "config.yaml").read_text()
    config = yaml.safe_load(text)
    head = config["model"]["head"]
    older = {**head, "init_args": {"attention": "unit", **head["init_args"]}}
    config["model"]["head"] = {"class_path": "composite", "init_args": {"heads": [head], "shares": None}}
    named = text.replace("      region_scale:", "      attention: raw\n      region_scale:")
    assert named != text
    for name, content, added in (
        ("run.yaml", text, older),
        ("inside.yaml", text.partition("\n")[0] + "\n" + yaml.safe_dump(config), {"heads": [older], "shares": None}),
        ("named.yaml", named, None),
        ("own.yaml", text.partition("\n")[2], None),
        ("none.yaml", "model: [", None),
    ):
        file = tmp_path / name
        file.write_text(content)
        for words in (["fit", "-c", str(file)], ["fit", f"--config={file}"]):
            *after, run, value = with_former_arguments([*words, "--run", "a"])[len(words) :]
            assert [run, value] == ["--run", "a"]
            if added is None:
                assert after == []
            else:
                option, whole = after
                assert option == "--model.head"
                assert json.loads(whole) in (added, {"class_path": "composite", "init_args": added})
