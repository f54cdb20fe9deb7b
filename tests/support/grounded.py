"""A made-up data set with boxes or masks and a head that grounds, for the tests here and in the pool's processes."""

import re

import numpy as np
import torch
from evaluating import WIDTH, Cosine, vectors

from diptych import distributed
from diptych.evaluation.grounding import Grounding
from diptych.types import Batch, TokenEmbedding

FINDINGS = ("Mass", "Nodule", "Hernia")
PHRASES = {
    "name": "where",
    "version": 1,
    "source": "this test",
    "classes": {
        "Mass": {"prompts": ["There is a {mass}.", "a large {lung mass} there"]},
        "Nodule": {"prompts": ["one small nodule"]},
        "Hernia": {"prompts": ["There is a {hernia}."]},
        "Fracture": {"prompts": ["There is a {fracture}."]},
    },
}
SIDE, GRID = 20, 5


class Sees(Cosine):
    """Attention of each word over the regions, by cosine."""

    def heatmap(self, image, text):
        scores = torch.einsum("bre,bwe->bwr", image.tokens, text.tokens)
        return (4 * scores).softmax(dim=2).masked_fill(~text.mask[..., None], 0.0)

    def cosines(self, image, text):
        return torch.einsum("bre,bwe->bwr", image.tokens, text.tokens).masked_fill(~text.mask[..., None], 0.0)


class Blind(Cosine):
    """The same attention everywhere."""

    value = 1 / GRID**2

    def heatmap(self, image, text):
        return torch.full((len(image.pooled), text.mask.shape[1], GRID**2), self.value)


def embed_text(texts):
    words = [vectors(text, len(re.findall(r"\w+", text))) for text in texts]
    tokens = torch.zeros(len(texts), max(map(len, words)), WIDTH)
    mask = torch.zeros(tokens.shape[:2], dtype=torch.bool)
    for i, vector in enumerate(words):
        tokens[i, : len(vector)], mask[i, : len(vector)] = vector, True
    return TokenEmbedding(torch.stack([vector[0] for vector in words]), tokens, mask)


class Boxed:
    """``n`` images of few patients; most have boxes of masses or nodules, some reach beyond the picture, some are wide."""

    def __init__(self, n=37, seed=0):
        rng = np.random.default_rng(seed)
        self.n, self.group = n, torch.from_numpy(rng.integers(0, n // 2, n))
        generator = torch.Generator().manual_seed(seed)
        self.regions = torch.nn.functional.normalize(torch.randn(n, GRID**2, WIDTH, generator=generator), dim=2)
        self.images = torch.from_numpy(rng.integers(1, 255, (n, 1, SIDE, SIDE)).astype(np.uint8))
        self.images[::3, :, :3] = self.images[::3, :, -3:] = 0  # the bars of a letterbox
        self.boxes = []
        for _ in range(n):
            corners = rng.uniform(-2, SIDE - 4, (rng.integers(0, 4), 2))
            ends = corners + rng.uniform(2, 12, corners.shape)
            findings = rng.integers(0, 2, (len(corners), 1))
            self.boxes.append(torch.from_numpy(np.concatenate([corners, ends, findings], 1).astype(np.float32)))
        self.masks = torch.from_numpy(rng.random((n, SIDE, SIDE)) < 0.2) & (torch.arange(n) % 4 > 0)[:, None, None]

    def image(self, rows):
        return TokenEmbedding(
            self.regions[rows, 0], self.regions[rows], torch.ones(len(rows), GRID**2, dtype=torch.bool)
        )

    def batches(self, rows, size, fill=0, boxes=True, masks=False):
        for start in range(0, len(rows), size):
            part = list(rows[start : start + size])
            all_rows = [0] * fill + part
            yield (
                Batch(
                    image=self.images[all_rows],
                    text=None,
                    index=torch.tensor(all_rows),
                    valid=torch.tensor([False] * fill + [True] * len(part)),
                    labels=None,
                    group=self.group[all_rows],
                    boxes=[self.boxes[i] for i in all_rows] if boxes else None,
                    ids=[f"image{i}" for i in all_rows],
                    masks=self.masks[all_rows] if masks else None,
                ),
                self.image(all_rows),
            )


def ground(evaluator, data, head, rows=None, size=8, findings=FINDINGS, **options):
    evaluator.start(embed_text, findings)
    for batch, image in data.batches(range(data.n) if rows is None else rows, size, **options):
        evaluator.update(batch, image, None, head)
    return evaluator.compute(head)


def task_ground(path, shares, sizes, cosines=()):
    """This process's share of the rows, and with it the metrics, count and protocol, with boxes and with masks."""
    rank, answers = distributed.rank(), []
    for head in (Sees(),) if cosines else (Sees(), Blind()):
        for options in ({}, {"boxes": False, "masks": True, "findings": ("Nodule",)}):
            evaluator = Grounding(path, resamples=20, cosines=cosines)
            found = ground(evaluator, Boxed(), head, shares[rank], sizes[rank], fill=rank, **options)
            answers.append((found, evaluator.count, evaluator.protocol))
    return answers
