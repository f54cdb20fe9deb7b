"""How the global and the local score of a head become one score: an argument of every head that has both."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from diptych import distributed
from diptych.checks import check_choice
from diptych.nn import functional as F

__all__ = ["Join", "Joining"]

Joining = Literal["sum", "learned", "joint"]
"""How two scores are joined, as :class:`Join` defines it."""


class Join(nn.Module):
    """The whole score of a head, from its global score ``G`` and its local score ``S``, and what is trained.

    * ``sum``: each part has an InfoNCE of its own, with logits ``scale G`` and ``scale factor S``. The whole score is
      ``G + S``. The part whose scores spread further decides the ranking.
    * ``learned``: the local part has a learned scale of its own, ``local_scale``. Each part is still contrasted by itself.
      The whole score is ``G + w S`` with ``w = local_scale / scale``. So each part counts as its own contrast has found.
    * ``joint``: one InfoNCE of the whole, with logits ``scale G + local_scale S``. The whole score is that of ``learned``.

    Args:
        joining: as above.
        temperature: where that of the head starts. ``local_scale`` starts at ``factor`` over it.
        factor: of the local logits in ``sum``.
        head: name of the head, for messages.
        local_term: name of the local term.
    """

    def __init__(
        self, joining: Joining, temperature: float, factor: float = 1.0, *, head: str, local_term: str = "local"
    ) -> None:
        super().__init__()
        check_choice(f"head {head}: joining", joining, ("sum", "learned", "joint"))
        self.joining, self.factor, self.local_term = joining, factor, local_term
        self.local_scale: F.LogitScale | None = None
        if joining != "sum":
            self.local_scale = F.LogitScale(temperature / factor, maximum=LARGEST)

    def terms(self, weights: dict[str, float]) -> dict[str, float]:
        """The terms that :meth:`losses` gives, with their weights: ``joint`` has one, of weight 1."""
        return {"whole": 1.0} if self.joining == "joint" else weights

    def score(self, pooled: Tensor, local: Tensor, scale: Tensor) -> Tensor:
        """The whole score ``[I,T]`` from both parts ``[I,T]``, and the present scale of the head."""
        return pooled + (local if self.local_scale is None else self.local_scale() / scale * local)

    def losses(
        self, pooled: Tensor, local: Tensor, scale: Tensor, hash: Tensor, blank: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The contrasts over the whole job's pairs, each pair scored once.

        Args:
            pooled: ``G`` of this process's images with the whole job's reports, ``[B,B*W]``.
            local: ``S`` of the same.
            scale: that of the head, a scalar.
            hash: ``[B*W]``, equal where reports are equal.
            blank: ``[B,B*W]``, True where ``S`` has no meaning. Such pairs are no negatives where ``S`` is contrasted.
        """
        near = scale * pooled
        far = (scale * self.factor if self.local_scale is None else self.local_scale()) * local
        if blank is not None:
            far = far.masked_fill(blank, -float("inf"))
        if self.joining == "joint":
            return {"whole": F.info_nce(distributed.gather(near + far), hash)}
        return {
            "global": F.info_nce(distributed.gather(near), hash),
            self.local_term: F.info_nce(distributed.gather(far), hash),
        }


LARGEST = 1000.0
"""Largest scale of local scores. Means over many words spread little, so it is above that of cosines."""
