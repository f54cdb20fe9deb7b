"""The contract suite of tasks: one of the core keeps to it, and each one of a gallery breaks its rule."""

import pytest
import torch
from mini import IMAGE
from torch import nn

from diptych import Loading, Metric, TimmImage, TrainedTask
from diptych.evaluation.rows import Rows
from diptych.metrics import bootstrap
from diptych.testing import BrokenContract, check_task
from diptych.testing.tasks import RULES
from diptych_datamodules.phantom import Phantom

pytestmark = pytest.mark.usefixtures("one_thread")


class Right(TrainedTask):
    monitor = "val/right/error"

    def __init__(self):
        super().__init__(TimmImage(**IMAGE), lr=1e-2, weight_decay=0.0, warmup=0, lr_floor=0.1, resamples=100)
        self.linear = nn.Linear(self.image.width, 1)
        self.offset = torch.zeros(())

    def configure_model(self):
        self.train_what_is_used(lambda image: [self.image(image).pooled])

    def errors(self, batch):
        return (self.linear(self.image(batch.image).pooled) - batch.image.float().mean((1, 2, 3))[:, None] / 255).abs()

    def training_step(self, batch, batch_idx):
        return self.errors(batch).mean()

    def begin(self):
        self.rows = Rows(self.device, 1)

    def collect(self, batch):
        self.rows.add(batch, self.errors(batch) + self.offset)

    def finish(self, stage, resamples):
        patients, (errors,) = self.rows.gather()
        weights = bootstrap.figure_and_bootstrap(patients.numpy(), resamples)
        means = weights @ errors.double().numpy()[:, 0] / weights.sum(1)
        self.results = {f"{stage}/right/error": Metric.of(means, len(patients))}


class NotTrained(Right):
    def training_step(self, batch, batch_idx):
        return self.errors(batch).mean() * 0


class Silent(Right):
    def finish(self, stage, resamples):
        self.results = {}


class MeanOfBatches(Right):
    def collect(self, batch):
        errors = self.errors(batch)
        self.rows.add(batch, errors[batch.valid].max().expand(len(errors), 1))


class ForgetsItsOffset(Right):
    def training_step(self, batch, batch_idx):
        self.offset = self.offset + 1
        return super().training_step(batch, batch_idx)


BROKEN = {NotTrained: "training", Silent: "results", MeanOfBatches: "batches", ForgetsItsOffset: "resume"}


@pytest.fixture(scope="module")
def phantoms():
    loading = Loading(image_size=32, batch_size=4, eval_batch_size=3, workers=0, augment=None)
    return lambda: Phantom(None, train=8, val=4, test=8, size=32, loading=loading)


def test_right_tasks_keep_the_contract(phantoms):
    check_task(Right(), phantoms())
    assert set(BROKEN.values()) == set(RULES)


@pytest.mark.parametrize(("kind", "rule"), BROKEN.items(), ids=lambda x: getattr(x, "__name__", x))
def test_a_broken_task_is_caught_by_the_rule_that_it_breaks(phantoms, kind, rule):
    with pytest.raises(BrokenContract, match=f"task {kind.__name__} breaks the rule '{rule}'") as caught:
        check_task(kind(), phantoms())
    assert caught.value.rule == rule
