"""PNG, JPEG, TIFF, WebP and BMP: from a file's bytes to grey values; and what a file is, by its content."""

from __future__ import annotations

import io
import math
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from diptych.radiographs.limits import MAX_PIXELS, ImageError, refuse
from diptych.radiographs.read import SQUARE, Decoded

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["READ", "decode", "decode_mask", "kind_of", "of_pil"]

TURNED = "turned upright by its EXIF orientation"
OBLONG = "pixels are not square, shown as stored"

_FORMATS = {"PNG": "PNG", "JPEG": "JPEG", "TIFF": "TIFF", "WebP": "WEBP", "BMP": "BMP"}
"""What is read here, and PIL's name of it; its other readers, some of which start programs, are not for radiographs."""
READ = frozenset({"DICOM", *_FORMATS})
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
_REMEDY = {
    "a git-lfs pointer": "run `git lfs pull` where the files come from",
    "an HTML page": "the download gave a page instead of the file; get it anew",
    "a text file": "get the file anew",
    "an XML file": "get the file anew",
    "a JSON file": "get the file anew",
    "a file of zero bytes alone": "get the file anew",
}


def kind_of(head: bytes) -> str:
    """What a file is by its first bytes (a kilobyte will do): one of :data:`READ`, words for something else, or ``""``."""
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
    """A data set without a preamble: it begins with an element of group 2 or 8."""
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


def decode(raw: bytes, kind: str, *, source: str) -> Decoded:
    """The grey values of a picture file.

    Args:
        raw: the whole file.
        kind: what it is, as :func:`kind_of` says.
        source: the file's name, for messages.

    Raises:
        ImageError: it is no picture that is read here, truncated, corrupt, too large, or has several frames.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL tells of every small fault of a header
        image = _open(raw, kind, source=source)
    if kind == "PNG" and raw[24:25] == b"\x10" and raw[25:26] in {b"\x02", b"\x04", b"\x06"}:
        decoded = _deep_png(raw, source)
    else:
        decoded = _grey(image)
    if kind == "TIFF":
        decoded = _tiff(image, decoded, source)
    return _upright(image, decoded)


def decode_mask(raw: bytes, *, source: str) -> NDArray[np.bool_]:
    """A mask ``[h,v]`` from a PNG file's bytes: true where a pixel is not black, whatever its transparency."""
    kind = kind_of(raw)
    if kind in READ and kind != "PNG":
        raise refuse("unsupported mask", f"{source}: a mask is a PNG file, and this is {kind}; convert the original")
    image = _open(raw, kind, source=source)
    orientation = _orientation(image)
    if image.mode in {"RGBA", "LA", "P", "PA"}:
        image = image.convert("RGB")
    values = np.asarray(image)
    mask = np.asarray(values.any(axis=2) if values.ndim == 3 else values != 0)
    return np.asarray(_turned(mask, orientation))


def of_pil(image: Image.Image) -> Decoded:
    """A picture that PIL holds."""
    return _upright(image, _grey(image))


def _open(raw: bytes, kind: str, *, source: str) -> Image.Image:
    """Decode a picture file; PIL opens it as what it is, and as nothing else."""
    from PIL import Image

    if kind not in _FORMATS:
        raise _not_read(raw, kind, source)
    try:
        image = Image.open(io.BytesIO(raw), formats=(_FORMATS[kind],))
    except Image.DecompressionBombError as error:
        raise refuse("oversized image", f"{source}: over the limit of {MAX_PIXELS} pixels; leave it out") from error
    except Exception as error:
        message = f"{source}: a {kind} file that is damaged at its beginning; repair it or leave it out"
        raise refuse("corrupt image", message) from error
    if image.width * image.height > MAX_PIXELS:
        message = f"{source}: {image.width}x{image.height} pixels is over the limit of {MAX_PIXELS}; leave it out"
        raise refuse("oversized image", message)
    frames = int(getattr(image, "n_frames", 1))
    if frames > 1:
        raise refuse("several frames", f"{source}: {frames} {kind} frames or pages; a radiograph has one")
    if kind == "TIFF":
        _check_tiff(image, source)
    try:
        image.load()
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        rule = "truncated image" if "truncated" in reason else "corrupt image"
        message = f"{source}: the {kind} data are truncated or corrupt ({reason}); repair it or leave it out"
        raise refuse(rule, message) from error
    return image


def _not_read(raw: bytes, kind: str, source: str) -> ImageError:
    if not kind:
        message = f"{source}: not a DICOM, PNG, JPEG, TIFF, WebP or BMP file, or damaged; repair it or leave it out"
        return refuse("corrupt image", message)
    if kind == "empty":
        return refuse("no image", f"{source}: the file is empty (0 bytes); get it anew")
    if "picture" in kind:
        return refuse("unsupported image", f"{source}: {kind}, which is not read; convert it to PNG")
    remedy = _REMEDY.get(kind, "convert or unpack it")
    if kind == "a text file":
        kind += f" that begins with {raw[:40].decode('utf-8', 'replace').splitlines()[0].strip()!r}"
    return refuse("no image", f"{source}: not an image but {kind}; {remedy}")


def _grey(image: Image.Image) -> Decoded:
    """A PIL picture's values; transparency is laid on black."""
    from PIL import Image

    if image.mode.startswith("I;16"):
        return Decoded(np.asarray(image).astype(np.uint16))  # one of its modes is big-endian
    if image.mode in {"I", "F"}:
        return Decoded(np.asarray(image))
    if image.mode in {"RGBA", "LA", "PA"} or (image.mode == "P" and "transparency" in image.info):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    return Decoded(np.array(image.convert("L")))


def _deep_png(raw: bytes, source: str) -> Decoded:
    """A PNG of 16 bits a colour, of which PIL keeps eight; it has been read by PIL before, and is whole.

    What is wholly transparent is padding; what is partly so is laid on black.
    """
    import cv2

    read = cv2.imdecode(np.frombuffer(raw, np.uint8), cv2.IMREAD_UNCHANGED)
    if read is None or read.dtype != np.uint16 or read.ndim != 3 or read.shape[2] not in {3, 4}:
        raise refuse("corrupt image", f"{source}: the 16-bit PNG data are corrupt; repair it or leave it out")
    colour = read.astype(np.uint64)
    grey = (colour[..., 2] * 19595 + colour[..., 1] * 38470 + colour[..., 0] * 7471 + 0x8000) >> 16  # as PIL weighs
    keep = None
    if read.shape[2] == 4:
        grey = (grey * colour[..., 3] + 32767) // 65535
        keep = read[..., 3] > 0
    return Decoded(grey.astype(np.uint16), keep=None if keep is None or keep.all() else keep)


_PHOTOMETRIC, _BITS, _TILE = 262, 258, (322, 323)


def _check_tiff(image: Any, source: str) -> None:
    """Refuse what would lose bits or take memory."""
    bits, samples = image.tag_v2.get(_BITS, (1,)), len(image.getbands())
    if max(bits) > 8 and (samples > 1 or len(bits) > 1):
        message = f"{source}: a colour TIFF of {max(bits)} bits, of which eight would be read; convert it to grey"
        raise refuse("unsupported image", message)
    width, height = (int(image.tag_v2.get(tag, 1)) for tag in _TILE)
    if width * height > MAX_PIXELS:
        raise refuse("oversized image", f"{source}: tiles of {width}x{height} pixels are over the limit; leave it out")


def _tiff(image: Any, decoded: Decoded, source: str) -> Decoded:
    """White and black exchanged where 0 is white, which PIL does for eight bits alone."""
    if image.tag_v2.get(_PHOTOMETRIC) == 0 and image.mode not in {"1", "L"}:
        stored = decoded.stored
        return decoded._replace(stored=stored.max() - stored if stored.dtype.kind != "f" else -stored)
    return decoded


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation of a loaded picture: 1 is upright."""
    try:
        found = image.getexif().get(0x0112, 1)
    except Exception:  # damaged EXIF data raise anything, and say nothing of the pixels
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _turned(picture: NDArray[Any], orientation: int) -> NDArray[Any]:
    """An array ``[h,v]`` as its EXIF orientation shows it."""
    if orientation >= 5:
        picture = picture.T
    if orientation in {2, 3, 6, 7}:
        picture = picture[:, ::-1]
    if orientation in {3, 4, 7, 8}:
        picture = picture[::-1]
    return np.ascontiguousarray(picture)


def _upright(image: Image.Image, decoded: Decoded) -> Decoded:
    """Turned by its EXIF orientation, and with what is to be told. PIL has turned a TIFF already."""
    notes = []
    if (orientation := _orientation(image)) != 1:
        keep = None if decoded.keep is None else _turned(decoded.keep, orientation)
        decoded = decoded._replace(stored=_turned(decoded.stored, orientation), keep=keep)
        notes.append(TURNED)
    if not math.isclose(_density(image), 1, rel_tol=SQUARE):
        notes.append(OBLONG)
    return decoded._replace(notes=tuple(notes))


def _density(image: Image.Image) -> float:
    """Pixels across over pixels down, in the same length; 1 where the file does not say."""
    for name in ("dpi", "aspect", "jfif_density"):
        try:
            across, down = map(float, image.info[name])
        except (KeyError, TypeError, ValueError, ZeroDivisionError):
            continue
        if across > 0 and down > 0:
            return across / down
    return 1.0
