"""The one writer: whole or not there, whatever ends the writing."""

import fcntl
import hashlib
import os
import resource
import signal
import stat
import subprocess
import sys

import pytest
import torch
from PIL import Image

from diptych.errors import ConfigError, DataError
from diptych.files import remove_parts, replace_bytes, replace_picture, replace_text, replacing, sha256
from diptych.model.checkpoint import AtomicCheckpointIO


@pytest.fixture
def small_files():
    """Files end at 50,000 bytes, as on a disk that gets full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_takes_its_name_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with replacing(path) as file:
        file.write(b"half")
        assert not path.exists()
        assert [name.startswith("a.txt.") and name.endswith(".part") for name in names(path.parent)] == [True]
    assert path.read_bytes() == b"half"
    assert names(path.parent) == ["a.txt"]
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask  # others of the group may read it


def noise(size):
    return Image.frombytes("L", (size, size), os.urandom(size * size))


@pytest.mark.parametrize(
    "write",
    [
        lambda path: replace_text(path, "x" * 60_000),
        lambda path: replace_bytes(path, (b"x" * 1000 for _ in range(60))),
        lambda path: replace_picture(path, noise(300)),
        lambda path: AtomicCheckpointIO().save_checkpoint({"weights": torch.zeros(20_000)}, path),
    ],
    ids=["text", "pieces", "picture", "checkpoint"],
)
def test_a_full_disk_is_one_line_and_the_older_file_stays(tmp_path, small_files, write):
    path = tmp_path / "a"
    path.write_text("older")
    with pytest.raises(DataError, match=r"/a: cannot be written \(File too large\); make room") as error:
        write(path)
    assert "\n" not in str(error.value)
    assert path.read_text() == "older"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit, ValueError])
def test_whatever_ends_the_writing_leaves_no_part(tmp_path, end):
    def pieces():
        yield b"half"
        raise end

    with pytest.raises(end):
        replace_bytes(tmp_path / "a", pieces())
    assert names(tmp_path) == []


def test_an_error_of_another_file_is_not_called_one_of_writing(tmp_path):
    with pytest.raises(FileNotFoundError, match="source"), replacing(tmp_path / "a"):
        (tmp_path / "source").read_bytes()
    assert names(tmp_path) == []


@pytest.mark.parametrize("place", ["file/a", "folder"])
def test_a_place_that_cannot_be_written_is_named(tmp_path, place):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match=f"{place}: cannot be written"):
        replace_text(tmp_path / place, "text")


def test_links_are_followed_and_pipes_written_directly(tmp_path):
    (tmp_path / "real").write_text("older")
    (tmp_path / "link").symlink_to("real")
    replace_text(tmp_path / "link", "newer")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "newer"
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    replace_text(tmp_path / "pipe", "through")
    assert os.read(reader, 100) == b"through"
    os.close(reader)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)  # not replaced, as /dev/stdout must not be


def test_a_long_or_broken_name_can_be_written(tmp_path):
    replace_text(tmp_path / ("n" * 255), "text \udcff")
    assert (tmp_path / ("n" * 255)).read_text() == r"text \udcff"


_KILLED = """
import os, sys, time
from diptych.files import replacing
with replacing(sys.argv[1]) as file:
    file.write(b"half")
    file.flush()
    print("writing", flush=True)
    time.sleep(60)
"""


def test_the_part_of_a_killed_process_is_taken_away_and_that_of_a_live_one_stays(tmp_path):
    folder = tmp_path / "checkpoints"
    process = subprocess.Popen([sys.executable, "-c", _KILLED, str(folder / "a")], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "writing\n"
    (folder / "notes.part").mkdir()
    remove_parts(tmp_path)
    assert len(names(folder)) == 2  # it is alive
    process.kill()
    process.wait()
    process.stdout.close()
    assert len(names(folder)) == 2
    remove_parts(tmp_path)
    assert names(folder) == ["notes.part"]  # a folder is not ours


def test_a_part_taken_away_before_its_lock_is_made_again(tmp_path, monkeypatch):
    lock, seen = fcntl.flock, []

    def late(file, how):
        if not seen:
            seen.append(names(tmp_path))
            for part in tmp_path.iterdir():
                part.unlink()
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    replace_text(tmp_path / "a", "text")
    assert len(seen[0]) == 1
    assert (tmp_path / "a").read_text() == "text"


def test_folder_and_file_are_brought_to_the_disk_in_this_order(tmp_path, monkeypatch):
    done = []
    sync, replace = os.fsync, type(tmp_path).replace
    kinds = {True: "folder", False: "file"}
    monkeypatch.setattr(os, "fsync", lambda n: (done.append(kinds[stat.S_ISDIR(os.fstat(n).st_mode)]), sync(n)))
    monkeypatch.setattr(type(tmp_path), "replace", lambda self, to: (done.append("name"), replace(self, to)))
    AtomicCheckpointIO().save_checkpoint({"a": torch.ones(2)}, tmp_path / "a.ckpt")
    assert done == ["file", "name", "folder"]
    assert torch.load(tmp_path / "a.ckpt", weights_only=True)["a"].tolist() == [1, 1]


def test_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"weights" * 100_000)
    assert sha256(tmp_path / "a") == hashlib.sha256(b"weights" * 100_000).hexdigest()
    with pytest.raises(ConfigError, match="No such file"):
        sha256(tmp_path / "b")
