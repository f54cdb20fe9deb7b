"""A run folder is one run: no other is written over it, two never write at once, and results say whose they are."""

import json
import os
import shutil
import subprocess
import sys
import zipfile

import inprocess
import pytest
import yaml
from mini import ROOT, config, write_pairs
from torch.distributed.run import get_args_parser

from diptych.model.checkpoint import read_checkpoint
from diptych.training.run_folder import RunLock


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    (folder / "run.yaml").write_text(config(write_pairs(folder / "data"), epochs=1))
    return folder / "run.yaml"


@pytest.fixture(scope="module")
def trained(recipe):
    """A run that was tested, four steps long."""
    inprocess.fit_and_test(recipe, recipe.parent / "trained", "--figures.pairs", "1")
    return recipe.parent / "trained"


@pytest.fixture
def run(trained, tmp_path):
    """A copy of it."""
    return shutil.copytree(trained, tmp_path / "run")


def fit(recipe, run, *options):
    return inprocess.diptych("fit", "-c", str(recipe), "--run", str(run), *options)


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def step(run):
    return read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"]


def refused(done, *parts):
    assert done.returncode == 2, done.stderr
    message = done.stderr.splitlines()[-1]
    assert message.startswith("diptych: error: ")
    assert not [part for part in parts if part not in message], message


def test_a_folder_that_holds_a_run_is_left_as_it_is(recipe, run):
    before = contents(run)
    refused(
        fit(recipe, run, "--model.head", "local_pooling"),
        f"--run {run}: holds a run already",
        "best.ckpt",
        "--overwrite",
    )
    other = run.parent / "other.ckpt"
    shutil.copy(run / "checkpoints" / "best.ckpt", other)
    refused(fit(recipe, run, "--ckpt_path", str(other)), "holds a run already")  # begins with another run's weights
    refused(
        fit(recipe, run, "--ckpt_path", "last", "--overwrite"), "--overwrite would remove the run that --ckpt_path last"
    )
    assert contents(run) == before
    shutil.rmtree(run / "checkpoints")
    refused(fit(recipe, run), "holds a run already (predictions.csv, results.json")


def test_overwrite_removes_the_old_run_and_nothing_else(recipe, run):
    mine = {
        run / name: name.encode()
        for name in ("notes.txt", "checkpoints/keep.ckpt", "figures/mine.png", "my/results.json")
    }
    ours = ("hpc_ckpt_3.ckpt", "results-val.json", "figures/epoch000-attention-0.png", "checkpoints/last.ckpt.part")
    ours += ("figures/test-attention-0.svg", "figures/test-attention-0.pdf")
    ours += ("config-test.yaml", "predictions.csv", "checkpoints/best-v1.ckpt")
    for file in [*mine, *(run / name for name in ours)]:
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(str(file.relative_to(run)).encode())
    events = set(run.glob("events*"))
    assert {run / "results.json", *run.glob("figures/test-similarity*")} <= set(contents(run))
    done = fit(recipe, run, "--overwrite", "--model.head", "local_pooling")
    assert done.returncode == 0, done.stderr
    left = contents(run)
    assert mine.items() <= left.items()
    assert not [name for name in (*ours, "results.json", "figures/test-similarity.png") if run / name in left]
    assert not events & set(left)
    assert "LocalPooling" in str(read_checkpoint(run / "checkpoints" / "best.ckpt")["diptych"]["head"])
    assert yaml.safe_load((run / "config.yaml").read_text())["overwrite"] is False  # the recipe would overwrite again


def test_what_cannot_be_built_removes_nothing(recipe, run):
    before = contents(run)
    refused(fit(recipe, run, "--overwrite", "--data.table", str(run / "none.csv")), "none.csv")
    refused(fit(recipe, run, "--overwrite", "--model.image.name", "resnet10"), "resnet10")
    assert {path: before[path] for path in before if "config" not in path.name}.items() <= contents(run).items()


def test_a_failed_attempt_holds_no_run(recipe, tmp_path):
    refused(fit(recipe, tmp_path / "run", "--early_stopping.monitor", "val/none"), "val/none")
    shutil.rmtree(tmp_path / "run" / "checkpoints", ignore_errors=True)
    assert (tmp_path / "run" / "config.yaml").is_file()
    assert fit(recipe, tmp_path / "run").returncode == 0


HOLDER = """
import sys, time
from pathlib import Path
from diptych.training.run_folder import RunLock
lock = RunLock()
lock.take(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def test_one_job_at_a_time_writes_to_a_folder(recipe, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(run)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        for options in ([], ["--overwrite"]):
            refused(
                fit(recipe, run, *options), "another run is writing there (host ", f"process {holder.pid}, since 20"
            )
        assert not list(run.rglob("*.ckpt"))
    finally:
        holder.kill()
        holder.wait()
    assert (run / "run.lock").is_file()  # it had no time to remove it
    assert fit(recipe, run).returncode == 0
    assert not (run / "run.lock").exists()


def test_a_lock_outlives_no_error_and_is_not_inherited(tmp_path):
    lock = RunLock()
    lock.take(tmp_path)
    if (child := os.fork()) == 0:
        lock.release()  # of a process that does not hold it: a forked worker's end
        os._exit(0)
    os.waitpid(child, 0)
    probe = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'a+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    tried = [sys.executable, "-c", probe, str(tmp_path / "run.lock")]
    assert subprocess.run(tried, capture_output=True, check=False).returncode == 1
    holder = json.loads((tmp_path / "run.lock").read_text())  # which unlocks it, as locks of POSIX are
    assert holder["process"] == os.getpid()
    lock.release()
    assert not list(tmp_path.iterdir())


def test_going_on_keeps_no_checkpoint_in_the_recipe(recipe, run):
    done = fit(recipe, run, "--ckpt_path", "last", "--trainer.max_epochs", "2")
    assert done.returncode == 0, done.stderr
    assert step(run) == 8
    assert yaml.safe_load((run / "config.yaml").read_text())["ckpt_path"] is None
    assert fit(run / "config.yaml", run.parent / "anew", "--trainer.max_epochs", "1").returncode == 0
    assert step(run.parent / "anew") == 4


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    """One bit of the largest tensor: torch reads it without a word."""
    with zipfile.ZipFile(path) as file:
        largest = max(file.infolist(), key=lambda info: info.file_size)
        inside = file.read(largest)
    content = path.read_bytes()
    assert content.count(inside) == 1
    at = content.index(inside) + len(inside) // 2
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])


@pytest.mark.parametrize(
    "damage", [truncate, flip, lambda path: path.write_bytes(b""), lambda path: path.write_text("no")]
)
def test_goes_on_from_the_newest_whole_checkpoint(recipe, run, damage):
    best, last, slurm = run / "checkpoints" / "best.ckpt", run / "checkpoints" / "last.ckpt", run / "hpc_ckpt_2.ckpt"
    shutil.copy(last, slurm)
    shutil.copy(last, run / "hpc_ckpt_10.ckpt")
    damage(run / "hpc_ckpt_10.ckpt")
    for age, file in enumerate((run / "hpc_ckpt_10.ckpt", last, slurm, best)):
        os.utime(file, (2e9 - age, 2e9 - age))
    more = ["--ckpt_path", "last", "--trainer.max_epochs", "2"]
    done = fit(recipe, run, *more)
    assert done.returncode == 0, done.stderr
    assert f"passed over, as it is damaged: {run}/hpc_ckpt_10.ckpt" in done.stderr
    assert f"Restoring states from the checkpoint path at {last}" in done.stderr
    assert step(run) == 8
    damage(last)
    done = fit(recipe, run, *more)
    assert f"{slurm} is the newest whole checkpoint" in done.stderr
    assert (done.returncode, step(run)) == (0, 8)
    for file in (last, slurm):
        damage(file)
    done = fit(recipe, run, *more)
    assert f"{best} is the newest whole checkpoint" in done.stderr
    assert done.returncode == 0, done.stderr
    for file in (last, best):
        damage(file)
    refused(fit(recipe, run, *more), "last.ckpt does not exist or is damaged (there: best.ckpt, hpc_ckpt_10.ckpt")


def test_torchrun_hands_the_folder_on():
    arguments = ["fit", "-c", "x.yaml", "--run_folder", "r"]
    assert (
        get_args_parser().parse_args(["--nproc_per_node", "2", "-m", "diptych", *arguments]).training_script_args
        == arguments
    )
    assert "--run_folder" in (ROOT / "experiments" / "machine" / "ddp.yaml").read_text()
    assert "--run_folder" in (ROOT / "docs/machines.md").read_text()


def table(*runs):
    done = inprocess.diptych("table", *map(str, runs))
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_table_says_whose_results_they_are(recipe, run, trained):
    assert "**run:**" not in table(run)  # a run that was moved, or copied: its checkpoint is beside it
    assert fit(recipe, run, "--ckpt_path", "last", "--trainer.max_epochs", "2").returncode == 0
    shutil.copy(run / "checkpoints" / "last.ckpt", run / "checkpoints" / "best.ckpt")  # epoch 1 was the better one
    content = json.loads((run / "results.json").read_text())
    assert content["checkpoint"]["path"] == str(trained / "checkpoints" / "best.ckpt")
    content["checkpoint"]["path"] = str(run / "checkpoints" / "best.ckpt")
    (run / "results.json").write_text(json.dumps(content))
    assert f"**run:** the checkpoint {run}/checkpoints/best.ckpt is not the one that was tested" in table(run, trained)
    (run / "checkpoints" / "best.ckpt").unlink()
    text = table(run, trained)
    assert f"**run:** the checkpoint that was tested, {run}/checkpoints/best.ckpt, is gone" in text
    assert "**trained:**" not in text


def test_predictions_are_written_as_asked(recipe, run):
    for form, left in (("parquet", ["predictions.parquet"]), ("none", [])):
        test = ("test", "-c", str(recipe), "--run", str(run), "--ckpt_path", "best", "--predictions", form)
        assert inprocess.diptych(*test).returncode == 0
        assert sorted(path.name for path in run.glob("predictions.*")) == left  # that of the test before is gone
        assert (inprocess.rescored(run)["predictions"] is None) == (form == "none")
