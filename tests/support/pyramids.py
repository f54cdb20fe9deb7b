"""Small towers of three families, and radiographs for them."""

from __future__ import annotations

import torch
from mini import IMAGE

from diptych.towers.image import TimmImage

VIT = {"embed_dim": 32, "depth": 8, "num_heads": 2}


CONVNEXT = {"depths": [1, 1, 2, 1], "dims": [8, 16, 24, 32]}


def tower(name="resnet10t", args=None, **options):
    torch.manual_seed(0)
    return TimmImage(name, pretrained=False, model_args=args or IMAGE["model_args"], **options)


def radiographs(height, width, n=2):
    return torch.randint(0, 256, (n, 1, height, width), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
