"""An alignment head: the cosine of two vectors, trained with InfoNCE."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from diptych import AlignmentHead, Dims, Embedding, Features, Pairs, distributed
from diptych.checks import check_number
from diptych.nn import functional as F

__all__ = ["Mine"]


class Mine(AlignmentHead[Embedding]):
    """One vector a panel, and InfoNCE over all pairs of the job (CLIP, arXiv 2103.00020).

    Args:
        dims: widths of the towers, which the towers fill in.
        width: of the shared space.
        temperature: of the soft-max, above 0.

    Raises:
        ConfigError: the temperature is not above 0.
    """

    paper: ClassVar[str] = "CLIP, arXiv 2103.00020"
    gathers = frozenset({"text.pooled"})  # what `losses` reads of `world`; everything else in it is empty

    def __init__(self, dims: Dims, *, width: int = 128, temperature: float = 0.07) -> None:
        super().__init__()
        check_number("mine: temperature", temperature, above=0)
        self.image, self.text = nn.Linear(dims.image, width), nn.Linear(dims.text, width)
        self.temperature = temperature
        self.weights = {"pairs": 1.0}  # one weight for each term of `losses`

    def embed_image(self, image: Features) -> Embedding:
        """``pooled`` ``[I,E]``."""
        return Embedding(F.unit(self.image(image.pooled)))

    def embed_text(self, text: Features) -> Embedding:
        """``pooled`` ``[T,E]``."""
        return Embedding(F.unit(self.text(text.pooled)))

    def similarity(self, image: Embedding, text: Embedding) -> Tensor:
        """Cosines ``[I,T]``. No row depends on another."""
        return F.dot_products(image.pooled, text.pooled)

    def losses(self, here: Pairs[Embedding], world: Pairs[Embedding]) -> dict[str, Tensor]:
        """``pairs``: own images ``[B]`` with the reports of all processes ``[B*W]``, and the grid of all ``[B*W,B*W]``."""
        logits = self.similarity(here.image, world.text) / self.temperature
        return {"pairs": F.info_nce(distributed.gather(logits), world.hash)}  # equal reports are not negatives
