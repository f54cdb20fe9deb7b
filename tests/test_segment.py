"""Feature pyramids, and segmentation on them: equations, whole runs, pictures, two processes."""

import pytest
import timm
import torch
from mini import IMAGE

from diptych.errors import ConfigError
from diptych.image import STRIDES, ImageTower, TimmImage, pyramid_indices

pytestmark = pytest.mark.usefixtures("one_thread")
VIT = {"embed_dim": 32, "depth": 8, "num_heads": 2}
CONVNEXT = {"depths": [1, 1, 2, 1], "dims": [8, 16, 24, 32]}


def tower(name="resnet10t", args=None, **options):
    torch.manual_seed(0)
    return TimmImage(name, pretrained=False, model_args=args or IMAGE["model_args"], **options)


def radiographs(height, width, n=2):
    return torch.randint(0, 256, (n, 1, height, width), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("reductions", "chosen"),
    [
        ([2, 4, 8, 16, 32], [1, 2, 3, 4]),  # ResNet
        ([4, 8, 16, 32], [0, 1, 2, 3]),  # ConvNeXt, Swin
        ([2, 4, 8, 16, 16], [1, 2, 4, 4]),  # output_stride 16
        ([16] * 12, [2, 5, 8, 11]),  # ViT
        ([14], [0, 0, 0, 0]),
    ],
)
def test_which_maps_make_a_pyramid(reductions, chosen):
    assert pyramid_indices(reductions) == chosen


@pytest.mark.parametrize(
    ("name", "args", "sizes"),
    [
        ("resnet10t", None, [(64, 64), (65, 97), (40, 33)]),
        ("convnext_atto", CONVNEXT, [(64, 64), (66, 97)]),
        ("vit_tiny_patch16_224", VIT, [(64, 64), (48, 80)]),
        ("vit_small_patch14_dinov2", VIT, [(56, 70)]),
        ("resnet10t", {**IMAGE["model_args"], "output_stride": 16}, [(64, 64)]),
    ],
)
def test_a_pyramid_has_its_sizes_whatever_the_input(name, args, sizes):
    model = tower(name, args).eval()
    for height, width in sizes:
        with torch.no_grad():
            levels = model.pyramid(radiographs(height, width))
        assert [tuple(level.shape) for level in levels] == [
            (2, c, -(-height // s), -(-width // s)) for c, s in zip(model.pyramid_widths, STRIDES, strict=True)
        ]


def test_the_levels_are_timms_own_maps():
    model = tower().eval()
    image = radiographs(64, 96)
    features = timm.create_model(
        "resnet10t", features_only=True, out_indices=(1, 2, 3, 4), in_chans=1, pretrained=False, **IMAGE["model_args"]
    ).eval()
    features.load_state_dict(model.backbone.state_dict(), strict=False)
    with torch.no_grad():
        expected = features(model(image).pixels)
        for level, other in zip(model.pyramid(image), expected, strict=True):
            torch.testing.assert_close(level, other)


def test_the_last_level_of_a_vit_holds_its_regions():
    model = tower("vit_tiny_patch16_224", VIT).eval()
    image = radiographs(64, 64)
    with torch.no_grad():
        regions = model(image).tokens.transpose(1, 2).view(2, 32, 4, 4)
        levels = model.pyramid(image)
    torch.testing.assert_close(levels[3], torch.nn.functional.avg_pool2d(regions, 2))  # 16 to 32
    middle = model.backbone.forward_intermediates(model(image).pixels, indices=[5], norm=True, intermediates_only=True)
    torch.testing.assert_close(levels[2], middle[0])  # its own stride: as it is


def test_a_tower_without_a_pyramid_and_a_size_it_does_not_take_are_named():
    class Flat(ImageTower):
        def forward(self, image): ...
        def layer_of(self, name): ...

    with pytest.raises(ConfigError, match="Flat has no feature pyramid; choose another"):
        Flat().pyramid(radiographs(32, 32))
    with pytest.raises(ConfigError, match="cannot take images of 50x64, 2 at a time"):
        tower("vit_tiny_patch16_224", VIT).pyramid(radiographs(50, 64))
