"""On a GPU a head's whole loss never waits for the device, and compiles to one graph. Shown on ``meta``, without a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch
from no_waiting import group_of
from torch._dynamo.testing import CompileCounter

from diptych import distributed
from diptych.head import gather_pairs, tell_step
from diptych.nn import blockwise
from diptych.plugins import HEADS, plugins
from diptych.testing.waiting import NoCopies
from diptych.types import Dims, Features, Pairs
from diptych_heads.cce import Cce
from diptych_heads.equations import pcma as pcma_equations
from diptych_heads.equations.attention import Attention
from diptych_heads.equations.local_pooling import Pooling
from diptych_heads.local_pooling import LocalPooling
from diptych_heads.pcma import Pcma
from diptych_heads.reclf import Mode

DIMS = Dims(24, 20, 16, 12)
B, WORDS, SENTENCES, SIDE = 4, 10, 5, 3
KINDS = {plugin.name: plugin.load() for plugin in plugins(HEADS)}
ON_CPU = {("pcma", "matching", "hungarian"): "scipy solves each pair on the CPU, as docs/heads/pcma.md says"}
ALONG: dict[tuple[str, str, Any], dict[str, Any]] = {
    # What a value does not go without.
    ("local_pooling", "pooling", "max"): {"score_pooling": "max"},
    ("local_pooling", "score_pooling", "max"): {"pooling": "max"},
    ("global", "projection", "none"): {"text_projection": "linear", "width": DIMS.image},
    ("global", "text_projection", "none"): {"width": DIMS.text},
}
FORMS = get_args(Attention)
POOLINGS = [pooling for pooling in get_args(Pooling) if pooling != "max"]
MODES = get_args(Mode)
FURTHER: dict[str, list[dict[str, Any]]] = {
    "global": [{"loss": "sigmoid", "projection": "mlp"}],
    "local_pooling": [
        {"attention": form, "pooling": pooling, "byte_budget": 0} for form in FORMS for pooling in POOLINGS
    ],
    "reclf": [
        *({"attention": form, "mode": mode, "byte_budget": 0} for form in FORMS for mode in MODES),
        *({"attention": form, "byte_budget": 2**16} for form in FORMS),
    ],
    "mgca": [{"frozen_epochs": 0}],
    "pcma": [{"byte_budget": 0}, {"text_queries": 4}, {"cce": 0.0}, {"matching": "sinkhorn", "byte_budget": 0}],
}
MEMBERS = {"heads": [LocalPooling, partial(Pcma, cce=0.0), Cce]}


def values_of(kind: type) -> Iterator[tuple[str, Any]]:
    """Each value of each argument that has a list of them or is true or false."""
    for name, hint in get_type_hints(kind.__init__).items():
        for part in (hint, *get_args(hint)):
            if get_origin(part) is Literal:
                yield from ((name, value) for value in get_args(part))
            elif part is bool:
                yield from ((name, value) for value in (False, True))


def variants() -> Iterator[Any]:
    """Every head as it is by default, with each value of each argument, and with the combinations above."""
    for name, kind in sorted(KINDS.items()):
        required = MEMBERS if name == "composite" else {}
        options = [{}, *FURTHER.get(name, [])]
        options += [
            {argument: value, **ALONG.get((name, argument, value), {})}
            for argument, value in values_of(kind)
            if (name, argument, value) not in ON_CPU
        ]
        for given in options:
            label = "-".join([name, *(f"{key}={value}" for key, value in given.items())])
            yield pytest.param(partial(kind, **required, **given), id=label)


every_variant = pytest.mark.parametrize("build", variants())


def features(device: str) -> tuple[Features, Features]:
    """Ragged reports of several sentences, one without words, and images, as towers give them."""
    torch.manual_seed(1)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape).to(device)

    mask = torch.arange(WORDS) < torch.tensor([10, 7, 4, 0]).unsqueeze(1)
    sentences = (torch.arange(WORDS) // 3).expand(B, -1).masked_fill(~mask, -1)
    hashes = (
        torch.arange(B * SENTENCES)
        .view(B, SENTENCES)
        .masked_fill(torch.arange(SENTENCES) > sentences.amax(1, True), -1)
    )
    image = Features(
        draw(B, DIMS.image).requires_grad_(),
        draw(B, SIDE * SIDE, DIMS.image_tokens).requires_grad_(),
        torch.ones(B, SIDE * SIDE, dtype=torch.bool, device=device),
        grid=(SIDE, SIDE),
        pixels=draw(B, 1, 48, 48),
        attention=draw(B, SIDE * SIDE).sigmoid(),
    )
    text = Features(
        draw(B, DIMS.text).requires_grad_(),
        draw(B, WORDS, DIMS.text_tokens).requires_grad_(),
        mask.to(device),
        sentences=sentences.to(device),
        sentence_hash=hashes.to(device),
        attention=draw(B, WORDS).sigmoid(),
    )
    return image, text


def whole_loss(head: Any, image: Features, text: Features, hash: torch.Tensor) -> torch.Tensor:
    """What a training step does with the features of the towers."""
    targets = torch.arange(B, device=hash.device) + distributed.rank() * B
    here = Pairs(head.embed_image(image), head.embed_text(text), targets, hash)
    world = gather_pairs(head, here)
    assert len(world.hash) == B * distributed.world_size()
    terms = head.losses(here, world)
    return torch.stack([head.weights[name] * term for name, term in terms.items()]).sum()


@pytest.mark.parametrize("processes", [1, 8])
@every_variant
def test_the_whole_loss_never_waits_for_the_device(build, processes):
    with torch.device("meta"):
        head, hash = build(DIMS), torch.arange(B)
    image, text = features("meta")
    with group_of(processes), NoCopies():
        tell_step(head, 0, 0, 100)
        loss = whole_loss(head, image, text, hash)
        loss.backward()
    assert loss.shape == ()
    assert any(p.grad is not None for p in (*head.parameters(), image.pooled, image.tokens))


@pytest.mark.parametrize(
    "waits",
    [
        lambda x: x.sum().item(),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: bool(x.any()),
        lambda x: range(x.argmax()),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.unique(),
        lambda x: x.new_tensor(1.0),
        lambda x: torch.tensor(1.0, device=x.device),
        lambda x: torch.ones(2).to(x.device),
        lambda x: x[[0, 1]],
        lambda x: x[torch.tensor([0, 1])],
    ],
)
def test_what_waits_for_the_device_is_found(waits):
    with NoCopies(), pytest.raises((RuntimeError, NotImplementedError)):
        waits(torch.empty(4, device="meta"))


every_head = pytest.mark.parametrize("name", ["global"])


def default(name: str) -> Any:
    return KINDS[name](DIMS, **(MEMBERS if name == "composite" else {}))


@every_head
def test_a_job_of_eight_compiles_once_for_all_steps(name):
    """Twice where a number changes from step to step, as the weight of ``cce``: the first graph takes it for fixed."""
    head, hash = default(name).to("meta"), torch.arange(B, device="meta")
    image, text = features("meta")
    counter = CompileCounter()
    torch._dynamo.reset()
    compiled = torch.compile(whole_loss, backend=counter, fullgraph=True)
    with group_of(8):
        for step in range(4):
            tell_step(head, step, step, 100)
            compiled(head, image, text, hash).backward()
    assert counter.frame_count <= 2


@every_head
def test_compiled_values_and_gradients_are_those_of_eager(name, monkeypatch):
    """On the CPU, by the path that a GPU takes."""
    monkeypatch.setattr(blockwise, "on_cpu", lambda _: False)
    monkeypatch.setattr(pcma_equations, "on_cpu", lambda _: False)
    torch.manual_seed(0)
    head, hash = default(name), torch.arange(B)

    def values(function: Any) -> list[torch.Tensor]:
        head.zero_grad()
        image, text = features("cpu")
        loss = function(head, image, text, hash)
        loss.backward()
        leaves = [*head.parameters(), image.pooled, image.tokens, text.pooled, text.tokens]
        return [loss.detach(), *(x.grad for x in leaves if x.grad is not None)]

    torch._dynamo.reset()
    compiled = torch.compile(whole_loss, backend="aot_eager", fullgraph=True)
    for actual, expected in zip(values(compiled), values(whole_loss), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)
