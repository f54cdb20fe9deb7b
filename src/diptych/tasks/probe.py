"""Linear probe: a linear layer on a frozen image tower, trained from shares of the labels, or from a few of each class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from diptych import distributed
from diptych.checks import check_choice, check_number
from diptych.data.datamodule import Split
from diptych.data.splits import nested_share
from diptych.errors import ConfigError, DataError
from diptych.evaluation.rows import Rows
from diptych.metrics import bootstrap
from diptych.metrics.classification import VAL, ScoreThreshold
from diptych.predictions.base import Predictions, named
from diptych.predictions.kinds import val_thresholds
from diptych.tasks.base import Task
from diptych.tasks.classifying import check_threshold, threshold_facts
from diptych.tasks.linear import LinearFit, best_fit, fit_linear, fit_logistic, k_shot_labels
from diptych.tasks.losses import Classes, ClassWeights, LabelLoss, check_classes, check_exclusive
from diptych.towers.image import ImageTower
from diptych.types import Batch

__all__ = ["Probe"]

Solver = Literal["adamw", "lbfgs"]
CS = tuple(10.0**power for power in range(-6, 7))
"""The range in which CLIP's authors look for the ``c`` of a logistic regression (arXiv 2103.00020), in steps of ten."""
_ITERATIONS = 1000


@dataclass(frozen=True)
class _Job:
    """One linear layer to be trained: from which images, with which labels."""

    share: str
    """``1%``, or ``4-shot``."""
    seed: int
    rows: Tensor
    """``[n]``: the training images."""
    labels: Tensor
    """``[n,L]``"""


class Probe(Task):
    """Linear probe of a frozen tower (as ConVIRT, GLoRIA and MGCA report it), over several label fractions and seeds.

    ``diptych test`` does all of it. Every image goes through the tower once, in evaluation mode and not augmented. Then, for
    each fraction and seed, a linear layer is trained on the features, stopped by the loss on ``val``, and tested. Fractions
    hold whole patients, and a larger one contains the smaller.

    The metric is ``probe/<percent>%/auroc/<finding>|macro``, the mean over the seeds, and ``probe/<k>-shot/...`` for ``shots``.
    Exclusive classes have ``accuracy`` and ``f1`` too. The interval is a bootstrap of that mean over the patients of the test.
    ``results.json`` has the value of each seed too. A finding that has only one class in the test is listed as absent, and is
    in no mean.

    Args:
        image: the tower. It is frozen here, whatever its own setting.
        percents: shares of the training images whose labels are used. It may be empty if there are ``shots``.
        shots: numbers ``k`` of images of each class (:func:`~diptych.tasks.linear.k_shot_labels`). Each seed draws others.
            ``val`` is used as a whole.
        seeds: number of linear layers for each fraction. L-BFGS has no chance in it, so a fraction in percent has one.
        features: ``pooled`` for the tower's pooled vector, ``mean`` for the mean of its regions.
        solver: ``adamw``, or ``lbfgs`` for logistic regression (:func:`~diptych.tasks.linear.fit_logistic`).
        lr: learning rate of AdamW. MGCA has 5e-4. Of several, each seed takes the one with the lowest loss on ``val``.
        c: inverse strength of the penalty of ``lbfgs``. Of several, likewise. The default is CLIP's range.
        weight_decay: weight decay of AdamW. MGCA has 1e-6.
        epochs: largest number of epochs. MGCA has 50.
        patience: training ends after so many epochs without a lower validation loss. MGCA has 10.
        batch_size: images in a batch. MGCA has 48.
        classes: ``independent`` for findings, each on its own. ``exclusive`` for a soft-max over classes of which a study has
            one. Studies with none or several are left out.
        class_weights: ``balanced`` gives each class the same share of the loss
            (:func:`~diptych.tasks.losses.balanced_weights`), counted in the images that the layer is trained on.
        threshold: logit above which a finding counts as present, for accuracy, F1 and so on. ``zero`` is 0. ``best_f1`` is
            the best on the test itself, which is optimistic. ``val_f1``, ``val_youden`` and ``val_mcc`` are the best of each
            layer on ``val``.
        resamples: number of bootstrap resamples. 0 gives no intervals.

    Raises:
        ConfigError: an argument is out of its range.
    """

    trains = False

    def __init__(
        self,
        image: ImageTower,
        *,
        percents: Sequence[float] = (1, 10, 100),
        shots: Sequence[int] = (),
        seeds: int = 3,
        features: Literal["pooled", "mean"] = "pooled",
        solver: Solver = "adamw",
        lr: float | Sequence[float] = 5e-4,
        c: float | Sequence[float] = CS,
        weight_decay: float = 1e-6,
        epochs: int = 50,
        patience: int = 10,
        batch_size: int = 48,
        classes: Classes = "independent",
        class_weights: ClassWeights = "none",
        threshold: ScoreThreshold = "zero",
        resamples: int = 1000,
    ) -> None:
        super().__init__(image)
        if not (percents or shots) or not all(0 < percent <= 100 for percent in percents):
            raise ConfigError(f"Probe: percents is {list(percents)}; give numbers above 0 and at most 100")
        if len(set(shots)) < len(shots):
            raise ConfigError(f"Probe: shots is {list(shots)}; give different numbers")
        counts = {"seeds": seeds, "epochs": epochs, "patience": patience, "batch_size": batch_size}
        for name, value in [*counts.items(), *(("shots", k) for k in shots)]:
            check_number(f"Probe: {name}", value, least=1, whole=True)
        check_number("Probe: resamples", resamples, least=0, remedy="0 (no intervals) or more")
        check_choice("Probe: solver", solver, ["adamw", "lbfgs"])
        check_classes("Probe", classes, class_weights)
        check_threshold("Probe", threshold, classes)
        self.image.freeze()
        self.percents, self.shots, self.seeds, self.features = tuple(percents), tuple(shots), seeds, features
        self.solver, self.classes, self.class_weights, self.resamples = solver, classes, class_weights, resamples
        self.threshold = threshold
        self.settings = _several("c", c) if solver == "lbfgs" else _several("lr", lr)
        self.options: dict[str, Any] = {
            "weight_decay": weight_decay,
            "epochs": epochs,
            "patience": patience,
            "batch_size": batch_size,
        }
        if solver == "lbfgs":
            self.options = {"iterations": _ITERATIONS}

    def on_test_epoch_start(self) -> None:
        """Begin the pass over the test, with no features yet.

        Raises:
            ConfigError: the classes are exclusive, and there is one only.
        """
        check_exclusive("Probe", self.classes, self.label_names())
        self._test_rows = self._rows()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Keep the features and labels of a test batch."""
        self._collect(self._test_rows, batch)

    def on_test_epoch_end(self) -> None:
        """Extract the features of the other splits, train every linear layer, and test it."""
        findings = self.label_names()
        features, labels, patients = {}, {}, {}
        for split in ("train", "val", "test"):
            if split not in self.data.datasets:
                raise DataError(
                    f"Probe: {self.data.protocol} has no '{split}' split; choose a protocol with train, val and test"
                )
            rows = self._test_rows if split == "test" else self._extract(split)
            patients[split], columns = rows.gather()
            with torch.inference_mode(False), torch.enable_grad():  # a copy made here can be trained on
                features[split], labels[split] = (column.clone() for column in columns)
        jobs = self._jobs(labels["train"])
        tested: tuple[Split, ...] = ("val", "test")
        scores = {split: torch.zeros(len(jobs), *labels[split].shape) for split in tested}
        outcomes = torch.zeros(len(jobs), 2, dtype=torch.float64)
        for number, job in enumerate(jobs):
            if number % distributed.world_size() == distributed.rank():  # each layer is trained on one process
                train = features["train"][job.rows], job.labels
                with torch.inference_mode(False), torch.enable_grad():
                    layer = self._fit(train, (features["val"], labels["val"]), job.seed)
                for split, of_jobs in scores.items():
                    of_jobs[number] = nn.functional.linear(features[split], layer.weight, layer.bias)
                outcomes[number] = torch.tensor([layer.epochs, layer.setting])
        kept = {
            split: self._kept(jobs, distributed.sum_over_processes(of_jobs.to(self.device)).cpu(), labels[split])
            for split, of_jobs in scores.items()
        }
        outcomes = distributed.sum_over_processes(outcomes.to(self.device)).cpu()

        if self.threshold in VAL:
            kept["test"].settings["thresholds"] = val_thresholds(kept["val"], self.threshold)
        figures, facts = self.figures(self._test_rows, patients["test"].numpy(), "probe", kept["test"])
        self.results = bootstrap.as_metrics(figures, "test/probe/")
        fractions: dict[str, dict[str, Any]] = {}
        for job, (epochs, setting) in zip(jobs, outcomes.tolist(), strict=True):
            positives = dict(zip(findings, (job.labels == 1).sum(0).tolist(), strict=True))
            of_share = fractions.setdefault(job.share, {"images": len(job.rows), "positives": positives})
            of_share["auroc of each seed"] = facts["auroc of each seed"][job.share]
            if "threshold" in facts:
                of_share["thresholds of each seed"] = facts["thresholds of each seed"][job.share]
            name = "iterations" if self.solver == "lbfgs" else "epochs"
            of_share.setdefault(f"{name} of each seed", []).append(int(epochs))
            if len(self.settings) > 1:
                name = "c" if self.solver == "lbfgs" else "lr"
                of_share.setdefault(f"{name} of each seed", []).append(setting)
        self.protocol["tower"]["features"] = features["test"].shape[1]
        chosen = self.settings[0] if len(self.settings) == 1 else f"lowest loss on val of {list(self.settings)}"
        self.protocol["probe"] = {
            "solver": self.solver,
            "c" if self.solver == "lbfgs" else "lr": chosen,
            **self.options,
            "classes": self.classes,
            "class_weights": self.class_weights,
            "features": f"{self.features}, tower frozen and in evaluation mode",
            "stopped by": "convergence" if self.solver == "lbfgs" else "loss on val",
            "seeds": 1 if self.solver == "lbfgs" and not self.shots else self.seeds,
            "interval": bootstrap.interval_name(self.resamples, "the test's patients of the mean over the seeds"),
            "fractions": fractions,
            **threshold_facts(facts),
            "absent": facts["absent"],
            "excluded": facts["excluded"],
        }
        self.log_results()

    def _kept(self, jobs: Sequence[_Job], scores: Tensor, labels: Tensor) -> Predictions:
        """The logits ``[J,n,L]`` of all layers and the labels ``[n,L]`` of a split as predictions."""
        findings = self.label_names()
        columns = named("label", findings, labels.numpy())
        for job, values in zip(jobs, scores.numpy(), strict=True):
            columns |= named(f"{job.share}/seed{job.seed}/score", findings, values)
        settings: dict[str, Any] = {"resamples": self.resamples, "seed": 0}
        settings |= {"threshold": self.threshold} if self.classes == "independent" else {"classes": self.classes}
        return Predictions("seeds", columns, settings)

    def _rows(self) -> Rows:
        width = self.image.width if self.features == "pooled" else self.image.token_width
        return Rows(self.device, width, len(self.label_names()))

    @torch.no_grad()
    def _collect(self, rows: Rows, batch: Batch) -> None:
        features = self.image(batch.image)
        vectors = features.pooled if self.features == "pooled" else features.tokens.mean(1)
        assert batch.labels is not None  # label_names() has looked
        rows.add(batch, vectors, batch.labels)

    def _extract(self, split: Split) -> Rows:
        rows = self._rows()
        for batch in self.batches_of(split):
            self._collect(rows, batch)
        return rows

    def _jobs(self, labels: Tensor) -> list[_Job]:
        """The layers to be trained from the training labels ``[n,L]``."""
        patients, names = list(self.data.datasets["train"].patients), self.label_names()
        jobs = []
        for percent in self.percents:
            rows = torch.tensor(nested_share(patients, percent))
            seeds = 1 if self.solver == "lbfgs" else self.seeds
            jobs += [_Job(f"{percent:g}%", seed, rows, labels[rows]) for seed in range(seeds)]
        for k in self.shots:
            for seed in range(self.seeds):
                few = k_shot_labels(labels, names, k, seed, self.classes)
                rows = (~few.isnan()).any(1).nonzero().squeeze(1)
                jobs.append(_Job(f"{k}-shot", seed, rows, few[rows]))
        return jobs

    def _fit(self, train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor], seed: int) -> LinearFit:
        """The layer with the lowest loss on ``val`` of all settings."""
        loss = LabelLoss.of(train[1], self.classes, self.class_weights)
        if self.solver == "lbfgs":
            return best_fit([fit_logistic(train, val, loss=loss, c=c, **self.options) for c in self.settings])
        return best_fit([fit_linear(train, val, loss=loss, seed=seed, lr=lr, **self.options) for lr in self.settings])


def _several(name: str, values: float | Sequence[float]) -> tuple[float, ...]:
    """One or several numbers above 0, as a tuple."""
    several = tuple(values) if isinstance(values, Sequence) else (values,)
    if not several:
        raise ConfigError(f"Probe: {name} is empty; give a number above 0, or several")
    for value in several:
        check_number(f"Probe: {name}", value, above=0)
    return several
