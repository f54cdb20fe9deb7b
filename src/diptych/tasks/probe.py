"""Linear probe: what a frozen image tower knows, read out by a linear layer from 1, 10 and 100 % of the labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from diptych import distributed
from diptych.data.datamodule import Split
from diptych.data.splits import nested
from diptych.errors import ConfigError, DataError
from diptych.evaluation.rows import Rows
from diptych.metrics import bootstrap
from diptych.metrics.classification import BinaryValues, binary_values, with_macro
from diptych.tasks.base import Task
from diptych.towers.image import ImageTower
from diptych.types import Batch

__all__ = ["LinearFit", "Probe", "fit_linear"]

Array = NDArray[Any]


@dataclass(frozen=True)
class LinearFit:
    """A linear layer and how it came about."""

    weight: Tensor
    """``[L,D]``"""
    bias: Tensor
    """``[L]``"""
    epochs: int
    """Epochs until the best validation loss."""
    loss: float
    """That loss."""


def known_bce(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy ``[n,L]`` summed over the known labels (1 and 0), and how many these are."""
    known = (labels == 0) | (labels == 1)
    terms = nn.functional.binary_cross_entropy_with_logits(logits, labels.where(known, 0.0), reduction="none")
    return (terms * known).sum(), known.sum()


def masked_bce(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy ``[n,L]`` averaged over the known labels (1 and 0); 0 where there is none."""
    total, known = known_bce(logits, labels)
    return total / known.clamp_min(1)


def fit_linear(
    train: tuple[Tensor, Tensor],
    val: tuple[Tensor, Tensor],
    *,
    seed: int,
    lr: float,
    weight_decay: float,
    epochs: int,
    patience: int,
    batch_size: int,
) -> LinearFit:
    """Train a linear layer with AdamW, and keep it as it was when the validation loss was lowest.

    Args:
        train: features ``[n,D]`` and labels ``[n,L]``: 1, 0; others count for nothing.
        val: the same, to stop by.
        seed: of the start and the order.
        lr: learning rate.
        weight_decay: of AdamW.
        epochs: at most.
        patience: epochs without a lower validation loss after which it ends.
        batch_size: the last batch of an epoch may be smaller.
    """
    (x, y), (x_val, y_val) = train, val
    generator = torch.Generator().manual_seed(seed)
    bound = x.shape[1] ** -0.5  # as torch.nn.Linear starts
    weight, bias = (
        ((2 * torch.rand(shape, generator=generator) - 1) * bound).requires_grad_()
        for shape in ((y.shape[1], x.shape[1]), (y.shape[1],))
    )
    optimizer = torch.optim.AdamW([weight, bias], lr=lr, weight_decay=weight_decay)
    best = LinearFit(weight.detach().clone(), bias.detach().clone(), 0, float("inf"))
    for epoch in range(1, epochs + 1):
        for rows in torch.split(torch.randperm(len(x), generator=generator), batch_size):
            optimizer.zero_grad()
            torch.autograd.backward(masked_bce(nn.functional.linear(x[rows], weight, bias), y[rows]))
            optimizer.step()
        with torch.no_grad():
            loss = float(masked_bce(nn.functional.linear(x_val, weight, bias), y_val))
        if loss < best.loss:
            best = LinearFit(weight.detach().clone(), bias.detach().clone(), epoch, loss)
        elif epoch - best.epochs >= patience:
            break
    return best


class Probe(Task):
    """Linear probe of a frozen tower (as ConVIRT, GLoRIA and MGCA report it), all label fractions and seeds in one pass.

    ``diptych test`` does all of it: every image goes through the tower once, in evaluation mode and not augmented; then a
    linear layer is trained on the features for each fraction and seed, stopped by the loss on ``val``, and tested. Fractions
    are nested and hold whole patients. Metrics: ``probe/<percent>%/auroc/<finding>|macro``, the mean over the seeds; the
    interval is a bootstrap over the test's patients of that mean, and each seed's value is in ``results.json``. A finding
    with one class only in the test is listed, and averaged into nothing.

    Args:
        image: the tower; frozen here, whatever it says.
        percents: shares of the training images whose labels are used.
        seeds: linear layers a fraction.
        features: ``pooled``, the tower's own vector, or ``mean``, that of its regions.
        lr: of AdamW; 5e-4 in MGCA.
        weight_decay: of AdamW; 1e-6 in MGCA.
        epochs: at most; 50 in MGCA.
        patience: epochs without a lower validation loss; 10 in MGCA.
        batch_size: images a step; 48 in MGCA.
        resamples: of the bootstrap; 0 for no intervals.

    Raises:
        ConfigError: an argument out of its range.
    """

    trains = False

    def __init__(
        self,
        image: ImageTower,
        *,
        percents: Sequence[float] = (1, 10, 100),
        seeds: int = 3,
        features: Literal["pooled", "mean"] = "pooled",
        lr: float = 5e-4,
        weight_decay: float = 1e-6,
        epochs: int = 50,
        patience: int = 10,
        batch_size: int = 48,
        resamples: int = 1000,
    ) -> None:
        super().__init__(image)
        if not percents or not all(0 < percent <= 100 for percent in percents):
            raise ConfigError(f"Probe: percents is {list(percents)}; give numbers above 0 and at most 100")
        for name, value in (("seeds", seeds), ("epochs", epochs), ("patience", patience), ("batch_size", batch_size)):
            if value < 1:
                raise ConfigError(f"Probe: {name} is {value}; give 1 or more")
        if resamples < 0:
            raise ConfigError(f"Probe: resamples is {resamples}; give 0 (no intervals) or more")
        self.image.freeze()
        self.percents, self.seeds, self.features, self.resamples = tuple(percents), seeds, features, resamples
        self.options: dict[str, Any] = {
            "lr": lr,
            "weight_decay": weight_decay,
            "epochs": epochs,
            "patience": patience,
            "batch_size": batch_size,
        }

    def on_test_epoch_start(self) -> None:
        """Begin to collect the test's features."""
        self._tested = self._rows()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect the features and labels of a test batch."""
        self._collect(self._tested, batch)

    def on_test_epoch_end(self) -> None:
        """Extract the features of the other splits, train every linear layer, and test it."""
        findings = self.labelled()
        features, labels, patients = {}, {}, {}
        for split in ("train", "val", "test"):
            if split not in self.data.datasets:
                raise DataError(
                    f"Probe: {self.data.protocol} has no '{split}' split; choose a protocol with train, val and test"
                )
            rows = self._tested if split == "test" else self._extract(split)
            patients[split], found = rows.gather()
            with torch.inference_mode(False), torch.enable_grad():  # a copy made here can be trained on
                features[split], labels[split] = (value.clone() for value in found)
        weights = bootstrap.figure_and_bootstrap(patients["test"].numpy(), self.resamples)

        shares = {percent: self._share(percent) for percent in self.percents}
        jobs = [(percent, seed) for percent in self.percents for seed in range(self.seeds)]
        scores = torch.zeros(len(jobs), *labels["test"].shape)
        epochs = torch.zeros(len(jobs))
        for number, (percent, seed) in enumerate(jobs):
            if number % distributed.world_size() == distributed.rank():  # each layer is trained on one process
                rows_of = shares[percent]
                train = features["train"][rows_of], labels["train"][rows_of]
                with torch.inference_mode(False), torch.enable_grad():
                    fitted = fit_linear(train, (features["val"], labels["val"]), seed=seed, **self.options)
                scores[number] = nn.functional.linear(features["test"], fitted.weight, fitted.bias)
                epochs[number] = fitted.epochs
        scores = distributed.sum_over_processes(scores.to(self.device)).cpu()
        epochs = distributed.sum_over_processes(epochs.to(self.device)).cpu()

        self.results, fractions = {}, {}
        for percent in self.percents:
            chosen = [i for i, job in enumerate(jobs) if job[0] == percent]
            of_seeds = [binary_values(findings, scores[i].numpy(), labels["test"].numpy(), weights) for i in chosen]
            name = f"{percent:g}%"
            self.results |= {f"test/probe/{name}/{key}": value for key, value in _over_seeds(of_seeds).items()}
            known = labels["train"][shares[percent]]
            fractions[name] = {
                "images": len(shares[percent]),
                "positives": dict(zip(findings, (known == 1).sum(0).tolist(), strict=True)),
                "auroc of each seed": [value.metrics()["auroc/macro"].value for value in of_seeds],
                "epochs of each seed": epochs[chosen].int().tolist(),
            }
        self.protocol["tower"]["features"] = features["test"].shape[1]
        self.protocol["probe"] = {
            **self.options,
            "features": f"{self.features}, tower frozen and in evaluation mode",
            "stopped by": "loss on val",
            "interval": bootstrap.interval_name(
                self.resamples, f"the test's patients of the mean over {self.seeds} seeds"
            ),
            "fractions": fractions,
            "absent": of_seeds[0].facts["absent"],
            "excluded": of_seeds[0].facts["excluded"],
        }
        self.log_results()

    def _rows(self) -> Rows:
        width = self.image.width if self.features == "pooled" else self.image.token_width
        return Rows(self.device, width, len(self.labelled()))

    @torch.no_grad()
    def _collect(self, rows: Rows, batch: Batch) -> None:
        found = self.image(batch.image)
        vectors = found.pooled if self.features == "pooled" else found.tokens.mean(1)
        assert batch.labels is not None  # labelled() has looked
        rows.add(batch, vectors, batch.labels)

    def _extract(self, split: Split) -> Rows:
        rows = self._rows()
        for batch in self.batches_of(split):
            self._collect(rows, batch)
        return rows

    def _share(self, percent: float) -> list[int]:
        return nested(list(self.data.datasets["train"].patients), percent)


def _over_seeds(of_seeds: Sequence[BinaryValues]) -> dict[str, bootstrap.Metric]:
    """AUROC as the mean over seeds, of all samples and of each resample."""
    first = of_seeds[0]
    aurocs = {
        finding: np.mean([values.values["auroc"][finding] for values in of_seeds], axis=0)
        for finding in first.values["auroc"]
    }
    return with_macro({"auroc": aurocs}, first.counts, first.known)
