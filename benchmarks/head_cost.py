"""What each head costs in a whole training step: ViT-B/16 at 224 and a 12-layer BERT, random weights, on the CPU.

python benchmarks/head_cost.py [--batch 32] [--threads 2] [--runs 3]

Seconds are processor time, summed over threads. Other work on the machine disturbs it less than the clock's time. The roofline
of each head compares its matrix products with one large product, which is measured in turn with it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from functools import partial
from typing import Any

import torch
from memory import peak
from roofline import large_product, products, share

from diptych.head import gather_pairs
from diptych.towers.image import TimmImage
from diptych.towers.text import ScratchText
from diptych.types import Dims, Pairs
from diptych_heads.global_ import Global
from diptych_heads.local_pooling import LocalPooling
from diptych_heads.mgca import MGCA
from diptych_heads.pcma import Pcma
from diptych_heads.reclf import Reclf


def seconds(function: Any) -> float:
    """Processor time that a call takes."""
    begin = time.process_time()
    function()
    return time.process_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    report = "The heart is normal in size. There is no pleural effusion. A small nodule lies in the left upper zone. "
    reports = [f"Study {i}. {report * (1 + i % 4)}" for i in range(options.batch)]
    image = TimmImage("vit_base_patch16_224", pretrained=False)
    image.attention = True  # what mgca asks of the towers
    text = ScratchText(width=768, depth=12, heads=12, vocabulary=4096, max_tokens=112)
    text.attention = text.gives_attention
    text.tokenizer.learn(reports)
    pixels = torch.randint(0, 255, (options.batch, 1, 224, 224), dtype=torch.uint8)
    tokens = text.tokenizer(reports, to_max=True)

    def backward(head: Any, features: Any) -> None:
        here = Pairs(
            head.embed_image(features[0]), head.embed_text(features[1]), torch.arange(len(reports)), tokens.hash
        )
        terms = head.losses(here, gather_pairs(head, here))
        torch.stack([head.weights[name] * term for name, term in terms.items()]).sum().backward()

    def step(head: Any) -> None:
        backward(head, [image(pixels), text(tokens)])

    dims = Dims(image.width, text.width, image.token_width, text.token_width)
    with torch.no_grad():
        features = [image(pixels), text(tokens)]
    for f in features:
        f.tokens.requires_grad_()
        f.pooled.requires_grad_()
    heads = {
        "global": Global,
        "local_pooling": LocalPooling,
        **{f"local_pooling, {form}": partial(LocalPooling, attention=form) for form in ("raw", "softmax", "scan")},
        "reclf": Reclf,
        **{f"reclf, {form}": partial(Reclf, attention=form) for form in ("raw", "softmax", "scan")},
        "reclf, 64 MiB kept": partial(Reclf, byte_budget=2**26),
        "mgca": MGCA,
        "pcma, cce: 0": partial(Pcma, cce=0.0),
        "pcma": Pcma,
        "pcma, sinkhorn": partial(Pcma, matching="sinkhorn"),
        "pcma, hungarian": partial(Pcma, matching="hungarian"),
    }
    whole = statistics.median(seconds(lambda: step(Global(dims))) for _ in range(options.runs))
    print(f"whole step with global: {whole:.2f} s of processor time, B={options.batch}, {options.threads} threads")
    large, its_flops = large_product()
    for name, build in heads.items():
        head: Any = build(dims)
        backward(head, features)
        flops = products(partial(backward, head, features))
        taken, rates = [], []
        for _ in range(options.runs):
            taken.append(seconds(partial(backward, head, features)))
            rates.append(its_flops / seconds(large))
        cost = statistics.median(taken)
        print(f"{name:22} {cost:.3f} s, {100 * cost / whole:.1f} % of the step;", end=" ")
        print(share(flops, cost, statistics.median(rates)), flush=True)
    print(f"most memory {peak():.1f} GiB")


if __name__ == "__main__":
    main()
