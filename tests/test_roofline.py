"""The benchmarks count the products of a head as they are, those in place too."""

import sys

import pytest
import torch
from mini import ROOT

from diptych_heads.equations.local_pooling import local_scores

sys.path.insert(0, str(ROOT / "benchmarks"))
from roofline import products, share


@pytest.mark.parametrize("attention", ["unit", "raw", "softmax", "scan"])
def test_the_products_of_local_pooling_are_counted(attention):
    images, regions, texts, words, width = 3, 9, 4, 5, 16
    v = torch.randn(images, regions, width, device="meta").requires_grad_()
    t = torch.randn(texts, words, width, device="meta").requires_grad_()
    mask = torch.ones(texts, words, dtype=torch.bool, device="meta")
    n = texts * words
    gram = 3 * regions * regions * width  # the Gram matrix, again in backward, and its gradient
    expected = 2 * images * (3 * regions * width * n + 2 * regions * regions * n + gram)
    assert products(lambda: local_scores(v, t, mask, attention=attention).sum().backward()) == expected


def test_the_share_is_of_the_large_products_rate():
    assert share(10**9, seconds=2.0, rate=10**9) == (
        "roofline: large product 1 GFLOP/s, necessary products 1.0 GFLOP, 50 % reached"
    )
