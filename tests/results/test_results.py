import json
import math
import os
import subprocess
import sys

import pytest

from diptych.errors import ConfigError, DataError
from diptych.metrics.bootstrap import Metric
from diptych.results import record as results

NAN = float("nan")
METRICS = {
    "test/retrieval/image_to_text/r@1": Metric(0.25, 0.1, 0.4, 12),
    "test/retrieval/image_to_text/median_rank": Metric(17.5, 9.0, 30.0, 12),
    "test/zero_shot/auroc/macro": Metric(NAN, NAN, NAN, 0),
}


def write(path, **changed):
    arguments = {
        "metrics": METRICS,
        "protocol": {"zero_shot": {"threshold": "score > 0", "thresholds": {"Edema": float("inf")}, "ks": (1, 5)}},
        "split_hash": "ab12",
        "seed": 3,
        "checkpoint": "a.ckpt",
        "checkpoint_sha256": "00ff",
        "head": "Global",
        "data": {"class": "Phantom"},
    }
    return results.write_results(path, **(arguments | changed))


def test_written_results_are_read_back(tmp_path):
    path = tmp_path / "run" / "results.json"
    write(path)
    content = results.read_results(path)
    assert list(content["metrics"]) == list(METRICS)
    assert content["metrics"]["test/retrieval/image_to_text/r@1"] == Metric(0.25, 0.1, 0.4, 12)
    assert math.isnan(content["metrics"]["test/zero_shot/auroc/macro"].value)
    assert content["checkpoint"] == {"path": "a.ckpt", "sha256": "00ff"}
    assert content["split_hash"] == "ab12"
    assert content["seed"] == 3
    assert {"python", "diptych", "torch", "lightning", "transformers", "timm", "numpy"} <= content["versions"].keys()


def test_file_is_strict_json_with_null_for_nan(tmp_path):
    write(tmp_path / "results.json")

    def refuse(constant):
        raise AssertionError(constant)

    raw = json.loads((tmp_path / "results.json").read_text(), parse_constant=refuse)
    assert raw["metrics"]["test/zero_shot/auroc/macro"] == {"value": None, "low": None, "high": None, "n": 0}
    assert raw["protocol"]["zero_shot"] == {"threshold": "score > 0", "thresholds": {"Edema": None}, "ks": [1, 5]}


def test_nothing_but_the_file_is_left_and_others_may_read_it(tmp_path):
    write(tmp_path / "results.json")
    write(tmp_path / "results.json", seed=4)
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]
    assert results.read_results(tmp_path / "results.json")["seed"] == 4
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "results.json").stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    write(path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match="No space left"):
        write(path, seed=4)
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]
    assert results.read_results(path)["seed"] == 3


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file/results.json.*give another --run"):
        write(tmp_path / "file" / "results.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read: No such file"),
        ("{", "is not JSON"),
        ("[]", "holds no 'metrics'"),
        ('{"metrics": {"a": {"value": 1}}}', "metrics.a' must have value, low, high and n"),
    ],
)
def test_reading_something_else_is_refused(tmp_path, text, message):
    path = tmp_path / "results.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        results.read_results(path)


def test_table_shows_value_interval_and_n(capsys):
    results.print_table(METRICS, title="test")
    lines = capsys.readouterr().out.splitlines()
    (row,) = [line for line in lines if "r@1" in line]
    assert [cell.strip() for cell in row.strip("│┃").split("│")] == [
        "test/retrieval/image_to_text/r@1",
        "0.250",
        "0.100 - 0.400",
        "12",
    ]
    (row,) = [line for line in lines if "auroc" in line]
    assert [cell.strip() for cell in row.strip("│┃").split("│")][1:] == ["-", "-", "0"]
    assert any("17.5" in line for line in lines)


def test_results_are_read_without_importing_torch():
    code = "import sys, diptych.results.record; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}, check=True)
