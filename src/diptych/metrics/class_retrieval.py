"""P@k and Hit@k of retrieval among classes, where every candidate of the query's class is right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diptych.metrics import measures as metrics
from diptych.metrics.bootstrap import Draws, Resampling

__all__ = ["class_retrieval", "hits_among", "shares_of"]

Array = NDArray[Any]


def hits_among(scores: Array, relevant: Array, ks: Sequence[int], slack: float, weights: Array) -> Array:
    """The number of right candidates among the first ``k`` for one query, in each of many resampled sets.

    >>> weights = np.array([[1, 1, 1], [0, 1, 2]])
    >>> hits_among(np.array([0.9, 0.5, 0.1]), np.array([True, False, True]), (1, 2), 0.0, weights).tolist()
    [[1, 1], [0, 1]]

    Args:
        scores: scores ``[n]`` of the candidates.
        relevant: ``[n]`` bool, whether a candidate is right.
        ks: cut-offs.
        slack: scores closer than this are tied.
        weights: ``[R,n]``, how often each candidate is in each set.

    Returns:
        ``[R,len(ks)]``, as :func:`~diptych.evaluation.class_retrieval.hits_at` counts.
    """
    placed = np.where(np.isnan(scores), np.where(relevant, -np.inf, np.inf), scores) + np.where(relevant, 0, slack)
    order = np.lexsort((relevant, -placed))  # among equals the wrong ones come first
    order = order[(scores[order] > -np.inf) | ~relevant[order]]
    deepest = max(ks)
    for reach in (8 * deepest, len(order)):  # the rest of the ranking is rarely needed
        upto = weights[:, order[:reach]].astype(np.int32).cumsum(axis=1)
        if reach >= len(order) or (upto[:, -1] >= deepest).all():
            break
    right = relevant[order[:reach]]
    taken = [np.diff(np.minimum(upto, k), axis=1, prepend=0)[:, right].sum(axis=1) for k in ks]
    return np.stack(taken, axis=1)


def shares_of(hits: Array, names: Sequence[str]) -> list[Array]:
    """The value of each query from its hits ``[n,len(names)]``: ``p@5`` is their share of 5, ``hit@5`` whether there is any.

    >>> [values.tolist() for values in shares_of(np.array([[2, 2], [0, 0]]), ["p@5", "hit@5"])]
    [[0.4, 0.0], [1.0, 0.0]]
    """
    ks = [int(name.partition("@")[2]) for name in names]
    return [
        hits[:, i] / k if name.startswith("p@") else (hits[:, i] > 0).astype(np.float64)
        for i, (name, k) in enumerate(zip(names, ks, strict=True))
    ]


def class_retrieval(
    columns: Mapping[str, Any], draw: Resampling, settings: Mapping[str, Any]
) -> tuple[dict[str, Draws], dict[str, Any]]:
    """P@k and Hit@k in both directions, as means over the queries.

    Args:
        columns: ``class`` has the class of each image, empty where it has none or several. ``image_to_text/p@5`` and so on
            have the value of each image as a query. ``text_to_image/p@5`` have that of its report, or else
            ``prompt/<j>/<class>`` have the score of each image with a prompt of a class. Then each resampled set of images is
            ranked anew.
        draw: how the patients are drawn again.
        settings: nothing that counts here.
    """
    classes = np.array(columns["class"], dtype=object)
    used, every = classes != "", draw.weights()
    classes, weights = classes[used], every[:, used]
    figures = {
        name: Draws(metrics.mean(np.asarray(values)[used], weights), len(classes))
        for name, values in columns.items()
        if name.startswith(("image_to_text/", "text_to_image/"))
    }
    prompts = {name: np.asarray(values)[used] for name, values in columns.items() if name.startswith("prompt/")}
    if not prompts:
        return figures, {}
    names = [name.partition("/")[2] for name in columns if name.startswith("image_to_text/")]
    ks = [int(name.partition("@")[2]) for name in names]
    scores = np.stack(list(prompts.values()), axis=1)
    slack = metrics.TIE * float(np.abs(scores[np.isfinite(scores)]).max(initial=0))
    shares, sets, asked = np.zeros((len(ks), len(weights))), np.zeros(len(weights)), 0
    for j, prompt in enumerate(prompts):
        right = classes == prompt.split("/", 2)[2]
        if not right.any():
            continue
        asked += 1
        there = weights[:, right].any(axis=1)  # a resampled set may lack the class
        shares += there * np.stack(shares_of(hits_among(scores[:, j], right, ks, slack, weights), names))
        sets += there
    means = np.divide(shares, sets, out=np.full(shares.shape, np.nan), where=sets > 0)
    return figures | {f"text_to_image/{name}": Draws(row, asked) for name, row in zip(names, means, strict=True)}, {}
