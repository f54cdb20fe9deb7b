"""A head on two small random towers: one step of training, to see that a machine can."""

from __future__ import annotations

import inspect
import time

import torch

from diptych.errors import ConfigError
from diptych.head import gather_pairs
from diptych.model.module import AlignmentModule
from diptych.plugins import Plugin
from diptych.towers.image import TimmImage
from diptych.towers.text import ScratchText
from diptych.types import Pairs

__all__ = ["try_head"]

_REPORTS = ("There is a left pleural effusion.", "The lungs are clear.", "The heart is large.", "No pneumothorax.")
_SIDE = 64


def try_head(plugin: Plugin, device: str) -> str:
    """The loss of a batch of four, its gradient, and the seconds that both took.

    Args:
        plugin: a line of the catalogue of heads.
        device: as ``"cpu"`` or ``"cuda:0"``.

    Returns:
        One line that says it, or why the head cannot be tried alone.

    Raises:
        ConfigError: the loss or a gradient is not finite, or no tower has a gradient.
    """
    kind = plugin.load()
    needed = [
        name
        for name, parameter in list(inspect.signature(kind).parameters.items())[1:]
        if parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
    ]
    if needed:
        return f"not tried: it needs {', '.join(needed)}"
    with torch.random.fork_rng(devices=[device] if device.startswith("cuda") else []):
        torch.manual_seed(0)
        text = ScratchText(width=32, depth=1, heads=2, vocabulary=128, least_patients=1, max_tokens=24)
        text.tokenizer.learn(_REPORTS)
        module = AlignmentModule(TimmImage("resnet10t", pretrained=False, stage=3), text, kind).to(device)
        head = module.head
        images = torch.randint(256, (len(_REPORTS), 1, _SIDE, _SIDE), dtype=torch.uint8).to(device)
        tokens = text.tokenizer(list(_REPORTS)).to(device)
        start = time.perf_counter()
        rows = torch.arange(len(images), device=device)
        here = Pairs(module.embed_image(images), module.embed_text(tokens), rows, tokens.hash)
        terms = head.losses(here, gather_pairs(head, here))
        loss = torch.stack([head.weights[name] * term for name, term in terms.items()]).sum()
        found = torch.autograd.grad(loss, list(module.encoder.parameters()), allow_unused=True)
    grads = [grad for grad in found if grad is not None]
    if not grads:
        raise ConfigError(f"head '{plugin.name}': its loss has no gradient in the towers")
    finite = bool(loss.isfinite()) and all(bool(grad.isfinite().all()) for grad in grads)
    seconds = time.perf_counter() - start
    if not finite:
        raise ConfigError(f"head '{plugin.name}': the loss is {float(loss.detach())}, or a gradient is not finite")
    return f"loss {float(loss.detach()):.3f} and its gradient in {seconds:.2f} s"
