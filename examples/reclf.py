"""``reclf``: matchings of words reason over each other, and each has its weight.

The phantoms are made as they are read, so there is nothing to download. ``--lightning`` trains by Lightning, not by the
plain loop.
"""

import argparse
from functools import partial
from itertools import chain, islice, repeat

import lightning.pytorch as pl
import torch

from diptych import AlignmentModule, Loading, Pairs, ScratchText, TimmImage, TrainedModel, gather_pairs, tell_step
from diptych_datamodules.phantom import Phantom
from diptych_heads.reclf import Reclf

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=60, help="optimiser steps")
parser.add_argument("--lightning", action="store_true", help="train by Lightning")
arguments = parser.parse_args()
torch.manual_seed(0)

image = TimmImage("resnet10t", pretrained=False, stage=3, model_args={"channels": [16, 32, 64, 128], "stem_width": 16})
text = ScratchText(width=64, depth=1, heads=2, vocabulary=512, max_tokens=64)
loading = Loading(image_size=64, batch_size=16, workers=0, augment=None)
data = Phantom(text.tokenizer, train=160, val=16, test=32, size=64, section="impression", loading=loading)
model = AlignmentModule(image, text, partial(Reclf, width=64, matching_width=32), lr=1e-3)
data.setup("fit")  # the text tower learns its vocabulary from the training reports

if arguments.lightning:
    options = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    pl.Trainer(accelerator="cpu", devices=1, max_steps=arguments.steps, **options).fit(model, data)
else:
    head = model.head
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loader = data.train_dataloader()  # each pass is the next epoch
    for step, batch in enumerate(islice(chain.from_iterable(repeat(loader)), arguments.steps)):
        tell_step(head, step // len(loader), step, arguments.steps)
        image, text = model.embed_image(batch.image), model.embed_text(batch.text)
        here = Pairs(image, text, targets=torch.arange(len(batch)), hash=batch.text.hash)
        terms = head.losses(here, gather_pairs(head, here))
        loss = sum(head.weights[name] * term for name, term in terms.items())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step}:", *(f"{name} {term.item():.3f}" for name, term in terms.items()))

trained = TrainedModel(model, image_size=64)
samples = [data.native("test", index) for index in range(8)]
scores = trained.similarity([sample.image for sample in samples], [sample.text for sample in samples])
print(f"the right report is first for {int((scores.argmax(1) == torch.arange(8)).sum())} of 8 test images")
words, weights = model.tokenizer.words(samples[0].text), trained.importance(samples[0].image, samples[0].text)
print("weights:", *(f"{word} {weight:.2f}" for word, weight in zip(words, weights, strict=True)))
