"""The equations that heads share, as pure functions of tensors. Shapes are named in ``types.py``.

Soft-maxes and logits are computed in float32, whatever autocast says. float64 stays float64. Logits in bfloat16 would put
an error of several per cent into the gradient.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.errors import ConfigError
from diptych.types import Features

__all__ = [
    "LogitScale",
    "dot_products",
    "full",
    "grid_code",
    "info_nce",
    "sigmoid_loss",
    "sine_code",
    "unit",
    "without_autocast",
]


def full(x: Tensor) -> Tensor:
    """The tensor, at least in float32."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """A context in which operations on the tensor's device keep the precision of what they are given.

    A device without autocast, as torch's ``meta``, has nothing to turn off.
    """
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def unit(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """L2-normalise ``[...,E]`` over its last axis, at least in float32. Vectors outside ``mask`` ``[...]`` become zero.

    >>> unit(torch.tensor([3.0, 4.0]))
    tensor([0.6000, 0.8000])
    """
    y = F.normalize(full(x), dim=-1)
    return y if mask is None else y.masked_fill(~mask.unsqueeze(-1), 0.0)


def dot_products(image: Tensor, text: Tensor) -> Tensor:
    """``[I,T]`` dot products of ``[I,E]`` and ``[T,E]``, at least in float32.

    >>> dot_products(torch.eye(2), torch.tensor([[1.0, 2.0]]))
    tensor([[1.],
            [2.]])
    """
    with without_autocast(image):
        return full(image) @ full(text).T


class LogitScale(nn.Module):
    """The factor on the similarities, ``1 / temperature``, learned as its logarithm (CLIP, arXiv 2103.00020, 2.4).

    The parameter itself is clamped each time that it is used. So a scale that went past ``maximum`` keeps its gradient. It
    can come down again.

    Args:
        temperature: the start, above 0; 0.07 in CLIP, so that the scale starts at 14.3.
        maximum: largest scale; 100 in CLIP, against instability.
        learn: False keeps the start.
    """

    def __init__(self, temperature: float = 0.07, maximum: float = 100.0, learn: bool = True) -> None:
        super().__init__()
        self.start, self.maximum = temperature, maximum
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)), requires_grad=learn)

    def forward(self) -> Tensor:
        """The scale, a scalar in ``(0, maximum]``."""
        if torch.compiler.is_exporting():  # a program that is exported changes no parameter
            return self.log_scale.clamp(max=math.log(self.maximum)).exp()
        with torch.no_grad():
            self.log_scale.clamp_(max=math.log(self.maximum))
        return self.log_scale.exp()

    @property
    def temperature(self) -> Tensor:
        """``1 / scale``, a scalar without gradient."""
        scale: Tensor = self()
        return 1 / scale.detach()


def info_nce(logits: Tensor, hash: Tensor, image_weight: float = 0.5) -> Tensor:
    """InfoNCE in both directions over the whole job's pairs (ConVIRT, arXiv 2010.00747; CLIP, arXiv 2103.00020).

    The loss is ``mean_i [-w log(exp l_ii / sum_j exp l_ij) - (1 - w) log(exp l_ii / sum_j exp l_ji)]``. Pairs ``j != i``
    with the report of ``i`` are in neither sum.

    On several processes each passes the same whole grid, whose rows were gathered with gradients. So every pair is scored
    once over the job, and the gradient is that of the whole batch.

    Args:
        logits: ``[N,N]`` scaled similarities, row = image, column = report, own pairs on the diagonal.
        hash: ``[N]``, equal where reports are equal.
        image_weight: ``w``, the share of image-to-text; 0.75 in ConVIRT, 0.5 in CLIP.

    >>> info_nce(torch.zeros(2, 2), torch.tensor([7, 8]))  # log 2: nothing tells the two apart
    tensor(0.6931)
    >>> info_nce(torch.zeros(2, 2), torch.tensor([7, 7]))  # equal reports are not contrasted
    tensor(0.)
    """
    own = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    excluded = (hash.unsqueeze(1) == hash) & ~own
    logits = full(logits).masked_fill(excluded, -math.inf)
    targets = torch.arange(len(logits), device=logits.device)
    return image_weight * F.cross_entropy(logits, targets) + (1 - image_weight) * F.cross_entropy(logits.T, targets)


def sigmoid_loss(logits: Tensor, targets: Tensor, hash: Tensor) -> Tensor:
    """The pairwise sigmoid loss over this process's rows (SigLIP, arXiv 2303.15343, eq. 1).

    The loss is ``-1/B sum_ij log sigmoid(z_ij l_ij)``. ``z`` is 1 for an image and its own report, and -1 for all others.
    Another's report that equals the own one does not count. The mean over processes is the loss of the whole batch.

    Args:
        logits: ``[B,N]`` scaled similarities plus bias of this process's images with the whole job's reports.
        targets: ``[B]`` the column of each row's own report.
        hash: ``[N]``, equal where reports are equal.

    >>> sigmoid_loss(torch.zeros(1, 2), torch.tensor([0]), torch.tensor([7, 8]))  # 2 log 2
    tensor(1.3863)
    """
    own = targets.unsqueeze(1) == torch.arange(logits.shape[1], device=logits.device)
    same = hash[targets].unsqueeze(1) == hash
    logits = full(logits)
    terms = F.logsigmoid(torch.where(own, logits, -logits))
    return -terms.masked_fill(same & ~own, 0.0).sum() / len(logits)


def sine_code(places: Tensor, width: int, base: float = 10000) -> Tensor:
    """Places ``[...,2]`` as sines and cosines ``[...,width]``: half for the row, half for the column (arXiv 1706.03762).

    >>> sine_code(torch.tensor([[0.0, 0.0]]), 4)
    tensor([[0., 1., 0., 1.]])

    Args:
        places: float.
        width: of the code. What exceeds a multiple of 4 is filled with zeros.
        base: ratio of the longest period to the shortest, for a large width.
    """
    quarter = width // 4
    rates = base ** (-torch.arange(quarter, device=places.device, dtype=places.dtype) / quarter)
    angles = places.unsqueeze(-1) * rates  # [...,2,width/4]
    return F.pad(torch.cat([angles.sin(), angles.cos()], -1).flatten(-2), (0, width - 4 * quarter))


def grid_code(image: Features, width: int) -> Tensor:
    """The code ``[N,width]`` of each region's place in the grid, by :func:`sine_code`.

    Args:
        image: features of an image tower, with its grid.
        width: of the code.

    Raises:
        ConfigError: the tower gives no grid.
    """
    if image.grid is None:
        raise ConfigError("the image tower gives no grid, so regions have no place; choose another image tower")
    place = torch.arange(image.grid[0] * image.grid[1], device=image.tokens.device)
    places = torch.stack([place // image.grid[1], place % image.grid[1]], 1).to(image.tokens.dtype)
    return sine_code(places, width)
