"""Records as columns are the list they were made of; members of a zip are those that zipfile reads."""

import pickle
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from diptych.data.columns import Column, Records, Strings
from diptych.data.tables import scan_zip


@dataclass(frozen=True)
class _Row:
    id: str
    path: Path | None
    values: object = field(default=None, compare=False)  # arrays have no truth value, and newer Pythons ask it


def test_columns_are_the_list_they_were_made_of():
    vector = np.arange(3.0)
    rows = [
        _Row("ä", Path("a/b"), vector),
        _Row("", None, vector),
        _Row("ä", Path("c"), None),
        _Row("\udcff", Path("a/b")),
    ]
    records = Records(rows)
    assert [records[i] for i in range(-4, 4)] == rows + rows
    assert list(records) == records[:] == rows
    assert records[2:0:-1] == rows[2:0:-1]
    with pytest.raises(IndexError):
        records[4]
    assert list(pickle.loads(pickle.dumps(records)).column("id")) == ["ä", "", "ä", "\udcff"]
    assert records.column("path")[:] == list(records.column("path")) == [Path("a/b"), None, Path("c"), Path("a/b")]
    assert records[0].values is records[1].values
    assert list(Records([])) == list(Strings([])) == list(Column([])) == []
    words = ["", "one", "é", "one"]
    assert list(Strings(words)) == words == [Strings(words)[i] for i in range(4)]


def test_zip_members_are_those_of_zipfile(tmp_path):
    path, rng = tmp_path / "a.zip", np.random.default_rng(0)
    contents = {f"f/{i}.txt": rng.integers(0, 255 if i % 2 else 3, i * 37, np.uint8).tobytes() for i in range(12)}
    with zipfile.ZipFile(path, "w") as archive:
        for i, (name, raw) in enumerate(contents.items()):
            kind = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)[i % 3]
            archive.writestr(zipfile.ZipInfo(name), raw, kind)
    assert dict(scan_zip(path, lambda name: True, 1000)) == contents
    assert dict(scan_zip(path, lambda name: name == "f/4.txt", 1000)) == {"f/4.txt": contents["f/4.txt"]}
    assert dict(scan_zip(path, lambda name: True, 50)) == {name: raw[:50] for name, raw in contents.items()}
    at = path.read_bytes().index(contents["f/9.txt"])
    spoilt = bytearray(path.read_bytes())
    spoilt[at] ^= 1
    path.write_bytes(spoilt)
    with pytest.raises(zipfile.BadZipFile, match=r"CRC-32 of f/9.txt"):
        dict(scan_zip(path, lambda name: True, 1000))
