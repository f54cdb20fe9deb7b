"""Batch normalisation of towers over all processes of a job, on GPUs and on CPUs: ``trainer.sync_batchnorm``."""

from __future__ import annotations

from typing import cast

import torch
from lightning.pytorch.plugins.layer_sync import TorchSyncBatchNorm
from timm.layers.norm_act import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from diptych import distributed
from diptych.errors import ConfigError
from diptych.nn.functional import full

__all__ = ["SyncNorm", "SyncNormAct", "TowerNorms"]


class SyncNorm(_BatchNorm):
    """The same function as torch's ``SyncBatchNorm``, with exact gradients. Torch's layer refuses CPUs; this one does not."""

    def forward(self, input: Tensor) -> Tensor:  # torch's name
        """Normalise ``[B,C,...]`` by the statistics of all processes; in evaluation by the running ones."""
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


class SyncNormAct(SyncNorm):
    """Normalisation with the activation that timm keeps in the layer. Torch's own conversion would drop it."""

    act: nn.Module
    drop: nn.Module

    def forward(self, input: Tensor) -> Tensor:  # torch's name
        """Normalise, and activate."""
        activated: Tensor = self.act(self.drop(super().forward(input)))
        return activated


_ON_CPU: dict[type[nn.Module], type[SyncNorm]] = {
    nn.BatchNorm1d: SyncNorm,
    nn.BatchNorm2d: SyncNorm,
    nn.BatchNorm3d: SyncNorm,
    BatchNormAct2d: SyncNormAct,
}


class TowerNorms(TorchSyncBatchNorm):
    """Lightning's hook that makes batch normalisation use the statistics of all processes.

    Args:
        on_cpu: whether the model trains on CPUs. It is moved to its device later.
    """

    def __init__(self, on_cpu: bool) -> None:
        self.on_cpu = on_cpu

    def apply(self, model: nn.Module) -> nn.Module:
        """Exchange the layers before training. GPUs take torch's layers; DDP refuses these on CPUs, which take ours."""
        if not self.on_cpu:
            return cast(nn.Module, convert_sync_batchnorm(model))  # type: ignore[no-untyped-call]  # timm's
        for name, layer in model.named_modules():
            if type(layer) in _ON_CPU:
                layer.__class__ = _ON_CPU[type(layer)]
            elif isinstance(layer, _BatchNorm):
                raise ConfigError(
                    f"trainer.sync_batchnorm: {name} is a {type(layer).__name__}, which is not known on CPUs; set it to false"
                )
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """Keep the layers after training: they work on one process too."""
        return model
