"""Writing packed stores. Their format is in :mod:`diptych.radiographs.manifest`."""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from diptych.errors import DataError
from diptych.files import replace_bytes, replacing
from diptych.radiographs.letterbox import scale_to
from diptych.radiographs.limits import ImageError
from diptych.radiographs.manifest import TEXTS, Manifest, Row
from diptych.radiographs.read import open_radiograph

__all__ = ["write_shard", "write_texts"]

_AGAIN = "make room, and run the command again"


def write_shard(manifest: Manifest, out: Path, number: int, names: Sequence[str]) -> int:
    """Read, scale and write the images of one shard. Returns how many are unusable.

    Raises:
        DataError: a file vanished or cannot be reached, or nothing can be written. This says nothing of the picture.
    """
    rows: list[Row] = []
    unusable: dict[int, tuple[str, str]] = {}
    notes: dict[int, tuple[str, ...]] = {}
    digest, offset = hashlib.sha256(), 0

    def pictures() -> Iterator[bytes]:
        nonlocal offset
        for at, name in enumerate(names):
            path = Path(manifest.root, name)
            try:
                image = open_radiograph(path, manifest.intensity)
            except ImageError as error:
                if error.rule == "missing image" or getattr(error.__cause__, "errno", None):
                    raise DataError(f"{path}: cannot be got at ({error}); run the command again when it can") from error
                unusable[at] = (error.rule, str(error))
                rows.append((name, 0, 0, 0, 0, 0, 0))
                continue
            if image.notes:
                notes[at] = image.notes
            pixels = image.pixels
            small = scale_to(pixels, manifest.size) if max(pixels.shape) > manifest.size else pixels
            raw = small.tobytes()
            rows.append((name, offset, *small.shape, *pixels.shape, zlib.crc32(raw)))
            offset += len(raw)
            digest.update(raw)
            yield raw

    path = manifest.shard(out, number)
    replace_bytes(path, pictures(), _AGAIN)
    body = json.dumps({"unusable": unusable, "notes": notes, "rows": rows}, separators=(",", ":")).encode()
    header = {"key": manifest.key, "shard": number, "files": len(rows), "bytes": offset}
    header |= {"sha256": digest.hexdigest(), "crc32": zlib.crc32(body)}
    replace_bytes(path.with_suffix(".index"), [json.dumps(header).encode(), b"\n", body], _AGAIN)
    return len(unusable)


def write_texts(root: Path, out: Path, texts: Sequence[tuple[str, int, int]]) -> None:
    """Pack small text files into one zip, or leave a zip of the same files as it is.

    The zip is not compressed, so the same files give the same bytes.

    Args:
        root: the folder of the files.
        out: the packed folder.
        texts: path below the root, bytes, and time of change of each, sorted.

    Raises:
        DataError: one cannot be read, or the zip cannot be written.
    """
    path = out / TEXTS
    if not texts:
        path.unlink(missing_ok=True)
        return
    digest = hashlib.sha256(repr(texts).encode(errors="surrogateescape")).hexdigest().encode()
    if _comment(path) == digest:
        return
    try:
        with replacing(path, _AGAIN) as file, zipfile.ZipFile(file, "w") as archive:
            archive.comment = digest
            for name, _, _ in texts:
                with open(root / name, "rb", buffering=0) as text:
                    archive.writestr(zipfile.ZipInfo(name), text.readall())
    except (OSError, UnicodeEncodeError) as error:
        where = getattr(error, "filename", None) or root
        why = getattr(error, "strerror", None) or "its name is no Unicode"
        raise DataError(f"{where}: cannot be packed ({why}); mend it, and run the command again") from error


def _comment(path: Path) -> bytes:
    """The comment of a zip, which is a hash of its sources. It is empty where there is no zip, or a damaged one."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.comment
    except (OSError, zipfile.BadZipFile):
        return b""
