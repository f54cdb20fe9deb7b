"""The contract of every datamodule in the catalogue, each on a miniature in its release's exact layout."""

import csv
import gzip
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import warm
from mini import FINDINGS, TEXT, write_pairs
from releases import RELEASES

from diptych.data.loading import Loading
from diptych.data.tables import Columns
from diptych.errors import DataError
from diptych.plugins import DATAMODULES, find, plugins
from diptych.testing import check_datamodule
from diptych.towers.text import ScratchText
from diptych_datamodules.phantoms.layouts.write import write_layout

COLUMNS = Columns(patient="patient", split="split", labels=FINDINGS)
NAMES = [plugin.name for plugin in plugins(DATAMODULES)]
MADE = {"phantom", "tabular", "label_matched", *RELEASES}
ONE_SPLIT = {"folder"}
"""Nothing is trained on these, so they have no splits to be told apart (test_folder.py)."""


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """Folder of each release's miniature, and the table of the others."""
    folder = tmp_path_factory.mktemp("contract")
    made = {"table": write_pairs(folder / "pairs")}

    def get(name):
        key = name if name in RELEASES else "table"
        if key not in made:
            made[key] = write_layout(name, 40, folder / name, seed=2, size=48)
        return made[key]

    return get


def make(name, root, **loading):
    """A datamodule of the catalogue on its miniature; a new one must be added here."""
    tokenizer = ScratchText(**TEXT).tokenizer
    options = {"image_size": 32, "batch_size": 4, "eval_batch_size": 3, "workers": 0, **loading}
    target, loading = find(DATAMODULES, name).load(), Loading(**options)
    if name == "phantom":
        return target(tokenizer, train=13, val=4, test=5, size=32, masks="lungs", loading=loading)
    if name == "tabular":
        # A picture will do as a mask: what is not 0 is true.
        return target(str(root), tokenizer, columns=replace(COLUMNS, mask="image"), loading=loading)
    if name == "label_matched":
        columns = {"image_columns": COLUMNS, "report_columns": COLUMNS}
        return target(str(root), str(root), FINDINGS, tokenizer, **columns, loading=loading)
    return target(str(root), tokenizer, **RELEASES[name], loading=loading)


def test_every_datamodule_of_this_package_is_here():
    own = {plugin.name for plugin in plugins(DATAMODULES) if plugin.path.startswith("diptych_datamodules.")}
    assert own == MADE | ONE_SPLIT


def ready(name, roots, **loading):
    module = make(name, roots(name), **loading)
    module.prepare_data()
    module.setup("fit" if "text" in module.holds else "test")
    return module


@pytest.mark.parametrize("name", sorted(MADE))
def test_every_datamodule_keeps_the_contract(name, roots):
    module = make(name, roots(name))
    check_datamodule(module)
    assert set(module.datasets) == {"train", "val", "test"}
    assert not module.leaky
    assert module.paper


@pytest.mark.parametrize("name", sorted(MADE))
def test_the_same_seed_gives_the_same_order_and_pictures(name, roots):
    def epoch(seed, workers=0):
        module = ready(name, roots, seed=seed, workers=workers)
        read = [next(iter(module.train_dataloader()))]
        return torch.cat([b.image for b in read]), [key for b in read for key in b.ids]

    images, ids = epoch(1)
    again, same = epoch(1, workers=2)
    assert torch.equal(images, again)
    assert ids == same
    other, _ = epoch(2)
    assert not torch.equal(images, other)


@pytest.mark.parametrize("name", sorted(MADE))
def test_workers_that_inherit_nothing_read_the_same(name, roots):
    """They are sent the data set, as spawned ones, and start sooner."""
    warm.ready()
    module = ready(name, roots, workers=1, start_method="forkserver")
    there, here = (next(iter(m.val_dataloader())) for m in (module, ready(name, roots)))
    assert torch.equal(there.image, here.image)
    assert there.ids == here.ids


def test_a_worker_that_a_fork_server_has_started_ends_when_the_main_process_asks(roots):
    warm.ready()
    batches = iter(ready("tabular", roots, workers=1, start_method="forkserver").val_dataloader())
    next(batches)
    (worker,) = batches._workers
    worker.terminate()
    worker.join(60)
    assert worker.exitcode == 0


@pytest.mark.parametrize("name", sorted(RELEASES))
def test_what_is_missing_is_named_with_where_to_get_it(name, roots, tmp_path):
    with pytest.raises(DataError, match=r"the folder does not exist|no image in it; unpack|no list") as caught:
        make(name, tmp_path / "none").setup("test")
    assert "\n" not in str(caught.value)
    root = roots(name)
    table = {
        "rsna": "stage_2_train_labels.csv",
        "siim": "train-rle.csv",
        "nih": "test_list.txt",
        "openi": "ecgen-radiology",
        "chestx_det10": "test.json",
        "object_cxr": "dev.csv",
        "covidx": "test.txt",
        "tbx11k": "lists",
        "ms_cxr": "MS_CXR_Local_Alignment_v1.1.0.json",
        "rexgradient": "metadata/valid_metadata_view_position.json",
        "padchest": "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv.gz",
        "vindr_cxr": "annotations/annotations_train.csv",
        "chexpert": "CheXpert-v1.0-small/train.csv",
        "mimic_cxr": "mimic-cxr-2.0.0-split.csv.gz",
    }
    copy = shutil.copytree(root, tmp_path / "copy")
    gone = copy / table[name]
    if gone.is_dir():
        shutil.rmtree(gone)
    else:
        gone.unlink()
    with pytest.raises(DataError, match=r"get |it belongs to") as caught:
        make(name, copy).setup("test")
    assert str(copy) in str(caught.value)


@pytest.mark.parametrize("name", sorted(RELEASES))
def test_missing_images_are_counted_and_shares_are_nested(name, roots, tmp_path):
    copy = shutil.copytree(roots(name), tmp_path / "copy", ignore=shutil.ignore_patterns("kaggle"))
    whole = make(name, copy)
    whole.setup("test")
    members = {split: list(dataset.ids) for split, dataset in whole.datasets.items()}
    before = whole.dropped.counts().get("missing image", 0)
    victim = whole.datasets["train"].records[0].path
    victim.unlink()
    less = make(name, copy)
    less.setup("test")
    assert less.dropped.counts()["missing image"] == before + 1
    assert set(members["train"]) - set(less.datasets["train"].ids) == {members["train"][0]}
    assert list(less.datasets["test"].ids) == members["test"]  # what is missing moves nothing
    previous: set[str] = set()
    for percent in (10, 50, 100):
        part = make(name, copy)
        part.percent = percent
        part.setup("test")
        chosen = set(part.datasets["train"].ids)
        assert previous <= chosen
        assert len(chosen) == pytest.approx(len(members["train"]) * percent / 100, abs=4)
        previous = chosen
        assert percent == 100 or f"{percent} % of training" in part.protocol
    part = make(name, copy)
    part.strict = True
    with pytest.raises(DataError, match=r"missing image.*strict: false"):
        part.setup("test")


@pytest.mark.parametrize(("name", "table"), [("rsna", "stage_2_train_labels.csv"), ("siim", "train-rle.csv")])
def test_tables_are_read_plain_gzipped_or_zipped_with_columns_in_any_order(name, table, roots, tmp_path):
    copy = shutil.copytree(roots(name), tmp_path / "copy")
    plain = make(name, copy)
    plain.setup("test")
    rows = list(csv.reader((copy / table).open()))
    (copy / table).unlink()
    with gzip.open(copy / f"{table}.gz", "wt", newline="") as file:
        csv.writer(file).writerows([row[::-1] for row in rows])
    packed = make(name, copy)
    packed.setup("test")
    assert packed.split_hash == plain.split_hash
    first, second = (m.datasets["test"].read(0, np.random.default_rng(0)) for m in (plain, packed))
    assert np.array_equal(first.mask, second.mask) if first.mask is not None else second.mask is None
    assert np.array_equal(first.labels, second.labels)


def test_an_inverted_copy_decodes_to_the_same_picture(roots, tmp_path):
    """A MONOCHROME1 file among the release's MONOCHROME2."""
    import pydicom
    from pydicom.uid import ExplicitVRLittleEndian

    copy = shutil.copytree(roots("siim"), tmp_path / "copy")
    module = make("siim", copy)
    module.setup("test")
    paths = [Path(record.path) for record in module.datasets["test"].records]
    chosen = next(i for i, path in enumerate(paths) if "2" in pydicom.dcmread(path).PhotometricInterpretation)
    before, path = module.native("test", chosen), paths[chosen]
    data = pydicom.dcmread(path)
    pixels = data.pixel_array
    data.PixelData, data.PhotometricInterpretation = (255 - pixels).tobytes(), "MONOCHROME1"
    data["PixelData"].VR, data.file_meta.TransferSyntaxUID = "OB", ExplicitVRLittleEndian
    data["PixelData"].is_undefined_length = False
    data.save_as(path)
    assert np.array_equal(module.native("test", chosen).image, before.image)
