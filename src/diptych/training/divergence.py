"""Divergence: a run whose loss or gradient is not finite stops before it saves such weights."""

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
from diptych.checks import check_number
from diptych.data.datamodule import RadiographDataModule
from diptych.errors import DiptychError
from diptych.files import replace_text

__all__ = ["Divergence", "DivergenceError"]

_SCALED_STEPS = 50
"""Overflows in a row that float16 may have. Each halves the scaler's factor, so more are no search for a factor."""


class DivergenceError(DiptychError):
    """A loss, a gradient or a weight of training is not finite."""


@dataclass
class _BatchLoss:
    """The loss of one batch since the last optimiser step."""

    index: Tensor
    loss: Tensor
    terms: dict[str, Tensor]


class Divergence(pl.Callback):
    """Stops a run at the first loss or gradient that is not finite, on all processes together, and names the batch.

    The check comes before the optimiser's step. A GPU would idle if each step waited for the answer. So the answer of a
    step is read at the next step, and before anything is saved or validated. By then the weights in memory may not be
    finite, but no file has them. A float16 scaler skips steps while it searches its factor. They do not count.

    Args:
        nonfinite: ``stop`` ends the run. ``skip`` leaves out such a step, and logs their number as ``train/steps_skipped``.
        patience: so many skipped steps in a row end the run too.
    """

    def __init__(self, nonfinite: Literal["stop", "skip"] = "stop", patience: int = 10) -> None:
        check_number("divergence.patience", patience, least=1, whole=True)
        self.nonfinite, self.patience = nonfinite, patience
        self.skipped = 0
        """Steps left out so far."""
        self._in_a_row = 0
        self._batches: list[_BatchLoss] = []
        self._index = torch.zeros(0, dtype=torch.int64)
        self._buffers: list[tuple[Tensor, Tensor]] = []
        self._pending: tuple[Tensor, torch.cuda.Event, dict[str, Any]] | None = None
        self._finite_buffers: list[str] = []

    # -- checking a step ----------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remember which buffers are finite. Masks may hold infinities."""
        self._finite_buffers = [name for name, x in pl_module.named_buffers() if bool(torch.isfinite(x).all())]

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Remember the batch, and with ``skip`` the buffers that its forward pass changes (statistics of batch norms)."""
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._batches = []
            if self.nonfinite == "skip":
                self._buffers = [(buffer, buffer.clone()) for buffer in pl_module.buffers()]
        self._index = getattr(batch, "index", torch.zeros(0, dtype=torch.int64))

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Remember the loss, and the terms that the module has logged."""
        logged = trainer.callback_metrics
        terms = {name: value.detach() for name, value in logged.items() if name.startswith("train/loss")}
        self._batches.append(_BatchLoss(self._index, loss.detach(), terms))

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Check losses and gradients. Collective.

        Raises:
            DivergenceError: one of them is not finite.
        """
        self._read_pending(trainer, pl_module)
        if not self._batches:  # the module itself has left the step out
            return
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        largest = torch.nn.utils.get_total_norm(gradients, norm_type=math.inf).to(self._batches[-1].loss.device)
        losses = torch.stack([batch.loss.float() for batch in self._batches])
        bad = torch.stack([~torch.isfinite(losses).all(), ~torch.isfinite(largest)]).float()
        bad = distributed.max_over_processes(bad)
        facts = {"step": trainer.global_step, "epoch": trainer.current_epoch, "batches": self._batches}
        if bad.is_cuda and self.nonfinite == "stop":
            answer = torch.empty(2, pin_memory=True)
            answer.copy_(bad, non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch has no types there
            event.record()
            self._pending = (answer, event, facts)
            return
        self._judge(bad.tolist(), facts, trainer, pl_module)

    # -- acting on the answer -----------------------------------------------------------------------------------------

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
        """Raise an error that names step, terms and batch, and write them to ``diverged.json``. Collective."""
        batches: list[_BatchLoss] = facts["batches"]
        # A loss points to its batch, on whichever process. A gradient is of all batches.
        guilty = [one for one in batches if what == "gradient" or not bool(torch.isfinite(one.loss))]
        index = distributed.gather_uneven(
            torch.cat([batches[0].index[:0], *(one.index for one in guilty)]).to(pl_module.device)
        )
        logged = (guilty or batches)[-1].terms
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
        shown_terms = ", ".join(f"{name} {value:.4g}" for name, value in terms.items()) or "no terms"
        of = f" (of {len(parameters)} parameters, the first is {parameters[0]})" if parameters else ""
        raise DivergenceError(
            f"the {what} is not finite after step {facts['step']} of epoch {facts['epoch']}{of}: {shown_terms}; the batch's "
            f"ids are in {place}, and the checkpoints are of earlier steps; lower model.lr, set trainer.gradient_clip_val, "
            "or leave out single steps with --divergence.nonfinite skip"
        )

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read the last answer, so that no weights that are not finite are validated."""
        self._read_pending(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Refuse to overwrite a checkpoint with weights that are not finite.

        Raises:
            DivergenceError: they are not.
        """
        if trainer.state.fn != "fit":
            return
        self._read_pending(trainer, pl_module)
        buffers = dict(pl_module.named_buffers())
        tensors = dict(pl_module.named_parameters()) | {name: buffers[name] for name in self._finite_buffers}
        broken = [name for name, x in tensors.items() if not bool(torch.isfinite(x).all())]
        number = distributed.max_over_processes(torch.tensor(float(len(broken)), device=pl_module.device))
        if number > 0:
            first = f" (the first is {broken[0]})" if broken else ""
            raise DivergenceError(
                f"after step {trainer.global_step}, {int(number)} of {len(tensors)} weights are not finite{first}; "
                "nothing is saved, and the checkpoints are of earlier steps; lower model.lr, or set trainer.gradient_clip_val"
            )

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Fail if early stopping has ended the run because its metric is not finite.

        Raises:
            DivergenceError: it has.
        """
        for callback in trainer.early_stopping_callbacks:
            if (
                isinstance(callback, EarlyStopping)
                and callback.stopping_reason == EarlyStoppingReason.NON_FINITE_METRIC
            ):
                raise DivergenceError(
                    f"{callback.monitor} is not finite after step {trainer.global_step}, so the run has stopped; monitor "
                    "another metric, or see what validation lacks"
                )

    def state_dict(self) -> dict[str, Any]:
        """How many steps were left out."""
        return {"skipped": self.skipped, "in_a_row": self._in_a_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting from a checkpoint's numbers."""
        self.skipped, self._in_a_row = state_dict["skipped"], state_dict["in_a_row"]


def _ids(trainer: pl.Trainer, index: list[int]) -> list[str]:
    """Ids of training samples. Their numbers, where the data have no ids or are private."""
    datamodule = getattr(trainer, "datamodule", None)
    if not isinstance(datamodule, RadiographDataModule):
        return [str(number) for number in index]
    ids = datamodule.datasets["train"].ids
    return [str(number) if datamodule.loading.private else ids[number] for number in index]
