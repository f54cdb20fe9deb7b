"""Writing packed stores; what they are and how they are read is in :mod:`diptych.packed`."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from uuid import uuid4

from diptych.errors import DataError
from diptych.packed import Manifest, Row
from diptych.radiograph import ImageError, read_radiograph
from diptych.transforms import scaled

__all__ = ["replace_text", "write_shard"]


def _part(path: Path) -> Path:
    """Where a file is written before it is moved to its name."""
    return path.with_name(f"{path.name}.{uuid4().hex}.part")


def replace_text(path: Path, text: str) -> None:
    """Write a file beside its name and move it there."""
    _replace(path, [text.encode()])


def _replace(path: Path, pieces: Iterable[bytes]) -> None:
    part = _part(path)
    try:
        with part.open("wb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and path.is_file():
            return  # another job has made it, and cleaned up
        part.unlink(missing_ok=True)
        raise DataError(
            f"{path}: cannot be written ({error.strerror}); make room, and run the command again"
        ) from error


def write_shard(manifest: Manifest, out: Path, number: int, names: Sequence[str]) -> int:
    """Read, scale and write the images of one shard; returns how many are unusable.

    Raises:
        DataError: a file vanished or cannot be got at, which says nothing of the picture; or nothing can be written.
    """
    rows: list[Row] = []
    unusable: dict[int, tuple[str, str]] = {}
    digest, offset = hashlib.sha256(), 0

    def pictures() -> Iterator[bytes]:
        nonlocal offset
        for at, name in enumerate(names):
            path = Path(manifest.root, name)
            try:
                image = read_radiograph(path)
            except ImageError as error:
                if error.rule == "missing image" or getattr(error.__cause__, "errno", None):
                    raise DataError(f"{path}: cannot be got at ({error}); run the command again when it can") from error
                unusable[at] = (error.rule, str(error))
                rows.append((name, 0, 0, 0, 0, 0, 0))
                continue
            small = scaled(image, manifest.size) if max(image.shape) > manifest.size else image
            raw = small.tobytes()
            rows.append((name, offset, *small.shape, *image.shape, zlib.crc32(raw)))
            offset += len(raw)
            digest.update(raw)
            yield raw

    path = manifest.folder(out) / f"{number:05d}.bin"
    _replace(path, pictures())
    body = json.dumps({"unusable": unusable, "rows": rows}, separators=(",", ":")).encode()
    header = {"key": manifest.key, "shard": number, "files": len(rows), "bytes": offset}
    header |= {"sha256": digest.hexdigest(), "crc32": zlib.crc32(body)}
    _replace(path.with_suffix(".index"), [json.dumps(header).encode(), b"\n", body])
    return len(unusable)
