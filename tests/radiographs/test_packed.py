"""A packed data set gives what its folder gives; stores that are incomplete, damaged or of other options say so."""

import csv
import filecmp
import os
import pickle
import shlex
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from mini import ROOT, TEXT
from PIL import Image
from releases import RELEASES

from diptych.cli.prepare import main, prepare, scan
from diptych.data.loading import Loading
from diptych.data.tables import Columns
from diptych.errors import ConfigError, DataError
from diptych.plugins import DATAMODULES, find
from diptych.radiographs.packed import FORMAT, PICTURES, TEXTS, Packed, Store
from diptych.towers.text import ScratchText
from diptych_datamodules.phantoms.layouts.write import write_layout
from diptych_datamodules.tabular import Tabular

OPTIONS = [
    *RELEASES.items(),
    ("rsna", {"labels": "classes", "split": "rsna/mgca-det"}),
    ("siim", {"percent": 40}),
    ("openi", {"section": "impression"}),
    ("chexpert", {"split": "chexpert/official", "frontal": False, "images": "CheXpert-v1.0-small"}),
    ("chexpert", {"split": "chexpert/test500"}),
    ("mimic_cxr", {"views": "all", "per_study": "one", "sentences": 1}),
    ("mimic_cxr", {"section": "none", "views": "lateral", "labels": "negbio"}),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folder of a release's miniature, and the same packed at 32."""
    folder, roots = tmp_path_factory.mktemp("packed"), {}

    def get(name):
        if name not in roots:
            root = write_layout(name, 24, folder / name, seed=2, size=48)
            prepare(name, root, folder / f"{name}-packed", size=32, per_shard=8, say=lambda line: None)
            roots[name] = (root, folder / f"{name}-packed")
        return roots[name]

    return get


@pytest.fixture
def store(made, tmp_path):
    """A copy that may be spoilt, and its original."""
    root, out = made("siim")
    return shutil.copytree(out, tmp_path / "out"), root


def module_of(name, root, options, **loading):
    loading = Loading(**{"image_size": 32, "batch_size": 3, "eval_batch_size": 3, "workers": 0, **loading})
    options = {**options, **({"images": str(root / options["images"])} if "images" in options else {})}
    module = find(DATAMODULES, name).load()(str(root), ScratchText(**TEXT).tokenizer, **options, loading=loading)
    module.prepare_data()
    module.setup("fit" if "text" in module.holds and options.get("section") != "none" else "test")
    return module


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one.nan_to_num(7), other.nan_to_num(7))
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if hasattr(one, "__dataclass_fields__"):
        return all(same(getattr(one, field.name), getattr(other, field.name)) for field in fields(one))
    return one == other


def batches(module):
    loaders = [module.train_dataloader()] if len(module.datasets["train"]) >= 3 else []
    loaders += [module.evaluation_loader(split) for split in module.datasets if split != "train"]
    return [batch for loader in loaders for batch in loader]


def quiet(name, root, out, **options):
    lines = []
    whole = prepare(name, root, out, **{"size": 32, "per_shard": 8, **options}, say=lines.append)
    return whole, "\n".join(lines)


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=[f"{i}-{name}" for i, (name, _) in enumerate(OPTIONS)])
def test_batches_equal_those_of_the_originals(name, options, made):
    root, out = made(name)
    original, packed = (module_of(name, place, options) for place in (root, out))
    assert packed.split_hash == original.split_hash
    assert packed.dropped.counts() == original.dropped.counts()
    assert packed.protocol == original.protocol
    pairs = list(zip(batches(original), batches(packed), strict=True))
    assert len(pairs) >= 2
    assert all(same(one, other) for one, other in pairs)
    assert isinstance(packed.datasets["train"].records[0].path, Packed)
    assert not any(path.suffix in {".png", ".jpg", ".dcm"} for path in out.rglob("*"))


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
def test_reports_that_are_small_files_are_packed_into_one(name, made, tmp_path, monkeypatch):
    root, options = unpacked(name, made(name)[0], tmp_path / "in")
    out, texts = tmp_path / "out", tmp_path / "out" / TEXTS
    _, said = quiet(name, root, out)
    number = len([*root.rglob("s*.txt"), *root.rglob("*.xml")])
    assert f"{number} reports in {texts}" in said
    assert not [*out.rglob("*.txt"), *out.rglob("*.xml")][1:]  # but the list of tables
    given = [{key: str(place / folder) for key, folder in options.items()} for place in (root, out)]
    original = module_of(name, root, given[0])
    opened = []
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *_, **__: opened.append(1))
    packed = module_of(name, out, given[1])
    assert not opened  # members are streamed
    assert [list(packed.datasets[split].texts()) for split in packed.datasets] == [
        list(original.datasets[split].texts()) for split in original.datasets
    ]
    assert packed.split_hash == original.split_hash
    if name == "mimic_cxr":  # looked for in the root too
        assert module_of(name, out, {}).split_hash == original.split_hash


def test_packed_reports_are_made_again_where_one_changed_and_only_then(made, tmp_path):
    root, _ = unpacked("mimic_cxr", made("mimic_cxr")[0], tmp_path / "in")
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


def test_copies_of_an_older_version_are_taken_away(made, tmp_path):
    root, _ = unpacked("mimic_cxr", made("mimic_cxr")[0], tmp_path / "in")
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
    found = scan(root)
    monkeypatch.undo()
    assert len(found.images) == 41
    assert len(listed) == len(set(listed)) == 6
    assert not [path for path in looked if str(path).endswith(".png")]  # what scandir knows is not asked again


def test_a_smaller_input_is_taken_from_a_larger_store(made):
    root, out = made("rsna")
    one, other = (module_of("rsna", place, {"masks": True}, image_size=16) for place in (root, out))
    for mine, its in zip(batches(one), batches(other), strict=True):
        assert (mine.image.float() - its.image.float()).abs().mean() < 4
        assert all(torch.allclose(a, b, atol=1e-3) for a, b in zip(mine.boxes, its.boxes, strict=True))
        assert (mine.masks != its.masks).float().mean() < 0.03


def test_small_pictures_are_not_enlarged_and_long_ones_keep_their_sides(tmp_path):
    (tmp_path / "in").mkdir()
    rng = np.random.default_rng(0)
    shapes = {"a.png": (20, 30), "b.png": (100, 40), "c.png": (333, 7)}
    for name, shape in shapes.items():
        Image.fromarray(rng.integers(0, 255, shape, np.uint8)).save(tmp_path / "in" / name)
    quiet("tabular", tmp_path / "in", tmp_path / "out")
    opened = Store(tmp_path / "out")
    read = [opened.read(i) for i in range(3)]
    assert [image.shape for image, _ in read] == [(20, 30), (32, 13), (32, 1)]
    assert [native for _, native in read] == list(shapes.values())
    assert np.array_equal(read[0][0], np.asarray(Image.open(tmp_path / "in" / "a.png")))


def test_a_table_of_ones_own_reads_the_store(tmp_path, made):
    root, out = made("nih")
    images = sorted(root.rglob("*.png"))
    with (tmp_path / "mine.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "text"])
        writer.writerows([path.relative_to(root), f"Report {i}."] for i, path in enumerate(images))
        writer.writerow(["images_001/none.png", "Nothing."])
    loading = Loading(image_size=32, batch_size=3, workers=0)
    one, other = (
        Tabular(str(tmp_path / "mine.csv"), root=str(place), columns=Columns(), loading=loading)
        for place in (root, out)
    )
    for module in (one, other):
        module.setup("fit")
        assert module.dropped.counts() == {"missing image": 1}
    assert all(same(a, b) for a, b in zip(batches(one), batches(other), strict=True))


@pytest.mark.slow
def test_spawned_workers_read_the_same(made):
    loaders = [
        module_of("mimic_cxr", made("mimic_cxr")[1], {}, **more).train_dataloader()
        for more in ({}, {"workers": 1, "start_method": "spawn"})
    ]
    assert all(same(one, other) for one, other in zip(*loaders, strict=True))


def test_what_a_worker_gets_is_small_and_reads_the_same(made):
    module = module_of("rsna", made("rsna")[1], {"masks": True})
    sent = pickle.dumps(module.datasets["train"])
    there = pickle.loads(sent)
    assert b".dcm" not in sent  # no names
    rng = np.random.default_rng(0)
    for i in range(len(there)):
        one, other = module.datasets["train"].read(i, rng), there.read(i, rng)
        assert np.array_equal(one.image, other.image)
        assert np.array_equal(one.boxes, other.boxes)
        assert str(there.records[i].path) == str(module.datasets["train"].records[i].path)


# --- making


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


def files_of(folder):
    return {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}


def state_of(folder, suffix=""):
    return {
        name: (path.stat().st_ino, path.stat().st_mtime_ns)
        for name, path in files_of(folder).items()
        if name.endswith(suffix)
    }


def equal(one, other):
    names = sorted(files_of(one))
    return names == sorted(files_of(other)) and filecmp.cmpfiles(one, other, names, shallow=False)[1:] == ([], [])


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
    given = ["tabular", "--root", root, "--out", out, "--size", "32", "--per-shard", "2", "--workers", str(workers)]
    job = start(*given, pause=0.4)
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


def test_jobs_share_the_work_and_make_the_same_bytes(made, tmp_path, start):
    root, whole = made("mimic_cxr")
    given = [
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
    jobs = [start(*given, "--shard", f"{i}/2") for i in range(2)]
    for job in jobs:
        said = job.communicate(timeout=60)
        assert job.returncode == 0, said
    assert equal(tmp_path / "out", whole)


def test_one_job_alone_leaves_a_store_that_says_what_is_missing(made, tmp_path):
    root, whole = made("siim")
    out = tmp_path / "out"
    done, said = quiet("siim", root, out, shard=(1, 2))
    assert not done
    assert "shards of other jobs are missing" in said
    with pytest.raises(DataError, match=r"2 of 4 shards are missing \(0, 2\); run `diptych prepare siim ") as caught:
        module_of("siim", out, {})
    before = state_of(out, ".bin")
    main(shlex.split(str(caught.value).split("`")[1])[2:])
    assert {name: state for name, state in state_of(out, ".bin").items() if name in before} == before
    assert equal(out, whole)


def test_an_unchanged_store_is_left_as_it_is(store):
    out, root = store
    before = state_of(out)
    whole, said = quiet("siim", root, out)
    assert whole
    assert "unusable; 1 of" not in said
    assert state_of(out) == before


def test_another_option_makes_another_store_and_trains_from_it_when_it_is_whole(store):
    out, root = store
    before, key = state_of(out, ".bin"), Store(out).manifest.key
    assert not quiet("siim", root, out, size=24, shard=(0, 2))[0]
    assert Store(out).manifest.key == key  # still the whole one
    whole, said = quiet("siim", root, out, size=24)
    assert whole
    assert f"{key}: of other options" in said
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
    said = quiet("siim", root, out)[1]
    assert "1 other files are not taken: images.tar.gz" in said
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


# --- what cannot be used


@pytest.mark.parametrize("name", ["siim", "mimic_cxr"])
def test_unusable_images_are_listed_and_counted_as_when_they_are_checked(name, made, tmp_path):
    root = shutil.copytree(made(name)[0], tmp_path / "in")
    images = sorted(path for path in root.rglob("*") if path.suffix in {".jpg", ".dcm"})
    whole = module_of(name, root, {})
    used = [record.path for record in whole.datasets["train"].records]
    used[0].write_bytes(used[0].read_bytes()[: used[0].stat().st_size // 2])
    used[1].write_bytes(b"nothing of the kind")
    said = quiet(name, root, tmp_path / "out")[1]
    assert f"; {len(images) - 2} images, " in said
    checked = module_of(name, root, {}, check_images=True)
    packed = module_of(name, tmp_path / "out", {})
    assert packed.dropped.counts() == checked.dropped.counts() != whole.dropped.counts()
    rows = [(rule, key, why.replace(str(tmp_path / "out"), str(root))) for rule, key, why in packed.dropped.rows]
    assert sorted(rows) == sorted(checked.dropped.rows)
    assert packed.split_hash == checked.split_hash
    listed = list(csv.DictReader(next(tmp_path.glob("out/packed/*/unusable.csv")).open()))
    assert {row["file"] for row in listed} == {str(path.relative_to(root)) for path in used[:2]}
    with pytest.raises(DataError, match=r"image.*strict: false"):
        module_of(name, tmp_path / "out", {"strict": True})


def test_a_file_that_cannot_be_got_at_stops_the_work(made, tmp_path, monkeypatch):
    """A full or broken disk must not be taken for a broken picture."""
    root = made("siim")[0]

    def fails(path):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "read_bytes", fails)
    with pytest.raises(DataError, match=r"cannot be got at .*Input/output error"):
        quiet("siim", root, tmp_path / "out")


def test_a_flipped_byte_is_named_and_made_anew(store, made):
    out, root = store
    shard = sorted(out.glob("packed/*/*.bin"))[2]
    raw = bytearray(shard.read_bytes())
    raw[100] ^= 1
    shard.write_bytes(raw)
    opened = Store(out)
    assert opened.read(15)[0].size
    with pytest.raises(DataError, match=r"shard 00002 is damaged.*checksum of '.*\.dcm'.*--verify`"):
        opened.read(16)
    with pytest.raises(DataError, match=r"checksum"):
        pickle.loads(pickle.dumps(opened)).read(16)
    with pytest.raises(DataError, match=r"1 of 4 shards.*00002 is damaged"):
        main(["siim", "--out", str(out), "--verify"])
    main(["siim", "--root", str(root), "--out", str(out), "--size", "32", "--per-shard", "8", "--verify"])
    main(["siim", "--out", str(out), "--verify"])
    assert equal(out, made("siim")[1])


def test_cut_and_mixed_up_shards_are_named_at_the_start(store):
    out, _ = store
    shards, indices = (sorted(out.glob(f"packed/*/*.{kind}")) for kind in ("bin", "index"))
    whole = shards[1].read_bytes(), indices[1].read_bytes()
    for spoilt, said in [
        ((whole[0][:-1], whole[1]), r"00001 is damaged .*bytes of pixels"),
        ((whole[0], whole[1][:-9]), r"00001 is damaged .*checksum"),
        ((whole[0], whole[1].replace(b"dicom", b"dikom", 1)), r"00001 is damaged .*checksum"),
        ((whole[0], indices[2].read_bytes()), r"00001 is damaged .*of another store"),
    ]:
        shards[1].write_bytes(spoilt[0])
        indices[1].write_bytes(spoilt[1])
        with pytest.raises(DataError, match=said) as caught:
            Store(out)
        assert "\n" not in str(caught.value)


def test_another_version_says_so(store):
    out, _ = store
    text = (out / "packed.json").read_text()
    (out / "packed.json").write_text(text.replace(f'"pictures": {PICTURES}', '"pictures": 0'))
    with pytest.raises(
        DataError,
        match=rf"pictures of version 0, and this diptych reads {FORMAT} and {PICTURES}; run `diptych prepare`",
    ):
        Store(out)
    (out / "packed.json").write_text(text[:40])
    with pytest.raises(DataError, match=r"damaged \(JSONDecodeError\); run `diptych prepare` again"):
        Store(out)


def test_a_larger_input_than_the_store_is_refused(store):
    with pytest.raises(ConfigError, match=r"image_size is 64, and .* is packed at 32 pixels.*--size 64"):
        module_of("siim", store[0], {}, image_size=64)


@pytest.mark.parametrize(
    ("arguments", "said"),
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
def test_bad_options_are_named(arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r" / "s").mkdir(parents=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note").touch()
    with pytest.raises((ConfigError, DataError), match=said) as caught:
        main(arguments)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "o").exists()
