"""What a file is: by its suffix, or by its first bytes."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["IMAGES", "PIL_FORMATS", "READ", "TABLES", "is_image", "kind_of", "stem"]

IMAGES = frozenset({".png", ".jpg", ".jpeg", ".dcm", ".dicom", ".tif", ".tiff", ".webp", ".bmp"})
"""Suffixes of images, in lower case. A file without one of these is judged by its content."""
TABLES = tuple(
    f".{kind}{packed}"
    for kind in ("csv", "tsv", "txt", "json", "jsonl", "xml", "parquet")
    for packed in ("", ".gz", ".zip")
)
"""Ends of names of tables and reports, which are never images."""
PIL_FORMATS = {"PNG": "PNG", "JPEG": "JPEG", "TIFF": "TIFF", "WebP": "WEBP", "BMP": "BMP"}
"""Kinds of pictures that are read, and PIL's name of each. PIL has other readers, and some of them start programs."""
READ = frozenset({"DICOM", *PIL_FORMATS})
"""Kinds of files that can be radiographs."""

_STARTS = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"BM", "BMP"),
    (b"GIF8", "a GIF picture"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 picture"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 picture"),
    (b"\xff\x0a", "a JPEG XL picture"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL picture"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"PK\x03\x04", "a zip archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ\0", "an xz archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!", "a rar archive"),
    (b"(\xb5/\xfd", "a zstd archive"),
    (b"%PDF", "a PDF document"),
    (b"%!PS", "a PostScript document"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x89HDF", "an HDF5 file"),
    (b"NRRD0", "an NRRD volume"),
    (b"version https://git-lfs", "a git-lfs pointer"),
)
_HTML = (b"<!doctype html", b"<html", b"<head", b"<body")


def is_image(path: Path | str) -> bool:
    """Whether a file counts as an image. Its suffix decides, and its content where the suffix does not tell.

    The reader and ``diptych prepare`` both ask this.
    """
    name = os.path.basename(path)
    if os.path.splitext(name)[1].lower() in IMAGES:
        return True
    if name.lower().endswith(TABLES) or name == "DICOMDIR":
        return False
    try:
        with open(path, "rb") as file:
            return kind_of(file.read(1024)) in READ
    except OSError:
        return False  # who needs it will report it as missing


def stem(name: str) -> str:
    """A file's name without the suffix of an image.

    >>> stem("a.PNG"), stem("1.2.840.5")
    ('a', '1.2.840.5')
    """
    head, suffix = os.path.splitext(name)
    return head if suffix.lower() in IMAGES else name


def kind_of(head: bytes) -> str:
    """What a file is by its first bytes. A kilobyte is enough.

    >>> kind_of(b"BM6"), kind_of(b"<html>404"), kind_of(bytes(range(200, 256)))
    ('BMP', 'an HTML page', '')

    Returns:
        One of :data:`READ`, or words for something else, or an empty text where the bytes tell nothing.
    """
    if head[128:132] == b"DICM":
        return "DICOM"
    for start, kind in _STARTS:
        if head.startswith(start):
            return kind
    if head[:4] == b"RIFF":
        return "WebP" if head[8:12] == b"WEBP" else "a RIFF file"
    if head[4:8] == b"ftyp":
        return "a HEIF or AVIF picture" if head[8:12] in {b"avif", b"heic", b"heix", b"mif1", b"msf1"} else "a video"
    if head[257:262] == b"ustar":
        return "a tar archive"
    if _is_bare_dicom(head):
        return "DICOM"
    if not head:
        return "empty"
    if not head.strip(b"\0"):
        return "a file of zero bytes alone"
    return _text_kind(head[:1024])


def _is_bare_dicom(head: bytes) -> bool:
    """Whether a DICOM data set without a preamble begins here. Its first element is of group 2 or 8."""
    if head[:2] in {b"\x02\0", b"\x08\0"}:
        element, length = int.from_bytes(head[2:4], "little"), int.from_bytes(head[4:8], "little")
    elif head[:2] == b"\0\x08":
        element, length = int.from_bytes(head[2:4], "big"), int.from_bytes(head[4:8], "big")
    else:
        return False
    explicit = head[4:6].isalpha() and head[4:6].isupper()
    return element < 0x2000 and (explicit or (length < 256 and len(head) > 8))


def _text_kind(head: bytes) -> str:
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if any(text.startswith(mark) or b"\n" + mark in text for mark in _HTML):
        return "an HTML page"
    if text.startswith(b"<?xml") or text.startswith(b"<svg"):
        return "an HTML page" if b"<html" in text else "an XML file"
    try:
        plain = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3 or len(head) < 1024:  # a letter may be cut at the end
            return ""
        plain = head[: error.start].decode("utf-8")
    if not all(letter.isprintable() or letter in "\t\r\n\f" for letter in plain):
        return ""
    return "a JSON file" if text[:1] in {b"{", b"["} else "a text file"
