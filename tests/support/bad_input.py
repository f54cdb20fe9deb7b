"""What a wrong input must lead to: one message, and a way to damage a file."""

import subprocess

PREFIX = "diptych: error: "


def message(done: subprocess.CompletedProcess[str]) -> str:
    """The one message, after checking that there is one and nothing else that alarms."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    lines = done.stderr.splitlines()
    errors = [line for line in lines if line.startswith(PREFIX)]
    assert len(errors) == 1, done.stderr
    assert lines[-1] == errors[0]
    assert len(errors[0]) < 700
    assert not [line for line in lines if "Warning" in line or line.startswith("usage")], done.stderr
    return errors[0].removeprefix(PREFIX)


def holds(text, *parts):
    """Whether a message has all these parts."""
    assert not [part for part in parts if part not in text], text


def cutting(name):
    def change(rows, folder):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) // 2])

    return change
