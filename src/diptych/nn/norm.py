"""Batch normalisation over the real rows of the whole job, with exact gradients."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diptych import distributed
from diptych.nn.functional import full

__all__ = ["GlobalBatchNorm"]


class GlobalBatchNorm(nn.Module):
    """Batch normalisation (arXiv 1502.03167) over all rows of all processes.

    In training, mean and variance of each channel are those of all real rows of the whole batch, on all processes. Their
    gradient reaches every row. So ``n`` processes give what one would. torch's SyncBatchNorm runs on GPUs only, and it
    knows no mask: padding would enter its statistics. In evaluation the running statistics are used. All is computed at
    least in float32, whatever autocast says.

    Args:
        width: ``D``, the number of channels.
        affine: whether a scale and a shift are learned.
        momentum: share of a batch in the running statistics.
        eps: added to the variance.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, width: int, *, affine: bool = True, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.momentum = momentum
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width)) if affine else None
        self.bias = nn.Parameter(torch.zeros(width)) if affine else None
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalise ``x`` ``[...,D]`` over all axes but the last.

        Args:
            x: rows.
            mask: ``[...]``, True at real rows. The others enter no statistics, and their values mean nothing.
        """
        x = full(x)
        if self.training:
            x, variance = self._centre(x, mask)
        else:
            x, variance = x - self.running_mean, self.running_var
        scale = (variance + self.eps).rsqrt()
        if self.weight is None or self.bias is None:
            return x * scale
        return x * (scale * self.weight) + self.bias

    def _centre(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Subtract the mean, and return the rows and the variance ``[D]``. It updates the running statistics."""
        axes = tuple(range(x.ndim - 1))
        if mask is None:
            rows = x.new_full((), float(x.shape[:-1].numel()))  # a copy of a number would make a GPU wait
        else:
            rows = mask.sum().to(x.dtype)
            x = x.masked_fill(~mask.unsqueeze(-1), 0.0)
        sums = distributed.sum_with_gradient(torch.cat([x.sum(axes), rows.unsqueeze(0)]))  # [D+1]: one message
        rows = sums[-1].detach()
        mean = sums[:-1] / rows.clamp_min(1)
        x = x - mean
        if mask is not None:
            x = x.masked_fill(~mask.unsqueeze(-1), 0.0)
        # Squares of centred rows: the difference of two sums of squares would lose half the digits.
        variance = distributed.sum_with_gradient(x.square().sum(axes)) / rows.clamp_min(1)
        with torch.no_grad():
            share = self.momentum * (rows > 1)  # a single row has no variance to learn from
            unbiased = variance * rows / (rows - 1).clamp_min(1)
            for running, batch in ((self.running_mean, mean), (self.running_var, unbiased)):
                running += (share * (batch - running)).to(running.dtype)
        return x, variance
