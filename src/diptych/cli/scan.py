"""The files below a data set's folder, by kind, as ``diptych prepare`` reads them."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from diptych.errors import DataError
from diptych.radiographs.intensity import Intensity
from diptych.radiographs.kinds import TABLES, is_image
from diptych.radiographs.manifest import FORMAT, PICTURES

__all__ = ["Scan", "scan"]

_ARCHIVES = (".zip", ".tgz", ".tar.gz")
"""Endings of archives. One counts as a table where its name says that it holds reports."""


@dataclass(frozen=True)
class Scan:
    """The files below a folder. Each is named by its path from there, and each list is sorted."""

    images: list[tuple[str, int]]
    """Images, each with its size in bytes."""
    tables: list[str]
    """Other files that a datamodule may read."""
    others: list[str]
    texts: list[tuple[str, int, int]]
    """Small text files, each with its size in bytes and the time of its last change."""

    def key(self, size: int, per_shard: int, intensity: Intensity) -> str:
        """A hash of all that decides the bytes of the packed store."""
        digest = hashlib.sha256(repr((FORMAT, PICTURES, size, per_shard, intensity)).encode())
        for name, size_in_bytes in self.images:
            digest.update(f"{name}\0{size_in_bytes}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()[:16]


def scan(root: Path, small_texts: str = "") -> Scan:
    """List a folder. Links are followed, and each file is looked at once.

    Args:
        root: the folder.
        small_texts: pattern of the paths of small text files, which are packed into one file. Empty if there are none.

    Raises:
        DataError: the folder does not exist, cannot be listed, or holds no image.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; give the data set's as --root")
    files = Scan([], [], [], [])
    is_small_text = re.compile(small_texts or "(?!)").search
    try:
        for path, status in _files(str(root), os.path.realpath(root), frozenset()):
            name = path[len(str(root)) + 1 :]
            lower = name.lower()
            if is_small_text(name):
                files.texts.append((name, status.st_size, status.st_mtime_ns))
            elif is_image(path):
                files.images.append((name, status.st_size))
            elif lower.endswith(TABLES) or ("report" in os.path.basename(lower) and lower.endswith(_ARCHIVES)):
                files.tables.append(name)
            else:
                files.others.append(name)
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be listed ({error.strerror}); make it readable") from error
    if not files.images:
        raise DataError(
            f"{root}: no image (DICOM, PNG, JPEG, TIFF, WebP, BMP) below it; unpack the data set's images there"
        )
    return Scan(sorted(files.images), sorted(files.tables), sorted(files.others), sorted(files.texts))


def _files(folder: str, real: str, above: frozenset[str]) -> Iterator[tuple[str, os.stat_result]]:
    """The path and status of every file below a folder.

    Args:
        folder: path of the folder.
        real: its path without links.
        above: paths, without links, of the folders above it.
    """
    if real in above:  # a link leads to a folder that it lies in
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                inside = os.path.realpath(entry.path) if entry.is_symlink() else f"{real}/{entry.name}"
                yield from _files(entry.path, inside, above | {real})
            elif entry.is_file():
                yield entry.path, entry.stat()
