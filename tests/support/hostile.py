"""Seeds of every encoding, their hostile mutants, and a process that reads them all within a limit of memory.

Run as a script: ``hostile.py NUMBER SEED FOLDER`` prints one JSON line; a crash of a decoder ends it with a signal.
"""

import io
import json
import resource
import signal
import struct
import sys
import time
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image
from pydicom import uid
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate

GREY = np.clip(
    np.add.outer(np.arange(80) * 2, np.arange(64)) + np.random.default_rng(0).integers(0, 9, (80, 64)), 0, 255
)
GREY = GREY.astype(np.uint8)
DEEP = GREY.astype(np.uint16) * 13 + np.random.default_rng(1).integers(0, 13, (80, 64)).astype(np.uint16)
TEMPLATE = [
    ("ImplicitVRLittleEndian", DEEP), ("ExplicitVRLittleEndian", DEEP), ("ExplicitVRBigEndian", DEEP),
    ("DeflatedExplicitVRLittleEndian", DEEP), ("RLELossless", DEEP), ("JPEG2000Lossless", DEEP), ("JPEG2000", DEEP),
    ("JPEGLSLossless", DEEP), ("JPEGBaseline8Bit", GREY), ("JPEGLosslessSV1", DEEP), ("JPEGLossless", DEEP),
    ("JPEGExtended12Bit", DEEP),
]  # fmt: skip


def frame(name, pixels):
    """Bytes of a JPEG frame."""
    import imagecodecs

    if name == "JPEGBaseline8Bit":
        return picture(Image.fromarray(pixels), "JPEG", quality=95)
    if name == "JPEGExtended12Bit":
        return imagecodecs.jpeg8_encode(pixels, 98, bitspersample=12)
    predictor = 1 if name == "JPEGLosslessSV1" else 6
    bits = 8 if pixels.dtype == np.uint8 else max(int(pixels.max()).bit_length(), 12)
    return imagecodecs.jpeg8_encode(pixels, lossless=True, predictor=predictor, bitspersample=bits)


def dicom(name, pixels=DEEP, more=(), padding=b"\0", **tags):
    """Bytes of a DICOM file in a transfer syntax; ``padding`` fills up a compressed frame of an odd length."""
    syntax = getattr(uid, name)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax if not syntax.is_compressed or syntax.is_deflated else uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    big = name == "ExplicitVRBigEndian"
    implicit = name == "ImplicitVRLittleEndian"
    data = FileDataset("", {}, b"\0" * 128, meta, is_implicit_VR=implicit, is_little_endian=not big)
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    bits = pixels.dtype.itemsize * 8
    stored = 8 if bits == 8 else 12
    data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit = bits, stored, stored - 1
    data.PixelRepresentation = int(pixels.dtype.kind == "i")
    data.PixelData = pixels.astype(pixels.dtype.newbyteorder(">" if big else "<")).tobytes()
    data["PixelData"].VR = "OW" if bits == 16 else "OB"
    for key, value in tags.items():
        setattr(data, key, value)
    for element in more:
        data.add(element)
    if name in {"JPEGBaseline8Bit", "JPEGExtended12Bit", "JPEGLossless", "JPEGLosslessSV1"}:
        coded = frame(name, pixels)
        data.PixelData, meta.TransferSyntaxUID = encapsulate([coded + padding * (len(coded) % 2)]), syntax
        data["PixelData"].VR = "OB"
    elif syntax.is_compressed and not syntax.is_deflated:
        data.compress(syntax, **({"j2k_cr": [5]} if name == "JPEG2000" else {}), generate_instance_uid=False)
    out = io.BytesIO()
    data.save_as(out, enforce_file_format=True)
    return out.getvalue()


def picture(image, kind, **options):
    """Bytes of a picture file."""
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def deep_png(values, chunks=b""):
    """Bytes of a PNG of 16 bits a colour, ``[h,v]`` or ``[h,v,2..4]``, which PIL cannot write."""
    h, v, colours = (*values.shape, 1)[:3]

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", v, h, 16, {1: 0, 2: 4, 3: 2, 4: 6}[colours], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    data = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunks + data + chunk(b"IEND", b"")


def seeds():
    """Name to (bytes, suffix)."""
    found = {name: (dicom(name, pixels), ".dcm") for name, pixels in TEMPLATE}
    found["no preamble"] = (dicom("ExplicitVRLittleEndian")[132:], ".dcm")
    found["window"] = (dicom("ExplicitVRLittleEndian", WindowCenter=1500, WindowWidth=900), ".dcm")
    found["png8"] = (picture(Image.fromarray(GREY), "PNG"), ".png")
    found["png16"] = (picture(Image.fromarray(DEEP), "PNG"), ".png")
    found["rgba"] = (picture(Image.fromarray(GREY).convert("RGBA"), "PNG"), ".png")
    found["jpeg"] = (picture(Image.fromarray(GREY), "JPEG"), ".jpg")
    found["rgb16"] = (deep_png(np.stack([DEEP * 9] * 3, axis=-1)), ".png")
    found["la16"] = (deep_png(np.stack([DEEP, DEEP * 15], axis=-1)), ".png")
    for name, image in (("8", GREY), ("16", DEEP)):
        for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate"):
            options = {"compression": compression, "tiffinfo": {274: 6}}
            found[f"tiff{name} {compression}"] = (picture(Image.fromarray(image), "TIFF", **options), ".tif")
    found["webp"] = (picture(Image.fromarray(GREY), "WEBP"), ".webp")
    found["webp lossless"] = (picture(Image.fromarray(GREY), "WEBP", lossless=True), ".webp")
    found["bmp"] = (picture(Image.fromarray(GREY), "BMP"), ".bmp")
    return found


_HEADER = ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "SamplesPerPixel", "PixelRepresentation")
_TAGS = (*_HEADER, "PhotometricInterpretation", "PixelData", "WindowCenter", "WindowWidth", "NumberOfFrames")


def mutate(raw, suffix, rng):
    """One hostile file: bytes flipped, cut, spliced, a tag removed, or an absurd size."""
    kind = rng.choice(["flip", "head", "cut", "fill", "tag", "size"])
    data = bytearray(raw)
    if kind in {"tag", "size"} and suffix == ".dcm":
        try:
            dataset = pydicom.dcmread(io.BytesIO(raw), force=True)
            name = str(rng.choice(_TAGS if kind == "tag" else _HEADER))
            if kind == "tag" and name in dataset:
                del dataset[name]
            else:
                setattr(dataset, name, int(rng.choice([0, 1, 7, 64, 4096, 40_000, 65_535])))
            out = io.BytesIO()
            dataset.save_as(out, enforce_file_format=False, implicit_vr=False, little_endian=True)
            return kind, out.getvalue()
        except Exception:  # what pydicom refuses to write is flipped instead
            kind = "head"
    if kind == "size":  # the sizes in a PNG's or JPEG's own header
        at = 16 if suffix == ".png" else max(raw.find(b"\xff\xc0") + 5, 4)
        data[at : at + 4] = rng.bytes(4)
    elif kind == "cut":
        data = data[: int(rng.integers(len(data)))]
    elif kind == "fill":
        at = int(rng.integers(len(data)))
        data[at : at + int(rng.integers(1, 200))] = bytes([int(rng.choice([0, 255, 128]))]) * int(rng.integers(1, 400))
    else:
        last = min(len(data), 1200) if kind == "head" else len(data)
        for at in rng.integers(0, last, int(rng.choice([1, 4, 32]))):
            data[at] = int(rng.integers(256))
    return kind, bytes(data)


def peak():
    """MiB that this process had at most; ``ru_maxrss`` would begin at what its parent had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def main(number, seed, folder):
    """Read ``number`` mutants; print what became of them."""
    from diptych.radiographs.limits import ImageError
    from diptych.radiographs.read import read_radiograph

    rng = np.random.default_rng(seed)
    sources = sorted(seeds().items())
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + 2**30, now + 2**30))
    before = peak()
    counts, slowest = Counter(), 0.0
    for i in range(number):
        name, (raw, suffix) = sources[i % len(sources)]
        kind, mutant = mutate(raw, suffix, rng)
        path = folder / f"mutant{suffix}"
        path.write_bytes(mutant)
        signal.alarm(20)  # a hang ends the process
        start = time.perf_counter()
        try:
            picture = read_radiograph(path)
            assert picture.dtype == np.uint8
            assert picture.ndim == 2
            assert picture.min() < picture.max()
            counts["decoded"] += 1
        except ImageError as error:
            if str(path) not in str(error) or "\n" in str(error) or error.rule == "unreadable image":
                raise RuntimeError(f"not a named error: {error!r}") from error
            counts[error.rule] += 1
            if "MemoryError" in str(error):
                (folder / f"memory-{i}{suffix}").write_bytes(mutant)
                counts["MemoryError"] += 1
        except BaseException:
            print(f"{name}, {kind}, mutant {i}", file=sys.stderr)
            raise
        signal.alarm(0)
        slowest = max(slowest, time.perf_counter() - start)
    grown = peak() - before
    print(json.dumps({"counts": counts, "slowest": slowest, "grown_mib": grown, "seeds": [n for n, _ in sources]}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
