"""What would make a GPU's host wait, refused: for code that runs on torch's ``meta`` device, whose tensors hold no data."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["NoCopies"]


class NoCopies(TorchFunctionMode):
    """Refuses copies of the host's numbers to the device. ``meta`` itself refuses to give any, as ``.item()`` asks."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function, and refuse its copy.

        Raises:
            RuntimeError: it copies from the host.
        """
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        copies = name in ("tensor", "as_tensor", "asarray", "new_tensor") or (
            name in ("to", "cuda", "type_as") and args[0].device.type == "cpu"
        )
        if copies and isinstance(result, Tensor) and result.device.type != "cpu":
            raise RuntimeError(f"{name} copies from the host")
        if name in ("__getitem__", "__setitem__") and args[0].device.type != "cpu":
            places = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(x, list) or (isinstance(x, Tensor) and x.device.type == "cpu") for x in places):
                raise RuntimeError("an index is copied from the host")
        return result
