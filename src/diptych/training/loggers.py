"""Loggers of a run: TensorBoard unless another is named, pictures and tables to each that takes them, and ``config.yaml``.

``trainer.logger`` names other loggers of Lightning, one or a list, or ``false`` for none. Configuration, checkpoints, pictures
and results lie in the run's folder, whatever the logger.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import yaml
from lightning.fabric.loggers.tensorboard import TensorBoardLogger as FabricTensorBoardLogger
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image

from diptych.files import replace_text
from diptych.metrics.bootstrap import Metric
from diptych.results.seeds import markdown, show

__all__ = ["ConfigWriter", "Events", "log_figures", "log_picture"]


class Events(TensorBoardLogger):
    """TensorBoard's event files in the run's folder, without hparams.yaml: ``config.yaml`` is there already.

    Args:
        run: the folder.
    """

    def __init__(self, run: str) -> None:
        super().__init__(save_dir=run, name="", version="")

    @rank_zero_only
    def save(self) -> None:
        """Write waiting events to the file."""
        FabricTensorBoardLogger.save(self)


class ConfigWriter(SaveConfigCallback):
    """Writes the configuration into the run's folder before training, whatever the logger, and gives it to loggers."""

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write the configuration. Lightning calls this on the first process."""
        text = self.parser.dump(self.config, skip_none=False, skip_validation=True)  # it was validated when it was read
        replace_text(Path(trainer.default_root_dir) / self.config_filename, text)
        for logger in trainer.loggers:
            if not isinstance(logger, Events):
                logger.log_hyperparams(yaml.safe_load(text))


def log_picture(trainer: pl.Trainer, picture: Image.Image, tag: str) -> None:
    """Give a picture to each logger that takes pictures. It is made smaller if a side is longer than 2,048 pixels."""
    small = picture.copy()
    small.thumbnail((2048, 2048))
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(tag, np.asarray(small), trainer.global_step, dataformats="HWC")
        elif isinstance(logger, WandbLogger):
            logger.log_image(tag, [small], trainer.global_step)
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_image(logger.run_id, small, f"{tag}-{trainer.global_step:06d}.png")


def log_figures(trainer: pl.Trainer, figures: Mapping[str, Metric], tag: str) -> None:
    """Give a table of figures with their intervals to each logger that takes tables or texts. CSV has the values alone."""
    header = ["figure", "value", "low", "high", "n"]
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            rows = [[name, one.value, one.low, one.high, one.n] for name, one in figures.items()]
            logger.log_table(tag, header, rows, step=trainer.global_step)
        elif isinstance(logger, TensorBoardLogger | MLFlowLogger):
            ends = {
                name: ["-", "-"] if math.isnan(m.low) else [show(m.low), show(m.high)] for name, m in figures.items()
            }
            text = markdown(header, [[name, show(m.value), *ends[name], str(m.n)] for name, m in figures.items()])
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text(tag, text, trainer.global_step)
            else:
                logger.experiment.log_text(logger.run_id, f"{text}\n", f"{tag}.md")
