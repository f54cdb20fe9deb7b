"""How samples are loaded: sizes, workers, and how several samples become a batch."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from diptych.checks import check_number
from diptych.data.augment import Augment, Augmenter
from diptych.data.dataset import RadiographDataset
from diptych.data.privacy import discreet
from diptych.data.sampling import Draw, mix
from diptych.radiographs.intensity import Intensity
from diptych.radiographs.letterbox import letterbox
from diptych.radiographs.limits import ImageError, refuse
from diptych.reports.tokenizer import Tokenizer
from diptych.types import Batch

__all__ = ["Loading"]


@dataclass(frozen=True)
class Loading:
    """How samples are loaded. Every datamodule takes the same arguments.

    Args:
        batch_size: pairs of one process in a training step. The contrast is over ``batch_size * processes`` pairs.
        eval_batch_size: pairs of one process in a validation or test step. It changes no metric.
        image_size: side of the network's square input, pixels.
        workers: loader processes. 0 loads in the main process.
        seed: of shuffling, augmentation and the choice of captions. With the epoch and the index it decides every draw.
        augment: augmentation in training. ``null`` for none.
        start_method: how workers start. Take ``spawn`` where a library of yours does not survive ``fork``.
        check_images: read every image once before the run, and leave out, count and list those that cannot be used.
            Without it, the first such image stops the run by name. The list is kept in the run's folder
            (``images.json``), and a run that goes on or is tested reads it again.
        intensity: how the files' values become grey: percentiles, and which window of a DICOM file.
        private: leave ids and texts of reports out of all that the run writes or prints: pictures, TensorBoard,
            ``dropped.csv``, ``images.json`` and errors. A sample is then called by its number in the split, and a test writes
            no ``predictions.csv``.
    """

    batch_size: int = 32
    eval_batch_size: int = 64
    image_size: int = 224
    workers: int = 2
    seed: int = 0
    augment: Augment | None = field(default_factory=Augment)
    start_method: Literal["fork", "spawn", "forkserver"] = "fork"
    check_images: bool = False
    intensity: Intensity = field(default_factory=Intensity)
    private: bool = False

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("eval_batch_size", 1), ("image_size", 8), ("workers", 0)):
            check_number(f"loading.{name}", getattr(self, name), least=least, whole=True)


class _NetworkInputs(Dataset[dict[str, Any]]):
    """A data set as a loader reads it. It takes a :class:`Draw`, and gives an augmented network input."""

    def __init__(self, dataset: RadiographDataset, loading: Loading, augment: Augment | None) -> None:
        self.dataset, self.loading = dataset, loading
        self.augment = augment
        self._augmenter: Augmenter | None = None  # made in the worker: albumentations is slow to import and pickle
        numbers = {patient: i for i, patient in enumerate(dict.fromkeys(dataset.patients))}
        self.groups = [numbers[patient] for patient in dataset.patients]

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        seed = mix(self.loading.seed, draw.epoch, draw.index)
        try:
            with discreet(()) if self.loading.private else nullcontext():
                sample = self.dataset.read(draw.index, np.random.default_rng(seed))
        except ImageError as error:
            remedy = "or set data.loading.check_images: true, which leaves such files out and counts them"
            if self.loading.check_images:  # it broke after the check
                remedy = "or remove the run's images.json, and all images are checked again"
            if self.loading.private:
                raise refuse(error.rule, f"image {draw.index} of its split: {error.rule}; {remedy}") from None
            raise refuse(error.rule, f"{error}; {remedy}") from error
        size = self.loading.image_size
        image, place = letterbox(sample.image, size)
        others = [None if other is None else letterbox(other, size)[0] for other in sample.others]
        boxes = None if sample.boxes is None else place.boxes(sample.boxes)
        mask = None if sample.mask is None else place.mask(sample.mask, size)
        text = sample.text
        if self.augment is not None:
            if self._augmenter is None:
                self._augmenter = Augmenter(self.augment)
            # Equal seeds and reports: all images of a study are flipped together, or none is.
            others = [None if o is None else self._augmenter(o, None, text, seed).image for o in others]
            image, boxes, text, mask = self._augmenter(image, boxes, text, seed, mask)
        return {
            "image": np.stack([image, *(np.zeros_like(image) if other is None else other for other in others)]),
            "text": text,
            "labels": sample.labels,
            "boxes": boxes,
            "mask": mask,
            "draw": draw,
            "group": self.groups[draw.index],
            "id": str(draw.index) if self.loading.private else self.dataset.ids[draw.index],
            "notes": sample.notes,
        }


class _Collate:
    """Makes a :class:`Batch` of samples, and tokenises their reports, in the worker."""

    def __init__(self, tokenizer: Tokenizer | None, to_max: bool) -> None:
        self.tokenizer, self.to_max = tokenizer, to_max

    def __call__(self, samples: list[dict[str, Any]]) -> Batch:
        texts = [sample["text"] for sample in samples]
        text = None
        if self.tokenizer is not None and all(isinstance(item, str) for item in texts):
            text = self.tokenizer(texts, to_max=self.to_max)
        labels = [sample["labels"] for sample in samples]
        boxes = [sample["boxes"] for sample in samples]
        masks = [sample["mask"] for sample in samples]
        draws = [sample["draw"] for sample in samples]
        notes = [sample["notes"] for sample in samples]
        return Batch(
            image=torch.from_numpy(np.stack([sample["image"] for sample in samples])),
            text=text,
            index=torch.tensor([draw.index for draw in draws]),
            valid=torch.tensor([draw.valid for draw in draws]),
            labels=None if labels[0] is None else torch.from_numpy(np.stack(labels)),
            group=torch.tensor([sample["group"] for sample in samples]),
            boxes=None if boxes[0] is None else [torch.from_numpy(item) for item in boxes],
            ids=[sample["id"] for sample in samples],
            masks=None if masks[0] is None else torch.from_numpy(np.stack(masks)),
            notes=notes if any(notes) else None,
        )
