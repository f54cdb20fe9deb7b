"""Results from elsewhere: hostile ones are refused in one line, and run nothing."""

import json

import inprocess
import pytest
from watched import watched

FIGURE = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 9}
RESULTS = {
    "empty": "",
    "a list": "[1]",
    "deep": "[" * 200_000,
    "deep in its protocol": '{"metrics": {}, "protocol": ' + '{"a":' * 5000 + "1" + "}" * 5001,
    "metrics a list": json.dumps({"metrics": [FIGURE], "protocol": {}}),
    "figure a text": json.dumps({"metrics": {"test/a/b": {**FIGURE, "value": "0.5"}}, "protocol": {}}),
    "figure a list": json.dumps({"metrics": {"test/a/b": {**FIGURE, "low": [1]}}, "protocol": {}}),
    "figure true": json.dumps({"metrics": {"test/a/b": {**FIGURE, "high": True}}, "protocol": {}}),
    "figure of many digits": '{"metrics": {"test/a/b": {"value": 1' + "0" * 400 + ', "low": 0, "high": 0, "n": 1}}}',
    "n infinite": '{"metrics": {"test/a/b": {"value": 1, "low": 0, "high": 0, "n": 1e999}}, "protocol": {}}',
    "n null": json.dumps({"metrics": {"test/a/b": {**FIGURE, "n": None}}, "protocol": {}}),
    "n a fraction": json.dumps({"metrics": {"test/a/b": {**FIGURE, "n": 1.5}}, "protocol": {}}),
    "no protocol": json.dumps({"metrics": {"test/a/b": FIGURE}, "protocol": "os.system"}),
    "names of one part": json.dumps({"metrics": {"loss": FIGURE}, "protocol": {}}),
    "half a letter": '{"metrics": {"test/a/\\ud800": {"value": 1, "low": 0, "high": 0, "n": 1}}, "protocol": {}}',
    "half a letter in the head": json.dumps({"metrics": {"test/a/b": FIGURE}, "protocol": {}, "head": "\ud800"}),
    "no UTF-8": b"\xff\xfe{",
    "seed a list": json.dumps({"metrics": {"test/a/b": FIGURE}, "protocol": {}, "seed": [[1]]}),
}


@pytest.mark.parametrize("name", RESULTS)
def test_hostile_results_are_refused_in_one_line(tmp_path, name):
    content = RESULTS[name]
    (tmp_path / "results.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with watched() as seen:
        done = inprocess.diptych("table", str(tmp_path))
    assert done.returncode == 2, done.stdout
    assert done.stderr.count("\n") == 1
    assert "results.json" in done.stderr
    assert not seen
