"""How near a head comes to what the machine can do: its matrix products, at the rate of one large product.

The rate is measured in the same run, in turn with what is judged. So other work on the machine disturbs both alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["large_product", "products", "share"]
_aten: Any = torch.ops.aten


def _in_place(_: Any, a: list[int], b: list[int], *__: Any, **___: Any) -> int:
    """Of ``addmm_`` and ``baddbmm_``, which torch does not count."""
    return 2 * math.prod(a) * b[-1]


def products(function: Callable[[], object]) -> int:
    """FLOPs of the matrix products that a call makes. With a budget that keeps everything, these are the necessary ones."""
    with FlopCounterMode(display=False, custom_mapping={_aten.addmm_: _in_place, _aten.baddbmm_: _in_place}) as counter:
        function()
    return int(counter.get_total_flops())


def large_product(side: int = 1024, device: str = "cpu", dtype: torch.dtype = torch.float32) -> tuple[Any, int]:
    """A square matrix product to be timed, and its FLOPs."""
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    return (lambda: torch.mm(a, b, out=out)), 2 * side**3


def share(flops: int, seconds: float, rate: float) -> str:
    """The roofline line of one setting.

    Args:
        flops: of the necessary products.
        seconds: that the whole pass took.
        rate: FLOPs a second of the large product.
    """
    return (
        f"roofline: large product {rate / 1e9:.0f} GFLOP/s, necessary products {flops / 1e9:.1f} GFLOP, "
        f"{100 * flops / seconds / rate:.0f} % reached"
    )
