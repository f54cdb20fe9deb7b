"""A head of your own, trained by Lightning on phantoms and tested by retrieval.

This head pulls the vectors of a pair together and pushes other pairs apart by a margin. A head in a file of its own is
registered as CONTRIBUTING.md says, and ``diptych fit --model.head NAME`` then finds it.
"""

import argparse

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from diptych import AlignmentHead, AlignmentModule, Dims, Embedding, Features, Loading, Pairs, ScratchText, TimmImage
from diptych_datamodules.phantom import Phantom


class Margin(AlignmentHead[Embedding]):
    """Hinge loss on the cosines (VSE, arXiv 1411.2539): each pair is to score ``margin`` above all others."""

    paper = "VSE, arXiv 1411.2539"
    gathers = frozenset({"text.pooled"})  # what `losses` reads of the reports of other processes

    def __init__(self, dims: Dims, width: int = 64, margin: float = 0.2) -> None:
        super().__init__()
        self.image_projection = nn.Linear(dims.image, width)
        self.text_projection = nn.Linear(dims.text, width)
        self.margin, self.weights = margin, {"margin": 1.0}

    def embed_image(self, image: Features) -> Embedding:
        """``pooled`` ``[I,E]``."""
        return Embedding(nn.functional.normalize(self.image_projection(image.pooled), dim=1))

    def embed_text(self, text: Features) -> Embedding:
        """``pooled`` ``[T,E]``."""
        return Embedding(nn.functional.normalize(self.text_projection(text.pooled), dim=1))

    def similarity(self, image: Embedding, text: Embedding) -> Tensor:
        """Cosines ``[I,T]``."""
        return image.pooled @ text.pooled.T

    def losses(self, here: Pairs[Embedding], world: Pairs[Embedding]) -> dict[str, Tensor]:
        """``margin``: the mean over all wrong reports of each image."""
        scores = self.similarity(here.image, world.text)  # [B,B*W]
        right = scores.gather(1, here.targets[:, None])
        wrong = here.hash[:, None] != world.hash  # the same report is not a negative
        return {"margin": (self.margin + scores - right).relu()[wrong].mean()}


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=60, help="optimiser steps")
arguments = parser.parse_args()
torch.manual_seed(0)

image = TimmImage("resnet10t", pretrained=False, model_args={"channels": [16, 32, 64, 128], "stem_width": 16})
text = ScratchText(width=64, depth=1, heads=2, vocabulary=512, max_tokens=64)
loading = Loading(image_size=64, batch_size=16, eval_batch_size=16, workers=0, augment=None)
data = Phantom(text.tokenizer, train=160, val=16, test=32, size=64, section="impression", loading=loading)
model = AlignmentModule(image, text, Margin, lr=1e-3)

options = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
trainer = pl.Trainer(accelerator="cpu", devices=1, max_steps=arguments.steps, **options)
trainer.fit(model, data)
(figures,) = trainer.test(model, data, verbose=False)
for name, value in figures.items():
    print(f"{name}: {value:.3f}")
