"""The contract of downstream tasks."""

from __future__ import annotations

import copy
import json
import tempfile
import warnings
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import lightning.pytorch as pl
import torch

from diptych.data.datamodule import RadiographDataModule
from diptych.metrics.bootstrap import Metric
from diptych.tasks.base import Task
from diptych.testing.contract import Found, Rule, chosen, rule

__all__ = ["RULES", "TaskCase", "check_task"]


@dataclass(frozen=True)
class TaskCase:
    """A task as it is configured, and data for it."""

    task: Task
    data: RadiographDataModule

    def __str__(self) -> str:
        return f"task {type(self.task).__name__}"

    def train(self, task: Task, steps: int) -> dict[str, float]:
        """Train a task for some steps. What it logged comes back."""
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = _trainer(folder, max_steps=steps, limit_val_batches=0)
            trainer.fit(task, datamodule=self.data)
            return {name: float(value) for name, value in trainer.callback_metrics.items()}

    def test(self, task: Task, **loading: Any) -> tuple[dict[str, Metric], dict[str, Any]]:
        """Results and protocol of a test."""
        before = self.data.loading
        self.data.loading = replace(before, **loading)
        try:
            with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                _trainer(folder).test(task, datamodule=self.data, verbose=False)
        finally:
            self.data.loading = before
        return dict(task.results), dict(task.protocol)


def _trainer(folder: str, **options: Any) -> pl.Trainer:
    quiet: dict[str, Any] = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return pl.Trainer(
        accelerator="cpu", devices=1, default_root_dir=folder, use_distributed_sampler=False, **quiet, **options
    )


def check_task(task: Task, datamodule: RadiographDataModule, /, *, without: Collection[str] = ()) -> None:
    """Check that a task keeps to the contract, on the CPU. It is trained for two steps and tested, each time as a copy.

    Several processes are not tried.

    Args:
        task: on a small tower.
        datamodule: a few dozen small samples with what the task reads.
        without: names of rules that do not apply.

    Raises:
        BrokenContract: a rule is broken. The message names the task, the rule, the figures, the likely cause and the remedy.
        ConfigError: ``without`` names no rule.
    """
    case = TaskCase(task, datamodule)
    for each in chosen(RULES, without):
        each(case)


@rule(
    "training",
    "the loss is detached, or the task's layers are not in it",
    "return a scalar with gradient from `training_step`, and freeze what the task does not use (`train_what_is_used`)",
)
def training(case: TaskCase) -> None:
    """Two steps of training change parameters, and all stay finite."""
    if not case.task.trains:
        return
    task = copy.deepcopy(case.task)
    case.train(task, 2)
    before = dict(case.task.named_parameters())
    values = [(name, value) for name, value in task.named_parameters() if value.requires_grad]
    if not any(not torch.equal(value, before[name]) for name, value in values if name in before):
        raise Found("no parameter changed in two steps")
    for name, value in values:
        if not value.isfinite().all():
            raise Found(f"the parameter {name} is not finite after two steps")


@rule(
    "results",
    "`finish` does not fill `results` and `protocol`, or with bare numbers",
    "set self.results = {f'{stage}/name/figure': Metric...}, and add all that the figures depend on to self.protocol",
)
def results(case: TaskCase) -> None:
    """A test fills `results` with metrics, each within its interval, and `protocol` with plain values."""
    found, protocol = case.test(copy.deepcopy(case.task))
    if not found:
        raise Found("`results` is empty after a test")
    for name, metric in found.items():
        if not isinstance(metric, Metric):
            raise Found(f"{name} is a {type(metric).__name__}, no Metric")
        if case.task.trains and not name.startswith("test/"):
            raise Found(f"the result '{name}' of a test does not start with test/")
        if metric.low == metric.low and not metric.low - 1e-9 <= metric.value <= metric.high + 1e-9:
            raise Found(f"{name} is {metric.value:.4g}, outside its interval of {metric.low:.4g} to {metric.high:.4g}")
    json.dumps(protocol)
    if "tower" not in protocol:
        raise Found(
            "`protocol` lacks 'tower'", "`setup` replaces what the base class has noted", "call super().setup(stage)"
        )


def _same(what: str, actual: dict[str, Metric], expected: dict[str, Metric]) -> None:
    if actual.keys() != expected.keys():
        raise Found(f"{what} gives other results: {sorted(actual.keys() ^ expected.keys())}")
    for name, metric in actual.items():
        a, b = metric.value, expected[name].value
        if not (abs(a - b) <= 1e-4 * max(1.0, abs(b)) or (a != a and b != b)):
            raise Found(f"{what} changes {name} from {b:.6g} to {a:.6g}")


@rule(
    "batches",
    "a mean is taken over batches, or rows that only fill up are counted",
    "collect a row a sample with diptych.evaluation.rows.Rows, and compute in `finish`",
)
def batches(case: TaskCase) -> None:
    """No result depends on the batch size of the test."""
    task = copy.deepcopy(case.task)
    size = case.data.loading.eval_batch_size or case.data.loading.batch_size
    expected, _ = case.test(task)
    _same("another batch size", case.test(task, eval_batch_size=size + 1)[0], expected)


@rule(
    "resume",
    "what training changes is no parameter and no buffer",
    "register it with register_buffer, so that the state dict has it",
)
def resume(case: TaskCase) -> None:
    """A task with a state dict loaded gives the results of the one that was saved."""
    if not case.task.trains:
        return
    task = copy.deepcopy(case.task)
    case.train(task, 1)
    expected, _ = case.test(task)
    saved = copy.deepcopy(task.state_dict())  # a tower keeps more in it than tensors
    case.train(task, 1)
    task.load_state_dict(saved)
    _same("a resume", case.test(task)[0], expected)


RULES: dict[str, Rule[TaskCase]] = {each.name: each for each in (training, results, batches, resume)}
"""The rules by name."""
