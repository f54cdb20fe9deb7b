"""The LightningModule of pre-training: it trains encoder and head, and evaluates the head's scores."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from numpy.typing import NDArray
from torch import Tensor

from diptych import distributed
from diptych.data.datamodule import RadiographDataModule
from diptych.data.sampling import mix
from diptych.errors import ConfigError, DataError
from diptych.evaluation.base import Evaluator, embed_once
from diptych.evaluation.retrieval import Retrieval
from diptych.evaluation.rows import stack
from diptych.head import AlignmentHead, HeadFactory, gather_pairs, tell_step
from diptych.metrics.bootstrap import Metric
from diptych.model.encoder import DualEncoder
from diptych.model.optim import OptimizerFactory, ScheduleFactory, adamw_and_schedule, rates_of, total_steps
from diptych.predictions.base import Predictions
from diptych.towers.base import unused_parameters
from diptych.towers.image import ImageTower
from diptych.towers.text import TextTower
from diptych.towers.weights import some
from diptych.types import Batch, Embedding, Pairs, TextBatch

__all__ = ["AlignmentModule"]

_log = logging.getLogger(__name__)


class AlignmentModule(pl.LightningModule):
    """Trains a dual encoder with an alignment head, and tests it with evaluators.

    A training step encodes a batch of images and reports, embeds them with the head, gathers the pairs of all processes,
    and minimises the weighted sum of the head's losses. Validation and test give the head's scores to the evaluators.

    Args:
        image: the image tower.
        text: the text tower.
        head: the alignment head, by entry-point name, class name or import path. The towers give it their widths.
        evaluators: what validation and test compute. The default is retrieval.
        lr: peak learning rate of AdamW.
        weight_decay: of AdamW. It applies to weight matrices, not to biases, norms, temperatures and position codes.
        betas: of AdamW.
        warmup: how long the learning rate rises. It is a number of steps, or below 1 a share of all steps.
        lr_floor: the learning rate at the end of the cosine, as a share of ``lr``.
        optimizer: another optimiser than AdamW: a class of ``torch.optim.Optimizer`` with arguments. ``lr``, ``weight_decay``
            and ``betas`` are then the optimiser's own. Weight decay still spares biases, norms, temperatures and position
            codes, and towers keep their ``layer_decay``.
        schedule: another schedule than ``warmup`` and cosine: a class of torch's ``LRScheduler``. It moves at each step.
        mask_duplicates: whether two pairs with the same report are spared as negatives of each other, over all processes.
    """

    def __init__(
        self,
        image: ImageTower,
        text: TextTower,
        head: HeadFactory,
        *,
        evaluators: list[Evaluator] | None = None,
        lr: float = 5e-5,
        weight_decay: float = 0.05,
        betas: tuple[float, float] = (0.9, 0.999),
        warmup: float = 0.05,
        lr_floor: float = 0.01,
        optimizer: OptimizerFactory | None = None,
        schedule: ScheduleFactory | None = None,
        mask_duplicates: bool = True,
    ) -> None:
        super().__init__()
        self.encoder = DualEncoder(image, text)
        self.head: AlignmentHead[Any] = head(self.encoder.dims)
        for panel, tower in (("image", self.encoder.image), ("text", self.encoder.text)):
            tower.attention = tower.gives_attention and f"{panel}.attention" in self.head.needs | self.head.wants
        self.evaluators = [Retrieval()] if evaluators is None else evaluators
        names = [evaluator.name for evaluator in self.evaluators]
        if len(set(names)) < len(names):
            raise ConfigError(f"evaluators {names} share a name, so their metrics would overwrite each other; drop one")
        if optimizer is not None:
            given = {"lr": lr, "weight_decay": weight_decay, "betas": betas}
            lr, weight_decay, betas = rates_of(optimizer, given, AlignmentModule)
        self.lr, self.weight_decay, self.betas = lr, weight_decay, betas
        self.warmup, self.lr_floor = warmup, lr_floor
        self.optimizer, self.schedule = optimizer, schedule
        self.mask_duplicates = mask_duplicates
        self.config: dict[str, Any] | None = None
        """The plain values that the command line built this module from. Checkpoints hold them for ``diptych.load``."""
        self.results: dict[str, Metric] = {}
        """Metrics of the last validation or test pass, with intervals."""
        self._doubts_shown: set[str] = set()

    # -- features ---------------------------------------------------------------------------------------------------

    @property
    def tokenizer(self) -> Any:
        """The text tower's tokenizer, which the datamodule uses."""
        return self.encoder.tokenizer

    def embed_image(self, image: Tensor) -> Embedding:
        """The embedding of uint8 images ``[B,1,H,V]`` in the head's space."""
        embedded: Embedding = self.head.embed_image(self.encoder.encode_image(image))
        return embedded

    def embed_text(self, text: TextBatch) -> Embedding:
        """The embedding of tokenised reports in the head's space."""
        embedded: Embedding = self.head.embed_text(self.encoder.encode_text(text))
        return embedded

    @torch.no_grad()
    def embed_prompts(self, texts: list[str], batch_size: int = 64) -> Embedding:
        """The embedding of any number of texts in the head's space, ``batch_size`` at a time. No gradient is kept."""
        parts = [texts[i : i + batch_size] for i in range(0, len(texts), batch_size)]
        return stack([self.embed_text(self.tokenizer(part).to(self.device)) for part in parts])

    # -- training ---------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Check what the head and the trainer need before anything runs.

        Raises:
            ConfigError: the head requires a feature that the towers do not give, or Lightning would resample the data.
        """
        available = {"image.grid", "image.pixels", "text.sentences", "text.sentence_hash"}
        towers = {"image": self.encoder.image, "text": self.encoder.text}
        available |= {f"{panel}.attention" for panel, tower in towers.items() if tower.gives_attention}
        if unmet := sorted(self.head.wants - available):
            _log.info("the towers do not give %s: the head does without", ", ".join(unmet))
        if not self.head.ranks:
            raise ConfigError(
                f"the head {type(self.head).__name__} scores no pairs, so there would be nothing to evaluate; train it beside "
                "one that does (docs/heads/composite.md)"
            )
        missing = sorted(self.head.needs - available)
        if missing:
            raise ConfigError(
                f"the head {type(self.head).__name__} needs {', '.join(missing)}, which the towers do not give; "
                f"they give {', '.join(sorted(available))}"
            )
        datamodule = self._datamodule()
        if datamodule:
            self.encoder.image.check_images(1 + datamodule.others)
        if stage == "fit" and datamodule:
            self._report_unused(datamodule.loading.image_size)
        if stage == "fit" and datamodule and datamodule.loading.batch_size * self.trainer.world_size < 2:
            raise ConfigError(
                "loading.batch_size is 1, on one process: a pair without others has nothing to be told from, and no head "
                "would learn; give at least 2 (trainer.accumulate_grad_batches does not help)"
            )
        if self.trainer.world_size > 1 and self.trainer._accelerator_connector.use_distributed_sampler:
            raise ConfigError(
                "trainer.use_distributed_sampler is true: Lightning would replace the exact samplers, count some test "
                "samples twice and break resuming; set it to false"
            )

    def _report_unused(self, image_size: int) -> None:
        """Tell which parameters of the towers no gradient reaches.

        DDP would wait for their gradients, so several processes refuse to start, unless DDP looks for such parameters.
        """
        device = self.device
        image = torch.zeros(1, 1, image_size, image_size, dtype=torch.uint8, device=device)
        unused = unused_parameters(self.encoder.image, lambda: self.encoder.encode_image(image))
        if self.tokenizer.learned:
            text = self.tokenizer(["No pleural effusion."]).to(device)
            unused += unused_parameters(self.encoder.text, lambda: self.encoder.encode_text(text))
        if not unused:
            return
        message = f"{some(unused)} of the towers' parameters take no part in what the towers give"
        tolerates: bool = getattr(self.trainer.strategy, "_ddp_kwargs", {}).get("find_unused_parameters", False)
        if self.trainer.world_size > 1 and not tolerates:
            raise ConfigError(
                f"{message}, and the other processes would wait for their gradients; set "
                "trainer.strategy: ddp_find_unused_parameters_true"
            )
        rank_zero_info(f"{message}: they are not trained")

    def _pairs(self, batch: Batch) -> Pairs[Any]:
        if batch.text is None:
            raise DataError(f"the data hold no report for '{batch.ids[0]}'; alignment trains on images with reports")
        rows = torch.arange(len(batch), device=batch.image.device) + distributed.rank() * len(batch)
        return Pairs(
            image=self.embed_image(batch.image),
            text=self.embed_text(batch.text),
            targets=rows,
            hash=batch.text.hash if self.mask_duplicates else rows,
            labels=batch.labels,
        )

    def _loss(self, here: Pairs[Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted total and every unweighted term."""
        terms = self.head.losses(here, gather_pairs(self.head, here))
        weights = self.head.weights
        total = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
        return total, terms

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed dropout by the position in training, and tell the head the step. So a resumed run goes on exactly."""
        torch.manual_seed(mix(self._seed(), self.current_epoch, batch_idx, self.global_rank))
        tell_step(self.head, self.current_epoch, self.trainer.global_step, self._total_steps())

    def _seed(self) -> int:
        datamodule = self._datamodule()
        return 0 if datamodule is None else datamodule.loading.seed

    def _datamodule(self) -> RadiographDataModule | None:
        datamodule = getattr(self.trainer, "datamodule", None)
        return datamodule if isinstance(datamodule, RadiographDataModule) else None

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one step. Its terms are logged as ``train/loss/<term>``."""
        total, terms = self._loss(self._pairs(batch))
        self.log("train/loss", total.detach(), prog_bar=True, batch_size=len(batch))
        for name, term in terms.items():
            self.log(f"train/loss/{name}", term.detach(), batch_size=len(batch))
        temperature = getattr(self.head, "temperature", None)
        if isinstance(temperature, Tensor):
            self.log("train/temperature", temperature.detach(), batch_size=len(batch))
        assert batch.text is not None  # _pairs refuses a batch without texts
        cut = batch.text.cut.sum().float()  # how many reports lost sentences to the length limit
        self.log("train/reports_cut", cut, on_step=False, on_epoch=True, reduce_fx="sum", sync_dist=True, batch_size=1)
        return total

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log the gradient's norm before clipping, on the steps that are logged."""
        interval: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]  # Lightning sets it late
        if self.trainer.global_step % interval == 0:
            grads = [p.grad for p in self.parameters() if p.grad is not None]
            self.log("train/gradient_norm", torch.nn.utils.get_total_norm(grads))

    def configure_optimizers(self) -> Any:
        """The optimiser, and the schedule by optimiser steps."""
        return adamw_and_schedule(
            self,
            lr=self.lr,
            weight_decay=self.weight_decay,
            warmup=self.warmup,
            lr_floor=self.lr_floor,
            steps=self._total_steps(),
            betas=self.betas,
            optimizer=self.optimizer,
            schedule=self.schedule,
        )

    def _total_steps(self) -> int:
        """Optimiser steps of the whole run.

        Lightning's ``estimated_stepping_batches`` would build the training loader before its state is restored, and a
        resumed run would start its epoch anew.
        """
        trainer, datamodule = self.trainer, self._datamodule()
        if datamodule is None:
            return int(trainer.estimated_stepping_batches)
        return total_steps(trainer, datamodule.steps_per_epoch())

    # -- evaluation -------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        datamodule = self._datamodule()
        findings = () if datamodule is None else datamodule.findings
        embed_prompts = embed_once(self.embed_prompts)
        for evaluator in self.evaluators:
            evaluator.embed_image = self.embed_image
            evaluator.training_reports, evaluator.embed_reports = self._training_reports, self.embed_prompts
            evaluator.start(embed_prompts, findings, intervals=self.trainer.state.fn != "fit")

    def _training_reports(self) -> list[tuple[str | None, str]]:
        datamodule = self._datamodule()
        train = None if datamodule is None else datamodule.datasets.get("train")
        return [] if train is None else list(train.texts_by_patient())

    def _evaluate(self, batch: Batch) -> tuple[Embedding, Embedding | None]:
        image = self.embed_image(batch.image)
        text = None if batch.text is None else self.embed_text(batch.text)
        for evaluator in self.evaluators:
            evaluator.update(batch, image, text, self.head)
        return image, text

    def _finish(self, stage: Literal["val", "test"]) -> None:
        self.results = {}
        for evaluator in self.evaluators:
            if stage == "val":
                evaluator.settle()
            for name, metric in evaluator.compute(self.head).items():
                self.results[f"{stage}/{evaluator.name}/{name}"] = metric
            if evaluator.doubt and not self.trainer.sanity_checking and evaluator.doubt not in self._doubts_shown:
                self._doubts_shown.add(evaluator.doubt)
                rank_zero_warn(f"{stage}/{evaluator.doubt}")
        # Every process has computed the same value, so nothing is left to reduce.
        self.log_dict({name: metric.value for name, metric in self.results.items()}, rank_zero_only=False)

    @property
    def index(self) -> NDArray[np.int64]:
        """Numbers ``[n]`` in the data set of the samples of the last pass, in order."""
        return next((e.index for e in self.evaluators if e.predictions is not None), np.zeros(0, np.int64))

    @property
    def predictions(self) -> dict[str, Predictions]:
        """What the evaluators kept of each of these samples, by their names."""
        kept = {evaluator.name: evaluator.predictions for evaluator in self.evaluators}
        return {name: one for name, one in kept.items() if one is not None}

    def on_validation_epoch_start(self) -> None:
        """Clear the evaluators and embed their prompts."""
        self._start()
        self._own_loss = torch.zeros(2, device=self.device)  # sum over images, number of images

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Give a batch to the evaluators, and add its loss to the sum of this process."""
        image, text = self._evaluate(batch)
        own = batch.valid.nonzero().squeeze(1)
        if batch.text is None or text is None or not len(own):
            return
        rows = torch.arange(len(own), device=own.device)
        codes = batch.text.hash[own] if self.mask_duplicates else rows
        labels = None if batch.labels is None else batch.labels[own]
        with distributed.alone():
            total, _ = self._loss(Pairs(image.select(own), text.select(own), rows, codes, labels))
        self._own_loss += torch.stack([total * len(own), total.new_tensor(float(len(own)))])

    def on_validation_epoch_end(self) -> None:
        """Compute the metrics over the whole set, and log them.

        The negatives of ``val/loss`` are those of one evaluation batch, so its value depends on the batch size.
        """
        self._finish("val")
        loss, number = distributed.sum_over_processes(self._own_loss)
        if number > 0:
            self.log("val/loss", loss / number, prog_bar=True, rank_zero_only=False)

    def on_test_epoch_start(self) -> None:
        """Clear the evaluators and embed their prompts. Show ``val`` to those that choose thresholds on it first."""
        self._start()
        if wanting := [evaluator for evaluator in self.evaluators if evaluator.wants_val]:
            self._settle(wanting)
            self._start()

    def _settle(self, wanting: Sequence[Evaluator]) -> None:
        """A pass over ``val``, at whose end evaluators choose thresholds.

        Raises:
            ConfigError: there is no ``val`` split.
        """
        datamodule = self._datamodule()
        if datamodule is None or "val" not in datamodule.datasets:
            raise ConfigError(
                f"{wanting[0].name}: threshold is to be chosen on 'val', and the data have none; use data with one, or "
                "threshold: zero"
            )
        for batch in datamodule.evaluation_loader("val"):
            batch = batch.to(self.device)
            image = self.embed_image(batch.image)
            for evaluator in wanting:
                evaluator.update(batch, image, None, self.head)
        for evaluator in wanting:
            evaluator.settle()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Give a batch to the evaluators."""
        self._evaluate(batch)

    def on_test_epoch_end(self) -> None:
        """Compute the metrics over the whole set, and log them."""
        self._finish("test")

    @property
    def protocol(self) -> dict[str, Any]:
        """How each evaluator computed its figures, and where the towers' weights came from before training."""
        towers = {"image": self.encoder.image.origin, "text": self.encoder.text.origin}
        return {"towers": towers, **{evaluator.name: evaluator.protocol for evaluator in self.evaluators}}

    @property
    def title(self) -> str:
        """What was evaluated, for ``results.json``."""
        return type(self.head).__name__

    # -- checkpoints ------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store plain values from which the module can be built again. ``weights_only`` loading reads them."""
        from diptych.model.checkpoint import description

        checkpoint["diptych"] = description(self.config, self.head, self._datamodule())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint that does not fit, saying what is missing and what is unexpected."""
        from diptych.model.checkpoint import check_fit

        check_fit(checkpoint, self, source="the checkpoint")
