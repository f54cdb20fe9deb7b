"""The temperature that makes zero-shot probabilities agree with labels (Guo et al., ICML 2017)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_expit, log_softmax, softmax

from diptych.checks import check_number
from diptych.errors import ConfigError, shown

__all__ = ["Calibration", "fit_temperature", "label_array", "log_loss", "probabilities_of"]

Array = NDArray[Any]
_WIDE = 12.0
"""Largest absolute logarithm of the temperature over the largest score."""
_FLAT = 1e-9
"""Losses that differ by less are equal."""


def probabilities_of(scores: Array, classes: bool, temperature: float = 1.0) -> NDArray[np.float64]:
    """Probabilities ``[n,L]`` of scores ``[n,L]``.

    Of findings it is the logistic function of each score. A score is the value of the positive side minus that of the
    negative side, so this is the soft-max of the two sides. Of classes it is the soft-max over a row.

    >>> probabilities_of(np.array([[0.0, 2.0]]), classes=False).round(2).tolist()
    [[0.5, 0.88]]
    """
    logits = np.asarray(scores, np.float64) / temperature
    return np.asarray(softmax(logits, axis=1) if classes else expit(logits), np.float64)


def log_loss(scores: Array, labels: Array, classes: bool, temperature: float = 1.0) -> float:
    """The mean negative logarithm of the labels' probabilities, over the known labels.

    >>> round(log_loss(np.array([[0.0]]), np.array([[1.0]]), classes=False), 4)
    0.6931

    Args:
        scores: ``[n,L]``.
        labels: ``[n,L]`` of findings, 1 and 0; others are left out. ``[n]`` of classes: the number of each.
        classes: whether the columns are classes of which each image has one.
        temperature: what the scores are divided by.
    """
    logits = np.asarray(scores, np.float64) / temperature
    if classes:
        return float(-log_softmax(logits, axis=1)[np.arange(len(logits)), labels.astype(int)].mean())
    known = (labels == 0) | (labels == 1)
    return float(-log_expit(np.where(labels == 1, logits, -logits)[known]).mean())


def fit_temperature(scores: Array, labels: Array, classes: bool) -> float:
    """The temperature, above 0, with the least :func:`log_loss`. The loss has one minimum, as it is convex in 1 / temperature.

    >>> scores, labels = np.array([[1.0], [1.0], [1.0], [-1.0]]), np.array([[1.0], [1.0], [0.0], [0.0]])
    >>> round(fit_temperature(scores, labels, classes=False), 3)
    0.91

    Raises:
        ConfigError: there are no known labels, or the best temperature is 0 or infinite.
    """
    known = len(scores) if classes else int(((labels == 0) | (labels == 1)).sum())
    if not known or not np.isfinite(scores).all():
        raise ConfigError(
            "calibrate: there are no known labels (1 or 0), or scores are not finite; give labelled pictures"
        )
    scale = float(np.abs(scores).max()) or 1.0

    def loss(x: float) -> float:
        return log_loss(scores, labels, classes, scale * math.exp(x))

    found = minimize_scalar(loss, bounds=(-_WIDE, _WIDE), method="bounded")
    if loss(_WIDE) <= found.fun + _FLAT:
        raise ConfigError(
            "calibrate: the scores tell nothing of the labels, so the best temperature is infinite; look at the order of "
            "the labels, or take other prompts"
        )
    if loss(-_WIDE) <= found.fun + _FLAT:
        raise ConfigError(
            "calibrate: the scores part the labels without an error, so the best temperature is 0; give more pictures"
        )
    return float(scale * math.exp(found.x))


@dataclass(frozen=True)
class Calibration:
    """A temperature, and what it was fitted for. It serves the same weights, prompts and protocol alone."""

    temperature: float
    prompts_hash: str
    protocol: str
    average_prompts: bool
    images: int
    labels: int
    """How many known labels the fit has seen."""
    before: float
    """Mean negative log-likelihood of these labels without the temperature."""
    after: float
    """The same with it."""

    @property
    def key(self) -> tuple[str, str, bool]:
        """What it serves."""
        return self.prompts_hash, self.protocol, self.average_prompts

    def plain(self) -> dict[str, Any]:
        """Its plain values, for JSON. :meth:`of` reads them."""
        return asdict(self)

    @classmethod
    def of(cls, stored: Any, source: str) -> Calibration:
        """Read plain values.

        Raises:
            ConfigError: they are of other names or types.
        """
        kinds = {"prompts_hash": str, "protocol": str, "average_prompts": bool, "images": int, "labels": int}
        numbers = {"temperature", "before", "after"}
        if (
            not isinstance(stored, dict)
            or set(stored) != {*kinds, *numbers}
            or not all(type(stored[name]) is kind for name, kind in kinds.items())
        ):
            raise ConfigError(f"{source}: {shown(stored)} is no calibration; remove the file, and calibrate again")
        for name in sorted(numbers):
            check_number(f"{source}: {name}", stored[name], above=0 if name == "temperature" else None, below=math.inf)
        return cls(**stored)


def label_array(labels: Any, names: Sequence[str], images: int, classes: bool) -> Array:
    """Labels as an array: ``[n,L]`` of findings, or the number of the class ``[n]``.

    >>> label_array({"Edema": [1, 0]}, ["Edema"], 2, classes=False).tolist()
    [[1.0], [0.0]]
    >>> label_array(["ill", "well"], ["well", "ill"], 2, classes=True).tolist()
    [1, 0]

    Args:
        labels: of findings, ``[n,L]`` or a mapping from each name to ``n`` labels. Of classes, ``n`` names or numbers.
        names: the findings or classes.
        images: how many images there are, ``n``.
        classes: whether the names are classes.

    Raises:
        ConfigError: they are of another form or number.
    """
    form = (
        f"one of {', '.join(names)} for each image" if classes else f"[{images},{len(names)}], or {{name: [{images}]}}"
    )
    wrong = f"calibrate: labels are {shown(labels)}; give {form}"
    if classes:
        place = {name: i for i, name in enumerate(names)} | {i: i for i in range(len(names))}
        given = [value.item() if isinstance(value, np.generic) else value for value in labels]
        if len(given) != images or any(value not in place for value in given):
            raise ConfigError(wrong)
        return np.array([place[value] for value in given], np.int64)
    try:
        if isinstance(labels, dict):
            if set(labels) != set(names):
                raise ConfigError(wrong)
            labels = np.stack([np.asarray(labels[name], np.float64) for name in names], axis=1)
        array = np.asarray(labels, np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigError(wrong) from error
    array = array[:, None] if array.ndim == 1 and len(names) == 1 else array
    if array.shape != (images, len(names)):
        raise ConfigError(f"calibrate: labels are {list(array.shape)}; give {form}")
    return array
