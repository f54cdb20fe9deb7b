"""A downstream task: the mean grey value of a radiograph, predicted by a linear layer on an image tower."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diptych import Batch, ImageTower, Metric, TrainedTask
from diptych.evaluation.rows import Rows
from diptych.metrics import bootstrap

__all__ = ["Mine"]


class Mine(TrainedTask):
    """Predicts the mean grey value, 0 to 1. The figure is ``mine/error``, the mean absolute error.

    Args:
        image: the tower. Its ``frozen`` holds here.
        lr: peak learning rate.
        resamples: number of bootstrap resamples of the test. 0 gives no intervals.
    """

    monitor = "val/mine/error"

    def __init__(self, image: ImageTower, *, lr: float = 1e-2, resamples: int = 1000) -> None:
        super().__init__(image, lr=lr, weight_decay=0.0, warmup=0, lr_floor=0.01, resamples=resamples)
        self.linear = nn.Linear(image.width, 1)

    def configure_model(self) -> None:
        """Freeze what the task does not use, for DDP would wait for its gradient."""
        self.train_what_is_used(lambda image: [self.image(image).pooled])

    def errors(self, batch: Batch) -> Tensor:
        """``[B,1]``."""
        grey = batch.image.float().mean((1, 2, 3)) / 255
        predicted: Tensor = self.linear(self.image(batch.image).pooled)
        return (predicted - grey[:, None]).abs()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of a batch."""
        return self.errors(batch).mean()

    def begin(self) -> None:
        """Forget the set before."""
        self.rows = Rows(self.device, 1)

    def collect(self, batch: Batch) -> None:
        """Keep a row a sample. Rows that only fill up the batch are left out."""
        self.rows.add(batch, self.errors(batch))

    def finish(self, stage: str, resamples: int) -> None:
        """The mean over the whole set, with an interval over patients."""
        patients, (errors,) = self.rows.gather()
        weights = torch.from_numpy(bootstrap.figure_and_bootstrap(patients.numpy(), resamples)).double()
        means = (weights @ errors[:, 0].double()) / weights.sum(1)
        self.results = {f"{stage}/mine/error": Metric.of(means.numpy(), len(patients))}
        self.protocol["mine"] = {"interval": bootstrap.interval_name(resamples)}
