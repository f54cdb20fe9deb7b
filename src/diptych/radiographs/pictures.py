"""PNG, JPEG, TIFF, WebP and BMP: from a file's bytes to grey values."""

from __future__ import annotations

import io
import math
import warnings
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from diptych.radiographs.kinds import PIL_FORMATS, READ, kind_of
from diptych.radiographs.limits import MAX_PIXELS, ImageError, refuse
from diptych.radiographs.read import SQUARE, DecodedPicture

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["decode", "decode_mask", "of_pil"]

T = TypeVar("T", bound=np.generic)

TURNED = "turned upright by its EXIF orientation"
OBLONG = "pixels are not square, shown as stored"

_REMEDY = {
    "a git-lfs pointer": "run `git lfs pull` where the files come from",
    "an HTML page": "the download gave a page instead of the file; get it anew",
    "a text file": "get the file anew",
    "an XML file": "get the file anew",
    "a JSON file": "get the file anew",
    "a file of zero bytes alone": "get the file anew",
}


def decode(raw: bytes, kind: str, *, source: str) -> DecodedPicture:
    """The grey values of a picture file.

    Args:
        raw: the whole file.
        kind: what it is, as :func:`diptych.radiographs.kinds.kind_of` says.
        source: the file's name, for messages.

    Raises:
        ImageError: it is no picture that is read here, truncated, corrupt, too large, or has several frames.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL warns of every small fault of a header
        image = _open(raw, kind, source=source)
    if kind == "PNG" and raw[24:25] == b"\x10" and raw[25:26] in {b"\x02", b"\x04", b"\x06"}:
        decoded = _deep_png(raw, source)
    else:
        decoded = _grey(image)
    if kind == "TIFF":
        decoded = _tiff(image, decoded, source)
    return _upright(image, decoded)


def decode_mask(raw: bytes, *, source: str) -> NDArray[np.bool_]:
    """A mask ``[h,v]`` from a PNG file's bytes. It is true where a pixel is not black, whatever its transparency.

    Raises:
        ImageError: it is no PNG file, truncated, corrupt or too large.
    """
    kind = kind_of(raw)
    if kind in READ and kind != "PNG":
        raise refuse("unsupported mask", f"{source}: a mask is a PNG file, and this is {kind}; convert the original")
    image = _open(raw, kind, source=source)
    orientation = _orientation(image)
    if image.mode in {"RGBA", "LA", "P", "PA"}:
        image = image.convert("RGB")
    values = np.asarray(image)
    mask = np.asarray(values.any(axis=2) if values.ndim == 3 else values != 0)
    return _turn(mask, orientation)


def of_pil(image: Image.Image) -> DecodedPicture:
    """The grey values of a picture that PIL holds."""
    return _upright(image, _grey(image))


def _open(raw: bytes, kind: str, *, source: str) -> Image.Image:
    """Decode a picture file. PIL opens it as its own kind, and as nothing else."""
    from PIL import Image

    if kind not in PIL_FORMATS:
        raise _refuse_kind(raw, kind, source)
    try:
        image = Image.open(io.BytesIO(raw), formats=(PIL_FORMATS[kind],))
    except Image.DecompressionBombError as error:
        raise refuse("oversized image", f"{source}: over the limit of {MAX_PIXELS} pixels; leave it out") from error
    except Exception as error:  # PIL's readers raise anything on damaged bytes
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
    except Exception as error:  # so do its decoders
        reason = " ".join(str(error).split())[:200]
        rule = "truncated image" if "truncated" in reason else "corrupt image"
        message = f"{source}: the {kind} data are truncated or corrupt ({reason}); repair it or leave it out"
        raise refuse(rule, message) from error
    return image


def _refuse_kind(raw: bytes, kind: str, source: str) -> ImageError:
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


def _grey(image: Image.Image) -> DecodedPicture:
    """The values of a PIL picture. What is transparent is laid on black."""
    from PIL import Image

    if image.mode.startswith("I;16"):
        return DecodedPicture(np.asarray(image).astype(np.uint16))  # one of its modes is big-endian
    if image.mode in {"I", "F"}:
        return DecodedPicture(np.asarray(image))
    if image.mode in {"RGBA", "LA", "PA"} or (image.mode == "P" and "transparency" in image.info):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    return DecodedPicture(np.array(image.convert("L")))


def _deep_png(raw: bytes, source: str) -> DecodedPicture:
    """A PNG of 16 bits a colour, of which PIL keeps eight. PIL has read it before, so it is whole.

    Pixels that are wholly transparent are padding. Those that are partly transparent are laid on black.
    """
    import cv2

    picture = cv2.imdecode(np.frombuffer(raw, np.uint8), cv2.IMREAD_UNCHANGED)
    if picture is None or picture.dtype != np.uint16 or picture.ndim != 3 or picture.shape[2] not in {3, 4}:
        raise refuse("corrupt image", f"{source}: the 16-bit PNG data are corrupt; repair it or leave it out")
    colour = picture.astype(np.uint64)
    grey = (colour[..., 2] * 19595 + colour[..., 1] * 38470 + colour[..., 0] * 7471 + 0x8000) >> 16  # PIL's weights
    keep = None
    if picture.shape[2] == 4:
        grey = (grey * colour[..., 3] + 32767) // 65535
        keep = picture[..., 3] > 0
    return DecodedPicture(grey.astype(np.uint16), keep=None if keep is None or keep.all() else keep)


_PHOTOMETRIC, _BITS, _TILE = 262, 258, (322, 323)


def _check_tiff(image: Any, source: str) -> None:
    """Refuse a TIFF that would lose bits or take much memory."""
    bits, samples = image.tag_v2.get(_BITS, (1,)), len(image.getbands())
    if max(bits) > 8 and (samples > 1 or len(bits) > 1):
        message = f"{source}: a colour TIFF of {max(bits)} bits, of which eight would be read; convert it to grey"
        raise refuse("unsupported image", message)
    width, height = (int(image.tag_v2.get(tag, 1)) for tag in _TILE)
    if width * height > MAX_PIXELS:
        raise refuse("oversized image", f"{source}: tiles of {width}x{height} pixels are over the limit; leave it out")


def _tiff(image: Any, decoded: DecodedPicture, source: str) -> DecodedPicture:
    """Exchange white and black where 0 is white. PIL does so for eight bits alone."""
    if image.tag_v2.get(_PHOTOMETRIC) == 0 and image.mode not in {"1", "L"}:
        stored = decoded.stored
        return decoded._replace(stored=stored.max() - stored if stored.dtype.kind != "f" else -stored)
    return decoded


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation of a loaded picture: 1 is upright."""
    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception:  # damaged EXIF data raise anything, and say nothing of the pixels
        return 1
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def _turn(picture: NDArray[T], orientation: int) -> NDArray[T]:
    """Turn an array ``[h,v]`` as its EXIF orientation says."""
    if orientation >= 5:
        picture = picture.T
    if orientation in {2, 3, 6, 7}:
        picture = picture[:, ::-1]
    if orientation in {3, 4, 7, 8}:
        picture = picture[::-1]
    return np.ascontiguousarray(picture)


def _upright(image: Image.Image, decoded: DecodedPicture) -> DecodedPicture:
    """Turn a picture by its EXIF orientation, and note what the user should know. PIL has turned a TIFF already."""
    notes = []
    if (orientation := _orientation(image)) != 1:
        keep = None if decoded.keep is None else _turn(decoded.keep, orientation)
        decoded = decoded._replace(stored=_turn(decoded.stored, orientation), keep=keep)
        notes.append(TURNED)
    if not math.isclose(_density(image), 1, rel_tol=SQUARE):
        notes.append(OBLONG)
    return decoded._replace(notes=tuple(notes))


def _density(image: Image.Image) -> float:
    """Pixels across over pixels down, in the same length. It is 1 where the file does not say."""
    for name in ("dpi", "aspect", "jfif_density"):
        try:
            across, down = map(float, image.info[name])
        except (KeyError, TypeError, ValueError, ZeroDivisionError):
            continue
        if across > 0 and down > 0:
            return across / down
    return 1.0
