"""Batch normalisation of towers over all processes of a job, on GPUs and on CPUs: ``trainer.sync_batchnorm``."""

from __future__ import annotations

from typing import cast

import torch
from lightning.pytorch.plugins.layer_sync import TorchSyncBatchNorm
from timm.layers.norm_act import SyncBatchNormAct, convert_sync_batchnorm
from torch import Tensor, nn

from diptych import distributed
from diptych.functional import full

__all__ = ["SyncNorm", "TowerNorms"]


class SyncNorm(nn.SyncBatchNorm):
    """torch's, which refuses tensors on the CPU; there the same is computed here, with exact gradients."""

    def forward(self, input: Tensor) -> Tensor:  # torch's name
        """Normalise ``[B,C,...]`` by the statistics of all processes; in evaluation by the running ones."""
        if input.device.type != "cpu":
            return super().forward(input)
        if not self.training and self.running_mean is not None:
            return nn.functional.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        x = full(input)
        axes = [0, *range(2, x.ndim)]
        shape = (1, -1, *[1] * (x.ndim - 2))
        here = x.new_tensor([x.numel() / x.shape[1]])
        sums = distributed.sum_with_gradient(torch.cat([x.sum(axes), here]))  # [C+1]: one message
        rows = sums[-1].detach()
        mean = sums[:-1] / rows
        x = x - mean.view(shape)
        variance = distributed.sum_with_gradient(x.square().sum(axes)) / rows
        if self.training:
            self._track(mean.detach(), variance.detach() * rows / (rows - 1))
        x = x * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            x = x * self.weight.view(shape) + self.bias.view(shape)
        return x.to(input.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(variance.to(self.running_var.dtype), share)


class _SyncNormAct(SyncBatchNormAct, SyncNorm):
    """The same with the activation that timm keeps in it, which torch's own conversion would drop."""


class TowerNorms(TorchSyncBatchNorm):
    """Turns the batch normalisation of a module into such layers."""

    def apply(self, model: nn.Module) -> nn.Module:
        """Before training on several processes."""
        model = cast(nn.Module, convert_sync_batchnorm(model))  # type: ignore[no-untyped-call]  # timm's
        for layer in model.modules():
            if isinstance(layer, nn.SyncBatchNorm):
                layer.__class__ = _SyncNormAct if isinstance(layer, SyncBatchNormAct) else SyncNorm
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """After training: the layers work on one process too."""
        return model
