"""A signal in training: the run is saved at the next step, ends with 128 + its number, and goes on as if not told."""

import os
import signal
import time

import inprocess
import pytest
import torch
import warm
from mini import config, own_environment, write_pairs

from diptych.model.checkpoint import read_checkpoint
from diptych.training.interruption import ENDING

STEPS = 8


@pytest.fixture(autouse=True)
def heard():
    """Whoever starts the tests may ignore signals, as ``nohup`` and a shell's ``&`` do. A run ignores those, too."""
    before = {number: signal.getsignal(number) for number in ENDING}
    ignored = [number for number, handler in before.items() if handler is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """Two epochs of four steps; a checkpoint of its own only at the end."""
    folder = tmp_path_factory.mktemp("signals")
    (folder / "run.yaml").write_text(config(write_pairs(folder / "data"), epochs=2))
    return folder


def fit(recipe, run, *options):
    return inprocess.diptych("fit", "-c", str(recipe / "run.yaml"), "--run", str(recipe / run), *options)


def at(step, number, **more):
    values = {"step": step, "number": int(number), **more}
    return [
        "--trainer.callbacks+=killer.SignalAt",
        *[f"--trainer.callbacks.{key}={value}" for key, value in values.items()],
    ]


def last(run):
    return read_checkpoint(run / "checkpoints" / "last.ckpt")


@pytest.fixture(scope="module")
def wholes(recipe):
    """Uninterrupted runs, by their options."""
    made = {}

    def whole(*options):
        if options not in made:
            assert fit(recipe, f"whole{len(made)}", *options).returncode == 0
            made[options] = last(recipe / f"whole{len(made)}")
        return made[options]

    return whole


def same(left, right):
    assert left["global_step"] == right["global_step"]
    tensors = [name for name, value in left["state_dict"].items() if isinstance(value, torch.Tensor)]
    assert not [name for name in tensors if not torch.equal(left["state_dict"][name], right["state_dict"][name])]
    states = (left["optimizer_states"][0]["state"], right["optimizer_states"][0]["state"])
    assert not [i for i in states[0] if not torch.equal(states[0][i]["exp_avg_sq"], states[1][i]["exp_avg_sq"])]


ACCUMULATED = ("--trainer.accumulate_grad_batches", "2")


@pytest.mark.parametrize(
    ("number", "moment", "done", "saved", "options"),
    [
        (signal.SIGTERM, "batch", 1, 2, ()),
        (signal.SIGINT, "batch", 3, 4, ()),  # the last step of an epoch
        (signal.SIGHUP, "validation", 4, 4, ()),
        (signal.SIGUSR1, "batch", 1, 2, ACCUMULATED),  # before either half of a step
        (signal.SIGTERM, "batch", 7, 8, ()),
        (signal.SIGTERM, "end", 8, 8, ()),
    ],
)
def test_saves_at_the_next_step_and_goes_on_exactly(recipe, wholes, number, moment, done, saved, options):
    whole, run = wholes(*options), f"{number.name}{moment}{done}"
    ended = fit(recipe, run, *options, *at(done, number, moment=moment))
    assert ended.returncode == 128 + number, ended.stderr
    assert "Traceback" not in ended.stderr
    assert last(recipe / run)["global_step"] == saved
    assert not (recipe / run / "run.lock").exists()
    went_on = fit(recipe, run, *options, "--ckpt_path", "last")
    assert went_on.returncode == 0, went_on.stderr
    same(last(recipe / run), whole)


def test_handlers_are_as_they_were_before(recipe):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)]
    assert fit(recipe, "handlers").returncode == 0
    assert [
        signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
    ] == before


def test_outside_training_a_signal_ends_the_command_where_it_is(recipe, wholes, monkeypatch):
    from diptych.data.datamodule import RadiographDataModule

    wholes()
    setup = RadiographDataModule.setup
    monkeypatch.setattr(
        RadiographDataModule, "setup", lambda self, stage: (os.kill(os.getpid(), 15), setup(self, stage))
    )
    done = inprocess.diptych(
        "test", "-c", str(recipe / "run.yaml"), "--run", str(recipe / "whole0"), "--ckpt_path", "last"
    )
    assert done.returncode == 143
    assert not (recipe / "whole0" / "results.json").exists()


def start(recipe, run, *options):
    words = ["fit", "-c", str(recipe / "run.yaml"), "--run", str(recipe / run), *options]
    return warm.Command(words, recipe, own_environment())


@pytest.mark.slow
def test_a_signal_to_all_processes_leaves_the_loaders_workers_at_work(recipe, wholes):
    """As SLURM, a terminal and ``timeout`` send it; and a second one ends the command at once."""
    options = ["--data.loading.workers", "2", "--trainer.max_epochs", "2000"]
    process = start(recipe, "group", *options, "--recovery.every_n_train_steps", "4")
    try:
        until = time.monotonic() + 120
        while not (recipe / "group" / "checkpoints" / "last.ckpt").exists():
            assert time.monotonic() < until
            assert process.poll() is None, process.finish(1).stderr
            time.sleep(0.05)
        for number in (signal.SIGHUP, signal.SIGHUP):  # twice within a moment is one order
            os.killpg(process.pid, number)
        done = process.finish(60)
    finally:
        process.kill()
    output = done.stderr
    assert done.returncode == 129, output
    assert output.count("saves at the next step") == 1
    assert "Traceback" not in output
    assert f"saved: step {last(recipe / 'group')['global_step']}, in {recipe}/group/checkpoints/last.ckpt" in output


@pytest.mark.slow
def test_a_second_signal_ends_it_at_once(recipe):
    """While the main thread is in a step that does not end."""
    process = start(recipe, "twice", *at(2, signal.SIGTERM, times=2, apart=1.5))
    try:
        done = process.finish(120)
    finally:
        process.kill()
    output = done.stderr
    assert done.returncode == 143, output
    assert "SIGTERM: ends at once" in output
    assert not list((recipe / "twice").rglob("*.ckpt"))
