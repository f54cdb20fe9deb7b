"""The contract of alignment heads."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from diptych.head import AlignmentHead, HeadFactory
from diptych.plugins import HEADS, find
from diptych.testing.contract import Found, Rule, chosen, close, rule
from diptych.testing.pairs import RawPairs, Step, gradients_of, padded, raw_pairs, share
from diptych.testing.processes import run_on
from diptych.testing.waiting import NoCopies
from diptych.types import Embedding

__all__ = ["RULES", "HeadCase", "check_head", "equal_on_processes"]

_ORDER = torch.tensor([5, 2, 7, 0, 1, 6, 3, 4])


@dataclass(frozen=True)
class HeadCase:
    """A head as it is configured."""

    build: HeadFactory
    """Makes the head of the towers' widths."""
    name: str
    """For messages."""

    def __str__(self) -> str:
        return f"head {self.name}"

    def step(self, seed: int = 5, dtype: torch.dtype = torch.float64, done: int = 50) -> Step:
        """A new training step with this head, the same for the same seed."""
        return Step(self.build, seed, done).to(dtype)


def check_head(
    head: str | Callable[..., AlignmentHead[Any]], /, *, without: Collection[str] = (), **arguments: Any
) -> None:
    """Check that a head keeps to the whole contract, in seconds and on the CPU.

    The head is built on stand-ins for the towers, with eight made-up pairs. Some of their reports are equal.

    ``check_head(Mine, width=16)`` is a whole test.

    Args:
        head: its class, or its name in the catalogue.
        without: names of rules that do not apply, as ``device`` of a head that says it computes on the CPU.
        arguments: of the head's constructor. All others keep their defaults.

    Raises:
        BrokenContract: a rule is broken. The message names the head, the rule, the figures, the likely cause and the remedy.
        ConfigError: the head is not known, or ``without`` names no rule.
    """
    kind = find(HEADS, head).load() if isinstance(head, str) else head
    name = str(getattr(getattr(kind, "func", kind), "__name__", kind))
    case = HeadCase(partial(kind, **arguments), name)
    for each in chosen(RULES, without):
        each(case)


# The rules -----------------------------------------------------------------------------------------------------------


def _finite(step: Step, loss: Tensor, where: str) -> None:
    if not loss.isfinite():
        raise Found(f"the loss is {loss.item()} with {where}")
    for name, parameter in step.named_parameters():
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            raise Found(f"the gradient of {name} is not finite with {where}")


@rule(
    "shapes",
    "a method returns another shape than the base class says, or reads a field of `world` that `gathers` does not declare",
    "compare the method with diptych.AlignmentHead, and declare in `gathers` what `losses` reads of `world`",
)
def shapes(case: HeadCase) -> None:
    """Embeddings, scores and losses have the shapes of the base class, and are finite."""
    step, raw = case.step(), raw_pairs()
    image, text = step.embed(raw)
    for panel, embedded in (("image", image), ("text", text)):
        if not isinstance(embedded, Embedding):
            raise Found(f"embed_{panel} returns a {type(embedded).__name__}, no Embedding")
        if embedded.pooled.ndim != 2 or len(embedded.pooled) != 8:
            raise Found(f"`pooled` of embed_{panel} has the shape {list(embedded.pooled.shape)} for 8 rows, not [8,E]")
        if not embedded.pooled.isfinite().all():
            raise Found(f"`pooled` of embed_{panel} is not finite")
    terms = step.terms(raw)
    if terms.keys() != step.head.weights.keys():
        raise Found(
            f"losses returns the terms {sorted(terms)}, and `weights` names {sorted(step.head.weights)}",
            "a term has no weight, or a weight no term",
            "give `weights` one entry a term; 0 for a term that is only logged",
        )
    for name, term in terms.items():
        if term.shape != () or not term.isfinite():
            raise Found(f"the term '{name}' is {term.tolist()} of shape {list(term.shape)}, no finite scalar")
    if not step.head.ranks:
        return
    for panel, embedded in (("image", image), ("text", text)):
        close(
            f"the length of `pooled` of embed_{panel}",
            embedded.pooled.norm(dim=-1).double(),
            torch.ones(8).double(),
            1e-4,
        )
    scores = step.head.similarity(image, text.select(torch.arange(3)))
    if scores.shape != (8, 3) or not scores.isfinite().all():
        raise Found(f"similarity of 8 images and 3 texts has the shape {list(scores.shape)}, or is not finite")


@rule(
    "padding",
    "words are averaged, pooled or normalised without `text.mask`, or the padding is scored",
    "multiply by the mask or fill with -inf before a soft-max, and divide by the number of real words",
)
def padding(case: HeadCase) -> None:
    """More padding in the reports changes neither a loss nor a score."""
    raw = raw_pairs()
    for name, term in case.step().terms(raw).items():
        close(
            f"the loss '{name}' of the same reports with 5 more words of padding",
            case.step().terms(padded(raw))[name],
            term,
        )
    if case.step().head.ranks:
        close(
            "the score of the same reports with more padding", case.step().scores(padded(raw)), case.step().scores(raw)
        )


@rule(
    "permutation",
    "the position of a pair in the batch is used, as an index or a code of the row",
    "use `here.targets` for the row of a pair, and nothing else",
)
def permutation(case: HeadCase) -> None:
    """Pairs in another order have the same scores in that order, and the same loss."""
    raw = raw_pairs()
    if not case.step().head.ranks:  # a term may draw by the row
        return
    scores = case.step().scores(raw)
    close("the score of pairs in another order", case.step().scores(raw.select(_ORDER)), scores[_ORDER][:, _ORDER])
    close("the loss of pairs in another order", case.step()(raw.select(_ORDER)), case.step()(raw), 1e-6)


@rule(
    "batch independence",
    "a score is normalised over the batch: batch norm, a soft-max over images, or a mean of the batch",
    "normalise each vector by itself; in the losses only, contrast over the batch",
)
def batch_independence(case: HeadCase) -> None:
    """The score of a pair does not depend on the others in the batch."""
    step, raw = case.step(), raw_pairs()
    if not step.head.ranks:
        return
    image, text = step.embed(raw)
    whole = step.head.similarity(image, text)
    similarity = step.head.similarity
    parts = [
        torch.cat([similarity(image.select(i), text.select(t)) for t in torch.split(torch.arange(8), 3)], 1)
        for i in torch.split(torch.arange(8), 5)
    ]
    close("the score of a part of the batch", torch.cat(parts), whole)
    close("the score of other texts in another order", similarity(image, text.select(_ORDER)), whole[:, _ORDER])
    with torch.no_grad():
        close("the score without gradient", similarity(image, text), whole)
    step.eval()
    close(
        "in evaluation mode, the score of pairs that are embedded by themselves",
        step.scores(raw.select(torch.arange(3))),
        step.scores(raw)[:3, :3],
    )


@rule(
    "equal reports",
    "the right pair is `arange(len(scores))`, and every other report counts as wrong, equal ones too",
    "leave out what has the same `hash`: diptych.nn.functional.info_nce(logits, world.hash) does it; a head without negatives "
    "sets `contrasts = False`",
)
def equal_reports(case: HeadCase) -> None:
    """Equal reports are not negatives of each other, where the head contrasts."""
    step, raw = case.step(), raw_pairs()
    if not (step.head.ranks and step.head.contrasts):
        return
    alike, apart = step(raw).item(), case.step()(replace(raw, hash=torch.arange(8))).item()
    if abs(alike - apart) <= 1e-7 * abs(alike):
        raise Found(
            f"the loss is {alike:.6g} where rows 0, 1 and 7 have one report, and the same where all have their own"
        )


@rule(
    "gradients",
    "a tensor is detached, computed under no_grad, or not used by the losses",
    "let every trained parameter reach a loss; set requires_grad_(False) on what is not trained, since DDP waits for it",
)
def gradients(case: HeadCase) -> None:
    """The losses train both towers and every trained parameter of the head."""
    step, raw = case.step(), raw_pairs()
    _, found = gradients_of(step, raw)
    towers = {"image": ("image", "regions"), "text": ("text", "words")}
    if step.head.ranks:
        for tower, layers in towers.items():
            sizes = [float(found[f"{layer}.weight"].norm()) for layer in layers if f"{layer}.weight" in found]
            if max(sizes, default=0.0) < 1e-12:
                raise Found(f"no gradient comes to the {tower} tower")
    for name, parameter in step.head.named_parameters():
        if parameter.requires_grad and f"head.{name}" not in found:
            raise Found(f"the head's parameter '{name}' gets no gradient")


@rule(
    "small inputs",
    "a division by the number of words or of other pairs, or a soft-max over nothing; nn.BatchNorm1d refuses one row",
    "clamp the divisor to 1, and give a report without words a score of zero; diptych.nn.norm.GlobalBatchNorm takes one row",
)
def small_inputs(case: HeadCase) -> None:
    """One pair, reports of one word and reports without words give finite losses and gradients."""
    raw, words = raw_pairs(), torch.arange(15)
    cases: dict[str, RawPairs] = {"one pair": raw.select(torch.arange(1))}
    for name, kept in (
        ("a report without words", raw.mask & (torch.arange(8) != 3).unsqueeze(1)),
        ("reports of one word", raw.mask & (words < 1)),
        ("no report with a word", raw.mask & (words < 0)),
    ):
        cases[name] = replace(raw, mask=kept, sentences=raw.sentences.masked_fill(~kept, -1))
    for name, few in cases.items():
        step = case.step()
        loss = step(few)
        loss.backward()
        _finite(step, loss, name)
        if step.head.ranks and not step.scores(few).isfinite().all():
            raise Found(f"a score is not finite with {name}")


@rule(
    "autocast",
    "a soft-max, an exponential or a norm is computed in bfloat16",
    "compute scores and losses in float32, as diptych.nn.functional does (`full`, `without_autocast`)",
)
def autocast(case: HeadCase) -> None:
    """Under bfloat16 autocast, losses and scores are finite float32 numbers near those of float32."""
    raw = raw_pairs(torch.float32)
    exact = case.step(dtype=torch.float32)
    plain = exact(raw)
    step = case.step(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = step(raw)
        scores = step.scores(raw) if step.head.ranks else loss
    loss.backward()
    _finite(step, loss, "bfloat16 autocast")
    if not scores.isfinite().all():
        raise Found("a score is not finite")
    for what, value in (("the loss", loss), ("similarity", scores)):
        if value.dtype != torch.float32:
            raise Found(f"{what} is {str(value.dtype).removeprefix('torch.')} under autocast, not float32")
    close("the loss under autocast", loss, plain, 0.05)
    if step.head.ranks:
        close("the score under autocast", scores, exact.scores(raw), 0.05)


@rule(
    "resume",
    "what changes in training is no parameter and no persistent buffer: a plain tensor attribute, or persistent=False",
    "register it with register_buffer, so that the state dict has it, or compute it from the arguments of `start_step`",
)
def resume(case: HeadCase) -> None:
    """A head that is built anew from its state dict goes on as the one that was saved."""
    raw, step = raw_pairs(), case.step(done=0)
    optimizer = torch.optim.SGD(step.parameters(), lr=0.01)
    for done in range(2):
        step.tell(done)
        optimizer.zero_grad()
        step(raw).backward()
        optimizer.step()
    again = case.step(seed=6, done=0)
    again.load_state_dict(copy.deepcopy(step.state_dict()))
    for model in (step, again):
        model.tell(2)
    if step.head.ranks:
        scores = [model.eval().scores(raw).detach() for model in (step, again)]
        close("the score after a resume", scores[1], scores[0])
    (loss, found), (loss_again, found_again) = (gradients_of(_clean(model.train()), raw) for model in (step, again))
    close("the loss after a resume", torch.tensor(loss_again).double(), torch.tensor(loss).double())
    for name, gradient in found.items():
        close(f"the gradient of {name} after a resume", found_again[name], gradient)


def _clean(step: Step) -> Step:
    step.zero_grad()
    return step


@rule(
    "device",
    "a number is read from the device (.item(), if, nonzero, a boolean index), a constant is copied to it, or a tensor is kept "
    "that `.to(device)` does not move",
    "compute on the device with torch.where and masks, and keep constants as buffers",
)
def device(case: HeadCase) -> None:
    """A training step never waits for the device. It is run on torch's ``meta`` device, which holds no data."""
    step = case.step(dtype=torch.float32).to("meta")
    raw = raw_pairs(torch.float32).to("meta")
    with NoCopies():
        step.tell(50)
        step(raw).backward()


@rule(
    "processes",
    "the loss reads only this process's pairs, the right report is taken to be in column arange(B) instead of `here.targets`, "
    "or something is gathered without gradient",
    "declare in `gathers` what `losses` reads of `world`, take `here.targets` as the columns of the right reports, and let the "
    "mean over processes be the loss of the whole batch",
)
def processes(case: HeadCase) -> None:
    """Loss and every gradient on two processes equal one process on the whole batch."""
    equal_on_processes(case, 2)


RULES: dict[str, Rule[HeadCase]] = {each.name: each for each in list(globals().values()) if isinstance(each, Rule)}
"""The rules by name, in the order in which they are checked."""


# Several processes ---------------------------------------------------------------------------------------------------


def task_gradients(build: HeadFactory, raw: RawPairs, unused: Collection[str]) -> tuple[float, dict[str, Tensor]]:
    """One step under DDP on this process's share of the batch, without the parameters that are unused. A task of the pool."""
    step = Step(build).double()
    for name in unused:
        step.get_parameter(name).requires_grad_(False)
    return gradients_of(DistributedDataParallel(step), share(raw))


def equal_on_processes(case: HeadCase, world: int) -> None:
    """Compare loss and every gradient of real processes, under DDP, with one process on the whole batch.

    Args:
        case: the head.
        world: number of processes, a divisor of 8.

    Raises:
        Found: they differ, or the head cannot be sent to another process.
    """
    raw = raw_pairs()
    step = case.step()
    loss, expected = gradients_of(step, raw)
    unused = [name for name, _ in step.named_parameters() if name not in expected]
    results = run_on(world, task_gradients, case.build, raw, unused)
    mean = sum(value for value, _ in results) / world
    close(f"the loss on {world} processes", torch.tensor(mean).double(), torch.tensor(loss).double(), 1e-6)
    for rank, (_, found) in enumerate(results):
        if found.keys() != expected.keys():
            raise Found(f"rank {rank} has gradients of other parameters: {sorted(found.keys() ^ expected.keys())}")
        for name, gradient in expected.items():
            scale = float(gradient.norm())
            if float((found[name] - gradient).norm()) > 1e-5 * scale + 1e-12:
                close(f"the gradient of {name} on {world} processes (rank {rank})", found[name], gradient, 1e-5)
