"""The equations that heads share, against plain twins."""

from __future__ import annotations

import math

import pytest
import torch
import twins
from head_contract import close

from diptych.nn import functional as F

# Losses --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image_weight", [0.5, 0.75])
def test_info_nce_equals_its_twin(image_weight):
    logits = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    hash = torch.tensor([4, 7, 4, 9, 1, 4])
    loss, expected = F.info_nce(logits, hash, image_weight), twins.info_nce(logits, hash, image_weight)
    close(loss, expected)
    close(torch.autograd.grad(loss, logits)[0], torch.autograd.grad(expected, logits)[0])


def test_equal_reports_are_not_negatives():
    logits = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    assert F.info_nce(logits, torch.tensor([1, 2, 3])).item() == pytest.approx(math.log(3))
    loss = F.info_nce(logits, torch.tensor([1, 1, 1]))
    assert loss.item() == 0
    close(torch.autograd.grad(loss, logits)[0], torch.zeros_like(logits))


def test_sigmoid_loss_equals_its_twin_and_its_shares_add_up():
    logits = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    hash, rows = torch.tensor([4, 7, 4, 9, 1, 4]), torch.arange(6)
    loss, expected = F.sigmoid_loss(logits, rows, hash), twins.sigmoid_loss(logits, hash)
    close(loss, expected)
    close(torch.autograd.grad(loss, logits)[0], torch.autograd.grad(expected, logits)[0])
    close((F.sigmoid_loss(logits[:3], rows[:3], hash) + F.sigmoid_loss(logits[3:], rows[3:], hash)) / 2, expected)


def test_one_pair():
    assert F.info_nce(torch.tensor([[3.0]]), torch.tensor([1])).item() == 0
    loss = F.sigmoid_loss(torch.tensor([[3.0]]), torch.tensor([0]), torch.tensor([1]))
    assert loss.item() == pytest.approx(math.log1p(math.exp(-3.0)))


def test_logit_scale_starts_learns_and_is_clamped():
    scale = F.LogitScale(0.07)
    assert scale().item() == pytest.approx(1 / 0.07)
    scale().backward()
    assert scale.log_scale.grad == pytest.approx(1 / 0.07)
    with torch.no_grad():
        scale.log_scale.fill_(9.0)
    scale.log_scale.grad = None
    value = scale()
    value.backward()
    assert value.item() == pytest.approx(100)
    assert scale.log_scale.grad == pytest.approx(100)  # it can come down again
    assert not F.LogitScale(0.1, learn=False).log_scale.requires_grad


def test_unit_vectors_are_float32_and_zero_where_masked():
    x = torch.randn(2, 3, 4).bfloat16()
    mask = torch.tensor([[True, True, False], [True, False, False]])
    y = F.unit(x, mask)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y.norm(dim=-1), mask.float())
