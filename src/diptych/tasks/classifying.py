"""Base of the trained tasks that give each image a logit of each finding, and the score above which one is present."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, get_args

from numpy.typing import NDArray
from torch import Tensor

from diptych.checks import check_choice
from diptych.errors import ConfigError
from diptych.evaluation.rows import Rows
from diptych.metrics.bootstrap import Draws
from diptych.metrics.classification import VAL, ScoreThreshold
from diptych.model.optim import OptimizerFactory, ScheduleFactory
from diptych.predictions.base import Predictions, named
from diptych.predictions.kinds import val_thresholds
from diptych.tasks.base import Task, TrainedTask
from diptych.tasks.losses import Classes
from diptych.towers.image import ImageTower

__all__ = ["ClassifyingTask", "check_threshold", "check_val", "threshold_facts"]


def check_threshold(task: str, threshold: ScoreThreshold, classes: Classes = "independent") -> None:
    """Refuse a value that is none of :data:`~diptych.metrics.classification.ScoreThreshold`, or exclusive classes with one.

    Raises:
        ConfigError: it is so.
    """
    check_choice(f"{task}: threshold", threshold, get_args(ScoreThreshold))
    if threshold != "zero" and classes == "exclusive":
        raise ConfigError(
            f"{task}: threshold is '{threshold}', and exclusive classes have none, as the highest logit decides; leave it out"
        )


def check_val(task: Task, threshold: ScoreThreshold) -> None:
    """Refuse data without ``val`` for a threshold that is chosen there.

    Raises:
        ConfigError: it is so.
    """
    if threshold in VAL and "val" not in task.data.datasets:
        raise ConfigError(
            f"{type(task).__name__}: threshold is '{threshold}', and {task.data.protocol} has no 'val'; use data with one, or "
            "threshold: zero"
        )


def threshold_facts(facts: dict[str, Any]) -> dict[str, Any]:
    """The lines of ``results.json`` on the threshold, from all facts. Exclusive classes have none."""
    return {key: facts[key] for key in ("threshold", "thresholds") if key in facts}


class ClassifyingTask(TrainedTask):
    """Base of the trained tasks that give each image a logit of each finding.

    A threshold of ``val`` is chosen on all of ``val``, which a test reads first. It is never chosen on the test.

    Args:
        image: the tower. Its ``layer_decay``, ``frozen`` and ``freeze_layers`` hold here.
        threshold: logit above which a finding counts as present, as :class:`~diptych.evaluation.zero_shot.ZeroShot` has it.
        classes: ``independent`` findings, or ``exclusive`` classes, which have no threshold.
        lr: peak learning rate of the task's own layers and of the tower's top layer.
        weight_decay: weight decay of AdamW on weight matrices.
        warmup: number of steps of linear warm-up. Below 1, their share of all steps.
        lr_floor: learning rate at the end of the cosine, as a share of ``lr``.
        resamples: number of bootstrap resamples of the test. 0 gives no intervals.
        optimizer: another optimiser than AdamW, as :class:`~diptych.model.module.AlignmentModule` has it. ``lr`` and
            ``weight_decay`` are then its own.
        schedule: another schedule than warm-up and cosine.

    Raises:
        ConfigError: an argument is out of its range.
    """

    def __init__(
        self,
        image: ImageTower,
        *,
        threshold: ScoreThreshold,
        classes: Classes = "independent",
        lr: float,
        weight_decay: float,
        warmup: float,
        lr_floor: float,
        resamples: int,
        optimizer: OptimizerFactory | None = None,
        schedule: ScheduleFactory | None = None,
    ) -> None:
        super().__init__(
            image,
            lr=lr,
            weight_decay=weight_decay,
            warmup=warmup,
            lr_floor=lr_floor,
            resamples=resamples,
            optimizer=optimizer,
            schedule=schedule,
        )
        check_threshold(type(self).__name__, threshold, classes)
        self.threshold, self.classes = threshold, classes
        self._thresholds: dict[str, Any] = {}

    @abstractmethod
    def logits(self, image: Tensor) -> Tensor:
        """Logits ``[B,L]`` of radiographs ``[B,1,H,V]``."""

    def on_test_epoch_start(self) -> None:
        """Choose thresholds on ``val`` where they are of it. Then begin a pass over the test set.

        Raises:
            ConfigError: there is no ``val``.
        """
        check_val(self, self.threshold)
        if self.threshold in VAL:
            number = len(self.label_names())
            rows = Rows(self.device, number, number)
            for batch in self.batches_of("val"):
                assert batch.labels is not None  # label_names() has looked
                rows.add(batch, self.logits(batch.image), batch.labels)
            scores, labels = rows.gather()[1]
            self._thresholds = val_thresholds(self._kept(scores, labels, 0), self.threshold)
        super().on_test_epoch_start()

    def _kept(self, logits: Tensor, labels: Tensor, resamples: int) -> Predictions:
        """Logits and labels ``[n,L]`` as predictions. A higher logit means that the finding is more likely there."""
        names, exclusive = self.label_names(), self.classes == "exclusive"
        chances = logits.double().softmax(1) if exclusive else logits.double().sigmoid()
        columns = named("score", names, logits.numpy()) | named("probability", names, chances.numpy())
        columns |= named("label", names, labels.numpy())
        settings: dict[str, Any] = {"resamples": resamples, "seed": 0}
        if not exclusive:
            settings = {"threshold": self.threshold, **settings}
        if self.threshold in VAL:
            settings["thresholds"] = self._thresholds
        return Predictions("classes" if exclusive else "binary", columns, settings)

    def classified(
        self, stage: str, rows: Rows, group: NDArray[Any], name: str, values: tuple[Tensor, Tensor], resamples: int
    ) -> tuple[dict[str, Draws], dict[str, Any]]:
        """Keep logits as the only predictions, and compute their figures.

        Args:
            stage: ``val`` or ``test``. In ``val`` its own thresholds are chosen, for its own figures.
            rows: the samples, gathered.
            group: their patients ``[n]``.
            name: first part of the metrics' names.
            values: logits and labels ``[n,L]``.
            resamples: number of bootstrap resamples.

        Returns:
            Figures by name, and facts for the protocol.
        """
        if stage == "val" and self.threshold in VAL:
            self._thresholds = val_thresholds(self._kept(*values, 0), self.threshold)
        return self.figures(rows, group, name, self._kept(*values, resamples))
