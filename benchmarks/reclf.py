"""``reclf`` against a caption-by-caption loop of the same mathematics: same numbers, speed, and bytes kept for backward.

``python benchmarks/reclf.py`` prints one line a setting: medians of 5 forward and backward passes, all contenders in turn. The
roofline line compares the large budget with one large matrix product, measured in turn too. Every form of attention is
taken with full reports, and the first one with ragged reports too.
Seconds are those of the clock. ``--cpu`` takes processor time, which other work on the machine disturbs less.
``--quick`` takes a quarter of the batch and medians of 3.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import get_args

import torch
from loops import caption_loop, token_lengths
from memory import peak
from roofline import large_product, products, share
from torch import Tensor

from diptych.nn.blockwise import bytes_kept
from diptych.nn.functional import info_nce, unit
from diptych.types import Dims, TokenEmbedding
from diptych_heads.equations.attention import Attention
from diptych_heads.reclf import Reclf

FORMS: tuple[Attention, ...] = get_args(Attention)
Scores = Callable[[TokenEmbedding, TokenEmbedding], Tensor]
WORDS, WIDTH, MATCHING = 60, 768, 256


def ours(head: Reclf, byte_budget: int) -> Scores:
    """The same scores from the head."""

    def scores(image: TokenEmbedding, text: TokenEmbedding) -> Tensor:
        head.byte_budget = byte_budget
        return head.local_scores(image, text)

    return scores


class Setting:
    """Inputs of one setting. Every pass starts from fresh leaves."""

    def __init__(self, head: Reclf, pairs: int, regions: int, ragged: bool) -> None:
        generator = torch.Generator().manual_seed(0)
        self.head = head
        shapes = [(pairs, WIDTH), (pairs, regions, WIDTH), (pairs, WIDTH), (pairs, WORDS, WIDTH)]
        self.raw = [torch.randn(shape, generator=generator) for shape in shapes]
        lengths = torch.linspace(10, WORDS, pairs).long() if ragged else torch.full((pairs,), WORDS)
        self.mask = torch.arange(WORDS) < lengths.unsqueeze(1)
        self.everywhere = torch.ones(pairs, regions, dtype=torch.bool)

    def embed(self, vg: Tensor, v: Tensor, tg: Tensor, t: Tensor) -> tuple[TokenEmbedding, TokenEmbedding]:
        form: Attention = (
            "unit" if self.head.attention == "softmax" else self.head.attention
        )  # it scales the words itself
        image = TokenEmbedding(unit(vg), token_lengths(v, form, words=False), self.everywhere)
        words = token_lengths(t, form, words=True).masked_fill(~self.mask.unsqueeze(-1), 0.0)
        return image, TokenEmbedding(unit(tg), words, self.mask)

    def step(self, scores: Scores, clock: Callable[[], float]) -> tuple[float, Tensor, list[Tensor]]:
        """Seconds, loss and gradients of one pass."""
        leaves = [x.clone().requires_grad_() for x in self.raw]
        self.head.zero_grad()
        start = clock()
        loss = info_nce(10.0 * scores(*self.embed(*leaves)), torch.arange(len(self.mask)))
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        seconds = clock() - start
        parameters = [p.grad for p in self.head.parameters() if p.grad is not None]
        return seconds, loss.detach(), [x.grad for x in leaves if x.grad is not None] + parameters

    def bytes_kept(self, scores: Scores) -> int:
        """Bytes kept between forward and backward, without those of the arguments."""
        image, text = self.embed(*(x.clone().requires_grad_() for x in self.raw))
        arguments = (image.pooled, image.tokens, text.pooled, text.tokens, text.mask)
        return bytes_kept(lambda: scores(image, text), besides=arguments)


def difference(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """Length of the difference of all gradients, over the length of theirs."""
    a, b = (torch.cat([g.flatten() for g in gradients]) for gradients in (ours, theirs))
    return float((a - b).norm() / b.norm())


def memory() -> None:
    """One pass of a large batch with the head's own budget, and the most memory the process had."""
    head = Reclf(Dims(WIDTH, WIDTH, WIDTH, WIDTH), width=WIDTH, matching_width=MATCHING)
    generator = torch.Generator().manual_seed(0)
    v, t = (torch.randn(128, n, WIDTH, generator=generator).requires_grad_() for n in (196, 97))
    image = TokenEmbedding(unit(v.mean(1)), unit(v), torch.ones(128, 196, dtype=torch.bool))
    text = TokenEmbedding(unit(t.mean(1)), unit(t), torch.ones(128, 97, dtype=torch.bool))
    begin = time.perf_counter()
    info_nce(10.0 * head.local_scores(image, text), torch.arange(128)).backward()  # type: ignore[no-untyped-call]  # as below
    gib = peak()
    print(f"B=128, W=97, R=196, budget {head.byte_budget / 2**30:.0f} GiB: {gib:.2f} GiB resident at most", end=", ")
    print(f"{time.perf_counter() - begin:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a quarter of the batch, medians of 3")
    parser.add_argument("--cpu", action="store_true", help="seconds of the process, summed over threads")
    parser.add_argument(
        "--plain", action="store_true", help="SGRAF's plain steps; without it, the head's default, residual"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--regions", type=int, nargs="+", default=[49, 196], help="regions an image: 7x7, 14x14")
    parser.add_argument("--attention", nargs="+", default=FORMS, choices=FORMS)
    parser.add_argument("--memory", action="store_true", help="only: most memory of 128 pairs, 97 words, 14x14 regions")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory:
        memory()
        return
    pairs, repeats = (8, 3) if args.quick else (32, 5)
    clock = time.process_time if args.cpu else time.perf_counter

    print(f"B={pairs}, W={WORDS}, D={WIDTH}, m={MATCHING}, 3 steps, residual {not args.plain}, float32,", end=" ")
    print(f"{args.threads} threads, forward + backward, medians of {repeats} in turn,", end=" ")
    print(f"seconds of the {'process' if args.cpu else 'clock'}")
    print(
        f"{'attention':>9} {'regions':>8} {'words':>7} {'budget':>7} {'loop s':>8} {'ours s':>8} {'faster':>7}", end=" "
    )
    print(f"{'loop MiB':>9} {'ours MiB':>9} {'share':>6} {'loss':>8} {'gradient':>9}")
    large, its_flops = large_product()
    for form, regions, ragged in itertools.product(args.attention, args.regions, (False, True)):
        if ragged and form != args.attention[0]:
            continue
        torch.manual_seed(0)
        dims = Dims(WIDTH, WIDTH, WIDTH, WIDTH)
        head = Reclf(dims, width=WIDTH, matching_width=MATCHING, residual=not args.plain, attention=form)
        setting = Setting(head, pairs, regions, ragged)
        loop = caption_loop(head)
        small = setting.bytes_kept(loop) // 22  # a twentieth, with what has no budget
        budgets = {"large": 2**32, "small": small, "none": 0}
        contenders = {"loop": loop, **{name: ours(head, budget) for name, budget in budgets.items()}}
        seconds: dict[str, list[float]] = {name: [] for name in (*contenders, "product")}
        results = {name: setting.step(scores, clock)[1:] for name, scores in contenders.items()}  # this warms up, too
        flops = products(partial(setting.step, contenders["large"], clock))
        for _ in range(repeats):
            for name, scores in contenders.items():
                seconds[name].append(setting.step(scores, clock)[0])
            start = clock()
            for _ in range(4):
                large()
            seconds["product"].append((clock() - start) / 4)
        median = {name: statistics.median(values) for name, values in seconds.items()}
        size = {name: setting.bytes_kept(scores) for name, scores in contenders.items()}
        loss, gradients = results["loop"]
        for name in budgets:
            our_loss, our_gradients = results[name]
            off, loss_off = difference(our_gradients, gradients), abs(float((our_loss - loss) / loss))
            # Rounding, since scores of random inputs are all nearly equal. In float64: 1e-14 (tests/heads/test_reclf.py).
            assert off < 1e-2, f"gradients differ by {off}"
            assert loss_off < 1e-5, f"losses differ by {loss_off}"
            words = "10-60" if ragged else "60"
            print(
                f"{form:>9} {regions:>8} {words:>7} {name:>7} {median['loop']:>8.3f} {median[name]:>8.3f} "
                f"{median['loop'] / median[name]:>6.2f}x {size['loop'] / 2**20:>9.1f} {size[name] / 2**20:>9.1f} "
                f"{size[name] / size['loop']:>6.3f} {loss_off:>8.1e} {off:>9.1e}",
                flush=True,
            )
        print(" " * 9, share(flops, median["large"], its_flops / median["product"]), flush=True)


if __name__ == "__main__":
    main()
