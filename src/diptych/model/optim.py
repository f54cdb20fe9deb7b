"""The optimiser with the right groups of parameters, and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from inspect import signature
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from diptych.errors import ConfigError
from diptych.towers.image import ImageTower
from diptych.towers.text import TextTower

__all__ = [
    "OptimizerFactory",
    "ScheduleFactory",
    "adamw_and_schedule",
    "parameter_groups",
    "rates_of",
    "total_steps",
    "warmup_cosine",
]

OptimizerFactory = Callable[[Iterable[Any]], Optimizer]
"""What a configuration makes of an optimiser: a function of the parameters, with all other arguments set."""
ScheduleFactory = Callable[[Optimizer], LRScheduler]
"""What a configuration makes of a schedule: a function of the optimiser, with all other arguments set."""

# Learned vectors and embeddings: decay pulls them to the origin, which regularises nothing.
_NO_DECAY_NAMES = (
    "pos_embed",
    "cls_token",
    "reg_token",
    "position_embeddings",
    "token_type_embeddings",
    "queries",
    "prototypes",
)


def _decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: to weight matrices and filters, not to what has fewer axes and not to position codes."""
    return parameter.ndim >= 2 and not any(part in name for part in _NO_DECAY_NAMES)


def parameter_groups(module: nn.Module, *, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Parameters of a module, grouped by decay and by layer-wise learning rate.

    Layer ``k`` of a tower is trained at ``lr * layer_decay ** (num_layers - k)`` (BEiT, arXiv 2106.08254). Everything
    outside the towers is trained at ``lr``. Frozen parameters are left out. Every trained parameter is in exactly one
    group.

    Raises:
        ConfigError: nothing is left to train.
    """
    scales: dict[str, float] = {}
    for prefix, tower in module.named_modules():
        if isinstance(tower, ImageTower | TextTower):
            for name, _ in tower.named_parameters():
                path = f"{prefix}.{name}".removeprefix(".")
                if path not in scales:  # a tower that holds another comes first, and its scale counts
                    scales[path] = tower.layer_decay ** (tower.num_layers - tower.layer_of(name))
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        scale, decays = scales.get(name, 1.0), _decays(name, parameter)
        group = groups.setdefault(
            (scale, decays),
            {"params": [], "names": [], "lr": lr * scale, "weight_decay": weight_decay if decays else 0.0},
        )
        group["params"].append(parameter)
        group["names"].append(name)
    if not groups:
        raise ConfigError("every parameter is frozen: there is nothing to train; unfreeze a tower or use another head")
    return [groups[key] for key in sorted(groups, reverse=True)]


def warmup_cosine(warmup: int, total: int, floor: float) -> Callable[[int], float]:
    """The factor of the learning rate at a step: linear to 1 over ``warmup`` steps, then half a cosine to ``floor``.

    >>> factor = warmup_cosine(warmup=2, total=10, floor=0.1)
    >>> [round(factor(step), 2) for step in (0, 1, 2, 6, 10)]
    [0.5, 1.0, 1.0, 0.55, 0.1]
    """

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        progress = min(1.0, (step - warmup) / max(1, total - warmup))
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))

    return factor


def adamw_and_schedule(
    module: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    warmup: float,
    lr_floor: float,
    steps: int,
    betas: tuple[float, float] = (0.9, 0.999),
    optimizer: OptimizerFactory | None = None,
    schedule: ScheduleFactory | None = None,
) -> dict[str, Any]:
    """What ``configure_optimizers`` returns: AdamW, and its learning rate set at each optimiser step.

    Args:
        module: what is trained.
        lr: peak learning rate.
        weight_decay: of weight matrices (:func:`parameter_groups`).
        warmup: steps of linear warm-up, or its share of all steps where below 1.
        lr_floor: share of ``lr`` at the end of the cosine.
        steps: optimiser steps of the whole run.
        betas: of AdamW.
        optimizer: makes another optimiser from the groups of parameters.
        schedule: makes another schedule, which moves at each optimiser step.

    Raises:
        ConfigError: the optimiser takes no groups of parameters, or the schedule waits for a metric.
    """
    groups = parameter_groups(module, lr=lr, weight_decay=weight_decay)
    if optimizer is None:
        made: Optimizer = AdamW(groups, lr=lr, betas=betas)
    else:
        try:
            made = optimizer(groups)
        except ValueError as error:  # LBFGS has one group
            raise ConfigError(
                f"optimizer: it takes no groups of parameters ({error}); give another, as AdamW"
            ) from error
    if schedule is None:
        warmup_steps = int(warmup if warmup >= 1 else warmup * steps)
        moves: LRScheduler = LambdaLR(made, warmup_cosine(warmup_steps, steps, lr_floor))
    else:
        moves = schedule(made)
        if isinstance(moves, ReduceLROnPlateau):
            raise ConfigError("schedule: ReduceLROnPlateau waits for a metric; give one that moves by steps, as StepLR")
    return {"optimizer": made, "lr_scheduler": {"scheduler": moves, "interval": "step"}}


def rates_of(optimizer: OptimizerFactory, given: dict[str, Any], of: Callable[..., Any]) -> list[Any]:
    """The learning rate and its like of an optimiser that is given by configuration, in the order of ``given``.

    >>> rates_of(lambda groups: AdamW(groups, lr=0.1), {"lr": 5e-5}, lambda lr=5e-5: None)
    [0.1]

    Args:
        optimizer: makes it.
        given: the values of the module's own arguments, by name. They would say the same thing twice.
        of: whose arguments they are. One that has its default there was not set.

    Raises:
        ConfigError: an argument was set to another value than the optimiser has, or that cannot be made.
    """
    known = signature(of).parameters
    try:
        own = optimizer([nn.Parameter(torch.zeros(1, 1))]).defaults
    except ValueError as error:
        raise ConfigError(f"optimizer: it cannot be made ({error}); give another, as AdamW") from error
    for name, value in given.items():
        if name in known and value != known[name].default and value != own.get(name):
            has = f"has {name} {own[name]}" if name in own else f"takes no {name}"
            raise ConfigError(
                f"{name} is {value}, and the optimizer {has}; leave {name} out here, and set the optimizer's"
            )
    return [own.get(name, value) for name, value in given.items()]


def total_steps(trainer: Trainer, batches: int) -> int:
    """Optimiser steps of a run whose epochs have so many batches.

    Raises:
        ConfigError: the run has no end.
    """
    limit = trainer.limit_train_batches
    batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    steps = -(-batches // trainer.accumulate_grad_batches)
    bounds = [trainer.max_steps] if trainer.max_steps != -1 else []
    if trainer.max_epochs not in (None, -1):
        bounds.append(steps * trainer.max_epochs)
    if not bounds:
        raise ConfigError("the schedule needs an end: set trainer.max_epochs or trainer.max_steps")
    return min(bounds)
