"""``diptych fit|validate|test``: LightningCLI, where constructor signatures are the schema of every YAML."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelSummary, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.plugins.layer_sync import LayerSync
from lightning.pytorch.utilities import rank_zero_warn

from diptych import distributed
from diptych.cli.former import with_former_arguments
from diptych.cli.help import class_help
from diptych.cli.messages import Parser, is_restoring, lightning_message, own_message, tidy_console, trainer_message
from diptych.data.datamodule import RadiographDataModule
from diptych.errors import ConfigError, DiptychError, shown
from diptych.files import remove_parts
from diptych.model.building import import_object, refuse_functions, register_names
from diptych.model.checkpoint import AtomicCheckpointIO
from diptych.model.initial import take_weights
from diptych.model.module import AlignmentModule
from diptych.nn.sync_norm import TowerNorms
from diptych.plugins import nearest
from diptych.predictions.table import Format
from diptych.tasks.base import Task
from diptych.training.callbacks import Bar, Results, Summary, Throughput
from diptych.training.divergence import Divergence
from diptych.training.figures import Figures
from diptych.training.interruption import Interruption, SignalExit, Signals
from diptych.training.loggers import ConfigWriter, Events
from diptych.training.processes import Peers
from diptych.training.recovery import Best, Recovery
from diptych.training.run_folder import RemoveFiles, RunLock, earlier, first_process, lies_in, newest, run_files

__all__ = ["DiptychCLI", "TaskCLI", "run"]


class _Monitors(Callback):
    """Refuses to go on if a callback monitors a metric that validation does not compute."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the monitored names with the metrics of validation.

        The sanity check sees few batches, which may lack a finding. So a metric passes there if any of its evaluator exists.
        """
        metrics = [str(name) for name in trainer.callback_metrics]
        for callback in trainer.callbacks if trainer.state.fn == "fit" else ():  # type: ignore[attr-defined]  # Lightning sets it
            name = getattr(callback, "monitor", None)
            if not isinstance(name, str) or not name.startswith("val/") or name in metrics:
                continue
            evaluator = name[: name.find("/", 4) + 1]
            if not trainer.sanity_checking or not any(other.startswith(evaluator) for other in metrics):
                option = "early_stopping" if isinstance(callback, EarlyStopping) else "checkpoint"
                near = [other for other in nearest(name, metrics) if other.startswith("val/")]
                raise ConfigError(
                    f"{option}.monitor is '{name}', which validation does not give; nearest: {', '.join(near[:5])}"
                )


class DiptychCLI(LightningCLI):
    """One run: a module, a datamodule, a trainer, and a folder that holds everything of the run."""

    monitor = "val/retrieval/r@5"

    def __init__(
        self, *args: Any, signals: Signals, lock: RunLock, peers: Peers, **options: Any
    ) -> None:  # Lightning's
        self._signals, self._lock, self._peers = signals, lock, peers
        self._resume_path: str | None = None
        self._remove_files = RemoveFiles([])
        super().__init__(*args, **options)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the run folder, the callbacks of every run, and a link that gives the model's tokenizer to the data."""
        self._add_to_every(parser)
        parser.add_lightning_class_args(Figures, "figures")
        parser.add_argument(
            "--init_from",
            type=str | None,
            default=None,
            help="fit: begin with the weights of this checkpoint, at step 0",
        )
        parser.link_arguments("model.tokenizer", "data.init_args.tokenizer", apply_on="instantiate")

    def _add_to_every(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--run",
            "--run_folder",  # torchrun has a --run of its own
            type=str,
            default="runs/default",
            help="folder of logs, checkpoints, pictures, results",
        )
        parser.add_argument(
            "--overwrite", action="store_true", help="fit: remove the run that the folder holds, and begin anew"
        )
        parser.add_argument(
            "--predictions",
            type=Format,
            default="csv",
            help="how a test writes what the model said of each image: csv, parquet, or none",
        )
        parser.add_lightning_class_args(Best, "checkpoint")
        parser.set_defaults(
            {
                "checkpoint.filename": "best",
                "checkpoint.monitor": self.monitor,
                "checkpoint.mode": "max",
                "checkpoint.save_top_k": 1,
                "checkpoint.enable_version_counter": False,
            }
        )
        parser.add_lightning_class_args(EarlyStopping, "early_stopping")
        parser.set_defaults(
            {
                "early_stopping.monitor": self.monitor,
                "early_stopping.mode": "max",
                "early_stopping.patience": 10,
                "early_stopping.strict": False,  # a run may end before its first validation
            }
        )
        parser.add_lightning_class_args(Recovery, "recovery")
        parser.add_lightning_class_args(Divergence, "divergence")

    def before_instantiate_classes(self) -> None:
        """Refuse functions where classes are expected, and set the paths of everything below ``--run``."""
        config = self.config[self.subcommand]
        refuse_functions(config.model, "model")
        refuse_functions(config.data, "data")
        run = Path(config.run)
        try:
            run.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=run):  # its name is no other process's
                pass
        except OSError as error:
            raise ConfigError(f"--run {run}: cannot be written ({error.strerror}); give a folder that can") from error
        remove_parts(run)  # left by processes that were killed
        config.trainer.default_root_dir = str(run)
        self._without_dirpath = [part for part in (config.checkpoint, config.recovery) if not part.dirpath]
        for part in self._without_dirpath:
            part.dirpath = str(run / "checkpoints")
        if self.subcommand != "fit":
            config.verbose = False  # this is Lightning's table; diptych's has intervals
            if config.get("ckpt_path") is None and self._needs_fit():
                raise ConfigError(
                    f"{self.subcommand}: no --ckpt_path; give best, last or a file (or none, to see what the untrained "
                    "model does)"
                )
        if config.get("ckpt_path") == "none":
            config.ckpt_path = None
        checkpoints = Path(config.checkpoint.dirpath)
        if self.subcommand == "fit" and first_process():
            self._claim(run, checkpoints)
        if config.get("ckpt_path") == "last":
            config.ckpt_path = str(newest(run, checkpoints, best=self.subcommand == "fit"))
        elif config.get("ckpt_path") == "best":
            config.ckpt_path = self._best(checkpoints)
        if self.subcommand == "fit":  # a run from the saved recipe must not begin with this checkpoint
            self._resume_path, config.ckpt_path = config.get("ckpt_path"), None
            config.overwrite = False

    def _claim(self, run: Path, checkpoints: Path) -> None:
        """Take the folder for this run.

        Raises:
            ConfigError: it holds another run.
        """
        config = self.config.fit
        checkpoint = config.get("ckpt_path")
        goes_on = checkpoint in {"last", "best"} or (checkpoint is not None and lies_in(Path(checkpoint), run))
        self._lock.take(run)
        if config.overwrite and goes_on:
            raise ConfigError(
                f"--overwrite would remove the run that --ckpt_path {checkpoint} goes on with; give one of the two"
            )
        if not config.overwrite and not goes_on and (held := earlier(run, checkpoints)):
            names = ", ".join(path.name for path in held[:4])
            raise ConfigError(
                f"--run {run}: holds a run already ({names}); --ckpt_path last goes on with it, --overwrite removes it; "
                "or give another --run"
            )
        if config.overwrite:
            self._remove_files = RemoveFiles(run_files(run, checkpoints, config.checkpoint.filename or "best"))

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        arguments = super()._prepare_subcommand_kwargs(subcommand)
        return arguments | {"ckpt_path": self._resume_path} if subcommand == "fit" else arguments

    def _needs_fit(self) -> bool:
        """Whether the model must be fitted before it is evaluated."""
        return True

    @staticmethod
    def _best(folder: Path) -> str:
        path = folder / "best.ckpt"
        if not path.is_file():
            have = sorted(p.name for p in folder.glob("*.ckpt")) if folder.is_dir() else []
            remedy = "train with the same --run first, or give a file's path"
            if "last.ckpt" in have:
                remedy = "nothing was validated in this run; give --ckpt_path last"
            raise ConfigError(
                f"--ckpt_path best: {path} does not exist (there: {', '.join(have) or 'nothing'}); {remedy}"
            )
        return str(path)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make the trainer, with this run's logger and progress bar."""
        config = self.config[self.subcommand]
        trainer_config = config.trainer
        if trainer_config.get("logger") in (None, True):
            kwargs["logger"] = Events(config.run)
        if trainer_config.get("enable_progress_bar") is None:
            kwargs["enable_progress_bar"] = sys.stdout.isatty()  # in a file it would be one long line
        if not config.checkpoint.monitor and self.subcommand == "fit":
            raise ConfigError("checkpoint.monitor is empty; name a validation metric, as val/retrieval/r@5")
        return super().instantiate_trainer(**kwargs)

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Any]) -> Trainer:
        plugins = _as_list(config.get("plugins"))
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            config["plugins"] = [*plugins, AtomicCheckpointIO()]
        results = Results(self.config[self.subcommand].predictions)
        callbacks = [self._remove_files, results, _Monitors(), self._peers, *callbacks, Throughput()]
        own = _as_list(config.get("callbacks"))
        if config.get("logger"):
            callbacks.append(LearningRateMonitor("step"))
        if config.get("enable_progress_bar") is not False and not any(isinstance(one, ProgressBar) for one in own):
            callbacks.append(Bar())
        if config.get("enable_model_summary") is not False and not any(isinstance(one, ModelSummary) for one in own):
            callbacks.append(Summary())
        if self.subcommand == "fit":
            callbacks.append(Interruption(self._signals))
        norms = TowerNorms(on_cpu=False)
        if config.get("sync_batchnorm") and not any(isinstance(plugin, LayerSync) for plugin in plugins):
            config["plugins"] = [*(config.get("plugins") or []), norms]
        try:
            trainer: Trainer = super()._instantiate_trainer(config, callbacks)
        except (MisconfigurationException, TypeError, ValueError) as error:
            raise ConfigError(f"trainer: {trainer_message(str(error), config)}") from error
        norms.on_cpu = trainer.strategy.root_device.type == "cpu"
        # Lightning's handlers wait for the other processes, for ever if those received no signal.
        connector: Any = trainer._signal_connector  # a method is replaced, which its type forbids
        connector.register_signal_handlers = lambda: None
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if norms.on_cpu and trainer.num_devices > cores:
            rank_zero_warn(
                f"trainer.devices: {trainer.num_devices} processes share {cores} CPU core(s), and each is the slower for it; "
                f"--trainer.devices {cores} is the most that helps"
            )
        return trainer

    def instantiate_classes(self) -> None:
        """Build everything, and give the module the plain configuration it was built from."""
        super().instantiate_classes()
        for part in self._without_dirpath:  # a run from the saved recipe must not write its checkpoints here
            part.dirpath = None
        dumped = self._parser(self.subcommand).dump(self.config[self.subcommand], skip_validation=True)
        self.model.config = yaml.safe_load(dumped)["model"]
        for part in ("optimizer", "schedule"):  # a model that is loaded needs none, and they may be of any package
            self.model.config.pop(part, None)
        source = self.config[self.subcommand].get("init_from")
        if self.subcommand == "fit" and source is not None and self._resume_path is None:
            take_weights(self.model, source)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Read the command line."""
        self.config = parser.parse_args(class_help(with_former_arguments(sys.argv[1:])))

    def _parse_ckpt_path(self) -> None:
        """Do nothing. Lightning would read hyper-parameters from the checkpoint. Here they are in the recipe alone."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The subcommand that the command line names, alone. To build the parser of one takes a second."""
        return {Parser.command: LightningCLI.subcommands()[Parser.command]}


class TaskCLI(DiptychCLI):
    """A run of a downstream task, whose class is part of the configuration. Reports are read only if the task asks."""

    monitor = Task.monitor

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the arguments that every run has."""
        self._add_to_every(parser)

    def before_instantiate_classes(self) -> None:
        """Refuse to fit a task that ``test`` trains by itself, and monitor the metric of the task by default."""
        if self.subcommand == "fit" and not self._needs_fit():
            name = self.config.fit.model.class_path.rpartition(".")[2]
            raise ConfigError(f"{name} has nothing to fit: `diptych test` trains and tests it")
        config = self.config[self.subcommand]
        for callback in (config.checkpoint, config.early_stopping):
            if callback.monitor == Task.monitor:  # the default
                callback.monitor = import_object(config.model.class_path).monitor
        super().before_instantiate_classes()

    def _needs_fit(self) -> bool:
        task = import_object(self.config[self.subcommand].model.class_path)
        return bool(task.trains)


def _as_list(value: Any) -> list[Any]:
    """A list of what a configuration holds: nothing, one thing or a list."""
    value = value or []
    return value if isinstance(value, list) else [value]


def _names_a_task(arguments: Sequence[str]) -> bool:
    """Whether the command line or one of its recipes gives ``model`` by class, as for a task."""
    for word, after in pairwise([*arguments, ""]):
        option, _, value = word.partition("=")
        if option in {"--model", "--model.class_path"}:
            return True
        if option in {"-c", "--config"}:
            try:
                content = yaml.safe_load(Path(value or after).read_text(encoding="utf-8"))
            except (OSError, ValueError, yaml.YAMLError):
                continue  # the parser has a better message
            model = content.get("model") if isinstance(content, dict) else None
            if isinstance(model, str) or (isinstance(model, dict) and "class_path" in model):
                return True
    return False


_LOST = r"Connection (closed|reset)|Broken pipe|NCCL|Gloo|gloo|Socket Timeout"
"""Parts of torch's messages when another process does not answer."""


def run(command: str) -> None:
    """Run ``fit``, ``validate`` or ``test`` with the options on the command line.

    Raises:
        ConfigError: an option, key, type or name is wrong.
    """
    register_names()
    tidy_console()
    Parser.command = command
    of_task = _names_a_task(sys.argv[2:])
    kind: type[DiptychCLI] = TaskCLI if of_task else DiptychCLI
    peers, lock = Peers(), RunLock()
    try:
        with Signals() as signals:
            kind(
                Task if of_task else AlignmentModule,
                RadiographDataModule,
                subclass_mode_model=of_task,
                subclass_mode_data=True,
                seed_everything_default=0,
                trainer_class=Trainer,
                trainer_defaults={"use_distributed_sampler": False, "log_every_n_steps": 10},
                save_config_callback=ConfigWriter,
                # A test must not replace the recipe that the run was trained with.
                save_config_kwargs={
                    "save_to_log_dir": False,
                    "config_filename": "config.yaml" if command == "fit" else f"config-{command}.yaml",
                },
                parser_class=Parser,
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,
                signals=signals,
                lock=lock,
                peers=peers,
            )
            if signals.received:  # the run was at its end
                raise SignalExit(128 + signals.received)
    except DiptychError:
        raise
    except Exception as error:  # jsonargparse and Lightning wrap errors in many types; unknown ones are raised again
        if message := own_message(error) or lightning_message(error):
            raise ConfigError(message) from error
        if isinstance(error, MisconfigurationException):
            raise ConfigError(" ".join(str(error).split())) from error
        if isinstance(error, RuntimeError) and re.search(_LOST, str(error)):
            ending = peers.gone(seconds=3)
            if ending is None and "Connection" not in str(error):
                raise
            ending = ending or "another process of this job has ended; its own message says why"
            raise DiptychError(f"{ending}; this process, rank {distributed.rank()}, ends too") from error
        if is_restoring(error):
            raise ConfigError(
                f"--ckpt_path: its state cannot be taken ({type(error).__name__}: {shown(str(error))}); it is damaged, or "
                "no run of this recipe wrote it"
            ) from error
        raise
    finally:
        lock.release()
