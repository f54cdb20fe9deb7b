"""Probes of retrieval on phantoms: among filler, among long reports, and with parts of other images.

Each R@5 is the mean of both directions. Equal reports are one report. A tie counts as wrong.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diptych.errors import DataError
from diptych.evaluation.rows import stack
from diptych.evaluation.scoring import ranks
from diptych.head import ScoresMatchings
from diptych.types import Embedding, map_leaves
from diptych.version import __version__
from diptych_datamodules.phantoms.plan import PhantomPlan, plan_phantom, render
from diptych_datamodules.phantoms.wording import FILLER_SENTENCES

if TYPE_CHECKING:
    from diptych.model.inference import TrainedModel

__all__ = [
    "FILLER_SHARES", "LONG", "another", "distractor_probes", "encode", "exchanged", "long_probe", "long_reports",
    "pad_with_filler", "pictures", "recall_chance", "scores_of",
]  # fmt: skip

FILLER_SHARES = (0.0, 0.4, 0.8)
"""Shares of filler in the distractor probe."""
LONG = (60, 90)
"""Least and most words of a long report."""
_K = 5
_EXCHANGED = 0.4  # the share of filler at which parts of images are exchanged
_DRAWS = 100  # most phantoms that are looked at for a long report, for each one that is wanted
_CHUNK = 64


def pictures(plans: Sequence[PhantomPlan], size: int, cache: Path | None) -> NDArray[np.uint8]:
    """The pictures of all plans, ``[I,size,size]``. They are drawn, or read from a cache that an earlier call has written.

    Raises:
        DataError: the cache cannot be written.
    """
    if cache is None:
        return np.stack([render(plan, size).image for plan in plans])
    name = hashlib.sha256(repr((__version__, size, list(plans))).encode()).hexdigest()[:16]
    file = cache / f"probe-{name}.npy"
    if file.is_file():
        return np.asarray(np.load(file), np.uint8)
    images = pictures(plans, size, None)
    part = file.with_name(f"{name}.part{os.getpid()}.npy")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        np.save(part, images)
        part.replace(file)
    except OSError as error:
        raise DataError(f"data.cache: {file} cannot be written ({error.strerror}); name a folder that can") from error
    return images


def encode(model: TrainedModel, plans: Sequence[PhantomPlan], cache: Path | None = None) -> Embedding:
    """The embeddings of the pictures of all plans."""
    images = pictures(plans, model.image_size, cache)
    return stack([model.encode_image(list(images[start : start + _CHUNK])) for start in range(0, len(plans), _CHUNK)])


def scores_of(model: TrainedModel, images: Embedding, texts: Embedding) -> dict[str, Tensor]:
    """Scores ``[I,T]`` of all images with all texts: of the head, and of its matchings alone."""
    head = model.module.head
    parts: dict[str, list[Tensor]] = {"": []}
    for start in range(0, len(images.pooled), _CHUNK):
        image = images.select(torch.arange(start, min(start + _CHUNK, len(images.pooled))))
        parts[""].append(head.similarity(image, texts).float())
        if isinstance(head, ScoresMatchings):
            parts.setdefault("matchings/", []).append(head.local_scores(image, texts).float())
    return {part: torch.cat(rows) for part, rows in parts.items()}


def pad_with_filler(plan: PhantomPlan, share: float, rng: np.random.Generator) -> str:
    """The sentences of an impression, in their order, among filler. ``share`` is that of filler in all sentences."""
    spans = [span for span in plan.report.sentences if span[0] > len(plan.report.findings)]
    sentences = [plan.report.text[start:end] for start, end in spans]
    for filler in rng.permutation(np.array(FILLER_SENTENCES))[: round(len(sentences) * share / (1 - share))]:
        sentences.insert(int(rng.integers(len(sentences) + 1)), str(filler))
    return " ".join(sentences)


def exchanged(image: Embedding, other: Tensor, pooled: bool) -> Embedding:
    """Images of which each has a part of another: its pooled vectors, or everything else of its embedding.

    An embedding may nest others, as that of ``composite`` does. All their fields named ``pooled`` are pooled vectors.

    >>> exchanged(Embedding(torch.tensor([[1.0], [2.0]])), torch.tensor([1, 0]), pooled=True).pooled.tolist()
    [[2.0], [1.0]]

    Args:
        image: embeddings of ``I`` images.
        other: ``[I]``, the image that each gets a part of.
        pooled: True gives it the other's pooled vectors. False gives it all else, and leaves it its own pooled vectors.
    """

    def part(path: str, own: Any, of_other: Any) -> Any:
        return of_other if (path.rpartition(".")[2] == "pooled") == pooled else own

    return map_leaves(part, image, image.select(other))


def another(column: Tensor) -> Tensor | None:
    """For each image ``[I]`` another one with another report, each of them once. None where there is no such order.

    >>> another(torch.tensor([0, 1, 0, 2]))
    tensor([1, 0, 3, 2])

    Args:
        column: ``[I]``, the number of each image's report.
    """
    order = column.argsort(stable=True)
    most = int(column.bincount().max())  # images of the most frequent report
    if 2 * most > len(column):
        return None
    return torch.empty_like(order).scatter_(0, order, order.roll(most))


def recall_chance(column: Tensor) -> float:
    """R@5 of random scores, the mean of both directions.

    An image has one right report among all. A report has all images with it, of which the best counts.

    >>> round(recall_chance(torch.arange(20)), 3)
    0.25

    Args:
        column: ``[I]``, the number of each image's report.
    """
    n, right = len(column), column.bincount().double()
    misses = torch.ones_like(right)  # the chance that none of the right images is among the first five
    for i in range(min(_K, n)):
        misses *= ((n - right - i) / (n - i)).clamp_min(0)
    return (min(1.0, _K / len(right)) + float(1 - misses.mean())) / 2


def _recall(scores: Tensor, column: Tensor) -> float:
    block = [(column, scores.cpu())]
    found = ranks(block, block, scores.shape[1], torch.device("cpu"))
    return float(np.mean([(side <= _K).double().mean().item() for side in (found.of_images, found.of_texts)]))


@torch.inference_mode()
def distractor_probes(
    model: TrainedModel, n: int, mix: Mapping[str, float], seed: int, cache: Path | None = None
) -> dict[str, float]:
    """R@5 among ``n`` radiographs, at each share of filler, and with parts of other images.

    It is the mean of both directions. Equal reports are one report. A tie counts as wrong.
    """
    plans = [plan_phantom(i, seed=seed, mix=mix, normal=0.2, max_findings=2, filler=0.0) for i in range(n)]
    # Reports with equal impressions are one report, whatever their filler.
    plans_by_impression = {plan.report.impression: plan for plan in reversed(plans)}
    column = torch.tensor([list(plans_by_impression).index(plan.report.impression) for plan in plans])
    images, chance, results = encode(model, plans, cache), recall_chance(column), dict[str, float]()

    def add(name: str, scores: Tensor) -> None:
        results[name], results[f"{name}/chance"] = _recall(scores, column), chance

    for share in FILLER_SHARES:
        rng = np.random.default_rng([seed, int(100 * share)])
        texts = model.encode_text([pad_with_filler(plan, share, rng) for plan in plans_by_impression.values()])
        for part, scores in scores_of(model, images, texts).items():
            add(f"{part}distractor/{share}", scores)
            if share == FILLER_SHARES[-1]:
                add(f"{part}distractor", scores)
            if share == _EXCHANGED and part:
                add(f"{part}own", scores)
                other = another(column)
                for name, pooled in (("regions", False), ("pooled", True)):
                    if other is None:
                        results[f"{part}other_{name}"] = float("nan")
                    else:
                        add(f"{part}other_{name}", scores_of(model, exchanged(images, other, pooled), texts)[part])
    return results


def long_reports(n: int, mix: Mapping[str, float], seed: int) -> tuple[list[PhantomPlan], list[str], Tensor]:
    """Radiographs whose impression, among 80 % filler, has 60 to 90 words: fewer than ``n`` if they are rare.

    Returns:
        - the plans of the radiographs,
        - the different reports. Reports with equal impressions are one report,
        - the number of each radiograph's report.
    """
    rng, texts, plans, column = np.random.default_rng([seed, 4]), dict[str, str](), [], []
    for i in range(_DRAWS * n):
        plan = plan_phantom(i, seed=seed, mix=mix, normal=0.0, max_findings=2, filler=0.0)
        impression = plan.report.impression
        if impression not in texts:
            text = pad_with_filler(plan, FILLER_SHARES[-1], rng)
            if not LONG[0] <= len(text.split()) <= LONG[1]:
                continue
            texts[impression] = text
        plans.append(plan)
        column.append(list(texts).index(impression))
        if len(plans) == n:
            break
    return plans, list(texts.values()), torch.tensor(column, dtype=torch.int64)


@torch.inference_mode()
def long_probe(
    model: TrainedModel, n: int, mix: Mapping[str, float], seed: int, cache: Path | None = None
) -> dict[str, float]:
    """R@5 among long reports, as :func:`distractor_probes` has it, with its chance.

    If the text tower's limit has cut any of the reports, ``long/cut`` is their share.
    """
    plans, texts, column = long_reports(n, mix, seed)
    if len(plans) < n:
        return {"long": float("nan")}
    results = {}
    if cut := float(model.module.tokenizer(texts).cut.double().mean()):
        results["long/cut"] = cut
    for part, scores in scores_of(model, encode(model, plans, cache), model.encode_text(texts)).items():
        results |= {f"{part}long": _recall(scores, column), f"{part}long/chance": recall_chance(column)}
    return results
