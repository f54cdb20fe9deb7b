"""``diptych fit|validate|test``: LightningCLI, where constructor signatures are the schema of every YAML."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path
from typing import Any, NoReturn, cast

import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO

from diptych.building import register_names
from diptych.callbacks import Bar, Recovery, Results, Throughput
from diptych.data import RadiographDataModule
from diptych.errors import ConfigError, DiptychError
from diptych.figures import Figures
from diptych.module import AlignmentModule

__all__ = ["AtomicCheckpointIO", "DiptychCLI", "run"]

# Lightning's adverts, and warnings about choices that are made on purpose here.
warnings.filterwarnings("ignore", message=".*does not have many workers.*")
warnings.filterwarnings("ignore", message=".*Found .* module.* in eval mode.*")
warnings.filterwarnings("ignore", message=".*The number of training batches .* is smaller than the logging interval.*")
warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")


class _NoAdverts(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return not any(word in record.getMessage() for word in ("litlogger", "litmodels", "💡", "Tip:"))


for _name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch", "lightning.fabric.utilities.rank_zero"):
    logging.getLogger(_name).addFilter(_NoAdverts())


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and moves it there: a run killed while saving leaves the older one whole."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Save; see Lightning's ``CheckpointIO``."""
        part = f"{path}.part"
        super().save_checkpoint(checkpoint, part, storage_options)
        os.replace(part, path)


class _Parser(LightningArgumentParser):
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the reason, not 57 lines of usage before it."""
        raise ConfigError(f"{_innermost(message, ex)} (`diptych {self._command} --help` lists every option)")

    _command = "fit"


def _innermost(message: str, error: Exception | None) -> str:
    """The parser wraps reasons in reasons; ours, if one is inside, is the clearest."""
    inner = error
    while inner is not None:
        if isinstance(inner, DiptychError):
            return str(inner)
        inner = cast("Exception | None", inner.__cause__ or inner.__context__)
    return " ".join(message.split())


class DiptychCLI(LightningCLI):
    """One run: a module, a datamodule, a trainer, and a folder where everything of the run lies."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The run folder, the callbacks every run has, and the one link: the tower's tokenizer reads the reports."""
        parser.add_argument(
            "--run", type=str, default="runs/default", help="folder of logs, checkpoints, pictures, results"
        )
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults(
            {
                "checkpoint.filename": "best",
                "checkpoint.monitor": "val/retrieval/r@5",
                "checkpoint.mode": "max",
                "checkpoint.save_top_k": 1,
                "checkpoint.enable_version_counter": False,
            }
        )
        parser.add_lightning_class_args(EarlyStopping, "early_stopping")
        parser.set_defaults(
            {"early_stopping.monitor": "val/retrieval/r@5", "early_stopping.mode": "max", "early_stopping.patience": 10}
        )
        parser.add_lightning_class_args(Recovery, "recovery")
        parser.add_lightning_class_args(Figures, "figures")
        parser.link_arguments("model.tokenizer", "data.init_args.tokenizer", apply_on="instantiate")

    def before_instantiate_classes(self) -> None:
        """Lay everything out below ``--run``."""
        config = self.config[self.subcommand]
        run = Path(config.run)
        try:
            run.mkdir(parents=True, exist_ok=True)
            (run / ".write").touch()
            (run / ".write").unlink()
        except OSError as error:
            raise ConfigError(f"--run {run}: cannot be written ({error.strerror}); give a folder that can") from error
        config.trainer.default_root_dir = str(run)
        config.checkpoint.dirpath = config.checkpoint.dirpath or str(run / "checkpoints")
        config.recovery.dirpath = config.recovery.dirpath or str(run / "checkpoints")
        if self.subcommand != "fit":
            config.verbose = False  # Lightning's own table; ours has intervals
        if config.get("ckpt_path") in {"best", "last"}:
            config.ckpt_path = self._checkpoint(Path(config.checkpoint.dirpath), config.ckpt_path)

    @staticmethod
    def _checkpoint(folder: Path, which: str) -> str:
        path = folder / f"{which}.ckpt"
        if not path.is_file():
            have = ", ".join(sorted(p.name for p in folder.glob("*.ckpt"))) if folder.is_dir() else ""
            raise ConfigError(
                f"--ckpt_path {which}: {path} does not exist (there: {have or 'nothing'}); train with the same --run "
                "first, or give a file's path"
            )
        return str(path)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer with this run's logger, checkpoint writer and progress bar."""
        config = self.config[self.subcommand]
        trainer_config = config.trainer
        if trainer_config.get("logger") in (None, True):
            kwargs["logger"] = TensorBoardLogger(save_dir=config.run, name="", version="")
        extra: list[Any] = [Throughput(), Results(), LearningRateMonitor("step")]
        if trainer_config.get("enable_progress_bar") is not False:
            extra.append(Bar())
        if not config.checkpoint.monitor and self.subcommand == "fit":
            raise ConfigError("checkpoint.monitor is empty; name a validation metric, as val/retrieval/r@5")
        self.trainer_defaults = {**self.trainer_defaults, "plugins": [AtomicCheckpointIO()]}
        self._extra = extra
        return super().instantiate_trainer(**kwargs)

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Any]) -> Trainer:
        return super()._instantiate_trainer(config, [*callbacks, *self._extra])

    def instantiate_classes(self) -> None:
        """Build everything; the module keeps the plain configuration it was built from."""
        super().instantiate_classes()
        dumped = self._parser(self.subcommand).dump(self.config[self.subcommand], skip_validation=True)
        self.model.config = yaml.safe_load(dumped)["model"]

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """``predict`` has no meaning here."""
        return {name: skip for name, skip in LightningCLI.subcommands().items() if name != "predict"}


def run(command: str) -> None:
    """Run ``fit``, ``validate`` or ``test`` with the options on the command line.

    Raises:
        ConfigError: an option, key, type or name is wrong.
    """
    register_names()
    _Parser._command = command
    DiptychCLI(
        AlignmentModule,
        RadiographDataModule,
        subclass_mode_data=True,
        seed_everything_default=0,
        trainer_class=Trainer,
        trainer_defaults={"use_distributed_sampler": False, "log_every_n_steps": 10},
        save_config_kwargs={"overwrite": True},
        parser_class=_Parser,
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,
    )
