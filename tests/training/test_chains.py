"""Interruptions at any moment change nothing: weights, optimiser, counters, callbacks, best.ckpt, validations."""

from pathlib import Path

import inprocess
import pytest
import torch
import yaml
from chains import differences, left_by
from mini import config, write_pairs

pytestmark = pytest.mark.slow

STEPS = ("--trainer.max_steps", "24", "--trainer.max_epochs", "-1")
PART = ("--trainer.max_steps", "21")
TWICE = ("--trainer.val_check_interval", "0.5")
ACCUMULATED = ("--trainer.accumulate_grad_batches", "4", "--trainer.val_check_interval", "3")
SELDOM = ("--trainer.check_val_every_n_epoch", "2", "--recovery.every_n_train_steps", "4")
STOPPED = ("--trainer.max_epochs", "12", "--early_stopping.patience", "1", "--trainer.num_sanity_val_steps", "2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A recipe of 4 epochs of 6 steps, saved after each, with averaged weights."""
    folder = tmp_path_factory.mktemp("chains")
    described = yaml.safe_load(config(write_pairs(folder / "data", n=36), epochs=4))
    described["trainer"]["callbacks"] = [{"class_path": "EMAWeightAveraging", "init_args": {"decay": 0.9}}]
    described["recovery"] = {"every_n_train_steps": 1}
    (folder / "run.yaml").write_text(yaml.safe_dump(described))
    return folder


def fit(folder: Path, run: Path, *options: str) -> str:
    going_on = ("--ckpt_path", "last") if (run / "checkpoints" / "last.ckpt").exists() else ()
    done = inprocess.diptych("fit", "-c", str(folder / "run.yaml"), "--run", str(run), *going_on, *options)
    assert done.returncode == 0, done.stderr
    return done.stderr


def best_of(run: Path) -> dict[str, object]:
    """The state of the choice of best.ckpt."""
    (state,) = [value for key, value in left_by(run)["last"]["callbacks"].items() if key.startswith("Best")]
    return state


def interrupt(folder: Path, run: Path, moment: str, step: int, *options: str) -> None:
    killer = ["--trainer.callbacks+=killer.RaiseAt", f"--trainer.callbacks.step={step}"]
    with pytest.raises(InterruptedError):
        fit(folder, run, *options, *killer, f"--trainer.callbacks.moment={moment}")


@pytest.fixture(scope="module")
def whole(folder):
    """What the run with these options leaves if nothing interrupts it."""
    runs = {}

    def run(options):
        if options not in runs:
            place = folder / f"whole{len(runs)}"
            fit(folder, place, *options)
            runs[options] = left_by(place)
        return runs[options]

    return run


@pytest.mark.parametrize(
    ("options", "kills"),
    [
        ((), "begun 6, begun 11, begun 12, trained 18, begun 21"),
        ((), "validating 6, validating 6, validating 12, validated 24"),
        (STEPS, "begun 6, begun 11, validating 24"),
        (PART, "begun 12, validating 18, validating 21"),
        (TWICE, "validating 3, begun 6, validated 9, begun 15"),
        (ACCUMULATED, "begun 1, validating 2, begun 3, validated 4"),
        (SELDOM, "begun 6, validating 12, begun 18"),
        (STOPPED, "begun 6, validated 12"),
    ],
)
def test_a_chain_of_interruptions_changes_nothing(folder, whole, tmp_path, options, kills):
    for kill in kills.split(", "):
        moment, step = kill.split()
        interrupt(folder, tmp_path, moment, int(step), *options)
    fit(folder, tmp_path, *options)
    left = left_by(tmp_path)
    assert {"best", "last"} <= left.keys()
    assert not differences(left, whole(options))


def test_a_run_that_is_over_is_prolonged_and_killed(folder, tmp_path):
    for name in ("one", "other"):
        fit(folder, tmp_path / name, "--trainer.max_epochs", "2")
    longer = ("--trainer.max_epochs", "4")
    interrupt(folder, tmp_path / "one", "begun", 12, *longer)
    interrupt(folder, tmp_path / "one", "begun", 18, *longer)
    for name in ("one", "other"):
        fit(folder, tmp_path / name, *longer)
    left = left_by(tmp_path / "one")
    assert left["last"]["global_step"] == 24
    assert not differences(left, left_by(tmp_path / "other"))


def test_killed_while_a_checkpoint_is_written(folder, whole, tmp_path, monkeypatch):
    """Half of best.ckpt, then half of last.ckpt: what was there before stays."""
    save = torch.save

    def broken(checkpoint, file, *options, **named):
        output = file if hasattr(file, "write") else Path(file).open("wb")  # noqa: SIM115  # it is killed
        if checkpoint["global_step"] >= broken.step:
            output.write(b"PK\x03\x04")
            raise ArithmeticError("in the midst of writing")
        save(checkpoint, output, *options, **named)

    monkeypatch.setattr(torch, "save", broken)
    for broken.step in (6, 9, 24):
        with pytest.raises(ArithmeticError):
            fit(folder, tmp_path)
    monkeypatch.undo()
    fit(folder, tmp_path)
    assert not differences(left_by(tmp_path), whole(()))


def test_a_run_that_stopped_early_stays_so_unless_it_is_given_patience(folder, whole, tmp_path):
    fit(folder, tmp_path, *STOPPED)
    assert "had stopped early" in fit(folder, tmp_path, *STOPPED)
    assert not differences(left_by(tmp_path), whole(STOPPED))
    step = left_by(tmp_path)["last"]["global_step"]
    fit(folder, tmp_path, *STOPPED, "--early_stopping.patience", "2", "--trainer.max_epochs", "3")
    assert left_by(tmp_path)["last"]["global_step"] == step + 6


def test_a_moved_run_keeps_its_best_checkpoint(folder, tmp_path):
    """Its score too, without which the next validation would overwrite it, whatever it gives."""
    fit(folder, tmp_path / "here", "--trainer.max_epochs", "2")
    score = best_of(tmp_path / "here")["best_model_score"]
    (tmp_path / "here").rename(tmp_path / "there")
    interrupt(folder, tmp_path / "there", "begun", 13, "--trainer.max_epochs", "3")
    assert best_of(tmp_path / "there")["best_k_models"] == {
        str(tmp_path / "there" / "checkpoints" / "best.ckpt"): score
    }


def test_a_run_that_ends_within_its_first_epoch_keeps_its_weights(folder, tmp_path):
    """It is validated, so there is a best.ckpt; a longer run goes on within the epoch."""
    fit(folder, tmp_path / "run", "--trainer.max_steps", "3")
    left = left_by(tmp_path / "run")
    assert left["last"]["global_step"] == left["best"]["global_step"] == 3
    assert {step for _, step, _ in left["validations"]} == {2}
    fit(folder, tmp_path / "run", "--trainer.max_steps", "8")
    longer = left_by(tmp_path / "run")["last"]
    assert longer["global_step"] == 8
    assert longer["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["completed"] == 2


def test_a_run_without_validation_says_how_to_test_it(folder, tmp_path):
    options = ("--trainer.limit_val_batches", "0", "--trainer.max_steps", "2")
    assert "no best.ckpt" in fit(folder, tmp_path, *options)
    done = inprocess.diptych("test", "-c", str(folder / "run.yaml"), "--run", str(tmp_path), "--ckpt_path", "best")
    assert done.returncode == 2
    assert "--ckpt_path last" in done.stderr.splitlines()[-1]


def test_averaging_keeps_what_is_no_weight(folder, tmp_path):
    """Positions of words are integers in a buffer; an average of equal ones, cut, is another position."""
    from killer import Averaged

    fit(folder, tmp_path, "--trainer.max_epochs", "2", "--trainer.callbacks+=killer.Averaged")
    assert Averaged.seen
    assert not Averaged.apart
