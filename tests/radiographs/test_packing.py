"""Stores that ``diptych prepare`` makes: the same bytes after any interruption, and no work twice."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from mini import ROOT
from packs import equal, module_of, quiet, state_of
from PIL import Image

from diptych.cli.prepare import main
from diptych.cli.scan import scan
from diptych.errors import ConfigError, DataError
from diptych.radiographs.manifest import TEXTS
from diptych.radiographs.packed import Store


def unpacked(name, root, folder):
    """A copy whose reports are small files, as many as there are reports."""
    shutil.copytree(root, folder)
    if name == "mimic_cxr":
        with zipfile.ZipFile(folder / "mimic-cxr-reports.zip") as archive:
            archive.extractall(folder / "reports")
        (folder / "mimic-cxr-reports.zip").unlink()
        return folder, {"reports": "reports"}
    return folder, {}


@pytest.mark.parametrize("name", ["mimic_cxr", "openi"])
def test_reports_that_are_small_files_are_packed_into_one(name, release, tmp_path, monkeypatch):
    root, options = unpacked(name, release(name)[0], tmp_path / "in")
    out, texts = tmp_path / "out", tmp_path / "out" / TEXTS
    _, output = quiet(name, root, out)
    number = len([*root.rglob("s*.txt"), *root.rglob("*.xml")])
    assert f"{number} reports in {texts}" in output
    assert not [*out.rglob("*.txt"), *out.rglob("*.xml")][1:]  # but the list of tables
    folders = [{key: str(place / folder) for key, folder in options.items()} for place in (root, out)]
    original = module_of(name, root, folders[0])
    opened = []
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *_, **__: opened.append(1))
    packed = module_of(name, out, folders[1])
    assert not opened  # members are streamed
    assert [list(packed.datasets[split].texts()) for split in packed.datasets] == [
        list(original.datasets[split].texts()) for split in original.datasets
    ]
    assert packed.split_hash == original.split_hash
    if name == "mimic_cxr":  # looked for in the root too
        assert module_of(name, out, {}).split_hash == original.split_hash


def test_packed_reports_are_made_again_where_one_changed_and_only_then(release, tmp_path):
    root, _ = unpacked("mimic_cxr", release("mimic_cxr")[0], tmp_path / "in")
    out, other = tmp_path / "out", tmp_path / "other"
    for place in (out, other):
        quiet("mimic_cxr", root, place)
    texts = out / TEXTS
    assert texts.read_bytes() == (other / TEXTS).read_bytes()
    before = state_of(out)
    quiet("mimic_cxr", root, out)
    assert state_of(out) == before
    changed = next(root.rglob("s*.txt"))
    changed.write_text(f"{changed.read_text()}\n")
    quiet("mimic_cxr", root, out, shard=(1, 2))
    assert state_of(out) == before  # the first job does it
    quiet("mimic_cxr", root, out)
    assert {name for name, state in state_of(out).items() if state != before[name]} == {str(TEXTS)}
    spoilt = bytearray(texts.read_bytes())
    spoilt[spoilt.index(b"FINAL REPORT")] ^= 1
    texts.write_bytes(spoilt)
    with pytest.raises(DataError, match=r"texts\.zip: cannot be read \(bad CRC-32"):
        module_of("mimic_cxr", out, {})
    for path in root.rglob("s*.txt"):
        path.unlink()
    quiet("mimic_cxr", root, out)
    assert not texts.exists()


def test_copies_of_an_older_version_are_taken_away(release, tmp_path):
    root, _ = unpacked("mimic_cxr", release("mimic_cxr")[0], tmp_path / "in")
    out = tmp_path / "out"
    quiet("mimic_cxr", root, out)
    name = str(next(root.rglob("s*.txt")).relative_to(root))
    (out / name).parent.mkdir(parents=True)
    shutil.copy2(root / name, out / name)
    listed = out / "packed" / "tables.txt"
    listed.write_text(f"{listed.read_text()}{name}\n")
    quiet("mimic_cxr", root, out)
    assert not (out / name).exists()


def test_a_scan_looks_at_each_file_once_and_follows_links_once(tmp_path, monkeypatch):
    root = tmp_path / "in"
    for i in range(40):
        (root / f"d{i % 4}").mkdir(parents=True, exist_ok=True)
        (root / f"d{i % 4}" / f"{i}.png").write_bytes(b"x")
    (tmp_path / "aside").mkdir()
    (tmp_path / "aside" / "a.png").write_bytes(b"x")
    (tmp_path / "aside" / "back").symlink_to(root)
    (root / "link").symlink_to(tmp_path / "aside")
    (root / "d0" / "loop").symlink_to(root)
    listed, real = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(str(path)) or real(path))
    looked = []
    monkeypatch.setattr(os, "stat", lambda path, **_: looked.append(path) or os.lstat(path))
    result = scan(root)
    monkeypatch.undo()
    assert len(result.images) == 41
    assert len(listed) == len(set(listed)) == 6
    assert not [path for path in looked if str(path).endswith(".png")]  # what scandir knows is not asked again


JOB = """
import sys, time
import diptych.cli.prepare as command
command._check = lambda *_: None  # it imports torch, which takes longer than all the rest
made = command.write_shard
def slow(*arguments):
    time.sleep({pause})
    return made(*arguments)
command.write_shard = slow
if __name__ == "__main__":
    command.main(sys.argv[1:])
"""


@pytest.fixture
def start(tmp_path):
    """Start the command in a process of its own."""
    running = []

    def begin(*arguments, pause=0.0):
        script = tmp_path / f"job{pause}.py"
        script.write_text(JOB.format(pause=pause))
        path = os.pathsep.join(str(ROOT / name) for name in ("src", "heads", "datamodules"))
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
        command = [sys.executable, str(script), *map(str, arguments)]
        running.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
        return running[-1]

    yield begin
    for process in running:
        process.kill()
        process.communicate()


def children(pid):
    return [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGTERM, 1), (signal.SIGKILL, 2)])
def test_an_interrupted_run_goes_on_without_rework(number, workers, tmp_path, start):
    root, out = tmp_path / "in", tmp_path / "out"
    root.mkdir()
    picture = np.random.default_rng(0).integers(0, 255, (1000, 1000), np.uint8)
    for i in range(16):
        Image.fromarray(picture + np.uint8(i)).save(root / f"{i:02d}.png", compress_level=1)
    command = ["tabular", "--root", root, "--out", out, "--size", "32", "--per-shard", "2", "--workers", str(workers)]
    job = start(*command, pause=0.4)
    for _ in range(12000):
        if list(out.glob("packed/*/*.index")):
            break
        time.sleep(0.005)
    assert job.poll() is None, job.communicate()
    at_work = children(job.pid)
    job.send_signal(number)
    assert job.wait(20) in (-signal.SIGKILL, 128 + signal.SIGTERM)
    for _ in range(400):  # workers end with the command
        if not any(Path(f"/proc/{pid}").exists() for pid in at_work):
            break
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in at_work)
    before = state_of(out, ".index") | state_of(out, ".bin")
    finished = [name for name in before if name.endswith(".index")]
    assert 1 <= len(finished) < 8
    with pytest.raises(DataError, match=rf"{8 - len(finished)} of 8 shards are missing"):
        Store(out)
    assert quiet("tabular", root, out, per_shard=2)[0]
    after = state_of(out)
    assert all(after[name] == before[name] for name in finished)
    assert all(after[name.replace(".index", ".bin")] == before[name.replace(".index", ".bin")] for name in finished)
    quiet("tabular", root, tmp_path / "twin", per_shard=2)
    assert equal(out, tmp_path / "twin")  # nothing half written is left


def test_jobs_share_the_work_and_make_the_same_bytes(release, tmp_path, start):
    root, whole = release("mimic_cxr")
    command = [
        "mimic_cxr",
        "--root",
        root,
        "--out",
        tmp_path / "out",
        "--size",
        "32",
        "--per-shard",
        "8",
        "--workers",
        "1",
    ]
    jobs = [start(*command, "--shard", f"{i}/2") for i in range(2)]
    for job in jobs:
        output = job.communicate(timeout=60)
        assert job.returncode == 0, output
    assert equal(tmp_path / "out", whole)


def test_one_job_alone_leaves_a_store_that_says_what_is_missing(release, tmp_path):
    root, whole = release("siim")
    out = tmp_path / "out"
    whole_store, output = quiet("siim", root, out, shard=(1, 2))
    assert not whole_store
    assert "shards of other jobs are missing" in output
    with pytest.raises(DataError, match=r"2 of 4 shards are missing \(0, 2\); run `diptych prepare siim ") as caught:
        module_of("siim", out, {})
    before = state_of(out, ".bin")
    main(shlex.split(str(caught.value).split("`")[1])[2:])
    assert {name: state for name, state in state_of(out, ".bin").items() if name in before} == before
    assert equal(out, whole)


def test_an_unchanged_store_is_left_as_it_is(store):
    out, root = store
    before = state_of(out)
    whole, output = quiet("siim", root, out)
    assert whole
    assert "unusable; 1 of" not in output
    assert state_of(out) == before


def test_another_option_makes_another_store_and_trains_from_it_when_it_is_whole(store):
    out, root = store
    before, key = state_of(out, ".bin"), Store(out).manifest.key
    assert not quiet("siim", root, out, size=24, shard=(0, 2))[0]
    assert Store(out).manifest.key == key  # still the whole one
    whole, output = quiet("siim", root, out, size=24)
    assert whole
    assert f"{key}: of other options" in output
    assert (Store(out).manifest.key != key, Store(out).manifest.size) == (True, 24)
    assert before.items() <= state_of(out, ".bin").items()
    quiet("siim", root, out)  # back, without making anything
    assert Store(out).manifest.key == key
    assert before.items() <= state_of(out, ".bin").items()


def test_other_files_make_another_store(store, tmp_path):
    out, root = store
    root = shutil.copytree(root, tmp_path / "in")
    image = next(root.rglob("*.dcm"))
    key = Store(out).manifest.key
    image.write_bytes(image.read_bytes() + b"\0\0")
    quiet("siim", root, out)
    assert Store(out).manifest.key != key


def test_tables_are_followed(store, tmp_path):
    out, root = store
    root = shutil.copytree(root, tmp_path / "in")
    (root / "more.csv").write_text("a\n1\n")
    (root / "images.tar.gz").write_bytes(b"large")
    output = quiet("siim", root, out)[1]
    assert "1 other files are not taken: images.tar.gz" in output
    assert (out / "more.csv").read_text() == "a\n1\n"
    (root / "more.csv").unlink()
    (root / "train-rle.csv").write_text((root / "train-rle.csv").read_text() + "\n")
    quiet("siim", root, out)
    assert not (out / "more.csv").exists()
    assert (out / "train-rle.csv").read_bytes() == (root / "train-rle.csv").read_bytes()


def test_links_are_followed_but_not_in_circles(tmp_path):
    (tmp_path / "far").mkdir()
    Image.fromarray(np.eye(9, dtype=np.uint8)).save(tmp_path / "far" / "a.png")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "near").symlink_to(tmp_path / "far")
    (tmp_path / "far" / "round").symlink_to(tmp_path / "in")
    assert [name for name, _ in scan(tmp_path / "in").images] == ["near/a.png"]


def test_a_file_that_cannot_be_got_at_stops_the_work(release, tmp_path, monkeypatch):
    """A full or broken disk must not be taken for a broken picture."""
    root = release("siim")[0]

    def fails(path):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "read_bytes", fails)
    with pytest.raises(DataError, match=r"cannot be got at .*Input/output error"):
        quiet("siim", root, tmp_path / "out")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rsna", "--out", "o"], r"--root is missing"),
        (["rsna", "--root", "r"], r"required: --out"),
        (["rsna", "--root", "r", "--out", "o", "--shard", "8/8"], r"--shard is '8/8'; write i/n"),
        (["rsna", "--root", "r", "--out", "o", "--shard", "one"], r"--shard is 'one'"),
        (["rsna", "--root", "r", "--out", "o", "--size", "4"], r"--size is 4; give at least 8"),
        (["rsna", "--root", "r", "--out", "o", "--workers", "0"], r"--workers is 0"),
        (["rsna", "--root", "r", "--out", "o", "--width", "4"], r"unrecognized arguments: --width 4"),
        (["rnsa", "--root", "r", "--out", "o"], r"unknown datamodule 'rnsa'; .*rsna"),
        (["phantom", "--root", "r", "--out", "o"], r"phantom reads no folder of images"),
        (["rsna", "--root", "r", "--out", "r/o"], r"lie in each other"),
        (["rsna", "--root", "r/s", "--out", "r"], r"lie in each other"),
        (["rsna", "--root", "r", "--out", "o"], r"stage_2_train_labels.csv .*kaggle.com"),
        (["tabular", "--root", "r", "--out", "o"], r"no image \(DICOM, PNG, JPEG, TIFF, WebP, BMP\) below it"),
        (["tabular", "--root", "r", "--out", "full"], r"holds other files, as note"),
        (["tabular", "--root", "none", "--out", "o"], r"none: no such folder"),
        (["tabular", "--out", "o", "--verify"], r"packed.json: damaged"),
    ],
)
def test_bad_options_are_named(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r" / "s").mkdir(parents=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note").touch()
    with pytest.raises((ConfigError, DataError), match=message) as caught:
        main(arguments)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "o").exists()
