"""Linear layers on features: trained by AdamW, or by L-BFGS as logistic regression, from shares or from few of each class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor, nn

from diptych.errors import DataError
from diptych.tasks.losses import Classes, LabelLoss, one_class

__all__ = ["LinearFit", "best_fit", "fit_linear", "fit_logistic", "k_shot_labels"]


@dataclass(frozen=True)
class LinearFit:
    """A trained linear layer, and how its training went."""

    weight: Tensor
    """``[L,D]``"""
    bias: Tensor
    """``[L]``"""
    epochs: int
    """Number of epochs up to the lowest validation loss. Of L-BFGS, its iterations."""
    loss: float
    """The validation loss."""
    setting: float
    """The learning rate, or the ``c`` of a logistic regression."""


def fit_linear(
    train: tuple[Tensor, Tensor],
    val: tuple[Tensor, Tensor],
    *,
    loss: LabelLoss,
    seed: int,
    lr: float,
    weight_decay: float,
    epochs: int,
    patience: int,
    batch_size: int,
) -> LinearFit:
    """Train a linear layer with AdamW, and return it as it was at the lowest validation loss.

    Args:
        train: features ``[n,D]`` and labels ``[n,L]`` to train on.
        val: features and labels of the validation loss.
        loss: of logits against labels.
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
    best = LinearFit(weight.detach().clone(), bias.detach().clone(), 0, float("inf"), lr)
    for epoch in range(1, epochs + 1):
        for rows in torch.split(torch.randperm(len(x), generator=generator), batch_size):
            optimizer.zero_grad()
            torch.autograd.backward(loss.mean(nn.functional.linear(x[rows], weight, bias), y[rows]))
            optimizer.step()
        with torch.no_grad():
            of_val = float(loss.mean(nn.functional.linear(x_val, weight, bias), y_val))
        if of_val < best.loss:
            best = LinearFit(weight.detach().clone(), bias.detach().clone(), epoch, of_val, lr)
        elif epoch - best.epochs >= patience:
            break
    return best


def fit_logistic(
    train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor], *, loss: LabelLoss, c: float, iterations: int
) -> LinearFit:
    """Logistic regression by L-BFGS (scipy's), from zero: the sum of the loss plus ``|W|^2 / (2 c)`` is minimised.

    It is scikit-learn's ``LogisticRegression(C=c)``, for each finding over its own known labels. With exclusive classes it is
    the multinomial one. The bias is not penalised.

    Args:
        train: features ``[n,D]`` and labels ``[n,L]`` to train on.
        val: features and labels of the validation loss.
        loss: of logits against labels.
        c: inverse strength of the penalty, above 0.
        iterations: largest number of iterations.
    """
    x, y = (part.double() for part in train)
    shape = y.shape[1], x.shape[1] + 1
    known = float(loss.total(x.new_zeros(y.shape), y)[1].clamp_min(1))

    def objective(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        matrix = torch.from_numpy(flat).view(shape).requires_grad_()
        total, _ = loss.total(nn.functional.linear(x, matrix[:, :-1], matrix[:, -1]), y)
        value = (total + matrix[:, :-1].square().sum() / (2 * c)) / known
        (gradient,) = torch.autograd.grad(value, matrix)
        return float(value.detach()), gradient.flatten().numpy()

    options = {"maxiter": iterations, "maxls": 50, "gtol": 1e-8, "ftol": 64 * np.finfo(float).eps}
    found: Any = minimize(objective, np.zeros(shape[0] * shape[1]), jac=True, method="L-BFGS-B", options=options)
    matrix = torch.from_numpy(found.x).view(shape).to(train[0])
    weight, bias = matrix[:, :-1].contiguous(), matrix[:, -1].contiguous()
    of_val = float(loss.mean(nn.functional.linear(val[0], weight, bias), val[1]))
    return LinearFit(weight, bias, int(found.nit), of_val, c)


def best_fit(fits: Sequence[LinearFit]) -> LinearFit:
    """The one with the lowest validation loss. Of equals it is the first. One that diverged (NaN) is the last choice."""
    return min(fits, key=lambda fit: (fit.loss != fit.loss, fit.loss))


def k_shot_labels(labels: Tensor, names: Sequence[str], k: int, seed: int, classes: Classes) -> Tensor:
    """The labels ``[n,L]`` of ``k`` samples of each class, drawn by the seed. All others are NaN.

    For each finding ``k`` samples have it and ``k`` do not, drawn apart from those of other findings. Of exclusive classes each
    has ``k``. A smaller ``k`` is a part of a larger one.

    >>> k_shot_labels(torch.tensor([[1.0], [0.0], [1.0], [0.0]]), ["Edema"], 1, seed=0, classes="independent").T
    tensor([[nan, 0., 1., nan]])

    Args:
        labels: of the training images.
        names: of the ``L`` findings, for the message.
        k: samples of a class.
        seed: of the draw.
        classes: whether a sample has one class.

    Raises:
        DataError: a class has fewer than ``k``.
    """

    def first(of_class: Tensor, stream: Sequence[int], what: str) -> Tensor:
        order = torch.from_numpy(np.random.default_rng(stream).permutation(len(labels)))
        chosen = order[of_class[order]][:k]
        if len(chosen) < k:
            raise DataError(f"Probe: 'train' has {len(chosen)} {what}, and shots has {k}; give at most {len(chosen)}")
        return chosen

    few = torch.full_like(labels, torch.nan)
    single = one_class(labels)
    for j, name in enumerate(names):
        if classes == "exclusive":
            rows = first(single & (labels[:, j] == 1), [seed], f"images of '{name}' alone")
            few[rows] = labels[rows]
            continue
        for value, what in ((1, "images with"), (0, "images without")):
            rows = first(labels[:, j] == value, [seed, j], f"{what} '{name}'")
            few[rows, j] = float(value)
    return few
