"""DICOM radiographs as other people's software writes them: read right, or refused by name, with notes of what is odd."""

import struct
import sys

import hostile
import numpy as np
import pytest
from greys import PLAIN, stretched
from hostile import DEEP, GREY, dicom
from PIL import Image
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.pixels.decoders import JPEGLSLosslessDecoder
from pydicom.sequence import Sequence

from diptych.radiographs import presentation
from diptych.radiographs.intensity import Intensity
from diptych.radiographs.limits import ImageError
from diptych.radiographs.read import open_radiograph, read_radiograph

NATIVE = "ExplicitVRLittleEndian"

# --- padding, bits, windows


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("value", [0, 4095, 65535])
@pytest.mark.parametrize("limit", [None, 3])
def test_padding_leaves_the_stretch_and_is_black(photometric, value, limit, read_dicom):
    pixels = DEEP.astype(np.int64) // 2 + 600
    inside = pixels[8:-8, 8:-8].copy()
    pixels[:] = value
    tags = {"PixelPaddingValue": value}
    if limit is not None:  # a range of values, whose other end is written at one corner
        end = value + limit if value == 0 else value - limit
        pixels[:4, :4], tags["PixelPaddingRangeLimit"] = end, end
    pixels[8:-8, 8:-8] = inside
    stored = {"BitsStored": 16, "HighBit": 15} if value == 65535 else {}
    got = read_dicom(pixels.astype(np.uint16), PhotometricInterpretation=photometric, **tags, **stored).pixels
    expected = stretched(-inside if photometric == "MONOCHROME1" else inside)
    assert np.array_equal(got[8:-8, 8:-8], expected)
    got[8:-8, 8:-8] = 0
    assert not got.any()


def test_padding_by_a_negative_value_and_beyond_the_stored_bits(read_dicom):
    signed = DEEP.astype(np.int16) - 500
    signed[:10] = -2000
    for value in (-2000, 65536 - 2000):  # as SS, and as US, which some write
        element = DataElement((0x0028, 0x0120), "SS" if value < 0 else "US", value)
        got = read_dicom(signed, more=[element], BitsStored=16, HighBit=15).pixels
        assert not got[:10].any()
        assert np.array_equal(got[10:], stretched(signed[10:]))
    beyond = DEEP.copy()
    beyond[:10] = 63536  # more than twelve bits hold
    got = read_dicom(beyond, PixelPaddingValue=63536).pixels
    assert not got[:10].any()
    assert np.array_equal(got[10:], stretched(DEEP[10:]))


def test_padding_alone_is_flat_and_padding_that_is_not_there_changes_nothing(read_dicom):
    with pytest.raises(ImageError, match=r"flat \(every pixel is padding"):
        read_dicom(np.full((20, 20), 7, np.uint16), PixelPaddingValue=7)
    assert np.array_equal(read_dicom(PixelPaddingValue=4000).pixels, PLAIN)
    assert np.array_equal(read_dicom(more=[DataElement((0x0028, 0x0120), "US", None)]).pixels, PLAIN)


@pytest.mark.parametrize(
    ("pixels", "tags"),
    [
        (DEEP * 15, {}),  # the header says twelve bits
        (DEEP, {"BitsStored": 8, "HighBit": 7}),
        (DEEP, {"BitsStored": 12, "HighBit": 15}),
        (DEEP, {"BitsStored": 16, "HighBit": 11}),
        (DEEP, {"BitsStored": 12, "HighBit": 16}),
        (DEEP, {"BitsStored": 17, "HighBit": 16}),
        (DEEP, {"BitsStored": 0, "HighBit": 0}),
        (GREY, {"BitsStored": 7, "HighBit": 6}),
        (DEEP.astype(np.int16) * 12 - 9000, {}),
    ],
)
def test_bits_that_contradict_the_values_are_refused(pixels, tags, read_dicom):
    with pytest.raises(ImageError, match=r"BitsStored \d+.*HighBit \d+.*correct the header") as caught:
        read_dicom(pixels, **tags)
    assert caught.value.rule == "corrupt image"


@pytest.mark.parametrize(
    "name", ["RLELossless", "JPEGLSLossless", "JPEG2000Lossless", "JPEGLosslessSV1", "ExplicitVRBigEndian"]
)
def test_bits_are_judged_in_every_encoding(name, write):
    raw = dicom(name, DEEP * 15, BitsStored=16, HighBit=15)
    assert np.array_equal(read_radiograph(write(raw)), stretched(DEEP))
    order = ">HH" if name == "ExplicitVRBigEndian" else "<HH"
    tag, value = (struct.pack(order, 0x0028, 0x0101) + b"US", struct.pack(order, 2, 16))
    at = raw.index(tag) + 6
    assert raw[at : at + 4] == value
    raw = raw[:at] + struct.pack(order, 2, 12) + raw[at + 4 :]
    at = raw.index(struct.pack(order, 0x0028, 0x0102) + b"US") + 6
    raw = raw[:at] + struct.pack(order, 2, 11) + raw[at + 4 :]
    with pytest.raises(ImageError, match="BitsStored 12 and HighBit 11"):
        read_radiograph(write(raw))


def test_values_at_the_upper_end_of_their_word_and_signs_of_twelve_bits(read_dicom):
    assert np.array_equal(read_dicom(DEEP << 4, HighBit=15).pixels, PLAIN)
    signed = DEEP.astype(np.int16) - 1700
    assert np.array_equal(read_dicom(signed).pixels, PLAIN)  # the sign is carried on
    cut = (signed.view(np.uint16) & 0x0FFF).view(np.int16)
    assert np.array_equal(read_dicom(cut).pixels, PLAIN)  # it is not


@pytest.mark.parametrize(
    ("photometric", "shape", "inverted", "notes"),
    [
        ("MONOCHROME2", "INVERSE", True, (presentation.INVERSE,)),
        ("MONOCHROME1", "INVERSE", True, ()),
        ("MONOCHROME1", "IDENTITY", True, ()),
        ("MONOCHROME2", "IDENTITY", False, ()),
    ],
)
def test_an_inverse_presentation_is_inverted_once(photometric, shape, inverted, notes, read_dicom):
    got = read_dicom(PhotometricInterpretation=photometric, PresentationLUTShape=shape)
    assert np.array_equal(got.pixels, stretched(-DEEP.astype(int)) if inverted else PLAIN)
    assert got.notes == notes


def windowed(center, width):
    return stretched(np.clip((DEEP - (center - 0.5)) / (width - 1) + 0.5, 0, 1))


@pytest.mark.parametrize(
    ("center", "width", "function"),
    [(2000, 0, ""), (2000, 0.5, ""), (2000, -400, ""), (2000, 0, "SIGMOID"), (2000, -1, "LINEAR_EXACT"), (2000, None, ""),
     (None, 900, ""), ([1500, 2000], [0, 0], "")],
)  # fmt: skip
def test_an_impossible_window_is_ignored_and_told(center, width, function, read_dicom):
    tags = {"WindowCenter": center, "WindowWidth": width, "VOILUTFunction": function}
    got = read_dicom(**{name: value for name, value in tags.items() if value not in (None, "")})
    assert np.array_equal(got.pixels, PLAIN)
    assert got.notes == (presentation.WINDOW,)


def test_empty_windows_and_rescales_are_none(read_dicom):
    empty = [DataElement(tag, "DS", None) for tag in ((0x28, 0x1050), (0x28, 0x1051), (0x28, 0x1052), (0x28, 0x1053))]
    got = read_dicom(more=empty)
    assert np.array_equal(got.pixels, PLAIN)
    assert got.notes == ()
    got = read_dicom(RescaleSlope=0, RescaleIntercept=5)
    assert np.array_equal(got.pixels, PLAIN)
    assert got.notes == (presentation.RESCALED,)


@pytest.mark.parametrize("word", [b"wide", b"NaN ", b"inf ", b"1,5 "])
def test_numbers_that_are_none_are_ignored_and_told(word, write):
    raw = dicom(NATIVE, WindowCenter=2000, WindowWidth=8765, RescaleSlope=7, RescaleIntercept=4321)
    got = open_radiograph(write(raw.replace(b"8765", word).replace(b"4321", word)))
    assert np.array_equal(got.pixels, PLAIN)
    assert got.notes == (presentation.RESCALED, presentation.WINDOW)


def test_a_window_after_a_negative_slope_or_a_lut_after_a_slope(read_dicom):
    got = read_dicom(RescaleSlope=-1, RescaleIntercept=4095, WindowCenter=4095 - 1500, WindowWidth=900).pixels
    assert np.abs(got - (255 - windowed(1500, 900))).max() <= 1
    lut = Dataset()
    lut.LUTDescriptor, lut.LUTData = [4096, 0, 16], [(i * i) // 256 for i in range(4096)]
    lut["LUTDescriptor"].VR = lut["LUTData"].VR = "US"
    got = read_dicom(VOILUTSequence=Sequence([lut]), RescaleSlope=1, RescaleIntercept=0).pixels
    assert np.array_equal(got, stretched(DEEP.astype(int) ** 2 // 256))


def test_one_window_of_several_or_none(read_dicom):
    tags = {"WindowCenter": [1500, 1000], "WindowWidth": [900, 300]}
    for window, center, width in ((0, 1500, 900), (1, 1000, 300)):
        assert (
            np.abs(read_dicom(intensity=Intensity(window=window), **tags).pixels - windowed(center, width)).max() <= 1
        )
    got = read_dicom(intensity=Intensity(window=5), **tags)
    assert np.abs(got.pixels - windowed(1000, 300)).max() <= 1
    assert got.notes == (presentation.FEWER,)
    assert np.array_equal(read_dicom(intensity=Intensity(window=None), **tags).pixels, PLAIN)
    with pytest.raises(ImageError, match=r"the window leaves nothing.*loading.intensity.window: null"):
        read_dicom(WindowCenter=60000, WindowWidth=10)


# --- how the picture lies


@pytest.mark.parametrize(
    ("tags", "aspect"),
    [
        ({"PixelAspectRatio": [2, 1]}, 2),
        ({"PixelAspectRatio": [1, 2]}, 0.5),
        ({"PixelSpacing": [0.2, 0.1]}, 2),
        ({"ImagerPixelSpacing": [0.1, 0.15]}, 1 / 1.5),
        ({"NominalScannedPixelSpacing": [0.3, 0.2]}, 1.5),
        ({"PixelSpacing": [0.2, 0.1], "PixelAspectRatio": [1, 1]}, 2),
    ],
)
def test_pixels_that_are_not_square_are_resampled(tags, aspect, read_dicom):
    got = read_dicom(**tags)
    height, width = DEEP.shape
    shape = (round(height * aspect), width) if aspect > 1 else (height, round(width / aspect))
    assert got.pixels.shape == shape
    assert got.notes == (presentation.OBLONG,)
    assert got.aspect == pytest.approx(aspect)
    small = np.asarray(Image.fromarray(got.pixels).resize((width, height)))
    assert np.abs(small.astype(int) - PLAIN).mean() < 3


@pytest.mark.parametrize("tags", [{"PixelSpacing": [0.143, 0.1431]}, {"PixelSpacing": [0, 0.2]}, {"PixelAspectRatio": [0, 0]},
                                  {"PixelSpacing": [-1, 1]}, {"PixelAspectRatio": [1, 1]}])  # fmt: skip
def test_square_pixels_and_sides_that_are_none_change_nothing(tags, read_dicom):
    got = read_dicom(**tags)
    assert np.array_equal(got.pixels, PLAIN)
    assert got.notes == ()


def test_absurd_pixels_are_refused(read_dicom, monkeypatch):
    with pytest.raises(ImageError, match=r"PixelAspectRatio is 1000, 1; .*correct the header"):
        read_dicom(PixelAspectRatio=[1000, 1])
    monkeypatch.setattr(presentation, "MAX_PIXELS", 80 * 64 + 1)
    with pytest.raises(ImageError, match="with square pixels") as caught:
        read_dicom(PixelAspectRatio=[2, 1])
    assert caught.value.rule == "oversized image"


@pytest.mark.parametrize(
    ("tags", "notes"),
    [
        ({"PatientOrientation": ["L", "F"]}, ()),
        ({"PatientOrientation": ["R", "F"]}, (presentation.MIRRORED,)),
        ({"PatientOrientation": ["RH", "FP"]}, (presentation.MIRRORED,)),
        ({"PatientOrientation": ["L", "H"]}, (presentation.TURNED,)),
        ({"PatientOrientation": ["F", "L"]}, (presentation.TURNED,)),
        ({"PatientOrientation": ["A", "F"]}, ()),  # lateral, either way
        ({"PatientOrientation": ["P", "F"]}, ()),
        ({"PatientOrientation": ["A", "H"]}, (presentation.TURNED,)),
        ({"PatientOrientation": None}, ()),
        ({"FieldOfViewRotation": 90}, (presentation.DETECTOR,)),
        ({"FieldOfViewRotation": 0, "FieldOfViewHorizontalFlip": "NO"}, ()),
        ({"FieldOfViewHorizontalFlip": "YES"}, (presentation.DETECTOR,)),
        ({"FieldOfViewHorizontalFlip": "YES", "PatientOrientation": ["L", "F"]}, ()),
    ],
)
def test_how_the_picture_lies_is_told_and_the_pixels_stay(tags, notes, read_dicom):
    got = read_dicom(**tags)
    assert np.array_equal(got.pixels, PLAIN)
    assert got.notes == notes


# --- frames


@pytest.mark.parametrize("padding", [b"\0", b"\xff"])
@pytest.mark.parametrize("name", ["JPEGBaseline8Bit", "JPEGLosslessSV1", "JPEGLossless", "JPEGExtended12Bit"])
def test_a_frame_of_odd_length_is_filled_up_by_either_byte(name, padding, write):
    pixels = GREY if "8Bit" in name else DEEP
    for cut in range(8):  # so that some frame is odd
        part = np.ascontiguousarray(pixels[: 80 - cut])
        odd = len(hostile.frame(name, part)) % 2
        got = read_radiograph(write(dicom(name, part, padding=padding)))
        assert np.abs(got.astype(int) - stretched(part)).max() <= (0 if "Lossless" in name else 16)
        if odd:
            return
    raise AssertionError("no frame of an odd length")


@pytest.mark.parametrize("predictor", range(1, 8))
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_lossless_jpeg_of_every_predictor_and_depth(predictor, bits, write, monkeypatch):
    import imagecodecs

    pixels = DEEP * 15 if bits == 16 else DEEP >> (12 - bits) if bits < 12 else DEEP
    pixels = pixels.astype(np.uint8) if bits == 8 else pixels
    coded = imagecodecs.jpeg8_encode(pixels, lossless=True, predictor=predictor, bitspersample=bits)
    monkeypatch.setattr(hostile, "frame", lambda *_: coded)
    raw = dicom("JPEGLossless", pixels, BitsStored=bits, HighBit=bits - 1)
    assert np.array_equal(read_radiograph(write(raw)), stretched(pixels))


def test_a_missing_decoder_is_named_with_its_remedy(write, monkeypatch):
    lossless, ls = (write(dicom(name, DEEP), name) for name in ("JPEGLosslessSV1", "JPEGLSLossless"))
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    with pytest.raises(
        ImageError, match=r"needs the package imagecodecs; run `pip install diptych\[dicom\]`$"
    ) as caught:
        read_radiograph(lossless)
    assert caught.value.rule == "unsupported image"
    monkeypatch.setattr(JPEGLSLosslessDecoder, "_available", {})
    monkeypatch.setattr(JPEGLSLosslessDecoder, "_unavailable", {"pyjpegls": ("numpy", "pyjpegls>=1.2")})
    with pytest.raises(ImageError, match=r"needs the package pyjpegls; .*on Python 3.14 `pip install pyjpegls`"):
        read_radiograph(ls)
