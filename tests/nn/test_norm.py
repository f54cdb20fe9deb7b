"""Batch normalisation over the whole job and over real rows only."""

from __future__ import annotations

import pytest
import torch
import twins
from torch import nn

from diptych.nn.norm import GlobalBatchNorm


def rows():
    generator = torch.Generator().manual_seed(0)
    x = 3 + torch.randn(8, 5, 4, generator=generator, dtype=torch.float64)
    mask = torch.arange(5) < torch.tensor([[1], [5], [0], [2], [3], [4], [1], [2]])
    return x, mask, torch.randn(8, 5, 4, generator=generator, dtype=torch.float64) * mask.unsqueeze(-1)


def reference(x, mask, weight):
    """torch's own, given the real rows only."""
    x = x.clone().requires_grad_()
    norm = nn.BatchNorm1d(4).double()
    y = norm(x[mask])
    (y * weight[mask]).sum().backward()
    return y.detach(), x.grad, norm


@pytest.mark.parametrize("world", [1, 2, 4])
def test_equals_torch_on_the_real_rows_of_all_processes(processes, world):
    x, mask, weight = rows()
    y, gradient, norm = reference(x, mask, weight)
    results = (
        [twins.task_norm(x, mask, weight)] if world == 1 else processes.run(world, twins.task_norm, x, mask, weight)
    )
    torch.testing.assert_close(torch.cat([r[0] for r in results])[mask], y)
    torch.testing.assert_close(torch.cat([r[1] for r in results]), gradient)
    for name in ("weight", "bias"):
        total = sum(values[name] for _, _, values in results)
        torch.testing.assert_close(total, getattr(norm, name).grad)
    for _, _, buffers in results:
        torch.testing.assert_close(buffers["running_mean"], norm.running_mean)
        torch.testing.assert_close(buffers["running_var"], norm.running_var)


def test_gradients_are_the_derivative():
    x, mask, _ = rows()
    norm = GlobalBatchNorm(4).double()
    nn.init.normal_(norm.weight)
    assert torch.autograd.gradcheck(lambda x: norm(x, mask) * mask.unsqueeze(-1), (x.requires_grad_(),))
    assert torch.autograd.gradcheck(norm, (x,))


def test_evaluation_uses_the_running_statistics_row_by_row():
    x, mask, weight = rows()
    norm, plain = GlobalBatchNorm(4).double(), reference(x, mask, weight)[2]
    norm(x, mask)
    norm.eval()
    plain.eval()
    torch.testing.assert_close(norm(x), plain(x.flatten(0, 1)).view_as(x))
    torch.testing.assert_close(norm(x[:1]), norm(x)[:1], rtol=0, atol=0)


@pytest.mark.parametrize("real", [0, 1])
def test_too_few_rows_give_zeros_and_leave_the_running_statistics(real):
    x = torch.full((2, 3, 4), torch.nan)
    mask = torch.zeros(2, 3, dtype=torch.bool)
    if real:
        x[0, 0], mask[0, 0] = 7.0, True
    norm = GlobalBatchNorm(4, affine=False)
    x.requires_grad_()
    y = norm(x, mask)
    y.sum().backward()
    assert torch.equal(y, torch.zeros(2, 3, 4))
    assert torch.equal(x.grad, torch.zeros(2, 3, 4))
    assert torch.equal(norm.running_mean, torch.zeros(4))
    assert torch.equal(norm.running_var, torch.ones(4))


def test_bfloat16_rows_are_normalised_in_float32():
    x, mask, _ = rows()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = GlobalBatchNorm(4)(x.bfloat16(), mask)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, GlobalBatchNorm(4)(x.bfloat16().float(), mask))
