"""``local_scores`` against the published double soft-max loop: same numbers, speed, and bytes kept for backward.

``python benchmarks/local_pooling.py`` prints one line a setting: medians of 7 forward and backward passes, both in turn.
Run it on an idle machine. Beside other work the loop loses disproportionately, since it allocates much more.
``--quick`` takes a quarter of the batch and medians of 3.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from diptych.nn.blockwise import bytes_kept
from diptych.nn.functional import info_nce, unit
from diptych_heads.equations.local_pooling import local_scores

Scores = Callable[[Tensor, Tensor, Tensor], Tensor]


def published_loop(regions: Tensor, words: Tensor, mask: Tensor) -> Tensor:
    """GLoRIA's ``log sum_w exp(5 m_w)``, report by report, in the order of operations of the public implementation.

    Channels come first. Each report's real words are repeated for every image. Both soft-maxes, the context of every word
    and its cosine with the word are formed at full width. ``[I,R,E]``, ``[T,N,E]``, ``[T,N]`` to ``[I,T]``.
    """
    images = regions.transpose(1, 2).contiguous()  # [I,E,R]
    columns = []
    for report, real in zip(words, mask, strict=True):
        word = report[real].T.contiguous().repeat(len(images), 1, 1)  # [I,E,N]
        s = torch.bmm(images.transpose(1, 2).contiguous(), word)  # [I,R,N]
        over_words = s.softmax(dim=2).transpose(1, 2).contiguous()  # [I,N,R]
        attention = (4.0 * over_words).softmax(dim=2)
        context = torch.bmm(images, attention.transpose(1, 2).contiguous())  # [I,E,N]
        word, context = word.transpose(1, 2).contiguous(), context.transpose(1, 2).contiguous()  # [I,N,E]
        lengths = word.norm(dim=2) * context.norm(dim=2)
        m = (word * context).sum(dim=2) / lengths.clamp(min=1e-8)  # [I,N]
        columns.append((5.0 * m).exp().sum(dim=1).log())
    return torch.stack(columns, dim=1)


def ours(byte_budget: int) -> Scores:
    """The same scores from ``local_scores``."""
    return lambda v, t, mask: 5.0 * local_scores(v, t, mask, byte_budget=byte_budget)


def step(scores: Scores, regions: Tensor, words: Tensor, mask: Tensor) -> tuple[float, Tensor, Tensor, Tensor]:
    """Seconds, loss and gradients of one pass over fresh leaves."""
    v, t = regions.clone().requires_grad_(), words.clone().requires_grad_()
    start = time.perf_counter()
    loss = info_nce(10.0 * scores(unit(v), unit(t, mask), mask), torch.arange(len(t)))
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    seconds = time.perf_counter() - start
    assert v.grad is not None
    assert t.grad is not None
    return seconds, loss.detach(), v.grad, t.grad


def backward_bytes(scores: Scores, regions: Tensor, words: Tensor, mask: Tensor) -> int:
    """Bytes kept between forward and backward, with those of the arguments."""
    v, t = unit(regions).requires_grad_(), unit(words, mask).requires_grad_()
    return bytes_kept(lambda: scores(v, t, mask))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a quarter of the batch, medians of 3")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--regions", type=int, nargs="+", default=[49, 196], help="regions an image: 7x7, 14x14")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    pairs, repeats = (8, 3) if args.quick else (32, 7)
    budgets = {"large": 2**30, "small": 0}

    print(f"B={pairs}, W=60, D=768, float32, {args.threads} threads, forward + backward, medians of {repeats} in turn")
    print(f"{'regions':>8} {'words':>7} {'budget':>7} {'loop s':>8} {'ours s':>8} {'faster':>7}", end=" ")
    print(f"{'loop MiB':>9} {'ours MiB':>9} {'share':>6} {'loss':>8} {'gradient':>9}")
    for regions, ragged in itertools.product(args.regions, (False, True)):
        generator = torch.Generator().manual_seed(0)
        v = torch.randn(pairs, regions, 768, generator=generator)
        t = torch.randn(pairs, 60, 768, generator=generator)
        lengths = torch.linspace(10, 60, pairs).long() if ragged else torch.full((pairs,), 60)
        mask = torch.arange(60) < lengths.unsqueeze(1)
        contenders: dict[str, Scores] = {"loop": published_loop}
        contenders |= {name: ours(budget) for name, budget in budgets.items()}

        _, loss, *gradients = step(published_loop, v, t, mask)
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for scores in contenders.values():  # warm up
            step(scores, v, t, mask)
        for _ in range(repeats):
            for name, scores in contenders.items():
                seconds[name].append(step(scores, v, t, mask)[0])
        median = {name: statistics.median(values) for name, values in seconds.items()}
        size = {name: backward_bytes(scores, v, t, mask) for name, scores in contenders.items()}
        for name in budgets:
            _, our_loss, *our_gradients = step(contenders[name], v, t, mask)
            off = max(float((a - b).norm() / b.norm()) for a, b in zip(our_gradients, gradients, strict=True))
            loss_off = abs(float((our_loss - loss) / loss))
            assert off < 1e-5, f"gradients differ by {off}"
            assert loss_off < 1e-5, f"losses differ by {loss_off}"
            print(
                f"{regions:>8} {'10-60' if ragged else '60':>7} {name:>7} {median['loop']:>8.3f} {median[name]:>8.3f} "
                f"{median['loop'] / median[name]:>6.1f}x {size['loop'] / 2**20:>9.1f} {size[name] / 2**20:>9.1f} "
                f"{size[name] / size['loop']:>6.3f} {loss_off:>8.1e} {off:>9.1e}"
            )


if __name__ == "__main__":
    main()
