"""A gallery of evaluators, each with one mistake. They are a module, so that the pool's processes find them."""

from __future__ import annotations

import torch

from diptych import Evaluator, Metric
from diptych.evaluation.rows import SampleOrder
from diptych.metrics import bootstrap


class Right(Evaluator):
    """The mean score of an image with its own report."""

    def __init__(self) -> None:
        super().__init__("right", 20)

    def start(self, embed_text, findings, intervals=True):
        super().start(embed_text, findings, intervals)
        self.samples, self.kept = SampleOrder(torch.device("cpu"), self.name), [torch.zeros(0)]

    def rows(self, batch):
        return self.samples.add(batch)

    def update(self, batch, image, text, head):
        rows = self.rows(batch)
        self.kept.append(head.similarity(image.select(rows), text.select(rows)).diagonal())

    def compute(self, head):
        patients = self.samples.gather().numpy()
        values = self.samples.values(torch.cat(self.kept)).double().numpy()
        self.count, self.index = len(values), self.samples.index.numpy()
        weights = bootstrap.figure_and_bootstrap(patients, 20)
        return {"score": Metric.of(weights @ values / weights.sum(1), len(values))}


class Bare(Right):
    def compute(self, head):
        return {name: metric.value for name, metric in super().compute(head).items()}


class Silent(Right):
    @property
    def protocol(self):
        return {"name": self.name}


class Remembers(Right):
    def __init__(self):
        super().__init__()
        self.best = 0.0

    def compute(self, head):
        found = super().compute(head)["score"]
        self.best += found.value
        return {"score": Metric(self.best, self.best, self.best, found.n)}


class MeanOfBatches(Right):
    def update(self, batch, image, text, head):
        super().update(batch, image, text, head)
        self.kept[-1] = self.kept[-1].mean().expand(len(self.kept[-1]))


class CountsAll(Right):
    def update(self, batch, image, text, head):
        rows = self.rows(batch)
        scores = head.similarity(image, text).diagonal()
        self.kept.append(scores[rows] + 0.01 * len(batch.valid[~batch.valid]))


class CountsTwice(Right):
    def rows(self, batch):
        return batch.valid.nonzero().squeeze(1)

    def compute(self, head):
        values = torch.cat(self.kept).double().sort().values
        self.count = len(values)
        mean = float(values.mean())
        return {"score": Metric(mean, mean, mean, len(values))}


class Alone(Right):
    """It counts samples over all processes, and averages its own."""

    def compute(self, head):
        found = super().compute(head)["score"]
        mean = float(torch.cat(self.kept).double().sort().values.mean())
        return {"score": Metric(mean, mean, mean, found.n)}


BROKEN = {
    Bare: "metrics",
    Silent: "protocol",
    Remembers: "passes",
    MeanOfBatches: "batches",
    CountsAll: "rows that fill up",
    CountsTwice: "samples once",
    Alone: "processes",
}
"""Each evaluator with the rule that it breaks."""
