"""Radiographs in DICOM: from a file's bytes to stored pixels and what they mean.

The header is checked before a pixel is decoded. A compressed frame must have the size that the header says, and an end.
The decoders check neither: they allocate what a forged size asks for, and pad what a truncated file lacks.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import uid
from pydicom.encaps import get_frame
from pydicom.filereader import read_dataset, read_preamble

from diptych.radiographs.limits import MAX_BYTES, MAX_PIXELS, ImageError, refuse
from diptych.radiographs.presentation import aspect_of, brightness_of, tell_orientation, values_of
from diptych.radiographs.read import DecodedPicture

__all__ = ["decode"]

_LOSSLESS = {uid.JPEGLossless, uid.JPEGLosslessSV1}
_JPEG = {uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, *_LOSSLESS, *uid.JPEGLSTransferSyntaxes}
# Each has one decoder, so that no other installed package changes a picture. GDCM is not among them: it ends the whole
# process on a damaged lossless frame, as mutated files showed. Nor is pylibjpeg-libjpeg, which is GPL.
_DECODER = {
    uid.ImplicitVRLittleEndian: "",
    uid.ExplicitVRLittleEndian: "",
    uid.ExplicitVRBigEndian: "",
    uid.RLELossless: "pydicom",
    uid.JPEGBaseline8Bit: "pillow",
    **dict.fromkeys((uid.JPEGExtended12Bit, *_LOSSLESS), "imagecodecs"),
    **dict.fromkeys(uid.JPEGLSTransferSyntaxes, "pyjpegls"),
    **dict.fromkeys(uid.JPEG2000TransferSyntaxes, "pylibjpeg"),
}
_SIZES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}  # JPEG's frame headers, and JPEG-LS's


def decode(raw: bytes, *, source: str, window: int | None = 0) -> DecodedPicture:
    """The stored pixels of a DICOM radiograph, and their brightness as a function of the stored value.

    Args:
        raw: the whole file. It may lack the preamble.
        source: the file's name, for messages.
        window: which window is applied, from 0 on. None ignores windows.

    Returns:
        Pixels of an 8 or 16 bit integer type. Their brightness is modality LUT, window and inversion in one function.

    Raises:
        ImageError: several frames, an unsupported kind, over the limits, truncated. Other exceptions: corrupt.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom warns of every small fault of a header
        dataset = _parse(raw, source)
        photometric = _check(dataset, source)
        pixels = _pixels(dataset, source)
        if pixels.ndim != 2 or pixels.dtype.itemsize > 2 or pixels.dtype.kind not in "iu":
            message = f"{source}: pixels of shape {pixels.shape}; a radiograph has one grey frame"
            raise refuse("unsupported image", message)
        pixels = np.ascontiguousarray(pixels.astype(pixels.dtype.newbyteorder("="), copy=False))
        stored, keep = values_of(pixels, dataset, source)
        del dataset.PixelData
        notes: list[str] = []
        brightness = brightness_of(dataset, photometric, window, notes)
        aspect = aspect_of(dataset, notes, source)
        tell_orientation(dataset, notes)
    return DecodedPicture(stored, brightness, keep, tuple(notes), aspect)


def _pixels(dataset: pydicom.FileDataset, source: str) -> NDArray[Any]:
    """The pixels as they are stored, with the unused bits."""
    syntax = dataset.file_meta.TransferSyntaxUID
    plugin = _DECODER[syntax]
    if not syntax.is_encapsulated:
        _check_length(dataset, source)
    elif syntax != uid.RLELossless:  # pydicom's own decoder of it compares lengths
        frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
        _check_frame(frame, syntax, dataset, source)
        if plugin == "imagecodecs":
            try:
                from imagecodecs import jpeg8_decode
            except ImportError as error:
                raise _needs(syntax, source) from error
            return np.asarray(jpeg8_decode(frame))
    if plugin:
        dataset.pixel_array_options(decoding_plugin=plugin, correct_unused_bits=False)
    else:
        dataset.pixel_array_options(correct_unused_bits=False)
    try:
        return np.asarray(dataset.pixel_array)
    except RuntimeError as error:
        if "missing dependencies" not in str(error):
            raise
        raise _needs(syntax, source) from error


def _needs(syntax: uid.UID, source: str) -> ImageError:
    package = _DECODER[syntax]
    remedy = "run `pip install diptych[dicom]`"
    if package == "pyjpegls":
        remedy += ", or on Python 3.14 `pip install pyjpegls`, which compiles it"
    message = f"{source}: {syntax.name} needs the package {package}; {remedy}"
    return refuse("unsupported image", message)


def _parse(raw: bytes, source: str) -> pydicom.FileDataset:
    """Parse the file. A deflated one is inflated here, up to the limit on bytes."""
    file = io.BytesIO(raw)
    read_preamble(file, force=True)
    meta = read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
    deflated = meta.get("TransferSyntaxUID") == uid.DeflatedExplicitVRLittleEndian
    if deflated:
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        raw = inflater.decompress(raw[file.tell() :], MAX_BYTES)
        if not inflater.eof:
            whole = "is larger than the limit" if len(raw) == MAX_BYTES else "is truncated"
            rule = "oversized image" if len(raw) == MAX_BYTES else "truncated image"
            raise refuse(rule, f"{source}: the deflated DICOM file {whole}; repair it or leave it out")
        raw = b"\0" * 128 + b"DICM" + raw
    dataset = pydicom.dcmread(io.BytesIO(raw), force=True)
    if deflated:
        dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    elif "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        plain = uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian if implicit else plain
    return dataset


def _check(dataset: pydicom.FileDataset, source: str) -> str:
    """Check the header. Returns the photometric interpretation."""
    rows, columns = int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0)
    if rows < 1 or columns < 1:
        raise refuse("corrupt image", f"{source}: not a DICOM image (no Rows and Columns); leave it out")
    if rows * columns > MAX_PIXELS:
        message = f"{source}: {columns}x{rows} pixels is over the limit of {MAX_PIXELS}; leave it out"
        raise refuse("oversized image", message)
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames != 1:
        raise refuse("several frames", f"{source}: {frames} frames; a radiograph has one")
    photometric = str(dataset.get("PhotometricInterpretation", ""))
    if photometric not in {"MONOCHROME1", "MONOCHROME2"} or int(dataset.get("SamplesPerPixel") or 1) != 1:
        shown = repr(photometric[:40])
        message = f"{source}: PhotometricInterpretation is {shown}; a radiograph is MONOCHROME1 or MONOCHROME2"
        raise refuse("unsupported image", message)
    if int(dataset.get("BitsAllocated") or 0) not in {8, 16}:
        message = f"{source}: BitsAllocated is {dataset.get('BitsAllocated')}; a radiograph has 8 or 16"
        raise refuse("unsupported image", message)
    allocated, used = int(dataset.BitsAllocated), int(dataset.get("BitsStored") or 0)
    high = int(used - 1 if dataset.get("HighBit") is None else dataset.HighBit)
    if not (1 <= used <= high + 1 <= allocated):
        message = (
            f"{source}: BitsAllocated {allocated}, BitsStored {used} and HighBit {high} contradict each other; correct the "
            "header or leave it out"
        )
        raise refuse("corrupt image", message)
    dataset.HighBit = high
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax not in _DECODER:
        message = (
            f"{source}: the transfer syntax {syntax.name[:80]!r} is not read; convert it (`gdcmconv --raw IN OUT`)"
        )
        raise refuse("unsupported image", message)
    if "PixelData" not in dataset or not dataset.PixelData:
        raise refuse("truncated image", f"{source}: the DICOM file has no pixel data; repair it or leave it out")
    return photometric


def _check_length(dataset: pydicom.FileDataset, source: str) -> None:
    expected = dataset.Rows * dataset.Columns * dataset.BitsAllocated // 8
    if len(dataset.PixelData) < expected:
        message = f"{source}: {len(dataset.PixelData)} bytes of pixels where {expected} belong; the file is truncated"
        raise refuse("truncated image", message)


def _check_frame(frame: bytes, syntax: uid.UID, dataset: pydicom.FileDataset, source: str) -> None:
    """Refuse a JPEG, JPEG-LS or JPEG 2000 frame of another size than the header's, or without an end."""
    size = _jpeg_size(frame) if syntax in _JPEG else _jpeg2000_size(frame)
    if size != (dataset.Rows, dataset.Columns, 1):
        content = "unreadable" if size is None else f"{size[1]}x{size[0]} pixels of {size[2]} value(s)"
        message = (
            f"{source}: the {syntax.name} frame is {content}, the header says {dataset.Columns}x{dataset.Rows} of 1"
        )
        raise refuse("corrupt image", message)
    if frame[-4096:].rstrip(b"\0\xff")[-2:] != b"\xff\xd9":  # an encoder pads an odd frame by either
        message = f"{source}: the {syntax.name} frame has no end; the file is truncated"
        raise refuse("truncated image", message)


def _jpeg_size(frame: bytes) -> tuple[int, int, int] | None:
    """Rows, columns and components by a JPEG's frame header. None where there is no such header."""
    at = 2
    while at + 10 <= len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker in _SIZES:
            rows, columns, components = struct.unpack(">HHB", frame[at + 5 : at + 10])
            return rows, columns, components
        at += 1 if marker == 0xFF else 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
    return None


def _jpeg2000_size(frame: bytes) -> tuple[int, int, int] | None:
    """Rows, columns and components by a JPEG 2000 code stream. None where there is no such stream."""
    at = frame.find(b"\xff\x4f\xff\x51", 0, 4096)  # a file format's boxes may stand before it
    if at < 0 or at + 42 > len(frame):
        return None
    x1, y1, x0, y0 = struct.unpack(">4I", frame[at + 8 : at + 24])
    return y1 - y0, x1 - x0, int.from_bytes(frame[at + 40 : at + 42], "big")
