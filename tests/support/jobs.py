"""The command on two processes, as a user launches it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from unittest.mock import patch

import inprocess
import lightning.pytorch as pl
import pytest
import torch.distributed as dist
import warm
from lightning.pytorch.utilities import rank_zero_only
from mini import own_environment

# What ddp.yaml says about CPU processes; bfloat16 would hide what is compared here.
GLOO = ["--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy.process_group_backend", "gloo"]


def launch(*arguments, timeout=500):
    """Run the command in a session of its own, and see that no process of it is left. It starts the second process."""
    process = warm.Command(arguments, Path.cwd(), own_environment())

    def settle():
        until = time.monotonic() + 100  # a busy machine takes long to end processes
        while _alive(process.pid):
            assert time.monotonic() < until, f"processes of {arguments} are left"
            time.sleep(0.1)

    try:
        return process.finish(timeout, settle)
    finally:
        if _alive(process.pid):
            os.killpg(process.pid, signal.SIGKILL)


def on_two(gloo2, *arguments):
    """What the command says on both processes of the pool, which have imported everything, as ``torchrun`` would run it."""
    done = gloo2(_as_rank, *arguments, *GLOO)
    said = "".join(text for *_, text in done)
    assert [(code, worlds) for code, worlds, _ in done] == [(0, {2})] * 2, said
    return said


def _as_rank(*arguments):
    """The command in this process of a job; its exit code, the processes its trainer counted, and what it said."""
    rank, world = dist.get_rank(), dist.get_world_size()
    launched = {"LOCAL_RANK": rank, "NODE_RANK": 0, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 1}
    worlds, start = set(), pl.Trainer._run

    def counted(trainer, *args, **options):
        worlds.add(trainer.world_size)
        return start(trainer, *args, **options)

    environment = patch.dict(os.environ, {name: str(value) for name, value in launched.items()})
    try:
        with environment, patch.object(pl.Trainer, "_run", counted):
            done = inprocess.diptych(*arguments)
    finally:
        rank_zero_only.rank = 0
    return done.returncode, worlds, done.stdout + done.stderr


def two_give(gloo2, metrics, file, run, *options):
    """Tested on two processes, the figures are ``metrics``, those of one."""
    on_two(gloo2, "test", "-c", file, "--run", str(run), *options)
    doubled = inprocess.rescored(run)["metrics"]
    assert doubled.keys() == metrics.keys()
    for name, value in metrics.items():
        assert doubled[name] == pytest.approx(value, abs=1e-6), name


def _alive(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
