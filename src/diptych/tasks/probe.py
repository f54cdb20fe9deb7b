"""Linear probe: a linear layer on a frozen image tower, trained from 1, 10 and 100 % of the labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from diptych import distributed
from diptych.checks import check_number
from diptych.data.datamodule import Split
from diptych.data.splits import nested_share
from diptych.errors import ConfigError, DataError
from diptych.evaluation.rows import Rows
from diptych.metrics import bootstrap
from diptych.predictions.base import Predictions, named
from diptych.tasks.base import Task
from diptych.towers.image import ImageTower
from diptych.types import Batch

__all__ = ["LinearFit", "Probe", "fit_linear", "known_bce", "masked_bce"]


@dataclass(frozen=True)
class LinearFit:
    """A trained linear layer, and when its training was best."""

    weight: Tensor
    """``[L,D]``"""
    bias: Tensor
    """``[L]``"""
    epochs: int
    """Number of epochs up to the lowest validation loss."""
    loss: float
    """The lowest validation loss."""


def known_bce(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of the binary cross-entropy of ``[n,L]`` over the known labels (1 and 0), and how many are known."""
    known = (labels == 0) | (labels == 1)
    terms = nn.functional.binary_cross_entropy_with_logits(logits, labels.where(known, 0.0), reduction="none")
    return (terms * known).sum(), known.sum()


def masked_bce(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean of the binary cross-entropy of ``[n,L]`` over the known labels (1 and 0). It is 0 where none is known.

    >>> masked_bce(torch.zeros(1, 3), torch.tensor([[1.0, -1.0, torch.nan]]))
    tensor(0.6931)
    """
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
    """Train a linear layer with AdamW, and return it as it was at the lowest validation loss.

    Args:
        train: features ``[n,D]`` and labels ``[n,L]`` to train on. Labels other than 1 and 0 are left out of the loss.
        val: features and labels of the validation loss.
        seed: seed of the first weights and of the order of samples.
        lr: learning rate.
        weight_decay: weight decay of AdamW.
        epochs: largest number of epochs.
        patience: training ends after so many epochs without a lower validation loss.
        batch_size: samples in a batch. The last batch of an epoch may be smaller.
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
    """Linear probe of a frozen tower (as ConVIRT, GLoRIA and MGCA report it), over several label fractions and seeds.

    ``diptych test`` does all of it. Every image goes through the tower once, in evaluation mode and not augmented. Then, for
    each fraction and seed, a linear layer is trained on the features, stopped by the loss on ``val``, and tested. Fractions
    hold whole patients, and a larger one contains the smaller.

    The metric is ``probe/<percent>%/auroc/<finding>|macro``, the mean over the seeds. Its interval is a bootstrap of that
    mean over the patients of the test. ``results.json`` has the value of each seed too. A finding that has only one class in
    the test is listed as absent, and is in no mean.

    Args:
        image: the tower. It is frozen here, whatever its own setting.
        percents: shares of the training images whose labels are used.
        seeds: number of linear layers for each fraction.
        features: ``pooled`` for the tower's pooled vector, ``mean`` for the mean of its regions.
        lr: learning rate of AdamW. MGCA has 5e-4.
        weight_decay: weight decay of AdamW. MGCA has 1e-6.
        epochs: largest number of epochs. MGCA has 50.
        patience: training ends after so many epochs without a lower validation loss. MGCA has 10.
        batch_size: images in a batch. MGCA has 48.
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
            check_number(f"Probe: {name}", value, least=1, whole=True)
        check_number("Probe: resamples", resamples, least=0, remedy="0 (no intervals) or more")
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
        """Begin the pass over the test, with no features yet."""
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
        shares = {percent: self._share(percent) for percent in self.percents}
        jobs = [(percent, seed) for percent in self.percents for seed in range(self.seeds)]
        scores = torch.zeros(len(jobs), *labels["test"].shape)
        epochs = torch.zeros(len(jobs))
        for number, (percent, seed) in enumerate(jobs):
            if number % distributed.world_size() == distributed.rank():  # each layer is trained on one process
                share = shares[percent]
                train = features["train"][share], labels["train"][share]
                with torch.inference_mode(False), torch.enable_grad():
                    layer = fit_linear(train, (features["val"], labels["val"]), seed=seed, **self.options)
                scores[number] = nn.functional.linear(features["test"], layer.weight, layer.bias)
                epochs[number] = layer.epochs
        scores = distributed.sum_over_processes(scores.to(self.device)).cpu()
        epochs = distributed.sum_over_processes(epochs.to(self.device)).cpu()

        found = named("label", findings, labels["test"].numpy())
        for (percent, seed), values in zip(jobs, scores.numpy(), strict=True):
            found |= named(f"{percent:g}%/seed{seed}/score", findings, values)
        kept = Predictions("seeds", found, {"resamples": self.resamples, "seed": 0})
        figures, facts = self.figures(self._test_rows, patients["test"].numpy(), "probe", kept)
        self.results = bootstrap.as_metrics(figures, "test/probe/")
        fractions = {}
        for percent in self.percents:
            numbers = [i for i, job in enumerate(jobs) if job[0] == percent]
            name = f"{percent:g}%"
            known = labels["train"][shares[percent]]
            fractions[name] = {
                "images": len(shares[percent]),
                "positives": dict(zip(findings, (known == 1).sum(0).tolist(), strict=True)),
                "auroc of each seed": facts["auroc of each seed"][name],
                "epochs of each seed": epochs[numbers].int().tolist(),
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
            "absent": facts["absent"],
            "excluded": facts["excluded"],
        }
        self.log_results()

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

    def _share(self, percent: float) -> list[int]:
        """The training images of a fraction."""
        return nested_share(list(self.data.datasets["train"].patients), percent)
