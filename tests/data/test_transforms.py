"""Letterbox, augmentation and laterality."""

import numpy as np
import pytest

from diptych.data.augment import Augment, Augmenter
from diptych.errors import ConfigError
from diptych.radiographs.letterbox import letterbox


def picture(height, width):
    image = np.zeros((height, width), np.uint8)
    image[height // 4 : height // 2, width // 2 : width * 3 // 4] = 250
    return image


@pytest.mark.parametrize(("height", "width"), [(100, 60), (60, 100), (64, 64), (50, 200)])
def test_letterbox_keeps_proportions_and_maps_boxes(height, width):
    image = picture(height, width)
    box = np.array([[width // 2, height // 4, width * 3 // 4, height // 2, 0]], np.float32)
    square, place = letterbox(image, 64)
    assert square.shape == (64, 64)
    x0, y0, x1, y1, _ = place.boxes(box)[0]
    rows, columns = np.nonzero(square > 125)
    assert abs(rows.min() - y0) <= 1
    assert abs(rows.max() + 1 - y1) <= 1
    assert abs(columns.min() - x0) <= 1
    assert abs(columns.max() + 1 - x1) <= 1


def test_heat_goes_back_to_the_native_picture():
    image = picture(300, 200)
    square, place = letterbox(image, 64)
    heat = square[4::8, 4::8].astype(np.float32)  # one value a region of an 8x8 grid
    native, none = place.heat(np.stack([heat, 0 * heat]), image.shape, 64)
    assert native.shape == image.shape
    assert not none.any()
    inside, outside = native[image > 0].mean(), native[image == 0].mean()
    assert inside > 5 * outside


def test_augmentation_is_a_function_of_its_seed_and_moves_boxes_along():
    image = picture(64, 64)
    box = np.array([[32, 16, 48, 32, 3]], np.float32)
    augmenter = Augmenter(Augment(rotate=0, zoom=0.2, shift=0.1, brightness=0, contrast=0))
    first, moved, *_ = augmenter(image, box, None, 7)
    second, *_ = Augmenter(Augment(rotate=0, zoom=0.2, shift=0.1, brightness=0, contrast=0))(image, box, None, 7)
    assert np.array_equal(first, second)
    assert not np.array_equal(first, augmenter(image, box, None, 8)[0])
    rows, columns = np.nonzero(first > 125)
    extent = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert np.abs(moved[0, :4] - extent).max() <= 1.5
    assert moved[0, 4] == 3


def test_never_flips_by_itself_and_flips_the_report_along():
    image, text = picture(64, 64), "Opacity in the left lung."
    still = Augmenter(Augment(rotate=0, zoom=0, shift=0, brightness=0, contrast=0))
    assert all(np.array_equal(still(image, None, text, seed)[0], image) for seed in range(50))
    flipping = Augmenter(Augment(rotate=0, zoom=0, shift=0, brightness=0, contrast=0, flip=1.0))
    box = np.array([[32, 16, 48, 32, 0]], np.float32)
    flipped, moved, mirrored, _ = flipping(image, box, text, 0)
    assert np.array_equal(flipped, image[:, ::-1])
    assert mirrored == "Opacity in the right lung."
    assert moved[0, :4].tolist() == [16, 16, 32, 32]
    unchanged, _, same, _ = flipping(image, None, "Opacity in the right middle lobe.", 0)  # has no left twin
    assert np.array_equal(unchanged, image)
    assert same == "Opacity in the right middle lobe."


def test_out_of_range():
    with pytest.raises(ConfigError, match=r"augment.flip is 2"):
        Augment(flip=2)


def test_masks_go_where_the_picture_goes():
    image = picture(90, 60)
    square, place = letterbox(image, 64)
    mask = place.mask(image > 125, 64)
    assert (mask == (square > 125)).mean() > 0.995
    moving = Augmenter(Augment(rotate=10, zoom=0.2, shift=0.1, brightness=0, contrast=0, flip=1.0))
    moved = moving(square, None, None, 5, mask)
    assert moved.mask.dtype == bool
    assert ((moved.image > 125) == moved.mask).mean() > 0.98
    assert not np.array_equal(moved.mask, mask)
