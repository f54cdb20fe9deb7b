"""Fine-tuning: an image tower and a linear layer on it, trained on labels."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from diptych import distributed
from diptych.checks import check_number
from diptych.evaluation.rows import Rows
from diptych.metrics import bootstrap
from diptych.metrics.classification import ScoreThreshold
from diptych.model.optim import OptimizerFactory, ScheduleFactory
from diptych.tasks.classifying import ClassifyingTask, threshold_facts
from diptych.tasks.losses import Classes, ClassWeights, LabelLoss, check_classes, check_exclusive
from diptych.towers.image import ImageTower
from diptych.types import Batch

__all__ = ["FineTune"]


class FineTune(ClassifyingTask):
    """Classification by a linear layer, with the tower trained along.

    With a ``layer_decay`` the tower's lower layers learn more slowly. The loss is the binary cross-entropy of the known
    labels, or the soft-max cross-entropy of exclusive classes. ``data.percent`` takes a share of the training images. The
    metric is ``finetune/auroc/<finding>|macro`` over the whole set. Exclusive classes have ``accuracy`` and ``f1`` too. A
    finding with one class only is listed as absent.

    Args:
        image: the tower. Its ``layer_decay``, ``frozen`` and ``freeze_layers`` hold here.
        lr: peak learning rate of the linear layer and of the tower's top layer.
        weight_decay: weight decay of AdamW on weight matrices.
        warmup: number of steps of linear warm-up. Below 1, their share of all steps.
        lr_floor: learning rate at the end of the cosine, as a share of ``lr``.
        dropout: probability of dropout before the linear layer.
        classes: ``independent`` for findings, each on its own. ``exclusive`` for a soft-max over classes of which a study has
            one. Studies with none or several are left out.
        class_weights: ``balanced`` gives each class the same share of the loss
            (:func:`~diptych.tasks.losses.balanced_weights`), counted in the training images.
        threshold: logit above which a finding counts as present, for accuracy, F1 and so on. ``zero`` is 0. ``best_f1`` is
            the best on the evaluated split itself, which is optimistic. ``val_f1``, ``val_youden`` and ``val_mcc`` are the
            best on ``val``, which a test reads first.
        resamples: number of bootstrap resamples of the test. 0 gives no intervals.
        optimizer: another optimiser than AdamW, as :class:`~diptych.model.module.AlignmentModule` has it. ``lr`` and
            ``weight_decay`` are then its own.
        schedule: another schedule than warm-up and cosine.

    Raises:
        ConfigError: an argument is out of its range, or the classes are exclusive and the data have one.
    """

    monitor = "val/finetune/auroc/macro"

    def __init__(
        self,
        image: ImageTower,
        *,
        lr: float = 5e-5,
        weight_decay: float = 0.05,
        warmup: float = 0.05,
        lr_floor: float = 0.01,
        dropout: float = 0.0,
        classes: Classes = "independent",
        class_weights: ClassWeights = "none",
        threshold: ScoreThreshold = "zero",
        resamples: int = 1000,
        optimizer: OptimizerFactory | None = None,
        schedule: ScheduleFactory | None = None,
    ) -> None:
        check_classes("FineTune", classes, class_weights)
        super().__init__(
            image,
            threshold=threshold,
            classes=classes,
            lr=lr,
            weight_decay=weight_decay,
            warmup=warmup,
            lr_floor=lr_floor,
            resamples=resamples,
            optimizer=optimizer,
            schedule=schedule,
        )
        check_number("FineTune: dropout", dropout, least=0, below=1)
        self.class_weights = class_weights
        self.label_loss = LabelLoss(classes)
        self.dropout = nn.Dropout(dropout)
        self.linear: nn.Linear | None = None

    def configure_model(self) -> None:
        """Freeze what the linear layer does not read, and make it when the data set has said how many findings there are."""
        check_exclusive("FineTune", self.classes, self.label_names())
        self.train_what_is_used(lambda image: [self.image(image).pooled])
        if self.linear is None:
            self.linear = nn.Linear(self.image.width, len(self.label_names()))

    def on_fit_start(self) -> None:
        """Count the training labels, if classes are weighted."""
        if self.class_weights == "none":
            return
        train = self.data.datasets["train"]
        labels = [train.labels_of(index) for index in range(len(train))]
        known = torch.from_numpy(np.stack([label for label in labels if label is not None]))
        self.label_loss = LabelLoss.of(known, self.classes, self.class_weights)

    def forward(self, image: Tensor) -> Tensor:
        """Logits ``[B,L]`` of radiographs ``[B,1,H,V]``."""
        assert self.linear is not None  # configure_model comes first
        logits: Tensor = self.linear(self.dropout(self.image(image).pooled))
        return logits.float()

    def logits(self, image: Tensor) -> Tensor:
        """Logits ``[B,L]`` of radiographs ``[B,1,H,V]``."""
        found: Tensor = self(image)
        return found

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss."""
        assert batch.labels is not None  # label_names() has looked
        loss = distributed.mean_loss(*self.label_loss.total(self(batch.image), batch.labels))
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(batch))
        return loss

    def begin(self) -> None:
        """Begin a pass, with no logits and labels yet."""
        number = len(self.label_names())
        self._rows = Rows(self.device, number, number)

    def collect(self, batch: Batch) -> None:
        """Keep the logits and labels of a batch."""
        assert batch.labels is not None  # as above
        self._rows.add(batch, self(batch.image), batch.labels)

    def finish(self, stage: str, resamples: int) -> None:
        """Compute the AUROC of each finding over the whole set."""
        patients, (scores, labels) = self._rows.gather()
        values = scores, labels
        figures, facts = self.classified(stage, self._rows, patients.numpy(), "finetune", values, resamples)
        self.results = bootstrap.as_metrics(figures, f"{stage}/finetune/")
        self.protocol["finetune"] = {
            "classes": self.classes,
            "class_weights": self.class_weights,
            "interval": bootstrap.interval_name(resamples),
            "samples": len(patients),
            **threshold_facts(facts),
            "absent": facts["absent"],
            "excluded": facts["excluded"],
        }
