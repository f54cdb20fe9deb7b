"""Tables as people write them: what a cell says, what is one patient, which file a path means, and what is no table."""

import datetime
import gzip
import json
import logging
import unicodedata
import zipfile

import numpy as np
import pytest
from mini import ROOT
from PIL import Image

from diptych.cli.prepare import prepare
from diptych.data.cells import is_empty, items, patient_id
from diptych.data.loading import Loading
from diptych.data.splits import Fractions
from diptych.data.tables import Columns, read_table, scan_table
from diptych.errors import DataError
from diptych.radiographs.packed import Store
from diptych_datamodules.label_matched import LabelMatched
from diptych_datamodules.tabular import Tabular

SMALL = Loading(image_size=32, batch_size=2, workers=0)


def draw(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (32, 32), np.uint8)).save(path, "PNG")


@pytest.fixture
def folder(tmp_path):
    for i in range(6):
        draw(tmp_path / "img" / f"{i}.png", i)
    return tmp_path


@pytest.fixture
def told(caplog):
    caplog.set_level(logging.INFO)
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    logger.addHandler(caplog.handler)
    yield lambda: " | ".join(record.getMessage() for record in caplog.records)
    logger.removeHandler(caplog.handler)


def table(folder, rows, name="t.csv", separator=","):
    (folder / name).write_text("".join(separator.join(row) + "\n" for row in rows), encoding="utf-8")
    return folder / name


def objects(folder, records, name="t.jsonl"):
    (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return folder / name


def opened(path, strict=False, root=None, **columns):
    module = Tabular(str(path), columns=Columns(**columns), strict=strict, root=root, loading=SMALL)
    module.setup("test")
    return module


def rows_of(module):
    return {row.id: row for dataset in module.datasets.values() for row in dataset.rows}


# -- cells -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["", "  ", "NA", "na", "N/A", "n/a.", "n.a.", "#N/A", "<NA>", "NaN", "NaT", "None", "null", "-", "--", "—", ".", "...",
     "?", "___", "[]", "\\N", "(none)", "N / A", "Not available", "unknown", "\u200b", "\xa0"],
)  # fmt: skip
def test_nothing_has_many_spellings(text):
    assert is_empty(text)


@pytest.mark.parametrize("text", ["Normal.", "No", "0", "-1", "NA12", "No report of pain.", "n", "1/2", "Ü"])
def test_something_is_not_nothing(text):
    assert not is_empty(text)


@pytest.mark.parametrize("empty", ["NA", "N/A", "nan", "-", ".", "None", "<NA>"])
def test_empty_reports_ids_and_labels(folder, empty):
    rows = [["image", "text", "id", "Effusion"]]
    rows += [["img/0.png", empty, "a", "1"], ["img/1.png", "Clear.", empty, empty], ["img/2.png", "Clear.", empty, "0"]]
    module = opened(table(folder, rows), id="id", labels="Effusion")
    assert module.dropped.counts() == {"empty report": 1}
    found = rows_of(module)
    assert sorted(found) == ["img/1.png", "img/2.png"]  # an empty id is no id
    assert np.isnan(found["img/1.png"].labels[0])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("True", 1), ("FALSE", 0), ("yes", 1), ("No", 0), ("y", 1), ("n", 0), ("present", 1), ("absent", 0), ("1,0", 1),
        ("-1.0", -1), ("\u22121", -1), ("uncertain", -1), ("", None), ("-", None), ("NA", None),
    ],
)  # fmt: skip
def test_labels_as_words_and_numbers(folder, value, expected):
    label = read_table(table(folder, [["a;b"], [f"{value};x"]]), ["a"]).rows()[0].label("a")
    assert np.isnan(label) if expected is None else label == expected


@pytest.mark.parametrize("value", ["2", "+", "?", "maybe", "0.5", "inf"])
def test_labels_that_are_none(folder, value):
    with pytest.raises(DataError, match=r"t\.csv, line 2, column 'a': the label is '"):
        read_table(table(folder, [["a", "b"], [value, "x"]])).rows()[0].label("a")


def test_typed_values_of_json_and_parquet(folder):
    record = {"image": "img/0.png", "text": ["Clear.", "NA", "Small heart."], "patient": 101.0, "Effusion": True,
              "Nodule": 0, "names": ["Effusion", "Nodule"], "day": "2020-01-02"}  # fmt: skip
    paths = [objects(folder, [record])]
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    typed = pa.table({
        "image": pa.array([b"img/0.png"], pa.binary()),
        "text": pa.array([record["text"]]),
        "patient": pa.array([101.0]),
        "Effusion": pa.array([True]),
        "Nodule": pa.array(["no"]).dictionary_encode(),
        "names": pa.array([record["names"]]),
        "day": pa.array([datetime.date(2020, 1, 2)]),
    })  # fmt: skip
    parquet.write_table(typed, folder / "t.parquet")
    for path in (*paths, folder / "t.parquet"):
        module = opened(path, patient="patient", labels=["Effusion", "Nodule"], id="day")
        (row,) = rows_of(module).values()
        assert (row.id, row.patient, row.text) == ("2020-01-02", "101", "Clear.\n\nSmall heart."), path
        assert row.labels.tolist() == [1, 0]
        listed = opened(path, label_list="names", text="text")
        assert listed.findings == ("Effusion", "Nodule")


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (
            "text",
            {"findings": "a", "impression": "b"},
            r"column 'text': an object with findings, impression; make each",
        ),
        ("text", "{'findings': 'a'}", r"column 'text': an object with findings"),
        ("text", [["a"]], r"column 'text': a list within a list"),
        ("text", "['a' 'b', 'c']", r"column 'text': .*a list that cannot be read; write it as JSON"),
        ("image", {"bytes": "x", "path": "y"}, r"column 'image': an object with bytes, path"),
        ("patient", ["a", "b"], r"column 'patient': a list of 2 values where one belongs"),
        ("patient", "1.23E+11", r"column 'patient': '1.23E\+11', a number without its last digits"),
        ("patient", 1.5e17, r"column 'patient': .*without its last digits"),
        ("names", [0, 1], r"column 'names': a list with '0', which is no name"),
        ("names", "[0, 1]", r"column 'names': '\[0, 1\]' is no list of names"),
        ("names", {"Effusion": 1}, r"column 'names': an object with Effusion"),
    ],
)
def test_what_is_not_one_value_is_refused_by_place(folder, column, value, message):
    whole = {"image": "img/0.png", "text": "Clear.", "patient": "p", "names": ["Effusion"]}
    path = objects(folder, [whole, {**whole, "image": "img/1.png", column: value}])
    with pytest.raises(DataError, match=rf"t\.jsonl, line 2, {message}"):
        opened(path, patient="patient", label_list="names")
    assert "\n" not in message


def test_lists_written_as_text():
    assert (
        items("['a.jpg', 'b.jpg']") == items('["a.jpg", "b.jpg"]') == items("('a.jpg', 'b.jpg')") == ["a.jpg", "b.jpg"]
    )
    assert items("['a.jpg' 'b.jpg']") == items("['a.jpg'\n 'b.jpg']") == ["a.jpg", "b.jpg"]  # as numpy prints it
    assert items("['a', None, 'NA']") == ["a"]
    for report in ("[**Name**] is well [now]", "[1, 2]", "(no change)", "[Normal]", "[" * 9999 + "]" * 9999):
        assert items(report) is None
    with pytest.raises(ValueError, match="cannot be read"):
        items("['a', nan]")


# -- patients -----------------------------------------------------------------------------------------------------------


def test_one_patient_in_several_spellings_is_in_one_split(folder, told):
    ways = ["101", "101.0", " 101 ", "101.00", "\ufeff101", "101,0"]
    rows = [["image", "text", "patient"], *([f"img/{i}.png", "Clear.", f'"{way}"'] for i, way in enumerate(ways))]
    module = opened(table(folder, rows), patient="patient")
    assert len(module.datasets) == 1
    assert {row.patient for row in rows_of(module).values()} == {"101"}
    assert "1 patients are written in several ways, as '101' and '101.0'; each is one patient" in told()


def test_a_leak_in_a_given_split_is_seen_through_spellings(folder):
    rows = [
        ["image", "text", "patient", "split"],
        ["img/0.png", "A.", "100", "train"],
        ["img/1.png", "B.", "100.0", "test"],
    ]
    with pytest.raises(DataError, match=r"1 patient\(s\) are in both 'test' and 'train', as '100'"):
        opened(table(folder, rows), patient="patient", split="split")


def test_leading_zeros_and_capitals_are_other_patients_and_told(folder):
    rows = [
        ["image", "text", "patient"],
        *([f"img/{i}.png", "A.", p] for i, p in enumerate(["101", "00101", "p7", "P007"])),
    ]
    with pytest.warns(
        UserWarning, match=r"2 patients differ from another in leading zeros or capitals alone, as '101' and '00"
    ):
        module = opened(table(folder, rows), patient="patient")
    assert {row.patient for row in rows_of(module).values()} == {"101", "00101", "p7", "P007"}
    assert patient_id("00101.0") == "00101"
    assert patient_id(unicodedata.normalize("NFD", "Müller")) == unicodedata.normalize("NFC", "Müller")


def test_an_empty_patient_is_left_out_by_name(folder):
    rows = [["image", "text", "patient"]]
    rows += [[f"img/{i}.png", "Clear.", patient] for i, patient in enumerate(["1", "", "NA", "unknown", "2", "-"])]
    module = opened(table(folder, rows), patient="patient")
    assert module.dropped.counts() == {"missing patient": 4}
    assert sorted(rows_of(module)) == ["img/0.png", "img/4.png"]
    with pytest.raises(DataError, match=r"4 missing patient; the first is 'img/1.png'"):
        opened(table(folder, rows), patient="patient", strict=True)
    with pytest.raises(DataError, match=r"column 'patient': no row has a patient; .*leave columns.patient out"):
        opened(table(folder, [[*row[:2], row[2] if row[2] == "patient" else ""] for row in rows]), patient="patient")


def test_without_patients_an_image_is_one_whatever_its_rows_are_called(folder):
    """An image with two reports is on one side, though each row has an id of its own."""
    rows = [["image", "text", "id"], *([f"img/{i % 6}.png", f"Report {i}.", f"r{i}"] for i in range(36))]
    found = rows_of(opened(table(folder, rows), id="id"))
    assert len(found) == 36
    assert all(len({row.split for row in found.values() if row.path == one.path}) == 1 for one in found.values())


def test_reports_of_one_patient_stay_in_one_split(folder):
    images = table(
        folder, [["image", "Effusion", "patient"], *([f"img/{i}.png", "1", f"p{i}"] for i in range(6))], "i.csv"
    )
    rows = [["text", "Effusion", "patient"], *([f"Report {i}.", "1", f"p{i % 12}{'.0' * (i % 2)}"] for i in range(48))]
    module = LabelMatched(
        str(images), str(table(folder, rows, "r.csv")), "Effusion",
        image_columns=Columns(labels=["Effusion"], patient="patient"),
        report_columns=Columns(labels="Effusion", patient="patient"), fractions=Fractions(0.5, 0, 0.5), loading=SMALL,
    )  # fmt: skip
    module.setup("test")
    found = {
        split: {int(text.split()[1][:-1]) % 12 for text in data.texts()} for split, data in module.datasets.items()
    }
    assert len(found) > 1
    assert sum(map(len, found.values())) == len(set().union(*found.values()))


# -- columns and separators ---------------------------------------------------------------------------------------------


def test_two_columns_of_one_name_are_refused(folder):
    for path, message in (
        (table(folder, [["image", "text", " text "], ["a", "b", "c"]]), r"t\.csv: 2 columns are called 'text'; rename"),
        (folder / "t.jsonl", r"t\.jsonl, line 1: 2 columns are called 'text'"),
        (folder / "t.json", r"t\.json: 2 columns are called 'text'"),
    ):
        if path.suffix != ".csv":
            text = '{"image": "a", "text": "b", "text": "c"}'
            path.write_text(f"[{text}]" if path.suffix == ".json" else f"{text}\n")
        with pytest.raises(DataError, match=message):
            read_table(path)
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text "]), folder / "t.parquet")
    with pytest.raises(DataError, match="2 columns are called 'text'"):
        read_table(folder / "t.parquet")
    with pytest.raises(DataError, match="2 columns are called 'x'"):  # a release's table
        list(scan_table(table(folder, [["x", "x"], ["1", "2"]]), ["x"]))
    assert list(scan_table(table(folder, [["x", "y", "y"], ["1", "2", "3"]]), ["x"])) == [("1",)]
    assert read_table(table(folder, [["", "", "x"], ["0", "2", "1"]])).rows()[0].get("x") == "1"


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_another_separator_is_read_where_it_gives_the_columns(folder, separator, told):
    rows = [["image", "text", "patient"], ["img/0.png", "Clear, and well.", "1"], ["img/1.png", '"Two; | \t."', "2"]]
    found = rows_of(opened(table(folder, rows, separator=separator), patient="patient"))
    assert found["img/0.png"].text == "Clear, and well."
    assert found["img/1.png"].text == "Two; | \t."
    assert "columns are separated by" in told()
    assert list(scan_table(folder / "t.csv", ["patient", "image"])) == [("1", "img/0.png"), ("2", "img/1.png")]
    with pytest.raises(DataError, match=r"no column 'report'; it has, nearest first: .*patient"):
        opened(folder / "t.csv", text="report")


def test_the_usual_separator_comes_first(folder):
    rows = [["image", "text", "a;b"], ["img/0.png", "One; two.", "x"]]
    assert rows_of(opened(table(folder, rows)))["img/0.png"].text == "One; two."
    (folder / "t.csv").write_text("sep=;\nimage;text\nimg/0.png;One, two.\n")  # as Excel writes it
    assert rows_of(opened(folder / "t.csv"))["img/0.png"].text == "One, two."
    rows = [["image", "text"], ["img/0.png", "One, two."]]
    assert rows_of(opened(table(folder, rows, "t.tsv", "\t")))["img/0.png"].text == "One, two."
    assert (
        rows_of(opened(table(folder, [["image", "text"], ["img/0.png", "One."]], "t.tsv")))["img/0.png"].text == "One."
    )


def test_a_column_may_be_given_as_one_word(folder):
    rows = [["image", "report", "Effusion"], ["img/0.png", "Clear.", "1"]]
    columns = Columns(text="report", labels="Effusion")
    module = Tabular(str(table(folder, rows)), columns=columns, findings="Effusion", loading=SMALL)
    module.setup("test")
    assert rows_of(module)["img/0.png"].text == "Clear."
    assert module.findings == ("Effusion",)


def test_a_finding_without_a_column_is_named(folder):
    rows = [["image", "text", "Effusion"], ["img/0.png", "Clear.", "1"]]
    module = Tabular(str(table(folder, rows)), columns=Columns(labels="Effusion"), findings=["Nodule"], loading=SMALL)
    with pytest.raises(DataError, match="no column 'Nodule'"):
        module.setup("test")


# -- files that are tables, and files that are none ----------------------------------------------------------------------


@pytest.mark.parametrize("char", ["\u2028", "\u2029", "\x85", "\x1c", "\x0b", "\x0c"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_only_a_newline_ends_a_line_of_json(folder, char, ending):
    lines = [json.dumps({"image": f"img/{i}.png", "text": f"One.{char}Two."}, ensure_ascii=False) for i in range(2)]
    (folder / "t.jsonl").write_bytes(ending.join(lines).replace("\\u001c", "\x1c").encode())
    assert {row.text for row in rows_of(opened(folder / "t.jsonl")).values()} == {f"One.{char}Two."}
    (folder / "t.csv").write_bytes(f"image,text{ending}img/0.png,One.{char}Two.{ending}".encode())
    assert rows_of(opened(folder / "t.csv"))["img/0.png"].text == f"One.{char}Two."


def test_r2gens_annotations_are_a_table(folder):
    splits = {"train": range(4), "val": range(4, 5), "test": range(5, 6)}
    found = {
        split: [{"id": f"s{i}", "study_id": i, "report": f"Report {i}.", "image_path": [f"img/{i}.png"], "split": split}
                for i in numbers]
        for split, numbers in splits.items()
    }  # fmt: skip
    path = folder / "annotation.json"
    columns = {"image": "image_path", "text": "report", "split": "split", "id": "id"}
    path.write_text(json.dumps(found))
    module = opened(path, **columns)
    assert {split: list(data.ids) for split, data in module.datasets.items()} == {
        split: [f"s{i}" for i in numbers] for split, numbers in splits.items()
    }
    for record in (record for group in found.values() for record in group):
        del record["split"]
    path.write_text(json.dumps(found))
    assert opened(path, **columns).split_hash == module.split_hash
    path.write_text(json.dumps(found["train"]))
    with pytest.raises(DataError, match=r"no column 'split'"):
        opened(path, **columns)
    assert len(rows_of(opened(path, **{**columns, "split": None}))) == 4
    found["train"][1]["split"] = "test"
    path.write_text(json.dumps(found))
    with pytest.raises(DataError, match=r"annotation.json, record 2: the split is 'test' in the list 'train'"):
        opened(path, **columns)


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("t.csv", "image,text\na,b\n".encode("utf-16"), "UTF-16 text; save it as UTF-8"),
        ("t.csv", "image,text\na,b\n".encode("utf-16-le"), "line 1: a NUL byte"),
        ("t.jsonl", '{"image": "a"}\n'.encode("utf-16"), "UTF-16 text; save it as UTF-8"),
        ("t.csv", b"image,text\na,b\0c\n", "line 2: a NUL byte"),
        ("t.csv", "image,text\na,Erguß\n".encode("latin-1"), "cannot be read as UTF-8 text"),
        ("t.csv", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(99), "an Excel workbook"),
        ("t.xlsx", b"PK\3\4", r"not '\.xlsx' \(save the sheet as csv\)"),
        ("t.csv", b"PAR1" + bytes(99), "a parquet file"),
        ("t.csv", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        ("t.csv", b"\n<!DOCTYPE html><html></html>", "an HTML page"),
        ("t.csv", b"", "the table is empty"),
        ("t.csv", b"\xef\xbb\xbf\n\n", "the table is empty"),
        ("t.csv", gzip.compress(b"image,text\na,b\n" * 99, mtime=0)[:40], "damaged, or cannot be read"),
        ("t.csv", b'image,text\na,"open\nb,c\n', "line 3: .*quotes are closed"),
        ("t.csv", b"image,text\na," + b"x" * 140_000, "line 2: field larger than field limit"),
        ("t.csv", b"image,text\na,b,c\n", r"line 2: 3 values for 2 columns; quote text that holds a comma"),
        ("t.csv", b'image,text\na,"b\nb"\nc\n', "line 4: 1 values for 2 columns"),
        ("t.jsonl", b"", "the table is empty"),
        ("t.jsonl", b'{"image": "a"}\n[1]\n', "line 2: not an object"),
        ("t.jsonl", b'{"image": "a"}\n{"image": \n', "line 2: not JSON"),
        ("t.jsonl", b'{"image": ' + b"9" * 5000 + b"}\n", "line 1: not JSON"),
        ("t.jsonl", b"[" * 200_000, "line 1: not JSON"),
        ("t.jsonl", b'{"image": "a", "text": "\\ud800"}\n', "line 1: half of a surrogate pair"),
        ("t.json", b'{"image": "a"}\n{"image": "b"}\n', "call it .jsonl"),
        ("t.json", b'{"image": {"0": "a"}}', "'image' is no list of a split"),
        ("t.json", b"3", "neither a list nor an object"),
        ("t.json", b"[3]", "record 1: not an object"),
        ("t.parquet", b"PAR1" + bytes(99), "cannot be read as parquet"),
        ("t.pkl", b"x", r"a table is \.csv, .*not '\.pkl'"),
    ],
)  # fmt: skip
def test_what_is_no_table_is_named(folder, name, raw, message):
    (folder / name).write_bytes(raw)
    with pytest.raises(DataError, match=message) as caught:
        read_table(folder / name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_workbook_by_another_name_and_a_zipped_table(folder):
    with zipfile.ZipFile(folder / "t.csv", "w") as archive:
        archive.writestr("xl/workbook.xml", "<x/>")
    with pytest.raises(DataError, match="an Excel workbook"):
        read_table(folder / "t.csv")
    with zipfile.ZipFile(folder / "t.csv.zip", "w") as archive:
        archive.writestr("t.csv", "image,text\nimg/0.png,Clear.\n")
    assert list(rows_of(opened(folder / "t.csv.zip"))) == ["img/0.png"]


def test_lines_are_those_of_the_file(folder):
    (folder / "t.csv").write_text('\nimage,text\na,"One.\nTwo."\n\nb,Three.\n')
    assert [row.line for row in read_table(folder / "t.csv").rows()] == [3, 6]
    (folder / "t.jsonl").write_text('{"image": "a"}\n\n{"image": "b"}\n')
    assert [row.line for row in read_table(folder / "t.jsonl").rows()] == [1, 3]


# -- images -------------------------------------------------------------------------------------------------------------


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
def test_a_path_that_is_not_quite_a_file_is_found_and_told(tmp_path, written, file, packed, told):
    root = tmp_path / "data"
    draw(root / file)
    draw(root / "other.png")
    rows = [["image", "text"], [written, "Clear."], ["other.png", "Clear."], ["gone", "Clear."]]
    path = table(root, rows)
    if packed:
        prepare("tabular", root, tmp_path / "out", size=32, say=lambda line: None)
        root = tmp_path / "out"
    module = opened(path, root=str(root))
    assert sorted(rows_of(module)) == sorted([written, "other.png"])
    assert str(rows_of(module)[written].path) == str(root / file)
    assert module.dropped.rows == [("missing image", "gone", str(root / "gone"))]
    if not written.startswith("./"):
        assert f"1 image paths are not quite the names of files, as '{written}' for '{file}'" in told()


def test_what_may_be_two_files_is_missing_and_they_are_named(folder):
    draw(folder / "img" / "a.png")
    draw(folder / "img" / "a.PNG")
    module = opened(table(folder, [["image", "text"], ["img/a", "Clear."], ["img/0.png", "Clear."]]))
    ((rule, key, place),) = module.dropped.rows
    assert (rule, key) == ("missing image", "img/a")
    assert "it may be" in place
    assert "a.PNG or" in place


def test_one_image_in_two_spellings_is_refused(folder):
    rows = [["image", "text"], ["img/0", "One."], ["img/0.png", "Two."]]
    with pytest.raises(DataError, match=r"'img/0' and 'img/0.png' are one image, img/0.png; keep one row"):
        opened(table(folder, rows))


def test_each_view_of_a_list_is_a_sample_of_one_patient(folder):
    rows = [["image", "text", "id"], ["\"['img/0.png', 'img/1.png']\"", "\"['One.', 'Two.']\"", "s1"]]
    rows += [['"[""img/2"", ""img/gone.png""]"', "Three.", "s2"], ["img/4.png", "Four.", "s3"]]
    module = opened(table(folder, rows), id="id", patient="id")
    found = rows_of(module)
    assert {key: (row.path.name, row.text, row.patient) for key, row in found.items()} == {
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
    found = rows_of(opened(objects(folder, [record]), mask="mask"))
    assert {key: row.mask for key, row in found.items()} == {
        "img/0.png": str(folder / "m0.png"), "img/0.png:img/1.png": str(folder / "m1.png"),
    }  # fmt: skip
    with pytest.raises(DataError, match=r"line 1, column 'mask': 1 masks, and 2 images"):
        opened(objects(folder, [{**record, "mask": ["m0.png"]}]), mask="mask")


def test_an_image_of_two_patients_in_two_splits_is_told(folder):
    rows = [["image", "text", "id", "patient", "split"], ["img/0.png", "One.", "a", "1", "train"]]
    rows += [["img/0.png", "One.", "b", "2", "test"]]
    with pytest.warns(
        UserWarning, match="1 images are in two splits under other patients, as .*0.png in 'train' and 'test'"
    ):
        opened(table(folder, rows), id="id", patient="patient", split="split")


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


# -- the files on which it failed ----------------------------------------------------------------------------------------


@pytest.fixture
def cases(shared_data, tmp_path):
    source = shared_data.parent / "cases" / "tables"
    if not source.is_dir():
        pytest.skip("no folder of cases")
    for path in source.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    for i in range(12):
        draw(tmp_path / "img" / f"{i}.png", i)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "columns", "rows", "dropped"),
    [
        ("nested.jsonl", {"text": [], "label_list": "labels"}, 12, {}),
        ("na_text.csv", {"patient": "patient", "labels": "Effusion"}, 8, {"empty report": 4}),
        ("float_leak.csv", {"patient": "patient"}, 12, {}),
        ("missing_patient.csv", {"patient": "patient"}, 7, {"missing patient": 5}),
        ("cxrclip.csv", {"patient": "patient"}, 24, {}),
        ("annotation.json", {"image": "image_path", "text": "report", "split": "split", "id": "id"}, 12, {}),
        ("semicolon.csv", {"patient": "patient"}, 12, {}),
        ("labels_bool.csv", {"patient": "patient", "labels": "Effusion"}, 12, {}),
        ("noext.csv", {"patient": "patient"}, 12, {}),
        ("cat.parquet", {"patient": "patient"}, 12, {}),
    ],
)
@pytest.mark.filterwarnings("ignore:.*under other patients")
def test_cases_are_read(cases, name, columns, rows, dropped):
    module = opened(cases / name, **columns)
    found = rows_of(module)
    assert len(found) == rows
    assert module.dropped.counts() == dropped
    assert not any(set("[{") & set(row.text or "") for row in found.values())
    if "patient" in columns:
        assert len({(row.patient, row.split) for row in found.values()}) == len({row.patient for row in found.values()})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dup_columns.csv", "2 columns are called 'text'"),
        ("nested.jsonl", "line 1, column 'text': an object with findings"),
    ],
)
def test_cases_are_refused(cases, name, message):
    with pytest.raises(DataError, match=message):
        opened(cases / name)


def test_options_take_one_word(folder, tmp_path):
    """``--data.columns.text report`` on the command line."""
    import inprocess

    rows = [["image", "report", "Effusion"], *([f"img/{i}.png", "Clear.", str(i % 2)] for i in range(6))]
    path = table(folder, rows)
    words = ["--table", str(path), "--columns.text", "report", "--columns.labels", "Effusion", "--findings", "Effusion"]
    done = inprocess.diptych("check-data", "tabular", *words, "--out", str(tmp_path / "check"), "--workers", "0")
    assert done.returncode == 0, done.stderr
    assert "6 of 6" in done.stdout
    assert str(ROOT) not in done.stdout
