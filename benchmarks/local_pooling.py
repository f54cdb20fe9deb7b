"""``local_scores`` against the published loop, for every form of attention: same numbers, speed, and bytes for backward.

``python benchmarks/local_pooling.py`` prints one line a setting: medians of 7 forward and backward passes, all in turn. The
roofline line of each setting compares the large budget with one large matrix product, measured in turn too.
Run it on an idle machine. Beside other work the loop loses disproportionately, since it allocates much more. ``--cpu`` takes
processor time, which other work disturbs less. ``--quick`` takes a quarter of the batch and medians of 3.
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
from loops import published_loop, token_lengths
from roofline import large_product, products, share
from torch import Tensor

from diptych.nn.blockwise import bytes_kept
from diptych.nn.functional import info_nce
from diptych_heads.equations.attention import SHARPNESS, Attention
from diptych_heads.equations.local_pooling import local_scores

Scores = Callable[[Tensor, Tensor, Tensor], Tensor]
FORMS: tuple[Attention, ...] = get_args(Attention)


def ours(form: Attention, byte_budget: int) -> Scores:
    """The same scores from ``local_scores``."""
    options = {"attention": form, "region_scale": SHARPNESS[form], "byte_budget": byte_budget}
    return lambda v, t, mask: 5.0 * local_scores(v, t, mask, **options)  # type: ignore[arg-type]  # a mixed dict


class Setting:
    """Inputs of one setting. Every pass starts from fresh leaves."""

    def __init__(self, form: Attention, pairs: int, regions: int, ragged: bool) -> None:
        generator = torch.Generator().manual_seed(0)
        self.form = form
        self.v = torch.randn(pairs, regions, 768, generator=generator)
        self.t = torch.randn(pairs, 60, 768, generator=generator)
        lengths = torch.linspace(10, 60, pairs).long() if ragged else torch.full((pairs,), 60)
        self.mask = torch.arange(60) < lengths.unsqueeze(1)

    def tokens(self, v: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Regions and words as the head has them. A padded word is zero."""
        words = token_lengths(t, self.form, words=True).masked_fill(~self.mask.unsqueeze(-1), 0.0)
        return token_lengths(v, self.form, words=False), words

    def step(self, scores: Scores, clock: Callable[[], float]) -> tuple[float, Tensor, Tensor, Tensor]:
        """Seconds, loss and gradients of one pass."""
        v, t = self.v.clone().requires_grad_(), self.t.clone().requires_grad_()
        start = clock()
        loss = info_nce(10.0 * scores(*self.tokens(v, t), self.mask), torch.arange(len(t)))
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        seconds = clock() - start
        assert v.grad is not None
        assert t.grad is not None
        return seconds, loss.detach(), v.grad, t.grad

    def backward_bytes(self, scores: Scores) -> int:
        """Bytes kept between forward and backward, with those of the arguments."""
        v, t = (x.requires_grad_() for x in self.tokens(self.v, self.t))
        return bytes_kept(lambda: scores(v, t, self.mask))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a quarter of the batch, medians of 3")
    parser.add_argument("--cpu", action="store_true", help="seconds of the process, summed over threads")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--regions", type=int, nargs="+", default=[49, 196], help="regions an image: 7x7, 14x14")
    parser.add_argument("--attention", nargs="+", default=FORMS, choices=FORMS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    pairs, repeats = (8, 3) if args.quick else (32, 7)
    budgets = {"large": 2**30, "small": 0}
    clock = time.process_time if args.cpu else time.perf_counter

    print(
        f"B={pairs}, W=60, D=768, float32, {args.threads} threads, forward + backward, medians of {repeats} in turn,",
        end=" ",
    )
    print(f"seconds of the {'process' if args.cpu else 'clock'}")
    print(
        f"{'attention':>9} {'regions':>8} {'words':>7} {'budget':>7} {'loop s':>8} {'ours s':>8} {'faster':>7}", end=" "
    )
    print(f"{'loop MiB':>9} {'ours MiB':>9} {'share':>6} {'loss':>8} {'gradient':>9}")
    large, its_flops = large_product()
    for form, regions, ragged in itertools.product(args.attention, args.regions, (False, True)):
        setting = Setting(form, pairs, regions, ragged)
        contenders: dict[str, Scores] = {"loop": partial(published_loop, form=form)}
        contenders |= {name: ours(form, budget) for name, budget in budgets.items()}
        results = {name: setting.step(scores, clock)[1:] for name, scores in contenders.items()}  # this warms up, too
        flops = products(partial(setting.step, contenders["large"], clock))
        seconds: dict[str, list[float]] = {name: [] for name in (*contenders, "product")}
        for _ in range(repeats):
            for name, scores in contenders.items():
                seconds[name].append(setting.step(scores, clock)[0])
            start = clock()
            for _ in range(4):
                large()
            seconds["product"].append((clock() - start) / 4)
        median = {name: statistics.median(values) for name, values in seconds.items()}
        size = {name: setting.backward_bytes(scores) for name, scores in contenders.items()}
        loss, *gradients = results["loop"]
        for name in budgets:
            our_loss, *our_gradients = results[name]
            off = max(float((a - b).norm() / b.norm()) for a, b in zip(our_gradients, gradients, strict=True))
            loss_off = abs(float((our_loss - loss) / loss))
            assert off < 1e-4, f"gradients differ by {off}"
            assert loss_off < 1e-5, f"losses differ by {loss_off}"
            print(
                f"{form:>9} {regions:>8} {'10-60' if ragged else '60':>7} {name:>7} {median['loop']:>8.3f} "
                f"{median[name]:>8.3f} {median['loop'] / median[name]:>6.1f}x {size['loop'] / 2**20:>9.1f} "
                f"{size[name] / 2**20:>9.1f} {size[name] / size['loop']:>6.3f} {loss_off:>8.1e} {off:>9.1e}"
            )
        print(" " * 9, share(flops, median["large"], its_flops / median["product"]), flush=True)


if __name__ == "__main__":
    main()
