"""Phantoms as a data set: procedural radiographs with reports, for demos, tests and experiments without patients."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from inspect import signature
from multiprocessing import get_context
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray

from diptych.checks import check_number
from diptych.data.about import years
from diptych.data.datamodule import RadiographDataModule, RadiographDataset, Sample, Split
from diptych.data.loading import Loading
from diptych.errors import DataError
from diptych.reports.tokenizer import Tokenizer
from diptych.version import __version__
from diptych_datamodules.phantoms import FINDINGS, PhantomPlan, plan_phantom
from diptych_datamodules.phantoms.drawing import Drawing, Masks, draw
from diptych_datamodules.phantoms.probes import CHANCE, VERSION, run_probes

__all__ = ["Phantom", "PhantomDataset"]

Section = Literal["both", "findings", "impression", "sampled"]
_ALONE = 64  # up to this number, phantoms are drawn sooner than other processes start


class PhantomDataset(RadiographDataset):
    """Phantoms by their plans. They are drawn when they are read, or taken from a cache that :class:`Phantom` has written."""

    def __init__(
        self,
        plans: Sequence[PhantomPlan],
        size: int,
        section: Section,
        cache: Path | None,
        masks: Masks | None = None,
    ) -> None:
        self.plans, self.size, self.section, self.cache, self.masks = plans, size, section, cache, masks
        self.ids = [f"phantom{plan.seed}-{plan.index:06d}" for plan in plans]
        self.patients = [f"{plan.seed}-{plan.patient}" for plan in plans]
        self.about = {
            "sex": [plan.sex for plan in plans],
            "age": [years(str(plan.age)) for plan in plans],
            "view": [plan.view for plan in plans],
        }
        self._images: NDArray[np.uint8] | None = None
        self._masks: NDArray[np.bool_] | None = None
        self._boxes: list[list[list[float]]] = []

    def _texts(self, plan: PhantomPlan) -> list[str]:
        """The texts that a phantom may be read with. It is one, unless the section is sampled."""
        report = plan.report
        texts = {"both": report.text, "findings": report.findings, "impression": report.impression}
        return list(texts.values()) if self.section == "sampled" else [texts[self.section]]

    def _drawing(self, index: int) -> Drawing:
        if self.cache is None:
            return draw(self.plans[index], self.size, self.masks)
        if self._images is None:  # opened in the worker that reads it
            self._images = np.load(self.cache / "images.npy", mmap_mode="r")
            self._masks = np.load(self.cache / "masks.npy", mmap_mode="r") if self.masks else None
            self._boxes = json.loads((self.cache / "boxes.json").read_text())
        boxes = np.array(self._boxes[index], np.float32).reshape(-1, 5)
        return np.array(self._images[index]), boxes, None if self._masks is None else np.array(self._masks[index])

    def read(self, index: int, rng: np.random.Generator) -> Sample:
        """One phantom. Nothing is random but the choice among its texts."""
        image, boxes, mask = self._drawing(index)
        plan = self.plans[index]
        texts = self._texts(plan)
        return Sample(image, text=texts[rng.integers(len(texts))], labels=plan.truth, boxes=boxes, mask=mask)

    def labels_of(self, index: int) -> NDArray[np.float32] | None:
        """The labels of one phantom, without drawing."""
        return self.plans[index].truth

    def texts(self) -> Iterable[str]:
        """The reports, without drawing."""
        return [text for _, text in self.texts_by_patient()]

    def texts_by_patient(self) -> Iterable[tuple[str | None, str]]:
        """Patient and report of each phantom, without drawing."""
        plans = zip(self.patients, self.plans, strict=True)
        return [(patient, text) for patient, plan in plans for text in self._texts(plan)]


def _draw_each(plans: Sequence[PhantomPlan], make: Callable[[PhantomPlan], Drawing], workers: int) -> Iterator[Drawing]:
    """Drawings in the order of the plans. Processes are started only if there are enough plans to be worth it."""
    if len(plans) <= _ALONE:
        yield from map(make, plans)
        return
    with ProcessPoolExecutor(max(1, workers), mp_context=get_context("spawn")) as pool:
        yield from pool.map(make, plans, chunksize=16)


def write_cache(
    plans: Sequence[PhantomPlan], size: int, folder: Path, workers: int, masks: Masks | None = None
) -> None:
    """Draw all plans to ``images.npy``, ``boxes.json`` and, if asked for, ``masks.npy``.

    The folder appears when it is complete.

    Raises:
        DataError: the folder cannot be written.
    """
    part = folder.with_name(f"{folder.name}.part{os.getpid()}")
    try:
        part.mkdir(parents=True, exist_ok=True)
        create = partial(np.lib.format.open_memmap, mode="w+", shape=(len(plans), size, size))
        images = create(part / "images.npy", dtype=np.uint8)
        stored_masks = create(part / "masks.npy", dtype=np.bool_) if masks else None
        boxes = []
        for i, (image, corners, mask) in enumerate(_draw_each(plans, partial(draw, size=size, masks=masks), workers)):
            images[i] = image
            if stored_masks is not None:
                stored_masks[i] = mask
            boxes.append(corners.tolist())
        images.flush()
        if stored_masks is not None:
            stored_masks.flush()
        (part / "boxes.json").write_text(json.dumps(boxes))
        part.rename(folder)
    except OSError as error:
        if (folder / "boxes.json").is_file():  # another run was faster
            return
        raise DataError(f"data.cache: {folder} cannot be written ({error.strerror}); name a folder that can") from error


class Phantom(RadiographDataModule):
    """Procedural chest radiographs and their reports. Findings have a side, a zone and a severity.

    Args:
        tokenizer: linked from the text tower by the command line.
        train: phantoms to train on.
        val: phantoms to validate on.
        test: phantoms to test on. Every phantom is a patient of its own.
        size: side of the pictures, pixels.
        seed: another seed gives other patients.
        mix: relative frequency of each finding. The standard mix, if not given.
        normal: share of patients without findings.
        max_findings: most findings in one patient.
        filler: share of filler sentences in the reports, 0 to 0.8.
        section: which part of the report is the text. ``sampled`` chooses the findings, the impression or both at random,
            anew at each reading in training. In validation and test it reads both.
        masks: what a mask shows: both ``lungs``, the ``heart``, or all ``findings`` together. No masks, if not given.
        cache: folder that all pictures are drawn into once. If not given, they are drawn anew at every reading.
        loading: how samples are loaded. ``loading.image_size`` is the network's input.
    """

    paper: ClassVar[str] = "diptych's own; no patient is in it"
    holds: ClassVar[frozenset[str]] = frozenset({"image", "text", "labels", "boxes", "masks"})
    findings = FINDINGS
    probe_chances = CHANCE
    probe_version = VERSION

    @classmethod
    def probes(cls, model: Any, options: Mapping[str, Any], pairs: int | None) -> dict[str, float]:
        """Run the probes (``phantoms/probes.py``) with the findings and the section that the model was trained on."""
        section: Any = "both" if options["section"] == "sampled" else options["section"]
        cache = None if options["cache"] is None else Path(options["cache"])
        number = {} if pairs is None else {"pairs": pairs}
        return run_probes(model, mix=options["mix"], section=section, cache=cache, **number)

    def __init__(
        self,
        tokenizer: Tokenizer | None = None,
        *,
        train: int = 2000,
        val: int = 200,
        test: int = 400,
        size: int = 128,
        seed: int = 0,
        mix: dict[str, float] | None = None,
        normal: float = 0.3,
        max_findings: int = 3,
        filler: float = 0.3,
        section: Section = "both",
        masks: Masks | None = None,
        cache: str | None = None,
        loading: Loading = Loading(),  # noqa: B008  # frozen, and the command line shows its fields
    ) -> None:
        super().__init__(tokenizer, loading)
        for name, number in (("train", train), ("val", val), ("test", test)):
            check_number(f"data.{name}", number, least=1, whole=True)
        self.sizes: dict[Split, int] = {"train": train, "val": val, "test": test}
        self.size, self.section, self.masks = size, section, masks
        self.options: dict[str, Any] = {"seed": seed, "mix": mix, "normal": normal}
        self.options |= {"max_findings": max_findings, "filler": filler}
        self.cache = None if cache is None else Path(cache)

    @property
    def protocol(self) -> str:
        """The collection and the text. Of what phantoms are drawn by, it says all that is not standard."""
        standard = signature(Phantom).parameters
        parts = [f"phantom seed {self.options['seed']}", f"{self.size} px", f"section {self.section}"]
        for name in ("mix", "normal", "max_findings", "filler"):
            value = self.options[name]
            if value != standard[name].default:
                if isinstance(value, dict):
                    said = "(" + ", ".join(f"{key} {value[key]:g}" for key in sorted(value)) + ")"
                else:
                    said = f"{value:g}"
                parts.append(f"{name} {said}")
        return ", ".join([*parts, f"masks of {self.masks}"] if self.masks else parts)

    def _indices(self, split: Split) -> range:
        splits = list(self.sizes)
        first = sum(self.sizes[name] for name in splits[: splits.index(split)])
        return range(first, first + self.sizes[split])

    def _plans(self, split: Split) -> list[PhantomPlan]:
        return [plan_phantom(index, **self.options) for index in self._indices(split)]

    def _folder(self, split: Split) -> Path | None:
        """Where a split is cached. A folder holds one version's pictures of some phantoms, whatever their reports say."""
        if self.cache is None:
            return None
        mix = self.options["mix"] and {name: float(share) for name, share in self.options["mix"].items()}
        drawn = {name: value for name, value in self.options.items() if name != "filler"} | {"mix": mix}
        indices = self._indices(split)
        described = json.dumps([__version__, drawn, self.masks, self.size, indices.start, indices.stop])
        return self.cache / f"phantom-{split}-{hashlib.sha256(described.encode()).hexdigest()[:12]}"

    def prepare_data(self) -> None:
        """Draw what the cache lacks, once, on one process."""
        for split, number in self.sizes.items():
            folder = self._folder(split)
            if folder is not None and not folder.is_dir():
                rank_zero_info(f"drawing {number} phantoms to {folder}")
                write_cache(self._plans(split), self.size, folder, os.cpu_count() or 1, self.masks)
        super().prepare_data()

    def build(self) -> dict[Split, RadiographDataset]:
        """Plans of all splits. Nothing is drawn."""
        splits: dict[Split, RadiographDataset] = {}
        for split in self.sizes:
            section: Section = "both" if self.section == "sampled" and split != "train" else self.section
            splits[split] = PhantomDataset(self._plans(split), self.size, section, self._folder(split), self.masks)
        return splits
