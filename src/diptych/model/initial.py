"""A run that begins with the weights of another (``--init_from``), without resuming it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from diptych.errors import ConfigError
from diptych.escaping import one_line
from diptych.files import sha256
from diptych.model.checkpoint import read_model
from diptych.model.module import AlignmentModule
from diptych.model.stored import load_weights
from diptych.towers.weights import some

__all__ = ["take_weights"]


def take_weights(module: AlignmentModule, path: Path | str) -> list[str]:
    """Give a module the towers of a checkpoint, its vocabulary, and its head if it is of the same class.

    Optimiser, step and schedule are not taken. A vocabulary that comes with the towers is kept, so none is learned from the
    new data. A head of another class stays as it is.

    Args:
        module: which is new.
        path: a checkpoint of a pre-training run or of ``diptych convert``, a run's folder, or a shared model.

    Returns:
        What was taken and what was not, a line each. The same is told.

    Raises:
        ConfigError: it is no such checkpoint; a tower differs; or the head is of the same class, and differs.
    """
    file, checkpoint = read_model(path)
    stored = checkpoint.get("diptych")
    if not isinstance(stored, dict) or "task" in stored or "head" not in stored:
        raise ConfigError(
            f"--init_from {path}: of no pre-training run; give a checkpoint of one, or of diptych convert"
        )
    state: dict[str, Any] = checkpoint["state_dict"]
    own = module.state_dict()
    head = f"{type(module.head).__module__}.{type(module.head).__qualname__}"
    theirs = one_line(str(stored["head"]))
    taken: dict[str, Any] = {}
    told = []
    for part, prefix in (("image tower", "encoder.image."), ("text tower", "encoder.text."), ("head", "head.")):
        if part == "head" and theirs != head:
            told.append(f"head: new and random, since the checkpoint's is {theirs}, and this one {head}")
            continue
        of_part = {name: value for name, value in state.items() if name.startswith(prefix)}
        if odd := _differences(of_part, {name: value for name, value in own.items() if name.startswith(prefix)}):
            raise ConfigError(f"--init_from {path}: its {part} is another: {some(odd, 4)}; configure this one alike")
        taken |= of_part
        told.append(f"{part}: {sum(isinstance(value, Tensor) for value in of_part.values())} weights taken")
    load_weights(module, own | taken, str(file))
    if module.tokenizer.learned:
        told.append(f"vocabulary: the checkpoint's {module.tokenizer.size} pieces, and none is learned from these data")
    for tower in (module.encoder.image.keeper, module.encoder.text.keeper):
        before = tower.origin
        named: dict[str, Any] = {key: before[key] for key in ("name", "head") if key in before}
        origin = {**named, "weights": str(file), "sha256": sha256(file), "before": before}
        extra: dict[str, str] = tower.get_extra_state()
        tower.set_extra_state({**extra, "origin": json.dumps(origin)})
    for line in told:
        rank_zero_info(f"--init_from {file}: {line}")
    return told


def _differences(have: dict[str, Any], want: dict[str, Any]) -> list[str]:
    """What keeps weights from fitting: names that only one side has, and other shapes."""
    odd = [f"{name} is there alone" for name in sorted(set(have) - set(want))]
    odd += [f"{name} is missing" for name in sorted(set(want) - set(have))]
    return odd + [
        f"{name} {list(have[name].shape)} for {list(value.shape)}"
        for name, value in want.items()
        if name in have and isinstance(value, Tensor) and have[name].shape != value.shape
    ]
