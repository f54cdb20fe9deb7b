"""Projections into a shared space, as published methods have them."""

from __future__ import annotations

from typing import Literal

from torch import nn

from diptych.errors import ConfigError

__all__ = ["Projection", "projection_of"]

Projection = Literal["linear", "affine", "mlp", "gelu", "gelu_norm", "none"]
"""The forms of a projection, as :func:`projection_of` defines them."""


def projection_of(form: Projection, inputs: int, hidden: int, outputs: int) -> nn.Module:
    """A projection of vectors ``[...,inputs]`` to ``[...,outputs]``.

    * ``linear``: a matrix (CLIP, arXiv 2103.00020).
    * ``affine``: a matrix and a bias (CXR-CLIP, arXiv 2310.13292).
    * ``mlp``: two affine layers, with a ReLU between them (ConVIRT, arXiv 2010.00747).
    * ``gelu``: two matrices, with a GELU between them (open_clip's ``mlp``, as in BiomedCLIP, arXiv 2303.00915).
    * ``gelu_norm``: two affine layers, with a GELU and a layer norm between them (BioViL's texts, arXiv 2204.09817).
    * ``none``: the vectors as they are, for towers that share a space already (``OpenClipImage`` and ``OpenClipText``).

    >>> projection_of("linear", 3, 0, 2)
    Linear(in_features=3, out_features=2, bias=False)
    >>> projection_of("none", 3, 0, 3)
    Identity()

    Args:
        form: as above.
        inputs: width of the vectors.
        hidden: width of the hidden layer, where there is one.
        outputs: width of the shared space.

    Raises:
        ConfigError: nothing is to be projected, and the widths differ.
    """
    if form == "none":
        if inputs != outputs:
            raise ConfigError(
                f"projection: none keeps the towers' width of {inputs}; set width: {inputs}, not {outputs}"
            )
        return nn.Identity()
    if form in ("linear", "affine"):
        return nn.Linear(inputs, outputs, bias=form == "affine")
    bias = form != "gelu"
    between: list[nn.Module] = [nn.ReLU()] if form == "mlp" else [nn.GELU()]
    if form == "gelu_norm":
        between.append(nn.LayerNorm(hidden, eps=1e-12))
    return nn.Sequential(nn.Linear(inputs, hidden, bias=bias), *between, nn.Linear(hidden, outputs, bias=bias))
