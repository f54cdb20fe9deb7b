"""Other images of a study, from the table to the towers, the checkpoint and back."""

import csv
import json

import inprocess
import numpy as np
import pytest
import torch
import yaml
from mini import FINDINGS, IMAGE, config, write_pairs, write_recipe
from PIL import Image

import diptych
from diptych.data.augment import Augment
from diptych.data.loading import Loading
from diptych.data.tables import Columns
from diptych.errors import ConfigError, DataError
from diptych.radiographs.letterbox import letterbox
from diptych.towers.fused import FusedImage
from diptych_datamodules.label_matched import LabelMatched
from diptych_datamodules.tabular import Tabular

COLUMNS = {"patient": "patient", "split": "split", "labels": FINDINGS, "others": ["lateral", "prior"]}
LOADING = Loading(image_size=32, batch_size=4, eval_batch_size=4, workers=0)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Pictures with a lateral view of another size in two of three rows, and a prior one in every second row."""
    folder = tmp_path_factory.mktemp("studies")
    path, rng = write_pairs(folder), np.random.default_rng(5)
    rows = list(csv.DictReader(path.open()))
    for i, row in enumerate(rows):
        row["lateral"] = f"lateral{i}.png" if i % 3 else ""
        row["prior"] = f"prior{i}.png" if i % 2 else "NA"
        for name, size in ((row["lateral"], (40, 20)), (row["prior"], (32, 32))):
            if name.endswith("png"):
                Image.fromarray(rng.integers(1, 200, size).astype(np.uint8)).save(folder / name)
    write(path, rows)
    return path


def write(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def test_each_column_is_a_place_and_what_is_absent_is_black(table):
    module = Tabular(str(table), columns=Columns(**COLUMNS), loading=LOADING)
    module.setup("test")
    rows = {row["image"]: row for row in csv.DictReader(table.open())}
    batch = next(iter(module.test_dataloader()))
    assert batch.image.shape == (4, 3, 32, 32)
    absent = 0
    for images, key in zip(batch.image, batch.ids, strict=True):
        for given, name in zip(images, (key, rows[key]["lateral"], rows[key]["prior"]), strict=True):
            if name in {"", "NA"}:
                absent += 1
                assert not given.any()
            else:
                picture = np.asarray(Image.open(table.parent / name))
                low, high = picture.min(), picture.max()
                square = letterbox(picture, 32)[0]
                close = np.corrcoef(square.ravel(), given.numpy().ravel())[0, 1]
                assert close > 0.999, (name, low, high)  # the reader may stretch its greys
    assert 0 < absent < 8
    plain = Tabular(str(table), columns=Columns(**{**COLUMNS, "others": None}), loading=LOADING)
    plain.setup("test")
    assert torch.equal(next(iter(plain.test_dataloader())).image, batch.image[:, :1])


def test_all_images_of_a_study_are_flipped_together(table):
    flipped = Augment(rotate=0, zoom=0, shift=0, brightness=0, contrast=0, flip=1.0)
    columns = Columns(**{**COLUMNS, "text": []})
    modules = [
        Tabular(str(table), columns=columns, loading=Loading(image_size=32, batch_size=4, workers=0, augment=augment))
        for augment in (None, flipped)
    ]
    for module in modules:
        module.setup("test")
    one, other = (next(iter(module.train_dataloader())) for module in modules)
    assert one.ids == other.ids
    assert torch.equal(one.image.flip(-1), other.image)


def test_a_lost_image_of_a_study_leaves_its_row_out(table, tmp_path):
    rows = list(csv.DictReader(table.open()))
    rows[1]["prior"] = "gone.png"
    write(tmp_path / "table.csv", rows)
    module = Tabular(str(tmp_path / "table.csv"), root=str(table.parent), columns=Columns(**COLUMNS), loading=LOADING)
    module.setup("test")
    assert module.dropped.rows == [("missing other image", rows[1]["image"], str(table.parent / "gone.png"))]
    with pytest.raises(DataError, match="no column 'earlier'"):
        Tabular(str(table), columns=Columns(others="earlier"), loading=LOADING).setup("test")
    with pytest.raises(ConfigError, match=r"data.image_columns.others is \['lateral'\]: label_matched reads one image"):
        LabelMatched("a", "b", [], image_columns=Columns(others=["lateral"]))


def recipe(table, tower):
    content = yaml.safe_load(config(table, epochs=1))
    content["model"]["image"] = tower
    content["data"]["init_args"]["columns"] = COLUMNS
    return yaml.safe_dump(content)


PLAIN = {"class_path": "TimmImage", "init_args": IMAGE}


def test_a_fused_tower_is_trained_and_loaded_and_a_plain_one_is_refused(table, tmp_path):
    (tmp_path / "plain.yaml").write_text(recipe(table, PLAIN))
    done = inprocess.diptych("fit", "-c", f"{tmp_path}/plain.yaml", "--run", f"{tmp_path}/plain")
    assert done.returncode != 0
    assert (
        "the data give 3 images of a study (data.columns.others), and TimmImage takes 1; use FusedImage" in done.stderr
    )
    fused = {"class_path": "FusedImage", "init_args": {"image": PLAIN, "heads": 2}}
    (tmp_path / "fused.yaml").write_text(recipe(table, fused))
    done = inprocess.diptych("fit", "-c", f"{tmp_path}/fused.yaml", "--run", f"{tmp_path}/run")
    assert done.returncode == 0, done.stderr
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=False)
    moved = checkpoint["state_dict"]["encoder.image.to_pooled.out_proj.weight"]
    assert moved.any()  # it was 0 before the first step
    # The inner architecture comes from the checkpoint: nothing is fetched, whatever the recipe named.
    named = checkpoint["diptych"]["config"]["image"]["init_args"]["image"]["init_args"]
    named |= {"name": "resnet50", "pretrained": True, "model_args": {}}
    torch.save(checkpoint, tmp_path / "moved.ckpt")
    model = diptych.load(tmp_path / "moved.ckpt")
    tower = model.module.encoder.image
    assert isinstance(tower, FusedImage)
    assert torch.equal(tower.to_pooled.out_proj.weight.cpu(), moved)
    assert model.encode_image([str(table.parent / "000.png")]).pooled.shape[0] == 1


def test_fine_tuning_reads_all_images_of_a_study(table, tmp_path):
    fused = {"class_path": "FusedImage", "init_args": {"image": PLAIN, "fusion": "concatenate"}}
    options = {"table": str(table), "columns": COLUMNS, "loading": {"image_size": 32, "batch_size": 4, "workers": 0}}
    file = write_recipe(
        tmp_path / "finetune.yaml", ("FineTune", {"image": fused, "resamples": 0}), ("tabular", options), max_epochs=1
    )
    done = inprocess.diptych("fit", "-c", file, "--run", f"{tmp_path}/run")
    assert done.returncode == 0, done.stderr
    command = ["test", "-c", f"{tmp_path}/run/config.yaml", "--run", f"{tmp_path}/run", "--ckpt_path", "last"]
    done = inprocess.diptych(*command)
    assert done.returncode == 0, done.stderr
    tower = json.loads((tmp_path / "run" / "results.json").read_text())["protocol"]["tower"]
    assert (tower["fusion"], tower["others"]) == ("concatenate", 2)
