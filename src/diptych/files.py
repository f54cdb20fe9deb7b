"""The one writer of files, which are whole or not there, and the hash of a file."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from uuid import uuid4

from diptych.errors import ConfigError, DataError

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["WRITE_ERRORS", "remove_parts", "replace_bytes", "replace_picture", "replace_text", "replacing", "sha256"]

_PART = ".part"
_NAME_MAX = 255  # bytes that file systems allow
WRITE_ERRORS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENAMETOOLONG}
)
"""The ``errno`` of each error that means a place cannot be written."""


def sha256(path: str | os.PathLike[str]) -> str:
    """The file's SHA-256 in hexadecimal.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(f"'{os.fspath(path)}' cannot be read: {error.strerror}") from None


@contextlib.contextmanager
def replacing(
    path: str | os.PathLike[str], remedy: str = "make room, or name a place that can be written"
) -> Iterator[BinaryIO]:
    """A file open for writing that takes its name once it is whole and on the disk.

    It is written beside its place, as ``NAME.<random>.part``. If the block ends early, the older file stays as it was, and
    the part is removed. :func:`remove_parts` removes parts of killed processes. A link is followed. A device or a pipe,
    such as /dev/stdout, is written directly.

    Args:
        path: the file. Its folder is created.
        remedy: what the error tells the user to do.

    Raises:
        DataError: it cannot be written.
    """
    asked = Path(path)
    part: Path | None = None
    try:
        target = asked.resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and not target.is_file():
            with target.open("wb") as file:
                yield file
            return
        part = _part(target)
        with _open_locked(part) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            part.replace(target)
        _sync_folder(target.parent)
    except OSError as error:
        if error.filename is not None and part is not None and os.fspath(error.filename) != os.fspath(part):
            raise  # an error of another file, which the block reads
        raise DataError(f"{asked}: cannot be written ({error.strerror or error}); {remedy}") from error
    finally:
        if part is not None:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)


def replace_bytes(path: str | os.PathLike[str], pieces: bytes | Iterable[bytes], remedy: str | None = None) -> None:
    """Write a whole file or none, by :func:`replacing`.

    Raises:
        DataError: it cannot be written.
    """
    with replacing(path) if remedy is None else replacing(path, remedy) as file:
        for piece in [pieces] if isinstance(pieces, bytes) else pieces:
            file.write(piece)


def replace_text(path: str | os.PathLike[str], text: str, remedy: str | None = None) -> None:
    """Write a whole text file or none, as UTF-8. What UTF-8 cannot hold (a broken file name) is written as an escape.

    Raises:
        DataError: it cannot be written.
    """
    replace_bytes(path, text.encode("utf-8", "backslashreplace"), remedy)


def replace_picture(path: str | os.PathLike[str], picture: Image.Image) -> None:
    """Write a whole PNG file or none.

    Raises:
        DataError: it cannot be written.
    """
    with replacing(path) as file:
        picture.save(file, format="PNG")


def remove_parts(folder: Path) -> None:
    """Remove, at any depth, parts whose writer was killed. A part that is being written is locked, and stays."""
    for part in folder.rglob(f"*{_PART}"):
        try:
            if not stat.S_ISREG(part.lstat().st_mode):
                continue
            with part.open("r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                part.unlink(missing_ok=True)
        except OSError:  # being written, or not ours to touch
            continue


def _part(target: Path) -> Path:
    """A new name beside the target. It is cut where it would be too long."""
    end = f".{uuid4().hex}{_PART}"
    start = os.fsencode(target.name)[: _NAME_MAX - len(end)]
    return target.with_name(start.decode("utf-8", "ignore") + end)


@contextlib.contextmanager
def _open_locked(part: Path) -> Iterator[BinaryIO]:
    """The part, locked while it is open. If another process removed it as an old one before the lock, it is made again."""
    while True:
        with part.open("wb") as file:
            with contextlib.suppress(OSError):  # some network file systems have no locks
                fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file.fileno()).st_nlink:
                yield file
                return


def _sync_folder(folder: Path) -> None:
    """Bring the file's new name to the disk."""
    try:
        number = os.open(folder, os.O_RDONLY)
    except PermissionError:  # a folder that may be written but not listed
        return
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:  # file systems that cannot do so
            raise
    finally:
        os.close(number)
