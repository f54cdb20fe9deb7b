"""Images that cannot be used: left out and counted before the run, or the run stops by name."""

import json

import pytest
import yaml
from inprocess import diptych
from jobs import on_two
from mini import DDP, FINDINGS, TEXT, config, write_pairs

from diptych.data.loading import Loading
from diptych.data.tables import Columns
from diptych.data.unusable import unusable_images
from diptych.errors import DataError
from diptych.towers.text import ScratchText
from diptych_datamodules.tabular import Tabular

COLUMNS = Columns(patient="patient", split="split", labels=FINDINGS)


@pytest.fixture
def damaged(tmp_path):
    """24 images, of which the first of training is cut and the last of the test is no image."""
    table = write_pairs(tmp_path / "data")
    cut, flat = table.parent / "000.png", table.parent / "023.png"
    cut.write_bytes(cut.read_bytes()[:300])
    flat.write_bytes(b"hello")
    return table


def make(table, workers=0, check=True, **options):
    loading = Loading(image_size=32, batch_size=4, eval_batch_size=3, workers=workers, check_images=check)
    return Tabular(str(table), ScratchText(**TEXT).tokenizer, columns=COLUMNS, loading=loading, **options)


@pytest.mark.parametrize("workers", [0, 2])
def test_they_are_left_out_of_the_split_and_counted(damaged, workers):
    module = make(damaged, workers)
    module.prepare_data()
    module.setup("fit")
    assert module.dropped.counts() == {"truncated image": 1, "no image": 1}
    assert {split: len(dataset) for split, dataset in module.datasets.items()} == {"train": 15, "val": 4, "test": 3}
    assert "000.png" not in module.datasets["train"].ids
    read = [key for batch in module.test_dataloader() for key in batch.ids]
    assert read == ["020.png", "021.png", "022.png"]
    for batch in module.train_dataloader():
        for key, text in zip(batch.ids, batch.text.raw, strict=True):
            assert f"Case {int(key[:3])}." in text  # no report beside another's image


def test_the_first_one_stops_a_run_that_does_not_check(damaged):
    module = make(damaged, check=False)
    module.setup("fit")
    with pytest.raises(DataError, match=r"023\.png: not an image but a text file.*data\.loading\.check_images: true"):
        list(module.test_dataloader())


def test_one_that_breaks_after_the_check_stops_the_run(damaged):
    module = make(damaged)
    module.setup("fit")
    (damaged.parent / "021.png").write_bytes(b"broken later")
    with pytest.raises(DataError, match=r"021\.png: not an image but a text file.*remove the run's images\.json"):
        list(module.test_dataloader())


def test_strict_refuses_and_counts(damaged):
    with pytest.raises(DataError, match=r"1 truncated image, 1 no image; the first is '000.png'"):
        make(damaged, strict=True).setup("fit")


@pytest.mark.slow
def test_a_run_lists_them_in_its_folder_and_goes_on_with_the_same_samples(damaged, tmp_path):
    recipe = tmp_path / "run.yaml"
    recipe.write_text(config(damaged, epochs=1, check_images=True))
    run = tmp_path / "run"
    done = diptych("fit", "-c", str(recipe), "--run", str(run))
    assert done.returncode == 0, done.stderr
    printed = done.stdout + done.stderr
    assert "checking 24 images" in printed
    assert f"left out: 1 truncated image, 1 no image; every one is in {run / 'dropped.csv'}" in printed
    assert "truncated image,000.png," in (run / "dropped.csv").read_text()
    (damaged.parent / "001.png").write_bytes(b"broken later")
    done = diptych("test", "-c", str(recipe), "--run", str(run), "--ckpt_path", "best")
    assert done.returncode == 0, done.stderr
    assert "checking" not in done.stdout + done.stderr
    result = json.loads((run / "results.json").read_text())
    assert result["protocol"]["left_out"] == {"truncated image": 1, "no image": 1}
    assert result["metrics"]["test/retrieval/r@1"]["n"] == 3


def test_a_damaged_list_is_named(damaged, tmp_path):
    datasets = make(damaged, check=False).build()
    first = unusable_images(datasets, 0, "fork", tmp_path)
    assert len(first[0]) == 2
    assert unusable_images(datasets, 0, "fork", tmp_path) == first
    (tmp_path / "images.json").write_text("{")
    with pytest.raises(DataError, match=r"images.json: damaged \(JSONDecodeError\); remove it"):
        unusable_images(datasets, 0, "fork", tmp_path)


@pytest.mark.slow
def test_two_processes_leave_out_the_same(damaged, tmp_path, gloo2):
    recipe = tmp_path / "run.yaml"
    described = yaml.safe_load(config(damaged, epochs=1, check_images=True))
    described["trainer"]["strategy"] = DDP
    recipe.write_text(yaml.safe_dump(described))
    said = on_two(gloo2, "fit", "-c", str(recipe), "--run", str(tmp_path / "run"))
    assert said.count("checking 24 images") == 1
    on_two(gloo2, "test", "-c", str(recipe), "--run", str(tmp_path / "run"), "--ckpt_path", "best")
    assert json.loads((tmp_path / "run" / "results.json").read_text())["metrics"]["test/retrieval/r@1"]["n"] == 3
