"""Tables as people write them: the content of a cell, what is one patient, and columns of one word."""

import datetime
import unicodedata

import numpy as np
import pytest
from mini import ROOT
from user_tables import SMALL, draw, load, objects, rows_of, table

from diptych.data.cells import is_empty, items, patient_id
from diptych.data.splits import Fractions
from diptych.data.tables import Columns, read_table
from diptych.errors import DataError
from diptych_datamodules.label_matched import LabelMatched
from diptych_datamodules.tabular import Tabular

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
    module = load(table(folder, rows), id="id", labels="Effusion")
    assert module.dropped.counts() == {"empty report": 1}
    by_id = rows_of(module)
    assert sorted(by_id) == ["img/1.png", "img/2.png"]  # an empty id is no id
    assert np.isnan(by_id["img/1.png"].labels[0])


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
        module = load(path, patient="patient", labels=["Effusion", "Nodule"], id="day")
        (row,) = rows_of(module).values()
        assert (row.id, row.patient, row.text) == ("2020-01-02", "101", "Clear.\n\nSmall heart."), path
        assert row.labels.tolist() == [1, 0]
        listed = load(path, label_list="names", text="text")
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
        load(path, patient="patient", label_list="names")
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


def test_one_patient_in_several_spellings_is_in_one_split(folder, log):
    ways = ["101", "101.0", " 101 ", "101.00", "\ufeff101", "101,0"]
    rows = [["image", "text", "patient"], *([f"img/{i}.png", "Clear.", f'"{way}"'] for i, way in enumerate(ways))]
    module = load(table(folder, rows), patient="patient")
    assert len(module.datasets) == 1
    assert {row.patient for row in rows_of(module).values()} == {"101"}
    assert "1 patients are written in several ways, as '101' and '101.0'; each is one patient" in log()


def test_a_leak_in_a_given_split_is_seen_through_spellings(folder):
    rows = [
        ["image", "text", "patient", "split"],
        ["img/0.png", "A.", "100", "train"],
        ["img/1.png", "B.", "100.0", "test"],
    ]
    with pytest.raises(DataError, match=r"1 patient\(s\) are in both 'test' and 'train', as '100'"):
        load(table(folder, rows), patient="patient", split="split")


def test_leading_zeros_and_capitals_are_other_patients_and_reported(folder):
    rows = [
        ["image", "text", "patient"],
        *([f"img/{i}.png", "A.", p] for i, p in enumerate(["101", "00101", "p7", "P007"])),
    ]
    with pytest.warns(
        UserWarning, match=r"2 patients differ from another in leading zeros or capitals alone, as '101' and '00"
    ):
        module = load(table(folder, rows), patient="patient")
    assert {row.patient for row in rows_of(module).values()} == {"101", "00101", "p7", "P007"}
    assert patient_id("00101.0") == "00101"
    assert patient_id(unicodedata.normalize("NFD", "Müller")) == unicodedata.normalize("NFC", "Müller")


def test_an_empty_patient_is_left_out_by_name(folder):
    rows = [["image", "text", "patient"]]
    rows += [[f"img/{i}.png", "Clear.", patient] for i, patient in enumerate(["1", "", "NA", "unknown", "2", "-"])]
    module = load(table(folder, rows), patient="patient")
    assert module.dropped.counts() == {"missing patient": 4}
    assert sorted(rows_of(module)) == ["img/0.png", "img/4.png"]
    with pytest.raises(DataError, match=r"4 missing patient; the first is 'img/1.png'"):
        load(table(folder, rows), patient="patient", strict=True)
    with pytest.raises(DataError, match=r"column 'patient': no row has a patient; .*leave columns.patient out"):
        load(table(folder, [[*row[:2], row[2] if row[2] == "patient" else ""] for row in rows]), patient="patient")


def test_without_patients_an_image_is_one_whatever_its_rows_are_called(folder):
    """An image with two reports is on one side, though each row has an id of its own."""
    rows = [["image", "text", "id"], *([f"img/{i % 6}.png", f"Report {i}.", f"r{i}"] for i in range(36))]
    by_id = rows_of(load(table(folder, rows), id="id"))
    assert len(by_id) == 36
    assert all(len({row.split for row in by_id.values() if row.path == one.path}) == 1 for one in by_id.values())


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
    numbers = {
        split: {int(text.split()[1][:-1]) % 12 for text in data.texts()} for split, data in module.datasets.items()
    }
    assert len(numbers) > 1
    assert sum(map(len, numbers.values())) == len(set().union(*numbers.values()))


# -- columns ------------------------------------------------------------------------------------------------------------


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
    module = load(cases / name, **columns)
    by_id = rows_of(module)
    assert len(by_id) == rows
    assert module.dropped.counts() == dropped
    assert not any(set("[{") & set(row.text or "") for row in by_id.values())
    if "patient" in columns:
        assert len({(row.patient, row.split) for row in by_id.values()}) == len({row.patient for row in by_id.values()})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dup_columns.csv", "2 columns are called 'text'"),
        ("nested.jsonl", "line 1, column 'text': an object with findings"),
    ],
)
def test_cases_are_refused(cases, name, message):
    with pytest.raises(DataError, match=message):
        load(cases / name)


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
