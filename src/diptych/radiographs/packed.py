"""The images of a data set: files below a folder, or a store that ``diptych prepare`` packed.

Both answer the same questions (:class:`Files`), so a datamodule does not know which one it reads. The format of a store
is in :mod:`diptych.radiographs.manifest`.
"""

from __future__ import annotations

import os
import zlib
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from diptych.errors import ConfigError, DataError
from diptych.radiographs.intensity import Intensity
from diptych.radiographs.kinds import IMAGES, is_image
from diptych.radiographs.manifest import TEXTS, Manifest
from diptych.radiographs.read import open_radiograph
from diptych.radiographs.spelling import Spelling

__all__ = ["Files", "Folder", "PackedImage", "Picture", "Store", "open_images", "read_image"]

_MOST_OPEN = 64  # shards that a process keeps open


class PackedImage(NamedTuple):
    """An image in a store."""

    store: Store
    at: int
    """Its number in the store."""

    def __str__(self) -> str:
        return str(self.store.root / self.store.name(self.at))

    @property
    def unusable(self) -> tuple[str, str] | None:
        """Rule and message of a file that could not be used."""
        return self.store.unusable.get(self.at)


class Files(ABC):
    """Where a data set's images are looked for."""

    texts: Path | None = None
    """The zip of what were small text files, by their paths below the folder. None where they are files."""

    @abstractmethod
    def find(self, name: Path | str) -> Path | PackedImage | None:
        """The image at this path."""

    @abstractmethod
    def candidates(self, folder: Path, name: str) -> Sequence[Path | PackedImage]:
        """The images that a path below a folder may mean, if it is not quite the path of a file (:class:`Spelling`)."""

    @abstractmethod
    def below(self, folder: Path) -> Iterator[tuple[str, Path | PackedImage]]:
        """Name and image of every image below a folder, at any depth."""

    @abstractmethod
    def folders(self, folder: Path) -> list[str]:
        """Names of the folders directly in a folder, sorted."""


def _list_folder(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except (OSError, ValueError):  # no folder, not to be read, or no name that a folder can have
        return []


class Folder(Files):
    """Files as they are."""

    def __init__(self) -> None:
        self._spelling = Spelling(_list_folder, IMAGES)

    def find(self, name: Path | str) -> Path | None:
        """The file at this path."""
        return Path(name) if os.path.isfile(name) else None  # a Path first would double the time of large tables

    def candidates(self, folder: Path, name: str) -> list[Path]:
        """The files that a path may mean, in the folder or outside of it."""
        base = os.path.abspath(folder)
        whole = os.path.normpath(os.path.join(base, name.replace("\\", "/")))
        top = base if whole.startswith(f"{base}/") else "/"
        paths = self._spelling.matches(top, os.path.relpath(whole, top))
        return [Path(path) for path in paths if os.path.isfile(path)]

    def below(self, folder: Path) -> Iterator[tuple[str, Path]]:
        """Name and path of every image file below a folder, in the order of the file system."""
        for here, _, names in os.walk(folder):
            yield from ((name, Path(here, name)) for name in names if is_image(os.path.join(here, name)))

    def folders(self, folder: Path) -> list[str]:
        """Names of the folders directly in a folder, sorted. None where there is no such folder."""
        return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir()) if folder.is_dir() else []


class Store(Files):
    """A packed store. A copy in another process holds offsets alone, and no names.

    Raises:
        DataError: it is damaged, of another version, or lacks shards. The message has the command that makes them.
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
        shared: dict[tuple[str, ...], tuple[str, ...]] = {}  # one object for all images of the same notes
        self._names: list[str] | None = []
        for number in range(manifest.shards):
            index = manifest.index(root, number)
            first = len(self._names)
            self._names += [row[0] for row in index.rows]
            tables.append(np.array([row[1:] for row in index.rows], np.int64).reshape(-1, 6))
            self.unusable |= {first + row: reason for row, reason in index.unusable.items()}
            self.notes |= {first + row: shared.setdefault(notes, notes) for row, notes in index.notes.items()}
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

    def name(self, index: int) -> str:
        """The path of an image in the original folder, below its root."""
        if self._names is not None:
            return self._names[index]
        number, row = divmod(index, self.manifest.per_shard)
        return self.manifest.index(self.root, number).rows[row][0]

    @property
    def names(self) -> list[str]:
        """All paths, sorted. Only the store that was opened has them, not its copy in a worker."""
        assert self._names is not None
        return self._names

    def _relative(self, path: Path | str) -> str:
        """A path below the root, written as the names are. It is empty for the root itself."""
        if path == self.root:
            return ""
        text, prefix = str(path), f"{self.root}/"
        inside = text[len(prefix) :] if text.startswith(prefix) else os.path.relpath(text, self.root)
        return os.path.normpath(inside) if ".." in inside else inside

    def find(self, name: Path | str) -> PackedImage | None:
        """The image that was packed from this path."""
        inside = self._relative(name)
        at = bisect_left(self.names, inside)
        return PackedImage(self, at) if at < len(self.names) and self.names[at] == inside else None

    def candidates(self, folder: Path, name: str) -> list[PackedImage]:
        """The packed images that a path may mean."""
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
        images = [self.find(self.root / path) for path in self._spelling.matches("", inside)]
        return [image for image in images if image is not None]

    def below(self, folder: Path) -> Iterator[tuple[str, PackedImage]]:
        """Name and image of every packed image below a folder, in the order of their paths."""
        inside = self._relative(folder)
        prefix = f"{inside}/" if inside else ""
        at = bisect_left(self.names, prefix)
        while at < len(self.names) and self.names[at].startswith(prefix):
            yield self.names[at].rpartition("/")[2], PackedImage(self, at)
            at += 1

    def folders(self, folder: Path) -> list[str]:
        """Names of the folders directly in a folder that have images below them, sorted."""
        inside = self._relative(folder)
        prefix, folders = f"{inside}/" if inside else "", []
        at = bisect_left(self.names, prefix)
        while at < len(self.names) and self.names[at].startswith(prefix):
            head, slash, _ = self.names[at][len(prefix) :].partition("/")
            if slash:
                folders.append(head)
            at = bisect_left(self.names, f"{prefix}{head}0", at) if slash else at + 1  # '0' follows '/'
        return folders

    def read(self, index: int) -> tuple[NDArray[np.uint8], tuple[int, int]]:
        """Picture ``[h,v]`` and its native size.

        Raises:
            DataError: the shard is damaged or gone.
        """
        offset, height, width, native_height, native_width, crc = self.table[index].tolist()
        number, raw = index // self.manifest.per_shard, bytearray(height * width)
        try:
            read = os.preadv(self._file(number), [raw], offset)
        except OSError as error:
            why = f"its .bin cannot be read: {error.strerror}"
            raise self.manifest.damage(self.root, number, why) from error
        if read != len(raw) or zlib.crc32(raw) != crc:
            why = f"the checksum of '{self.name(index)}' is not that of its pixels"
            raise self.manifest.damage(self.root, number, why)
        return np.frombuffer(raw, np.uint8).reshape(height, width), (native_height, native_width)

    def _file(self, number: int) -> int:
        """The open file of a shard's pixels.

        It is read and not mapped. Pages of a mapping count as the process's own, and a mapped shard holds its file open.
        """
        if number not in self._open:
            if len(self._open) >= _MOST_OPEN:
                os.close(self._open.pop(next(iter(self._open))))
            self._open[number] = os.open(self.manifest.shard(self.root, number), os.O_RDONLY)
        return self._open[number]


class Picture(NamedTuple):
    """What a reader gives of an image."""

    pixels: NDArray[np.uint8]
    """``[h,v]``"""
    native: tuple[int, int]
    """Rows and columns at its own size, of which a packed picture is a smaller copy."""
    notes: tuple[str, ...] = ()
    aspect: float = 1.0
    """Height of a pixel over its width in the file. The pixels here are square. A packed picture does not know it."""


def read_image(image: Path | PackedImage, intensity: Intensity = Intensity()) -> Picture:  # noqa: B008  # frozen
    """Read a picture from its file, or from a store that was made with this intensity.

    Raises:
        ImageError: a file cannot be used.
        DataError: a shard is damaged.
    """
    if isinstance(image, PackedImage):
        return Picture(*image.store.read(image.at), image.store.notes.get(image.at, ()))
    radiograph = open_radiograph(image, intensity)
    height, width = radiograph.pixels.shape
    return Picture(radiograph.pixels, (height, width), radiograph.notes, radiograph.aspect)


def open_images(root: Path, image_size: int, intensity: Intensity = Intensity()) -> Files:  # noqa: B008  # frozen
    """The images of a folder, which may be packed.

    Raises:
        ConfigError: they are packed smaller than the input that is wanted, or with another intensity.
        DataError: the store is damaged, of another version, or lacks shards.
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
