"""Radiographs as other people's software writes them: right, or named; and what is told of those that are odd."""

import io
import os
import struct
import zlib
from pathlib import Path

import hostile
import numpy as np
import pytest
from hostile import DEEP, GREY, deep_png, dicom, picture
from PIL import Image
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from diptych.errors import ConfigError
from diptych.radiographs import pictures, presentation
from diptych.radiographs.intensity import Intensity
from diptych.radiographs.limits import ImageError
from diptych.radiographs.pictures import kind_of
from diptych.radiographs.read import open_radiograph, read_mask, read_radiograph, read_radiograph_float

NATIVE = "ExplicitVRLittleEndian"


@pytest.fixture
def write(tmp_path):
    def put(raw, name="x"):
        (tmp_path / name).write_bytes(raw)
        return tmp_path / name

    return put


@pytest.fixture
def told(write):
    """Picture and notes of a DICOM file of these pixels and tags."""

    def read(pixels=DEEP, intensity=Intensity(), name=NATIVE, **tags):  # noqa: B008  # frozen
        return open_radiograph(write(dicom(name, pixels, **tags)), intensity)

    return read


def stretched(values, low=None, high=None):
    low, high = values.min() if low is None else low, values.max() if high is None else high
    return np.rint(np.clip((values.astype(float) - low) / (float(high) - low), 0, 1) * 255)


PLAIN = stretched(DEEP)

# --- pictures


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP", "deep PNG", "TIFF lzw"])
def test_an_exif_orientation_is_applied(kind, orientation, write):
    """The stored picture is what a camera held sideways stores; PIL's own transposition is the twin."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # PIL's transposition that undoes each
    upright = Image.fromarray(GREY)
    stored = upright.transpose(back[orientation]) if orientation > 1 else upright
    if kind == "deep PNG":
        data = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
        chunk = struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))
        raw = deep_png(np.stack([np.asarray(stored).astype(np.uint16) * 257] * 3, axis=-1), chunk)
    elif kind.startswith("TIFF"):
        options = {"compression": "tiff_lzw"} if "lzw" in kind else {}
        raw = picture(stored, "TIFF", tiffinfo={0x0112: orientation}, **options)
    else:
        raw = picture(stored, kind, exif=exif.tobytes(), **({"lossless": True} if kind == "WEBP" else {"quality": 98}))
    got = open_radiograph(write(raw))
    assert got.pixels.shape == GREY.shape
    limit = 6 if kind == "JPEG" else 0
    expected = stretched(GREY) if kind == "deep PNG" else GREY
    assert np.abs(got.pixels.astype(int) - expected).max() <= limit
    if not kind.startswith("TIFF"):
        assert got.notes == ((pictures.TURNED,) if orientation > 1 else ())


def test_a_mask_and_a_pil_picture_are_turned_alike(write):
    exif = Image.Exif()
    exif[0x0112] = 6
    sideways = Image.fromarray((GREY > 120).astype(np.uint8) * 255).transpose(Image.Transpose.ROTATE_90)
    raw = picture(sideways, "PNG", exif=exif.tobytes())
    assert np.array_equal(read_mask(write(raw)), GREY > 120)
    from diptych.radiographs.read import grey_of

    assert np.array_equal(grey_of(Image.open(io.BytesIO(raw)), source="x") > 0, GREY > 120)


@pytest.mark.parametrize("colours", [2, 3, 4])
def test_sixteen_bit_colours_keep_their_low_byte(colours, write):
    """Twelve bits in sixteen: the high bytes hold sixteen levels."""
    grey = [DEEP] * (1 if colours == 2 else 3)
    alpha = [np.full_like(DEEP, 65535)] * (colours in {2, 4})
    got = read_radiograph_float(write(deep_png(np.stack([*grey, *alpha], axis=-1))))
    assert np.allclose(got, (DEEP - DEEP.min()) / float(DEEP.max() - DEEP.min()), atol=1e-6)
    assert len(np.unique(got)) > 1000
    opened = read_radiograph(write(deep_png(DEEP)))
    assert np.array_equal(read_radiograph(write(deep_png(np.stack([*grey, *alpha], axis=-1)))), opened)


def test_what_is_transparent_in_sixteen_bits_is_black_padding(write):
    alpha = np.full_like(DEEP, 65535)
    alpha[:, :8] = 0
    got = read_radiograph(write(deep_png(np.stack([DEEP, alpha], axis=-1))))
    assert not got[:, :8].any()
    assert np.array_equal(got[:, 8:], stretched(DEEP[:, 8:]))


def test_colours_of_sixteen_bits_become_luminance(write):
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 65536, (20, 30, 3)).astype(np.uint16)
    weighed = colour @ np.array([0.299, 0.587, 0.114])
    got = read_radiograph_float(write(deep_png(colour)))
    assert np.allclose(got, (weighed - weighed.min()) / np.ptp(weighed), atol=1e-4)


@pytest.mark.parametrize("kind", ["TIFF", "WEBP", "BMP"])
def test_other_pictures_are_read(kind, write):
    raw = picture(Image.fromarray(GREY), kind, **({"lossless": True} if kind == "WEBP" else {}))
    assert np.array_equal(read_radiograph(write(raw, "x.png")), GREY)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_tiff_of_every_depth(compression, write):
    def read(image, **tags):
        return read_radiograph(write(picture(Image.fromarray(image), "TIFF", compression=compression, tiffinfo=tags)))

    assert np.array_equal(read(DEEP), PLAIN)
    assert np.array_equal(read(DEEP.astype(np.int32)), PLAIN)
    assert np.array_equal(read(DEEP.astype(np.float32)), PLAIN)


def tiff(values, photometric):
    """A little-endian 16-bit TIFF, not compressed, by hand: PIL writes no other photometric interpretation."""
    h, v = values.shape
    entries = [(256, 4, v), (257, 4, h), (258, 3, 16), (259, 3, 1), (262, 3, photometric), (273, 4, 8 + 2 + 9 * 12 + 4),
               (277, 3, 1), (278, 4, h), (279, 4, 2 * h * v)]  # fmt: skip
    ifd = struct.pack("<H", 9) + b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    return b"II*\0" + struct.pack("<I", 8) + ifd + bytes(4) + values.astype("<u2").tobytes()


def test_tiff_whose_zero_is_white_is_inverted(write):
    assert np.array_equal(read_radiograph(write(tiff(DEEP, 1))), PLAIN)
    assert np.array_equal(read_radiograph(write(tiff(DEEP.max() - DEEP, 0))), PLAIN)


def test_tiff_of_several_pages_or_deep_colours_is_refused(write):
    pages = picture(Image.fromarray(GREY), "TIFF", save_all=True, append_images=[Image.fromarray(GREY)])
    with pytest.raises(ImageError, match="2 TIFF frames or pages") as caught:
        read_radiograph(write(pages))
    assert caught.value.rule == "several frames"
    import cv2

    deep = cv2.imencode(".tiff", np.stack([DEEP] * 3, axis=-1))[1].tobytes()
    with pytest.raises(ImageError, match="a colour TIFF of 16 bits") as caught:
        read_radiograph(write(deep))
    assert caught.value.rule == "unsupported image"


@pytest.mark.parametrize(
    ("raw", "kind", "remedy"),
    [
        (b"", "empty", "get it anew"),
        (bytes(5000), "a file of zero bytes alone", "get the file anew"),
        (b"\n <!DOCTYPE HTML><p>404", "an HTML page", "the download gave a page"),
        (b"<html>404 Not Found</html>", "an HTML page", "the download gave a page"),
        (b"<?xml version='1.0'?>\n<html xmlns='x'>", "an HTML page", "the download gave a page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "an XML file", "get the file anew"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "a git-lfs pointer", "git lfs pull"),
        (b'{"error": 403}', "a JSON file", "get the file anew"),
        ("Zugriff verweigert für Sie".encode(), "a text file", "begins with 'Zugriff verweigert"),
        (b"\x1f\x8b\x08\0" + bytes(99), "a gzip archive", "unpack it"),
        (b"PK\x03\x04" + bytes(99), "a zip archive", "unpack it"),
        (b"%PDF-1.7\n%\xe2\xe3", "a PDF document", "convert"),
        (b"\x93NUMPY\x01\0", "a NumPy array", "convert"),
        (b"GIF89a" + bytes(99), "a GIF picture", "convert it to PNG"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000 picture", "convert it to PNG"),
    ],
)
@pytest.mark.parametrize("name", ["x.png", "x.dcm", "IM000001"])
def test_what_is_no_picture_is_named(raw, kind, remedy, name, write):
    assert kind_of(raw[:1024]) == kind
    with pytest.raises(ImageError, match=remedy) as caught:
        read_radiograph(write(raw, name))
    assert kind.removeprefix("a ") in str(caught.value)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.rule == ("unsupported image" if "picture" in kind else "no image")
    with pytest.raises(ImageError, match=remedy):
        read_mask(write(raw, name))


def test_the_content_decides_what_a_file_is(write):
    for raw in (picture(Image.fromarray(GREY), "PNG"), picture(Image.fromarray(GREY), "WEBP", lossless=True)):
        for name in ("x.dcm", "x.jpg", "IM000001", "x.txt"):
            assert np.array_equal(read_radiograph(write(raw, name)), GREY)
    for transfer in (NATIVE, "ImplicitVRLittleEndian", "ExplicitVRBigEndian", "JPEGLSLossless"):
        for name in ("x.png", "IM000001"):
            raw = dicom(transfer)
            assert np.array_equal(read_radiograph(write(raw, name)), PLAIN)
            if transfer != "JPEGLSLossless":  # its syntax is told nowhere else
                assert np.array_equal(read_radiograph(write(raw[132:], name)), PLAIN)
                without_meta = raw[raw.index(b"\x08\0\x16\0") :] if b"\x08\0\x16\0" in raw else raw
                assert np.array_equal(read_radiograph(write(without_meta, name)), PLAIN)


def test_pixels_of_a_picture_that_are_not_square_are_told(write):
    for kind in ("PNG", "JPEG", "TIFF"):
        wide = open_radiograph(write(picture(Image.fromarray(GREY), kind, dpi=(300, 150))))
        assert wide.notes == (pictures.OBLONG,)
        assert wide.pixels.shape == GREY.shape
        assert open_radiograph(write(picture(Image.fromarray(GREY), kind, dpi=(300, 300)))).notes == ()


# --- DICOM: padding, bits, windows


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("value", [0, 4095, 65535])
@pytest.mark.parametrize("limit", [None, 3])
def test_padding_leaves_the_stretch_and_is_black(photometric, value, limit, told):
    pixels = DEEP.astype(np.int64) // 2 + 600
    inside = pixels[8:-8, 8:-8].copy()
    pixels[:] = value
    tags = {"PixelPaddingValue": value}
    if limit is not None:  # a range of values, whose other end is written at one corner
        end = value + limit if value == 0 else value - limit
        pixels[:4, :4], tags["PixelPaddingRangeLimit"] = end, end
    pixels[8:-8, 8:-8] = inside
    stored = {"BitsStored": 16, "HighBit": 15} if value == 65535 else {}
    got = told(pixels.astype(np.uint16), PhotometricInterpretation=photometric, **tags, **stored).pixels
    expected = stretched(-inside if photometric == "MONOCHROME1" else inside)
    assert np.array_equal(got[8:-8, 8:-8], expected)
    got[8:-8, 8:-8] = 0
    assert not got.any()


def test_padding_by_a_negative_value_and_beyond_the_stored_bits(told):
    signed = DEEP.astype(np.int16) - 500
    signed[:10] = -2000
    for value in (-2000, 65536 - 2000):  # as SS, and as US, which some write
        element = DataElement((0x0028, 0x0120), "SS" if value < 0 else "US", value)
        got = told(signed, more=[element], BitsStored=16, HighBit=15).pixels
        assert not got[:10].any()
        assert np.array_equal(got[10:], stretched(signed[10:]))
    beyond = DEEP.copy()
    beyond[:10] = 63536  # more than twelve bits hold
    got = told(beyond, PixelPaddingValue=63536).pixels
    assert not got[:10].any()
    assert np.array_equal(got[10:], stretched(DEEP[10:]))


def test_padding_alone_is_flat_and_padding_that_is_not_there_changes_nothing(told):
    with pytest.raises(ImageError, match=r"flat \(every pixel is padding"):
        told(np.full((20, 20), 7, np.uint16), PixelPaddingValue=7)
    assert np.array_equal(told(PixelPaddingValue=4000).pixels, PLAIN)
    assert np.array_equal(told(more=[DataElement((0x0028, 0x0120), "US", None)]).pixels, PLAIN)


@pytest.mark.parametrize(
    ("pixels", "tags"),
    [
        (DEEP * 15, {}),  # sixteen bits where twelve are told
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
def test_bits_that_contradict_the_values_are_refused(pixels, tags, told):
    with pytest.raises(ImageError, match=r"BitsStored \d+.*HighBit \d+.*correct the header") as caught:
        told(pixels, **tags)
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


def test_values_at_the_upper_end_of_their_word_and_signs_of_twelve_bits(told):
    assert np.array_equal(told(DEEP << 4, HighBit=15).pixels, PLAIN)
    signed = DEEP.astype(np.int16) - 1700
    assert np.array_equal(told(signed).pixels, PLAIN)  # the sign is carried on
    cut = (signed.view(np.uint16) & 0x0FFF).view(np.int16)
    assert np.array_equal(told(cut).pixels, PLAIN)  # it is not


@pytest.mark.parametrize(
    ("photometric", "shape", "inverted", "notes"),
    [
        ("MONOCHROME2", "INVERSE", True, (presentation.INVERSE,)),
        ("MONOCHROME1", "INVERSE", True, ()),
        ("MONOCHROME1", "IDENTITY", True, ()),
        ("MONOCHROME2", "IDENTITY", False, ()),
    ],
)
def test_an_inverse_presentation_is_inverted_once(photometric, shape, inverted, notes, told):
    got = told(PhotometricInterpretation=photometric, PresentationLUTShape=shape)
    assert np.array_equal(got.pixels, stretched(-DEEP.astype(int)) if inverted else PLAIN)
    assert got.notes == notes


def windowed(center, width):
    return stretched(np.clip((DEEP - (center - 0.5)) / (width - 1) + 0.5, 0, 1))


@pytest.mark.parametrize(
    ("center", "width", "function"),
    [(2000, 0, ""), (2000, 0.5, ""), (2000, -400, ""), (2000, 0, "SIGMOID"), (2000, -1, "LINEAR_EXACT"), (2000, None, ""),
     (None, 900, ""), ([1500, 2000], [0, 0], "")],
)  # fmt: skip
def test_an_impossible_window_is_ignored_and_told(center, width, function, told):
    tags = {"WindowCenter": center, "WindowWidth": width, "VOILUTFunction": function}
    got = told(**{name: value for name, value in tags.items() if value not in (None, "")})
    assert np.array_equal(got.pixels, PLAIN)
    assert got.notes == (presentation.WINDOW,)


def test_empty_windows_and_rescales_are_none(told):
    empty = [DataElement(tag, "DS", None) for tag in ((0x28, 0x1050), (0x28, 0x1051), (0x28, 0x1052), (0x28, 0x1053))]
    got = told(more=empty)
    assert np.array_equal(got.pixels, PLAIN)
    assert got.notes == ()
    got = told(RescaleSlope=0, RescaleIntercept=5)
    assert np.array_equal(got.pixels, PLAIN)
    assert got.notes == (presentation.RESCALED,)


@pytest.mark.parametrize("word", [b"wide", b"NaN ", b"inf ", b"1,5 "])
def test_numbers_that_are_none_are_ignored_and_told(word, write):
    raw = dicom(NATIVE, WindowCenter=2000, WindowWidth=8765, RescaleSlope=7, RescaleIntercept=4321)
    got = open_radiograph(write(raw.replace(b"8765", word).replace(b"4321", word)))
    assert np.array_equal(got.pixels, PLAIN)
    assert got.notes == (presentation.RESCALED, presentation.WINDOW)


def test_a_window_after_a_negative_slope_or_a_lut_after_a_slope(told):
    got = told(RescaleSlope=-1, RescaleIntercept=4095, WindowCenter=4095 - 1500, WindowWidth=900).pixels
    assert np.abs(got - (255 - windowed(1500, 900))).max() <= 1
    lut = Dataset()
    lut.LUTDescriptor, lut.LUTData = [4096, 0, 16], [(i * i) // 256 for i in range(4096)]
    lut["LUTDescriptor"].VR = lut["LUTData"].VR = "US"
    got = told(VOILUTSequence=Sequence([lut]), RescaleSlope=1, RescaleIntercept=0).pixels
    assert np.array_equal(got, stretched(DEEP.astype(int) ** 2 // 256))


def test_one_window_of_several_or_none(told):
    tags = {"WindowCenter": [1500, 1000], "WindowWidth": [900, 300]}
    for window, center, width in ((0, 1500, 900), (1, 1000, 300)):
        assert np.abs(told(intensity=Intensity(window=window), **tags).pixels - windowed(center, width)).max() <= 1
    got = told(intensity=Intensity(window=5), **tags)
    assert np.abs(got.pixels - windowed(1000, 300)).max() <= 1
    assert got.notes == (presentation.FEWER,)
    assert np.array_equal(told(intensity=Intensity(window=None), **tags).pixels, PLAIN)
    with pytest.raises(ImageError, match=r"the window leaves nothing.*loading.intensity.window: null"):
        told(WindowCenter=60000, WindowWidth=10)


@pytest.mark.parametrize("make", [lambda x: dicom(NATIVE, x, BitsStored=16, HighBit=15), deep_png])
def test_percentiles_bear_hot_pixels_and_frames(make, write):
    hot = DEEP.copy()
    hot[5, 5] = 65535
    hot[:1] = 0
    path = write(make(hot))
    assert len(np.unique(read_radiograph(path))) < 20
    got = read_radiograph(path, Intensity(percentiles=(2, 99)))
    low, high = np.percentile(hot, [2, 99], method="inverted_cdf")
    assert np.array_equal(got, stretched(hot, low, high))
    assert len(np.unique(got)) > 200
    exact = read_radiograph_float(path, Intensity(percentiles=(2, 99)))
    assert np.abs(exact * 255 - got).max() <= 0.5001


def test_percentiles_hold_for_every_kind_of_picture_and_leave_padding_out(write):
    asked = Intensity(percentiles=(5, 90))
    low, high = np.percentile(GREY, [5, 90], method="inverted_cdf")
    for raw in (
        picture(Image.fromarray(GREY), "PNG"),
        picture(Image.fromarray(GREY.astype(np.int32)), "TIFF"),
        picture(Image.fromarray(GREY.astype(np.float32)), "TIFF"),
        dicom(NATIVE, GREY),
    ):
        assert np.array_equal(read_radiograph(write(raw), asked), stretched(GREY, low, high))
    padded = DEEP.copy()
    padded[:40] = 4095
    low, high = np.percentile(DEEP[40:], [5, 90], method="inverted_cdf")
    got = read_radiograph(write(dicom(NATIVE, padded, PixelPaddingValue=4095)), asked)
    assert np.array_equal(got[40:], stretched(DEEP[40:], low, high))
    with pytest.raises(ImageError, match=r"flat between its percentiles 1 and 3"):
        read_radiograph(write(dicom(NATIVE, np.where(DEEP > 1500, DEEP, 0))), Intensity(percentiles=(1, 3)))


@pytest.mark.parametrize("wrong", [{"percentiles": (9, 9)}, {"percentiles": (-1, 9)}, {"percentiles": (1, 101)},
                                   {"percentiles": (float("nan"), 9)}, {"window": -1}])  # fmt: skip
def test_options_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match=r"intensity\.(percentiles|window) is"):
        Intensity(**wrong)


@pytest.mark.parametrize("stored", ["x", [1], {"window": "0"}, {"percentiles": 5}, {"percentiles": [1, "x"]}, {"more": 1},
                                    {"window": True}, {"percentiles": [1, 2, 3]}, {"percentiles": [50, 1]}])  # fmt: skip
def test_what_a_file_says_of_intensity_is_judged(stored):
    with pytest.raises(ConfigError):
        Intensity.of(stored, source="x.ckpt")
    asked = Intensity((0.5, 99.5), None)
    assert Intensity.of(asked.plain(), source="x") == asked
    assert Intensity.of(None, source="x") == Intensity()


# --- DICOM: how the picture lies


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
def test_pixels_that_are_not_square_are_resampled(tags, aspect, told):
    got = told(**tags)
    height, width = DEEP.shape
    shape = (round(height * aspect), width) if aspect > 1 else (height, round(width / aspect))
    assert got.pixels.shape == shape
    assert got.notes == (presentation.OBLONG,)
    assert got.aspect == pytest.approx(aspect)
    small = np.asarray(Image.fromarray(got.pixels).resize((width, height)))
    assert np.abs(small.astype(int) - PLAIN).mean() < 3


@pytest.mark.parametrize("tags", [{"PixelSpacing": [0.143, 0.1431]}, {"PixelSpacing": [0, 0.2]}, {"PixelAspectRatio": [0, 0]},
                                  {"PixelSpacing": [-1, 1]}, {"PixelAspectRatio": [1, 1]}])  # fmt: skip
def test_square_pixels_and_sides_that_are_none_change_nothing(tags, told):
    got = told(**tags)
    assert np.array_equal(got.pixels, PLAIN)
    assert got.notes == ()


def test_absurd_pixels_are_refused(told, monkeypatch):
    with pytest.raises(ImageError, match=r"PixelAspectRatio is 1000, 1; .*correct the header"):
        told(PixelAspectRatio=[1000, 1])
    monkeypatch.setattr(presentation, "MAX_PIXELS", 80 * 64 + 1)
    with pytest.raises(ImageError, match="with square pixels") as caught:
        told(PixelAspectRatio=[2, 1])
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
def test_how_the_picture_lies_is_told_and_the_pixels_stay(tags, notes, told):
    got = told(**tags)
    assert np.array_equal(got.pixels, PLAIN)
    assert got.notes == notes


# --- DICOM: frames


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
    import sys

    path = write(dicom("JPEGLosslessSV1"))
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    with pytest.raises(ImageError, match=r"JPEG Lossless.*pip install diptych\[dicom\]"):
        read_radiograph(path)


# --- the public cases on which we failed


@pytest.fixture(scope="session")
def cases():
    beside = Path(__file__).resolve().parents[3] / "shared"
    folder = Path(os.environ.get("DIPTYCH_SHARED", beside)) / "cases"
    if not folder.is_dir():
        pytest.skip(f"no cases: {folder} is not a folder; name its parent in DIPTYCH_SHARED")
    return folder


@pytest.mark.real
def test_the_cases_are_as_their_table_says(cases):
    def read(name, intensity=Intensity()):  # noqa: B008  # frozen
        return open_radiograph(cases / name, intensity)

    def near(one, other):
        return np.abs(one.pixels.astype(int) - other.pixels).max()

    plain, mono1 = read("dicom/plain.dcm"), read("dicom/mono1.dcm")
    assert len(np.unique(plain.pixels)) == 256
    assert near(read("dicom/jpegbaseline_ffpad.dcm"), plain) <= 8
    assert near(read("dicom/jpeg_lossless_sv1.dcm"), plain) == 0
    assert near(read("dicom/window_w0.dcm"), plain) == 0
    assert read("dicom/window_w0.dcm").notes == (presentation.WINDOW,)
    assert near(read("dicom/mono2_plut_inverse.dcm"), mono1) == 0
    assert read("dicom/hflip_orientation.dcm").notes == (presentation.MIRRORED,)
    assert read("dicom/pixel_aspect_2_1.dcm").pixels.shape == (640, 256)
    for name in ("padding_65535_nowindow", "mono1_padding0_white_border"):
        got = read(f"dicom/{name}.dcm").pixels
        assert (got[:, :30].max(), got[:, -30:].max()) == (0, 0)  # the border is at both sides
        assert len(np.unique(got)) > 250
        assert np.corrcoef(got[:, 30:-30].ravel(), plain.pixels[:, 30:-30].ravel())[0, 1] > 0.99
    with pytest.raises(ImageError, match="BitsStored 12 and HighBit 11"):
        read("dicom/bitsstored12_values16.dcm")
    grey, deep = read("pictures/g8.png"), read("pictures/g16_12bit.png")
    for name, other, limit in (
        ("exif2.jpg", grey, 4), ("exif6.jpg", grey, 4), ("exif6.png", grey, 0), ("w.webp", grey, 4),
        ("rgb16_12bit.png", deep, 0), ("la16_12bit.png", deep, 0), ("t16.tiff", deep, 0),
    ):  # fmt: skip
        assert near(read(f"pictures/{name}"), other) <= limit
    for name in ("g16_12bit_hot_pixel.png", "g16_12bit_white_border.png"):
        assert len(np.unique(read(f"pictures/{name}").pixels)) < 20
        assert len(np.unique(read(f"pictures/{name}", Intensity((0.5, 90))).pixels)) > 200
    for name, words in (("html.jpg", "an HTML page"), ("lfs.png", "a git-lfs pointer"), ("zero.png", "is empty")):
        with pytest.raises(ImageError, match=words):
            read(f"pictures/{name}")
