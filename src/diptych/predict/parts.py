"""A prediction in parts: whatever ends a process, the next one goes on, and the file is the same bit for bit.

A part is so many samples of one split, computed in batches whose members never change. It is one file, whole or not there.
Processes take every n-th part and exchange nothing. Whoever finds all parts there makes the one file of them.
"""

from __future__ import annotations

import fcntl
import glob
import hashlib
import json
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diptych.data.datamodule import DroppedRows, RadiographDataModule
from diptych.data.dataset import Split
from diptych.errors import ConfigError, DataError
from diptych.files import replace_text, replacing
from diptych.predict.reading import Skipped, batches_of
from diptych.predict.values import Values, joined
from diptych.predict.writers import Rows, write

__all__ = ["Part", "Prediction", "parts_of", "rows_hash"]


@dataclass(frozen=True)
class Part:
    """One piece of the work."""

    number: int
    split: Split
    batches: tuple[range, ...]
    """Numbers of samples in the split, batch by batch."""


def parts_of(sizes: Mapping[Split, int], batch_size: int, batches: int) -> list[Part]:
    """The parts of splits of these sizes, in order. A part has so many batches, and lies in one split.

    >>> [(part.number, part.split, part.batches) for part in parts_of({"val": 5, "test": 1}, 2, 2)]
    [(0, 'val', (range(0, 2), range(2, 4))), (1, 'val', (range(4, 5),)), (2, 'test', (range(0, 1),))]
    """
    parts: list[Part] = []
    for split, size in sizes.items():
        every = [range(start, min(start + batch_size, size)) for start in range(0, size, batch_size)]
        for start in range(0, len(every), batches):
            parts.append(Part(len(parts), split, tuple(every[start : start + batches])))
    return parts


def rows_hash(datamodule: RadiographDataModule, splits: Sequence[Split]) -> str:
    """Sixteen hexadecimal digits that change with any id, split, or their order."""
    digest = hashlib.sha256()
    for split in splits:
        digest.update(f"[{split}]\n".encode())
        for key in datamodule.datasets[split].ids:
            digest.update(key.encode("utf-8", "surrogateescape") + b"\n")
    return digest.hexdigest()[:16]


class Prediction:
    """The work of one output file, shared by any number of processes.

    Args:
        out: the file.
        description: all that decides its content, in the types of JSON.
        parts: the pieces.
        values: what is computed of each image.
        datamodule: what is read. It is set up.
        say: takes lines of progress.

    Raises:
        ConfigError: the file, or parts of it, are of something else.
    """

    def __init__(
        self,
        out: Path,
        description: Mapping[str, Any],
        parts: Sequence[Part],
        values: Values,
        datamodule: RadiographDataModule,
        say: Callable[[str], None],
    ) -> None:
        self.out, self.parts, self.values, self.datamodule, self.say = out, parts, values, datamodule, say
        self.description = json.loads(json.dumps(description))
        self.folder, self.record = Path(f"{out}.parts"), Path(f"{out}.json")
        self._plan = self.folder / "plan.json"
        self._lock = Path(f"{out}.lock")

    @property
    def done(self) -> bool:
        """Whether the file is whole, and of this description.

        Raises:
            ConfigError: it is of another, or of unknown origin.
        """
        if self.record.is_file():
            before = _read(self.record).get("made_with")
            if before == self.description and self.out.is_file():
                return True
            if self.out.is_file():
                raise ConfigError(f"{self.out} is whole, and of another prediction ({self._changed(before)}); {_OTHER}")
        elif self.out.exists() and not self._plan.is_file():
            raise ConfigError(f"{self.out} exists, and no prediction is known to have made it; {_OTHER}")
        return False

    def _changed(self, before: Any) -> str:
        before = before if isinstance(before, dict) else {}
        return "other: " + ", ".join(key for key, value in self.description.items() if before.get(key) != value)

    def begin(self) -> bool:
        """Make the folder of the parts, or go on with the one that is there. False if the file is whole by now.

        One process at a time does so. Parts without a plan are of nothing known, and are removed.

        Raises:
            ConfigError: it has parts of another prediction.
            DataError: the disk has no locks.
        """
        self.out.parent.mkdir(parents=True, exist_ok=True)
        with self._locked():
            if self.done:
                return False
            self._make_plan()
            return True

    def _make_plan(self) -> None:
        if self._plan.is_file():
            before = _read(self._plan)
            if before != self.description:
                raise ConfigError(f"{self.folder} has parts of another prediction ({self._changed(before)}); {_OTHER}")
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        replace_text(self._plan, json.dumps(self.description, indent=1) + "\n")

    def _file(self, part: Part) -> Path:
        return self.folder / f"{part.number:06d}.npz"

    @property
    def missing(self) -> list[Part]:
        """The parts that are not there."""
        return [part for part in self.parts if not self._file(part).is_file()]

    def run(self, share: tuple[int, int] = (0, 1)) -> None:
        """Compute the missing parts of a share.

        Args:
            share: number ``i`` of this process, from 0 on, and number ``n`` of all.
        """
        todo = [part for part in self.missing if part.number % share[1] == share[0]]
        begin, images = time.monotonic(), 0
        for done, (part, read) in enumerate(self._computed(todo), start=1):
            images += read
            rate = images / (time.monotonic() - begin)
            left = (time.monotonic() - begin) / done * (len(todo) - done) / 60
            self.say(f"part {part.number:06d}: {done} of {len(todo)}; {rate:.0f} images/s, {left:.0f} min left")

    def _computed(self, todo: Sequence[Part]) -> Iterator[tuple[Part, int]]:
        for split in dict.fromkeys(part.split for part in todo):
            mine = [part for part in todo if part.split == split]
            batches = batches_of(self.datamodule, split, [batch for part in mine for batch in part.batches])
            for part in mine:
                read = [next(batches) for _ in part.batches]
                yield part, self._write(part, read)

    def _write(self, part: Part, read: Sequence[tuple[Any, list[Skipped]]]) -> int:
        ids: list[str] = []
        found: list[dict[str, Any]] = []
        skipped: list[Skipped] = []
        for batch, unusable in read:
            skipped += unusable
            if batch is not None:
                self.datamodule.on_before_batch_transfer(batch, 0)  # it tells notes on images
                ids += batch.ids
                found.append(self.values.of(batch.image))
        texts = np.frombuffer(json.dumps({"ids": ids, "skipped": skipped}).encode(), np.uint8)
        arrays: dict[str, Any] = {"texts": texts, **joined(found)}
        with replacing(self._file(part), "make room, and give the same command again") as file:
            np.savez(file, **arrays)
        return len(ids) + len(skipped)

    def _read_part(self, part: Part) -> tuple[Rows, list[Skipped]]:
        file = self._file(part)
        try:
            with np.load(file, allow_pickle=False) as content:
                texts = json.loads(content["texts"].tobytes())
                values = {name: content[name] for name in content.files if name != "texts"}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(
                f"{file}: damaged ({type(error).__name__}); remove it, and give the same command again"
            ) from error
        ids = texts["ids"]
        return Rows(ids, [part.split] * len(ids), values), [Skipped(*one) for one in texts["skipped"]]

    def _rows(self) -> Iterator[Rows]:
        for part in self.parts:
            rows, _ = self._read_part(part)
            if rows.ids:
                yield rows

    def finish(self) -> bool:
        """Make the one file, if all parts are there. One process does it. The result says whether the file is whole.

        Raises:
            DataError: no image could be used.
        """
        with self._locked():
            if self.done:
                shutil.rmtree(self.folder, ignore_errors=True)  # of a process that came late
                self._lock.unlink(missing_ok=True)
                return True
            for left in self.out.parent.glob(f"{glob.escape(self.out.name)}.*.part"):  # by a process that was killed
                left.unlink()
            if missing := self.missing:
                self.say(f"{self.out}: {len(missing)} parts of other processes are missing")
                return False
            dropped = DroppedRows(list(self.datamodule.dropped.rows))
            for part in self.parts:
                for skipped in self._read_part(part)[1]:
                    dropped.add(*skipped)
            listed = Path(f"{self.out}.dropped.csv")
            listed.unlink(missing_ok=True)
            if dropped.rows:
                dropped.write(listed, self.datamodule.loading.private)
            counts = dropped.counts()
            if not any(True for _ in self._rows()):
                raise DataError(f"{self.out}: no image could be used; {listed} says why")
            number = write(self.out, self.values.columns, self._rows)
            record = {"images": number, "left_out": counts, **self.values.about, "made_with": self.description}
            replace_text(self.record, json.dumps(record, indent=1) + "\n")
            shutil.rmtree(self.folder)
        self._lock.unlink(missing_ok=True)
        self.say(f"written: {self.out}, {number} images")
        if counts:
            self.say(f"left out: {', '.join(f'{n} {rule}' for rule, n in counts.items())}; listed in {listed}")
        return True

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._lock.open("w") as lock:
            try:
                fcntl.lockf(lock, fcntl.LOCK_EX)  # it ends with the process
            except OSError as error:
                raise DataError(
                    f"{self._lock}: cannot be locked ({error.strerror}); give an --out on a disk with locks, and move "
                    f"{self.folder} there if parts are done"
                ) from error
            yield

    def discard(self) -> None:
        """Remove the file, and all that belongs to it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        for end in ("", ".json", ".ids.csv", ".dropped.csv", ".lock"):
            Path(f"{self.out}{end}").unlink(missing_ok=True)


_OTHER = "give another --out, or --overwrite"


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict):
        raise ConfigError(f"{file}: cannot be read; remove it, or give another --out")
    return content
