"""Commands that are forked from one warm process are as processes of their own: signals, exit codes, variables, state."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from diptych.cli import children, warm
from diptych.errors import DiptychError

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not warm.FORKS, reason="commands are forked on Linux alone")]

COMMAND = """
import json, os, signal, sys, threading, time
import numpy as np, torch
import diptych

def main(words):
    what = words[0]
    if what == "tell":
        before, diptych.touched = getattr(diptych, "touched", False), True
        os.environ["TOUCHED"] = "1"
        spec = sys.modules["__main__"].__spec__
        print(json.dumps({
            "touched": before, "threads": torch.get_num_threads(), "native": len(os.listdir("/proc/self/task")),
            "MARK": os.environ.get("MARK"), "folder": os.getcwd(), "main": spec.name, "words": sys.argv[1:],
            "drawn": np.random.rand(), "file": sys.argv[0], "held": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
            "cuda": torch.cuda.is_initialized(), "bad_fork": torch.cuda._is_in_bad_fork(),
            "open": sorted(os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd") if n not in "012"
                           and os.path.exists(f"/proc/self/fd/{n}")),
        }))
        print("an error too", file=sys.stderr)
    elif what == "raise":
        raise ValueError("lost")
    elif what == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif what == "code":
        sys.exit(7)
    elif what == "sleep":
        if words[2:] == ["stubborn"]:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with open(words[1] + ".part", "w") as file:
            file.write(str(os.getpid()))
        os.rename(words[1] + ".part", words[1])
        time.sleep(100)
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A folder with a package that has a command ``probe``, and what PYTHONPATH is with it."""
    folder = tmp_path_factory.mktemp("package")
    info = folder / "probing-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: probing\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[diptych.commands]\nprobe = probing:main\n")
    (folder / "probing.py").write_text(COMMAND)
    return os.pathsep.join([str(folder), *sys.path])


@pytest.fixture(scope="module")
def server(path):
    """The warm process of all tests here, but for those that end it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path)
        with children.warm():
            yield lambda: children._warm


def run(folder, *commands, jobs=1, **environment):
    """The errors of commands, and their logs."""
    family = [children.Child(words[0], ("probe", *words), folder / f"{n}.log") for n, words in enumerate(commands)]
    errors = {}
    children.run_all(
        family, jobs, lambda child, error: errors.update({child.log.stem: error}), environment=environment or None
    )
    return [errors[child.log.stem] for child in family], [child.log.read_text() for child in family]


def anew(**variables):
    """Torch's threads in a process of its own with these variables."""
    kept = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    command = [sys.executable, "-c", "import torch; print(torch.get_num_threads())"]
    return int(subprocess.run(command, env={**kept, **variables}, check=True, capture_output=True, text=True).stdout)


def test_nothing_is_shared_between_commands(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    errors, logs = run(tmp_path, ["tell", "a b", "ü"], ["tell"], OMP_NUM_THREADS="3", MARK="x")
    assert errors == ["", ""]
    first, second = (json.loads(log.splitlines()[0]) for log in logs)
    assert [log.splitlines()[1:] for log in logs] == [["an error too"]] * 2
    assert first["touched"] is second["touched"] is False
    assert first["threads"] == second["threads"] == anew(OMP_NUM_THREADS="3")
    assert first["MARK"] == second["MARK"] == "x"
    assert first["folder"] == str(tmp_path)
    assert first["words"] == ["probe", "tell", "a b", "ü"]
    assert first["main"] == "diptych.__main__"  # by which Lightning starts the second process of a job
    assert Path(first["file"]).name == "__main__.py"
    assert first["drawn"] != second["drawn"]
    assert first["held"] == sorted(signal.pthread_sigmask(signal.SIG_BLOCK, []))
    assert not first["cuda"]
    assert not first["bad_fork"]  # it may use a device
    assert not [name for name in first["open"] if name.startswith("socket:")]
    assert "TOUCHED" not in os.environ


def test_the_warm_process_has_one_thread_and_no_device(server, tmp_path):
    run(tmp_path, ["tell"])
    pid = server()._process.pid
    assert len(os.listdir(f"/proc/{pid}/task")) == 1
    assert "libcuda.so" not in Path(f"/proc/{pid}/maps").read_text()


def test_variables_of_this_process_are_those_of_now(server, tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("MARK", "later")
    _, logs = run(tmp_path, ["tell"])
    told = json.loads(logs[0].splitlines()[0])
    assert told["MARK"] == "later"
    assert told["threads"] == anew()
    _, logs = run(tmp_path, ["tell"], OMP_NUM_THREADS="2", MKL_NUM_THREADS="1")
    assert json.loads(logs[0].splitlines()[0])["threads"] == anew(OMP_NUM_THREADS="2", MKL_NUM_THREADS="1") == 1


def test_how_commands_end_is_told_and_none_is_left(server, tmp_path):
    errors, logs = run(tmp_path, ["raise"], ["crash"], ["code"], ["nothing"], jobs=2)
    assert errors == [
        f"raise failed: ValueError: lost (log: {tmp_path}/0.log)",
        f"crash failed: ended by SIGSEGV (log: {tmp_path}/1.log)",
        f"code failed: it said nothing (log: {tmp_path}/2.log)",
        "",
    ]
    assert "Traceback" in logs[0]
    assert logs[2] == ""
    pid = server()._process.pid
    assert Path(f"/proc/{pid}/task/{pid}/children").read_text() == ""  # no zombie either


def test_an_error_here_ends_those_that_run(server, tmp_path):
    pid = tmp_path / "pid"
    family = [
        children.Child("long", ("probe", "sleep", str(pid), "stubborn"), tmp_path / "long.log"),
        children.Child("short", ("probe", "code"), tmp_path / "short.log"),
    ]

    def ended(child, error):
        until(pid.is_file)
        raise DiptychError(error)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(children, "PATIENCE", 1.0)
        with pytest.raises(DiptychError, match="short failed: it said nothing"):
            children.run_all(family, 2, ended)
    assert gone(int(pid.read_text()))
    assert run(tmp_path, ["code"])[0] == [f"code failed: it said nothing (log: {tmp_path}/0.log)"]  # it forks on


def when(condition, act):
    """Do something in this process, from another thread, once a condition holds."""

    def wait():
        until(condition)
        act()

    threading.Thread(target=wait, daemon=True).start()


def sleeping(folder, *names):
    """Commands that write their process's number into a file, and then wait."""
    return [children.Child(name, ("probe", "sleep", str(folder / name)), folder / f"{name}.log") for name in names]


def test_a_signal_is_passed_on(server, tmp_path):
    family = sleeping(tmp_path, "a", "b", "c")
    when(
        lambda: (tmp_path / "a").is_file() and (tmp_path / "b").is_file(), lambda: os.kill(os.getpid(), signal.SIGTERM)
    )
    with pytest.raises(SystemExit) as ended:
        children.run_all(family, 2, print)
    assert ended.value.code == 143
    assert all(gone(int((tmp_path / name).read_text())) for name in "ab")
    assert not (tmp_path / "c.log").exists()


def test_a_signal_while_it_imports_ends_it_at_once(path, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(
        f"import time\nopen({str(tmp_path / 'begun')!r}, 'w').close(); time.sleep(300)\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), path]))
    monkeypatch.setattr(children, "_warm", warm.Warm())
    when((tmp_path / "begun").is_file, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as ended:
        children.run_all(sleeping(tmp_path, "a"), 1, print)
    assert ended.value.code == 143
    children._warm.close()
    assert gone(children._warm._process.pid)
    assert not (tmp_path / "a.log").exists()


def test_without_the_warm_process_its_commands_are_ended(path, tmp_path, monkeypatch):
    """The kernel may end it for its memory."""
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setattr(children, "_warm", warm.Warm())
    when((tmp_path / "a").is_file, lambda: children._warm._process.kill())
    with pytest.raises(
        DiptychError, match="that commands are forked from has ended by SIGKILL; start again, it goes on"
    ):
        children.run_all(sleeping(tmp_path, "a"), 1, print)
    assert gone(int((tmp_path / "a").read_text()))
    children._warm.close()


def until(condition, seconds=200):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def gone(pid, seconds=20):
    """Whether a process ends. An orphan may wait as a zombie for the first process of the system."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not warm._alive(pid):
            return True
        time.sleep(0.05)
    return False


PARENT = """
import sys; from pathlib import Path; from diptych.cli import children
folder = Path(sys.argv[1])
with children.warm():
    children.run_all([children.Child("a", ("probe", "sleep", str(folder / "a")), folder / "a.log")], 2, print)
"""


@pytest.mark.parametrize("victim", ["the command alone, killed", "its whole group"])
def test_no_process_is_left(victim, path, tmp_path):
    command = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        until((tmp_path / "a").is_file)
        child = int((tmp_path / "a").read_text())
        server = int(Path(f"/proc/{command.pid}/task/{command.pid}/children").read_text())
        if victim == "its whole group":
            os.killpg(command.pid, signal.SIGTERM)
        else:
            command.kill()
        code = command.wait(60)
        assert gone(child)
        assert gone(server)
        assert (code, command.stderr.read()) == (143 if victim == "its whole group" else -9, "")
    finally:
        command.kill()
        command.wait()
        command.stderr.close()
