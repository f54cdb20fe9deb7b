"""Retrieval over large sets: time, and the most memory that the process had, by the evaluator itself.

python benchmarks/retrieval.py [--pairs 100000] [--width 128] [--threads 2]

Every image is compared with every text. The scores of 100,000 pairs alone would take 37 GiB.
"""

from __future__ import annotations

import argparse
import time

import torch
from memory import peak

from diptych.evaluation.retrieval import Retrieval
from diptych.types import Batch, Dims, Embedding, TextBatch
from diptych_heads.global_ import Global


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    head = Global(Dims(args.width, args.width, args.width, args.width), width=args.width)
    generator = torch.Generator().manual_seed(0)

    def vectors(n: int) -> torch.Tensor:
        return torch.nn.functional.normalize(torch.randn(n, args.width, generator=generator), dim=-1)

    evaluator = Retrieval()
    evaluator.start(lambda texts: Embedding(vectors(len(texts))), ())
    size = 1000
    for start in range(0, args.pairs, size):
        index = torch.arange(start, min(start + size, args.pairs))
        n = len(index)
        none = torch.zeros(n, 1, dtype=torch.int64)
        mask = torch.ones(n, 1, dtype=torch.bool)
        text = TextBatch(none, mask, none, mask, none, index, torch.zeros(n, dtype=torch.bool), [""] * n)
        image = torch.zeros(n, 1, 1, 1, dtype=torch.uint8)
        batch = Batch(image, text, index, torch.ones(n, dtype=torch.bool), None, index, None, [""] * n)
        texts = vectors(n)
        images = torch.nn.functional.normalize(texts + 2 * vectors(n), dim=-1)
        evaluator.update(batch, Embedding(images), Embedding(texts), head)
    before, begin = peak(), time.perf_counter()
    metrics = evaluator.compute(head)
    seconds = time.perf_counter() - begin
    print(f"{args.pairs} x {args.pairs}, width {args.width}, {args.threads} threads: {seconds:.0f} s,", end=" ")
    print(f"{peak():.2f} GiB resident at most ({before:.2f} before the ranking)")
    for name in ("image_to_text/r@1", "text_to_image/r@1", "image_to_text/median_rank"):
        metric = metrics[name]
        print(f"{name} {metric.value:.4f} ({metric.low:.4f} to {metric.high:.4f}), n {metric.n}")


if __name__ == "__main__":
    main()
