"""Prompt sets from elsewhere: a hostile one is refused in one line, and runs nothing."""

import pytest
from refusing import refused

from diptych.errors import ConfigError
from diptych.evaluation.prompts import load_prompts

HEAD = "name: a\nversion: 1\nsource: b\n"
LAUGHS = "".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 10)}]\n" for i in range(1, 10))
PROMPTS = {
    "object": HEAD + "findings: !!python/object/apply:os.system [id]\n",
    "name": "!!python/name:os.system\n",
    "laughs": "l0: &l0 [x]\n" + LAUGHS + HEAD + "findings: *l9\n",
    "laughs as prompts": HEAD + "findings:\n  A:\n    positive: &a [[x, x], [x, x]]\n    negative: [*a, *a]\n",
    "merges": "l0: &l0 {a: 1}\n"
    + "".join(f"l{i}: &l{i} {{<<: [{', '.join([f'*l{i - 1}'] * 10)}]}}\n" for i in range(1, 10)),
    "within itself": HEAD + "findings: &a\n  A: *a\n",
    "deep": "[" * 20_000,
    "deep mapping": HEAD + "findings: " + "{a: " * 5000,
    "product": HEAD
    + f"classes:\n  A:\n    combine: [{', '.join(['[a, b, c, d, e, f, g]'] * 12)}]\n  B: {{prompts: [b]}}\n",
    "long": HEAD + "findings: {A: {positive: [" + "x" * 2_000_000 + "]}}\n",
    "long number": "name: a\nversion: 0x" + "f" * 9000 + "\nsource: b\n",
    "no UTF-8": b"\xff\xfe\x00name",
    "control characters": "name: a\x00\n",
    "date of no day": "name: 2024-99-99\nversion: 1\n",
    "base 60": "name: " + "9:" * 3000 + "9\nversion: 1\n",
    "binary": "name: !!binary '%%%'\n",
    "findings a list": HEAD + "findings: [A]\n",
    "entry a number": HEAD + "findings: {A: 5}\n",
    "name of no text": HEAD + "findings: {1: {positive: [a], negative: [b]}}\n",
    "unknown key": HEAD + "findings: {A: {positive: [a], negative: [b], call: os.system}}\n",
    "key of a list": "? [1, 2]\n: 3\n",
    "key of a mapping": "? {a: b}\n: 3\n",
    "empty": "",
}


@pytest.mark.parametrize("name", PROMPTS)
def test_a_hostile_prompt_set_is_refused_in_one_line(tmp_path, name):
    path, content = tmp_path / "set.yaml", PROMPTS[name]
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert "set.yaml" in refused(lambda: load_prompts(str(path)), ConfigError)
