"""The images of a data set: files below a folder, or packed small by ``diptych prepare``.

A packed folder has everything but the images where the original has it, and ``packed.json``, which names the store in use:
``packed/KEY`` with ``NNNNN.bin``, the pixels of one shard (uint8, one picture after the other), and ``NNNNN.index``, what is
in it. The key is a hash of everything that decides the bytes, so other options make another store. An index is
written after its pixels, and both are moved to their names when they are whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import zlib
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from diptych.errors import ConfigError, DataError, shown
from diptych.escaping import one_line
from diptych.radiographs.intensity import Intensity
from diptych.radiographs.read import open_radiograph
from diptych.radiographs.spelling import Spelling

__all__ = [
    "IMAGES",
    "TEXTS",
    "Files",
    "Folder",
    "Manifest",
    "Packed",
    "Picture",
    "Store",
    "is_image",
    "open_images",
    "read_image",
]

FORMAT = 2
"""Of the files described above."""
PICTURES = 2
"""To be raised when the reader or :func:`diptych.radiographs.letterbox.scaled` gives other pixels than before."""
IMAGES = frozenset({".png", ".jpg", ".jpeg", ".dcm", ".dicom", ".tif", ".tiff", ".webp", ".bmp"})
"""Suffixes of images, in lower case. Without one of these, the content decides."""
TABLES = tuple(
    f".{kind}{packed}"
    for kind in ("csv", "tsv", "txt", "json", "jsonl", "xml", "parquet")
    for packed in ("", ".gz", ".zip")
)
"""Ends of names of tables and reports, which are never images."""
TEXTS = Path("packed", "texts.zip")
"""Reports that were small files, by their paths, below a packed folder."""
_OPEN = 64  # shards that a process keeps open


def is_image(path: Path | str) -> bool:
    """Whether a file counts as an image, for the reader and for ``prepare`` alike: by its suffix, else by its content."""
    name = os.path.basename(path)
    if os.path.splitext(name)[1].lower() in IMAGES:
        return True
    if name.lower().endswith(TABLES) or name == "DICOMDIR":
        return False
    from diptych.radiographs.pictures import READ, kind_of

    try:
        with open(path, "rb") as file:
            return kind_of(file.read(1024)) in READ
    except OSError:
        return False  # whoever needs it finds it missing


def stem(name: str) -> str:
    """A file's name without the suffix of an image: ``1.2.840.5`` has none."""
    head, suffix = os.path.splitext(name)
    return head if suffix.lower() in IMAGES else name


Row = tuple[str, int, int, int, int, int, int]
"""Path below the root, offset, height, width, native height, native width, CRC-32; all zero of an unusable file."""


_LONGEST = 2**20
"""Bytes of ``packed.json``."""
_RANGES = {"size": (1, 2**16), "per_shard": (1, 2**20), "files": (0, 2**31)}
_MOST_SHARDS = 2**20
_PLAIN_PATH = re.compile(r"(?!\.\.?(?:/|$))(?:(?!/\.\.?(?:/|$)|//).)+", re.DOTALL).fullmatch
"""Without ``.``, ``..`` and empty parts."""


@dataclass(frozen=True)
class Manifest:
    """What decides a store's bytes, but for the files themselves."""

    data_set: str
    root: str
    """The original folder, for the command that makes the store."""
    size: int
    """Longest side of a stored picture."""
    per_shard: int
    """Files of each shard but the last."""
    files: int
    key: str
    intensity: Intensity = field(default_factory=Intensity)
    format: int = FORMAT
    pictures: int = PICTURES

    @property
    def shards(self) -> int:
        """How many there are."""
        return -(-self.files // self.per_shard)

    def folder(self, out: Path) -> Path:
        """Where the shards are."""
        return out / "packed" / self.key

    def command(self, out: Path) -> str:
        """What makes the store, or what is missing of it."""
        options = ["--size", str(self.size), "--per-shard", str(self.per_shard)]
        if self.intensity.percentiles is not None:
            options += ["--percentiles", *(f"{share:g}" for share in self.intensity.percentiles)]
        if self.intensity.window != Intensity().window:
            options += ["--window", "none" if self.intensity.window is None else str(self.intensity.window)]
        return shlex.join(["diptych", "prepare", self.data_set, "--root", self.root, "--out", str(out), *options])

    def text(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self), indent=1) + "\n"

    def damaged(self, out: Path, number: int, why: str) -> DataError:
        """The error that names a shard and its remedy."""
        return DataError(
            f"{self.folder(out)}: the shard {number:05d} is damaged ({why}); run `{self.command(out)} --verify`, which "
            "makes damaged shards anew"
        )

    def index(
        self, out: Path, number: int
    ) -> tuple[str, list[Row], dict[int, tuple[str, str]], dict[int, tuple[str, ...]]]:
        """What a shard says of itself.

        Returns:
            Hash of its pixels, a row for each file, rule and message of the unusable ones, what is told of the others.

        Raises:
            DataError: it is damaged, as far as its index and the size of its pixels tell.
        """
        path = self.folder(out) / f"{number:05d}.index"
        wanted = min(self.per_shard, self.files - number * self.per_shard)
        try:
            line, _, body = path.read_bytes().partition(b"\n")
            header = json.loads(line)
            if not isinstance(header, dict):
                raise ValueError("its first line is no mapping")
            if header["crc32"] != zlib.crc32(body):
                raise ValueError("wrong checksum")
            if (header["key"], header["shard"], header["files"]) != (self.key, number, wanted):
                raise ValueError("of another store")
            size = path.with_suffix(".bin").stat().st_size
            if size != header["bytes"]:
                raise ValueError(f"{size} bytes of pixels, not {header['bytes']}")
            known = json.loads(body)
            rows, unusable = _checked(known, wanted, size, self.size)
            if not isinstance(header["sha256"], str):
                raise ValueError("its sha256 is no text")
            return header["sha256"], rows, unusable, _notes(known["notes"], wanted)
        except (OSError, ValueError, KeyError, TypeError, RecursionError, MemoryError) as error:
            raise self.damaged(out, number, f"index: {one_line(str(error)) or type(error).__name__}") from error

    def verify(self, out: Path, number: int) -> str:
        """What is wrong with a shard, its pixels hashed; empty if it is whole."""
        try:
            said = self.index(out, number)[0]
            with (self.folder(out) / f"{number:05d}.bin").open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except (DataError, OSError) as error:
            return str(error)
        return "" if found == said else str(self.damaged(out, number, "its pixels have another hash"))

    def missing(self, out: Path) -> list[int]:
        """Shards that are not there."""
        folder = self.folder(out)
        there = set(os.listdir(folder)) if folder.is_dir() else set()
        return [n for n in range(self.shards) if not {f"{n:05d}.index", f"{n:05d}.bin"} <= there]

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """From JSON.

        Raises:
            DataError: it is damaged, or of another version.
        """
        try:
            if path.stat().st_size > _LONGEST:
                raise ValueError("too long")
            known = json.loads(path.read_text(encoding="utf-8"))
            versions = (known["format"], known["pictures"])
            found = None
            if versions == (FORMAT, PICTURES):
                found = cls(**known | {"intensity": Intensity.of(known["intensity"], source=str(path))})
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(f"{path}: damaged ({type(error).__name__}); run `diptych prepare` again") from error
        if found is None:
            raise DataError(
                f"{path}: packed in format {shown(versions[0])} with pictures of version {shown(versions[1])}, and this "
                f"diptych reads {FORMAT} and {PICTURES}; run `diptych prepare` again"
            )
        for name, (least, most) in _RANGES.items():
            if type(value := getattr(found, name)) is not int or not least <= value <= most:
                raise DataError(
                    f"{path}: damaged ('{name}' is {shown(value)}, not {least} to {most}); run `diptych prepare` again"
                )
        for name in ("data_set", "root", "key"):
            value = getattr(found, name)
            if not isinstance(value, str) or len(value) > 4096 or (name == "key" and not value.isalnum()):
                raise DataError(f"{path}: damaged ('{name}' is {shown(value)}); run `diptych prepare` again")
        if found.shards > _MOST_SHARDS:
            raise DataError(
                f"{path}: damaged ({found.files:,} files would be {found.shards:,} shards, more than {_MOST_SHARDS:,}); run "
                "`diptych prepare` again"
            )
        return found


def _checked(known: Any, files: int, size: int, side: int) -> tuple[list[Row], dict[int, tuple[str, str]]]:
    """Rows and unusable files of an index, if each row lies in the shard.

    Args:
        known: the index.
        files: how many rows there must be.
        size: bytes of pixels.
        side: longest side of a picture.

    Raises:
        ValueError: something in it is wrong.
    """
    rows, reasons = known["rows"], known["unusable"]
    if not isinstance(rows, list) or len(rows) != files or not isinstance(reasons, dict):
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
    unusable = {}
    for at, reason in reasons.items():
        if not (at.isdecimal() and int(at) < files) or not isinstance(reason, list) or len(reason) != 2:
            raise ValueError(f"the unusable file {shown(at)} is not among its {files}")
        if not all(isinstance(text, str) for text in reason):
            raise ValueError(f"the reason of the unusable file {at} is no text")
        unusable[int(at)] = (reason[0], reason[1])
    return rows, unusable


def _notes(known: Any, files: int) -> dict[int, tuple[str, ...]]:
    """What is told of files, by their place.

    Raises:
        ValueError: something in it is wrong.
    """
    for at, told in known.items() if isinstance(known, dict) else [("", known)]:
        texts = isinstance(told, list) and all(isinstance(note, str) for note in told)
        if not texts or not (at.isdecimal() and int(at) < files):
            raise ValueError(f"the notes of the file {shown(at)} are no texts, or it is not among its {files}")
    return {int(at): tuple(told) for at, told in known.items()}


class Packed(NamedTuple):
    """A packed image."""

    store: Store
    at: int

    def __str__(self) -> str:
        return str(self.store.root / self.store.name(self.at))

    @property
    def unusable(self) -> tuple[str, str] | None:
        """Rule and message of a file that could not be used."""
        return self.store.unusable.get(self.at)


class Files(ABC):
    """Where a data set's images are looked for."""

    texts: Path | None = None
    """The zip of what were small text files, by their paths below the folder; None where they are files."""

    @abstractmethod
    def find(self, name: Path | str) -> Path | Packed | None:
        """The image of this path."""

    @abstractmethod
    def spelled(self, folder: Path, name: str) -> Sequence[Path | Packed]:
        """The images that a path below a folder may mean, if it is not quite that of a file (:class:`Spelling`)."""

    @abstractmethod
    def below(self, folder: Path) -> Iterator[tuple[str, Path | Packed]]:
        """Name and image of all below a folder, in the order of their paths."""

    @abstractmethod
    def folders(self, folder: Path) -> list[str]:
        """Names of the folders directly in a folder, sorted."""


def _listed(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except (OSError, ValueError):  # no folder, not to be read, or no name that a folder can have
        return []


class Folder(Files):
    """Files as they are."""

    def __init__(self) -> None:
        self._spelling = Spelling(_listed, IMAGES)

    def find(self, name: Path | str) -> Path | None:
        """See :meth:`Files.find`."""
        return Path(name) if os.path.isfile(name) else None  # a Path first would double the time of large tables

    def spelled(self, folder: Path, name: str) -> list[Path]:
        """See :meth:`Files.spelled`."""
        base = os.path.abspath(folder)
        whole = os.path.normpath(os.path.join(base, name.replace("\\", "/")))
        inside = whole.startswith(f"{base}/")
        found = self._spelling.matches(base if inside else "/", os.path.relpath(whole, base if inside else "/"))
        return [Path(path) for path in found if os.path.isfile(path)]

    def below(self, folder: Path) -> Iterator[tuple[str, Path]]:
        """See :meth:`Files.below`."""
        for here, _, names in os.walk(folder):
            yield from ((name, Path(here, name)) for name in names if is_image(os.path.join(here, name)))

    def folders(self, folder: Path) -> list[str]:
        """See :meth:`Files.folders`."""
        return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir()) if folder.is_dir() else []


class Store(Files):
    """A packed store; a copy in another process holds offsets alone, no names.

    Raises:
        DataError: it is damaged, of another version, or shards are missing; the message has the command that makes them.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.manifest = manifest = Manifest.read(root / "packed.json")
        self.folder = manifest.folder(root)
        if missing := manifest.missing(root):
            some = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
            raise DataError(
                f"{root}: {len(missing)} of {manifest.shards} shards are missing ({some}); run "
                f"`{manifest.command(root)}`, which makes those alone"
            )
        tables = []
        self.unusable: dict[int, tuple[str, str]] = {}
        self.notes: dict[int, tuple[str, ...]] = {}
        known: dict[tuple[str, ...], tuple[str, ...]] = {}  # one object for all images of the same notes
        self._names: list[str] | None = []
        for number in range(manifest.shards):
            _, files, unusable, notes = manifest.index(root, number)
            first = len(self._names)
            self._names += [row[0] for row in files]
            tables.append(np.array([row[1:] for row in files], np.int64).reshape(-1, 6))
            self.unusable |= {first + at: reason for at, reason in unusable.items()}
            self.notes |= {first + at: known.setdefault(told, told) for at, told in notes.items()}
        self.table = np.concatenate(tables)  # offset, height, width, native height, native width, CRC-32
        self._open: dict[int, int] = {}
        self._spelling: Spelling | None = None
        self.texts = root / TEXTS if (root / TEXTS).is_file() else None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_names": None, "_open": {}, "_spelling": None}

    def __del__(self) -> None:
        for file in self.__dict__.get("_open", {}).values():
            os.close(file)

    def __len__(self) -> int:
        return len(self.table)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Store) and self.folder == other.folder

    def _damaged(self, number: int, why: str) -> DataError:
        return self.manifest.damaged(self.root, number, why)

    def name(self, index: int) -> str:
        """The path of an image in the original folder, below its root."""
        if self._names is not None:
            return self._names[index]
        number, row = divmod(index, self.manifest.per_shard)
        return self.manifest.index(self.root, number)[1][row][0]

    @property
    def names(self) -> list[str]:
        """All of them, in the order of their paths; of the store that was opened, not of a copy in a worker."""
        assert self._names is not None
        return self._names

    def _relative(self, path: Path | str) -> str:
        """A path as the names are; empty for the root itself."""
        if path == self.root:
            return ""
        text, prefix = str(path), f"{self.root}/"
        inside = text[len(prefix) :] if text.startswith(prefix) else os.path.relpath(text, self.root)
        return os.path.normpath(inside) if ".." in inside else inside

    def find(self, name: Path | str) -> Packed | None:
        """See :meth:`Files.find`."""
        inside = self._relative(name)
        at = bisect_left(self.names, inside)
        return Packed(self, at) if at < len(self.names) and self.names[at] == inside else None

    def spelled(self, folder: Path, name: str) -> list[Packed]:
        """See :meth:`Files.spelled`."""
        if self._spelling is None:
            tree: dict[str, dict[str, None]] = {}
            for path in self.names:
                while path:
                    above, _, last = path.rpartition("/")
                    if last in tree.setdefault(above, {}):
                        break
                    tree[above][last] = None
                    path = above
            self._spelling = Spelling(lambda here: tree.get(here, ()), IMAGES)
        inside = self._relative(os.path.normpath(os.path.join(folder, name.replace("\\", "/"))))
        found = [self.find(self.root / path) for path in self._spelling.matches("", inside)]
        return [image for image in found if image is not None]

    def below(self, folder: Path) -> Iterator[tuple[str, Packed]]:
        """See :meth:`Files.below`."""
        inside = self._relative(folder)
        prefix = f"{inside}/" if inside else ""
        at = bisect_left(self.names, prefix)
        while at < len(self.names) and self.names[at].startswith(prefix):
            yield self.names[at].rpartition("/")[2], Packed(self, at)
            at += 1

    def folders(self, folder: Path) -> list[str]:
        """See :meth:`Files.folders`."""
        inside = self._relative(folder)
        prefix, found = f"{inside}/" if inside else "", []
        at = bisect_left(self.names, prefix)
        while at < len(self.names) and self.names[at].startswith(prefix):
            head, slash, _ = self.names[at][len(prefix) :].partition("/")
            if slash:
                found.append(head)
            at = bisect_left(self.names, f"{prefix}{head}0", at) if slash else at + 1  # '0' follows '/'
        return found

    def read(self, index: int) -> tuple[NDArray[np.uint8], tuple[int, int]]:
        """Picture ``[h,v]`` and its native size.

        Raises:
            DataError: the shard is damaged or gone.
        """
        offset, height, width, native_height, native_width, crc = self.table[index].tolist()
        number, raw = index // self.manifest.per_shard, bytearray(height * width)
        try:
            file = self._file(number)
            read = os.preadv(file, [raw], offset)
        except OSError as error:
            raise self._damaged(number, f"its .bin cannot be read: {error.strerror}") from error
        if read != len(raw) or zlib.crc32(raw) != crc:
            raise self._damaged(number, f"the checksum of '{self.name(index)}' is not that of its pixels")
        return np.frombuffer(raw, np.uint8).reshape(height, width), (native_height, native_width)

    def _file(self, number: int) -> int:
        # Read, not mapped: pages of a mapping count as the process's own, and a mapped shard holds its file open.
        if number not in self._open:
            if len(self._open) >= _OPEN:
                os.close(self._open.pop(next(iter(self._open))))
            self._open[number] = os.open(self.folder / f"{number:05d}.bin", os.O_RDONLY)
        return self._open[number]


class Picture(NamedTuple):
    """What a reader gives of an image."""

    pixels: NDArray[np.uint8]
    """``[h,v]``"""
    native: tuple[int, int]
    """Rows and columns at its own size, of which a packed picture is a smaller copy."""
    notes: tuple[str, ...] = ()
    aspect: float = 1.0
    """Height of a pixel over its width, in the file; here they are square. A packed picture does not know it."""


def read_image(image: Path | Packed, intensity: Intensity = Intensity()) -> Picture:  # noqa: B008  # frozen
    """A picture, read from its file or from a store, which was made with this intensity.

    Raises:
        ImageError: a file cannot be used.
        DataError: a shard is damaged.
    """
    if isinstance(image, Packed):
        return Picture(*image.store.read(image.at), image.store.notes.get(image.at, ()))
    read = open_radiograph(image, intensity)
    return Picture(read.pixels, (read.pixels.shape[0], read.pixels.shape[1]), read.notes, read.aspect)


def open_images(root: Path, image_size: int, intensity: Intensity = Intensity()) -> Files:  # noqa: B008  # frozen
    """The images of a folder, which may be packed.

    Raises:
        ConfigError: they are packed smaller than the input that is wanted, or with another intensity.
        DataError: see :class:`Store`.
    """
    if not (root / "packed.json").is_file():
        return Folder()
    store = Store(root)
    if store.manifest.size < image_size:
        raise ConfigError(
            f"data.loading.image_size is {image_size}, and {root} is packed at {store.manifest.size} pixels; give no more, "
            f"or run `diptych prepare` with --size {image_size}"
        )
    if store.manifest.intensity != intensity:
        wanted = replace(store.manifest, intensity=intensity, size=max(store.manifest.size, image_size))
        raise ConfigError(
            f"data.loading.intensity is {intensity}, and {root} is packed with {store.manifest.intensity}; give the same, "
            f"or run `{wanted.command(root)}`"
        )
    return store
