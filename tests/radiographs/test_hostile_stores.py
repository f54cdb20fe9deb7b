"""Packed stores from elsewhere: a hostile one is refused in one line, and runs nothing."""

import hashlib
import json
import zlib
from dataclasses import asdict

import pytest
from refusing import refused

from diptych.radiographs.intensity import Intensity
from diptych.radiographs.manifest import FORMAT, PICTURES
from diptych.radiographs.packed import open_images

PIXELS = bytes(range(12))
ROWS = [["a/1.png", 0, 2, 3, 4, 6, zlib.crc32(PIXELS[:6])], ["a/2.png", 6, 3, 2, 6, 4, zlib.crc32(PIXELS[6:])]]


def write_store(root, manifest=None, rows=None, unusable=None, notes=None, header=None, **raw):
    """A store of two pictures in one shard, as ``prepare`` writes it, but for what is given."""
    known = {
        "data_set": "tabular", "root": "/data", "size": 32, "per_shard": 2, "files": 2, "key": "0123abcd",
        "intensity": asdict(Intensity()), "format": FORMAT, "pictures": PICTURES, **(manifest or {}),
    }  # fmt: skip
    folder = root / "packed" / "0123abcd"
    folder.mkdir(parents=True)
    (root / "packed.json").write_text(raw.get("manifest_text") or json.dumps(known))
    (folder / "00000.bin").write_bytes(PIXELS)
    held = {"rows": ROWS if rows is None else rows, "unusable": unusable or {}, "notes": {} if notes is None else notes}
    body = raw.get("body") or json.dumps(held).encode()
    head = {
        "crc32": zlib.crc32(body), "key": "0123abcd", "shard": 0, "files": 2, "bytes": len(PIXELS),
        "sha256": hashlib.sha256(PIXELS).hexdigest(), **(header or {}),
    }  # fmt: skip
    (folder / "00000.index").write_bytes(raw.get("head", json.dumps(head).encode()) + b"\n" + body)
    return root


def row(at=1, **changes):
    """The rows with one value of the second changed."""
    names = ["name", "offset", "height", "width", "native_height", "native_width", "crc"]
    changed = [changes.get(name, value) for name, value in zip(names, ROWS[at], strict=True)]
    return {"rows": [ROWS[0], changed]}


STORES = {
    "per_shard 0": {"manifest": {"per_shard": 0}},
    "per_shard negative": {"manifest": {"per_shard": -1}},
    "per_shard a text": {"manifest": {"per_shard": "2"}},
    "per_shard a fraction": {"manifest": {"per_shard": 0.5}},
    "per_shard true": {"manifest": {"per_shard": True}},
    "1e13 files": {"manifest": {"files": 10**13}},
    "1e13 as a fraction": {"manifest": {"files": 1e13}},
    "2e9 files, one a shard": {"manifest": {"files": 2 * 10**9, "per_shard": 1}},
    "files negative": {"manifest": {"files": -5}},
    "files null": {"manifest": {"files": None}},
    "size a list": {"manifest": {"size": [32]}},
    "size 0": {"manifest": {"size": 0}},
    "key of a path": {"manifest": {"key": "../../etc"}},
    "key a number": {"manifest": {"key": 7}},
    "key absolute": {"manifest": {"key": "/etc"}},
    "root a list": {"manifest": {"root": ["/"]}},
    "data set a number": {"manifest": {"data_set": 3}},
    "of another version": {"manifest": {"format": "\n" * 99}},
    "unknown key": {"manifest": {"run": "os.system"}},
    "manifest a list": {"manifest_text": "[1, 2]"},
    "manifest deep": {"manifest_text": "[" * 100_000},
    "manifest a long number": {"manifest_text": '{"format": ' + "9" * 9000 + "}"},
    "manifest long": {"manifest_text": json.dumps({"data_set": "x" * 2**21})},
    "rows without fields": {"rows": [["a/1.png"], ["a/2.png"]]},
    "rows empty": {"rows": []},
    "rows of numbers": {"rows": [1, 2]},
    "rows a mapping": {"rows": {"0": ROWS[0], "1": ROWS[1]}},
    "row of text numbers": row(offset="6"),
    "row of fractions": row(height=1.5),
    "row of NaN": row(width=float("nan")),
    "row of true": row(height=True),
    "row null": row(crc=None),
    "offset negative": row(offset=-1),
    "offset outside": row(offset=10**12),
    "offset just outside": row(offset=7),
    "height negative": row(height=-3, width=-2),
    "height absurd": row(height=10**9, width=10**9),
    "numbers of 100 bits": row(native_height=2**100),
    "name upwards": row(name="../../etc/passwd"),
    "name upwards inside": row(name="a/../../b.png"),
    "name absolute": row(name="/etc/passwd"),
    "name with a dot": row(name="a/./2.png"),
    "name empty": row(name=""),
    "name a number": row(name=2),
    "unusable a list": {"unusable": [1]},
    "unusable far": {"unusable": {"9": ["rule", "why"]}},
    "unusable no number": {"unusable": {"x": ["rule", "why"]}},
    "unusable of no rule": {"unusable": {"0": "rule"}},
    "unusable of numbers": {"unusable": {"0": [1, 2]}},
    "notes a list": {"notes": [1]},
    "notes far": {"notes": {"9": ["told"]}},
    "notes of numbers": {"notes": {"0": [1]}},
    "notes a text": {"notes": {"0": "told"}},
    "intensity a list": {"manifest": {"intensity": [1]}},
    "intensity of other names": {"manifest": {"intensity": {"call": "os.system"}}},
    "intensity of other types": {"manifest": {"intensity": {**asdict(Intensity()), "percentiles": "os.system"}}},
    "index a list": {"body": b"[1, 2]"},
    "index deep": {"body": b"[" * 100_000},
    "index no UTF-8": {"body": b'{"rows": "\xff"}'},
    "header a list": {"head": b"[1]"},
    "header a number": {"head": b"7"},
    "header deep": {"head": b"[" * 100_000},
    "header of bytes as text": {"header": {"bytes": "12"}},
    "header hash a number": {"header": {"sha256": 5}},
}  # fmt: skip


@pytest.mark.parametrize("name", STORES)
def test_a_hostile_store_is_refused_in_one_line(tmp_path, name):
    root = write_store(tmp_path, **STORES[name])
    message = refused(lambda: open_images(root, 16))
    assert str(root) in message
    assert "diptych prepare" in message or name.startswith("intensity")


def test_the_good_store_is_read(tmp_path):
    store = open_images(write_store(tmp_path, unusable={"0": ["rule", "why"]}, notes={"1": ["turned"]}), 16)
    assert store.read(1)[0].tolist() == [[6, 7], [8, 9], [10, 11]]
    assert store.unusable == {0: ("rule", "why")}
