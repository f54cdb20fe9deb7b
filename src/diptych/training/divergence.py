"""A run whose loss or gradient is no number any more stops before it spoils what it has saved."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from diptych import distributed
from diptych.data.datamodule import RadiographDataModule
from diptych.errors import ConfigError, DiptychError
from diptych.files import replace_text

__all__ = ["Diverged", "Divergence"]

_SCALED_STEPS = 50  # a scaler of float16 halves its factor at each overflow; so many in a row are no search for it


class Diverged(DiptychError):
    """Training has no finite loss or gradient any more."""


@dataclass
class _Seen:
    """One batch since the last optimiser step."""

    index: Tensor
    loss: Tensor
    terms: dict[str, Tensor]


class Divergence(pl.Callback):
    """Stops a run at the first loss or gradient that is not finite, on all processes together, and names the batch.

    The check comes before the optimiser's step. On a GPU, waiting for the answer in each step would idle the device: the
    answer of a step is read at the next one, and before anything is saved or validated. So weights in memory may be
    spoiled by then; no file is. Gradients that a float16 scaler skips are its ordinary search for a factor.

    Args:
        nonfinite: ``stop``, or ``skip`` to leave out such a step, which is counted and logged as ``train/steps_skipped``.
        patience: steps skipped in a row that stop the run all the same.
    """

    def __init__(self, nonfinite: Literal["stop", "skip"] = "stop", patience: int = 10) -> None:
        if patience < 1:
            raise ConfigError(f"divergence.patience is {patience}; give at least 1")
        self.nonfinite, self.patience = nonfinite, patience
        self.skipped = 0
        """Steps left out so far."""
        self._in_a_row = 0
        self._seen: list[_Seen] = []
        self._index = torch.zeros(0, dtype=torch.int64)
        self._buffers: list[tuple[Tensor, Tensor]] = []
        self._pending: tuple[Tensor, torch.cuda.Event, dict[str, Any]] | None = None
        self._finite_buffers: list[str] = []

    # -- what is known of a step --------------------------------------------------------------------------------------

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remember which buffers are finite: masks may hold infinities."""
        self._finite_buffers = [name for name, x in pl_module.named_buffers() if bool(torch.isfinite(x).all())]

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Remember the batch; to skip it, also what its forward pass changes (statistics of batch norms)."""
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._seen = []
            if self.nonfinite == "skip":
                self._buffers = [(buffer, buffer.clone()) for buffer in pl_module.buffers()]
        self._index = getattr(batch, "index", torch.zeros(0, dtype=torch.int64))

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Remember the loss, and the terms that the module has logged."""
        logged = trainer.callback_metrics
        terms = {name: value.detach() for name, value in logged.items() if name.startswith("train/loss")}
        self._seen.append(_Seen(self._index, loss.detach(), terms))

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Check losses and gradients. Collective.

        Raises:
            Diverged: one of them is not finite.
        """
        self._read_pending(trainer, pl_module)
        if not self._seen:  # the module itself has left the step out
            return
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        largest = torch.nn.utils.get_total_norm(gradients, norm_type=math.inf).to(self._seen[-1].loss.device)
        losses = torch.stack([seen.loss.float() for seen in self._seen])
        bad = torch.stack([~torch.isfinite(losses).all(), ~torch.isfinite(largest)]).float()
        bad = distributed.max_over_processes(bad)
        facts = {"step": trainer.global_step, "epoch": trainer.current_epoch, "seen": self._seen}
        if bad.is_cuda and self.nonfinite == "stop":
            answer = torch.empty(2, pin_memory=True)
            answer.copy_(bad, non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch has no types there
            event.record()
            self._pending = (answer, event, facts)
            return
        self._judge(bad.tolist(), facts, trainer, pl_module)

    # -- what becomes of it -------------------------------------------------------------------------------------------

    def _read_pending(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._pending is not None:
            (answer, event, facts), self._pending = self._pending, None
            event.synchronize()
            self._judge(answer.tolist(), facts, trainer, pl_module)

    def _judge(
        self, bad: list[float], facts: dict[str, Any], trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> None:
        of_loss, of_gradient = (value > 0 for value in bad)
        if not of_loss and not of_gradient:
            self._in_a_row = 0
            return
        self._in_a_row += 1
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        if scaled and not of_loss and self._in_a_row < _SCALED_STEPS:
            return
        what = "loss" if of_loss else "gradient"
        if self.nonfinite == "stop" or self._in_a_row >= self.patience:
            self._stop(what, facts, trainer, pl_module)
        for parameter in pl_module.parameters():
            parameter.grad = None  # the optimiser passes over it: no moment, no decay
        with torch.no_grad():
            for buffer, before in self._buffers:
                buffer.copy_(before)
        self.skipped += 1
        pl_module.log("train/steps_skipped", float(self.skipped), rank_zero_only=True, batch_size=1)
        rank_zero_info(f"step {facts['step']} is left out: its {what} is not finite ({self.skipped} so far)")

    def _stop(self, what: str, facts: dict[str, Any], trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Name step, terms and batch, here and in ``diverged.json``. Collective."""
        seen: list[_Seen] = facts["seen"]
        # Of a loss, the batches where it is not finite, on whichever process; a gradient is of all batches.
        guilty = [one for one in seen if what == "gradient" or not bool(torch.isfinite(one.loss))]
        index = distributed.gather_uneven(
            torch.cat([seen[0].index[:0], *(one.index for one in guilty)]).to(pl_module.device)
        )
        logged = (guilty or seen)[-1].terms
        values = torch.stack([value.float().to(pl_module.device) for value in logged.values()] or [torch.zeros(())])
        values = distributed.sum_over_processes(values) / trainer.world_size  # NaN on one process is NaN in the mean
        terms = dict(zip(logged, values.tolist(), strict=False))
        parameters = [
            name
            for name, parameter in pl_module.named_parameters()
            if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all())
        ]
        place = Path(trainer.default_root_dir) / "diverged.json"
        ids = _ids(trainer, index.cpu().tolist())
        if trainer.is_global_zero:
            content = {
                "step": facts["step"],
                "epoch": facts["epoch"],
                "what": what,
                "terms": {name: repr(value) for name, value in terms.items()},
                "ids": ids,
                "parameters": parameters,
            }
            replace_text(place, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        distributed.barrier()
        told = ", ".join(f"{name} {value:.4g}" for name, value in terms.items()) or "no terms"
        of = f" (of {len(parameters)} parameters, the first is {parameters[0]})" if parameters else ""
        raise Diverged(
            f"the {what} is not finite after step {facts['step']} of epoch {facts['epoch']}{of}: {told}; the batch's ids are "
            f"in {place}, and the checkpoints are of earlier steps; lower model.lr, set trainer.gradient_clip_val, or leave "
            "out single steps with --divergence.nonfinite skip"
        )

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Nothing is validated with weights that are spoiled."""
        self._read_pending(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Refuse to overwrite a checkpoint with weights that are not finite.

        Raises:
            Diverged: they are not.
        """
        if trainer.state.fn != "fit":
            return
        self._read_pending(trainer, pl_module)
        buffers = dict(pl_module.named_buffers())
        tensors = dict(pl_module.named_parameters()) | {name: buffers[name] for name in self._finite_buffers}
        spoiled = [name for name, x in tensors.items() if not bool(torch.isfinite(x).all())]
        number = distributed.max_over_processes(torch.tensor(float(len(spoiled)), device=pl_module.device))
        if number > 0:
            first = f" (the first is {spoiled[0]})" if spoiled else ""
            raise Diverged(
                f"after step {trainer.global_step}, {int(number)} of {len(tensors)} weights are not finite{first}; "
                "nothing is saved, and the checkpoints are of earlier steps; lower model.lr, or set trainer.gradient_clip_val"
            )

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A run that early stopping has ended because its metric is not finite has failed.

        Raises:
            Diverged: so it was.
        """
        for callback in trainer.early_stopping_callbacks:
            if (
                isinstance(callback, EarlyStopping)
                and callback.stopping_reason == EarlyStoppingReason.NON_FINITE_METRIC
            ):
                raise Diverged(
                    f"{callback.monitor} is not finite after step {trainer.global_step}, so the run has stopped; monitor "
                    "another metric, or see what validation lacks"
                )

    def state_dict(self) -> dict[str, Any]:
        """The steps that were left out."""
        return {"skipped": self.skipped, "in_a_row": self._in_a_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.skipped, self._in_a_row = state_dict["skipped"], state_dict["in_a_row"]


def _ids(trainer: pl.Trainer, index: list[int]) -> list[str]:
    """Ids of training samples; their numbers, where the data have none."""
    datamodule = getattr(trainer, "datamodule", None)
    if not isinstance(datamodule, RadiographDataModule):
        return [str(number) for number in index]
    ids = datamodule.datasets["train"].ids
    return [str(number) if datamodule.loading.private else ids[number] for number in index]
