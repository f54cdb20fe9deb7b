"""What docstrings show at a prompt is so."""

import doctest
import importlib

import pytest
from mini import ROOT

MODULES = [
    ".".join(file.relative_to(ROOT / base).with_suffix("").parts).removesuffix(".__init__")
    for base in ("src", "heads", "datamodules")
    for file in sorted((ROOT / base).rglob("*.py"))
    if ">>> " in file.read_text()
]


@pytest.mark.parametrize("name", MODULES)
def test_docstrings_hold(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted
    assert not result.failed
