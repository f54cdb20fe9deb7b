"""Tables from elsewhere: a hostile one is refused in one line."""

import inprocess
import pytest
import yaml
from mini import config

TABLES = {
    "deep.jsonl": b"[" * 100_000,
    "long.jsonl": b'{"image": ' + b"9" * 9000 + b"}",
    "list.jsonl": b"[1, 2]\n",
    "text.jsonl": b'"os.system"\n',
    "bytes.jsonl": b'{"image": "\xff"}\n',
    "nul.csv": b"image,text\n\x00,\x00\x00\n",
    "bytes.csv": b"image,text\n\xff\xfe,x\n",
    "field.csv": b"image,text\n" + b"x" * 200_000 + b",y\n",
    "quote.csv": b'image,text\n"open,x\n' * 3,
    "empty.csv": b"",
    "more.csv": b"image,text\na,b,c,d\n",
    "cut.csv.gz": b"\x1f\x8b\x08\x00\x00\x00",
    "pickle.parquet": b"\x80\x04cos\nsystem\n",
    "magic.parquet": b"PAR1" + b"\xff" * 64 + b"PAR1",
}


@pytest.mark.parametrize("name", TABLES)
def test_a_hostile_table_is_refused_in_one_line(tmp_path, name):
    (tmp_path / name).write_bytes(TABLES[name])
    described = yaml.safe_load(config(tmp_path / name))
    described["data"]["init_args"]["columns"] = {"image": "image", "text": "text"}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(described))
    done = inprocess.diptych("fit", "-c", str(tmp_path / "run.yaml"), "--run", str(tmp_path / "run"))
    assert done.returncode == 2, done.stderr
    assert done.stderr.strip().split("\n")[-1].startswith("diptych: error: ")
    assert "Traceback" not in done.stderr
