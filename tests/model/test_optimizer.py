"""Another optimiser and another schedule, by configuration."""

from importlib.metadata import entry_points
from inspect import signature

import inprocess
import pytest
import torch
import yaml
from mini import FINDINGS, IMAGE, TEXT, config, write_pairs, write_recipe
from torch.optim import LBFGS, SGD, AdamW
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR

import diptych
from diptych.errors import ConfigError
from diptych.model.module import AlignmentModule
from diptych.model.optim import adamw_and_schedule
from diptych.tasks.base import TrainedTask
from diptych.tasks.finetune import FineTune
from diptych.towers.image import TimmImage
from diptych.towers.text import ScratchText
from diptych_heads.global_ import Global


def module(**options):
    return AlignmentModule(TimmImage(**IMAGE), ScratchText(**TEXT), Global, **options)


def sgd(groups):
    return SGD(groups, lr=0.1, momentum=0.9, weight_decay=0.01)


def made(model):
    return adamw_and_schedule(
        model,
        lr=model.lr,
        weight_decay=model.weight_decay,
        warmup=0,
        lr_floor=0,
        steps=10,
        optimizer=model.optimizer,
        schedule=model.schedule,
    )


def test_the_optimizers_own_values_rule_and_the_groups_stay():
    model = module(optimizer=sgd)
    optimizer = made(model)["optimizer"]
    assert type(optimizer) is SGD
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.01, 0.0}
    assert {group["initial_lr"] for group in optimizer.param_groups} == {0.1}
    assert all(group["momentum"] == 0.9 for group in optimizer.param_groups)
    plain = made(module())["optimizer"]
    assert type(plain) is AdamW
    assert [group["names"] for group in optimizer.param_groups] == [group["names"] for group in plain.param_groups]


def test_the_schedule_moves_the_rate_at_each_step():
    model = module(optimizer=sgd, schedule=lambda optimizer: StepLR(optimizer, 2, gamma=0.5))
    parts = made(model)
    assert parts["lr_scheduler"]["interval"] == "step"
    rates = []
    for _ in range(5):
        rates.append(parts["optimizer"].param_groups[0]["lr"])
        parts["optimizer"].step()
        parts["lr_scheduler"]["scheduler"].step()
    assert rates == pytest.approx([0.1, 0.1, 0.05, 0.05, 0.025])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"lr": 0.2}, r"lr is 0.2, and the optimizer has lr 0.1; leave lr out here"),
        ({"weight_decay": 0.3}, r"weight_decay is 0.3, and the optimizer has weight_decay 0.01"),
        ({"betas": (0.8, 0.9)}, r"betas is \(0.8, 0.9\), and the optimizer takes no betas"),
    ],
)
def test_a_value_said_twice_is_refused(options, reason):
    with pytest.raises(ConfigError, match=reason):
        module(optimizer=sgd, **options)
    module(optimizer=sgd, lr=0.1)  # the same value


def test_what_cannot_serve_is_refused():
    with pytest.raises(ConfigError, match="optimizer: it takes no groups"):
        made(module(optimizer=lambda groups: LBFGS(groups)))
    with pytest.raises(ConfigError, match="schedule: ReduceLROnPlateau waits for a metric"):
        made(module(schedule=ReduceLROnPlateau))


def test_a_run_trains_by_them_and_its_checkpoint_is_safe_to_load(tmp_path):
    table = write_pairs(tmp_path / "data")
    recipe = tmp_path / "run.yaml"
    recipe.write_text(config(table, epochs=2).replace("  lr: 0.001\n", ""))
    options = ["--model.optimizer", "SGD", "--model.optimizer.lr", "0.01", "--model.optimizer.momentum", "0.9"]
    options += ["--model.schedule", "StepLR", "--model.schedule.step_size", "1", "--model.schedule.gamma", "0.5"]
    run = tmp_path / "run"
    done = inprocess.diptych("fit", "-c", str(recipe), "--run", str(run), *inprocess.QUIET, *options)
    assert done.returncode == 0, done.stderr
    kept = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    groups = kept["optimizer_states"][0]["param_groups"]
    assert all(group["momentum"] == 0.9 for group in groups)
    assert groups[0]["lr"] == pytest.approx(0.01 * 0.5 ** kept["global_step"])
    assert not {"optimizer", "schedule"} & set(kept["diptych"]["config"])
    assert diptych.load(run).module.optimizer is None


def test_every_trained_task_has_both_and_gives_them_to_its_base():
    tasks = [point.load() for point in entry_points(group="diptych.tasks")]
    trained = [task for task in tasks if issubclass(task, TrainedTask)]
    assert len(trained) == 6
    for task in trained:
        assert {"optimizer", "schedule"} <= set(signature(task).parameters), task
        made = task(TimmImage(**IMAGE), optimizer=sgd, schedule=StepLR)
        assert (made.optimizer, made.schedule, made.lr, made.weight_decay) == (sgd, StepLR, 0.1, 0.01), task


def test_a_task_refuses_a_value_said_twice():
    with pytest.raises(ConfigError, match=r"lr is 0.2, and the optimizer has lr 0.1; leave lr out here"):
        FineTune(TimmImage(**IMAGE), lr=0.2, optimizer=sgd)


class Fewer(FineTune):
    """A user's task that has no rate and no decay of its own."""

    def __init__(self, image, *, optimizer=None):
        super().__init__(image, lr=1e-3, weight_decay=0.0, optimizer=optimizer)


def test_a_task_without_arguments_of_its_own_takes_the_optimizers():
    task = Fewer(TimmImage(**IMAGE), optimizer=sgd)
    assert (task.lr, task.weight_decay) == (0.1, 0.01)


def test_an_optimizer_that_cannot_be_made_is_refused():
    with pytest.raises(ConfigError, match=r"optimizer: it cannot be made \(Invalid learning rate: -1"):
        module(optimizer=lambda groups: SGD(groups, lr=-1.0))


def test_a_task_trains_by_them(tmp_path):
    table = write_pairs(tmp_path / "data")
    columns = {"patient": "patient", "split": "split", "labels": FINDINGS}
    data = {"table": str(table), "columns": columns, "loading": {"image_size": 32, "batch_size": 8, "workers": 0}}
    options = {"image": {"class_path": "TimmImage", "init_args": IMAGE}}
    options["optimizer"] = {"class_path": "SGD", "init_args": {"lr": 0.01, "momentum": 0.9}}
    options["schedule"] = {"class_path": "StepLR", "init_args": {"step_size": 1, "gamma": 0.5}}
    recipe = write_recipe(tmp_path / "run.yaml", ("FineTune", options), ("tabular", data))
    run = tmp_path / "run"
    done = inprocess.diptych("fit", "-c", str(recipe), "--run", str(run), *inprocess.QUIET)
    assert done.returncode == 0, done.stderr
    kept = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    groups = kept["optimizer_states"][0]["param_groups"]
    assert all(group["momentum"] == 0.9 for group in groups)
    assert groups[0]["lr"] == pytest.approx(0.01 * 0.5 ** kept["global_step"])
    assert (
        yaml.safe_load((run / "config.yaml").read_text())["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 0.01
    )
