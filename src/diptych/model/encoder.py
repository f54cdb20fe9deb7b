"""The dual encoder: one image tower and one text tower, shared by every alignment head.

Two verbs go through the code. To *encode* is to give a tower's features (``Features``). To *embed* is to give vectors of the
head's shared space (``Embedding``), which the head's ``similarity`` compares.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from diptych.reports.tokenizer import Tokenizer
from diptych.towers.image import ImageTower
from diptych.towers.text import TextTower
from diptych.types import Dims, Features, TextBatch

__all__ = ["DualEncoder"]


class DualEncoder(nn.Module):
    """An image panel and a text panel. The head aligns them.

    Args:
        image: any image tower, as :class:`diptych.towers.image.TimmImage`.
        text: any text tower, as :class:`diptych.towers.text.TransformersText`.
    """

    def __init__(self, image: ImageTower, text: TextTower) -> None:
        super().__init__()
        self.image = image
        self.text = text

    @property
    def dims(self) -> Dims:
        """The widths a head is built from."""
        return Dims(self.image.width, self.text.width, self.image.token_width, self.text.token_width)

    @property
    def tokenizer(self) -> Tokenizer:
        """The text tower's tokenizer, which the collate uses."""
        return self.text.tokenizer

    def encode_image(self, image: Tensor) -> Features:
        """Radiographs ``[B,1,H,V]``, uint8 or float in [0,1], as pooled and region vectors."""
        return cast(Features, self.image(image))

    def encode_text(self, text: TextBatch) -> Features:
        """Tokenised reports as pooled and whole-word vectors."""
        return cast(Features, self.text(text))

    def forward(self, image: Tensor, text: TextBatch) -> tuple[Features, Features]:
        """The features of both panels."""
        return self.encode_image(image), self.encode_text(text)
