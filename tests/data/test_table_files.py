"""Files that are tables, and files that are none: separators, lines, JSON, archives."""

import gzip
import json
import zipfile

import pytest
from user_tables import load, rows_of, table

from diptych.data.tables import read_table, scan_table
from diptych.errors import DataError


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
def test_another_separator_is_read_where_it_gives_the_columns(folder, separator, log):
    rows = [["image", "text", "patient"], ["img/0.png", "Clear, and well.", "1"], ["img/1.png", '"Two; | \t."', "2"]]
    by_id = rows_of(load(table(folder, rows, separator=separator), patient="patient"))
    assert by_id["img/0.png"].text == "Clear, and well."
    assert by_id["img/1.png"].text == "Two; | \t."
    assert "columns are separated by" in log()
    assert list(scan_table(folder / "t.csv", ["patient", "image"])) == [("1", "img/0.png"), ("2", "img/1.png")]
    with pytest.raises(DataError, match=r"no column 'report'; it has, nearest first: .*patient"):
        load(folder / "t.csv", text="report")


def test_the_usual_separator_comes_first(folder):
    rows = [["image", "text", "a;b"], ["img/0.png", "One; two.", "x"]]
    assert rows_of(load(table(folder, rows)))["img/0.png"].text == "One; two."
    (folder / "t.csv").write_text("sep=;\nimage;text\nimg/0.png;One, two.\n")  # as Excel writes it
    assert rows_of(load(folder / "t.csv"))["img/0.png"].text == "One, two."
    rows = [["image", "text"], ["img/0.png", "One, two."]]
    assert rows_of(load(table(folder, rows, "t.tsv", "\t")))["img/0.png"].text == "One, two."
    rows[1][1] = "One."
    assert rows_of(load(table(folder, rows, "t.tsv")))["img/0.png"].text == "One."


@pytest.mark.parametrize("char", ["\u2028", "\u2029", "\x85", "\x1c", "\x0b", "\x0c"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_only_a_newline_ends_a_line_of_json(folder, char, ending):
    lines = [json.dumps({"image": f"img/{i}.png", "text": f"One.{char}Two."}, ensure_ascii=False) for i in range(2)]
    (folder / "t.jsonl").write_bytes(ending.join(lines).replace("\\u001c", "\x1c").encode())
    assert {row.text for row in rows_of(load(folder / "t.jsonl")).values()} == {f"One.{char}Two."}
    (folder / "t.csv").write_bytes(f"image,text{ending}img/0.png,One.{char}Two.{ending}".encode())
    assert rows_of(load(folder / "t.csv"))["img/0.png"].text == f"One.{char}Two."


def test_r2gens_annotations_are_a_table(folder):
    splits = {"train": range(4), "val": range(4, 5), "test": range(5, 6)}
    annotations = {
        split: [{"id": f"s{i}", "study_id": i, "report": f"Report {i}.", "image_path": [f"img/{i}.png"], "split": split}
                for i in numbers]
        for split, numbers in splits.items()
    }  # fmt: skip
    path = folder / "annotation.json"
    columns = {"image": "image_path", "text": "report", "split": "split", "id": "id"}
    path.write_text(json.dumps(annotations))
    module = load(path, **columns)
    assert {split: list(data.ids) for split, data in module.datasets.items()} == {
        split: [f"s{i}" for i in numbers] for split, numbers in splits.items()
    }
    for record in (record for group in annotations.values() for record in group):
        del record["split"]
    path.write_text(json.dumps(annotations))
    assert load(path, **columns).split_hash == module.split_hash
    path.write_text(json.dumps(annotations["train"]))
    with pytest.raises(DataError, match=r"no column 'split'"):
        load(path, **columns)
    assert len(rows_of(load(path, **{**columns, "split": None}))) == 4
    annotations["train"][1]["split"] = "test"
    path.write_text(json.dumps(annotations))
    with pytest.raises(DataError, match=r"annotation.json, record 2: the split is 'test' in the list 'train'"):
        load(path, **columns)


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
    assert list(rows_of(load(folder / "t.csv.zip"))) == ["img/0.png"]


def test_lines_are_those_of_the_file(folder):
    (folder / "t.csv").write_text('\nimage,text\na,"One.\nTwo."\n\nb,Three.\n')
    assert [row.line for row in read_table(folder / "t.csv").rows()] == [3, 6]
    (folder / "t.jsonl").write_text('{"image": "a"}\n\n{"image": "b"}\n')
    assert [row.line for row in read_table(folder / "t.jsonl").rows()] == [1, 3]
