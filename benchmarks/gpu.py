"""Every head's loss on one GPU: values against float64, then time, memory, share of the machine, and a DDP step by NCCL.

``python benchmarks/gpu.py`` takes less than eight minutes and prints one Markdown table. What does not fit the time is said to
be skipped. It ends with 1 if a value differs from float64 by more than the tolerance. ``--device cpu --small`` runs all of it
in tiny sizes on a CPU, by the path that a GPU takes.

The setting is one of eight processes: 128 images and their reports here, 1,024 reports in the job, 97 words, 14x14 regions. The
other seven are copies of this one, so that no collective is timed. Features are random. Time is that of forward and backward
from the towers' features. The loops over reports are timed on some of the reports, and scaled up. They
are in float32, as the heads' scores are in both precisions.
"""

from __future__ import annotations

import argparse
import itertools
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import torch
from loops import caption_loop, published_loop
from roofline import large_product, products
from torch import Tensor

from diptych import distributed
from diptych.head import gather_pairs
from diptych.nn import blockwise
from diptych.types import Dims, Features, Pairs, TokenEmbedding
from diptych_heads.cce import Cce
from diptych_heads.equations import pcma as pcma_equations
from diptych_heads.global_ import Global
from diptych_heads.local_pooling import LocalPooling
from diptych_heads.mgca import MGCA
from diptych_heads.pcma import Pcma
from diptych_heads.reclf import Reclf

HEADS: dict[str, Callable[[Dims], Any]] = {
    "global": Global,
    "local_pooling": LocalPooling,
    **{f"local_pooling, {form}": partial(LocalPooling, attention=form) for form in ("raw", "softmax", "scan")},
    "reclf": Reclf,
    **{f"reclf, {form}": partial(Reclf, attention=form) for form in ("raw", "softmax", "scan")},
    "mgca": MGCA,
    "pcma": Pcma,
    "cce": Cce,
}
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
TOLERANCE = {"float32": 1e-3, "bf16": 5e-2}
"""Largest relative difference from float64: of the loss, and in float32 of all gradients together.

Gradients of random features in bf16 are only checked to be finite. Their scores are nearly equal, or their attention is on
a single region, so rounded projections change them much.
"""


@dataclass(frozen=True)
class Size:
    """What is scored."""

    pairs: int
    processes: int
    words: int
    side: int
    dims: Dims
    looped: int
    """Reports that the loops are timed on."""


FULL = Size(pairs=128, processes=8, words=97, side=14, dims=Dims(2048, 768, 1024, 768), looped=16)
SMALL = Size(pairs=4, processes=2, words=10, side=3, dims=Dims(24, 20, 16, 12), looped=2)


def features(size: Size, device: str, dtype: torch.dtype = torch.float32) -> tuple[Features, Features]:
    """What towers would give: random vectors, full reports of sentences of ten words."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    b, n, r = size.pairs, size.words, size.side**2
    sentences = (torch.arange(n, device=device) // 10).expand(b, -1)
    hashes = torch.arange(b * (n // 10 + 1), device=device).view(b, -1)
    seen, read = (torch.ones(b, m, dtype=torch.bool, device=device) for m in (r, n))
    image = Features(
        draw(b, size.dims.image).requires_grad_(),
        draw(b, r, size.dims.image_tokens).requires_grad_(),
        seen,
        grid=(size.side, size.side),
        pixels=draw(b, 1, 16 * size.side, 16 * size.side),
        attention=draw(b, r).sigmoid(),
    )
    text = Features(
        draw(b, size.dims.text).requires_grad_(),
        draw(b, n, size.dims.text_tokens).requires_grad_(),
        read,
        sentences=sentences,
        sentence_hash=hashes,
        attention=draw(b, n).sigmoid(),
    )
    return image, text


@contextmanager
def copies(processes: int) -> Iterator[None]:
    """Within it, this process is the first of several that are alike: their values are this one's, at once.

    Hashes of the others differ, so that their reports are negatives.
    """

    def gather(x: Tensor) -> Tensor:
        shift = 10**6 if x.dtype == torch.int64 else 0
        return torch.cat([torch.where(x < 0, x, x + i * shift) if shift else x for i in range(processes)])

    stands_in = {
        "gather": gather,
        "world_size": lambda: processes,
        "sum_over_processes": lambda x: x.detach() * processes,
        "sum_with_gradient": lambda x: x * processes,
    }
    with mock.patch.multiple(distributed, **stands_in):
        yield


def loss_of(head: Any, image: Features, text: Features) -> Tensor:
    """The weighted loss, as a training step has it."""
    rows = torch.arange(len(image.pooled), device=image.pooled.device)
    here = Pairs(head.embed_image(image), head.embed_text(text), rows, rows)
    terms = head.losses(here, gather_pairs(head, here))
    return torch.stack([head.weights[name] * term for name, term in terms.items()]).sum()


def built(name: str, dims: Dims, device: str) -> Any:
    """A head of the table, whose weights do not depend on the device."""
    torch.manual_seed(0)
    return HEADS[name](dims).to(device)


def gradients(head: Any, image: Features, text: Features, bf16: bool = False) -> tuple[float, Tensor]:
    """The loss, and all gradients as one vector of float64 on the CPU."""
    with torch.autocast(image.pooled.device.type, dtype=torch.bfloat16, enabled=bf16):
        loss = loss_of(head, image, text)
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    leaves = [*head.parameters(), image.pooled, image.tokens, text.pooled, text.tokens]
    return float(loss.detach()), torch.cat([p.grad.flatten().double().cpu() for p in leaves if p.grad is not None])


def check(device: str) -> bool:
    """Loss and gradients of every head in float32 and bf16, against float64 on the CPU. It tells what is off."""
    fine = True
    size = Size(8, 1, 12, 4, Dims(24, 20, 16, 12), 0)
    for name in HEADS:
        exact_loss, exact = gradients(built(name, size.dims, "cpu").double(), *features(size, "cpu", torch.float64))
        for label in DTYPES:
            head = built(name, size.dims, device)
            loss, grads = gradients(head, *features(size, device), bf16=label == "bf16")
            off = abs(loss - exact_loss) / abs(exact_loss)
            gradients_off = float((grads - exact).norm() / exact.norm())
            sound = bool(grads.isfinite().all()) if label == "bf16" else gradients_off < TOLERANCE[label]
            if not (off < TOLERANCE[label] and sound):
                fine = False
                print(f"{name} in {label} differs from float64: loss by {off:.1e}, gradients by {gradients_off:.1e}")
    return fine


class Clock:
    """Times calls on a device, for as long as the budget lasts.

    Args:
        device: ``cuda`` or ``cpu``.
        seconds: of the whole script.
    """

    def __init__(self, device: str, seconds: float) -> None:
        self.device, self.end = device, time.monotonic() + seconds

    def left(self) -> float:
        """Seconds of the budget that are left."""
        return self.end - time.monotonic()

    def median(self, function: Callable[[], object], seconds: float = 4.0, most: int = 10) -> float:
        """The median seconds of a call, after one to warm up; at least two calls, then no more than ``seconds``."""
        function()
        taken: list[float] = []
        begin = time.monotonic()
        while len(taken) < 2 or (len(taken) < most and time.monotonic() - begin < seconds):
            if self.device == "cuda":
                start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                start.record()
                function()
                stop.record()
                torch.cuda.synchronize()
                taken.append(start.elapsed_time(stop) / 1000)
            else:
                start_s = time.perf_counter()
                function()
                taken.append(time.perf_counter() - start_s)
        return statistics.median(taken)

    def peak(self, function: Callable[[], object]) -> str:
        """The most GiB that a call has allocated on a GPU."""
        if self.device != "cuda":
            return "-"
        torch.cuda.reset_peak_memory_stats()
        function()
        torch.cuda.synchronize()
        return f"{torch.cuda.max_memory_allocated() / 2**30:.1f}"


def loop_of(name: str, head: Any, image: Features, text: Features, size: Size) -> Callable[[], object] | None:
    """The loop over reports that a head is compared with, on the first reports: forward and backward."""
    if not isinstance(head, LocalPooling | Reclf):
        return None

    def run() -> None:
        v, t = head.embed_image(image), head.embed_text(text)
        t = TokenEmbedding(t.pooled[: size.looped], t.tokens[: size.looped], t.mask[: size.looped])
        if isinstance(head, Reclf):
            scores = caption_loop(head)(v, t)
        else:
            scores = published_loop(v.tokens, head.words_over_temperature(t).tokens, t.mask, head.attention)
        scores.sum().backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped

    return run


def never(_: Tensor) -> bool:
    """Whether to read numbers from a tensor, as a CPU does."""
    return False


def milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.1f}"


class Case:
    """One head in one precision.

    Args:
        name: of the head.
        label: of the precision.
        size: what is scored.
        clock: of the script.
    """

    def __init__(self, name: str, label: str, size: Size, clock: Clock) -> None:
        self.name, self.label, self.size, self.clock = name, label, size, clock

    def step(self) -> Callable[[Callable[..., Tensor]], None]:
        """A training step from the towers' features on, as a function of the loss to use."""
        head, (image, text) = (
            built(self.name, self.size.dims, self.clock.device),
            features(self.size, self.clock.device),
        )

        def run(loss: Callable[..., Tensor]) -> None:
            head.zero_grad()
            with (
                copies(self.size.processes),
                torch.autocast(self.clock.device, dtype=torch.bfloat16, enabled=self.label == "bf16"),
            ):
                total = loss(head, image, text)
            total.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped

        return run

    def products(self) -> int:
        """FLOPs of the necessary products, counted on ``meta`` with a budget that keeps everything."""
        with torch.device("meta"):
            head = HEADS[self.name](self.size.dims)
        if hasattr(head, "byte_budget"):
            head.byte_budget = 2**62

        def run() -> None:
            with copies(self.size.processes):
                loss_of(head, *features(self.size, "meta")).backward()  # type: ignore[no-untyped-call]  # as above

        return products(run)

    def eager(self, rate: float) -> list[str]:
        """Milliseconds, memory, share of the machine, and the loop's milliseconds."""
        if self.clock.left() < 15:
            return ["skipped"] * 4
        step = partial(self.step(), loss_of)
        seconds = self.clock.median(step)
        cells = [milliseconds(seconds), self.clock.peak(step), f"{100 * self.products() / seconds / rate:.0f} %"]
        head, (image, text) = (
            built(self.name, self.size.dims, self.clock.device),
            features(self.size, self.clock.device),
        )
        loop = loop_of(self.name, head, image, text, self.size)
        if loop is None:
            return [*cells, "-"]
        whole = self.clock.median(loop, seconds=1.0) * self.size.pairs * self.size.processes / self.size.looped
        return [*cells, f"{milliseconds(whole)} ({whole / seconds:.1f}x)"]

    def compiled(self, most: float) -> str:
        """Milliseconds of the compiled loss, where it is compiled within ``most`` seconds and the time that is left."""
        seconds = min(most, self.clock.left() - 10)
        if seconds < 5:
            return "skipped"
        torch._dynamo.reset()
        backend = "inductor" if self.clock.device == "cuda" else "aot_eager"
        step, begin = self.step(), time.monotonic()
        try:
            with limit(seconds):
                return milliseconds(
                    self.clock.median(partial(step, torch.compile(loss_of, backend=backend, fullgraph=True)))
                )
        except (TimeoutError, RuntimeError) as error:  # torch wraps what is raised while it compiles
            late = time.monotonic() - begin >= seconds
            return f"not within {seconds:.0f} s" if late else f"failed: {str(error).splitlines()[0]}"


@contextmanager
def limit(seconds: float) -> Iterator[None]:
    """Raise ``TimeoutError`` within it after some seconds."""

    def late(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def ddp_step(device: str) -> str:
    """Three steps of the real training module under DDP, on one process: what its optimiser saw."""
    import lightning.pytorch as pl
    from lightning.pytorch.strategies import DDPStrategy

    from diptych import AlignmentModule, Loading, ScratchText, TimmImage
    from diptych_datamodules.phantom import Phantom

    text = ScratchText(width=64, depth=2, heads=2, vocabulary=512, max_tokens=64)
    module = AlignmentModule(TimmImage("resnet10t", pretrained=False, stage=3), text, LocalPooling, lr=1e-3)
    data = Phantom(
        module.tokenizer, train=24, val=2, test=2, size=64, loading=Loading(image_size=64, batch_size=8, workers=0)
    )
    backend = "nccl" if device == "cuda" else "gloo"
    trainer = pl.Trainer(
        accelerator="gpu" if device == "cuda" else "cpu",
        devices=1,
        strategy=DDPStrategy(process_group_backend=backend),
        precision="bf16-mixed" if device == "cuda" else "32-true",
        max_steps=3,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    begin = time.monotonic()
    trainer.fit(module, data)
    loss = float(trainer.callback_metrics["train/loss"])
    assert torch.tensor(loss).isfinite(), f"the loss of the DDP step is {loss}"
    return f"DDP of one process by {backend}: {trainer.global_step} steps in {time.monotonic() - begin:.1f} s, loss {loss:.3f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to try the script out")
    parser.add_argument("--minutes", type=float, default=7.0, help="what does not fit is skipped")
    parser.add_argument("--heads", nargs="+", default=list(HEADS), choices=list(HEADS))
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("no GPU is at hand; --device cpu --small tries the script out")
        return 2
    clock = Clock(args.device, 60 * args.minutes)
    size = SMALL if args.small else FULL
    with mock.patch.object(blockwise, "on_cpu", never), mock.patch.object(pcma_equations, "on_cpu", never):
        if not check(args.device):
            return 1
        print(f"values: within {TOLERANCE['float32']:g} of float64 in float32, within {TOLERANCE['bf16']:g} in bf16")
        print(ddp_step(args.device), flush=True)
        rates = {}
        for label, dtype in DTYPES.items():
            product, flops = large_product(256 if args.small else 8192, args.device, dtype)
            rates[label] = flops / clock.median(product)
        device = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
        print(f"{device}, torch {torch.__version__}", end=": ")
        print(", ".join(f"{rate / 1e12:.3g} TFLOP/s in {label}" for label, rate in rates.items()), "of a large product")
        reports = size.pairs * size.processes
        print(
            f"B={size.pairs}, C={reports}, {size.words} words, {size.side}x{size.side} regions; forward and backward, ms\n"
        )
        cases = [Case(name, label, size, clock) for label, name in itertools.product(reversed(DTYPES), args.heads)]
        cells: dict[Case, list[str]] = {}
        for case in cases:
            try:
                cells[case] = case.eager(rates[case.label])
            except torch.OutOfMemoryError:
                cells[case] = ["out of memory"] * 4
            print(f"{case.name}, {case.label}, eager: {cells[case][0]}", file=sys.stderr, flush=True)
        for case in cases:  # last, for it may take minutes
            cells[case].insert(3, case.compiled(60 if args.device == "cuda" else 600))
            print(f"{case.name}, {case.label}, compiled: {cells[case][3]}", file=sys.stderr, flush=True)
        print("| head | precision | eager | peak GiB | share of the product's rate | compiled | loop over reports |")
        print("|---|---|---|---|---|---|---|")
        for case in cases:
            print("| " + " | ".join([case.name, case.label, *cells[case]]) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
