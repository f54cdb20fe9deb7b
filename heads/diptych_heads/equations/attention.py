"""How words attend to regions: four forms, which ``local_pooling`` and ``reclf`` share."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from diptych.nn.functional import full, unit, without_autocast

__all__ = ["SHARPNESS", "Attention", "attention_entropy", "attention_logits", "region_attention", "word_cosines"]

Attention = Literal["unit", "raw", "softmax", "scan"]
"""How words attend to regions, as :func:`attention_logits` defines it."""

SHARPNESS: dict[Attention, float] = {"unit": 4.0, "raw": 4.0, "softmax": 1.0, "scan": 9.0}
"""The published factor on the logits. That of ``softmax`` is learned, and belongs to the words."""


def attention_logits(s: Tensor, mask: Tensor, form: Attention) -> Tensor:
    """Logits of a word's attention over the regions. They are still to be multiplied by the sharpness.

    * ``unit`` and ``raw`` are the soft-max of ``s`` over the real words (GLoRIA, ICCV 2021, eq. 3-4). The vectors have
      length 1 in ``unit``, and any length in ``raw``.
    * ``softmax`` is ``s`` itself. The words have been divided by the temperature.
    * ``scan`` is ``leaky_relu(s, 0.1)``, made to have length 1 over the real words (SCAN, ECCV 2018, eq. 1-2, and SGRAF).

    Args:
        s: ``[I,R,...,N]`` dot products of regions and words.
        mask: True at real words, in a shape that broadcasts with ``s``.
        form: as above.

    >>> attention_logits(torch.tensor([[[1.0, 1.0, 9.0]]]), torch.tensor([True, True, False]), "unit")
    tensor([[[0.5000, 0.5000, 0.0000]]])
    """
    if form == "softmax":
        return s - s.detach().amax(1, keepdim=True)  # the same for all regions, so that no exponential is too large
    if form == "scan":
        return nn.functional.normalize(nn.functional.leaky_relu(s, 0.1).masked_fill(~mask, 0.0), dim=-1)
    # A finite mask keeps reports without words finite. Nobody reads their values.
    return s.masked_fill(~mask, torch.finfo(s.dtype).min).softmax(-1)


def region_attention(
    regions: Tensor, words: Tensor, mask: Tensor, region_scale: float = 4.0, form: Attention = "unit"
) -> Tensor:
    """Where each word looks in the image of its own pair.

    >>> region_attention(torch.eye(2).unsqueeze(0), torch.eye(2).unsqueeze(0), torch.ones(1, 2, dtype=torch.bool))
    tensor([[[0.8639, 0.1361],
             [0.1361, 0.8639]]])

    Args:
        regions: ``[B,R,E]``
        words: ``[B,N,E]``, divided by the temperature where the form has one.
        mask: ``[B,N]``, True at real words.
        region_scale: factor on the logits.
        form: that of :func:`attention_logits`.

    Returns:
        ``[B,N,R]``. A real word's row sums to 1. A padded word's is zero.
    """
    with without_autocast(regions):
        s = full(regions) @ full(words).transpose(1, 2)  # [B,R,N]
        logits = region_scale * attention_logits(s, mask.unsqueeze(1), form)
        return logits.softmax(1).transpose(1, 2).masked_fill(~mask.unsqueeze(-1), 0.0)


def word_cosines(regions: Tensor, words: Tensor, mask: Tensor) -> Tensor:
    """The cosine of each word with each region of the image of its own pair.

    >>> word_cosines(torch.tensor([[[3.0, 0.0], [0.0, 1.0]]]), torch.tensor([[[2.0, 0.0]]]), torch.tensor([[True]]))
    tensor([[[1., 0.]]])

    Args:
        regions: ``[B,R,E]``, of any length.
        words: ``[B,N,E]``, of any length.
        mask: ``[B,N]``, True at real words.

    Returns:
        ``[B,N,R]``, -1 to 1. A padded word's is zero.
    """
    with without_autocast(regions):
        return (unit(full(words)) @ unit(full(regions)).transpose(1, 2)).masked_fill(~mask.unsqueeze(-1), 0.0)


def attention_entropy(attention: Tensor, mask: Tensor) -> Tensor:
    """How flat the attention of words is: its entropy over ``log R``. 0 is a single region, 1 is all regions alike.

    It is the mean over the real words of each report, and the mean over reports. A report without words counts as 0.

    >>> attention_entropy(torch.tensor([[[0.5, 0.5], [1.0, 0.0]]]), torch.tensor([[True, True]]))
    tensor(0.5000)

    Args:
        attention: ``[B,N,R]``. A real word's row sums to 1.
        mask: ``[B,N]``, True at real words.
    """
    entropy: Tensor = torch.special.entr(attention).sum(-1) / math.log(max(2, attention.shape[-1]))
    return ((entropy * mask).sum(1) / mask.sum(1).clamp_min(1)).mean()
