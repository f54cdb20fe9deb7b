"""What a run holds of patients: an attack on every file that it leaves, with planted names, numbers and files."""

import csv
import json
import logging
import re
import warnings
from pathlib import Path

import inprocess
import numpy as np
import pytest
import yaml
from mini import FINDINGS, config, write_pairs
from PIL import Image, ImageDraw

from diptych.data.loading import Loading
from diptych.data.privacy import discreet, redact
from diptych.errors import DataError
from diptych.reports.tokenizer import Tokenizer
from diptych_datamodules.tabular import Columns, Tabular

PLANTED = ("Zaphod", "7654321", "subjectmark", "filemark")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Pairs whose reports, patients and files are marked; two pictures are broken, and one report is empty."""
    folder = tmp_path_factory.mktemp("pairs")
    plain = write_pairs(folder)
    rows = list(csv.DictReader(plain.open()))
    for i, row in enumerate(rows):
        name = f"filemark{row['image']}"
        (folder / row["image"]).rename(folder / name)
        row |= {"image": name, "patient": f"subjectmark{i}", "text": f"{row['text']} Seen by Zaphod. MRN 7654321."}
    rows[3]["text"] = ""
    for i in (1, 2):
        (folder / rows[i]["image"]).write_bytes(b"\x89PNG\r\n\x1a\n broken")
    # Of the training reports the first alone has the name; the number stands in all.
    for i, row in enumerate(rows):
        if i not in (0, 20, 21, 22, 23):
            row["text"] = row["text"].replace(" Seen by Zaphod.", "")
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return folder / "table.csv"


def of_run(table, folder, private):
    """Fit and test. Returns all text in pictures, the files of the run by name, and all that was printed."""
    content = yaml.safe_load(config(table, head="local_pooling", check_images=True, private=private))
    content["figures"] = {"pairs": 4, "matrix": 4}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content))
    in_pictures, printed, draw = [], [], ImageDraw.ImageDraw.text

    def listen(self, place, text, *rest, **options):
        in_pictures.append(str(text))
        return draw(self, place, text, *rest, **options)

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        patch.setattr(ImageDraw.ImageDraw, "text", listen)
        for command, more in (("fit", ()), ("test", ("--ckpt_path", "best"))):
            done = inprocess.diptych(command, "-c", str(folder / "recipe.yaml"), "--run", str(folder / "run"), *more)
            assert done.returncode == 0, done.stderr
            printed += [done.stdout, done.stderr]
    printed += [str(warning.message) for warning in caught]
    files = {str(path.relative_to(folder / "run")): path for path in (folder / "run").rglob("*") if path.is_file()}
    return "\n".join(in_pictures), files, "\n".join(printed)


def planted_in(blob):
    text = blob if isinstance(blob, bytes) else blob.encode()
    return {word for word in PLANTED if word.lower().encode() in text.lower()}


def test_a_private_run_holds_no_text_and_no_id_anywhere(table, tmp_path):
    in_pictures, files, printed = of_run(table, tmp_path, True)
    assert {name: here for name, path in files.items() if (here := planted_in(path.read_bytes()))} == {}
    assert planted_in(" ".join(files)) == set()
    assert planted_in(printed) == set()
    assert planted_in(in_pictures) == set()
    assert "word 1" in in_pictures
    assert "effusion" not in in_pictures.lower()
    pictures = [path for name, path in files.items() if name.endswith(".png")]
    assert len(pictures) >= 10
    assert not any(Image.open(path).info for path in pictures)  # no text chunk, no EXIF
    assert {path.split(".")[0] for path in files if "tfevents" in path} == {"events"}
    rows = list(csv.reader((tmp_path / "run" / "dropped.csv").open()))
    assert rows[0] == ["rule", "rows"]
    assert sum(int(row[1]) for row in rows[1:]) == 3
    assert all(row[3] == "" for row in json.loads((tmp_path / "run" / "images.json").read_text())["unusable"])


def test_a_run_that_is_not_holds_them_where_the_page_says(table, tmp_path):
    in_pictures, files, printed = of_run(table, tmp_path, False)
    assert planted_in(in_pictures) >= {"Zaphod", "7654321"}
    assert planted_in(files["dropped.csv"].read_bytes()) >= {"filemark"}
    assert "dropped.csv" in printed
    for name in ("checkpoints/best.ckpt", "checkpoints/last.ckpt", "results.json", "config.yaml"):
        assert planted_in(files[name].read_bytes()) == set(), name  # private or not


def test_what_fails_in_a_private_run_is_reported_by_number(table, tmp_path):
    def message_of(content):
        (tmp_path / "recipe.yaml").write_text(content)
        done = inprocess.diptych("fit", "-c", str(tmp_path / "recipe.yaml"), "--run", str(tmp_path / "run"))
        assert done.returncode == 2
        assert planted_in(done.stdout + done.stderr) == set()
        return done.stderr

    assert re.search(r"image \d of its split: corrupt image; or set", message_of(config(table, private=True)))
    content = yaml.safe_load(config(table, private=True))
    content["data"]["init_args"]["root"] = str(tmp_path)
    assert "missing image" in message_of(yaml.safe_dump(content))
    assert planted_in((tmp_path / "run" / "dropped.csv").read_bytes()) == set()
    rows = list(csv.reader(table.open()))
    twice = table.with_name("twice.csv")
    with twice.open("w", newline="") as file:
        csv.writer(file).writerows([*rows, rows[1]])
    assert "twice.csv, lines 2 and 26: both are '(withheld)'" in message_of(config(twice, private=True))
    with twice.open("w", newline="") as file:
        csv.writer(file).writerows([*rows[:-1], [*rows[-1][:2], rows[1][2], *rows[-1][3:]]])
    assert "1 patient(s) are in both 'test' and 'train', as '(withheld)'" in message_of(config(twice, private=True))


def test_samples_of_a_private_run_are_called_by_their_number(table):
    columns = Columns(patient="patient", split="split", labels=FINDINGS)
    loading = Loading(image_size=32, workers=0, private=True, batch_size=2)
    tokenizer = Tokenizer(None, 48, vocabulary=100)
    module = Tabular(str(table), tokenizer, columns=columns, loading=loading)
    module.setup("fit")
    assert module.batch("val", [2, 0]).ids == ["2", "0"]


@pytest.mark.parametrize(
    ("message", "left"),
    [
        ("t.csv, lines 1203 and 5: both are 'Zaphod'; go", "t.csv, lines 1203 and 5: both are '(withheld)'; go"),
        ("'O'Brien' has the label 'x'", "'(withheld)' has the label '(withheld)'"),
        ("column 'text' of patient 10000032", "column 'text' of patient (withheld)"),
        ("/data/p10/p10000032/s5.jpg: truncated image", "(withheld): truncated image"),
        ("files/p10/s1.jpg, and p10000032.", "(withheld), and (withheld)."),
        ("split 'test' is empty", "split '(withheld)' is empty"),
    ],
)  # fmt: skip
def test_values_paths_and_numbers_are_redacted(message, left):
    assert redact(message, {"text", "t.csv"}) == left


def test_warnings_logs_and_errors_pass_through(caplog):
    def build():
        logging.getLogger("lightning.pytorch.utilities.rank_zero").info("the first: %s", "p10000032")
        warnings.warn("'Zaphod' is odd", UserWarning, stacklevel=1)

    caplog.set_level(logging.INFO)
    with pytest.warns(UserWarning, match=r"'\(withheld\)' is odd"), discreet(()):
        build()
    assert [record.getMessage() for record in caplog.records] == ["the first: (withheld)"]
    with pytest.raises(DataError, match=r"^'\(withheld\)'$") as error, discreet(()):
        raise DataError("'Zaphod'")
    assert error.value.__cause__ is None
    assert error.value.__suppress_context__


def test_the_page_names_every_file_of_a_run(table, tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "privacy.md").read_text()
    _, files, _ = of_run(table, tmp_path, True)
    kinds = {"figures": "figures/*.png", "events": "TensorBoard", "checkpoints": "checkpoints/*.ckpt"}
    for name in files:
        kind = next((kind for start, kind in kinds.items() if name.startswith(start)), Path(name).name)
        assert kind in page, name
    assert np.all([word in page for word in ("private", "least_patients", "predictions.csv")])
