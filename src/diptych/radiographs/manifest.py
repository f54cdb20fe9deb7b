"""The format of a packed store, and the checks of all that a damaged or foreign one may say.

A packed folder has everything but the images where the original folder has it. ``packed.json`` names the store in use.
The store is the folder ``packed/KEY``. Each shard is two files there:

- ``NNNNN.bin``: pixels (uint8), one picture after the other.
- ``NNNNN.index``: a line about the shard, and a row for each file.

The key is a hash of everything that decides the bytes, so other options make another store. An index is written after
its pixels. Both take their names once they are whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from diptych.errors import DataError, shown
from diptych.escaping import one_line
from diptych.radiographs.intensity import Intensity

__all__ = ["FORMAT", "PICTURES", "TEXTS", "Manifest", "Row", "ShardIndex"]

FORMAT = 2
"""Version of the files described above."""
PICTURES = 2
"""Version of the pixels. Raise it when the reader or :func:`diptych.radiographs.letterbox.scale_to` gives other pixels."""
TEXTS = Path("packed", "texts.zip")
"""Where a packed folder has the reports that were small files. The zip holds them by their paths."""

Row = tuple[str, int, int, int, int, int, int]
"""Path below the root, offset, height, width, native height, native width, CRC-32. All zero for an unusable file."""

_LONGEST = 2**20
"""Most bytes of ``packed.json``."""
_RANGES = {"size": (1, 2**16), "per_shard": (1, 2**20), "files": (0, 2**31)}
_MOST_SHARDS = 2**20
_PLAIN_PATH = re.compile(r"(?!\.\.?(?:/|$))(?:(?!/\.\.?(?:/|$)|//).)+", re.DOTALL).fullmatch
"""A path without ``.``, ``..`` and empty parts."""


class ShardIndex(NamedTuple):
    """What the index of a shard says."""

    sha256: str
    """Hash of the shard's pixels."""
    rows: list[Row]
    """A row for each file."""
    unusable: dict[int, tuple[str, str]]
    """Rule and message of each file that cannot be used, by its row."""
    notes: dict[int, tuple[str, ...]]
    """What the user should know of other files, by their rows."""


@dataclass(frozen=True)
class Manifest:
    """What decides a store's bytes, except the files themselves."""

    data_set: str
    root: str
    """The original folder, for the command that makes the store."""
    size: int
    """Longest side of a stored picture."""
    per_shard: int
    """Files of each shard. The last may have fewer."""
    files: int
    key: str
    intensity: Intensity = field(default_factory=Intensity)
    format: int = FORMAT
    pictures: int = PICTURES

    @property
    def shards(self) -> int:
        """How many shards there are."""
        return -(-self.files // self.per_shard)

    def folder(self, out: Path) -> Path:
        """The folder of the shards."""
        return out / "packed" / self.key

    def shard(self, out: Path, number: int) -> Path:
        """The file with a shard's pixels. The index lies beside it."""
        return self.folder(out) / f"{number:05d}.bin"

    def command(self, out: Path) -> str:
        """The command that makes the store, or what is missing of it."""
        options = ["--size", str(self.size), "--per-shard", str(self.per_shard)]
        if self.intensity.percentiles is not None:
            options += ["--percentiles", *(f"{share:g}" for share in self.intensity.percentiles)]
        if self.intensity.window != Intensity().window:
            options += ["--window", "none" if self.intensity.window is None else str(self.intensity.window)]
        return shlex.join(["diptych", "prepare", self.data_set, "--root", self.root, "--out", str(out), *options])

    def text(self) -> str:
        """The content of ``packed.json``."""
        return json.dumps(asdict(self), indent=1) + "\n"

    def damage(self, out: Path, number: int, why: str) -> DataError:
        """The error that names a damaged shard and its remedy."""
        return DataError(
            f"{self.folder(out)}: the shard {number:05d} is damaged ({why}); run `{self.command(out)} --verify`, which "
            "makes damaged shards anew"
        )

    def index(self, out: Path, number: int) -> ShardIndex:
        """Read the index of a shard.

        Raises:
            DataError: it is damaged, as far as the index and the size of the pixels tell.
        """
        pixels = self.shard(out, number)
        files = min(self.per_shard, self.files - number * self.per_shard)
        try:
            line, _, body = pixels.with_suffix(".index").read_bytes().partition(b"\n")
            header = json.loads(line)
            if not isinstance(header, dict):
                raise ValueError("its first line is no mapping")
            if header["crc32"] != zlib.crc32(body):
                raise ValueError("wrong checksum")
            if (header["key"], header["shard"], header["files"]) != (self.key, number, files):
                raise ValueError("of another store")
            size = pixels.stat().st_size
            if size != header["bytes"]:
                raise ValueError(f"{size} bytes of pixels, not {header['bytes']}")
            content = json.loads(body)
            rows = _check_rows(content["rows"], files, size, self.size)
            unusable = _check_unusable(content["unusable"], files)
            if not isinstance(header["sha256"], str):
                raise ValueError("its sha256 is no text")
            return ShardIndex(header["sha256"], rows, unusable, _check_notes(content["notes"], files))
        except (OSError, ValueError, KeyError, TypeError, RecursionError, MemoryError) as error:
            raise self.damage(out, number, f"index: {one_line(str(error)) or type(error).__name__}") from error

    def verify(self, out: Path, number: int) -> str:
        """Hash the pixels of a shard. Returns what is wrong with it, or nothing if it is whole."""
        try:
            expected = self.index(out, number).sha256
            with self.shard(out, number).open("rb") as file:
                actual = hashlib.file_digest(file, "sha256").hexdigest()
        except (DataError, OSError) as error:
            return str(error)
        return "" if actual == expected else str(self.damage(out, number, "its pixels have another hash"))

    def missing(self, out: Path) -> list[int]:
        """Numbers of the shards that are not there."""
        folder = self.folder(out)
        names = set(os.listdir(folder)) if folder.is_dir() else set()
        return [n for n in range(self.shards) if not {f"{n:05d}.index", f"{n:05d}.bin"} <= names]

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read ``packed.json``.

        Raises:
            DataError: it is damaged, or of another version.
        """
        try:
            if path.stat().st_size > _LONGEST:
                raise ValueError("too long")
            values = json.loads(path.read_text(encoding="utf-8"))
            versions = (values["format"], values["pictures"])
            manifest = None
            if versions == (FORMAT, PICTURES):
                manifest = cls(**values | {"intensity": Intensity.of(values["intensity"], source=str(path))})
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise _prepare_again(path, f"damaged ({type(error).__name__})") from error
        if manifest is None:
            raise _prepare_again(
                path,
                f"packed in format {shown(versions[0])} with pictures of version {shown(versions[1])}, and this "
                f"diptych reads {FORMAT} and {PICTURES}",
            )
        for name, (least, most) in _RANGES.items():
            if type(value := getattr(manifest, name)) is not int or not least <= value <= most:
                raise _prepare_again(path, f"damaged ('{name}' is {shown(value)}, not {least} to {most})")
        for name in ("data_set", "root", "key"):
            value = getattr(manifest, name)
            if not isinstance(value, str) or len(value) > 4096 or (name == "key" and not value.isalnum()):
                raise _prepare_again(path, f"damaged ('{name}' is {shown(value)})")
        if manifest.shards > _MOST_SHARDS:
            shards = f"{manifest.files:,} files would be {manifest.shards:,} shards, more than {_MOST_SHARDS:,}"
            raise _prepare_again(path, f"damaged ({shards})")
        return manifest


def _prepare_again(path: Path, why: str) -> DataError:
    return DataError(f"{path}: {why}; run `diptych prepare` again")


def _check_rows(rows: Any, files: int, size: int, side: int) -> list[Row]:
    """The rows of an index, if each picture lies in the shard.

    Args:
        rows: the rows as they are stored.
        files: how many rows there must be.
        size: bytes of pixels in the shard.
        side: longest side of a picture.

    Raises:
        ValueError: a row is wrong.
    """
    if not isinstance(rows, list) or len(rows) != files:
        raise ValueError(f"it has not one row for each of {files} files")
    for row in rows:
        if not isinstance(row, list) or len(row) != 7 or not all(type(value) is int for value in row[1:]):
            raise ValueError(f"the row {shown(row)} is not a path and six numbers")
        name, offset, height, width, native_height, native_width, crc = row
        if not isinstance(name, str) or name.startswith("/") or not name or not _PLAIN_PATH(name):
            raise ValueError(f"the path {shown(name)} is not below the data set's folder")
        inside = offset >= 0 and 0 <= height <= side and 0 <= width <= side and offset + height * width <= size
        if not inside or not (0 <= native_height < 2**31 and 0 <= native_width < 2**31 and 0 <= crc < 2**32):
            raise ValueError(f"the picture of {shown(name)} lies outside of the shard")
    return rows


def _check_unusable(stored: Any, files: int) -> dict[int, tuple[str, str]]:
    """Rule and message of the unusable files of an index, by row.

    Raises:
        ValueError: one is wrong.
    """
    if not isinstance(stored, dict):
        raise ValueError("its unusable files are no mapping")
    unusable = {}
    for row, reason in stored.items():
        if not (row.isdecimal() and int(row) < files) or not isinstance(reason, list) or len(reason) != 2:
            raise ValueError(f"the unusable file {shown(row)} is not among its {files}")
        if not all(isinstance(text, str) for text in reason):
            raise ValueError(f"the reason of the unusable file {row} is no text")
        unusable[int(row)] = (reason[0], reason[1])
    return unusable


def _check_notes(stored: Any, files: int) -> dict[int, tuple[str, ...]]:
    """The notes of an index, by row.

    Raises:
        ValueError: one is wrong.
    """
    for row, notes in stored.items() if isinstance(stored, dict) else [("", stored)]:
        texts = isinstance(notes, list) and all(isinstance(note, str) for note in notes)
        if not texts or not (row.isdecimal() and int(row) < files):
            raise ValueError(f"the notes of the file {shown(row)} are no texts, or it is not among its {files}")
    return {int(row): tuple(notes) for row, notes in stored.items()}
