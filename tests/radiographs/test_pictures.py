"""PNG, JPEG, TIFF, WebP and BMP as other people's software writes them: read right, or refused by name."""

import io
import struct
import zlib

import numpy as np
import pytest
from greys import PLAIN, stretched
from hostile import DEEP, GREY, deep_png, picture
from PIL import Image

from diptych.radiographs import pictures
from diptych.radiographs.limits import ImageError
from diptych.radiographs.read import grey_of, open_radiograph, read_mask, read_radiograph, read_radiograph_float


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP", "deep PNG", "TIFF lzw"])
def test_an_exif_orientation_is_applied(kind, orientation, write):
    """The stored picture is what a camera held sideways stores. PIL's own transposition is the twin."""
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


def test_pixels_of_a_picture_that_are_not_square_are_told(write):
    for kind in ("PNG", "JPEG", "TIFF"):
        wide = open_radiograph(write(picture(Image.fromarray(GREY), kind, dpi=(300, 150))))
        assert wide.notes == (pictures.OBLONG,)
        assert wide.pixels.shape == GREY.shape
        assert open_radiograph(write(picture(Image.fromarray(GREY), kind, dpi=(300, 300)))).notes == ()
