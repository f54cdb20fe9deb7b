"""What a run leaves, and in what two runs differ: to compare an interrupted run with one that was not."""

from pathlib import Path

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diptych.model.checkpoint import read_checkpoint


def left_by(run: Path) -> dict[str, object]:
    """Both checkpoints, and every validation: its step, epoch and values."""
    found: dict[str, object] = {
        name: read_checkpoint(run / "checkpoints" / f"{name}.ckpt")
        for name in ("best", "last")
        if (run / "checkpoints" / f"{name}.ckpt").exists()
    }
    validations = set()
    for file in run.glob("events.out.tfevents*"):
        events = EventAccumulator(str(file), size_guidance={"scalars": 0}).Reload()
        for tag in events.Tags()["scalars"]:
            if tag.startswith("val/"):
                validations |= {(tag, event.step, event.value) for event in events.Scalars(tag)}
    return found | {"validations": sorted(validations)}


def differences(left: object, right: object, where: str = "") -> list[str]:
    """The places where two values differ; paths count by their last part, times of the clock not at all."""
    if isinstance(left, dict) and isinstance(right, dict):
        one, other = ({_name(key): value for key, value in side.items()} for side in (left, right))
        found = [f"{where}/{key}: only in one" for key in one.keys() ^ other.keys()]
        return found + [
            d for key in one.keys() & other.keys() for d in differences(one[key], other[key], f"{where}/{key}")
        ]
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        found = [] if len(left) == len(right) else [f"{where}: {len(left)} and {len(right)} of them"]
        return found + [
            d for i, (a, b) in enumerate(zip(left, right, strict=False)) for d in differences(a, b, f"{where}/{i}")
        ]
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        same = left.dtype == right.dtype and left.shape == right.shape and torch.equal(left.cpu(), right.cpu())
        return [] if same else [f"{where}: tensors"]
    return [] if _name(left) == _name(right) else [f"{where}: {left!r} and {right!r}"]


def _name(value: object) -> object:
    return Path(value).name if isinstance(value, str) and "/checkpoints" in value else value
