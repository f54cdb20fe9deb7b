"""What the command prints: every line can be used; loggers, the run's folder and the help."""

import re
import warnings

import inprocess
import pytest
import torch
import yaml
from mini import SHIPPED, config, write_pairs

from diptych.cli.messages import tidy_console

PREFIX = "diptych: error: "


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("console")
    described = yaml.safe_load(config(write_pairs(folder), epochs=2))
    del described["trainer"]["enable_progress_bar"], described["trainer"]["enable_model_summary"]
    (folder / "recipe.yaml").write_text(yaml.safe_dump(described))
    return str(folder / "recipe.yaml")


def error(*arguments):
    """The one line of a refused command."""
    done = inprocess.diptych("fit", *arguments)
    lines = [line for line in done.stderr.splitlines() if line.startswith(PREFIX)]
    assert done.returncode == 2, done.stderr
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return lines[0].removeprefix(PREFIX)


def fit(*arguments):
    done = inprocess.diptych("fit", *arguments)
    assert done.returncode == 0, done.stderr
    return done


# -- lines ----------------------------------------------------------------------------------------------------------------


def test_a_fit_prints_only_lines_that_can_be_used(recipe, tmp_path):
    done = fit("-c", recipe, "--run", str(tmp_path / "run"))
    output = done.stdout + done.stderr
    for unusable in ("weights_only", "FLOPs", "TPU", "HPU", "Skipping setting", "it/s", "`Trainer"):
        assert unusable not in output
    assert re.search(
        r"^parameters: image [\d.]+ K, text [\d.]+ K, head [\d.]+ K; 60\.6 K of 60\.6 K are trained$", output, re.M
    )
    lines = re.findall(r"^(epoch .*)$", output, re.M)
    assert [line.split(":")[0] for line in lines] == ["epoch 1/2, step 4", "epoch 2/2, step 8"]
    assert max(map(len, lines)) <= 80
    assert not list((tmp_path / "run").rglob("hparams.yaml"))


def test_the_bar_fits_a_terminal_of_80_columns_and_counts_from_one(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    done = fit("-c", recipe, "--run", str(tmp_path), "--trainer.enable_progress_bar", "true")
    bars = [line for line in done.stdout.splitlines() if "it/s" in line]
    assert bars, done.stdout
    assert re.match(r"Epoch 2/2 +.*━.* 4/4 .*it/s loss: [\d.]+ val: [\d.]+ *$", bars[-1])
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_a_bar_or_summary_of_the_users_own_takes_the_place_of_ours(recipe, tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("trainer: {enable_progress_bar: true, callbacks: [TQDMProgressBar, ModelSummary]}")
    done = fit("-c", recipe, "-c", str(own), "--run", str(tmp_path / "run"))
    assert "parameters: image" not in done.stderr
    assert "Total params" in done.stderr


@pytest.mark.parametrize(
    ("text", "file", "printed"),
    [
        ("one\n  two", "/x/site-packages/torch/y.py", "warning (torch): one two\n"),
        ("one", "/x/site-packages/lightning/pytorch/y.py", "warning: one\n"),
        ("one", "/home/me/src/diptych/y.py", "warning: one\n"),
        (
            "GPU available but not used. You can set it by doing `Trainer(accelerator='gpu')`.",
            "/x/site-packages/lightning/y.py",
            "warning: there is a GPU, and it is not used; add -c experiments/machine/gpu.yaml (or --trainer.accelerator gpu)\n",
        ),
    ],
)
def test_a_warning_is_one_line(monkeypatch, text, file, printed):
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    with warnings.catch_warnings():
        tidy_console()
        assert warnings.formatwarning(UserWarning(text), UserWarning, file, 3) == printed


def test_warnings_that_matter_stay(monkeypatch):
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    srun = "The `srun` command is available on your system but is not used."
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        monkeypatch.setenv("SLURM_JOB_ID", "7")
        tidy_console()
        warnings.warn(srun, stacklevel=1)
        warnings.warn("loss is strange", stacklevel=1)
        monkeypatch.delenv("SLURM_JOB_ID")
        tidy_console()
        warnings.warn(srun, stacklevel=1)
    assert [str(one.message) for one in caught] == [srun, "loss is strange"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("machine", ["gpu", "ddp", "slurm"])
def test_a_machine_without_gpu_is_told_what_to_add(recipe, tmp_path, machine):
    message = error("-c", recipe, "-c", str(SHIPPED / "machine" / f"{machine}.yaml"), "--run", str(tmp_path))
    assert "'gpu'" in message
    assert "-c experiments/machine/cpu.yaml" in message
    assert "backend" not in message


@pytest.mark.parametrize(
    ("logger", "package"),
    [
        ("WandbLogger", "wandb"),
        ("MLFlowLogger", "mlflow"),
        ("CometLogger", "comet-ml"),
        ("[CSV, WandbLogger]", "wandb"),
    ],
)
def test_a_logger_without_its_package_is_one_line(recipe, tmp_path, logger, package):
    try:
        __import__(package.replace("-", "_"))
    except ImportError:
        pass
    else:
        pytest.skip(f"{package} is installed")
    csv = f"{{class_path: CSVLogger, init_args: {{save_dir: {tmp_path}}}}}"
    (tmp_path / "logger.yaml").write_text(f"trainer: {{logger: {logger.replace('CSV,', csv + ',')}}}")
    message = error("-c", recipe, "-c", str(tmp_path / "logger.yaml"), "--run", str(tmp_path / "run"))
    assert f"Logger needs the package {package}, which is not installed: pip install {package}" in message


# -- loggers --------------------------------------------------------------------------------------------------------------


def _logger(name, folder):
    return {"class_path": name, "init_args": {"save_dir": str(folder)}}


@pytest.mark.parametrize("loggers", ["false", "csv and tensorboard"])
def test_the_configuration_and_pictures_lie_in_the_run_whatever_the_logger(recipe, tmp_path, loggers):
    run = tmp_path / "run"
    named = [_logger("CSVLogger", run), _logger("TensorBoardLogger", tmp_path / "elsewhere")]
    logger = {"false": False, "csv and tensorboard": named}[loggers]
    (tmp_path / "logger.yaml").write_text(yaml.safe_dump({"trainer": {"logger": logger}}))
    options = ("--figures.pairs", "1", "--trainer.max_epochs", "1")
    fit("-c", recipe, "-c", str(tmp_path / "logger.yaml"), "--run", str(run), *options)
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("config.yaml")] == ["run/config.yaml"]
    written = yaml.safe_load((run / "config.yaml").read_text())
    assert written["model"]["lr"] == 1e-3
    assert len(list((run / "figures").glob("*.png"))) == 1
    for file in tmp_path.rglob("hparams.yaml"):
        assert yaml.safe_load(file.read_text())["model"]["lr"] == 1e-3
    if loggers == "csv and tensorboard":
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        (events,) = (tmp_path / "elsewhere").rglob("events.*")
        read = EventAccumulator(str(events))
        read.Reload()
        assert read.Tags()["images"] == ["val/similarity"]
        assert "train/loss/global" in (run / "lightning_logs" / "version_0" / "metrics.csv").read_text()


def test_the_configuration_is_written_before_training(recipe, tmp_path):
    run = tmp_path / "run"
    (tmp_path / "stop.yaml").write_text("model: {lr: 1.0e-3}\ntrainer: {limit_train_batches: 0.01}")  # of four: none
    inprocess.diptych("fit", "-c", recipe, "-c", str(tmp_path / "stop.yaml"), "--run", str(run))
    assert (run / "config.yaml").is_file()
    assert not list(run.glob("*.part"))


# -- help -----------------------------------------------------------------------------------------------------------------


def test_help_shows_our_own_options_first_and_is_short():
    done = inprocess.diptych("fit", "--help")
    assert done.returncode == 0
    options = ["--run", "--ckpt_path", "--model.head ", "--data ", "--figures.pairs ", "--checkpoint.monitor "]
    options += ["--early_stopping.patience ", "--recovery.every_n_train_steps ", "--trainer.max_epochs "]
    places = [done.stdout.index(option) for option in options]
    assert places == sorted(places)
    assert not re.search(r"^  --trainer.*\n(.*\n)*  --(model|data|figures|run)", done.stdout, re.M)
    assert done.stdout.count("\n") < 380
    assert "SGD" not in done.stdout  # torch's own pages list its optimisers
    assert "usage: diptych fit" in done.stdout
    assert "local_pooling" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["--model.head=reclf", "--help"], "--model.head.matching_width"),
        (["--model.head", "reclf", "-h"], "--model.head.matching_width"),
        (["--model.head.help", "reclf"], "--model.head.matching_width"),
        (["--data", "tabular", "--help"], "--data.table"),
        (["--model.head", "reclf", "--model.image", "TimmImage", "--help"], "--model.image.pretrained"),
        (["--model", "Segment", "--help"], "--model.resamples"),
    ],
)
def test_help_of_a_class(arguments, option):
    done = inprocess.diptych("fit", *arguments)
    assert done.returncode == 0, done.stderr
    assert option in done.stdout
    assert "--trainer" not in done.stdout


def test_help_of_no_class_names_them():
    assert "name the class, one of cce, composite, global" in error("--model.head.help")


# -- few pairs ------------------------------------------------------------------------------------------------------------


def test_few_validation_pairs_are_warned_of_once(recipe, tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit("-c", recipe, "--run", str(tmp_path), "--trainer.num_sanity_val_steps", "1")
    messages = [str(one.message) for one in caught]
    few = "samples of val: 4; a share of one half among them is known to +-0.49"
    assert len([one for one in messages if one.startswith(few)]) == 1
    certain = "val/retrieval: 4 pairs hold 4 different reports, so image_to_text/r@5, r@10 is 1 whatever the model"
    assert len([one for one in messages if one.startswith(certain)]) == 1
