"""Data of your own: a data set and a datamodule, and a model trained on them.

The pictures of this example are squares at the left or the right of a noisy ground, and the reports say where. A table with
columns of paths and reports needs no code: the datamodule ``tabular`` reads it.
"""

import argparse
from collections.abc import Iterable

import lightning.pytorch as pl
import numpy as np
import torch

from diptych import (
    AlignmentModule,
    Loading,
    RadiographDataModule,
    RadiographDataset,
    Sample,
    ScratchText,
    TimmImage,
    Tokenizer,
    TrainedModel,
)
from diptych_heads.global_ import Global

REPORTS = ("There is an opacity on the left.", "There is an opacity on the right.")


class Squares(RadiographDataset):
    """Each picture is of a patient of its own."""

    def __init__(self, split: str, number: int) -> None:
        self.ids = [f"{split}-{index}" for index in range(number)]
        self.patients = list(self.ids)

    def read(self, index: int, rng: np.random.Generator) -> Sample:
        """One picture ``[h,v]`` with its report; a real data set would read a file here."""
        picture = np.random.default_rng(index).integers(0, 90, (48, 48)).astype(np.uint8)
        start = 30 if index % 2 == 0 else 6  # the patient's left is at the right of the picture
        picture[18:30, start : start + 12] += 120
        return Sample(picture, text=REPORTS[index % 2])

    def texts(self) -> Iterable[str]:
        """The reports, without the pictures: the text tower learns its vocabulary from them."""
        return (REPORTS[index % 2] for index in range(len(self)))


class SquareData(RadiographDataModule):
    """Splits of the squares."""

    def __init__(self, tokenizer: Tokenizer | None, train: int = 64, loading: Loading = Loading()) -> None:  # noqa: B008  # frozen
        super().__init__(tokenizer, loading)
        self.sizes = {"train": train, "val": 16, "test": 16}

    @property
    def protocol(self) -> str:
        """The name that results carry."""
        return f"squares, {self.sizes['train']} to train on"

    def build(self) -> dict[str, RadiographDataset]:
        """One data set a split."""
        return {split: Squares(split, number) for split, number in self.sizes.items()}


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=60, help="optimiser steps")
arguments = parser.parse_args()
torch.manual_seed(0)

image = TimmImage("resnet10t", pretrained=False, model_args={"channels": [16, 32, 64, 128], "stem_width": 16})
text = ScratchText(width=64, depth=1, heads=2, vocabulary=128, max_tokens=32)
data = SquareData(text.tokenizer, loading=Loading(image_size=48, batch_size=8, workers=0, augment=None))
model = AlignmentModule(image, text, Global, lr=1e-3)
options = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
pl.Trainer(accelerator="cpu", devices=1, max_steps=arguments.steps, **options).fit(model, data)

trained = TrainedModel(model, image_size=48)
pictures = [data.native("test", index).image for index in range(16)]
scores = trained.similarity(pictures, list(REPORTS))  # [16,2]
right = int((scores.argmax(1) == torch.arange(16) % 2).sum())
print(f"the right sentence scores higher for {right} of 16 test pictures")
