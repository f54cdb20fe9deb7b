"""``diptych predict``: the same values as in Python, whatever the batches, the processes and the moment of a kill."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import signal
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from mini import IMAGE, TEXT, config, write_pairs
from PIL import Image
from pyarrow import parquet

import diptych
from diptych import files
from diptych.cli.predict import main
from diptych.errors import ConfigError, DataError
from diptych.model.stored import build_module
from diptych.predict import parts, writers

CONFIG = {
    "image": {"class_path": "diptych.towers.image.TimmImage", "init_args": IMAGE},
    "text": {"class_path": "diptych.towers.text.ScratchText", "init_args": TEXT},
    "head": "local_pooling",
}
REPORTS = ["There is no nodule.", "There is an effusion.", "  There is no nodule.", "", "Both."]
FORK = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A run of an untrained model with its recipe, a folder of pictures with one that is cut off, and reports."""
    root = tmp_path_factory.mktemp("predict")
    table = write_pairs(root / "pairs")
    (root / "run" / "checkpoints").mkdir(parents=True)
    (root / "run" / "config.yaml").write_text(config(table))
    torch.manual_seed(0)
    module = build_module(CONFIG)
    module.tokenizer.learn([text for text in REPORTS if text])
    state = {"state_dict": module.state_dict(), "epoch": 0}
    stored = {"config": CONFIG, "head": "local_pooling", "image_size": 32}
    torch.save({**state, "diptych": stored}, root / "run" / "checkpoints" / "best.ckpt")
    (root / "reports.txt").write_text("\n".join(REPORTS))
    folder = root / "pictures"
    (folder / "b" / "c").mkdir(parents=True)
    for i, name in enumerate(["z.png", "b/a.png", "b/c/no-ending", "a.png"]):
        Image.open(root / "pairs" / f"{i:03d}.png").save(folder / name, format="PNG")
    (folder / "b" / "cut.png").write_bytes((folder / "a.png").read_bytes()[:200])
    Image.new("L", (9, 9), 7).save(folder / "flat.png")
    (folder / "notes.txt").write_text("no picture")
    return root


@pytest.fixture(scope="module", autouse=True)
def _one():
    """Forked processes must not wait for threads that they do not have, and another number of threads rounds otherwise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run(world, out, *options, recipe=True):
    main([*(["-c", str(world / "run" / "config.yaml")] if recipe else []), "--out", str(out), *options])


def of_folder(world, *options):
    return ["--run", str(world / "run"), "--data", "diptych_datamodules.folder.PictureFolder", *options]


def rows_of(path):
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def expected(world):
    """Ids and vectors of all rows of the table, in its order, as ``diptych.load`` gives them."""
    rows = rows_of(world / "pairs" / "table.csv")
    pictures = [world / "pairs" / row["image"] for row in rows]
    return [row["image"] for row in rows], diptych.load(world / "run").encode_image(pictures)


@pytest.mark.parametrize("size", ["1", "5", "64"])
def test_vectors_are_those_of_the_loaded_model_whatever_the_batch(world, tmp_path, expected, size):
    ids, embedding = expected
    run(world, tmp_path / "e.npy", "--split", "all", "--batch-size", size, "--per-part", "6")
    found = np.load(tmp_path / "e.npy")
    np.testing.assert_allclose(found, embedding.pooled.numpy(), atol=1e-6, rtol=0)
    listed = rows_of(tmp_path / "e.npy.ids.csv")
    assert [row["id"] for row in listed] == ids
    assert [row["split"] for row in listed] == ["train"] * 16 + ["val"] * 4 + ["test"] * 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e.npy", "e.npy.ids.csv", "e.npy.json"]


def test_every_kind_of_file_holds_the_same(world, tmp_path, expected):
    ids, embedding = expected
    what = (
        "--prompts",
        "phantom",
        "--reports",
        str(world / "reports.txt"),
        "--k",
        "2",
        "--what",
        "pooled",
        "zero_shot",
        "nearest",
    )
    run(world, tmp_path / "e.csv", *what)
    run(world, tmp_path / "e.parquet", *what, "regions")
    rows, table = rows_of(tmp_path / "e.csv"), parquet.read_table(tmp_path / "e.parquet").to_pylist()
    model, pictures = diptych.load(world / "run"), [world / "pairs" / key for key in ids[20:]]
    probabilities = model.zero_shot(pictures, prompts="phantom")
    assert [row["id"] for row in rows] == [row["id"] for row in table] == ids[20:]
    for i, (row, other) in enumerate(zip(rows, table, strict=True)):
        vector = np.array([float(row[f"pooled/{j}"]) for j in range(embedding.pooled.shape[1])], np.float32)
        np.testing.assert_array_equal(vector, np.float32(other["pooled"]))
        np.testing.assert_allclose(vector, embedding.pooled[20 + i], atol=1e-6)
        np.testing.assert_allclose(other["regions"], embedding.tokens[20 + i], atol=1e-5)
        for name in probabilities.findings:
            assert float(row[f"zero_shot/{name}"]) == other[f"zero_shot/{name}"]
            assert other[f"zero_shot/{name}"] == pytest.approx(probabilities[name][i], abs=1e-6)
        best = model.retrieve(pictures[i], [REPORTS[0], REPORTS[1], REPORTS[4]], k=2)
        assert [row["nearest/1"], row["nearest/2"]] == [one.report for one in best]
        assert other["nearest/1"] == best[0].report
        assert other["nearest_score/2"] == pytest.approx(best[1].score, abs=1e-5)
    said = json.loads((tmp_path / "e.csv.json").read_text())
    assert said["probability"].endswith("; uncalibrated")
    assert (said["images"], said["reports"], said["left_out"]) == (4, 3, {})


# -- kills and processes


def in_a_process(arguments, kill_at=0, rank=None):
    """The command in a forked process. It is killed in the midst of the file that it writes as number ``kill_at``."""

    def work():
        written, whole = 0, files.replacing

        @contextmanager
        def deadly(path, *options):
            nonlocal written
            written += 1
            with whole(path, *options) as file:
                if written == kill_at:
                    file.write(b"half of it")
                    file.flush()
                    os.kill(os.getpid(), signal.SIGKILL)
                yield file

        for module in (files, parts, writers):
            module.replacing = deadly
        if rank is not None:
            os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2"}
        main(arguments)

    process = FORK.Process(target=work)
    process.start()
    return process


OPTIONS = (
    "--split",
    "all",
    "--batch-size",
    "2",
    "--per-part",
    "4",
    "--prompts",
    "phantom",
    "--what",
    "pooled",
    "zero_shot",
)
"""Of six parts."""


@pytest.fixture(scope="module")
def whole(world):
    """The files of a command that nothing interrupts."""
    made = {}
    for kind in ("csv", "parquet"):
        run(world, world / f"whole.{kind}", *OPTIONS)
        made[kind] = (world / f"whole.{kind}").read_bytes()
    return made


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_command_that_is_killed_again_and_again_ends_with_the_same_bytes(world, tmp_path, whole, kind):
    out = tmp_path / f"e.{kind}"
    arguments = ["-c", str(world / "run" / "config.yaml"), "--out", str(out), *OPTIONS]
    seen = []
    # In the plan; in the first part; in the third; in the last; in the file itself; in its record.
    for kill_at, there in ((1, 0), (2, 0), (3, 2), (4, 5), (2, 6), (2, 6)):
        process = in_a_process(arguments, kill_at)
        process.join(60)
        assert process.exitcode == -signal.SIGKILL, kill_at
        assert len(list(tmp_path.glob("*.parts/*.npz"))) == there
        seen.append(out.exists())
    assert seen == [False] * 5 + [True]  # whole, though its record was cut off
    final = in_a_process(arguments)
    final.join(60)
    assert final.exitcode == 0
    assert out.read_bytes() == whole[kind]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"e.{kind}", f"e.{kind}.json"]


def test_two_processes_give_the_bytes_of_one(world, tmp_path, whole):
    arguments = ["-c", str(world / "run" / "config.yaml"), "--out", str(tmp_path / "e.csv"), *OPTIONS]
    both = [in_a_process(arguments, rank=rank) for rank in (0, 1)]
    for process in both:
        process.join(60)
        assert process.exitcode == 0
    assert (tmp_path / "e.csv").read_bytes() == whole["csv"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e.csv", "e.csv.json"]


def test_one_share_leaves_the_rest_to_the_other(world, tmp_path, whole, capsys):
    out = tmp_path / "e.csv"
    run(world, out, *OPTIONS, "--share", "1/2")
    assert not out.exists()
    assert "3 parts of other processes are missing" in capsys.readouterr().out
    run(world, out, *OPTIONS, "--share", "0/2")
    assert out.read_bytes() == whole["csv"]


# -- a folder of pictures


def test_a_folder_of_pictures_is_data_and_what_cannot_be_read_is_listed(world, tmp_path, capsys):
    options = of_folder(world, "--data.folder", str(world / "pictures"), "--data.loading.workers", "0")
    run(world, tmp_path / "e.csv", *options, "--batch-size", "2", recipe=False)
    rows = rows_of(tmp_path / "e.csv")
    assert [row["id"] for row in rows] == ["a.png", "b/a.png", "b/c/no-ending", "z.png"]
    vectors = diptych.load(world / "run").encode_image([world / "pictures" / row["id"] for row in rows]).pooled
    for row, vector in zip(rows, vectors, strict=True):
        found = [float(row[f"pooled/{j}"]) for j in range(len(vector))]
        np.testing.assert_allclose(found, vector, atol=1e-6)
    dropped = {row["id"]: row for row in rows_of(tmp_path / "e.csv.dropped.csv")}
    assert {key: row["rule"] for key, row in dropped.items()} == {
        "b/cut.png": "truncated image",
        "flat.png": "flat image",
    }
    assert "check_images" not in dropped["flat.png"]["detail"]
    assert "left out: 1 truncated image, 1 flat image" in capsys.readouterr().out
    private = [*options, "--data.loading.private", "true"]
    run(world, tmp_path / "p.csv", *private, recipe=False)
    assert "cut.png" not in (tmp_path / "p.csv.dropped.csv").read_text()
    assert [row["id"] for row in rows_of(tmp_path / "p.csv")] == ["0", "1", "2", "5"]


def test_a_folder_without_a_usable_picture_says_why(world, tmp_path):
    (tmp_path / "bad").mkdir()
    Image.new("L", (9, 9), 7).save(tmp_path / "bad" / "flat.png")
    options = of_folder(world, "--data.folder", str(tmp_path / "bad"), "--data.loading.workers", "0")
    with pytest.raises(DataError, match=r"no image could be used; .*dropped\.csv says why"):
        run(world, tmp_path / "e.csv", *options, recipe=False)
    assert rows_of(tmp_path / "e.csv.dropped.csv")[0]["rule"] == "flat image"


# -- refusals


def test_a_file_of_another_prediction_is_not_replaced(world, tmp_path, capsys):
    out = tmp_path / "e.csv"
    run(world, out)
    before = out.read_bytes()
    capsys.readouterr()
    run(world, out)
    assert "is whole already" in capsys.readouterr().out
    with pytest.raises(
        ConfigError, match=r"of another prediction \(other: batch_size.*\); give another --out, or --overwrite"
    ):
        run(world, out, "--batch-size", "2")
    assert out.read_bytes() == before
    with pytest.raises(ConfigError, match="would remove each other's parts"):
        run(world, out, "--batch-size", "2", "--overwrite", "--share", "0/2")
    run(world, out, "--batch-size", "2", "--overwrite")
    assert json.loads((tmp_path / "e.csv.json").read_text())["made_with"]["batch_size"] == 2
    (tmp_path / "e.csv.json").unlink()
    with pytest.raises(ConfigError, match="no prediction is known to have made it"):
        run(world, out)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "x.txt"], "ends in '.txt'; end it in one of .csv, .npy, .parquet"),
        (["--what", "regions"], "csv holds no regions"),
        (["--what", "nearest"], "--what nearest needs --reports"),
        (["--what", "zero_shot"], "--what zero_shot needs --prompts"),
        (["--prompts", "rsna"], "--prompts is for --what zero_shot"),
        (["--prompts", "rsn", "--what", "zero_shot"], "no prompt set is called 'rsn'"),
        (["--prompts", "rsna", "--what", "zero_shot", "--protocol", "gloria"], "gives no probability"),
        (["--protocol", "x"], "--protocol is 'x'; known are diptych"),
        (["--split", "none"], "invalid choice: 'none'"),
        (["--batch-size", "0"], "--batch-size is 0"),
        (["--share", "2/2"], "--share is '2/2'"),
        (["--batchsize", "2"], "unknown option '--batchsize'"),
        (["--data.tabel", "x"], "nearest: .*table"),
        (["--ckpt", "none.ckpt"], "no such checkpoint"),
        (["--device", "cuda:77"], "device 'cuda:77' cannot be used here"),
        (["-c", "none.yaml"], "-c none.yaml: cannot be read"),
        (["--out", "x.npy", "--what", "pooled", "regions"], "npy holds one array"),
    ],
)
def test_a_wrong_option_is_named_with_what_is_right(world, tmp_path, options, message):
    with pytest.raises(ConfigError, match=message) as caught:
        run(world, tmp_path / "e.csv", *options)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_model_and_images_must_be_named(world, tmp_path):
    for words, message in (
        (["--out", "x.csv"], "which images"),
        (["--folder", str(world / "pictures"), "--out", "x.csv"], "which model"),
        (
            ["--folder", "a", "--data", "nih", "--run", str(world / "run"), "--out", "x.csv"],
            "--folder is for --data folder",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            main(words)
