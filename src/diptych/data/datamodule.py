"""From a data set to typed batches: the base of every datamodule.

A data set (:class:`RadiographDataset`) reads samples. The datamodule (:class:`RadiographDataModule`) makes them a network's
input, tokenises in the workers, and looks after splits, sampling and what is left out. CONTRIBUTING.md shows how to add a
data set in one file.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.utils.data import DataLoader

from diptych import distributed
from diptych.data.dataset import RadiographDataset, Sample, Split, Subset
from diptych.data.loading import Loading, _Collate, _NetworkInputs
from diptych.data.privacy import discreet, strings
from diptych.data.sampling import Draw, EvaluationSampler, ResumableLoader, TrainingSampler, mix
from diptych.data.splits import assert_disjoint, shared_patients, split_hash
from diptych.data.unusable import Notes, unusable_images
from diptych.data.workers import Loader, leave_to_parent
from diptych.errors import ConfigError, DataError
from diptych.escaping import csv_rows
from diptych.files import replace_text
from diptych.radiographs.spelling import nearest_folder
from diptych.reports.tokenizer import Tokenizer
from diptych.types import Batch

__all__ = ["DroppedRows", "RadiographDataModule", "RadiographDataset", "Sample", "Split"]

_FEW = 100
"""With fewer validation samples, a difference of a tenth between shares such as recalls is chance."""


@dataclass
class DroppedRows:
    """Rows that are left out by named rules.

    >>> dropped = DroppedRows()
    >>> dropped.add("missing image", "17", "p10/a.png")
    >>> dropped.counts()
    {'missing image': 1}
    """

    rows: list[tuple[str, str, str]] = field(default_factory=list)
    """Rule, id and detail of each."""

    def add(self, rule: str, key: str, detail: str = "") -> None:
        """Leave out one row."""
        self.rows.append((rule, key, detail))

    def counts(self) -> dict[str, int]:
        """The number of rows that each rule left out."""
        return dict(Counter(rule for rule, _, _ in self.rows))

    def refuse(self, source: str) -> None:
        """Raise an error if a row was dropped, as ``strict`` asks for.

        Raises:
            DataError: a row was dropped. The message has the first.
        """
        if self.rows:
            rule, key, detail = self.rows[0]
            counted = ", ".join(f"{n} {rule}" for rule, n in self.counts().items())
            raise DataError(
                f"{source}: {counted}; the first is '{key}' ({rule}{': ' + detail if detail else ''}); "
                "repair the table, or set strict: false to leave such rows out and count them"
            )

    def write(self, path: Path, private: bool = False) -> None:
        """List every row as csv, or only the counts of the rules if ``private``.

        Raises:
            DataError: the file cannot be written.
        """
        rows = [("rule", "rows"), *self.counts().items()] if private else [("rule", "id", "detail"), *self.rows]
        replace_text(path, csv_rows(rows))


class RadiographDataModule(pl.LightningDataModule, ABC):
    """Base of every datamodule. A subclass builds the data sets of the splits, and nothing else.

    Args:
        tokenizer: of the text tower, which the command line passes on. None for images alone.
        loading: how samples are loaded.
    """

    paper: ClassVar[str] = ""
    """Where the data set is described."""
    needs: ClassVar[frozenset[str]] = frozenset()
    """Files it reads below its root."""
    gathers: ClassVar[frozenset[str]] = frozenset()
    """Always empty, since only heads gather. Both catalogues print the same columns."""
    holds: ClassVar[frozenset[str]] = frozenset()
    """Which fields its batches can have: image, text, labels, boxes, masks."""

    findings: tuple[str, ...] = ()
    """Names of the columns of ``Batch.labels``."""
    strict: bool = False
    """Refuse data with rows or images that must be left out."""
    leaky: bool = False
    """The published protocol has patients in several splits. Its name says so."""
    small_texts: ClassVar[str] = ""
    """Pattern of the paths of many small text files (reports). ``diptych prepare`` packs them into one."""
    others: int = 0
    """How many other images of a study its batches have places for."""
    overlaps: ClassVar[str] = ""
    """Which other data sets hold the same images, for the warning of an evaluation."""

    def __init__(self, tokenizer: Tokenizer | None, loading: Loading) -> None:
        super().__init__()
        self.tokenizer, self.loading = tokenizer, loading
        self.datasets: dict[Split, RadiographDataset] = {}
        self.dropped = DroppedRows()
        self.notes = Notes()
        self._prepared: dict[Split, RadiographDataset] = {}

    @classmethod
    def read_tables(cls, root: Path) -> None:
        """Read the tables of a folder, and no image. So ``diptych prepare`` sees early what is missing there.

        Raises:
            DataError: a table is missing or cannot be read.
        """

    probe_chances: ClassVar[Mapping[str, float]] = {}
    """The figures of a model that knows nothing, in each of :meth:`probes`."""
    probe_version: ClassVar[int] = 1
    """It rises with every figure that :meth:`probes` adds or changes. Trained models are then probed again."""

    @classmethod
    def probes(cls, model: Any, options: Mapping[str, Any], pairs: int | None) -> dict[str, float]:
        """Figures on data made for the purpose. ``diptych compare`` puts them beside those of the test.

        A figure named ``NAME/chance`` is what the figure ``NAME`` would be if the model knew nothing.

        Args:
            model: a trained ``TrainedModel``.
            options: constructor arguments of the datamodule that it was trained with.
            pairs: pairs of each probe. None takes the probes' own number.

        Raises:
            ConfigError: the data set has no probes.
        """
        raise ConfigError(f"the recipe's data are {cls.__name__}, which has no probes; use phantom")

    @abstractmethod
    def build(self) -> dict[Split, RadiographDataset]:
        """The data sets of all splits that exist. Rows left out go to ``self.dropped``."""

    @property
    @abstractmethod
    def protocol(self) -> str:
        """The name of the data and of the split. Every result has it."""

    @property
    def split_hash(self) -> str:
        """Hash of which ids are in which split."""
        return split_hash({str(name): dataset.ids for name, dataset in self.datasets.items()})

    def prepare_data(self) -> None:
        """Check the images, if ``check_images`` is set. One process does it before the others go on."""
        if self.loading.check_images and not self.datasets:
            self._prepared = self._build_splits()

    def _build_splits(self) -> dict[Split, RadiographDataset]:
        """The data sets, none of them empty. If an error stops the run, the rows left out are listed first.

        Raises:
            DataError: they cannot be built, or one is empty.
        """
        try:
            built = self._build_usable()
            for name, dataset in built.items():
                if len(dataset) == 0:
                    counted = ", ".join(f"{n} {rule}" for rule, n in self.dropped.counts().items()) or "nothing"
                    raise DataError(
                        f"{self.protocol}: the split '{name}' is empty; left out: {counted}{self._first_missing()}"
                    )
        except DataError:
            if self.trainer is not None and self.trainer.is_global_zero and self.dropped.rows:
                self.dropped.write(Path(self.trainer.default_root_dir) / "dropped.csv", self.loading.private)
            raise
        return built

    def _first_missing(self) -> str:
        """For a message: where the first missing image was looked for, and what is there instead."""
        for rule, _, place in () if self.loading.private else self.dropped.rows:
            if rule == "missing image" and "/" in place:
                return f"; the first was looked for at {place}, but {nearest_folder(place)}; set data.root to match"
        return ""

    def _discreet(self) -> AbstractContextManager[None]:
        """A context in which a private run tells no more of the data than its configuration does."""
        if not self.loading.private:
            return nullcontext()
        arguments = [getattr(self, name, None) for name in inspect.signature(type(self)).parameters]
        return discreet(strings([*arguments, self.findings, self.protocol, ["train", "val", "test"]]))

    def _build_usable(self) -> dict[Split, RadiographDataset]:
        """The data sets without images that cannot be used. They are the same on every process."""
        with self._discreet():
            built = self.build()
            for dataset in built.values():
                dataset.intensity = self.loading.intensity
            return self._without_unusable(built)

    def _without_unusable(self, built: dict[Split, RadiographDataset]) -> dict[Split, RadiographDataset]:
        if not self.loading.check_images:
            return built
        folder = None if self.trainer is None else Path(self.trainer.default_root_dir)
        private = self.loading.private
        bad, noted = unusable_images(built, self.loading.workers, self.loading.start_method, folder, private)
        for split, index, rule, detail in bad:
            self.dropped.add(rule, built[split].ids[index], detail)
        if self.strict:
            self.dropped.refuse(self.protocol)
        for split, index, notes in noted:
            for note in notes:
                self.notes.add(note, built[split].ids[index])
        left = {split: {index for name, index, _, _ in bad if name == split} for split in built}
        return {split: Subset(dataset, left[split]) if left[split] else dataset for split, dataset in built.items()}

    def setup(self, stage: str) -> None:
        """Build every split once, refuse shared patients, and let a scratch tower learn its vocabulary."""
        if not self.datasets:
            built = self._prepared or self._build_splits()
            patients = {str(name): dataset.patients for name, dataset in built.items()}
            if self.leaky:
                for one, other, both in shared_patients(patients):
                    rank_zero_warn(
                        f"{self.protocol}: {len(both)} patients (or images) are in both '{one}' and '{other}', as published"
                    )
            else:
                with self._discreet():
                    assert_disjoint(patients, source=self.protocol)
            self.datasets = built
            sizes = ", ".join(f"{len(dataset)} {name}" for name, dataset in built.items())
            rank_zero_info(f"{self.protocol}: {sizes}; split {self.split_hash}")
            for rule, number in self.dropped.counts().items():
                rank_zero_info(f"{self.protocol}: left out {number} ({rule})")
            self._tell()
        if stage in {"fit", "validate"} and 0 < (number := len(self.datasets.get("val", ()))) < _FEW:
            rank_zero_warn(
                f"samples of val: {number}; a share of one half among them is known to +-{0.98 / number**0.5:.2f} (95 %), so "
                f"best.ckpt and early stopping follow chance; {_FEW} give +-0.10"
            )
        if stage in {"validate", "test"} and self.overlaps:
            rank_zero_warn(f"{self.protocol}: {self.overlaps}")
        if stage == "fit" and self.tokenizer is not None and self.tokenizer.learnable:
            reports = list(self._split("train").texts_by_patient())
            self.tokenizer.learn([text for _, text in reports], [patient for patient, _ in reports])

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Count the notes on a batch's images. The first image with a note is reported at once."""
        counted = self.loading.private and self.loading.check_images  # the check has, by ids that batches do not have
        if isinstance(batch, Batch) and batch.notes is not None and not counted:
            for key, notes in zip(batch.ids, batch.notes, strict=True):
                for note in notes:
                    if self.notes.add(note, key):
                        rank_zero_warn(
                            f"{self.protocol}: an image: {note}; such images are counted, and told at the end"
                        )
        return batch

    def teardown(self, stage: str) -> None:
        """Report how many images have each note."""
        self._tell()

    def _tell(self) -> None:
        for note, number in self.notes.counts().items():
            rank_zero_info(f"{self.protocol}: noted {number} image(s): {note}")

    def _split(self, name: Split) -> RadiographDataset:
        if name not in self.datasets:
            have = ", ".join(self.datasets) or "none"
            out = ", ".join(f"{n} {rule}" for rule, n in self.dropped.counts().items())
            left_out = f"; left out: {out}{self._first_missing()}" if out else ""
            raise DataError(
                f"{self.protocol}: there is no '{name}' split (there is: {have}{left_out}); add one to the table"
            )
        return self.datasets[name]

    def _processes(self) -> tuple[int, int]:
        if self.trainer is not None:
            return self.trainer.global_rank, self.trainer.world_size
        return distributed.rank(), distributed.world_size()

    def _options(self, training: bool) -> dict[str, Any]:
        workers = self.loading.workers
        if training and workers and self.loading.start_method == "fork" and self.loading.augment is not None:
            import_module("albumentations")  # here, not in each fork, where W&B's watch over imports fails
        return {
            # Under DDP every process must give the gather one shape.
            "collate_fn": _Collate(self.tokenizer, to_max=training and self._processes()[1] > 1),
            "num_workers": workers,
            "worker_init_fn": leave_to_parent,
            "pin_memory": torch.cuda.is_available(),
            "persistent_workers": training and workers > 0,
            "multiprocessing_context": self.loading.start_method if workers else None,
        }

    def steps_per_epoch(self) -> int:
        """How many batches each process reads in an epoch of training."""
        return len(self._split("train")) // (self.loading.batch_size * self._processes()[1])

    def state_dict(self) -> dict[str, Any]:
        """What must be the same in a run that goes on from a checkpoint."""
        return {
            "samples_a_step": self.loading.batch_size * self._processes()[1],
            "samples": len(self._split("train")),
            "seed": self.loading.seed,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse to go on with other steps. The number of processes may change.

        Raises:
            ConfigError: batch, data or seed are not those of the checkpoint's run.
        """
        if self.trainer is None or self.trainer.state.fn != "fit":
            return
        size, processes = self.loading.batch_size, self._processes()[1]
        wanted, steps = state_dict["samples_a_step"], "a run goes on with the steps that it began with"
        if wanted != size * processes:
            remedy = (
                f"set it to {wanted // processes}"
                if wanted % processes == 0
                else f"use a number of processes that divides {wanted}"
            )
            raise ConfigError(
                f"the checkpoint is of a run with {wanted} samples a step, and this one has {size * processes} "
                f"(data.loading.batch_size {size}, {processes} process(es)): {steps}; {remedy}, or begin a new run"
            )
        for name, here in (("samples", len(self._split("train"))), ("seed", self.loading.seed)):
            if state_dict[name] != here:
                what = "training samples" if name == "samples" else "as data.loading.seed"
                raise ConfigError(
                    f"the checkpoint is of a run with {state_dict[name]} {what}, and this one has {here}: {steps}; "
                    "give it what it had, or begin a new run"
                )

    def train_dataloader(self) -> ResumableLoader:
        """Training samples, shuffled and augmented. The loader can resume exactly, and leaves out the incomplete last batch.

        Without a trainer the next epoch follows each full pass, and ``loader.set_epoch(epoch)`` chooses one.
        """
        rank, processes = self._processes()
        dataset = self._split("train")
        sampler = TrainingSampler(
            len(dataset), self.loading.batch_size, seed=self.loading.seed, rank=rank, processes=processes
        )
        loaded = _NetworkInputs(dataset, self.loading, self.loading.augment)
        loader = ResumableLoader(loaded, batch_sampler=sampler, **self._options(training=True))
        loader.advances = self.trainer is None
        return loader

    def evaluation_loader(self, split: Split) -> DataLoader[Any]:
        """Every sample of a split, in order and not augmented. Each is read once over all processes."""
        rank, processes = self._processes()
        dataset = self._split(split)
        sampler = EvaluationSampler(len(dataset), self.loading.eval_batch_size, rank=rank, processes=processes)
        loaded = _NetworkInputs(dataset, self.loading, None)
        return Loader(loaded, batch_sampler=sampler, **self._options(training=False))

    def val_dataloader(self) -> DataLoader[Any]:
        """Every validation sample once, in order and not augmented."""
        return self.evaluation_loader("val")

    def test_dataloader(self) -> DataLoader[Any]:
        """Every test sample once, in order and not augmented."""
        return self.evaluation_loader("test")

    def batch(self, split: Split, indices: Sequence[int]) -> Batch:
        """Samples of a split as a network's input, not augmented. This process reads them."""
        loaded = _NetworkInputs(self._split(split), self.loading, None)
        return _Collate(self.tokenizer, to_max=False)([loaded[Draw(index, 0)] for index in indices])

    def native(self, split: Split, index: int) -> Sample:
        """One sample at its own resolution, for pictures."""
        return self._split(split).read(index, np.random.default_rng(mix(self.loading.seed, 0, index)))
