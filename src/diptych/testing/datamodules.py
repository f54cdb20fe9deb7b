"""The contract of datamodules."""

from __future__ import annotations

import pickle
from collections.abc import Collection
from dataclasses import dataclass
from itertools import islice, zip_longest
from typing import Any
from unittest import mock

import numpy as np
import torch

from diptych.data.datamodule import RadiographDataModule
from diptych.data.dataset import Sample
from diptych.data.sampling import EvaluationSampler, TrainingSampler
from diptych.testing.contract import Found, Rule, chosen, rule
from diptych.types import Batch

__all__ = ["RULES", "DataCase", "check_datamodule"]

_FEW = 8
"""How many samples of a split are read one by one."""


@dataclass(frozen=True)
class DataCase:
    """A datamodule as it is configured."""

    module: RadiographDataModule

    def __str__(self) -> str:
        return f"datamodule {type(self.module).__name__}"

    def ready(self) -> RadiographDataModule:
        """The datamodule, set up. A report is read only where it has a tokenizer."""
        if not self.module.datasets:
            self.module.prepare_data()
            self.module.setup("fit" if "text" in self.module.holds else "test")
        return self.module


def check_datamodule(datamodule: RadiographDataModule, /, *, without: Collection[str] = ()) -> None:
    """Check that a datamodule keeps to the whole contract. It reads some images of each split, and all of ``test``.

    Give it a miniature of the data: a few dozen samples, and ``Loading(workers=0)``.

    Args:
        datamodule: as it is configured. It is set up here.
        without: names of rules that do not apply.

    Raises:
        BrokenContract: a rule is broken. The message names the datamodule, the rule, the figures, the likely cause and the
            remedy.
        ConfigError: ``without`` names no rule.
    """
    case = DataCase(datamodule)
    for each in chosen(RULES, without):
        each(case)


@rule(
    "splits",
    "images of one patient were drawn into several splits, or a split has no rows",
    "split by patient (diptych.data.splits), and set `leaky = True` only where the published split is so",
)
def splits(case: DataCase) -> None:
    """Splits are train, val and test, none is empty, and no patient is in two."""
    module = case.ready()
    if extra := set(module.datasets) - {"train", "val", "test"}:
        raise Found(
            f"there is a split '{min(extra)}'", "`build` names a split of its own", "name it train, val or test"
        )
    for name, dataset in module.datasets.items():
        if not len(dataset):
            raise Found(f"the split '{name}' is empty")
        if not len(dataset.ids) == len(dataset.patients) == len(dataset):
            raise Found(f"'{name}' has {len(dataset.ids)} ids and {len(dataset.patients)} patients")
        if len(set(dataset.ids)) != len(dataset):
            raise Found(f"'{name}' has {len(dataset)} samples and {len(set(dataset.ids))} different ids")
    patients = [set(dataset.patients) for dataset in module.datasets.values()]
    if not module.leaky and sum(map(len, patients)) != len(set().union(*patients)):
        raise Found("a patient is in two splits")
    if not module.protocol or len(module.split_hash) != 16:
        raise Found(
            "it has no `protocol`", "`protocol` returns nothing", "return the name of the data and of the split"
        )


def _held(module: RadiographDataModule, batch: Batch) -> set[str]:
    size = len(batch)
    there = {
        "text": batch.text is not None and bool(batch.text.mask.any(dim=1).all()),
        "labels": batch.labels is not None and batch.labels.shape == (size, len(module.findings)),
        "boxes": batch.boxes is not None and all(box.shape[1] == 5 for box in batch.boxes),
        "masks": batch.masks is not None and batch.masks.shape == (size, *batch.image.shape[2:]),
    }
    return {"image"} | {what for what, held in there.items() if held}


@rule(
    "batches",
    "`read` leaves out a field, or gives it with another shape or type, or `holds` and `findings` do not say what it gives",
    "compare `read` with diptych.Sample, and `holds` and `findings` with what it returns",
)
def batches(case: DataCase) -> None:
    """Training batches hold what `holds` says, with the types and shapes of `Batch`."""
    module = case.ready()
    if "train" not in module.datasets:
        return
    size, side = module.loading.batch_size, module.loading.image_size
    batch: Batch = next(iter(module.train_dataloader()))
    shape = (size, 1 + module.others, side, side)
    if batch.image.shape != shape or batch.image.dtype != torch.uint8:
        raise Found(f"images are {list(batch.image.shape)} of {batch.image.dtype}, not {list(shape)} of torch.uint8")
    if not (batch.image.flatten(1).float().std(dim=1) > 1).all():
        raise Found(
            "a picture has one grey value", "the file was not read, or scaled to 0..1", "give uint8 from 0 to 255"
        )
    if (held := _held(module, batch)) != set(module.holds) | {"image"}:
        raise Found(f"batches hold {', '.join(sorted(held))}, and `holds` says {', '.join(sorted(module.holds))}")
    if batch.labels is not None:
        known = batch.labels[~batch.labels.isnan()]
        if batch.labels.dtype != torch.float32 or not set(known.tolist()) <= {1.0, 0.0, -1.0}:
            raise Found(
                f"labels are of {batch.labels.dtype} with the values {sorted(set(known.tolist()))[:5]}, not 1, 0, -1, NaN"
            )
    if batch.masks is not None and batch.masks.dtype != torch.bool:
        raise Found(f"masks are of {batch.masks.dtype}, not torch.bool")
    if not len(batch.ids) == len(set(batch.ids)) == size:
        raise Found(f"{size} rows have {len(set(batch.ids))} different ids")


@rule(
    "samples",
    "`read` draws from a generator of its own or of the module, or keeps state",
    "draw from the argument `rng` alone, which depends on seed, epoch and index",
)
def samples(case: DataCase) -> None:
    """`read` gives the same for the same `rng`, also in another process, and `labels_of` says what `read` says."""
    for name, dataset in case.ready().datasets.items():
        sent = pickle.loads(pickle.dumps(dataset))  # as a spawned worker gets it
        for index in range(min(_FEW, len(dataset))):
            first, again, other = (each.read(index, np.random.default_rng(7)) for each in (dataset, dataset, sent))
            for which, sample in (("a second time", again), ("in another process", other)):
                for field, a, b in _arrays(first, sample):
                    if (a is None) != (b is None) or (
                        a is not None and not np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
                    ):
                        raise Found(f"`{field}` of sample {index} of '{name}' is another when it is read {which}")
                if first.text != sample.text:
                    raise Found(f"`text` of sample {index} of '{name}' is another when it is read {which}")
            if first.image.ndim != 2 or first.image.dtype != np.uint8:
                raise Found(
                    f"sample {index} of '{name}' is {list(first.image.shape)} of {first.image.dtype}",
                    "`read` gives channels, or grey values that are not bytes",
                    "give the picture as uint8 [h,v], as read_image(path, self.intensity) does",
                )
            labels = dataset.labels_of(index)
            if (labels is None) != (first.labels is None) or (
                labels is not None and not np.array_equal(labels, np.asarray(first.labels), equal_nan=True)
            ):
                raise Found(
                    f"labels_of({index}) of '{name}' is not `labels` of read",
                    "they are made in two places",
                    "let `read` take its labels from `labels_of`",
                )
            _boxes_inside(name, index, first.boxes, first.image.shape)


def _arrays(first: Sample, second: Sample) -> list[tuple[str, Any, Any]]:
    """Each array of two samples, with its name. An image that only one of them has is None in the other."""
    plain = [(field, getattr(first, field), getattr(second, field)) for field in ("image", "labels", "boxes", "mask")]
    others = zip_longest(first.others, second.others)
    return plain + [(f"others[{place}]", a, b) for place, (a, b) in enumerate(others)]


def _boxes_inside(
    name: str, index: int, boxes: np.ndarray[tuple[int, ...], np.dtype[np.float32]] | None, shape: tuple[int, ...]
) -> None:
    if boxes is None or not len(boxes):
        return
    x0, y0, x1, y1 = boxes[:, :4].T
    if (
        (x1 <= x0).any()
        or (y1 <= y0).any()
        or (x0 < 0).any()
        or (y0 < 0).any()
        or (x1 > shape[1]).any()
        or (y1 > shape[0]).any()
    ):
        raise Found(
            f"a box of sample {index} of '{name}' is not inside its picture of {shape[1]} x {shape[0]}",
            "boxes are x, y, width, height, or of another size of the picture",
            "give x0, y0, x1, y1 in pixels of the picture that `read` returns",
        )


@rule(
    "evaluation",
    "a loader or a sampler of its own replaces that of the base class",
    "leave loaders to diptych.RadiographDataModule, and build data sets only",
)
def evaluation(case: DataCase) -> None:
    """Two processes read every test sample once."""
    module = case.ready()
    if "test" not in module.datasets:
        return
    counted: list[str] = []
    for rank in (0, 1):
        with mock.patch.object(module, "_processes", lambda rank=rank: (rank, 2)):
            loader = module.test_dataloader()
            if not isinstance(loader.batch_sampler, EvaluationSampler):
                raise Found(f"test_dataloader has a {type(loader.batch_sampler).__name__}")
            if "train" in module.datasets and not isinstance(module.train_dataloader().batch_sampler, TrainingSampler):
                raise Found("train_dataloader has another sampler, which cannot resume")
            for batch in loader:
                counted += [key for key, valid in zip(batch.ids, batch.valid.tolist(), strict=True) if valid]
    if sorted(counted) != sorted(module.datasets["test"].ids):
        raise Found(f"{len(module.datasets['test'])} samples of test are read {len(counted)} times by two processes")


@rule(
    "order",
    "the order or an augmentation is drawn from the module's own or the global generator",
    "draw from the argument `rng` of `read` alone; the base class shuffles",
)
def order(case: DataCase) -> None:
    """The same seed gives the same order and pictures, and each epoch has an order of its own."""
    module = case.ready()
    if "train" not in module.datasets:
        return

    def epoch(number: int, batches: int) -> tuple[list[str], torch.Tensor]:
        loader = module.train_dataloader()
        loader.set_epoch(number)
        read = list(islice(iter(loader), batches))
        return [key for batch in read for key in batch.ids], read[0].image

    (ids, pictures), (same, again), (others, _) = epoch(0, 2), epoch(0, 2), epoch(1, 2)
    if ids != same or not torch.equal(pictures, again):
        raise Found("the first epoch has another order, or other pictures, when it is read again")
    if ids == others and len(module.datasets["train"]) > 4:
        raise Found("two epochs have one order")


@rule(
    "reports",
    "`texts` reads images, leaves reports out, or gives None",
    "yield every report of the split as a text, from the table alone",
)
def reports(case: DataCase) -> None:
    """`texts` gives the reports of a split, from which a scratch tower learns its words."""
    module = case.ready()
    if "text" not in module.holds:
        return
    for name, dataset in module.datasets.items():
        texts = list(dataset.texts())
        if not texts or not all(isinstance(text, str) for text in texts):
            raise Found(f"texts() of '{name}' gives {len(texts)} reports, or something else than text")


RULES: dict[str, Rule[DataCase]] = {each.name: each for each in (splits, batches, samples, evaluation, order, reports)}
"""The rules by name."""
