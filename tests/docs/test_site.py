"""The site: its reference has every public name, with a docstring, and its pages lead where the repository's do."""

from __future__ import annotations

import inspect
import sys
from importlib import import_module

import pytest
from mini import ROOT

from diptych.names import PUBLIC

sys.path.insert(0, str(ROOT / "docs/_site"))
import links  # after its folder can be found
import reference  # as above

LISTED = reference.names()


def test_the_reference_has_every_public_name():
    there = {name for page in LISTED.values() for name, _ in page}
    assert there >= {f"diptych.{name}" for name in PUBLIC}
    for package in ("diptych.testing", "diptych.metrics"):
        for name in dir(import_module(package)):
            assert (
                f"{package}.{name}" in there or f"diptych.{name}" in there or f"{PUBLIC.get(name)}.{name}" in there
            ), name
    text = "".join(reference.pages().values())
    assert all(f":: {name}\n" in text for name in there)


@pytest.mark.parametrize("page", LISTED)
def test_every_name_of_the_reference_has_a_docstring(page):
    for name, _ in LISTED[page]:
        owner, _, last = name.rpartition(".")
        value = getattr(import_module(owner), last)
        if not (inspect.isclass(value) or inspect.isroutine(value)):
            continue  # a constant: the text below it is no attribute of it, and Sphinx leaves out what has none
        own = vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__
        assert own, f"{name} has no docstring of its own"
        members = vars(value).items() if inspect.isclass(value) else ()
        for member, function in members:
            if inspect.isfunction(function) and not member.startswith("_"):
                assert inspect.getdoc(function), f"{name}.{member} has no docstring"


def test_a_page_is_written_for_the_repository_and_read_on_the_site():
    pages = links.shown()
    assert pages[ROOT / "README.md"] == ROOT / "docs/index.md"
    text = (
        "[a](docs/runs.md#pictures) [`b`](CONTRIBUTING.md) [c](examples) [d](setup.cfg) [e](docs/datasets) `[f](setup.cfg)` "
        "[g](https://a.org) [h](#start)\n```\n[i](setup.cfg)\n```\n"
    )
    there = links.rewritten(text, ROOT / "README.md", ROOT / "docs/index.md", pages)
    at = "https://github.com/diptych-cxr/diptych"
    assert there == (
        f"[a](runs.md#pictures) [`b`](project/contributing.md) [c]({at}/tree/main/examples) [d]({at}/blob/main/setup.cfg) "
        "[e](datasets/README.md) `[f](setup.cfg)` [g](https://a.org) [h](#start)\n```\n[i](setup.cfg)\n```\n"
    )


def test_every_page_is_in_the_contents():
    listed = set()
    for page in (ROOT / "docs").rglob("*.md"):
        text = page.read_text()
        names = [
            line
            for block in text.split("```{toctree}")[1:]
            for line in block.split("```")[0].split()
            if ":" not in line
        ]
        names += [name for found in links.BELOW.findall(text) for name in found.split()]
        listed |= {(page.parent / f"{name}.md").resolve() for name in names}
    pages = set((ROOT / "docs").rglob("*.md")) - {ROOT / "docs/index.md"}
    assert not pages - listed
