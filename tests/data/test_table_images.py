"""Which file a path in a table means: spellings, lists of views, masks, a wrong root."""

import unicodedata

import numpy as np
import pytest
from PIL import Image
from user_tables import SMALL, draw, load, objects, rows_of, table

from diptych.cli.prepare import prepare
from diptych.errors import DataError
from diptych.radiographs.packed import Store
from diptych_datamodules.tabular import Tabular


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("written", "file"),
    [
        ("img/7", "img/7.png"), ("img/7.png", "img/7.PNG"), ("img/7.PNG", "img/7.png"), ("IMG/7.png", "img/7.png"),
        ("img\\7.png", "img/7.png"), ("img\\sub\\7", "img/sub/7.png"), ("./img//7.png", "img/7.png"),
        (unicodedata.normalize("NFD", "Schöner Überblick/7.png"), unicodedata.normalize("NFC", "Schöner Überblick/7.png")),
        (unicodedata.normalize("NFC", "Schöner Überblick/7"), unicodedata.normalize("NFD", "Schöner Überblick/7.png")),
        ("img/a.b", "img/a.b.png"),
    ],
)  # fmt: skip
def test_a_path_that_is_not_quite_a_file_is_found_and_reported(tmp_path, written, file, packed, log):
    root = tmp_path / "data"
    draw(root / file)
    draw(root / "other.png")
    rows = [["image", "text"], [written, "Clear."], ["other.png", "Clear."], ["gone", "Clear."]]
    path = table(root, rows)
    if packed:
        prepare("tabular", root, tmp_path / "out", size=32, say=lambda line: None)
        root = tmp_path / "out"
    module = load(path, root=str(root))
    assert sorted(rows_of(module)) == sorted([written, "other.png"])
    assert str(rows_of(module)[written].path) == str(root / file)
    assert module.dropped.rows == [("missing image", "gone", str(root / "gone"))]
    if not written.startswith("./"):
        assert f"1 image paths are not quite the names of files, as '{written}' for '{file}'" in log()


def test_what_may_be_two_files_is_missing_and_they_are_named(folder):
    draw(folder / "img" / "a.png")
    draw(folder / "img" / "a.PNG")
    module = load(table(folder, [["image", "text"], ["img/a", "Clear."], ["img/0.png", "Clear."]]))
    ((rule, key, place),) = module.dropped.rows
    assert (rule, key) == ("missing image", "img/a")
    assert "it may be" in place
    assert "a.PNG or" in place


def test_one_image_in_two_spellings_is_refused(folder):
    rows = [["image", "text"], ["img/0", "One."], ["img/0.png", "Two."]]
    with pytest.raises(DataError, match=r"'img/0' and 'img/0.png' are one image, img/0.png; keep one row"):
        load(table(folder, rows))


def test_each_view_of_a_list_is_a_sample_of_one_patient(folder):
    rows = [["image", "text", "id"], ["\"['img/0.png', 'img/1.png']\"", "\"['One.', 'Two.']\"", "s1"]]
    rows += [['"[""img/2"", ""img/gone.png""]"', "Three.", "s2"], ["img/4.png", "Four.", "s3"]]
    module = load(table(folder, rows), id="id", patient="id")
    by_id = rows_of(module)
    assert {key: (row.path.name, row.text, row.patient) for key, row in by_id.items()} == {
        "s1": ("0.png", "One.\n\nTwo.", "s1"),
        "s1:img/1.png": ("1.png", "One.\n\nTwo.", "s1"),
        "s2": ("2.png", "Three.", "s2"),
        "s3": ("4.png", "Four.", "s3"),
    }
    assert module.dropped.counts() == {"missing image": 1}


def test_views_have_their_masks(folder):
    for i in range(2):
        Image.fromarray(np.eye(32, dtype=bool)).save(folder / f"m{i}.png")
    record = {"image": ["img/0.png", "img/1.png"], "mask": ["m0.png", "m1"], "text": "One."}
    by_id = rows_of(load(objects(folder, [record]), mask="mask"))
    assert {key: row.mask for key, row in by_id.items()} == {
        "img/0.png": str(folder / "m0.png"), "img/0.png:img/1.png": str(folder / "m1.png"),
    }  # fmt: skip
    with pytest.raises(DataError, match=r"line 1, column 'mask': 1 masks, and 2 images"):
        load(objects(folder, [{**record, "mask": ["m0.png"]}]), mask="mask")


def test_an_image_of_two_patients_in_two_splits_is_reported(folder):
    rows = [["image", "text", "id", "patient", "split"], ["img/0.png", "One.", "a", "1", "train"]]
    rows += [["img/0.png", "One.", "b", "2", "test"]]
    with pytest.warns(
        UserWarning, match="1 images are in two splits under other patients, as .*0.png in 'train' and 'test'"
    ):
        load(table(folder, rows), id="id", patient="patient", split="split")


def test_a_wrong_root_names_the_first_place_and_lists_the_rows(folder, tmp_path):
    import lightning.pytorch as pl

    path = table(folder, [["image", "text"], *([f"img/{i}.png", "Clear."] for i in range(6))])
    module = Tabular(str(path), root=str(folder / "img"), loading=SMALL)
    module.trainer = pl.Trainer(
        default_root_dir=tmp_path / "run", logger=False, enable_checkpointing=False, accelerator="cpu"
    )
    first = r"6 missing image; the first was looked for at \S*img/img/0.png, but \S*/img holds 0.png, 1.png, .*6 in all.*root"
    with pytest.raises(DataError, match=first):
        module.setup("fit")
    listed = (tmp_path / "run" / "dropped.csv").read_text().splitlines()
    assert len(listed) == 7
    assert listed[1].startswith("missing image,img/0.png,")


def test_a_whole_folder_keeps_its_memory(folder, tmp_path):
    """What a worker gets of a packed store holds no index of spellings."""
    import pickle

    out = tmp_path.with_name(f"{tmp_path.name}-packed")
    prepare("tabular", folder, out, size=32, say=lambda line: None)
    store = Store(out)
    assert store.candidates(out, "IMG/3")[0] == store.find(out / "img/3.png")
    assert b"3.png" not in pickle.dumps(store)
